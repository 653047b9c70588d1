"""Does a map change when the network does, and stay when nothing changes that matters?

Here a method is any function of (model, images, targets) that gives maps (N, h, w): one of the CAM family, made by
`explainer`, or any other. What randomises or trains networks changes copies; the caller's is left as it was.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from scipy.stats import rankdata
from torch import nn
from torch.nn.functional import conv2d, pad

from .cam import divided_by_largest, explain
from .faithfulness import correlation, enlarged
from .methods import Method

__all__ = [
    "Explainer",
    "agreement",
    "cascade",
    "explainer",
    "max_sensitivity",
    "randomisation",
    "rank_correlation",
    "ssim",
    "views",
]

Explainer = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def explainer(method: str | Method = "grad-cam", **options: Any) -> Explainer:
    """A method of the CAM family as a function of (model, images, targets); `options` go to `explain`."""

    def maps(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return explain(model, images, targets=targets, method=method, **options).maps

    return maps


# --- how alike two maps are ---


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Spearman's rank correlation of each map with its counterpart: (N,) float64 in [-1, 1].

    a, b  (N, h, w) float; the smaller of the two is enlarged

    Pixels of equal value share the mean of their ranks. A map that is the same everywhere has 0 with any other.
    """
    a, b = _of_one_size(a, b)
    return correlation(*(torch.from_numpy(rankdata(M.flatten(1).cpu().numpy(), axis=1)) for M in (a, b)))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each map with its counterpart: (N,) float in [-1, 1] (Wang et al. 2004).

    a, b  (N, h, w) float, each first divided by its largest magnitude; the smaller of the two is enlarged

    Windows are Gaussian, 1.5 pixels wide, cut off at 5 pixels, or smaller where the map is; the range of values is 1.
    """
    a, b = _of_one_size(a, b)
    radius = min(5, (min(a.shape[1:]) - 1) // 2)
    w = torch.exp(-(torch.arange(-radius, radius + 1, dtype=a.dtype, device=a.device) ** 2) / (2 * 1.5**2))
    w = w / w.sum()

    x, y = divided_by_largest(a), divided_by_largest(b)
    pictures = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]
    means = conv2d(conv2d(pictures, w.view(1, 1, -1, 1)), w.view(1, 1, 1, -1))  # in each window
    mx, my, xx, yy, xy = means.unflatten(0, (5, -1))
    vx, vy, vxy = xx - mx**2, yy - my**2, xy - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean((1, 2, 3))


def agreement(maps: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    """How alike methods are: the mean rank correlation of each with each other, over the same images.

    maps     of each method, (N, h, w) float
    returns  a square table of float, 1 on its diagonal
    """
    table = pd.DataFrame(1.0, index=list(maps), columns=list(maps))
    for one, other in combinations(maps, 2):
        table.loc[one, other] = table.loc[other, one] = rank_correlation(maps[one], maps[other]).mean().item()
    return table


# --- the network changes ---


def cascade(model: nn.Module, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """A copy of the network whose layers lose what they have learnt, one after the other, from the last to the first.

    yields the name of the layer that was drawn anew, and the copy, the same one each time (Adebayo et al. 2018, sec. 3:
    cascading randomisation). Layers are drawn as they are when a network is built; parameters that belong to no such
    layer, as a class token, are shuffled.
    """
    model = copy.deepcopy(model)
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "reset_parameters") or any(True for _ in module.parameters(recurse=False))
    ]
    generator = torch.Generator().manual_seed(seed)
    for name, module in reversed(layers):
        with torch.random.fork_rng([p.device for p in module.parameters() if p.is_cuda]), torch.no_grad():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            else:
                for p in module.parameters(recurse=False):
                    p.copy_(p.flatten()[torch.randperm(p.numel(), device=p.device)].view_as(p))
        yield name, model


def randomisation(
    method: Explainer, model: nn.Module, images: torch.Tensor, targets: torch.Tensor, *, seed: int = 0
) -> pd.DataFrame:
    """How like the maps stay while the network forgets, layer by layer.

    returns a row for each layer and image: layer, depth (how many layers were drawn anew), image; and of the map with
    that of the intact network rank_correlation, at the maps' resolution, and ssim, at the image's. Near 1 means that
    the map does not depend on what was learnt.
    """
    before, rows = method(model, images, targets), []
    for depth, (name, changed) in enumerate(cascade(model, seed), 1):
        after = method(changed, images, targets)
        large = [enlarged(M, images.shape[2:]) for M in (before, after)]
        alike = zip(rank_correlation(before, after).tolist(), ssim(*large).tolist(), strict=True)
        rows += [(name, depth, n, *both) for n, both in enumerate(alike)]
    return pd.DataFrame(rows, columns=["layer", "depth", "image", "rank_correlation", "ssim"])


# --- the image changes a little ---


def max_sensitivity(
    method: Explainer,
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
) -> torch.Tensor:
    """The largest change of a map under small noise, as a share of its length: (N,) float (Yeh et al. 2019).

    radius   the noise is uniform in [-radius, radius], in units of the images as the network gets them
    samples  how many noisy copies of each image

    Lower is better, but a map that never changes has 0: read it beside `randomisation`.
    """
    generator = torch.Generator().manual_seed(seed)
    before = method(model, images, targets).flatten(1)
    length = before.norm(dim=1)
    length = length.where(length > 0, torch.ones_like(length))
    largest = torch.zeros_like(length)
    for _ in range(samples):
        noise = radius * (2 * torch.rand(images.shape, generator=generator) - 1).to(images)
        after = method(model, images + noise, targets).flatten(1)
        largest = torch.maximum(largest, (after - before).norm(dim=1) / length)
    return largest


def views(
    method: Explainer, model: nn.Module, images: torch.Tensor, targets: torch.Tensor, *, shift: int = 2
) -> torch.Tensor:
    """The maps of an image and of six views of it that show the same: mirrored, noisy, and shifted in four directions.

    shift    in pixels; what comes into the picture mirrors its edge

    returns (7, N, H, W) float, each map moved back over the image; the first is that of the image itself. Their
    standard deviation over the first axis is where the map is uncertain; the rank correlation of each with the first
    says how stable it is.
    """
    size = images.shape[2:]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)

    def moved(x: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
        framed = pad(x, (shift,) * 4, mode="reflect")
        return framed[..., shift - dy : shift - dy + size[0], shift - dx : shift - dx + size[1]]

    def maps(x: torch.Tensor) -> torch.Tensor:
        return enlarged(method(model, x, targets), size)

    found = [maps(images), maps(images.flip(3)).flip(2), maps(images + 0.1 * images.std() * noise)]
    for dy, dx in ((shift, 0), (-shift, 0), (0, shift), (0, -shift)):
        found.append(moved(maps(moved(images, dy, dx))[:, None], -dy, -dx)[:, 0])
    return torch.stack(found)


def _of_one_size(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if a.ndim != 3 or b.ndim != 3 or len(a) != len(b):
        raise ValueError(f"Both must be maps (N, h, w) of as many images, not {tuple(a.shape)} and {tuple(b.shape)}.")
    size = max(a.shape[1:], b.shape[1:])
    return enlarged(a, size), enlarged(b, size)
