"""A fast copy of a network, for making many maps: the same numbers to rounding, and the caller's model untouched."""

import copy
import shutil
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .tail import Tail

__all__ = ["accelerated"]

# One fast copy a model, forgotten with it, and made again when the model, the layers or the batch change.
_copies: weakref.WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = weakref.WeakKeyDictionary()


def accelerated(model: nn.Module, layers: list[str], images: torch.Tensor, compiled: bool = True) -> nn.Module:
    """A copy of the model in evaluation mode that gives its layers' feature maps faster.

    layers    dotted names; their outputs are the model's own, whatever is folded before them
    images    (N, C, H, W), a batch as it will be run
    compiled  compile what lies before the first of the layers, without a gradient

    Batch norms are folded into the convolutions before them. Convolutions work channels_last. What lies before the
    layers is compiled for this very shape of batch, where the machine has a compiler: this takes tens of seconds, once.
    On a GPU the copy computes in bfloat16, and what is compiled replays CUDA graphs.
    """
    weights = tuple((t.data_ptr(), t._version) for t in (*model.parameters(), *model.buffers()))
    key = (weights, tuple(layers), images.shape, images.device, compiled)
    if _copies.get(model, (None, None))[0] != key:
        fast = copy.deepcopy(model).eval().requires_grad_(False)
        _fold(fast, layers)
        fast = fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its types forgot this
        if images.is_cuda:
            fast = fast.to(torch.bfloat16)
        if compiled:
            _compile(fast, layers, prepared(images, fast))
        _copies[model] = (key, fast)
    return _copies[model][1]


def prepared(images: torch.Tensor, fast: nn.Module) -> torch.Tensor:
    """The images as the fast copy takes them."""
    dtype = next((p.dtype for p in fast.parameters()), images.dtype)
    return images.to(dtype=dtype, memory_format=torch.channels_last)


def _fold(model: nn.Module, layers: list[str]) -> None:
    """Fold each batch norm into the convolution that alone feeds it, unless that one's output is asked for."""
    try:
        nodes = fx.Tracer().trace(model).nodes
    except Exception:  # a forward that depends on its input cannot be traced; without folding it is only slower
        return
    calls = [node for node in nodes if node.op == "call_module"]
    uses = Counter(node.target for node in calls)
    for node in calls:
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1):
            continue
        feeder, fed = str(before.target), str(node.target)  # the modules' names
        conv, norm = model.get_submodule(feeder), model.get_submodule(fed)
        if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.running_var is None:
            continue
        heard = any(m._forward_hooks or m._forward_pre_hooks for m in (conv, norm))
        if not heard and uses[before.target] == uses[node.target] == 1 and feeder not in layers:
            model.set_submodule(feeder, fuse_conv_bn_eval(conv, norm))
            model.set_submodule(fed, nn.Identity())


def _compile(model: nn.Module, layers: list[str], images: torch.Tensor) -> None:
    """Compile every module with a convolution that has finished when the first of the layers has."""
    if not (images.is_cuda or shutil.which("g++") or shutil.which("clang++") or shutil.which("cl")):
        return
    with torch.no_grad():
        before = [{call.module for call in Tail(model, images[:1], model.get_submodule(name)).calls} for name in layers]
        stages = [m for m in set.intersection(*before) if any(isinstance(inner, nn.Conv2d) for inner in m.modules())]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own, of other parts of PyTorch
                for module in stages:
                    module.forward = _compiled(module.forward, _options(images))
                model(images)
        except Exception as error:  # of a compiler: any
            for module in stages:
                vars(module).pop("forward", None)
            warnings.warn(
                f"The fast copy runs uncompiled, for compiling it failed: {str(error).splitlines()[0]}", stacklevel=4
            )


def _options(images: torch.Tensor) -> dict[str, Any]:
    # Weights become constants, laid out as the convolutions want them.
    return {"triton.cudagraphs": True} if images.is_cuda else {"freezing": True}


def _compiled(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def stage(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    # PyTorch compiles a piece of code for eight shapes and no more: so each stage has to have a code of its own.
    stage.__code__ = stage.__code__.replace()
    compiled = torch.compile(stage, dynamic=False, options=options)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return compiled(*args, **kwargs)

    return run
