"""What is in two data sets that a reader may not have at hand: Caltech-101, and the human labels of CIFAR-10H.

    python benchmarks/datasets.py                                     # half a minute
    GRADCAM_DATA=... python benchmarks/datasets.py                    # the folder with cifar10h-counts.npy

The records hold facts about pictures, and no picture: data/records/caltech101-description, cifar10-human-labels.
"""

import time

import numpy as np
import pandas as pd
import torch

import gradcam_lib as gc
from gradcam_lib.datasets import DATASETS
from gradcam_lib.quality import disputes, human_labels
from gradcam_lib.records import describe_machine, records_folder, write_record

COMMAND = "python benchmarks/datasets.py"
DISPUTED = 200  # pictures whose facts are kept, beside those whose label is outvoted


def caltech101():
    """A row for each class, size and kind of grey, with the number of such pictures."""
    info = DATASETS["caltech101"]
    start = time.perf_counter()
    found = gc.describe("caltech101")
    seconds = time.perf_counter() - start
    kinds = found.problems.groupby("kind")["files"]
    run = {
        "command": COMMAND,
        "dataset_sha256": gc.load_dataset("caltech101").sha256,
        "citation": info.citation,
        "licence": info.licence,
        "pictures": len(found.pictures),
        "classes": len(found.classes),
        "balance": {name: float(value) for name, value in found.balance.items()},
        "sizes": found.sizes.round(4).to_dict("index"),
        "stored_grey": float(found.pictures["stored_grey"].mean()),
        "looks_grey": float(found.pictures["looks_grey"].mean()),
        "formats": found.formats.to_dict("records"),
        "problems": {kind: {"findings": len(files), "pictures": len(set(files.sum()))} for kind, files in kinds},
        "seconds": round(seconds, 1),
        **describe_machine(torch.device("cpu")),
    }
    columns = ["label", "width", "height", "stored_grey", "looks_grey"]
    rows = found.pictures[columns].astype({"stored_grey": int, "looks_grey": int})
    return run, rows.value_counts(sort=False).rename("pictures").reset_index()


def cifar10_human_labels():
    """A row for each picture whose label most people disagree with, and for the most disputed others."""
    counts = human_labels()
    if counts is None:
        raise SystemExit("cifar10h-counts.npy is not at hand: set GRADCAM_DATA to the folder that holds it.")
    cifar = gc.load_dataset("cifar10")
    table = disputes(counts, cifar.test.targets)
    outvoted = table["label"] != table["majority"]
    shares, edges = np.histogram(table["label_share"], bins=20, range=(0, 1))
    run = {
        "command": COMMAND,
        "dataset_sha256": cifar.sha256,
        "citation": "Peterson et al. (2019), Human Uncertainty Makes Classification More Robust",
        "licence": "CC BY-NC-SA 4.0, that of the counts these facts were computed from",
        "pictures": len(table),
        "answers": {name: float(getattr(table["answers"], name)()) for name in ("min", "mean", "max")},
        "label_share": float(table["label_share"].mean()),
        "entropy_bits": float(table["entropy"].mean()),
        "unanimous": int((table["entropy"] == 0).sum()),
        "outvoted": int(outvoted.sum()),
        "label_share_histogram": {"edges": edges.round(2).tolist(), "pictures": shares.tolist()},
        **describe_machine(torch.device("cpu")),
    }
    disputed = table["entropy"].rank(ascending=False, method="first") <= DISPUTED
    return run, table[outvoted | disputed].round({"label_share": 4, "majority_share": 4, "entropy": 4})


if __name__ == "__main__":
    for name, measure in (("caltech101-description", caltech101), ("cifar10-human-labels", cifar10_human_labels)):
        run, rows = measure()
        write_record(records_folder() / name, run, pd.DataFrame(rows))
        print(f"{name}: {len(rows):,} rows")
