"""Which layers of a network have a map, and how what a layer gives becomes feature maps (N, K, h, w)."""

import difflib
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import nn

from .faults import first_line, out_of_memory

__all__ = ["RESHAPES", "Layer", "list_layers"]

Reshape = Callable[[torch.Tensor], torch.Tensor]  # from what a layer gives to feature maps (N, K, h, w)

POOLING = tuple(
    getattr(nn, f"{kind}Pool2d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "FractionalMax", "LP")
)


@dataclass(frozen=True)
class Layer:
    """A layer that can be explained.

    name    its dotted name in the model
    shape   (K, h, w) of its feature maps
    kind    "maps" for an output (N, K, h, w), or the name of the reshape that gives one: "tokens", "channels-last"
    """

    name: str
    shape: tuple[int, int, int]
    kind: str


def size_of(images: torch.Tensor) -> tuple[int, int]:
    """(H, W) of images (N, C, H, W)."""
    H, W = images.shape[2:]
    return H, W


def tokens(X: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N, T, K) tokens of a vision transformer as (N, K, h, w): class and other leading tokens dropped.

    The grid is the one that has the proportions of the images, `size` (H, W).
    """
    grid = token_grid(X.shape[1], size)
    if grid is None:
        raise ValueError(
            f"{X.shape[1]} tokens fill no grid with the proportions of the images, {size[0]} x {size[1]}. "
            "Pass reshape=, a function from the layer's output to feature maps (N, K, h, w)."
        )
    h, w = grid
    return X[:, X.shape[1] - h * w :].mT.unflatten(2, (h, w))


def token_grid(T: int, size: tuple[int, int]) -> tuple[int, int] | None:
    for leading in range(min(T - 1, 16)):
        h = isqrt((T - leading) * size[0] // size[1])
        if h and (T - leading) % h == 0 and h * size[1] == (T - leading) // h * size[0] and T - leading > 1:
            return h, (T - leading) // h
    return None


def channels_last(X: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N, h, w, K) as (N, K, h, w)."""
    return X.permute(0, 3, 1, 2)


RESHAPES = {"tokens": tokens, "channels-last": channels_last}


def kind_of(module: nn.Module, output: object, size: tuple[int, int]) -> str | None:
    """How the module's output is to be read, or None where it has no height and width."""
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        return None
    if output.ndim == 3 and token_grid(output.shape[1], size):
        return "tokens"
    if output.ndim == 4:
        while isinstance(module, nn.Sequential) and len(module):
            module = module[-1]
        # These work on the last axis, so there the channels are. (ConvNeXt's LayerNorm2d is no nn.LayerNorm by type.)
        last = type(module) in (nn.Linear, nn.LayerNorm) or type(module).__name__.startswith("SwinTransformerBlock")
        h, w = output.shape[1:3] if last else output.shape[2:]
        if h * w > 1:
            return "channels-last" if last else "maps"
    return None


def feature_maps(output: torch.Tensor, kind: str | Reshape, name: str, size: tuple[int, int]) -> torch.Tensor:
    """The layer's output, or a gradient of its shape, as (N, K, h, w)."""
    X = output if kind == "maps" else RESHAPES[kind](output, size) if isinstance(kind, str) else kind(output)
    if not isinstance(X, torch.Tensor) or X.ndim != 4:
        what = tuple(X.shape) if isinstance(X, torch.Tensor) else type(X).__name__
        raise ValueError(
            f"Layer {name!r} gives {what}, not feature maps (N, K, h, w). Choose an earlier layer, or pass reshape=."
        )
    return X


def is_pooling(module: nn.Module) -> bool:
    """Also as torch.export writes it down: a module whose last operation is one."""
    if isinstance(module, POOLING):
        return True
    graph = getattr(module, "graph", None)
    if not isinstance(graph, torch.fx.Graph) or list(module.children()):
        return False
    operations = [node.name for node in graph.nodes if node.op == "call_function"]
    return bool(operations) and "pool" in operations[-1]


def first_tensor(output: Any) -> Any:
    """A layer that gives a tuple, such as attention, is known by its first part."""
    return output[0] if isinstance(output, tuple | list) and output else output


# One for each model that has been looked into. Forgotten with the model.
_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_making_a_lock = threading.Lock()


@contextmanager
def one_at_a_time(model: nn.Module) -> Iterator[None]:
    """Threads that set hooks or modes of the same model wait here for each other: they would hear each other's passes.

    A thread may enter several times.
    """
    with _making_a_lock:
        lock = _locks.setdefault(model, threading.RLock())
    with lock:
        yield


def output_of(model: nn.Module, images: torch.Tensor) -> Any:
    """What the model returns for images (N, C, H, W).

    Raises ValueError where they do not fit it: their channels, size, type or device.
    """
    try:
        return model(images)
    except (RuntimeError, AssertionError) as error:
        # Those of PyTorch, which has no kinds of its own for them. What a network raises on purpose goes through.
        if type(error) not in (RuntimeError, AssertionError) or out_of_memory(error):
            raise
        weights = next(model.parameters(), None)
        known = "" if weights is None else f", and its weights are {weights.dtype} on {weights.device}"
        raise ValueError(
            f"The model does not take images {tuple(images.shape[1:])} {images.dtype} on {images.device}{known} "
            f"({first_line(error)}). Prepare them as for its training; load_model gives a model.prepare for that."
        ) from error


def list_layers(model: nn.Module, images: torch.Tensor) -> list[Layer]:
    """Every layer of the model that can be explained, in the order in which they finish in a forward pass.

    images  (N, C, H, W); one of them is run through the model, in the mode that it is in. Raises ValueError where it
            does not fit the model

    A pooling, or a container that ends in one, is not listed. Of modules that give the very same output, such as a
    container and the last module in it, the outermost is.
    """
    with torch.no_grad(), one_at_a_time(model):
        return list(trace(model, images[:1])[0])


def trace(model: nn.Module, images: torch.Tensor) -> tuple[dict[Layer, torch.Tensor], object]:
    """The layers that can be explained with their outputs, and the model's output."""
    size = size_of(images)
    found: list[tuple[Layer, torch.Tensor, int]] = []
    pooled: list[torch.Tensor] = []

    def tracer(name: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            output = first_tensor(output)
            kind = kind_of(module, output, size)
            # A container that ends in a pooling gives that pooling's output.
            if kind is None or any(output is p for p in pooled):
                return
            if is_pooling(module):
                pooled.append(output)
                return
            # Unchanged since an inner module gave it: an in-place operation would have raised its version.
            if found and found[-1][1] is output and found[-1][2] == output._version:
                kind = found.pop()[0].kind
            K, h, w = feature_maps(output, kind, name, size).shape[1:]
            found.append((Layer(name, (K, h, w), kind), output, output._version))

        return hook

    handles = [module.register_forward_hook(tracer(name)) for name, module in model.named_modules() if name]
    try:
        logits = output_of(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: output for layer, output, _ in found}, logits


# The layers found for a model, so that choosing one costs a forward pass only once. Forgotten with the model; a model
# whose modules were exchanged is traced again.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[object, str]] = weakref.WeakKeyDictionary()


def find_layer(model: nn.Module, images: torch.Tensor, layer: str | int | nn.Module | None) -> tuple[str, nn.Module]:
    """The name and the module of one layer: named, given, counted from the end, or (None) the last with a map."""
    modules = dict(model.named_modules())
    name: str | None
    if layer is None or isinstance(layer, int):
        key = (tuple(map(id, modules.values())), images.shape[1:], layer)
        if _known.get(model, (None, None))[0] != key:
            # One image would do, but a batch norm in training mode may refuse a single one.
            sample = images if any(m.training for m in modules.values()) else images[:1]
            _known[model] = (key, _counted(model, sample, layer))
        name = _known[model][1]
    elif isinstance(layer, str):
        name = next(
            (n for n in (layer, layer.removeprefix("module."), layer.removeprefix("_orig_mod.")) if n in modules), None
        )
        if not name:
            raise ValueError(f"The model has no layer {layer!r}. {near(layer, [n for n in modules if n])}")
    elif isinstance(layer, nn.Module):
        name = next((name for name, module in modules.items() if module is layer), None)
        if not name:
            raise ValueError(f"This {type(layer).__name__} is not a layer of the model. See model.named_modules().")
    else:
        raise ValueError(f"A layer is a name, a module, or a negative number, not {layer!r}.")
    return name, modules[name]


def _counted(model: nn.Module, images: torch.Tensor, index: int | None) -> str:
    if index is not None and index >= 0:
        raise ValueError(f"Layers are counted from the end: -1 is the last one, {index} is none. Or give its name.")
    with torch.no_grad():
        layers = list(trace(model, images)[0])
    if not layers:
        raise ValueError("No layer of this model has an output (N, K, h, w), so there is no map to draw. Name a layer.")
    if index is not None:
        if -index > len(layers):
            raise ValueError(
                f"There is no layer {index}: the model has {len(layers)} with a map, -1 to -{len(layers)}."
            )
        return layers[index].name
    return _last_with_gradient(model, images) if layers[-1].kind == "tokens" else layers[-1].name


def _last_with_gradient(model: nn.Module, images: torch.Tensor) -> str:
    """Of a vision transformer's layers, the last on whose places the prediction depends.

    Where its head reads the class token alone, all that follows the last attention has a gradient of zero everywhere
    else, and so have all maps that are made of it.
    """
    with torch.enable_grad():
        outputs, logits = trace(model, images.detach().clone().requires_grad_())
        if not isinstance(logits, torch.Tensor):
            raise ValueError(
                "The model does not return logits (N, classes), so no layer can be chosen for it. Name one."
            )
        gradients = torch.autograd.grad(logits.flatten(1).amax(1).sum(), list(outputs.values()), allow_unused=True)
    for layer, gradient in reversed(list(zip(outputs, gradients, strict=True))):
        if gradient is not None and feature_maps(gradient, layer.kind, layer.name, size_of(images)).any():
            return layer.name
    raise ValueError("The score depends on no place of any layer's output, so there is no map to draw. Name a layer.")


def near(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=5) or list(names)[:10]
    return f"Did you mean: {', '.join(close)}?"
