"""What a measured run leaves behind: `run.json`, `history.csv`, and the files that later chapters need.

Every figure in the book that took longer to measure than a chapter may run is read from such a record.
"""

import datetime
import glob
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from .faults import writing
from .recipes import RECIPES, REPORTED
from .stored import read_array, read_json, reading

__all__ = [
    "Record",
    "accelerator_found",
    "describe_machine",
    "ledger",
    "other_measurements",
    "read_record",
    "records_folder",
    "write_record",
    "write_tensors",
]


@dataclass(frozen=True)
class Record:
    """A measured run.

    run          recipe, seed, data set digest, metrics, versions, hardware, date, wall time in seconds
    history      one row an epoch; losses in nats, accuracies in [0, 1]
    test_logits  (N, classes) float16 in the order of the test set, or None where they were not kept
    """

    name: str
    run: dict[str, Any]
    history: pd.DataFrame
    test_logits: np.ndarray | None = None


def records_folder() -> Path:
    """`data/records` of the checkout, or the copy that an installed package carries."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "data" / "records"
    return checkout if checkout.is_dir() else package / "_records"


def read_record(name: str | Path) -> Record:
    """The record of a recipe, or in a folder of your own. Raises ValueError where there is none, or a damaged one."""
    folder = next((f for f in (records_folder() / name, Path(name)) if (f / "run.json").is_file()), None)
    if folder is None:
        known = sorted(f.parent.name for f in records_folder().glob("*/run.json"))
        raise ValueError(f"{str(name)!r} has not been measured. Measured are: {', '.join(known) or 'none'}.")
    logits = folder / "test_logits.npy"
    with _reading(folder):
        return Record(
            str(name),
            read_json(folder / "run.json"),
            pd.read_csv(folder / "history.csv"),
            read_array(logits) if logits.is_file() else None,
        )


def _reading(folder: Path) -> AbstractContextManager[None]:
    return reading(lambda why: ValueError(f"The record in {folder} is damaged ({why}). Delete it, and measure again."))


def ledger() -> pd.DataFrame:
    """Every recipe and what is known of it, a row each: reported by others, and measured here.

    measured   test accuracy in [0, 1], the mean over the seeds; on Caltech the mean over the classes as well. NaN where
               no run has been recorded
    spread     standard deviation over the seeds, NaN for fewer than two
    seeds      how many runs
    minutes    of training, the mean over the seeds
    """
    rows = []
    for name, recipe in RECIPES.items():
        files = [records_folder() / name / "run.json", *sorted(records_folder().glob(f"{name}-seed*/run.json"))]
        metric = "test_mean_class_accuracy" if recipe.dataset.startswith("caltech") else "test_accuracy"
        runs = [_measured(file, metric) for file in files if file.is_file()]
        accuracy, minutes = (pd.Series([run[which] for run in runs], dtype=float) for which in ("accuracy", "minutes"))
        row: dict[str, object] = {"recipe": name, "reported": REPORTED.get(name, "")}
        row |= {"measured": accuracy.mean(), "spread": accuracy.std(), "seeds": len(runs), "minutes": minutes.mean()}
        row["hardware"] = ", ".join(dict.fromkeys(run["hardware"] for run in runs))
        row["date"] = max((run["date"] for run in runs), default="")
        rows.append(row | {"command": f"gradcam-lib train {name}"})
    return pd.DataFrame(rows)


def other_measurements() -> pd.DataFrame:
    """The records that are not of recipes, a row each: where, when, and the command that measures them again."""
    rows = []
    for file in sorted(records_folder().glob("*/run.json")):
        with _reading(file.parent):
            run = read_json(file)
            if "training_seconds" not in run:
                about = {"hardware": _place(run), "date": run["date"], "command": run["command"]}
                rows.append({"record": file.parent.name, **about})
    return pd.DataFrame(rows)


def _measured(file: Path, metric: str) -> dict[str, Any]:
    with _reading(file.parent):
        run = read_json(file)
        accuracy, minutes = float(run["metrics"][metric]), float(run["training_seconds"]) / 60
        return {"accuracy": accuracy, "minutes": minutes, "hardware": _place(run), "date": str(run["date"])}


def _place(run: dict[str, Any]) -> str:
    threads = run.get("threads")
    return run["hardware"] + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")


def write_record(
    folder: Path, run: dict[str, Any], history: pd.DataFrame, test_logits: np.ndarray | None = None
) -> None:
    """Write a record. `run.json` comes last, so that a folder that has one is whole."""
    with replacing(folder / "history.csv") as scratch:
        history.to_csv(scratch, index=False)
    if test_logits is not None:
        with replacing(folder / "test_logits.npy") as scratch, open(scratch, "wb") as file:
            np.save(file, test_logits)
    with replacing(folder / "run.json") as scratch:
        scratch.write_text(json.dumps(run, indent=2) + "\n")


@contextmanager
def scratch_beside(place: Path) -> Iterator[Path]:
    """A folder beside a file or folder that is to be made, gone at the end. Who asks for one holds a lock on the place.

    It has a name of its own, for a program that a killed run had started may still be writing into that run's.
    """

    def clear() -> None:
        for left in place.parent.glob(f".{glob.escape(place.name)}.*.partial"):  # ours, and those of killed runs
            shutil.rmtree(left, ignore_errors=True)

    clear()
    scratch = place.with_name(f".{place.name}.{uuid4().hex}.partial")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        clear()


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes `folder` at the end, so that a killed run never leaves half of one."""
    with scratch_beside(folder) as scratch:
        yield scratch
        os.replace(scratch, folder)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A scratch file that takes the place of `file` at the end: a reader meets the old one or the new one, whole.

    Raises OSError, in one sentence, where it cannot be written.
    """
    scratch = file.with_name(f"{file.name}.partial")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield scratch
            with open(scratch, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(scratch, file)
        finally:
            scratch.unlink(missing_ok=True)


def write_tensors(file: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """A safetensors file, with metadata: whole or not there. Raises OSError where it cannot be written.

    The library fills a temporary file of its own beside the one that it is asked for, and a killed run would leave it.
    """
    with replacing(file) as scratch, scratch_beside(file) as folder:
        save_file(tensors, folder / file.name, metadata=about)
        _in_order(folder / file.name)
        os.replace(folder / file.name, scratch)


def _in_order(file: Path) -> None:
    """Sort the metadata of a safetensors file, which come in an order drawn by chance: the same bytes every time."""
    with open(file, "rb+") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        opened.seek(8)
        opened.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for a record: what a reader needs to judge a time or to look for a difference."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "torchvision", "numpy")}},
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
    }


def accelerator_found() -> str:
    """The GPU of this machine and its memory, or what is slow without one, in sentences for people."""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)  # the one that training takes by itself
        return f"Accelerator found: {gpu.name}, with {gpu.total_memory / 2**30:.0f} GiB of memory."
    if torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory()
        return f"Accelerator found: this Mac's GPU, with {memory / 2**30:.0f} GiB of memory."
    run = read_record("cifar10-fast").run
    return (
        "No GPU was found. The chapters need none: each runs in a minute or two. What is slow without one is training "
        f"a whole recipe: cifar10-fast took {run['training_seconds'] / 60:.0f} min on {_place(run)}. "
        "Google Colab lends a GPU: Runtime → Change runtime type."
    )


def _processor() -> str:
    try:  # Linux; platform.processor() is empty there
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
