"""Pictures decoded once: a data set of JPEG files as one memory-mapped file of pixels, for training to read from.

Decoding a photograph takes longer than a small network takes to learn from it, and gives the same pixels every epoch.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from . import datasets
from .datasets import DatasetError, FolderSplit, Splits, made_once, picture_at
from .records import appearing

__all__ = ["DecodedPictures", "decode"]

AT_ONCE = 64  # pictures that may be decoded and not yet written: what memory holds


class DecodedPictures(Dataset):
    """Some pictures of a decoded data set, with their labels.

    pixels   every picture's rows, one after the other: uint8, memory-mapped
    places   (N, 3): where each of these pictures begins in it, its height, its width
    targets  (N,) int64

    `pictures[i]` is a (3, h, w) uint8 tensor, or what `transform` makes of it, and the label as an int.
    """

    def __init__(self, pixels, places, targets, classes, transform: Callable | None = None):
        self.pixels, self.places, self.targets, self.classes = pixels, places, targets, tuple(classes)
        self.transform = transform

    def __len__(self):
        return len(self.places)

    def __getstate__(self):
        """A process that is not forked gets the name of the file, not what is in it."""
        return self.__dict__ | {"pixels": Path(self.pixels.filename)}

    def __setstate__(self, state):
        self.__dict__ = state | {"pixels": _mapped(state["pixels"])}

    def __getitem__(self, i):
        start, height, width = self.places[i]
        rows = self.pixels[start : start + height * width * 3].reshape(height, width, 3)
        picture = torch.from_numpy(rows).permute(2, 0, 1)
        return (self.transform(picture) if self.transform else picture), int(self.targets[i])

    def take(self, indices) -> "DecodedPictures":
        """The pictures at `indices`, in that order, as a data set of their own."""
        return DecodedPictures(self.pixels, self.places[indices], self.targets[indices], self.classes, self.transform)

    def under(self, transform: Callable | None) -> "DecodedPictures":
        """The same pictures, under another transform."""
        return DecodedPictures(self.pixels, self.places, self.targets, self.classes, transform)


def decode(data: Splits, side: int) -> Splits:
    """A folder data set with its three parts decoded, on first use into the cache.

    data  what `load_dataset` gives of "caltech101" or "caltech256"
    side  pixels to which the short side of a picture is brought, antialiased; a smaller picture is left as it is

    A process that is killed leaves nothing half-made, and of two that want the same pictures one makes them.

    Raises DatasetError where the stored pixels are damaged, ValueError where the data set has a transform of its own.
    """
    whole = data.train.dataset  # torchvision's, which all three parts are cut from
    if not isinstance(whole[0][0], Image.Image):
        raise ValueError("Pictures are decoded as they are: load the data set without a transform.")
    folder = datasets.data_cache() / f"{data.info.name}-{side}px"
    with made_once(folder, f"The decoded {data.info.title}") as missing:
        if missing:
            with appearing(folder) as scratch:
                _write(whole, side, scratch, data.info.title)
                about = {"source_sha256": data.sha256, "side": side, "pictures": len(whole)}
                (scratch / "about.json").write_text(json.dumps(about, indent=1))
    try:
        about = json.loads((folder / "about.json").read_text())
        places = np.load(folder / "places.npy")
        pixels = _mapped(folder / "pixels.bin")
        last, height, width = places[-1]
        if (
            about["source_sha256"] != data.sha256
            or len(places) != len(whole)
            or len(pixels) != last + height * width * 3
        ):
            raise ValueError("it is not of these pictures, or cut short")
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DatasetError(
            f"The decoded {data.info.title} is damaged ({error}). Delete {folder} and decode it again."
        ) from error

    def part(split: FolderSplit) -> DecodedPictures:
        return DecodedPictures(pixels, places[split.indices], split.targets, split.classes)

    return replace(data, train=part(data.train), validation=part(data.validation), test=part(data.test))


def _mapped(file: Path) -> np.memmap:
    """The bytes of a file, read when they are used. Who writes into them changes a copy: tensors know no read-only."""
    return np.memmap(file, np.uint8, mode="c")


def _write(pictures: Dataset, side: int, folder: Path, title: str) -> None:
    places, start = [], 0
    with open(folder / "pixels.bin", "wb") as file:
        for rows in tqdm(_decoded(pictures, side), total=len(pictures), desc=f"decoding {title}", unit=" pictures"):
            places.append((start, *rows.shape[:2]))
            start += file.write(rows.tobytes())
    np.save(folder / "places.npy", np.array(places, dtype=np.int64))


def _decoded(pictures: Dataset, side: int) -> Iterator[np.ndarray]:
    """Every picture (h, w, 3), decoded by several threads and handed over in order, a few at a time."""

    def resized(i):
        image = picture_at(pictures, i)[0]
        share = side / min(image.size)
        if share < 1:
            image = image.resize([max(1, round(n * share)) for n in image.size], Image.Resampling.BILINEAR)
        return np.asarray(image)

    with ThreadPoolExecutor() as pool:
        for chunk in _chunks(range(len(pictures)), AT_ONCE):
            yield from pool.map(resized, chunk)


def _chunks(items: range, size: int) -> Iterable[range]:
    return (items[start : start + size] for start in range(0, len(items), size))
