"""Why is the accuracy low? The four reasons that the Caltech-256 report gives, each taken away in an experiment.

    python benchmarks/reasons.py      # about 25 minutes of one processor core

On Caltech-101 at 32 × 32 pixels, with one small network, three seeds a case. Every run makes the same number of steps
and differs from the baseline (101 classes, 20 training images each, from random weights) in one thing alone:

    pretrained   it starts from the features that the same network learned from CIFAR-10
    drawn        as many images in all, but in the proportions of the data set: 7 to 186 a class
    classes      fewer classes, drawn by the seed, of as many images each
    images       fewer images of each class, or all that there are
    longer       twice as many steps; and the same with mirrored and shifted images, a remedy for overfitting

Rows go to data/records/reasons: one a run, then one a class. The test logits are those of the baseline's first seed.
"""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import recall_score

import gradcam_lib as gc
from gradcam_lib.architectures import ARCHITECTURES
from gradcam_lib.batches import as_tested
from gradcam_lib.datasets import ArrayDataset, first_of_each_class
from gradcam_lib.decoded import decode
from gradcam_lib.records import describe_machine, records_folder, write_record
from gradcam_lib.training import measure

RECORD = records_folder() / "reasons"
SEEDS = (0, 1, 2)
SIDE = 32
PER_CLASS = 20  # all classes have that many training images: the smallest has 22
STEPS = 480
CLASSES = (10, 32)
IMAGES = (5, 10)
NETWORK = "report-cnn-normalised"
PRETRAINED = f"{NETWORK}, features of CIFAR-10"

BASELINE = gc.Recipe(
    name="reasons", dataset="caltech101", model=NETWORK, optimizer="adam", lr=1e-3, batch_size=64, schedule="cosine"
)
PRETRAINING = replace(BASELINE, dataset="cifar10", epochs=2)
AUGMENTED = {"flip": "random", "shift": 2}


def arrays(data):
    """The parts of Caltech-101 as arrays of squares, cut from the middle of each picture as in testing."""
    middle = as_tested(ARCHITECTURES[NETWORK].prepare)
    parts = {}
    for part in ("train", "validation", "test"):
        pictures = getattr(data, part)
        pixels = torch.stack([middle(picture) for picture, _ in pictures]).permute(0, 2, 3, 1)
        parts[part] = ArrayDataset(pixels.numpy(), pictures.targets, data.classes)
    return replace(data, **parts)


def with_training(data, indices):
    """The data set with these training images; and few validation images, by which nothing is chosen, to save time."""
    few = data.validation.take(first_of_each_class(data.validation.targets, 1))
    return replace(data, train=data.train.take(np.sort(indices)), validation=few)


def in_proportion(targets, number):
    """Indices of so many images, the first of each class, as many of each as its share in the data set says."""
    sizes = np.bincount(targets)
    exact = number * sizes / sizes.sum()
    n = np.floor(exact).astype(int)
    n[np.argsort(n - exact)[: number - n.sum()]] += 1  # what rounding down left over, to the largest remainders
    return np.concatenate([np.flatnonzero(targets == c)[:k] for c, k in enumerate(n)])


def of_classes(data, chosen):
    """The data set with these classes alone, numbered anew."""
    number = {c: k for k, c in enumerate(chosen)}
    parts = {}
    for part in ("train", "validation", "test"):
        images = getattr(data, part)
        kept = np.flatnonzero(np.isin(images.targets, chosen))
        targets = [number[c] for c in images.targets[kept]]
        parts[part] = ArrayDataset(images.data[kept], targets, [data.classes[c] for c in chosen])
    return replace(data, classes=parts["train"].classes, **parts)


def pretrained_on_cifar10():
    """Make the network that starts from what CIFAR-10 taught known by a name of its own, as recipes ask for one."""
    run = gc.train(PRETRAINING, device="cpu", progress=False)
    learned = run.model.features.state_dict()

    def build(classes):
        model = ARCHITECTURES[NETWORK](classes)
        model.features.load_state_dict(learned)
        return model

    ARCHITECTURES[PRETRAINED] = build
    return run.history["validation_accuracy"].iloc[-1]


def cases(data, seed):
    """(part, case, changes to the recipe, data) of each run of a seed."""
    first = first_of_each_class(data.train.targets, PER_CLASS)
    even = with_training(data, first)
    yield "baseline", f"{PER_CLASS} of each", {}, even
    yield "pretrained", "CIFAR-10", {"model": PRETRAINED}, even
    yield "drawn", "in proportion", {}, with_training(data, in_proportion(data.train.targets, len(even.train)))
    for k in CLASSES:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(data.classes))[:k])
        yield "classes", str(k), {}, of_classes(even, chosen)
    for n in IMAGES:
        yield "images", str(n), {}, with_training(data, first_of_each_class(data.train.targets, n))
    yield "images", "all", {}, data
    for case, changes in (("plain", {}), ("augmented", AUGMENTED)):
        yield "longer", case, changes, replace(even, validation=data.validation)


def measured(recipe, data, steps):
    """Train for so many steps. The row, and the test logits (N, classes)."""
    epochs = round(steps * recipe.batch_size / len(data.train))
    run = gc.train(replace(recipe, epochs=epochs), data=data, device="cpu", progress=False)
    row = {"seed": recipe.seed, "classes": len(data.classes), "train_images": len(data.train), "epochs": epochs}
    for part in ("train", "test"):
        images = getattr(data, part)
        logits = gc.predict(run.model, images)
        row[f"{part}_loss"], row[f"{part}_accuracy"] = measure(logits, images.targets)
        row[f"{part}_mean_class_accuracy"] = by_class(logits, images.targets).mean()
    known = run.history["validation_accuracy"]
    row |= {"validation_images": len(data.validation), "best_validation_accuracy": known.max()}
    return row | {"last_validation_accuracy": known.iloc[-1], "seconds": run.history["seconds"].sum().round(1)}, logits


def by_class(logits, targets):
    return recall_score(targets, logits.argmax(1), average=None)


def main():
    whole = gc.load_dataset("caltech101")
    data = arrays(decode(whole, SIDE))
    rows, accuracies, kept = [], {"baseline": [], "drawn": []}, None
    validation = pretrained_on_cifar10()
    for seed in SEEDS:
        for part, case, changes, chosen in cases(data, seed):
            steps = 2 * STEPS if part == "longer" else STEPS
            row, logits = measured(replace(BASELINE, seed=seed, **changes), chosen, steps)
            rows.append({"part": part, "case": case} | row)
            print(json.dumps(rows[-1]), flush=True)
            if part in accuracies:
                accuracies[part].append(by_class(logits, data.test.targets))
            if kept is None:
                kept = logits  # the baseline's
    drawn = np.bincount(data.train.targets[in_proportion(data.train.targets, PER_CLASS * len(data.classes))])
    classes = pd.DataFrame(
        {
            "part": "class",
            "case": data.classes,
            "all_train_images": np.bincount(data.train.targets),
            "drawn_images": drawn,
            "test_images": np.bincount(data.test.targets),
            "even_accuracy": np.mean(accuracies["baseline"], axis=0),
            "drawn_accuracy": np.mean(accuracies["drawn"], axis=0),
        }
    )
    run = {
        "command": "python benchmarks/reasons.py",
        "dataset_sha256": whole.sha256,
        "pixels_a_side": SIDE,
        "images_per_class": PER_CLASS,
        "steps": STEPS,
        "recipe": asdict(BASELINE),
        "augmented": AUGMENTED,
        "pretraining": asdict(PRETRAINING) | {"validation_accuracy": round(validation, 4)},
        **describe_machine(torch.device("cpu")),
    }
    table = pd.concat([pd.DataFrame(rows), classes], ignore_index=True).round(4)
    counts = table.select_dtypes("number").columns.difference([c for c in table if "accuracy" in c or "loss" in c])
    counts = counts.drop("seconds")
    table[counts] = table[counts].astype("Int64")  # whole numbers stay whole beside empty cells
    write_record(RECORD, run, table, kept.half().numpy())


if __name__ == "__main__":
    main()
