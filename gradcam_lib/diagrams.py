"""Diagrams of networks, drawn from the real model: its shapes as `summarise` measures them, its kernels, its joins.

Every diagram runs from the picture at the top to the logits at the bottom. In those of whole networks a box is as wide
as the maps have pixels on a side, and as tall as there are many of them, both on a logarithmic scale. All are narrow,
and their letters large enough, for a telephone held upright.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log2
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path
from matplotlib.typing import ColorType
from torch import nn

from .plots import BLUE, CHANNELS, ORANGE, figure_in_style
from .summary import summarise

if TYPE_CHECKING:
    from .architectures import SEBlock

__all__ = ["dense_block", "network", "residual_blocks", "squeeze_excitation"]

WIDTH = 3.6  # inches: 396 pixels at the book's resolution, so that a telephone shows letters nearly at their own size
INK, PURPLE = "#22262c", "#7a5aa6"
COLOURS = {
    "convolution": BLUE,
    "pooling": ORANGE,
    "dense layer": CHANNELS["green"],
    "residual block": PURPLE,
    "dense block": PURPLE,
    "gate": CHANNELS["red"],
}
KINDS: dict[type[nn.Module], str]
KINDS = {nn.Conv2d: "convolution", nn.Linear: "dense layer", nn.MaxPool2d: "pooling", nn.AvgPool2d: "pooling"}
KINDS |= {nn.AdaptiveAvgPool2d: "pooling"}
NAMES: dict[type[nn.Module], str]
NAMES = {nn.MaxPool2d: "max pool", nn.AvgPool2d: "mean pool", nn.AdaptiveAvgPool2d: "mean pool", nn.Linear: "dense"}


# --- whole networks ---


@dataclass(frozen=True)
class _Box:
    label: str
    shape: tuple[int, ...]
    kind: str = ""
    count: int = 1  # layers or blocks of the same shape, one after the other: slices of one box


@figure_in_style
def network(
    model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224), blocks: Mapping[str, str] | None = None
) -> Figure:
    """A network from top to bottom: what each layer does at the left, the shape of what it gives at the right.

    input_size  (C, H, W) of the picture
    blocks      names of modules that are drawn as one box each, and what such a box consists of, such as
                {"layer1": "bottleneck"}

    Convolutions of the same kind and shape share a box, a slice each. Normalisations, activations and dropout are not
    drawn; nor is a pooling that leaves the shape as it is.
    """
    boxes = _boxes(model, input_size, blocks or {})
    gap, centre, lines = 0.17, 1.7, 0.25
    sizes = [_size(box) for box in boxes]
    kinds = list(dict.fromkeys(box.kind for box in boxes if box.kind))
    top = lines * -(-len(kinds) // 2) + 0.12
    figure, axis = _canvas(top + sum(height for _, height in sizes) + gap * (len(boxes) - 1) + 0.06)
    y = axis.get_ylim()[1]
    for number, kind in enumerate(kinds):
        x, line = 0.3 + 1.75 * (number % 2), y - 0.16 - lines * (number // 2)
        axis.add_patch(Rectangle((x, line - 0.07), 0.16, 0.14, facecolor=COLOURS[kind]))
        axis.text(x + 0.23, line, kind, va="center", fontsize=9, color=INK)
    y -= top
    for number, (box, (width, height)) in enumerate(zip(boxes, sizes, strict=True)):
        if number:
            _arrow(axis, (centre, y), (centre, y - gap))
            y -= gap
        slice_height, left = height / box.count, centre - width / 2
        for k in range(box.count):
            low = y - (k + 1) * slice_height
            face, edge = (COLOURS[box.kind], "white") if box.kind else ("white", INK)
            axis.add_patch(
                Rectangle((left, low), width, slice_height, linewidth=1, zorder=2, facecolor=face, edgecolor=edge)
            )
            if box.kind == "residual block":
                _arc(axis, left + width, low + slice_height * 0.95, low + slice_height * 0.05, 0.1)
        axis.text(centre - 0.72, y - height / 2, box.label, ha="right", va="center", fontsize=9, color=INK)
        axis.text(centre + 0.73, y - height / 2, _times(box.shape), ha="left", va="center", fontsize=9, color=INK)
        y -= height
    return figure


def _boxes(model: nn.Module, input_size: tuple[int, int, int], blocks: Mapping[str, str]) -> list[_Box]:
    drawn = {"": _Box("picture", tuple(input_size))}
    joins: dict[str, set[str]] = {}  # the operations between the modules of each block
    row: Any  # its attributes are the table's columns
    for row in summarise(model, input_size).table.itertuples():
        block = next((name for name in blocks if f"{row.name}.".startswith(f"{name}.")), None)
        module = model.get_submodule(block or row.name)
        (name, previous), kind = list(drawn.items())[-1], KINDS.get(type(module))
        if block:
            joins.setdefault(block, set()).add(row.kind)
            drawn[block] = _block(
                blocks[block], row.output, module, joins[block]
            )  # its shape is that of its last layer
        elif row.kind == "adaptive_avg_pool2d":
            drawn["pooling"] = _Box("mean pool", row.output, "pooling")
        elif kind:
            box = _Box(_layer(module), row.output, kind)
            if kind == "convolution" and (previous.label.split("× ")[-1], previous.shape) == (box.label, box.shape):
                drawn[name] = replace(previous, label=f"{previous.count + 1} × {box.label}", count=previous.count + 1)
            elif kind != "pooling" or previous.shape != box.shape:
                drawn[row.name] = box
    return list(drawn.values())


def _block(label: str, shape: tuple[int, ...], module: nn.Module, joins: set[str]) -> _Box:
    kind = "residual block" if "add" in joins else "dense block" if "cat" in joins else ""
    if not kind:
        return _Box(label, shape, "pooling")
    count = len(list(module.children()))
    return _Box(f"{count} × {label}", shape, kind, count)


def _layer(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return NAMES[type(module)]
    k, stride = module.kernel_size[0], module.stride[0]
    return f"conv {k}×{k}" + (f" /{stride}" if stride > 1 else "")


def _size(box: _Box) -> tuple[float, float]:
    """Width and height in inches: 0.15 to 1.4 for maps of 1 to 300 pixels a side, and more for more of them."""
    channels, side = box.shape[0], box.shape[-1] if len(box.shape) == 3 else 1
    height = 0.035 * log2(channels) * (1 + 0.5 * (min(box.count, 8) - 1)) if box.kind else 0.16
    return 0.15 + 0.15 * log2(side), max(height, 0.16)


# --- blocks ---


@figure_in_style
def residual_blocks(basic: nn.Module, bottleneck: nn.Module) -> Figure:
    """The two blocks of ResNet beside each other, with the shortcut of each.

    basic, bottleneck  such as `resnet18().layer1[0]` and `resnet50().layer1[1]` of torchvision
    """
    figure, axis = _canvas(3.25)
    for x, title, block in ((0.78, "basic", basic), (2.42, "bottleneck", bottleneck)):
        layers = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        axis.text(x, 3.12, title, ha="center", va="center", fontsize=10, weight="bold", color=INK)
        top, join = 2.66, 0.56
        axis.text(x, 2.84, f"$x$:  {layers[0].in_channels} maps", ha="center", va="center", fontsize=9, color=INK)
        step = (top - join) / (len(layers) + 0.75)
        y = previous = top
        for layer in layers:
            y -= step
            _arrow(axis, (x, previous), (x, y + 0.15))
            _card(axis, x, y, f"{_layer(layer)}, {layer.out_channels}", BLUE)
            previous = y - 0.15
        _arrow(axis, (x, previous), (x, join + 0.11))
        _join(axis, x, join, "+")
        _arc(axis, x + 0.03, top, join, 0.7, end=x + 0.11)
        _arrow(axis, (x, join - 0.11), (x, 0.26))
        axis.text(x, 0.14, r"$y = \mathrm{relu}(x + F(x))$", ha="center", va="center", fontsize=9, color=INK)
    return figure


@figure_in_style
def dense_block(block: nn.Module) -> Figure:
    """A dense block of DenseNet: every layer reads the maps of all before it.

    block  such as `densenet121().features.denseblock1` of torchvision
    """
    layers: list[Any] = list(block.children())
    inputs, growth = layers[0].norm1.num_features, layers[0].conv2.out_channels
    step, x = 0.56, 1.5
    figure, axis = _canvas(step * (len(layers) + 1) + 0.4)
    tops = [axis.get_ylim()[1] - 0.2 - step * k for k in range(len(layers) + 2)]
    colours = plt.get_cmap("viridis")([0.75 * k / len(layers) for k in range(len(layers) + 1)])
    axis.text(x, tops[0], f"{inputs} maps", ha="center", va="center", fontsize=9, color=INK)
    for k, layer in enumerate(layers, start=1):
        kernels = (
            f"{conv.kernel_size[0]}×{conv.kernel_size[0]}, {conv.out_channels}" for conv in (layer.conv1, layer.conv2)
        )
        _card(axis, x, tops[k], " → ".join(kernels), colours[k], half=0.82)
        axis.text(0.6, tops[k], f"{layer.norm1.num_features} in", ha="right", va="center", fontsize=9, color=INK)
    axis.text(x, tops[-1], f"{inputs + growth * len(layers)} maps", ha="center", va="center", fontsize=9, color=INK)
    for source in range(len(layers) + 1):
        low = tops[source] - (0.1 if source == 0 else 0.15)
        _arrow(axis, (x, low), (x, tops[source + 1] + 0.15), colours[source])
        for sink in range(source + 2, len(layers) + 2):
            edge, end = (x + (0.82 if 0 < k <= len(layers) else 0.4) for k in (source, sink))
            reach = 0.2 + 0.13 * (sink - source) + (x + 0.82 - edge)
            _arc(axis, edge, tops[source] - 0.02, tops[sink] + 0.04, reach, colours[source], end)
    return figure


@figure_in_style
def squeeze_excitation(block: "SEBlock", size: int) -> Figure:
    """A residual block with squeeze-and-excitation: the maps go down at the left, their gate is made at the right.

    block  an `SEBlock`
    size   of its maps, in pixels a side
    """
    gate: Any = block.gate  # or none, and then there is nothing to draw
    C, reduced = gate.W2.out_features, gate.W1.out_features
    figure, axis = _canvas(4.25)
    x, side, red = 1.2, 2.8, COLOURS["gate"]
    axis.text(x, 4.1, f"$x$:  {C} × {size} × {size}", ha="center", va="center", fontsize=9, color=INK)
    for layer, above, y in ((block.conv1, 3.98, 3.5), (block.conv2, 3.35, 2.9)):
        _arrow(axis, (x, above), (x, y + 0.15))
        _card(axis, x, y, f"{_layer(layer)}, {layer.out_channels}", BLUE)
    gates = [("mean", C, ORANGE), ("dense", reduced, COLOURS["dense layer"]), ("dense", C, COLOURS["dense layer"])]
    previous = 2.55
    axis.plot([x, side], [previous, previous], color=INK, linewidth=1.1, zorder=1)
    for (label, maps, colour), y in zip([*gates, ("sigmoid", C, red)], (2.25, 1.8, 1.35, 0.9), strict=True):
        _arrow(axis, (side, previous), (side, y + 0.15))
        _card(axis, side, y, f"{label}, {maps}", colour)
        previous = y - 0.15
    for label, where in (("$u$", (x + 0.08, 2.65)), ("$s$", (2.08, 1.0)), ("$F(x)$", (x + 0.08, 0.71))):
        axis.text(*where, label, va="center", fontsize=9, color=INK)
    _arrow(axis, (x, 2.75), (x, 1.01))
    _arrow(axis, (side - 0.5, 0.9), (x + 0.11, 0.9), red)
    _join(axis, x, 0.9, "×")
    _arrow(axis, (x, 0.79), (x, 0.61))
    _join(axis, x, 0.5, "+")
    _arc(axis, x - 0.03, 3.92, 0.5, -0.95, end=x - 0.11)
    _arrow(axis, (x, 0.39), (x, 0.24))
    axis.text(x, 0.13, r"$y = \mathrm{relu}(x + F(x))$", ha="center", va="center", fontsize=9, color=INK)
    return figure


# --- strokes ---


def _canvas(height: float) -> tuple[Figure, Axes]:
    """A figure whose coordinates are inches from its lower left corner."""
    figure = plt.figure(figsize=(WIDTH, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, WIDTH), ylim=(0, height))
    axis.axis("off")
    return figure, axis


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: ColorType = INK) -> None:
    options: dict[str, Any] = dict(
        arrowstyle="-|>", mutation_scale=8, linewidth=1.1, color=colour, shrinkA=0, shrinkB=0, zorder=1
    )
    axis.add_patch(FancyArrowPatch(start, end, **options))


def _arc(
    axis: Axes, x: float, top: float, bottom: float, reach: float, colour: ColorType = INK, end: float | None = None
) -> None:
    """A curve that leaves x at the top, sideways, and comes back at the bottom, to `end` with an arrow's head."""
    points = [(x, top), (x + reach * 4 / 3, top), (x + reach * 4 / 3, bottom), (x if end is None else end, bottom)]
    path = Path(points, [Path.MOVETO, *[Path.CURVE4] * 3])
    style = "-" if end is None else "-|>"
    axis.add_patch(
        FancyArrowPatch(path=path, arrowstyle=style, mutation_scale=8, color=colour, linewidth=1.1, zorder=1)
    )


def _card(axis: Axes, x: float, y: float, label: str, colour: ColorType, half: float = 0.5) -> None:
    """A rounded box with white letters."""
    look: dict[str, Any] = dict(boxstyle="round,pad=0,rounding_size=0.05", facecolor=colour, edgecolor="none", zorder=2)
    axis.add_patch(FancyBboxPatch((x - half, y - 0.15), 2 * half, 0.3, **look))
    axis.text(x, y, label, ha="center", va="center", fontsize=9, color="white", zorder=3)


def _join(axis: Axes, x: float, y: float, sign: str) -> None:
    axis.add_patch(Circle((x, y), 0.11, facecolor="white", edgecolor=INK, linewidth=1.1, zorder=2))
    axis.text(x, y, sign, ha="center", va="center_baseline", fontsize=11, color=INK, zorder=3)
