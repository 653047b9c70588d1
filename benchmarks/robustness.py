"""The CIFAR-10 networks on pictures unlike those they were trained on: corrupted, disputed, and from other data sets.

    python benchmarks/robustness.py                   # a quarter of an hour on one core
    GRADCAM_DATA=... python benchmarks/robustness.py  # the folder with cifar10h-counts.npy, for the disputed pictures

Accuracy on 1,000 test images with each corruption of `gradcam_lib.corruptions`; accuracy on all 10,000 by how far
people agree with the label; and how well a linear classifier does on Caltech-101 and CIFAR-100 with the features that
each network gives. Rows go to data/records/robustness.
"""

import copy
import time
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gradcam_lib as gc
from gradcam_lib.architectures import last_linear
from gradcam_lib.batches import at_size
from gradcam_lib.corruptions import CORRUPTIONS, corrupt
from gradcam_lib.datasets import ArrayDataset, first_of_each_class
from gradcam_lib.decoded import decode
from gradcam_lib.quality import human_labels
from gradcam_lib.records import describe_machine, records_folder, write_record

RECORD = records_folder() / "robustness"
NETWORKS = ("cifar10-report-50", "cifar10-fast")
CORRUPTED = 1_000  # the first test images
AGREEMENT = (0, 0.5, 0.7, 0.9, 0.99, 1.001)  # edges of the share of people who give a picture the label it has
PER_CLASS = 30  # training images, as in Caltech-101's literature
STRENGTHS = (0.001, 0.01, 0.1)  # of the linear classifier's fit, chosen on validation images


def corrupted(cifar):
    images = cifar.test.take(slice(0, CORRUPTED))
    models = {name: gc.load_model(name) for name in NETWORKS}
    cases = [("none", 0)] + [(name, severity) for name in CORRUPTIONS for severity in range(1, 6)]
    for name, severity in cases:
        pixels = corrupt(images.data, name, severity) if severity else images.data
        worse = ArrayDataset(pixels, images.targets, images.classes)
        for network, model in models.items():
            right = gc.predict(model, worse).argmax(1).numpy() == images.targets
            yield {"part": "corrupted", "network": network, "case": name, "severity": severity} | share(right)


def disputed(cifar):
    counts = human_labels()
    if counts is None:
        raise SystemExit("cifar10h-counts.npy is not at hand: set GRADCAM_DATA to the folder that holds it.")
    people = counts[np.arange(len(counts)), cifar.test.targets] / counts.sum(axis=1)
    answers = {"one person": people}
    for name in NETWORKS:
        answers[name] = gc.read_record(name).test_logits.argmax(1) == cifar.test.targets
    for low, high in pairwise(AGREEMENT):
        chosen = (people >= low) & (people < high)
        for name, right in answers.items():
            case = f"{low:.0%} to {high:.0%}" if high <= 1 else "all agree"
            yield {"part": "disputed", "network": name, "case": case} | share(right[chosen])


def share(right):
    return {"images": len(right), "accuracy": float(right.mean())}


@torch.no_grad()
def features(model, images):
    """What the last linear layer is given, (N, features)."""
    _, layer = last_linear(model)
    kept = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    gc.predict(model, images, batch_size=100)
    handle.remove()
    return torch.cat(kept).numpy()


def probes():
    """(name, side of the pictures in pixels, network)"""
    torch.manual_seed(0)
    yield "cifar10-fast, untrained", 32, gc.build_model("cifar10-fast").eval()
    for name in NETWORKS:
        yield name, 32, gc.load_model(name)
    for side in (32, 96):
        lite = gc.load_model("efficientnet-lite0")
        lite.prepare = at_size(lite.prepare, side)
        yield "efficientnet-lite0", side, lite


def transferred():
    for dataset in ("caltech101", "cifar100"):
        if not gc.at_hand(dataset):
            print(f"{dataset} is not at hand, and is not measured", flush=True)
            continue
        splits = gc.load_dataset(dataset)
        for name, side, model in probes():
            data = splits if dataset == "cifar100" else decode(splits, model.prepare.resize)
            train = data.train.take(first_of_each_class(data.train.targets, PER_CLASS))
            parts = {"train": train, "validation": data.validation, "test": data.test}
            began = time.perf_counter()
            x = {part: features(model, images) for part, images in parts.items()}
            yield probe(x, parts) | {
                "part": "transferred", "network": name, "case": dataset, "side": side,
                "features": x["train"].shape[1], "images": len(parts["test"]),
                "seconds": round(time.perf_counter() - began, 1),
            }  # fmt: skip


def probe(x, parts):
    """Fit a linear classifier on the features, its strength chosen on the validation part; measure it on the test."""
    best = None
    for C in STRENGTHS:
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=300, tol=1e-3))
        fitted.fit(x["train"], parts["train"].targets)
        known = balanced_accuracy_score(parts["validation"].targets, fitted.predict(x["validation"]))
        if best is None or known > best[0]:
            best = known, C, copy.deepcopy(fitted)
    guess, truth = best[2].predict(x["test"]), parts["test"].targets
    return {
        "C": best[1],
        "accuracy": (guess == truth).mean(),
        "mean_class_accuracy": balanced_accuracy_score(truth, guess),
    }


def main():
    cifar, rows = gc.load_dataset("cifar10"), []
    for part in (corrupted(cifar), disputed(cifar), transferred()):
        for row in part:
            rows.append(row)
            print(
                {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True
            )
    run = {
        "command": "GRADCAM_DATA=... python benchmarks/robustness.py",
        "dataset_sha256": {"cifar10": cifar.sha256, "caltech101": gc.load_dataset("caltech101").sha256},
        "corruptions": {name: list(parameters) for name, (_, parameters) in CORRUPTIONS.items()},
        "corrupted_images": CORRUPTED,
        "images_per_class": PER_CLASS,
        "strengths": list(STRENGTHS),
        **describe_machine(torch.device("cpu")),
    }
    write_record(RECORD, run, pd.DataFrame(rows).round(4))


if __name__ == "__main__":
    main()
