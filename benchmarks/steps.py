"""Each recommendation for a better model as one measured step, from the baseline of the internship report to the best.

    python benchmarks/steps.py      # about an hour of one processor core; a second call goes on where the first stopped

A small-data ladder: 10,000 training images of CIFAR-10 and short runs, so that every step can be measured with three
seeds. Then the longest run again with some ingredients left out, and class-balanced sampling on Caltech-101. Rows go to
data/records/cifar10-steps one by one. Nothing was chosen by the test images.
"""

import json
import sys
import time
from dataclasses import asdict, replace

import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score

import gradcam_lib as gc
from gradcam_lib.records import describe_machine, records_folder, replacing, write_record
from gradcam_lib.training import measure

RECORD = records_folder() / "cifar10-steps"
SEEDS = (0, 1, 2)
EPOCHS = 20
EVALUATED = 2_500  # images of the training and of the validation part; the test part is used whole

BASELINE = replace(gc.RECIPES["cifar10-report"], epochs=EPOCHS, patience=None, train_images=10_000)
LADDER = {  # step: what it changes in the recipe of the one before
    "the report's network": {},
    "batch norm": {"model": "report-cnn-normalised"},  # and normalised pixels
    "one-cycle": {"optimizer": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "one-cycle"},
    "augmentation": {"flip": "random", "shift": 4},
    "residual network": {"model": "small-resnet"},
    "attention": {"model": "small-se-resnet"},
    "label smoothing": {"label_smoothing": 0.1},
    "growing pictures": {"first_size": 16},
    "moving average": {"ema": 0.99},  # of about the last 100 steps of 3,140
    "three times longer": {"epochs": 3 * EPOCHS},
}
VIEWS = "two views in testing"  # of the network of the step before: it costs no training

LEFT_OUT = {  # ingredient: what becomes of the longest recipe without it
    "augmentation": {"flip": "none", "shift": 0},
    "all but the time": {
        name: getattr(BASELINE, name) for changes in LADDER.values() for name in changes if name != "epochs"
    },
}

# All training pictures of Caltech-101, 22 to 560 a class, at 32 pixels.
CALTECH = replace(
    BASELINE,
    dataset="caltech101",
    model="small-se-resnet",
    train_images=None,
    epochs=8,
    crop="random",
    flip="random",
    label_smoothing=0.1,
    **LADDER["one-cycle"],
)


def recipes():
    """{step: recipe}, each the one before with one change."""
    steps, recipe = {}, BASELINE
    for step, changes in LADDER.items():
        steps[step] = recipe = replace(recipe, name=step, **changes)
    return steps


def jobs():
    """(part, step, changes, recipe) in the order in which they are run."""
    steps = recipes()
    for seed in SEEDS:
        for step, recipe in steps.items():
            yield "ladder", step, LADDER[step], replace(recipe, seed=seed)
    for seed in SEEDS:
        for balanced in (False, True):
            yield (
                "sampling",
                f"balanced={balanced}",
                {"balanced": balanced},
                replace(CALTECH, name="sampling", balanced=balanced, seed=seed),
            )
    for left_out, changes in LEFT_OUT.items():
        recipe = replace(steps["three times longer"], name="left out")
        yield "left out", left_out, changes, replace(recipe, **changes)


def measured(part, step, changes, recipe, data):
    """Train a recipe; the rows that it gives."""
    began = time.process_time()
    run = gc.train(recipe, data=data, device="cpu", progress=False)
    seconds = time.process_time() - began
    about = {"part": part, "step": step, "seed": recipe.seed, "epochs": recipe.epochs}
    about["changes"] = ", ".join(f"{name}={value}" for name, value in changes.items())
    validation = run.history["validation_accuracy"].iloc[-1]
    logits = gc.predict(run.model, data.test)
    row = about | {"test_accuracy": measure(logits, data.test.targets)[1], "validation_accuracy": validation}
    if part == "sampling":
        row["test_mean_class_accuracy"] = balanced_accuracy_score(data.test.targets, logits.argmax(1))
    else:
        seen = data.train.take(slice(0, EVALUATED))
        row["train_accuracy"] = measure(gc.predict(run.model, seen), seen.targets)[1]
    rows = [row | {"seconds": round(seconds, 1)}]
    if step == "three times longer":
        logits, known = (gc.predict(run.model, images, views=2) for images in (data.test, data.validation))
        row = row | {"test_accuracy": measure(logits, data.test.targets)[1]}
        row["validation_accuracy"] = measure(known, data.validation.targets)[1]
        rows.append(row | {"step": VIEWS, "changes": "views=2", "seconds": 0.0})
    return rows


def datasets():
    """The two data sets: CIFAR-10 with fewer validation images, and Caltech-101 with its pictures decoded."""
    from gradcam_lib.decoded import decode

    cifar = gc.load_dataset("cifar10")
    small = cifar.validation.take(slice(0, EVALUATED))
    yield "cifar10", replace(cifar, validation=small)
    yield "caltech101", decode(gc.load_dataset("caltech101"), 32)


def main(parts):
    file, data = RECORD / "history.csv", dict(datasets())
    rows = pd.read_csv(file).to_dict("records") if file.is_file() else []
    for part, step, changes, recipe in jobs():
        if (parts and part not in parts) or any(
            (row["part"], row["step"], row["seed"]) == (part, step, recipe.seed) for row in rows
        ):
            continue
        rows += measured(part, step, changes, recipe, data[recipe.dataset])
        print(json.dumps(rows[-1]), flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as scratch:
            pd.DataFrame(rows).to_csv(scratch, index=False, float_format="%.4f")
    run = {
        "command": "python benchmarks/steps.py",
        "dataset_sha256": {name: splits.sha256 for name, splits in data.items()},
        "evaluated_train_and_validation_images": EVALUATED,
        "recipes": {step: asdict(recipe) for step, recipe in recipes().items()},
        "left_out": LEFT_OUT,
        "sampling": asdict(CALTECH),
        **describe_machine(torch.device("cpu")),
    }
    write_record(RECORD, run, pd.DataFrame(rows).round(4))


if __name__ == "__main__":
    main(sys.argv[1:])
