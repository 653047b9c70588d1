"""Figures that a reader can change: a still picture and the numbers from which a page's script draws the rest.

A notebook, a printed page and a reader without scripts see the still. On the site `_assets/live.js` finds the numbers
and computes what the chapter computed, for every setting that the reader chooses.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from . import maths, plots
from .images import Array, to_uint8
from .optimizers import SCHEDULES
from .plots import BLUE, GREY, ORANGE, figure_in_style

__all__ = ["LiveFigure", "convolution", "schedule", "softmax", "threshold"]

SHARP = 2  # pixels of the still for each pixel on the page
THRESHOLDS = np.arange(101) / 100


class LiveFigure:
    """What a cell returns: a notebook shows its still, and the site's script the controls in place of that.

    name     which of the script's figures it is
    numbers  what the script starts from, as `json.dumps` takes it
    """

    def __init__(self, name: str, still: Figure, alt: str, numbers: dict[str, Any]):
        self.name, self.still, self.alt, self.numbers = name, still, alt, numbers

    def __repr__(self) -> str:
        return f"<Live figure: {self.name}>"

    def _repr_html_(self) -> str:
        picture = io.BytesIO()
        self.still.savefig(picture, format="png", dpi=SHARP * self.still.dpi)
        width = round(self.still.get_figwidth() * self.still.dpi)
        # Inside a script, "<" could end it; in JSON it can also be written as a number.
        numbers = json.dumps(self.numbers, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        return (
            f'<div class="live" data-live="{self.name}">'
            f'<img alt="{escape(self.alt)}" width="{width}" style="max-width: 100%" src="{_png(picture)}">'
            f'<script type="application/json">{numbers}</script></div>'
        )


def convolution(x: npt.ArrayLike, kernels: Mapping[str, np.ndarray]) -> LiveFigure:
    """A convolution whose kernel, stride and padding the reader chooses.

    x        (n, n) grey picture; rounded to three decimals
    kernels  {name: (3, 3)} to choose from; the last one to begin with
    """
    x = np.asarray(x, float).round(3)
    kernels = {name: np.asarray(kernel, float) for name, kernel in kernels.items()}
    if x.ndim != 2 or x.shape[0] != x.shape[1] or len(x) < 3:
        raise ValueError(f"The picture must be square, (n, n) with n of at least 3, and this one is {x.shape}.")
    for name, kernel in kernels.items():
        if kernel.shape != (3, 3):
            raise ValueError(f"The kernels must be (3, 3), and {name!r} is {kernel.shape}.")
    name, w = list(kernels.items())[-1]
    alt = (
        f"A grey picture of {len(x)} by {len(x)} pixels, the kernel {name!r} of three by three numbers, and the map of "
        f"{len(x) - 2} by {len(x) - 2} values that they make. A window of the picture and its value in the map are "
        "outlined."
    )
    numbers = {"x": x.tolist(), "kernels": {name: kernel.tolist() for name, kernel in kernels.items()}}
    return LiveFigure("convolution", _draw_convolution(x, name, w), alt, numbers)


@figure_in_style
def _draw_convolution(x: np.ndarray, name: str, w: np.ndarray) -> Figure:
    y = maths.conv2d(x[None, None], w[None, None])[0, 0]
    place = np.unravel_index(np.abs(y).argmax(), y.shape)
    figure, axes = plt.subplots(1, 3, figsize=(5.0, 2.0), width_ratios=(2, 1, 2), layout="constrained")
    axes[0].imshow(x, cmap="gray", vmin=min(0, x.min()), interpolation="nearest")
    axes[0].set_title(f"picture, {len(x)} × {len(x)}", fontsize=10)
    axes[1].imshow(w, cmap="vlag", vmin=-2 * np.abs(w).max(), vmax=2 * np.abs(w).max())
    axes[1].set_title(name, fontsize=10)
    for (u, v), value in np.ndenumerate(w):
        axes[1].text(v, u, f"{value:.3g}".replace("-", "−"), ha="center", va="center", fontsize=8)
    if abs(w.sum()) < 1e-9:
        axes[2].imshow(y, cmap="vlag", vmin=-np.abs(y).max(), vmax=np.abs(y).max(), interpolation="nearest")
    else:
        axes[2].imshow(y, cmap="gray", vmin=min(0, y.min()), interpolation="nearest")
    axes[2].set_title(f"map, {len(y)} × {len(y)}", fontsize=10)
    for axis, size in ((axes[0], 3), (axes[2], 1)):
        corner = place[1] - 0.5, place[0] - 0.5
        axis.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=ORANGE, linewidth=2, clip_on=False))
    for axis in axes:
        axis.axis("off")
    return figure


def softmax(z: npt.ArrayLike, label: int, classes: Sequence[str]) -> LiveFigure:
    """Probabilities, loss and the gradient at the scores, for scores and a true class that the reader chooses.

    z        (C,) scores; rounded to four decimals
    label    the true class
    classes  the names of the C classes
    """
    z, label = np.asarray(z, float).round(4), int(label)
    if z.shape != (len(classes),):
        raise ValueError(f"There are {len(classes)} classes, so z must be ({len(classes)},), and it is {z.shape}.")
    p, y = maths.softmax(z), maths.one_hot([label], len(classes))[0]
    panels = {"score z": z, "probability p": p, "truth y": y, "gradient p − y": p - y}
    k = int(p.argmax())
    alt = (
        f"Four bar charts over {len(classes)} classes. Of the scores, that of {classes[k]} is the highest; its "
        f"probability is {p[k]:.2f}. The truth is 1 for {classes[label]} and 0 for the others. Probability minus truth "
        f"is {p[label] - 1:.2f} for {classes[label]} and positive for the others.".replace("-", "−")
    )
    numbers = {"z": z.tolist(), "label": label, "classes": list(classes)}
    return LiveFigure("softmax", plots.class_bars(panels, classes), alt, numbers)


def schedule(*, steps: int, peak: float) -> LiveFigure:
    """The step size over a run by each of the package's schedules, with a peak and a warm-up that the reader chooses.

    steps  of the run
    peak   the largest step size, to begin with
    """
    if steps < 2 or peak <= 0:
        raise ValueError(f"A run needs two steps or more and a positive peak, not steps={steps} and peak={peak}.")
    t = np.arange(1001) / 1000
    one_cycle = [SCHEDULES["one-cycle"](share) for share in t]
    numbers = {
        "steps": steps,
        "peak": peak,
        "schedules": list(SCHEDULES),
        "start": one_cycle[0],
        "end": one_cycle[-1],
        "warmUp": t[np.argmax(one_cycle)],
    }
    alt = (
        f"Step size over a run of {steps} steps, with a peak of {peak:g}, for four schedules. Constant stays at the "
        "peak. Linear falls from it to 0 in a straight line, cosine in a curve that begins and ends level. One-cycle "
        f"rises from {peak * one_cycle[0]:g} to the peak at step {steps * numbers['warmUp']:.0f} and falls to nearly 0."
    )
    return LiveFigure("schedule", _draw_schedule(steps, peak), alt, numbers)


@figure_in_style
def _draw_schedule(steps: int, peak: float) -> Figure:
    figure, axis = plt.subplots(figsize=(4.8, 3.0))
    looks = zip((GREY, "#7b4fa3", BLUE, ORANGE), ("-", ":", "--", "-"), strict=True)
    for (name, share), (colour, style) in zip(SCHEDULES.items(), looks, strict=True):
        sizes = [peak * share(step / steps) for step in range(steps + 1)]
        axis.plot(sizes, style, color=colour, label=name, linewidth=1.8)
    axis.set(xlabel="steps done", ylabel="step size", xlim=(0, steps), ylim=(0, 1.05 * peak))
    axis.legend(fontsize=9, ncols=4, loc="lower center", bbox_to_anchor=(0.45, 1.0), handlelength=1.6, columnspacing=1)
    figure.tight_layout()
    return figure


def threshold(images: Sequence[Array] | Array, maps: Array, masks: Array, titles: Sequence[str]) -> LiveFigure:
    """The part of a map above a threshold that the reader chooses, against the object.

    images  (N, H, W, 3) uint8, or float tensor (N, 3, H, W) in [0, 1]
    maps    (N, H, W), >= 0
    masks   (N, H, W) bool, each True somewhere
    titles  of the N pictures; the first is shown to begin with
    """
    maps, masks = torch.as_tensor(maps), torch.as_tensor(masks, dtype=torch.bool)
    if not (maps.shape == masks.shape and maps.ndim == 3 and len(images) == len(maps) == len(titles)):
        raise ValueError(
            f"There must be a map, a mask and a title for each of the {len(images)} pictures; maps are "
            f"{tuple(maps.shape)}, masks {tuple(masks.shape)}, and there are {len(titles)} titles."
        )
    if not (masks.flatten(1).any(1).all() and maps.flatten(1).any(1).all()):
        raise ValueError("Each mask must hold an object and each map a value above 0; one of them is empty.")
    shown = [to_uint8(image) for image in images]
    levels = torch.stack([_level(M) for M in maps])
    pictures = [
        {
            "title": title,
            "image": _png(image),
            "mask": "".join(str(int(inside)) for inside in mask.flatten()),
            "level": level.flatten().tolist(),
        }
        for title, image, mask, level in zip(titles, shown, masks, levels, strict=True)
    ]
    scores = _iou_by_level(levels[0], masks[0])
    best = int(scores.argmax())
    alt = (
        f"A drawn picture, {titles[0]}, with the part of its heat map above one half tinted and the object outlined. "
        f"Beside it intersection over union by threshold: {scores[50]:.2f} at one half, and at most "
        f"{scores[best]:.2f}, at {best / 100:.2f}."
    )
    numbers = {"height": maps.shape[1], "width": maps.shape[2], "pictures": pictures}
    return LiveFigure("threshold", _draw_threshold(shown[0], levels[0], masks[0], scores), alt, numbers)


def _level(M: torch.Tensor) -> torch.Tensor:
    """For each pixel the largest of 0, 1, …, 100 hundredths of the map's largest value that it still reaches.

    A comparison with each threshold, as `faithfulness.iou` makes it, so that no rounding moves a pixel across one.
    """
    return torch.stack([k / 100 * M.max() <= M for k in range(1, 101)]).sum(0).int()


def _iou_by_level(level: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    inside = [level >= k for k in range(101)]
    return np.array([float((part & mask).sum() / (part | mask).sum()) for part in inside])


@figure_in_style
def _draw_threshold(image: np.ndarray, level: torch.Tensor, mask: torch.Tensor, scores: np.ndarray) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(5.2, 2.5), layout="constrained")
    H, W = mask.shape
    left.imshow(image, interpolation="nearest", extent=(0, W, H, 0))
    above = (level >= 50).numpy()
    tint = np.zeros((H, W, 4))
    tint[above] = (*to_rgb(ORANGE), 0.45)
    left.imshow(tint, interpolation="nearest", extent=(0, W, H, 0))
    for part, colour, width in ((mask.numpy(), "black", 3.5), (mask.numpy(), "white", 1.6), (above, ORANGE, 1.6)):
        for start, end in _edges(part):
            left.plot(*zip(start, end, strict=True), color=colour, linewidth=width, solid_capstyle="projecting")
    left.axis("off")
    left.set_title("white: object, orange: M ≥ 0.5", fontsize=9)
    best = int(scores.argmax())
    right.plot(THRESHOLDS, scores, color=BLUE, linewidth=1.8)
    right.plot(best / 100, scores[best], "o", color=BLUE)
    right.annotate(
        f"best: {scores[best]:.2f}", (best / 100, scores[best]), xytext=(0, 6), textcoords="offset points",
        ha="center", fontsize=9,
    )  # fmt: skip
    right.axvline(0.5, color=ORANGE, linewidth=1.4)
    right.set(xlabel="threshold", ylabel="IoU", xlim=(0, 1), ylim=(0, 1))
    return figure


def _edges(part: np.ndarray) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The sides of pixels at which a region ends, each as two points (x, y)."""
    padded = np.pad(part, 1)
    for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        yield (x, y), (x, y + 1)
    for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        yield (x, y), (x + 1, y)


def _png(picture: np.ndarray | io.BytesIO) -> str:
    """A picture as an address that holds all of it; few colours, since it travels inside the page."""
    with Image.fromarray(picture) if isinstance(picture, np.ndarray) else Image.open(picture) as opened:
        image = opened.convert("RGB")
    if not isinstance(picture, np.ndarray):
        image = image.quantize(256)
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
