"""Batches for training and testing: shuffled, augmented, normalised, and on the device.

A data set of small images lives on the device, and is augmented there, whole batches at a time. Photographs are decoded
once, and cropped, mirrored and coloured one by one by several processes.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import InterpolationMode, v2

from .architectures import Preparation
from .datasets import ArrayDataset
from .decoded import DecodedPictures
from .recipes import Recipe
from .world import World

__all__ = ["ArrayBatches", "PictureBatches", "at_once", "at_size", "in_order", "normalised", "views"]

GROWN = 0.75  # the share of a run after which pictures that grow have their full size
GRAIN = 8  # pixels by which they grow

Batch = tuple[torch.Tensor, torch.Tensor, int]  # images, labels, and the number of images in all workers' parts of it


def normalised(pixels: torch.Tensor, prepare: Preparation) -> torch.Tensor:
    """Bytes (B, 3, H, W) as the network takes them: float32, channels last in memory."""
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (prepare.mean, prepare.std))
    x = pixels.to(torch.float32, memory_format=torch.channels_last)
    # (v / 255 - mean) / std in one pass over memory, which is what it costs: 3 times as fast on a CPU as step by step.
    return torch.addcmul(-mean / std, x, 1 / (255 * std), out=x)


def at_size(prepare: Preparation, side: int) -> Preparation:
    """The same way of showing pictures, for squares of `side` pixels."""
    return replace(prepare, resize=round(prepare.resize * side / prepare.size), size=side)


def side_of(recipe: Recipe, full: int, epoch: int) -> int:
    """Side of the pictures in an epoch, from 1 on: from `first_size` to the full one, steadily."""
    share = (epoch - 1) / (GROWN * recipe.epochs)
    if recipe.first_size is None or share >= 1:
        return full
    return recipe.first_size + round(share * (full - recipe.first_size) / GRAIN) * GRAIN


def at_once(side: int, device: torch.device) -> int:
    """How many pictures of `side` pixels a network looks at at once: 64 of 224, of smaller ones more, up to 500.

    On a CPU a quarter of it: what a layer gives then still fits its cache.
    """
    number = min(500, max(4, 64 * 224**2 // side**2))
    return number // 4 if device.type == "cpu" else number


def workers() -> int:
    """Processes that prepare photographs: one for each processor but those that train."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(processors // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 2) - 1  # torchrun's: workers on this machine


def generator_of(recipe: Recipe, epoch: int) -> torch.Generator:
    """Each epoch draws from a seed of its own: a run that goes on needs to know no state of a random generator."""
    return torch.Generator().manual_seed(1_000_000 * recipe.seed + epoch)


def order_of(targets: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """The images of an epoch, (N,) indices: each once, or, balanced, every class equally often on average."""
    if not recipe.balanced:
        return torch.randperm(len(targets), generator=generator)
    counts = torch.bincount(targets)
    return torch.multinomial(1 / counts[targets], len(targets), replacement=True, generator=generator)


class ArrayBatches:
    """The training images of a recipe, epoch by epoch, where they fit on the device: 150 MB for CIFAR-10.

    data     images (N, H, W, 3) uint8 and their labels
    prepare  of the network that they are for
    world    whose device they live on, and are augmented on; this worker gets its part of every batch
    """

    def __init__(self, data: ArrayDataset, recipe: Recipe, prepare: Preparation, world: World):
        self.recipe, self.prepare, self.world = recipe, prepare, world
        pixels = torch.from_numpy(np.require(data.data, requirements=["C", "W"]))
        self.pixels = pixels.to(world.device).permute(0, 3, 1, 2)
        self.targets = torch.from_numpy(data.targets)
        self.mirrored = torch.rand(len(data), generator=torch.Generator().manual_seed(recipe.seed)) < 0.5

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.targets) // self.recipe.batch_size)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Images (B, 3, H, W) float32, labels (B,) int64, and the size of the whole batch.

        number  of the epoch, from 1 on: each has an order of its own
        first   the batch to begin with
        """
        drawn, size = self._drawn(number), self.recipe.batch_size
        side = side_of(self.recipe, self.pixels.shape[-1], number)
        for start in range(first * size, len(self.targets), size):
            n = min(size, len(self.targets) - start)
            part = self.world.part(n)
            mine = slice(start + part.start, start + part.stop)
            x = self._augmented({name: values[mine] for name, values in drawn.items()})
            if side != x.shape[-1]:
                x = interpolate(x, side, mode="bilinear", antialias=True)
            yield x, drawn["y"][mine], n

    def _drawn(self, epoch: int) -> dict[str, torch.Tensor]:
        """What chance decides for each image of an epoch, (N, ...), in their order.

        Drawn at once and on the CPU: the same on every device, for any number of workers, and from any batch on.
        """
        recipe, generator = self.recipe, generator_of(self.recipe, epoch)
        index = order_of(self.targets, recipe, generator)
        N, drawn = len(index), {"index": index, "y": self.targets[index]}
        if recipe.flip == "random":
            drawn["mirror"] = torch.rand(N, generator=generator) < 0.5
        elif recipe.flip == "alternating":
            drawn["mirror"] = self.mirrored[index] ^ (epoch % 2 == 0)
        if recipe.shift:
            drawn["shift"] = torch.randint(2 * recipe.shift + 1, (2, N), generator=generator).T
        if recipe.cutout:
            size = torch.tensor(self.pixels.shape[2:])
            drawn["cut"] = (torch.rand(N, 2, generator=generator) * size).long()
        return {name: values.to(self.world.device, non_blocking=True) for name, values in drawn.items()}

    def _augmented(self, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        x = normalised(self.pixels[drawn["index"]], self.prepare)
        if "mirror" in drawn:
            x = torch.where(drawn["mirror"][:, None, None, None], x.flip(3), x)
        if "shift" in drawn:
            x = _shift(x, drawn["shift"], self.recipe.shift)
        if "cut" in drawn:
            x = _cutout(x, drawn["cut"], self.recipe.cutout)
        return x


def _shift(x: torch.Tensor, offsets: torch.Tensor, most: int) -> torch.Tensor:
    """Each image moved by up to `most` pixels, in rows and in columns; what comes in is the border, reflected.

    offsets  (B, 2) int64: the first row and the first column of the image within its bordered self, 0 to 2 · most
    """
    H, W = x.shape[2:]
    rows = offsets[:, :1] + torch.arange(H, device=x.device)  # (B, H)
    columns = offsets[:, 1:] + torch.arange(W, device=x.device)  # (B, W)
    each = torch.arange(len(x), device=x.device)[:, None, None]
    bordered = pad(x, (most,) * 4, mode="reflect")
    return bordered.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(x: torch.Tensor, centres: torch.Tensor, side: int) -> torch.Tensor:
    """A square of `side` pixels of each image set to 0, the mean colour (DeVries and Taylor 2017).

    centres  (B, 2) int64: row and column of the middle; what lies outside of the image is left out
    """
    inside = []
    for centre, length in zip(centres.T, x.shape[2:], strict=True):
        start = centre[:, None] - side // 2
        places = torch.arange(length, device=x.device)
        inside.append((places >= start) & (places < start + side))  # (B, length)
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)


class PictureBatches:
    """The training photographs of a recipe, epoch by epoch: like `ArrayBatches`, of decoded pictures.

    What happens to a picture is decided by the recipe's seed, the epoch and the picture's number, and so is the same
    for any number of processes.
    """

    def __init__(self, data: DecodedPictures, recipe: Recipe, prepare: Preparation, world: World):
        self.data, self.recipe, self.prepare, self.world = data, recipe, prepare, world
        self.targets = torch.from_numpy(data.targets)

    def __len__(self) -> int:
        return -(-len(self.data) // self.recipe.batch_size)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        order = order_of(self.targets, self.recipe, generator_of(self.recipe, number))
        batches = order.split(self.recipe.batch_size)[first:]
        side = side_of(self.recipe, self.prepare.size, number)
        transform = self._transform(side)
        seeded = _Seeded(self.data.under(transform), 1_000_003 * self.recipe.seed + number)
        loader = DataLoader(
            seeded,
            batch_sampler=[batch[self.world.part(len(batch))].tolist() for batch in batches],
            collate_fn=partial(_collated, side),
            num_workers=workers(),
            worker_init_fn=_leave_interrupts_to_the_parent,
            pin_memory=self.world.device.type == "cuda",
        )
        for (x, y), batch in zip(loader, batches, strict=True):
            x = x.to(self.world.device, non_blocking=True)
            yield normalised(x, self.prepare), y.to(self.world.device), len(batch)

    def _transform(self, side: int) -> v2.Transform:
        recipe, steps = self.recipe, [as_tested(at_size(self.prepare, side))]
        if recipe.crop == "random":
            steps = [v2.RandomResizedCrop(side, interpolation=InterpolationMode(self.prepare.interpolation))]
        if recipe.flip == "random":
            steps.append(v2.RandomHorizontalFlip())
        if recipe.jitter:
            steps.append(v2.ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter))
        return v2.Compose(steps)


def _collated(side: int, items: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of pictures (B, 3, side, side) uint8 and labels (B,); B is 0 where a batch has no part for a worker."""
    if not items:
        return torch.empty(0, 3, side, side, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    return default_collate(items)


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """A forked process has its parent's way with Ctrl-C, which is held back; one that was spawned would end at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Seeded(Dataset[tuple[Any, int]]):
    """A data set whose transform draws, for each item, from a seed of its own."""

    def __init__(self, data: DecodedPictures, seed: int):
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(1_000_003 * self.seed + i)
            return self.data[i]


def as_tested(prepare: Preparation) -> v2.Transform:
    """From a picture (3, h, w) uint8 of any size to the square from its middle, as `Preparation.crop` cuts it."""
    interpolation = InterpolationMode(prepare.interpolation)
    return v2.Compose([v2.Resize(prepare.resize, interpolation), v2.CenterCrop(prepare.size)])


def in_order(
    images: ArrayDataset | DecodedPictures, prepare: Preparation, device: torch.device, batch_size: int
) -> Iterator[torch.Tensor]:
    """All images in their order, as the network takes them: (B, 3, H, W) float32 on the device."""
    if isinstance(images, ArrayDataset):
        for part in torch.arange(len(images)).split(batch_size):
            pixels = torch.from_numpy(np.require(images.data[part.numpy()], requirements=["C", "W"])).to(device)
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
