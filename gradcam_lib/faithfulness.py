"""Scores of a map: does it point at the object, and does the network need the pixels that it points at.

Every score takes any maps, of any method, and gives one number an image. `BASELINES` are maps that know nothing of the
network: a score says something of a method by as much as it is better than theirs.

    maps     (N, h, w) float; those smaller than the images are enlarged bilinearly
    images   (N, C, H, W) float, prepared as the network expects them
    targets  (N,) int64, the class that each map explains, or one class for all
    masks    (N, H, W) bool, true where the object is

All raise ValueError for maps that hold NaN or fit the images, masks or targets in no way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn.functional import conv2d, interpolate, pad
from torchvision.transforms.v2.functional import gaussian_blur

from .batches import at_once
from .cam import divided_by_largest, left_as_it_was

__all__ = [
    "BASELINES",
    "Curve",
    "best_iou",
    "box_iou",
    "boxes",
    "deletion",
    "drop_and_increase",
    "energy_inside",
    "insertion",
    "iou",
    "pointing_game",
    "remove",
    "road",
    "search",
    "sensitivity_n",
]


Classes = torch.Tensor | Sequence[int] | int
Chosen = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of images n (B,), for their changed pictures j (B,)

NINE_TENTHS = tuple(k / 10 for k in range(1, 10))


# --- does the map point at the object? ---


def pointing_game(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 where the map is largest on the object, else 0: (N,) float, higher is better (Zhang et al. 2016).

    Where several pixels share the largest value, the share of them that lies on the object: a map that is the same
    everywhere gets what chance gives. The paper counts a near miss, within 15 pixels, as a hit; this does not.
    """
    maps, masks = _with_masks(maps, masks)
    largest = maps == maps.amax(1, keepdim=True)
    return (largest & masks).sum(1) / largest.sum(1)


def energy_inside(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of the map's sum that lies on the object: (N,) float in [0, 1], higher is better (Wang et al. 2020).

    Negative values count as zero. A map of zeros alone has the share that the object has of the picture.
    """
    maps, masks = _with_masks(maps.clamp(min=0), masks)
    maps = maps.where(maps.any(1, keepdim=True), torch.ones_like(maps))
    return (maps * masks).sum(1) / maps.sum(1)


def iou(maps: torch.Tensor, masks: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Intersection over union of the object and the map's pixels of at least `threshold` times its largest value.

    returns (N,) float in [0, 1], higher is better
    """
    maps, masks = _with_masks(maps, masks)
    inside = maps >= threshold * maps.amax(1, keepdim=True)
    return (inside & masks).sum(1) / (inside | masks).sum(1)


def best_iou(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Intersection over union at the threshold that is best for each map: (N,) float in [0, 1], higher is better.

    It needs the object to choose the threshold, so it is a bound on what any choice can give. A map that is the same
    everywhere has one threshold, and the share that the object has of the picture.
    """
    maps, masks = _with_masks(maps, masks)
    falling, order = maps.sort(1, descending=True)
    inside = masks.gather(1, order).cumsum(1)  # object pixels among the k largest, for every k
    count = torch.arange(1, maps.shape[1] + 1, device=maps.device)
    score = inside / (count + masks.sum(1, keepdim=True) - inside)
    last_of_equals = falling != torch.cat([falling[:, 1:], torch.full_like(falling[:, :1], torch.nan)], 1)
    return score.where(last_of_equals, torch.zeros_like(score)).amax(1)


def boxes(maps: torch.Tensor, threshold: float = 0.15) -> torch.Tensor:
    """The box round the largest connected part of each map above a threshold (Selvaraju et al. 2017, sec. 4.1).

    threshold  a share of the map's largest value; the paper's is 15 %
    returns    (N, 4) int64: x0, y0, x1, y1 in pixels of the map, the last two just outside
    """
    corners = []
    for M in _finite(maps).cpu().numpy():
        inside = (M >= threshold * M.max()).astype(np.uint8)
        _, _, parts, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
        x, y, w, h, _ = max(parts[1:], key=lambda part: part[cv2.CC_STAT_AREA], default=(0, 0, *M.shape[::-1], 0))
        corners.append((x, y, x + w, y + h))
    return torch.tensor(np.array(corners, np.int64))


def box_iou(boxes: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each box (N, 4) with its true one (N, 4): (N,) float in [0, 1], higher is better.

    Above 0.5, localisation is counted as right (Russakovsky et al. 2015).
    """
    if boxes.shape != truth.shape or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes and truth must both be (N, 4), not {tuple(boxes.shape)} and {tuple(truth.shape)}.")
    low, high = torch.maximum(boxes[:, :2], truth[:, :2]), torch.minimum(boxes[:, 2:], truth[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    return shared / (sum((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, truth)) - shared)


# --- does the network need the pixels that the map points at? ---


@dataclass(frozen=True)
class Curve:
    """What becomes of a class as more and more pixels are changed.

    shares         (S,) float, rising: the share of the pixels that has been changed
    probabilities  (N, S) float, of the class
    top            (N, S) bool, whether the class is still the one with the largest logit
    """

    shares: torch.Tensor
    probabilities: torch.Tensor
    top: torch.Tensor

    @property
    def area(self) -> torch.Tensor:
        """The mean probability under the curve, by the trapezoid rule: (N,) float in [0, 1]."""
        return torch.trapezoid(self.probabilities, self.shares) / (self.shares[-1] - self.shares[0])


def remove(
    images: torch.Tensor, maps: torch.Tensor, share: float, *, fill: str | torch.Tensor = "mean", seed: int = 0
) -> torch.Tensor:
    """The images without a share of their pixels, the map's largest first: what `deletion` shows to the network.

    share  in [0, 1]
    fill, seed  as for `deletion`
    """
    images, maps, _ = _with_images(images, maps, 0)
    ranks, count = _ranks(maps, seed), round(share * maps[0].numel())
    n = torch.arange(len(images), device=images.device)
    return _changed(images, lambda n, j: ranks[n] < count, fill, seed)(n, torch.zeros_like(n))


def deletion(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    targets: Classes,
    *,
    steps: int = 32,
    fill: str | torch.Tensor = "mean",
    **run: int,
) -> Curve:
    """Take pixels away, the map's largest first: the area is small where the network needed them (Petsiuk et al. 2018).

    steps  in how many equal steps all pixels go
    fill   what takes their place: "mean", the image's mean colour; "blur", the image out of focus; "noisy-linear",
           see `road`; or a tensor that broadcasts to the images. Each makes pictures that the network never met, in
           its own way: compare scores under one fill alone.
    run    batch_size=, how many changed pictures the network sees at once; seed=, of the noise and of the order among
           pixels of equal value

    The area of the returned `Curve` is the score. Lower is better.
    """
    return _curve(model, images, maps, targets, torch.linspace(0, 1, steps + 1), fill, **run)


def insertion(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    targets: Classes,
    *,
    steps: int = 32,
    fill: str | torch.Tensor = "blur",
    **run: int,
) -> Curve:
    """Begin with no pixel of the image and bring them back, the map's largest first (Petsiuk et al. 2018).

    The arguments are those of `deletion`. The area of the returned `Curve`, over the share that is back, is the score.
    Higher is better.
    """
    missing = torch.linspace(1, 0, steps + 1)  # the least important pixels go first, and come back last
    curve = _curve(model, images, -maps, targets, missing, fill, **run)
    return Curve(1 - curve.shares, curve.probabilities, curve.top)


def road(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    targets: Classes,
    *,
    shares: Sequence[float] = NINE_TENTHS,
    **run: int,
) -> tuple[torch.Tensor, Curve, Curve]:
    """Remove and debias: what the most important pixels were worth, against the least important (Rong et al. 2022).

    A pixel is removed by noisy linear imputation: it becomes the weighted mean of its eight neighbours, known or
    removed as well, and a little noise. So the shape of the hole does not tell the network what was there.

    shares  of the pixels to remove
    run     as for `deletion`

    returns (score, most, least): (N,) float in [-0.5, 0.5], half of the probability that separates removing the least
    important pixels from removing the most important, averaged over the shares; and the two curves. A map that knows
    nothing has 0; higher is better.
    """
    removed = torch.tensor(shares)
    most, least = (_curve(model, images, M, targets, removed, "noisy-linear", **run) for M in (maps, -maps))
    return (least.probabilities - most.probabilities).mean(1) / 2, most, least


def drop_and_increase(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    targets: Classes,
    *,
    batch_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the class loses when the image is seen through its map (Chattopadhay et al. 2018, sec. 4.1).

    The image, as it is given to the network, is multiplied by the map after the map is divided by its largest value.

    returns (drop, increase): (N,) float in [0, 1], the share of the probability that is lost, whose mean is the paper's
    average drop, lower is better; and (N,) bool, true where the probability grows, whose mean is the paper's increase
    in confidence, higher is better
    """
    images, maps, targets = _with_images(images, maps, targets)
    through = divided_by_largest(maps.clamp(min=0))[:, None]

    def picture(n: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return images[n] * through[n].where(j.bool().view(-1, 1, 1, 1), torch.ones_like(through[n]))

    before, after = _answers(model, picture, targets, 2, images, batch_size).probabilities.unbind(1)
    return (before - after).clamp(min=0) / before, after > before


def sensitivity_n(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    targets: Classes,
    *,
    shares: Sequence[float] = (0.05, 0.2, 0.5),
    subsets: int = 100,
    fill: str | torch.Tensor = "mean",
    batch_size: int | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Does the map's sum over a set of pixels tell what the logit loses without them? (Ancona et al. 2018)

    shares   the sizes n of the sets, as shares of all pixels
    subsets  how many random sets of each size
    fill, batch_size, seed  as for `deletion`

    returns (N, len(shares)) float in [-1, 1]: Pearson's correlation over the sets. Higher is better; a map that has
    nothing to do with the network has 0.
    """
    images, maps, targets = _with_images(images, maps, targets)
    generator = torch.Generator().manual_seed(seed)
    H, W = images.shape[2:]
    columns = []
    for share in shares:
        ranks = torch.rand(len(images), subsets, H * W, generator=generator).argsort(2)
        gone = (ranks < max(1, round(share * H * W))).unflatten(2, (H, W)).to(images.device)
        gone = torch.cat([torch.zeros_like(gone[:, :1]), gone], 1)  # the first picture keeps every pixel

        def without(n: torch.Tensor, j: torch.Tensor, gone: torch.Tensor = gone) -> torch.Tensor:
            return gone[n, j]

        picture = _changed(images, without, fill, seed)
        logits = _answers(model, picture, targets, subsets + 1, images, batch_size).logits
        sums = (gone[:, 1:] * maps[:, None]).sum((2, 3))
        columns.append(correlation(sums, logits[:, :1] - logits[:, 1:]))
    return torch.stack(columns, 1)


# --- maps to compare with ---


def random_map(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Noise, uniform in [0, 1): (N, H, W)."""
    N, _, H, W = images.shape
    return torch.rand(N, H, W, generator=torch.Generator().manual_seed(seed)).to(images)


def edge_map(images: torch.Tensor) -> torch.Tensor:
    """The length of the colour gradient, by Sobel filters: (N, H, W). Many maps look like it (Adebayo et al. 2018)."""
    x = pad(images, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    sobel = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gradient = conv2d(x, torch.stack([sobel, sobel.T])[:, None])
    return gradient.square().sum(1).unflatten(0, images.shape[:2]).sum(1).sqrt()


def centre_map(images: torch.Tensor) -> torch.Tensor:
    """A Gaussian in the middle of the picture, a quarter of the side wide: (N, H, W)."""
    N, _, H, W = images.shape
    y, x = ((torch.arange(side, device=images.device) + 0.5) / side - 0.5 for side in (H, W))
    bell = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.25**2))
    return bell.to(images.dtype).repeat(N, 1, 1)


BASELINES = {"random": random_map, "edges": edge_map, "centre": centre_map}


def search(
    model: nn.Module,
    images: torch.Tensor,
    targets: Classes,
    *,
    grid: int = 8,
    fill: str | torch.Tensor = "mean",
    insert: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """The best order of removal that a greedy search finds: what a map could score if it knew the answer.

    Of the cells that are left, the one goes next whose loss lowers the probability most. It costs grid**4 / 2 pictures
    an image, so it is for small images.

    grid    cells along a side
    insert  instead, begin with no cell and bring back the one that raises the probability most
    fill, batch_size, seed  as for `deletion`

    returns (N, grid, grid) float in (0, 1], the first cell having 1
    """
    images, _, targets = _with_images(images, centre_map(images), targets)
    N, _, H, W = images.shape
    row, column = (torch.arange(side, device=images.device) * grid // side for side in (H, W))
    cell = row[:, None] * grid + column  # (H, W), the number of each pixel's cell
    moved = torch.zeros(N, grid**2, dtype=torch.bool, device=images.device)
    order = torch.zeros(N, grid**2, device=images.device)
    for k in range(grid**2):
        left = (~moved).nonzero()[:, 1].view(N, -1)

        def gone(n: torch.Tensor, j: torch.Tensor, left: torch.Tensor = left) -> torch.Tensor:
            after = moved[n].scatter(1, left[n, j][:, None], True)[:, cell]
            return ~after if insert else after

        answers = _answers(model, _changed(images, gone, fill, seed), targets, left.shape[1], images, batch_size)
        worth = answers.log_probabilities if insert else -answers.log_probabilities
        chosen = left.gather(1, worth.argmax(1, keepdim=True).to(left.device))
        moved.scatter_(1, chosen, True)
        order.scatter_(1, chosen, 1 - k / grid**2)
    return order.view(N, grid, grid)


# --- changed pictures, and the network's answers to them ---


def _curve(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    targets: Classes,
    shares: torch.Tensor,
    fill: str | torch.Tensor,
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> Curve:
    """Remove the given shares of the pixels, the map's largest first."""
    images, maps, targets = _with_images(images, maps, targets)
    ranks = _ranks(maps, seed)
    counts = (shares * maps[0].numel()).round().to(maps.device)
    picture = _changed(images, lambda n, j: ranks[n] < counts[j].view(-1, 1, 1), fill, seed)
    answers = _answers(model, picture, targets, len(shares), images, batch_size)
    return Curve(shares, answers.probabilities, answers.top)


def _ranks(maps: torch.Tensor, seed: int) -> torch.Tensor:
    """The place of each pixel in the order of its map, (N, H, W) int64: 0 for the largest."""
    # Among pixels of equal value the order is random: by their place, the top of the picture would go first.
    shuffled = torch.randperm(maps[0].numel(), generator=torch.Generator().manual_seed(seed)).to(maps.device)
    order = shuffled[maps.flatten(1)[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(1).view(maps.shape)


@dataclass(frozen=True)
class Answers:
    """Of the network, to M changed pictures of each image: all (N, M), on the CPU."""

    logits: torch.Tensor
    log_probabilities: torch.Tensor
    top: torch.Tensor

    @property
    def probabilities(self) -> torch.Tensor:
        return self.log_probabilities.exp()


@torch.no_grad()
def _answers(
    model: nn.Module, picture: Chosen, targets: torch.Tensor, M: int, images: torch.Tensor, batch_size: int | None
) -> Answers:
    """The answers to picture(n, j), (B, C, H, W), for all numbers of images n (B,) and of their pictures j (B,)."""
    N, columns = len(images), []
    with left_as_it_was(model):
        for k in torch.arange(N * M, device=images.device).split(
            batch_size or at_once(images.shape[-1], images.device)
        ):
            n, j = k // M, k % M
            logits = model(picture(n, j).contiguous(memory_format=torch.channels_last)).float()
            of_target = logits.gather(1, targets[n, None])
            columns.append(torch.cat([of_target, of_target - logits.logsumexp(1, True), logits.amax(1, True)], 1).cpu())
    logits, log_probabilities, largest = torch.cat(columns).view(N, M, 3).unbind(2)
    return Answers(logits, log_probabilities, logits == largest)


def _changed(images: torch.Tensor, gone: Chosen, fill: str | torch.Tensor, seed: int) -> Chosen:
    """What `_answers` asks for: the images n without the pixels gone(n, j), (B, H, W) bool."""
    if isinstance(fill, torch.Tensor):
        other = fill.to(images).expand_as(images)
    elif fill in ("mean", "noisy-linear"):  # linear imputation has to begin somewhere where no pixel is left
        other = images.mean((2, 3), keepdim=True).expand_as(images)
    elif fill == "blur":
        side = images.shape[-1]
        other = gaussian_blur(images, kernel_size=[2 * (side // 4) + 1] * 2, sigma=[side / 12] * 2)
    else:
        raise ValueError(f'fill must be "mean", "blur", "noisy-linear" or a tensor, not {fill!r}.')

    def picture(n: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        away = gone(n, j)
        x = torch.where(away[:, None], other[n], images[n])
        if isinstance(fill, str) and fill == "noisy-linear":
            known, holes = x.cpu().numpy(), away.cpu().numpy()
            keys = zip(n.tolist(), j.tolist(), strict=True)  # the noise of a picture does not depend on its batch
            noise = np.stack([np.random.default_rng((seed, *key)).standard_normal(x.shape[1:]) for key in keys])
            x = torch.from_numpy(impute(known, holes) + NOISE * noise * holes[:, None]).to(images)
        return x

    return picture


NOISE = 0.01  # standard deviation, in units of the images as the network gets them; as in the authors' code
AROUND = [(dy, dx, 1 / 12 if dy and dx else 1 / 6) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
PIXELS_AT_ONCE = 50_000  # of the pictures whose equations are solved together: one of 224 x 224, 48 of 32 x 32


def impute(images: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """The linear part of noisy linear imputation (Rong et al. 2022, sec. 5.1).

    images   (B, C, H, W) float32
    holes    (B, H, W) bool, true where a pixel is to be replaced; a picture that is all hole stays as it is
    returns  (B, C, H, W) float32: in a hole each pixel is the mean of its neighbours, which may lie in the hole too,
             those beside and above with weight 1/6, those across with 1/12

    That is one linear equation a pixel, in a sparse system that is solved exactly.
    """
    B, C, H, W = images.shape
    some = max(1, PIXELS_AT_ONCE // (H * W))
    if some < B:
        parts = [slice(k, k + some) for k in range(0, B, some)]
        return np.concatenate([impute(images[part], holes[part]) for part in parts])
    pixel = np.divmod(dissection(H, W).argsort(axis=None), W)
    b, which = np.nonzero((holes & ~holes.all((1, 2), keepdims=True))[:, *pixel])
    if not len(b):
        return images
    y, x = pixel[0][which], pixel[1][which]  # the unknown pixels of each picture, in the order of their elimination
    number = np.full((B, H + 2, W + 2), -1)  # of each unknown pixel; a frame of pixels that do not exist lies around
    number[b, y + 1, x + 1] = np.arange(len(b))
    known = np.pad(~holes, ((0, 0), (1, 1), (1, 1)))
    values = np.pad(images.astype(np.float64).transpose(0, 2, 3, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    total, right, entries = np.zeros(len(b)), np.zeros((len(b), C)), []
    for dy, dx, weight in AROUND:
        at = b, y + 1 + dy, x + 1 + dx
        neighbour, is_known = number[at], known[at]
        total += weight * (is_known | (neighbour >= 0))
        right += weight * is_known[:, None] * values[at]
        unknown = np.flatnonzero(neighbour >= 0)
        entries.append((unknown, neighbour[unknown], np.full(len(unknown), -weight)))
    entries.append((np.arange(len(b)), np.arange(len(b)), total))
    rows, columns, weights = map(np.concatenate, zip(*entries, strict=True))
    system = sparse.csc_array((weights, (rows, columns)), shape=(len(b), len(b)))
    # Symmetric, with a dominant diagonal: it needs no pivoting, and so can keep to the order that it comes in.
    solver = sparse.linalg.splu(system, "NATURAL", diag_pivot_thresh=0, options={"SymmetricMode": True})
    filled = images.copy()
    filled[b, :, y, x] = solver.solve(right)
    return filled


@lru_cache(maxsize=8)
def dissection(H: int, W: int) -> np.ndarray:
    """A number for each pixel (H, W): the order in which to eliminate them (George 1973, nested dissection).

    The grid is cut in two, again and again, and the pixels of a cut come after both sides. Elimination then fills in
    few of the system's zeros, and takes half the time that it takes in the orders that SuperLU finds by itself.
    """
    if min(H, W) < 3:
        return np.arange(H * W).reshape(H, W)
    if H < W:
        return dissection(W, H).T
    first, second = dissection(H // 2, W), dissection(H - H // 2 - 1, W)
    cut = np.arange((H - 1) * W, H * W)[None]
    return np.vstack([first, cut, first.size + second])


# --- what is given ---


def _with_images(
    images: torch.Tensor, maps: torch.Tensor, targets: Classes
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three of one length and on one device, the maps as large as the images."""
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise ValueError("images must be a float tensor (N, C, H, W). For a single image, pass image[None].")
    images, maps = images.detach(), _finite(maps).to(images.device)
    targets = torch.as_tensor(targets, device=images.device)
    targets = targets.expand(len(images)) if targets.ndim == 0 else targets
    if not len(maps) == len(images) == len(targets):
        raise ValueError(f"There are {len(images)} images, {len(maps)} maps and {len(targets)} targets: pass as many.")
    return images, enlarged(maps, images.shape[2:]), targets


def _with_masks(maps: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both flat, (N, H W), the maps as large as the masks."""
    masks = torch.as_tensor(masks, dtype=torch.bool)
    maps = _finite(maps).to(masks.device)
    if masks.ndim != 3 or len(maps) != len(masks):
        raise ValueError(
            f"masks must be (N, H, W) with N = {len(maps)}, as many as the maps, not {tuple(masks.shape)}."
        )
    return enlarged(maps, masks.shape[1:]).flatten(1), masks.flatten(1)


def _finite(maps: torch.Tensor) -> torch.Tensor:
    if not isinstance(maps, torch.Tensor) or maps.ndim != 3 or not maps.is_floating_point():
        raise ValueError("maps must be a float tensor (N, h, w). For a single map, pass map[None].")
    broken = (~maps.isfinite().all((1, 2))).nonzero()[:, 0].tolist()
    if broken:
        raise ValueError(f"The maps of images {broken} hold NaN or infinity: look at the network's output for them.")
    return maps.detach()


def enlarged(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps (N, h, w) at another size, bilinearly, with pixel centres kept in place."""
    if maps.shape[1:] == tuple(size):
        return maps
    return interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's, of each row (N, M) with its own: (N,) float64 in [-1, 1]; 0 where a row is the same everywhere."""
    a, b = (v.double().cpu() for v in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    length = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(length > 0, (a * b).sum(1) / length.where(length > 0, torch.ones_like(length)), 0)
