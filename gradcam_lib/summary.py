"""What a network is made of, layer by layer: shapes, parameters, multiply-adds, memory, receptive field, depth.

`summarise` runs a copy of the network once on PyTorch's meta device, whose tensors have a shape and no values: nothing
is computed and nothing is allocated. Every operation is seen as it happens, so a branch, a skip connection or a
concatenation counts as what it does, whatever the class of the module that does it.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from math import inf, prod
from operator import or_
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .layers import list_layers

if TYPE_CHECKING:
    from .architectures import Network

__all__ = ["Summary", "explainable", "summarise"]


@dataclass(frozen=True)
class Summary:
    """What `summarise` measured; printed, it is the table with the totals below it.

    table             a row a layer, in the order in which they run, with the columns below
    parameters        of the whole network
    multiply_adds     for one image: products of convolutions, dense layers and attention, and no others
    activation_bytes  of all layers together: about what training keeps of one image for the backward pass
    depth             layers with weights (convolutions, dense layers) on the longest path through the network
    receptive_field   side of the square of pixels that one place of the last feature maps depends on; inf where that is
                      the whole image

    The table's columns:

    name              of the module; for an operation between modules, of the module that runs it
    kind              its class, or the operation: "Conv2d", "add", "cat"
    output            the shape of what it gives for one image, such as (64, 112, 112)
    parameters        of this layer; a layer that is used twice has them in its first row
    multiply_adds     as above
    activation_bytes  four, as in float32, for every number of the output. Nothing for a view of the input, as in
                      flattening, or for dropout, which does nothing in use; what works in place counts as if it did not
    receptive_field   of one place of the output
    depth             from the image up to here
    """

    table: pd.DataFrame
    parameters: int
    multiply_adds: int
    activation_bytes: int
    depth: int
    receptive_field: float

    def field_of(self, module: str) -> float | None:
        """The receptive field of one place of what a module gives: the last of its rows. None where it has none."""
        names = self.table["name"]
        own = self.table["receptive_field"][(names == module) | names.str.startswith(f"{module}.")]
        return None if own.empty else float(own.iloc[-1])

    def __str__(self) -> str:
        def count(number: int) -> str:
            return f"{number:,}" if number else ""

        def side(r: float) -> str:
            return "all" if r == inf else f"{r:.0f}"

        t = self.table
        shown = pd.DataFrame(
            {
                "layer": t["name"],
                "kind": t["kind"],
                "output": [" × ".join(map(str, shape)) for shape in t["output"]],
                "parameters": t["parameters"].map(count),
                "multiply-adds": t["multiply_adds"].map(count),
                "field": t["receptive_field"].map(side),
                "depth": t["depth"],
            }
        )
        totals = (
            f"parameters {self.parameters:,}; multiply-adds {self.multiply_adds:,}; activations "
            f"{self.activation_bytes:,} bytes; depth {self.depth}; receptive field {side(self.receptive_field)}"
        )
        return f"{shown.to_string(index=False)}\n{totals}"


def summarise(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Summary:
    """Measure a network, layer by layer, for one image.

    model       any PyTorch network that takes images (N, C, H, W). A copy without values is run, in evaluation mode;
                the model itself is neither run nor changed.
    input_size  (C, H, W) of the image

    A layer is a module that holds no other modules; an operation outside all of them, such as the addition of a skip
    connection, is a layer of its own. The receptive field follows r' = r + (k - 1) · dilation · jump (Araujo, Norris
    and Sim 2019), with its offset, so that branches of different padding are joined rightly. Where places are mixed
    across the map (global pooling, a dense layer after flattening, attention), it is the whole image. It is exact for
    convolutions and poolings in any arrangement; for the rest it is an upper bound: transposed convolutions, adaptive
    pooling that does not divide the map, and attention in windows, as in Swin, are taken to see everything.

    Raises ValueError where the network does not take an image of that size.
    """
    twin = _without_values(model)
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    image = torch.empty(1, *input_size, dtype=dtype, device="meta")
    tracer = _Tracer(twin, image)
    try:
        with torch.inference_mode(), tracer:
            twin(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{type(model).__name__} takes no image of {tuple(input_size)}, (channels, height, width): {reason}"
        ) from error
    table = tracer.finished()
    field = table["receptive_field"]
    maps = [len(shape) == 3 and max(shape[1:]) > 1 and r > 0 for shape, r in zip(table["output"], field, strict=True)]
    return Summary(
        table,
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=int(table["multiply_adds"].sum()),
        activation_bytes=int(table["activation_bytes"].sum()),
        depth=int(table["depth"].max()),
        receptive_field=field[maps].iloc[-1] if any(maps) else inf,
    )


def explainable(model: "Network", side: int | None = None) -> list[dict[str, object]]:
    """The layers of `list_layers`, a row each: layer, maps, height, width, and its receptive field.

    side  of the picture, in pixels; None takes that of `model.prepare`

    The field is the side of the square of pixels that one place depends on, "all" for the whole picture, and None where
    it is not known, as in a network of torch.export, which does not run without values.
    """
    shape = 3, side or model.prepare.size, side or model.prepare.size
    found = list_layers(model.eval(), torch.zeros(1, *shape))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured = summarise(model, shape)
    except (ValueError, RuntimeError):
        measured = None
    rows: list[dict[str, object]] = []
    for layer in found:
        field = measured.field_of(layer.name) if measured else None
        size = dict(zip(("maps", "height", "width"), layer.shape, strict=True))
        rows.append({"layer": layer.name, **size, "receptive field": "all" if field == inf else field and int(field)})
    return rows


def _without_values(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device, in evaluation mode and without hooks; its tensors are not copied."""
    twins: dict[int, Any] = {}
    for module in model.modules():
        for tensor in [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]:
            if isinstance(tensor, nn.Parameter):
                twins[id(tensor)] = nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
            elif isinstance(tensor, torch.Tensor):
                twins[id(tensor)] = torch.empty_like(tensor, device="meta")
    twin = copy.deepcopy(model, twins)  # what stands in this dictionary counts as copied already
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    return twin.eval()


@dataclass(frozen=True)
class _Span:
    """The pixels, along one axis of the image, that the first place of a map depends on: low to high.

    The pixels of the next place lie `jump` further. Both ends may lie outside the image, in the padding.
    """

    low: float
    high: float
    jump: int

    def window(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> "_Span":
        """Of a map made by a window that slides over this one: the recursion."""
        low = self.low - padding * self.jump
        high = self.high + ((kernel - 1) * dilation - padding) * self.jump
        return _Span(low, high, self.jump * stride)

    def __or__(self, other: "_Span") -> "_Span":
        """Of a map that is made of both, place by place."""
        return _Span(min(self.low, other.low), max(self.high, other.high), max(self.jump, other.jump))


EVERYTHING = _Span(-inf, inf, 1)


Axes = tuple[frozenset[int], ...]


@dataclass(frozen=True)
class _Past:
    """What a tensor has come from.

    spans  of its places down and across the image
    axes   of each of its axes, which of the image's two, 0 and 1, run along it: {0, 1} where a map has been flattened
    depth  layers with weights on the longest path to it
    """

    spans: tuple[_Span, _Span]
    axes: Axes
    depth: int


NOWHERE: frozenset[int] = frozenset()
CONSTANT = _Past((_Span(0, -1, 1), _Span(0, -1, 1)), (), 0)  # made from parameters alone: it depends on no pixel
Arguments = dict[str, Any]  # of an operation, by their names
# Operations that give the same numbers under another shape: in the same order, and with axes exchanged.
RESHAPING = {"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "_reshape_alias"}
PERMUTING: dict[str, Callable[[Arguments], list[int]]] = {
    "permute": lambda a: [axis % a["self"].ndim for axis in a["dims"]],
    "transpose": lambda a: _exchanged(a["self"].ndim, a["dim0"], a["dim1"]),
    "t": lambda a: [1, 0],
}
# Operations that mix all places along some axes of their first input, and which axes.
MIXING: dict[str, Callable[[Arguments], Iterable[int]]] = {
    "linear": lambda a: [-1],
    "addmm": lambda a: [-1],
    "mm": lambda a: [-1],
    "bmm": lambda a: [-1],
    "scaled_dot_product_attention": lambda a: [-2],
    "_softmax": lambda a: [a["dim"]],
    "mean": lambda a: a.get("dim") or range(a["self"].ndim),
    "sum": lambda a: a.get("dim") or range(a["self"].ndim),
    "amax": lambda a: a["dim"] or range(a["self"].ndim),
    "roll": lambda a: a["dims"] or range(a["self"].ndim),
    "flip": lambda a: a["dims"],
    "native_layer_norm": lambda a: range(-len(a["normalized_shape"]), 0),
    "native_group_norm": lambda a: range(2, a["input"].ndim),
}
WEIGHTED = {"convolution", "linear", "addmm", "mm"}
WHOLE = {
    *WEIGHTED,
    "scaled_dot_product_attention",
    "dropout",
    "feature_dropout",
}  # operations that are not looked into further


class _Tracer(TorchDispatchMode):
    """Watches every operation: what each tensor has come from, and a row for each layer."""

    def __init__(self, model: nn.Module, image: torch.Tensor):
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's, without types
        spans = (_Span(0, 0, 1), _Span(0, 0, 1))
        self.pasts = {id(image): _Past(spans, (NOWHERE, NOWHERE, frozenset({0}), frozenset({1})), 0)}
        self.alive = [image]  # an id stays a tensor's own only while that lives; without values it costs nothing
        self.rows: list[dict[str, Any]] = []
        self.open: dict[str, Any] | None = None
        self.path = [""]  # the names of the modules that are running, the innermost last
        self.uncounted = {p: name for name, p in model.named_parameters()}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self.enter(name))
            module.register_forward_hook(self.leave)

    # --- rows ---

    def enter(self, name: str) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, inputs: object) -> None:
            self.path.append(name)
            if self.open is None and not any(True for _ in module.children()):
                self.open = self.new_row(module)

        return hook

    def leave(self, module: nn.Module, inputs: object, output: object) -> None:
        if self.open is not None and self.open["module"] is module:
            self.close(self.open, type(module).__name__, output)
        self.path.pop()

    def new_row(self, module: nn.Module | None = None) -> dict[str, Any]:
        return {"module": module, "made": False, "multiply_adds": 0, "parameters": set()}

    def close(self, row: dict[str, Any], kind: str, output: Any) -> None:
        self.open = None
        while isinstance(output, list | tuple) and output:
            output = output[0]
        past = self.pasts.get(id(output), CONSTANT)
        if past is not CONSTANT or row["multiply_adds"]:
            self.rows.append(
                {
                    "name": self.path[-1],
                    "kind": kind,
                    "output": tuple(output.shape[1:]),
                    "parameters": sum(p.numel() for p in row["parameters"] if self.uncounted.pop(p, None)),
                    "multiply_adds": row["multiply_adds"],
                    "activation_bytes": 4 * output.numel() * row["made"],
                    "receptive_field": max(span.high - span.low + 1 for span in past.spans),
                    "depth": past.depth,
                }
            )

    def finished(self) -> pd.DataFrame:
        """The table; parameters that are in no layer, such as a class token, have a row each at its end."""
        zeros = dict.fromkeys(("multiply_adds", "activation_bytes", "receptive_field", "depth"), 0)
        for p, name in self.uncounted.items():
            row = {"name": name, "kind": "Parameter", "output": tuple(p.shape), "parameters": p.numel()}
            self.rows.append(row | zeros)
        return pd.DataFrame(self.rows)

    # --- operations ---

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        with self.row(name) as row:
            output = NotImplemented
            if name not in WHOLE:
                with self:  # composite operations, such as flatten, are made of simpler ones, and these are seen
                    output = func.decompose(*args, **kwargs)
            if output is NotImplemented:
                output = func(*args, **kwargs)
                named = {a.name: a.default_value for a in func._schema.arguments}
                named.update(zip(named, args, strict=False))
                self.follow(name.removesuffix("_"), named | kwargs, output, row)  # add_ is add, in place
                alias = func._schema.returns[0].alias_info if func._schema.returns else None
                # A view of another tensor takes no memory, nor does a dropout that hands its input on.
                row["made"] |= alias.is_write if alias else all(output is not a for a in args)
            row["output"] = output
        return output

    @contextmanager
    def row(self, name: str) -> Iterator[dict[str, Any]]:
        """The row that an operation belongs to: of the layer that is running, or one of its own."""
        if self.open is not None:
            yield self.open
            return
        self.open = row = self.new_row()
        yield row
        if row["made"]:
            self.close(row, name.strip("_"), row["output"])
        self.open = None

    def follow(self, name: str, arguments: Arguments, output: Any, row: dict[str, Any]) -> None:
        """What the output has come from, by what the inputs have."""
        given = [t for a in arguments.values() for t in (a if isinstance(a, list | tuple) else [a])]
        row["parameters"].update(t for t in given if isinstance(t, nn.Parameter))
        inputs = [t for t in given if isinstance(t, torch.Tensor) and id(t) in self.pasts]
        outputs = [t for t in (output if isinstance(output, list | tuple) else [output]) if isinstance(t, torch.Tensor)]
        if not outputs:
            return
        row["multiply_adds"] += _multiply_adds(name, arguments, outputs[0])
        if not inputs:
            return
        same = [t for t in inputs if t.shape == outputs[0].shape]  # of a map and a gate for it, the map
        x, pasts = [*same, *inputs][0], [self.pasts[id(t)] for t in inputs]
        axes = self.pasts[id(x)].axes
        for y in outputs:
            self.alive.append(y)
            self.pasts[id(y)] = _Past(
                _spans(name, arguments, x, y, pasts, axes),
                _axes(name, arguments, x, y, axes),
                # A product of two tensors that both come from the image, as in attention, has no weights.
                max(past.depth for past in pasts) + (name in WEIGHTED and len(inputs) == 1),
            )


def _spans(
    name: str, a: Arguments, x: torch.Tensor, y: torch.Tensor, pasts: list[_Past], axes: Axes
) -> tuple[_Span, _Span]:
    """Down and across, the pixels that a place of y depends on."""
    spans = [reduce(or_, (past.spans[d] for past in pasts)) for d in (0, 1)]
    windows: Iterable[tuple[int, ...]]  # kernel, stride, padding, dilation, as far as they are given
    if name == "convolution" and x.ndim == 4 and not a["transposed"]:
        windows = zip(a["weight"].shape[2:], a["stride"], a["padding"], a["dilation"], strict=True)
    elif name in ("max_pool2d_with_indices", "avg_pool2d"):
        options = (a["kernel_size"], a["stride"] or a["kernel_size"], a["padding"], a.get("dilation", 1))
        windows = zip(*map(_pair, options), strict=True)
    elif "adaptive" in name and _divides(x.shape[2:], y.shape[2:]):
        windows = ((n // m, n // m) for n, m in zip(x.shape[2:], y.shape[2:], strict=True))
    elif name == "constant_pad_nd":  # zeros before the first place; a["pad"] is left, right, top, bottom
        windows = ((1, 1, before) for before in [*a["pad"][::2], 0, 0][1::-1])
    else:
        mixed = _mixed(name, a, x, y, axes)
        return EVERYTHING if 0 in mixed else spans[0], EVERYTHING if 1 in mixed else spans[1]
    down, across = (span.window(*window) for span, window in zip(spans, windows, strict=True))
    return down, across


def _divides(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether an adaptive pooling has windows of one size, side by side, and more than one of them."""
    return min(after) > 1 and not any(n % m for n, m in zip(before, after, strict=True))


def _mixed(name: str, a: Arguments, x: torch.Tensor, y: torch.Tensor, axes: Axes) -> frozenset[int]:
    """Which axes of the image are no longer told apart by place."""
    if name in RESHAPING or name in PERMUTING or name == "cat":
        return NOWHERE
    places: Iterable[int]
    if name in MIXING:
        places = MIXING[name](a)
    elif name == "convolution":  # transposed, or along one axis of tokens
        places = range(x.ndim)
    elif name == "select":
        places = [a["dim"]]
    elif x.ndim == y.ndim:
        # An operation that we know nothing of has made an axis longer or shorter. (One of length 1 is only repeated.)
        places = [i for i in range(x.ndim) if x.shape[i] != y.shape[i] and x.shape[i] > 1]
    else:
        places = range(x.ndim)
    return NOWHERE.union(*(axes[i] for i in places))


def _axes(name: str, a: Arguments, x: torch.Tensor, y: torch.Tensor, axes: Axes) -> Axes:
    """Which axes of the image run along each axis of y."""
    if name in PERMUTING:
        return tuple(axes[i] for i in PERMUTING[name](a))
    if name in RESHAPING:
        return _reshaped(x.shape, y.shape, axes)
    if name == "select":
        return tuple(axis for i, axis in enumerate(axes) if i != a["dim"] % x.ndim)
    return axes if x.ndim == y.ndim else (NOWHERE,) * y.ndim


def _reshaped(before: Sequence[int], after: Sequence[int], axes: Axes) -> Axes:
    """Match two shapes from the front, in groups of equal product: what runs along a group before does so after."""
    result: list[frozenset[int]] = []
    i, j = 0, 0
    while i < len(before):
        end_i, end_j, left, right = i + 1, j + 1, before[i], prod(after[j : j + 1])
        while left != right:
            if left < right:
                left *= before[end_i]
                end_i += 1
            else:
                right *= after[end_j]
                end_j += 1
        along = NOWHERE.union(*axes[i:end_i])
        result += [along if length > 1 else NOWHERE for length in after[j:end_j]]
        i, j = end_i, end_j
    return (*result, *[NOWHERE] * (len(after) - len(result)))


def _exchanged(length: int, i: int, j: int) -> list[int]:
    order = list(range(length))
    order[i], order[j] = order[j], order[i]
    return order


def _multiply_adds(name: str, a: Arguments, y: torch.Tensor) -> int:
    if name == "convolution":
        per_place = prod(a["weight"].shape[1:])  # each output value's products, or each input's where it is transposed
        return (a["input"] if a["transposed"] else y).numel() * per_place
    if name in ("linear", "mm", "bmm", "addmm"):
        left = next(a[key] for key in ("mat1", "input", "self") if key in a)
        return y.numel() * left.shape[-1]
    if name == "scaled_dot_product_attention":
        return prod(a["query"].shape[:-1]) * a["key"].shape[-2] * (a["query"].shape[-1] + a["value"].shape[-1])
    return 0


def _pair(option: int | Sequence[int]) -> list[int]:
    option = [option] if isinstance(option, int) else list(option)
    return option * 2 if len(option) == 1 else option
