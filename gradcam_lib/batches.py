"""Batches for training and testing: shuffled, augmented, normalised, and on the device.

A data set of small images lives on the device, and is augmented there, whole batches at a time. Photographs are decoded
once, and cropped, mirrored and coloured one by one by several processes.
"""

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from .architectures import Preparation
from .datasets import ArrayDataset
from .decoded import DecodedPictures
from .recipes import Recipe

__all__ = ["ArrayBatches", "PictureBatches", "in_order", "normalised", "views"]


def normalised(pixels: torch.Tensor, prepare: Preparation) -> torch.Tensor:
    """Bytes (B, 3, H, W) as the network takes them: float32, channels last in memory."""
    x = pixels.float() / 255
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (prepare.mean, prepare.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def workers() -> int:
    """Processes that prepare photographs: one for each processor but the one that trains."""
    return max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 2) - 1


def order_of(targets: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The images of an epoch, (N,) indices: each once, or, balanced, every class equally often on average."""
    if not recipe.balanced:
        return torch.randperm(len(targets))
    counts = torch.bincount(targets)
    return torch.multinomial(1 / counts[targets], len(targets), replacement=True)


class ArrayBatches:
    """The training images of a recipe, epoch by epoch.

    data     images (N, H, W, 3) uint8 and their labels
    prepare  of the network that they are for
    device   where they live and are augmented: 150 MB for CIFAR-10
    """

    def __init__(self, data: ArrayDataset, recipe: Recipe, prepare: Preparation, device: torch.device):
        self.recipe, self.prepare = recipe, prepare
        self.pixels = torch.from_numpy(np.require(data.data, requirements="CW")).to(device).permute(0, 3, 1, 2)
        self.targets = torch.from_numpy(data.targets)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.mirrored = (torch.rand(len(data), generator=generator) < 0.5).to(device)

    def __len__(self):
        """Batches in an epoch."""
        return -(-len(self.targets) // self.recipe.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images (B, 3, H, W) float32 and labels (B,) int64, in an order of their own for each epoch, from 1 on.

        Draws from PyTorch's global random generator.
        """
        for indices in order_of(self.targets, self.recipe).split(self.recipe.batch_size):
            y = self.targets[indices].to(self.pixels.device)
            yield self._augmented(indices.to(self.pixels.device), number), y

    def _augmented(self, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        x, recipe = normalised(self.pixels[indices], self.prepare), self.recipe
        if recipe.flip == "random":
            x = _mirror(x, torch.rand(len(x), device=x.device) < 0.5)
        elif recipe.flip == "alternating":
            x = _mirror(x, self.mirrored[indices] ^ (epoch % 2 == 0))
        if recipe.shift:
            x = _shift(x, recipe.shift)
        if recipe.cutout:
            x = _cutout(x, recipe.cutout)
        return x


def _mirror(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return torch.where(chosen[:, None, None, None], x.flip(3), x)


def _shift(x: torch.Tensor, most: int) -> torch.Tensor:
    """Each image moved by up to `most` pixels, in rows and in columns; what comes in is the border, reflected."""
    B, _, H, W = x.shape
    top, left = torch.randint(2 * most + 1, (2, B, 1), device=x.device)
    rows, columns = top + torch.arange(H, device=x.device), left + torch.arange(W, device=x.device)  # (B, H), (B, W)
    each = torch.arange(B, device=x.device)[:, None, None]
    bordered = pad(x, (most,) * 4, mode="reflect")
    return bordered.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(x: torch.Tensor, side: int) -> torch.Tensor:
    """A square of `side` pixels at a random place of each image set to 0, the mean colour (DeVries and Taylor 2017)."""
    B, _, H, W = x.shape
    y0 = torch.randint(H, (B, 1), device=x.device) - side // 2
    x0 = torch.randint(W, (B, 1), device=x.device) - side // 2
    rows, columns = torch.arange(H, device=x.device), torch.arange(W, device=x.device)
    inside = ((rows >= y0) & (rows < y0 + side))[:, :, None] & ((columns >= x0) & (columns < x0 + side))[:, None, :]
    return x.masked_fill(inside[:, None], 0)


class PictureBatches:
    """The training photographs of a recipe, epoch by epoch: like `ArrayBatches`, of decoded pictures.

    What happens to a picture is decided by the recipe's seed, the epoch and the picture's number, and so is the same
    for any number of processes.
    """

    def __init__(self, data: DecodedPictures, recipe: Recipe, prepare: Preparation, device: torch.device):
        self.data, self.recipe, self.prepare, self.device = data, recipe, prepare, device
        self.targets = torch.from_numpy(data.targets)
        steps = [as_tested(prepare)]
        if recipe.crop == "random":
            steps = [v2.RandomResizedCrop(prepare.size, antialias=True)]
        if recipe.flip == "random":
            steps.append(v2.RandomHorizontalFlip())
        if recipe.jitter:
            steps.append(v2.ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter))
        self.transform = v2.Compose(steps)

    def __len__(self):
        return -(-len(self.data) // self.recipe.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = order_of(self.targets, self.recipe).split(self.recipe.batch_size)
        seeded = _Seeded(self.data.under(self.transform), 1_000_003 * self.recipe.seed + number)
        loader = DataLoader(seeded, batch_sampler=[batch.tolist() for batch in batches], num_workers=workers())
        for x, y in loader:
            yield normalised(x.to(self.device, non_blocking=True), self.prepare), y.to(self.device)


class _Seeded(Dataset):
    """A data set whose transform draws, for each item, from a seed of its own."""

    def __init__(self, data: Dataset, seed: int):
        self.data, self.seed = data, seed

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(1_000_003 * self.seed + i)
            return self.data[i]


def as_tested(prepare: Preparation) -> v2.Transform:
    """From a picture (3, h, w) uint8 of any size to the square from its middle, as `Preparation.crop` cuts it."""
    return v2.Compose([v2.Resize(prepare.resize, antialias=True), v2.CenterCrop(prepare.size)])


def in_order(
    images: ArrayDataset | DecodedPictures, prepare: Preparation, device: torch.device, batch_size: int
) -> Iterator[torch.Tensor]:
    """All images in their order, as the network takes them: (B, 3, H, W) float32 on the device."""
    if isinstance(images, ArrayDataset):
        for part in torch.arange(len(images)).split(batch_size):
            pixels = torch.from_numpy(np.require(images.data[part.numpy()], requirements="CW")).to(device)
            yield normalised(pixels.permute(0, 3, 1, 2), prepare)
    else:
        for x, _ in DataLoader(images.under(as_tested(prepare)), batch_size, num_workers=workers()):
            yield normalised(x.to(device), prepare)


def views(x: torch.Tensor, number: int) -> list[tuple[float, torch.Tensor]]:
    """Images (B, 3, H, W) as a test may see them, each with its weight; the weights sum to 1.

    number  1: as they are. 2: and mirrored. 6: half of the weight on these, half on both moved by a pixel, up and left
            or down and right (Jordan 2024).

    Raises ValueError for another number.
    """
    if number not in (1, 2, 6):
        raise ValueError(f"There are tests with 1, 2 or 6 views of an image, not with {number}.")
    if number == 1:
        return [(1.0, x)]
    both = [x, x.flip(3)]
    if number == 2:
        return [(0.5, view) for view in both]
    H, W = x.shape[2:]
    bordered = pad(x, (1,) * 4, mode="reflect")
    moved = [bordered[:, :, :H, :W], bordered[:, :, 2:, 2:]]
    return [(0.25, view) for view in both] + [(0.125, view) for m in moved for view in (m, m.flip(3))]
