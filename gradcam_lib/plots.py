"""Every figure of the book, one function each. Each returns a matplotlib figure, which a notebook shows."""

from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import seaborn

from .images import overlay, to_uint8

__all__ = [
    "channel_histograms",
    "feature_maps",
    "heatmap_grid",
    "image_grid",
    "matrix",
    "training_curves",
]

BLUE, ORANGE, GREY = "#3266a8", "#d9772b", "#8a8f98"
CHANNELS = {"red": "#c8453c", "green": "#3f9a55", "blue": "#3266a8"}

STYLE = {
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


def figure_in_style(draw):
    """Draw in the book's style, restore the reader's, and hand the figure over to the caller alone."""

    @wraps(draw)
    def drawn(*args, **options):
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
def image_grid(images, titles=None, *, columns=10, size=1.0, row_labels=None):
    """Pictures in rows and columns.

    images      (N, H, W, 3) uint8, or a sequence of float tensors (3, H, W) in [0, 1]
    titles      one for each picture
    row_labels  one for each row, written at its left
    size        of one picture, in inches
    """
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size, rows * (size + 0.22 * bool(titles))), squeeze=False
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
def channel_histograms(images, means, stds):
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
def training_curves(histories, *, references=None, kept=None):
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
def feature_maps(maps, weights, *, columns=8):
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
def heatmap_grid(images, heatmaps, titles, *, columns=5, size=1.5):
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
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.axis("off")
    for k, (image, heat) in enumerate(zip(images, heatmaps, strict=True)):
        above, below = axes[2 * (k // columns) : 2 * (k // columns) + 2, k % columns]
        above.imshow(to_uint8(image), interpolation="nearest")
        above.set_title(titles[k], fontsize=8, pad=3)
        below.imshow(overlay(image, heat), interpolation="nearest")
    scale = plt.cm.ScalarMappable(cmap="inferno", norm=plt.Normalize(0, 1))
    bar = figure.colorbar(scale, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("share of the map's\nlargest value", fontsize=8)
    bar.outline.set_visible(False)
    return figure


@figure_in_style
def matrix(values, labels):
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
