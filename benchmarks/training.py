"""How fast training is: its data paths beside the usual ones, its loop beside itself without data, and many workers.

    python benchmarks/training.py                    # about ten minutes on two processor cores
    python benchmarks/training.py --device cuda
    torchrun --nproc-per-node 4 benchmarks/training.py --device cuda --workers-only

All that is compared runs in turn, in one process and on the same machine; figures are medians over the rounds. They go
to data/records/training-benchmark.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pandas as pd
import torch
from timing import in_turn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2

import gradcam_lib as gc
from gradcam_lib import datasets, training
from gradcam_lib.batches import ArrayBatches, PictureBatches, workers
from gradcam_lib.decoded import decode
from gradcam_lib.records import describe_machine, records_folder, write_record
from gradcam_lib.world import World, joined

ROUNDS = 5
PHOTOGRAPHS = replace(gc.RECIPES["caltech101-transfer"], name="photographs", jitter=0.0)
SMALL = replace(gc.RECIPES["cifar10-fast"], name="small images", flip="random")


def speed(batches: Iterable, images: int, device: torch.device) -> float:
    """Images a second, from the asking for the first batch to the last one's being there."""
    began = time.perf_counter()
    seen = sum(len(batch[1]) for batch in batches)
    if device.type == "cuda":
        torch.cuda.synchronize()
    assert seen == images
    return seen / (time.perf_counter() - began)


def photographs(world: World) -> dict[str, float]:
    """Caltech-101 cut to 224 pixels at random and mirrored: decoded once, and by torchvision's ImageFolder."""
    data, n, size = gc.load_dataset("caltech101"), 1920, PHOTOGRAPHS.batch_size
    prepare = replace(gc.build_model(PHOTOGRAPHS.model).prepare, interpolation="bilinear")
    ours = decode(data, prepare.resize).train.take(slice(0, n))
    usual = v2.Compose([
        v2.RandomResizedCrop(prepare.size), v2.RandomHorizontalFlip(), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(prepare.mean, prepare.std),
    ])  # fmt: skip
    (root,) = (folder for folder in (datasets.data_cache() / "caltech101").iterdir() if folder.is_dir())
    theirs = Subset(ImageFolder(root, usual), np.random.default_rng(0).permutation(8000)[:n])

    def by_image_folder():
        for x, y in DataLoader(
            theirs, size, shuffle=True, num_workers=workers(), pin_memory=world.device.type == "cuda"
        ):
            yield x.to(world.device, non_blocking=True), y.to(world.device)

    batches = PictureBatches(ours, PHOTOGRAPHS, prepare, world)
    return in_turn({
        "decoded once": lambda: speed(batches.epoch(1), n, world.device),
        "ImageFolder and DataLoader": lambda: speed(by_image_folder(), n, world.device),
    }, ROUNDS)  # fmt: skip


class CIFAR10AsIs(CIFAR10):
    """torchvision's data set, of images that are in memory already; what it gives is its own doing."""

    def __init__(self, data, transform):
        self.data, self.targets, self.transform, self.target_transform = (
            data.data,
            data.targets.tolist(),
            transform,
            None,
        )


def small_images(world: World) -> dict[str, float]:
    """CIFAR-10 moved and mirrored: on the device, whole batches at a time, and by torchvision's data set."""
    train = gc.load_dataset("cifar10").train.take(slice(0, 20_000))
    prepare = gc.build_model(SMALL.model).prepare
    usual = v2.Compose([
        v2.ToImage(), v2.RandomCrop(32, padding=SMALL.shift, padding_mode="reflect"), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(prepare.mean, prepare.std),
    ])  # fmt: skip
    theirs = CIFAR10AsIs(train, usual)

    def by_torchvision():
        pinned = world.device.type == "cuda"
        for x, y in DataLoader(theirs, SMALL.batch_size, shuffle=True, num_workers=workers(), pin_memory=pinned):
            yield x.to(world.device, non_blocking=True), y.to(world.device)

    batches = ArrayBatches(train, SMALL, prepare, world)
    return in_turn({
        "on the device": lambda: speed(batches.epoch(1), 20_000, world.device),
        "CIFAR10 and DataLoader": lambda: speed(by_torchvision(), 20_000, world.device),
    }, ROUNDS)  # fmt: skip


def loop(recipe, world: World, steps: int) -> dict[str, float]:
    """Training steps on the recipe's own batches, and on one batch over and over; what the network's products reach.

    The share of the peak counts 6 operations for each multiply-add of a forward pass: 2 forward, 4 backward.
    """
    state, batches, _, _ = training._beginning(recipe, gc.load_dataset(recipe.dataset), world)
    side = state.model.prepare.size
    operations = 6 * gc.summarise(state.model, (3, side, side)).multiply_adds
    network = world.together(state.model).train()

    def trained(source: Iterable) -> float:
        """Images a second of the steps after the first."""
        began, images = None, 0
        for x, y, n in islice(source, steps + 1):
            training._step(state, network, x, y, n, world).tolist()
            images += n if began else 0
            began = began or time.perf_counter()
        return images / (time.perf_counter() - began)

    one = next(iter(batches.epoch(1)))
    ways = {"own batches": lambda: trained(batches.epoch(1)), "one batch": lambda: trained([one] * (steps + 1))}
    found = in_turn(ways, ROUNDS)
    return found | {"operations": operations * found["own batches"]}


def peak(world: World, precision: str, n: int) -> float:
    """Operations a second of a large product of matrices, as far as they can be had: the largest of 20, and 20.

    On a processor, PyTorch multiplies matrices by one library and convolves by another, which may know more of its
    instructions: so the product is also made as a convolution of 1 x 1.
    """
    A, B = torch.randn(2, n, n, device=world.device, dtype=training.PRECISIONS[precision])
    pixels = A.view(1, n, n // 32, 32).contiguous(memory_format=torch.channels_last)
    filters = B.view(n, n, 1, 1)
    best = 0.0
    for product in (lambda: A @ B, lambda: torch.conv2d(pixels, filters)):
        for _ in range(20):
            began = time.perf_counter()
            product().flatten()[0].item()
            best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def many_workers(device: str, counts: Iterable[int]) -> dict[int, float]:
    """Images a second of `cifar10-report`, at a batch of 512 for all workers together."""
    found = {}
    for count in counts:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = [sys.executable, *launcher, __file__, "--device", device, "--workers-only"]
        threads = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | threads)
        found[count] = float(done.stdout.split()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers-only", action="store_true", help="print the speed of the workers of this torchrun")
    chosen = parser.parse_args()
    on_gpu = chosen.device == "cuda"
    if chosen.workers_only:
        world = joined(torch.device(chosen.device))
        together = loop(replace(gc.RECIPES["cifar10-report"], batch_size=512), world, 20)["own batches"]
        if world.rank == 0:
            print(together)
        return
    world = World(torch.device(chosen.device))
    precision = "bfloat16" if on_gpu else "float32"
    top = peak(world, precision, 8192 if on_gpu else 2048)
    loops = {
        "report-cnn, 32 pixels": (replace(gc.RECIPES["cifar10-report"], precision=precision), 100),
        "cifar10-fast, 32 pixels": (replace(gc.RECIPES["cifar10-fast"], precision=precision), 20 if on_gpu else 2),
        "efficientnet-lite0, 224 pixels": (
            replace(PHOTOGRAPHS, precision=precision, pretrained=False),
            20 if on_gpu else 3,
        ),
    }
    rows = []
    for what, figures in (("photographs", photographs(world)), ("small images", small_images(world))):
        rows += [{"what": what, "way": way, "images_per_second": figure} for way, figure in figures.items()]
        print(what, {way: round(figure) for way, figure in figures.items()}, flush=True)
    for name, (recipe, steps) in loops.items():
        figures = loop(recipe, world, steps)
        share = figures.pop("operations") / top
        rows += [
            {"what": name, "way": way, "images_per_second": f, "share_of_peak": share} for way, f in figures.items()
        ]
        print(name, {way: round(figure, 1) for way, figure in figures.items()}, f"{share:.1%} of the peak", flush=True)
    counts = range(1, (torch.cuda.device_count() if on_gpu else 2) + 1)
    for count, figure in many_workers(chosen.device, counts).items():
        rows.append({"what": "report-cnn, batch of 512", "way": f"{count} workers", "images_per_second": figure})
        print(count, "workers:", round(figure), "images a second", flush=True)
    run = {
        "command": "python benchmarks/training.py" + (" --device cuda" if on_gpu else ""),
        "rounds": ROUNDS,
        "precision": precision,
        "peak_operations_per_second": top,
        "data_workers": workers(),
        "recipes": {name: asdict(recipe) for name, (recipe, _) in loops.items()},
        **describe_machine(world.device),
    }
    write_record(records_folder() / ("training-benchmark" + ("-gpu" if on_gpu else "")), run, pd.DataFrame(rows))


if __name__ == "__main__":
    main()
