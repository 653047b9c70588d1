"""Networks of your own: from your code, from timm, or from a file of TorchScript or torch.export.

No pickle can run code here: Python unpickles what it is told to, and a pickle may tell it anything. TorchScript is read
by C++; of what torch.export wrote, the pickles are opened by PyTorch's reader for plain tensors alone. Still, any of
these is a program: run none that you do not trust.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from .architectures import IMAGENET, Network, Preparation
from .stored import names, printable, read_json, reading

__all__ = ["no_code_in_pickles", "own_model"]

ABOUT = "extra/gradcam_lib.json"  # the extra file in which a network may say how its pictures are prepared
LARGEST = 2**20  # bytes of that file
TRACED = 13  # pictures; a number that no size has otherwise
SUFFIXES = (".pt", ".pth", ".pt2", ".ts", ".jit", ".ckpt", ".pkl", ".bin")
EXPORT = "torch.export.save(torch.export.export(model, (images,)), 'net.pt2')"
# What torch.export puts into an archive that is more than a graph and tensors: compiled code, and pickled objects.
REFUSED = ("data/aotinductor/", "data/constants/opaque_obj")


def own_model(name: str) -> Network | None:
    """The network that a name or a file stands for, with `prepare`, and `classes` where it names them; or None.

    name  "module:function", whose function returns a network; a file that `torch.jit.save` or `torch.export.save`
          wrote; or the name of a network of timm, after "timm/" if torchvision has one of that name

    Raises ValueError where it stands for something that cannot be used; the message says why, and what can.
    """
    size = 224
    model: Any  # which has a `prepare`, or is given one
    if Path(name).suffix.lower() in SUFFIXES or Path(name).is_file():
        model, size = _from_file(Path(name))
    elif ":" in name:
        model = _from_code(name)
    else:
        model = _from_timm(name.removeprefix("timm/"))
    if model is not None and not isinstance(getattr(model, "prepare", None), Preparation):
        model.prepare = Preparation(round(size / 0.875), size, **IMAGENET)
        warnings.warn(
            f"{name} does not say how its pictures are prepared: they are cut to {size} pixels and normalised as for "
            "ImageNet. If it was trained otherwise, its maps mean nothing: give it a .prepare, or an extra file "
            "gradcam_lib.json (see load_model).",
            stacklevel=3,
        )
    return model


def _from_code(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    try:
        model = getattr(import_module(module), function)
        model = model if isinstance(model, nn.Module) else model()
    except Exception as error:  # from the reader's own code: anything
        hint = " Run this in the folder that holds it, or install it." if isinstance(error, ImportError) else ""
        what = " ".join(str(error).split())
        raise ValueError(f"No network comes from {name} ({type(error).__name__}: {what}).{hint}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} gives a {type(model).__name__}, not a network (torch.nn.Module).")
    return model


def _from_timm(name: str) -> nn.Module | None:
    try:
        import timm
    except ImportError:
        return None
    if not timm.is_model(name):
        return None
    try:
        with no_code_in_pickles():
            model = timm.create_model(name, pretrained=True)
    except Exception as error:  # of the network, the hub or the file: anything
        what = " ".join(str(error).split())
        raise ValueError(f"timm could not give the weights of {name!r} ({type(error).__name__}: {what}).") from error
    shown = timm.data.resolve_model_data_config(model)
    size = shown["input_size"][-1]
    how = "bicubic" if shown["interpolation"] == "bicubic" else "bilinear"
    model.prepare = Preparation(round(size / shown["crop_pct"]), size, tuple(shown["mean"]), tuple(shown["std"]), how)
    if model.num_classes == 1000:
        from torchvision.models import ResNet18_Weights

        model.classes = tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    return model


# --- files ---


def _from_file(file: Path) -> tuple[nn.Module, int]:
    """The network, and the side of the pictures that it takes, as far as that is known."""
    try:
        with zipfile.ZipFile(file) as archive:
            parts = {name.partition("/")[2]: name for name in archive.namelist()}
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {str(file)!r}.") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
    except Exception:  # of what is no archive, or a damaged one: anything
        parts = {}
    if "archive_format" in parts:
        load = _exported
    elif "constants.pkl" in parts:
        load = _scripted
    else:
        raise ValueError(
            f"{file} is neither TorchScript nor of torch.export. If it is a pickle, as torch.save writes, it could run "
            f"any code when it is opened, and is not: export the network, {EXPORT}, or name a function of your own "
            "that builds and loads it, as module:function."
        )
    if refused := [part for part in parts if part.startswith(REFUSED)]:
        raise ValueError(f"{file} holds compiled code or pickled objects, {refused[0]}: export the network alone.")
    said = _said(file, parts[ABOUT]) if ABOUT in parts else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what PyTorch finds old in itself
            model, size = load(file, said["prepare"].size if "prepare" in said else 224)
    except _Unfit:
        raise
    except Exception as error:  # of a damaged file, or another version's: anything
        what = printable(" ".join(str(error).split())[:200])
        raise ValueError(
            f"{file} cannot be loaded by PyTorch {torch.__version__} ({type(error).__name__}: {what})."
        ) from error
    for name, value in said.items():
        setattr(model, name, value)
    return model, size


class _Unfit(ValueError):
    """A network that PyTorch loads, and that cannot be explained."""


def _said(file: Path, part: str) -> dict[str, Any]:
    """What the extra file says: `classes`, `prepare`, or both."""
    with reading(lambda why: ValueError(f"{file} has an extra file {Path(ABOUT).name} that is damaged: {why}.")):
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo(part).file_size > LARGEST:
                raise ValueError("it is too large")
            about = read_json(archive.read(part))
        said: dict[str, Any] = {}
        if "classes" in about:
            said["classes"] = names(about["classes"])
        if "prepare" in about:
            said["prepare"] = Preparation.from_json(about["prepare"])
        return said


def _exported(file: Path, size: int) -> tuple[nn.Module, int]:
    with no_code_in_pickles():
        program = torch.export.load(file)
    inputs = program.graph_signature.user_inputs
    (shape,) = (node.meta["val"].shape for node in program.graph.nodes if node.name in inputs)
    if isinstance(shape[0], int) and shape[0] != 1:
        raise _Unfit(
            f"{file} takes {shape[0]} pictures at once and no other number: export it with one, or with a dynamic "
            "number: dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)."
        )
    model = torch.export.unflatten(program)  # the modules as they were before, with their names
    return model, shape[-1] if isinstance(shape[-1], int) else 224


def _scripted(file: Path, size: int) -> tuple[nn.Module, int]:
    script = torch.jit.load(file, map_location="cpu").eval()
    # Its layers run outside Python, where no hook is heard. So its operations are written down as it runs once.
    with torch.no_grad():
        model = make_fx(script)(torch.zeros(TRACED, 3, size, size))
        _any_number(model)
        _name_layers(model)
        x = torch.rand(2, 3, size, size)
        if not torch.allclose(model(x), script(x), rtol=1e-3, atol=1e-4):
            raise _Unfit(f"{file} does not always do the same, so its layers cannot be found. Export it: {EXPORT}")
    return model, size


def _any_number(traced: torch.fx.GraphModule) -> None:
    """Where a shape was written down with the number of pictures that it was traced with, ask for their number."""
    pictures = next(node for node in traced.graph.nodes if node.op == "placeholder")
    with traced.graph.inserting_after(pictures):
        number = traced.graph.call_function(torch.ops.aten.sym_size.int, (pictures, 0))
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default  # pictures may lie in memory in another order than then
        for i, sizes in enumerate(
            node.args if re.search("view|reshape|expand|repeat|new_|zeros|ones", node.name) else ()
        ):
            if isinstance(sizes, list | tuple) and len(sizes) and sizes[0] == TRACED:
                node.update_arg(i, [number, *sizes[1:]])
    traced.recompile()


def _name_layers(traced: torch.fx.GraphModule) -> None:
    """Behind each operation that gives feature maps, a module that changes nothing and can be hooked."""
    for node in list(traced.graph.nodes):
        value, operation = node.meta.get("val"), node.target
        if not (isinstance(operation, torch._ops.OpOverload) and isinstance(value, torch.Tensor) and value.ndim == 4):
            continue
        if operation.is_view or not value.is_floating_point() or "pool" in node.name:
            continue
        traced.add_module(node.name, nn.Identity())
        with traced.graph.inserting_after(node):
            layer = traced.graph.call_module(node.name, (node,))
        node.replace_all_uses_with(layer, delete_user_cb=lambda user, layer=layer: user is not layer)
    traced.recompile()


@contextmanager
def no_code_in_pickles() -> Iterator[None]:
    """Whatever calls torch.load in here gets tensors and plain values, or an error."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
