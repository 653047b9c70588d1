"""Batches: a data set that fits on the device lives there, and is shuffled and augmented there, a batch at a time."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.functional import pad

from .architectures import Preparation
from .datasets import ArrayDataset
from .recipes import Recipe

__all__ = ["ArrayBatches", "normalised", "views"]


def normalised(pixels: torch.Tensor, prepare: Preparation) -> torch.Tensor:
    """Bytes (B, H, W, 3) as the network takes them: (B, 3, H, W) float32, channels last in memory."""
    x = pixels.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (prepare.mean, prepare.std))
    return (x - mean) / std


class ArrayBatches:
    """The training images of a recipe, epoch by epoch.

    data     images (N, H, W, 3) uint8 and their labels
    prepare  of the network that they are for
    device   where they live and are augmented: 150 MB for CIFAR-10
    """

    def __init__(self, data: ArrayDataset, recipe: Recipe, prepare: Preparation, device: torch.device):
        self.recipe, self.prepare = recipe, prepare
        self.pixels = torch.from_numpy(np.require(data.data, requirements="CW")).to(device)
        self.targets = torch.from_numpy(data.targets).to(device)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.mirrored = (torch.rand(len(data), generator=generator) < 0.5).to(device)

    def __len__(self):
        """Batches in an epoch."""
        return -(-len(self.targets) // self.recipe.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images (B, 3, H, W) float32 and labels (B,) int64, in an order of their own for each epoch, from 1 on.

        Draws from PyTorch's global random generator.
        """
        for indices in self._order().split(self.recipe.batch_size):
            yield self._augmented(indices.to(self.pixels.device), number), self.targets[indices]

    def _order(self) -> torch.Tensor:
        if not self.recipe.balanced:
            return torch.randperm(len(self.targets))
        counts = torch.bincount(self.targets.cpu())
        return torch.multinomial(1 / counts[self.targets.cpu()], len(self.targets), replacement=True)

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
