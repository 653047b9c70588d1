"""Every figure of the book, one function each. Each returns a matplotlib figure, which a notebook shows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .images import Array, overlay, to_uint8
from .maths import ReceptiveField

__all__ = [
    "channel_histograms",
    "class_bars",
    "class_sizes",
    "confidence_histograms",
    "confusion",
    "confusion_map",
    "curve_panels",
    "curves",
    "descent_paths",
    "distributions",
    "dot_rows",
    "feature_maps",
    "gradient_norms",
    "heatmap_grid",
    "image_grid",
    "interval_panels",
    "intervals",
    "kernel_places",
    "layer_costs",
    "map_grid",
    "matrix",
    "network_sizes",
    "number_grids",
    "picture_sizes",
    "receptive_fields",
    "recorded_accuracies",
    "reliability_diagrams",
    "share_histogram",
    "size_scatter",
    "training_curves",
    "value_histograms",
]

Given = ParamSpec("Given")
Numbers = Sequence[float] | np.ndarray | pd.Series
Interval = tuple[float, float, float]  # a value, and its lower and upper end

BLUE, ORANGE, GREY = "#3266a8", "#d9772b", "#8a8f98"
CHANNELS = {"red": "#c8453c", "green": "#3f9a55", "blue": "#3266a8"}

STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "figure.facecolor": "white",  # figures keep a white card of their own, on light and dark pages alike
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def figure_in_style(draw: Callable[Given, Figure]) -> Callable[Given, Figure]:
    """Draw in the book's style, restore the reader's, and hand the figure over to the caller alone."""

    @wraps(draw)
    def drawn(*args: Given.args, **options: Given.kwargs) -> Figure:
        # Not plt.rc_context: it undoes all settings, and with them those that a notebook makes when its first figure is
        # drawn; no later figure would be shown.
        before = {name: plt.rcParams[name] for name in STYLE}
        plt.rcParams.update(STYLE)
        try:
            figure = draw(*args, **options)
        finally:
            plt.rcParams.update(before)
        plt.close(figure)  # in pyplot's list; the notebook would show it a second time
        return figure

    return drawn


@figure_in_style
def image_grid(
    images: Sequence[Array] | Array,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 10,
    size: float = 1.0,
    row_labels: Sequence[str] | None = None,
) -> Figure:
    """Pictures in rows and columns.

    images      (N, H, W, 3) uint8, or a sequence of float tensors (3, H, W) in [0, 1]
    titles      one for each picture, of one line or more
    row_labels  one for each row, written at its left
    size        of one picture, in inches
    """
    rows = -(-len(images) // columns)
    lines = max(title.count("\n") + 1 for title in titles) if titles else 0
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size, rows * (size + (0.06 + 0.16 * lines) * bool(lines))), squeeze=False
    )
    for k, axis in enumerate(axes.flat):
        axis.axis("off")
        if k < len(images):
            axis.imshow(to_uint8(images[k]), interpolation="nearest")
            if titles is not None:
                axis.set_title(titles[k], fontsize=8, pad=3)
    for axis, label in zip(axes[:, 0], row_labels or [], strict=False):
        axis.text(-0.15, 0.5, label, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


@figure_in_style
def channel_histograms(images: np.ndarray, means: Numbers, stds: Numbers) -> Figure:
    """The distribution of pixel values in each channel, with its mean and one standard deviation either side.

    images       (N, H, W, 3) uint8
    means, stds  (3,) in [0, 1]
    """
    figure, axes = plt.subplots(1, 3, figsize=(7.0, 2.2), sharey=True)
    for c, (axis, (name, colour)) in enumerate(zip(axes, CHANNELS.items(), strict=True)):
        share = np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size
        axis.fill_between(np.arange(256) / 255, share * 100, color=colour, alpha=0.75, linewidth=0)
        axis.axvspan(means[c] - stds[c], means[c] + stds[c], color=GREY, alpha=0.18, linewidth=0)
        axis.axvline(means[c], color="black", linewidth=1)
        axis.set(title=f"{name}: {means[c]:.3f} ± {stds[c]:.3f}", xlabel="pixel value", xlim=(0, 1), xticks=(0, 0.5, 1))
    axes[0].set_ylabel("% of pixels")
    axes[0].set_ylim(0, None)
    figure.tight_layout()
    return figure


@figure_in_style
def training_curves(
    histories: Mapping[str, pd.DataFrame],
    *,
    references: Mapping[str, float] | None = None,
    kept: Mapping[str, int] | None = None,
) -> Figure:
    """Loss and accuracy by epoch, training and validation, a line style for each run.

    histories   {name: table with the columns of `training.Run.history`}
    references  {label: accuracy in [0, 1]}, drawn as horizontal lines
    kept        {name: epoch whose weights were kept}, drawn as a ring
    """
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.0))
    for (name, table), style in zip(histories.items(), ("-", "--", ":"), strict=False):
        for part, colour in (("train", BLUE), ("validation", ORANGE)):
            prefix = f"{name}, " if len(histories) > 1 else ""
            for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
                scale = 100 if quantity == "accuracy" else 1
                values = table[f"{part}_{quantity}"] * scale
                axis.plot(table["epoch"], values, style, color=colour, label=f"{prefix}{part}", linewidth=1.6)
                if kept and name in kept and part == "validation":
                    row = table["epoch"] == kept[name]
                    axis.plot(table["epoch"][row], values[row], "o", color=colour, fillstyle="none", markersize=9)
    for label, accuracy in (references or {}).items():
        axes[1].axhline(accuracy * 100, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        axes[1].annotate(
            label,
            (1, accuracy * 100),
            xycoords=("axes fraction", "data"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color="#5b6068",
        )
    axes[0].set(xlabel="epoch", ylabel="cross-entropy (nats)")
    axes[0].set_ylim(0, None)
    axes[1].set(xlabel="epoch", ylabel="accuracy (%)")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    return figure


@figure_in_style
def feature_maps(maps: Array, weights: Array, *, columns: int = 8) -> Figure:
    """Feature maps with the weight that each gets, red where it counts for the class and blue where against.

    maps     (K, h, w)
    weights  (K,)
    """
    rows = -(-len(maps) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 1.0, rows * 1.25), squeeze=False)
    for k, axis in enumerate(axes.flat):
        axis.axis("off")
        if k < len(maps):
            axis.imshow(maps[k], cmap="gray", interpolation="nearest")
            colour = CHANNELS["red"] if weights[k] > 0 else CHANNELS["blue"]
            axis.set_title(f"{weights[k]:+.3f}", fontsize=8, color=colour, pad=3)
    figure.tight_layout(pad=0.4)
    return figure


@figure_in_style
def heatmap_grid(
    images: Array, heatmaps: Array, titles: Sequence[str], *, columns: int = 5, size: float = 1.5
) -> Figure:
    """Each picture above its heat map laid over it, with one colour scale for all.

    images    (N, 3, H, W) float tensor in [0, 1]
    heatmaps  (N, H, W) in [0, 1]
    titles    one for each picture
    """
    blocks = -(-len(images) // columns)
    figure, axes = plt.subplots(
        2 * blocks,
        columns,
        figsize=(columns * size + 0.8, blocks * (2 * size + 0.3)),
        squeeze=False,
        layout="constrained",
    )
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.axis("off")
    for k, (image, heat) in enumerate(zip(images, heatmaps, strict=True)):
        above, below = axes[2 * (k // columns) : 2 * (k // columns) + 2, k % columns]
        above.imshow(to_uint8(image), interpolation="nearest")
        above.set_title(titles[k], fontsize=8, pad=3)
        below.imshow(overlay(image, heat), interpolation="nearest")
    scale = plt.cm.ScalarMappable(cmap="inferno", norm=Normalize(0, 1))
    bar = figure.colorbar(scale, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("share of the map's\nlargest value", fontsize=8)
    bar.outline.set_visible(False)
    return figure


@figure_in_style
def matrix(values: npt.ArrayLike, labels: Sequence[str]) -> Figure:
    """A square table of numbers in [-1, 1], each in its cell on a shade of it.

    values  (n, n)
    labels  one for each row, and the column of the same number
    """
    figure, axis = plt.subplots(figsize=(0.62 * len(labels) + 1.4, 0.55 * len(labels) + 1.2))
    seaborn.heatmap(
        np.asarray(values), vmin=-1, vmax=1, cmap="vlag", annot=True, fmt=".2f", annot_kws={"size": 9}, cbar=False,
        square=True, linewidths=1, xticklabels=labels, yticklabels=labels, ax=axis,
    )  # fmt: skip
    axis.tick_params(left=False, bottom=False)
    plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    figure.tight_layout()
    return figure


@figure_in_style
def number_grids(
    grids: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    marked: Sequence[np.ndarray | None] | None = None,
    signs: Sequence[str] = (),
) -> Figure:
    """Small arrays side by side, each number in its cell on a shade of it.

    grids   2-D arrays
    titles  one for each grid
    marked  for each grid the cells to outline, as a bool array of its shape, or None for none
    signs   what stands between one grid and the next, such as "∗" and "="
    """
    rows, columns = np.array([np.shape(grid) for grid in grids]).T
    size = 0.38 * columns.sum() + 0.6 * (len(grids) - 1), 0.38 * rows.max() + 0.3
    figure, axes = plt.subplots(1, len(grids), figsize=size, width_ratios=columns, squeeze=False)
    for k, (axis, grid) in enumerate(zip(axes[0], grids, strict=True)):
        signed = np.min(grid) < 0
        most = max(np.abs(grid).max(), 1e-9) * 1.8  # pale enough for the numbers to be read
        seaborn.heatmap(
            grid, annot=True, fmt="g", annot_kws={"size": 10, "color": "black"}, cbar=False, square=True, linewidths=1,
            cmap="vlag" if signed else "Blues", vmin=-most * signed, vmax=most, ax=axis,
        )  # fmt: skip
        axis.set(xticks=(), yticks=())
        axis.set_title(titles[k], fontsize=10, pad=5)
        cells = None if marked is None else marked[k]
        for i, j in np.argwhere(np.zeros((1, 1)) if cells is None else cells):
            outline = Rectangle((j, i), 1, 1, fill=False, edgecolor=ORANGE, linewidth=2, zorder=3, clip_on=False)
            axis.add_patch(outline)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.3 / size[1], wspace=0.6 / (0.38 * columns.mean()))
    for sign, before, after in zip(signs, axes[0], axes[0][1:], strict=False):
        x = (before.get_position().x1 + after.get_position().x0) / 2
        figure.text(x, axes[0][0].get_position().y1 / 2, sign, ha="center", va="center", fontsize=15)
    return figure


@figure_in_style
def map_grid(
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    columns: int = 4,
    size: float = 1.7,
    unit: str | None = None,
    largest: float | None = None,
) -> Figure:
    """Feature maps, or other arrays of numbers, all on one scale: white is 0, blue is negative, red is positive.

    maps     2-D arrays
    titles   one for each map
    size     of one map, in inches
    unit     what the colours measure, written at the colour bar
    largest  where the colours end; None takes the largest value there is
    """
    rows = -(-len(maps) // columns)
    most = largest or max(float(np.abs(values).max()) for values in maps)
    least = -most if min(float(np.min(values)) for values in maps) < 0 else 0
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size + 0.7, rows * (size + 0.25)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, values, title in zip(axes.flat, maps, titles, strict=False):
        shown = axis.imshow(values, cmap="vlag" if least else "cividis", vmin=least, vmax=most, interpolation="nearest")
        axis.set_title(title, fontsize=10, pad=4)
    bar = figure.colorbar(
        shown, ax=axes, shrink=0.8, aspect=25, pad=0.02, extend="neither" if largest is None else "both"
    )
    bar.set_label(unit or "", fontsize=9)
    bar.outline.set_visible(False)
    return figure


@figure_in_style
def kernel_places(settings: Mapping[str, Mapping[str, int]], *, size: int = 5, columns: int = 2) -> Figure:
    """Where a 3 × 3 kernel stands: its first place in orange, the second in blue, a dot in the middle of each.

    settings  for each panel its title and the stride, padding and dilation, as a dictionary
    size      rows and columns of the picture, drawn in grey; padding is drawn in white
    """
    rows = -(-len(settings) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 2.3, rows * 2.75), squeeze=False)
    for axis, (title, geometry) in zip(axes.flat, settings.items(), strict=True):
        stride, padding, dilation = (geometry.get(key, least) for key, least in
                                     (("stride", 1), ("padding", 0), ("dilation", 1)))  # fmt: skip
        for i, j in np.ndindex(size + 2 * padding, size + 2 * padding):
            inside = padding <= min(i, j) and max(i, j) < size + padding
            face, edge = ("#e4e7ec", "white") if inside else ("white", "#c9ced6")
            axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=face, edgecolor=edge))
        places = range(0, size + 2 * padding - 2 * dilation, stride)
        axis.plot(*np.array([(j + dilation, i + dilation) for i in places for j in places]).T, ".", color=GREY)
        for u, v in np.ndindex(3, 3):
            corner = v * dilation - 0.42, u * dilation - 0.42
            axis.add_patch(Rectangle(corner, 0.84, 0.84, color=ORANGE, alpha=0.55, linewidth=0))
            axis.plot(
                stride + v * dilation, u * dilation, "o", color=BLUE, fillstyle="none", markersize=11, markeredgewidth=2
            )
        axis.set(xlim=(-0.6, size + 2 * padding - 0.4), ylim=(size + 2 * padding - 0.4, -0.6), aspect="equal")
        axis.axis("off")
        axis.set_title(f"{title}\n{len(places)} × {len(places)} places", fontsize=9.5)
    figure.tight_layout(pad=0.5, h_pad=1.5)
    return figure


@figure_in_style
def receptive_fields(image: np.ndarray, fields: Mapping[str, ReceptiveField], sizes: Mapping[str, int]) -> Figure:
    """The receptive field of each layer's middle unit, as a square on the picture.

    image   (H, W, 3) uint8, or a map (H, W)
    fields  {layer: maths.ReceptiveField}
    sizes   {layer: units along an axis}
    """
    figure, axis = plt.subplots(figsize=(4.8, 3.2))
    axis.imshow(image, cmap="cividis", interpolation="nearest")
    colours = plt.get_cmap("plasma")(np.linspace(0, 1, len(fields) + 1)[1:])
    for (name, field), colour in zip(fields.items(), colours, strict=True):
        corner = field.first + (sizes[name] // 2) * field.jump - 0.5
        square = Rectangle((corner, corner), field.size, field.size, fill=False, edgecolor=colour, linewidth=2.5)
        axis.add_patch(square).set_label(f"{name}: {field.size} pixels")
    least = min(-0.5, corner - 0.5)
    most = max(len(image) - 0.5, corner + field.size + 0.5)
    axis.set(xlim=(least, most), ylim=(most, least))
    axis.axis("off")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


@figure_in_style
def curves(
    x: Numbers,
    lines: Mapping[str, Numbers],
    xlabel: str,
    ylabel: str,
    *,
    log: str = "",
    points: bool = False,
    levels: Mapping[str, float] | None = None,
    bands: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """One line for each name.

    x       (n,), for all lines
    lines   {name: (n,)}
    log     the axes with a logarithmic scale: "x", "y", "xy" or none
    levels  {name: value}, drawn as dotted horizontal lines
    bands   {name: (from, to)} of x, drawn as grey bands
    """
    figure, axis = plt.subplots(figsize=(4.8, 3.1))
    colours = [BLUE, ORANGE, CHANNELS["green"], "#7b4fa3", GREY]
    for (name, y), colour, style in zip(lines.items(), colours, ("-", "--", "-.", ":", "-"), strict=False):
        axis.plot(x, y, style, color=colour, label=name, linewidth=1.8, marker="o" if points else None, markersize=4)
    for name, value in (levels or {}).items():
        axis.axhline(value, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label=name)
    for name, ends in (bands or {}).items():
        axis.axvspan(*ends, color=GREY, alpha=0.18, linewidth=0, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    for scale in log:
        axis.set(**{f"{scale}scale": "log"})
    if "x" in log and len(x) <= 10:
        axis.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        axis.minorticks_off()
    if np.issubdtype(np.asarray(x).dtype, np.integer) and "x" not in log:
        axis.locator_params(axis="x", integer=True)
    named = len(axis.get_legend_handles_labels()[1])
    if named > 3:  # above, where it hides nothing
        axis.legend(fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    elif named > 1:
        axis.legend(fontsize=9)
    figure.tight_layout()
    return figure


@figure_in_style
def distributions(panels: Mapping[str, np.ndarray], xlabel: str, *, bins: int = 60) -> Figure:
    """How values are distributed, a panel for each title and in it a line for each row.

    panels  {title: (rows, n)}
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(4.6, 1.7 * len(panels) + 0.3), sharex=True, squeeze=False)
    least, most = min(np.min(v) for v in panels.values()), max(np.max(v) for v in panels.values())
    edges = np.linspace(least, most, bins + 1)
    for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        for row, colour in zip(rows, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(rows))), strict=True):
            axis.stairs(np.histogram(row, edges)[0] / np.size(row) * 100, edges, color=colour, linewidth=1.2)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylabel("% of values")
    axes[-1, 0].set(xlabel=xlabel, xlim=(least, most))
    figure.tight_layout()
    return figure


@figure_in_style
def class_bars(panels: Mapping[str, Numbers], classes: Sequence[str]) -> Figure:
    """A number for each class, as bars, in panels side by side.

    panels   {title: (C,)}
    classes  the names of the C classes
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.0 + 1.05 * len(panels), 0.27 * len(classes) + 0.6), sharey=True
    )
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        axis.barh(classes, values, color=[BLUE if value >= 0 else ORANGE for value in values], height=0.7)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.1)
        axis.locator_params(axis="x", nbins=2)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    axes[0].tick_params(axis="y", length=0)
    figure.tight_layout(w_pad=1.0)
    return figure


@figure_in_style
def class_sizes(sizes: Mapping[str, int] | pd.Series) -> Figure:
    """How many pictures each class has, the largest first, with the mean and the median.

    sizes  {class: pictures}, as a dictionary or a pandas series
    """
    names, pictures = zip(*sorted(dict(sizes).items(), key=lambda item: -item[1]), strict=True)
    n = np.array(pictures)
    figure, axis = plt.subplots(figsize=(5.0, 3.2))
    axis.bar(np.arange(len(n)), n, width=1.0, color=BLUE, linewidth=0)
    for name, value, style in (("mean", n.mean(), "-"), ("median", np.median(n), "--")):
        axis.axhline(value, color=ORANGE, linewidth=1.5, linestyle=style, label=f"{name} {value:.0f}")
    for k, side, x in ((0, "left", 3), (len(n) - 1, "right", len(n) - 1)):
        text = f"{names[k].replace('_', ' ')}, {n[k]}"
        place = (x, n[k]) if side == "left" else (x, n.max() * 0.33)
        arrow = None if side == "left" else {"arrowstyle": "-", "color": GREY}
        axis.annotate(text, (k, n[k]), place, ha=side, va="center", fontsize=9, arrowprops=arrow)
    axis.set(xlabel="class, the largest first", ylabel="pictures", xlim=(-0.5, len(n) - 0.5))
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=9, loc="upper right")
    figure.tight_layout()
    return figure


@figure_in_style
def picture_sizes(widths: Numbers, heights: Numbers, pictures: Numbers) -> Figure:
    """Width against height of many pictures, in hexagons coloured by how many there are, on a logarithmic scale.

    widths, heights  (n,) pixels
    pictures         (n,) how many there are of each size
    """
    figure, axis = plt.subplots(figsize=(5.0, 3.5))
    hexagons = axis.hexbin(
        widths, heights, C=pictures, reduce_C_function=np.sum, gridsize=45, bins="log", cmap="viridis_r", linewidths=0.2
    )
    most_wide, most_high = max(widths) * 1.15, max(heights) * 1.1
    for ratio, name in ((1, "1 : 1"), (1.5, "3 : 2"), (2 / 3, "2 : 3")):
        end = min(most_wide, most_high * ratio)
        axis.plot([0, end], [0, end / ratio], color=GREY, linewidth=1, linestyle="--", zorder=0)
        side, lift = ("right", 4) if end < most_high * ratio else ("center", 2)  # ends at the right, or at the top
        axis.annotate(name, (end, end / ratio), (0, lift), textcoords="offset points", ha=side, va="bottom", fontsize=9)
    axis.set(xlabel="width (pixels)", ylabel="height (pixels)", xlim=(0, most_wide), ylim=(0, most_high))
    axis.set_aspect("equal")
    bar = figure.colorbar(hexagons, ax=axis, label="pictures", shrink=0.75)
    bar.outline.set_visible(False)
    figure.tight_layout()
    return figure


@figure_in_style
def value_histograms(panels: Mapping[str, np.ndarray]) -> Figure:
    """The distribution of the values of one picture in each channel, a panel for each way of preparing it.

    panels  {title: (H, W, 3)}, red first
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(4.8, 1.5 * len(panels) + 0.3))
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        for c, (name, colour) in enumerate(CHANNELS.items()):
            # Four steps of a byte to a bin, wherever they lie: other widths would hold now more steps, now fewer.
            steps = np.unique(values[..., c])
            width = 4 * np.diff(steps).min()
            edges = np.arange(steps[0] - width / 8, steps[-1] + width, width)
            share = np.histogram(values[..., c], edges)[0] / values[..., c].size * 100
            axis.stairs(share, edges, color=colour, linewidth=1.5, label=name)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylabel("% of pixels")
    axes[0].legend(fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    figure.tight_layout()
    return figure


@figure_in_style
def intervals(rows: Mapping[str, Interval], xlabel: str) -> Figure:
    """A point with its interval for each row.

    rows    {name: (value, lower end, upper end)}, all in [0, 1], shown in %
    """
    figure, axis = plt.subplots(figsize=(5.0, 0.42 * len(rows) + 0.8))
    for y, (value, low, high) in enumerate(rows.values()):
        axis.plot([100 * low, 100 * high], [y, y], color=BLUE, linewidth=2.5, alpha=0.5, solid_capstyle="butt")
        axis.plot(100 * value, y, "o", color=BLUE, markersize=7)
        axis.annotate(f"{value:.1%}", (100 * value, y), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axis.set(xlabel=xlabel, xlim=(0, 100), ylim=(len(rows) - 0.5, -0.7))
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    figure.tight_layout()
    return figure


@figure_in_style
def share_histogram(edges: Numbers, pictures: Numbers, xlabel: str) -> Figure:
    """How many pictures have which share, on a logarithmic scale, with the number above each bar.

    edges     (n + 1,) of the bins, in [0, 1]
    pictures  (n,) in each
    """
    figure, axis = plt.subplots(figsize=(5.0, 2.9))
    edges, pictures = np.asarray(edges) * 100, np.asarray(pictures)
    axis.bar(edges[:-1], pictures, width=np.diff(edges) * 0.9, align="edge", color=BLUE, linewidth=0)
    for x, width, n in zip(edges, np.diff(edges), pictures, strict=False):
        if n:
            axis.annotate(f"{n}", (x + width * 0.45, n), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axis.set(xlabel=xlabel, ylabel="pictures", yscale="log", xlim=(0, 100), ylim=(0.8, pictures.max() * 3))
    axis.grid(axis="x", visible=False)
    figure.tight_layout()
    return figure


@figure_in_style
def layer_costs(table: pd.DataFrame) -> Figure:
    """Parameters, multiply-adds and activation memory of each layer with weights, with what follows up to the next.

    table  that of `summarise`
    """
    layer = table["kind"].isin(["Conv2d", "Linear"])
    costs = table.groupby(layer.cumsum())[["parameters", "multiply_adds", "activation_bytes"]].sum()
    names = [
        f"{kind[:4].lower().replace('line', 'dense')} {shape[0]}"
        for kind, shape in table[layer][["kind", "output"]].values
    ]
    figure, axes = plt.subplots(1, 3, figsize=(4.2, 0.2 * len(names) + 0.75), sharey=True)
    columns = zip(
        axes, ("parameters\n(millions)", "multiply-adds\n(billions)", "activations\n(MB)"), (1e6, 1e9, 1e6), strict=True
    )
    for (axis, title, unit), column in zip(columns, costs, strict=True):
        colours = [CHANNELS["green"] if name.startswith("dense") else BLUE for name in names]
        axis.barh(range(len(names)), costs[column] / unit, color=colours, height=0.75)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.tight_layout(pad=0.4, w_pad=1.2)
    return figure


@figure_in_style
def network_sizes(table: pd.DataFrame) -> Figure:
    """Networks by parameters and multiply-adds, both on logarithmic axes; a name goes below where there is one above.

    table  a row a network, named by its index: parameters, multiply_adds
    """
    figure, axis = plt.subplots(figsize=(4.4, 3.6))
    axis.scatter(table["parameters"] / 1e6, table["multiply_adds"] / 1e9, color=BLUE, s=30)
    for name, row in table.iterrows():
        place = (row["parameters"] / 1e6, row["multiply_adds"] / 1e9)
        near = table[(table["parameters"] / row["parameters"]).between(0.4, 2.5)]
        crowded = (near["multiply_adds"] / row["multiply_adds"]).between(1, 2, inclusive="neither").any()
        axis.annotate(
            str(name), place, xytext=(-6, -10 if crowded else 4), textcoords="offset points", ha="right", fontsize=9
        )
    axis.set(xscale="log", yscale="log", xlabel="parameters (millions)", ylabel="multiply-adds (billions)")
    axis.set_xlim(table["parameters"].min() / 1e7, None)  # room for the leftmost name
    figure.tight_layout()
    return figure


@figure_in_style
def gradient_norms(
    norms: Mapping[tuple[bool, bool], np.ndarray], titles: Sequence[str] = ("without batch norm", "with batch norm")
) -> Figure:
    """The norm of the gradient at each block of deep networks, plain and residual: mean over seeds, on a log axis.

    norms  {(batch norm, skip): (seeds, blocks)}
    """
    figure, axes = plt.subplots(2, 1, figsize=(4.4, 5.2), sharex=True)
    for (norm, skip), values in norms.items():
        logs = np.log10(values)
        blocks = np.arange(1, values.shape[1] + 1)
        colour, name = (BLUE, "with skip connections") if skip else (ORANGE, "without")
        axis = axes[int(norm)]
        axis.fill_between(blocks, 10 ** logs.min(0), 10 ** logs.max(0), color=colour, alpha=0.2, linewidth=0)
        axis.plot(blocks, 10 ** logs.mean(0), color=colour, linewidth=1.8, label=name)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("norm of the gradient")
    axes[0].legend(fontsize=9, loc="center right")
    axes[1].set_xlabel("block, counted from the picture")
    figure.tight_layout()
    return figure


@figure_in_style
def curve_panels(x: Numbers, panels: Mapping[str, Mapping[str, Numbers]], xlabel: str) -> Figure:
    """Panels above each other over one x axis, and in each a line for each name, of the same colour in all of them.

    x       (n,), for all lines
    panels  {ylabel: {name: (n,)}}
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(4.6, 1.9 * len(panels) + 0.4), sharex=True)
    looks = list(zip([BLUE, ORANGE, CHANNELS["green"], "#7b4fa3"], ("-", "--", "-.", ":"), strict=True))
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axis, (ylabel, lines) in zip(axes, panels.items(), strict=True):
        for name, y in lines.items():
            colour, style = looks[names.index(name)]
            axis.plot(x, y, style, color=colour, label=name, linewidth=1.8)
        axis.set_ylabel(ylabel)
    columns = len(names) if len("".join(names)) < 40 else 2
    axes[0].legend(fontsize=9, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes[-1].set_xlabel(xlabel)
    figure.align_ylabels(axes)
    figure.tight_layout()
    return figure


@figure_in_style
def descent_paths(curvatures: tuple[float, float], paths: Mapping[str, np.ndarray]) -> Figure:
    """The paths of optimisers through a valley L(w) = (a w1² + b w2²) / 2, a panel for each.

    curvatures  (a, b)
    paths       {title: (steps + 1, 2)}, from the start on, where w1 is negative
    """
    every = np.concatenate(list(paths.values()))
    (left, low), (right, high) = every.min(0), every.max(0)
    margin = 0.08 * (right - left), 0.08 * (high - low)
    w1, w2 = np.meshgrid(np.linspace(left, -left, 200), np.linspace(-2 * high, 2 * high, 200))
    loss = (curvatures[0] * w1**2 + curvatures[1] * w2**2) / 2
    levels = curvatures[0] * np.linspace(0, left, 7)[1:] ** 2 / 2  # ellipses at equal distances along the floor
    figure, axes = plt.subplots(len(paths), 1, figsize=(4.6, 1.45 * len(paths) + 0.5), sharex=True, squeeze=False)
    for axis, (title, path) in zip(axes[:, 0], paths.items(), strict=True):
        axis.contour(w1, w2, loss, levels=levels, colors=GREY, linewidths=0.7)
        axis.plot(*np.transpose(path), "o-", color=BLUE, linewidth=1.3, markersize=3)
        axis.plot(0, 0, "+", color=ORANGE, markersize=11, markeredgewidth=2)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set(
            ylabel="$w_2$", xlim=(left - margin[0], right + 2 * margin[0]), ylim=(low - margin[1], high + margin[1])
        )
        axis.grid(visible=False)
    axes[-1, 0].set_xlabel("$w_1$")
    figure.tight_layout()
    return figure


@figure_in_style
def recorded_accuracies(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy by epoch on training and, where it was measured, validation pictures, a panel for each run.

    histories  {name: table with columns epoch, train_accuracy and perhaps validation_accuracy, in [0, 1]}
    """
    rows = -(-len(histories) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(5.0, 1.9 * rows + 0.5), sharey=True, squeeze=False)
    for axis in axes.flat[len(histories) :]:
        axis.axis("off")
    for axis, (name, table) in zip(axes.flat, histories.items(), strict=False):
        for part, colour in (("train", BLUE), ("validation", ORANGE)):
            if f"{part}_accuracy" in table:
                axis.plot(table["epoch"], 100 * table[f"{part}_accuracy"], color=colour, linewidth=1.8)
        axis.set_title(name, fontsize=10)
        axis.set(xlabel="epoch", ylim=(0, 100))
        axis.locator_params(axis="x", integer=True, nbins=5)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    looks = [Line2D([], [], color=colour, linewidth=1.8) for colour in (BLUE, ORANGE)]
    figure.legend(looks, ["training, running", "validation"], loc="upper center", ncols=2, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / (1.9 * rows + 0.5)))
    return figure


@figure_in_style
def dot_rows(rows: Mapping[str, Mapping[str, Numbers]], xlabel: str, *, numbers: bool = False) -> Figure:
    """Repeated measurements: a faint dot for each, a bar at their mean; one alone is a full dot. A colour a series.

    rows     {name: {series: (n,)}}, all in [0, 1], shown in %
    numbers  write each mean at its bar, for one series
    """
    figure, axis = plt.subplots(figsize=(4.6, 0.36 * len(rows) + 0.9))
    series = list(dict.fromkeys(one for row in rows.values() for one in row))
    for one, colour, lift in zip(
        series, (BLUE, ORANGE, GREY), np.arange(3) * 0.24 - 0.12 * (len(series) - 1), strict=False
    ):
        for y, row in enumerate(rows.values()):
            if one in row:
                values = 100 * np.asarray(row[one], dtype=float)
                if len(values) == 1:
                    axis.plot(values, y + lift, "o", color=colour, markersize=7, mew=0)
                else:
                    axis.plot(values, np.full(len(values), y + lift), "o", color=colour, alpha=0.45, ms=5, mew=0)
                    axis.plot(values.mean(), y + lift, "|", color=colour, markersize=13, mew=2.5)
                if numbers:
                    place = (values.max(), y)
                    axis.annotate(
                        f"{values.mean():.1f}", place, (8, 0), textcoords="offset points", va="center", fontsize=9
                    )
        axis.plot([], [], "o", color=colour, label=one)
    axis.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.6))
    axis.margins(x=0.12 if numbers else 0.05)
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    if len(series) > 1:
        figure.legend(*axis.get_legend_handles_labels(), fontsize=9, loc="upper center", ncols=len(series))
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / figure.get_figheight() if len(series) > 1 else 1))
    return figure


@figure_in_style
def interval_panels(panels: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """A point with its interval for each row, in panels above each other, each with an axis of its own.

    panels  {xlabel: {name: (value, lower end, upper end)}}, as they are shown
    """
    rows = max(len(panel) for panel in panels.values())
    figure, axes = plt.subplots(len(panels), 1, figsize=(4.8, (0.27 * rows + 0.62) * len(panels)), squeeze=False)
    for axis, (xlabel, panel) in zip(axes[:, 0], panels.items(), strict=True):
        for y, (value, low, high) in enumerate(panel.values()):
            axis.plot([low, high], [y, y], color=BLUE, linewidth=2.5, alpha=0.5, solid_capstyle="butt")
            axis.plot(value, y, "o", color=BLUE, markersize=5, mew=0)
        axis.set(xlabel=xlabel, ylim=(len(panel) - 0.4, -0.6))
        axis.xaxis.labelpad = 1
        axis.margins(x=0.06)
        axis.set_yticks(range(len(panel)), panel)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    figure.tight_layout(h_pad=0.6)
    return figure


@figure_in_style
def confusion(rates: npt.ArrayLike, classes: Sequence[str]) -> Figure:
    """What each class is taken for, in % of its pictures. Shades are for errors alone; the diagonal is left grey.

    rates    (C, C) in [0, 1], true classes in rows, for some ten classes
    classes  their names, in the order of the rows
    """
    rates, C = 100 * np.asarray(rates), len(classes)
    wrong = np.ma.masked_where(np.eye(C, dtype=bool), rates)
    figure, axis = plt.subplots(figsize=(0.37 * C + 1.25, 0.37 * C + 1.15))
    cmap = plt.get_cmap("rocket_r").copy()
    cmap.set_bad("#e4e7ec")
    shown = axis.imshow(wrong, cmap=cmap, vmin=0, vmax=max(wrong.max(), 1) * 1.15)
    shades = np.asarray(shown.norm(rates))
    for i, j in np.ndindex(C, C):
        if i == j or rates[i, j] > 0.5:  # no cell says 0
            colour = "white" if i != j and shades[i, j] > 0.5 else "black"
            axis.text(j, i, f"{rates[i, j]:.0f}", ha="center", va="center", fontsize=9, color=colour)
    axis.set_xticks(range(C), classes, rotation=50, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(C), classes)
    axis.set(xlabel="predicted, in % of the true class", ylabel="true")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    figure.tight_layout(pad=0.4)
    return figure


@figure_in_style
def confusion_map(rates: npt.ArrayLike, classes: Sequence[str], pairs: Iterable[tuple[str, str]]) -> Figure:
    """What each of many classes is taken for: the errors as dots, shaded by their rate, and the worst pairs by name.

    rates    (C, C) in [0, 1], true classes in rows
    classes  their names, in the order of the rows
    pairs    (first, second) names of the pairs of classes that are named beside the row of the first to come
    """
    rates, C = np.asarray(rates), len(classes)
    i, j = np.nonzero(np.where(np.eye(C, dtype=bool), 0, rates))
    order = np.argsort(rates[i, j])  # the worst on top
    i, j = i[order], j[order]
    figure = plt.figure(figsize=(5.2, 3.5))
    axis = figure.add_axes((0.05, 0.08, 0.6, 0.6 * 5.2 / 3.5))
    axis.plot([-0.5, C - 0.5], [-0.5, C - 0.5], color="#e4e7ec", linewidth=3, zorder=0, solid_capstyle="butt")
    dots = axis.scatter(
        j, i, c=100 * rates[i, j], s=11, marker="s", linewidth=0, cmap="viridis_r", norm="log", vmin=2, vmax=100
    )
    place = {name: k for k, name in enumerate(classes)}
    ends = sorted((min(place[a], place[b]), max(place[a], place[b])) for a, b in pairs)
    # Texts at even heights where they would meet: each at least a line below the one before it, none below the end.
    line = C / 16
    heights: list[float] = []
    for row, _ in ends:
        heights.append(max(row, heights[-1] + line) if heights else row)
    for k in range(len(heights) - 1, -1, -1):
        below = C - 1 if k == len(heights) - 1 else heights[k + 1] - line
        heights[k] = min(heights[k], below)
    for (row, column), height in zip(ends, heights, strict=True):
        text = " / ".join(classes[k].replace("_", " ") for k in (row, column))
        axis.annotate(
            text, (column, row), (C + 3, height), va="center", fontsize=8, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.7, "shrinkB": 3, "shrinkA": 0},
        )  # fmt: skip
    axis.set(xlim=(-1, C), ylim=(C, -1), xlabel=f"predicted class, {C} of them", ylabel="true class, in the same order")
    axis.set(xticks=(), yticks=(), aspect="equal")
    axis.grid(visible=False)
    inset = axis.inset_axes((0.03, 0.12, 0.34, 0.03))
    bar = figure.colorbar(dots, cax=inset, orientation="horizontal", ticks=[2, 10, 50])
    bar.ax.set_xticklabels(["2", "10", "50"], fontsize=8)
    bar.ax.minorticks_off()
    bar.set_label("% of the true class", fontsize=8)
    bar.outline.set_visible(False)
    return figure


@figure_in_style
def reliability_diagrams(panels: Mapping[str, pd.DataFrame], *, least: int = 10) -> Figure:
    """The accuracy in each bin of confidence as a bar, and how far it is from the mean confidence; two panels a row.

    panels  {title: table of `evaluation.reliability`}
    least   pictures in a bin that is drawn
    """
    rows, pale = -(-len(panels) // 2), "#9dbbe0"
    figure, axes = plt.subplots(rows, 2, figsize=(5.0, 2.35 * rows + 0.8), sharex=True, sharey=True, squeeze=False)
    for axis, (title, table) in zip(axes.flat, panels.items(), strict=True):
        full = table[table["images"] >= least]
        middle, width = (full["low"] + full["high"]) / 2, (full["high"] - full["low"]) * 0.88
        both = np.minimum(full["accuracy"], full["confidence"])
        axis.bar(middle, both, width, color=BLUE, linewidth=0)
        axis.bar(middle, full["accuracy"] - both, width, both, color=pale, linewidth=0)
        axis.bar(middle, full["confidence"] - both, width, both, color=ORANGE, linewidth=0)
        axis.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
        axis.set_title(title, fontsize=10)
        axis.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
    for axis in axes[-1]:
        axis.set_xlabel("confidence")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    looks = [Rectangle((0, 0), 1, 1, color=colour) for colour in (BLUE, ORANGE, pale)]
    names = ["accuracy", "confidence above accuracy", "accuracy above confidence"]
    figure.legend(looks, names, loc="upper center", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.65 / figure.get_figheight()))
    return figure


@figure_in_style
def confidence_histograms(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], *, bins: int = 20) -> Figure:
    """How many pictures have which confidence, right and wrong ones apart, on a logarithmic scale.

    panels  {title: ((N,) confidence in [0, 1], (N,) bool, whether it is right)}
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(4.6, 1.55 * len(panels) + 0.6), sharex=True, sharey=True)
    edges = np.linspace(0, 1, bins + 1)
    for axis, (title, (confidence, right)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for part, colour, name in ((right, BLUE, "right"), (~right, ORANGE, "wrong")):
            counts = np.histogram(confidence[part], edges)[0]
            axis.stairs(np.maximum(counts, 0.5), edges, color=colour, linewidth=1.8, label=name)
            axis.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, color=colour, alpha=0.15)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set(yscale="log", ylim=(0.5, None), xlim=(0, 1), ylabel="pictures")
    looks = [Line2D([], [], color=colour, linewidth=1.8) for colour in (BLUE, ORANGE)]
    figure.legend(looks, ["right", "wrong"], loc="upper right", ncols=2, fontsize=9)
    axis.set_xlabel("confidence")
    figure.tight_layout()
    return figure


@figure_in_style
def size_scatter(panels: Mapping[str, tuple[Numbers, Numbers]], ylabel: str) -> Figure:
    """The accuracy of each class against its size, a panel for each title, with the mean in each fifth of the classes.

    panels  {title: ((C,) pictures, (C,) accuracy in [0, 1])}
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(4.6, 1.9 * len(panels) + 0.4), sharex=True, squeeze=False)
    for axis, (title, (sizes, accuracy)) in zip(axes[:, 0], panels.items(), strict=True):
        sizes, accuracy = np.asarray(sizes, dtype=float), 100 * np.asarray(accuracy, dtype=float)
        axis.plot(sizes, accuracy, "o", color=BLUE, alpha=0.4, markersize=4.5, mew=0)
        fifths = np.array_split(np.argsort(sizes, kind="stable"), 5)
        means = [(np.exp(np.log(sizes[part]).mean()), accuracy[part].mean()) for part in fifths]
        axis.plot(*np.transpose(means), "o-", color=ORANGE, linewidth=1.8, markersize=5)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set(xscale="log", ylim=(-5, 105), ylabel=ylabel)
        ticks = [t for t in (5, 10, 20, 50, 100, 200, 500) if sizes.min() * 0.9 <= t <= sizes.max()]
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
    axes[-1, 0].set_xlabel("pictures of the class in the data set")
    figure.tight_layout()
    return figure
