"""Pictures decoded once: a data set of JPEG files as one memory-mapped file of pixels, for training to read from.

Decoding a photograph takes longer than a small network takes to learn from it, and gives the same pixels every epoch.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from . import datasets
from .datasets import DatasetError, FolderSplit, Indices, Part, Splits, Transform, made_once, picture_at
from .records import appearing
from .stored import read_array, read_json, reading

__all__ = ["DecodedPictures", "decode"]

AT_ONCE = 64  # pictures that may be decoded and not yet written: what memory holds


class DecodedPictures(Dataset[tuple[Any, int]]):
    """Some pictures of a decoded data set, with their labels.

    pixels   every picture's rows, one after the other: uint8, memory-mapped
    places   (N, 3): where each of these pictures begins in it, its height, its width
    targets  (N,) int64

    `pictures[i]` is a (3, h, w) uint8 tensor, or what `transform` makes of it, and the label as an int.
    """

    def __init__(
        self,
        pixels: np.memmap,
        places: np.ndarray,
        targets: np.ndarray,
        classes: Iterable[str],
        transform: Transform | None = None,
    ):
        self.pixels, self.places, self.targets, self.classes = pixels, places, targets, tuple(classes)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, Any]:
        """A process that is not forked gets the name of the file, not what is in it."""
        assert self.pixels.filename
        return self.__dict__ | {"pixels": Path(self.pixels.filename)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"pixels": _mapped(state["pixels"])}

    def __getitem__(self, i: int) -> tuple[Any, int]:
        start, height, width = self.places[i]
        rows = self.pixels[start : start + height * width * 3].reshape(height, width, 3)
        picture = torch.from_numpy(rows).permute(2, 0, 1)
        return (self.transform(picture) if self.transform else picture), int(self.targets[i])

    def take(self, indices: Indices) -> "DecodedPictures":
        """The pictures at `indices`, in that order, as a data set of their own."""
        return DecodedPictures(self.pixels, self.places[indices], self.targets[indices], self.classes, self.transform)

    def under(self, transform: Transform | None) -> "DecodedPictures":
        """The same pictures, under another transform."""
        return DecodedPictures(self.pixels, self.places, self.targets, self.classes, transform)


def decode(data: Splits, side: int) -> Splits:
    """A folder data set with its three parts decoded, on first use into the cache.

    data  what `load_dataset` gives of "caltech101" or "caltech256"
    side  pixels to which the short side of a picture is brought, antialiased; a smaller picture is left as it is

    A process that is killed leaves nothing half-made, and of two that want the same pictures one makes them.

    Raises DatasetError where the stored pixels are damaged, ValueError where the data set has a transform of its own.
    """
    assert isinstance(data.train, FolderSplit)
    whole: Any = data.train.dataset  # torchvision's, which all three parts are cut from
    if not isinstance(whole[0][0], Image.Image):
        raise ValueError("Pictures are decoded as they are: load the data set without a transform.")
    folder = datasets.data_cache() / f"{data.info.name}-{side}px"
    with made_once(folder, f"The decoded {data.info.title}") as missing:
        if missing:
            with appearing(folder) as scratch:
                _write(whole, side, scratch, data.info.title)
                about = {"source_sha256": data.sha256, "side": side, "pictures": len(whole)}
                (scratch / "about.json").write_text(json.dumps(about, indent=1))

    def damaged(why: str) -> DatasetError:
        return DatasetError(f"The decoded {data.info.title} is damaged ({why}). Delete {folder} and decode it again.")

    with reading(damaged):
        about = read_json(folder / "about.json")
        places = read_array(folder / "places.npy")
        pixels = _mapped(folder / "pixels.bin")
        if about["source_sha256"] != data.sha256 or not _one_after_the_other(places, len(whole), len(pixels)):
            raise ValueError("it is not of these pictures, or cut short")

    def part(split: Part) -> DecodedPictures:
        assert isinstance(split, FolderSplit)
        return DecodedPictures(pixels, places[split.indices], split.targets, split.classes)

    return replace(data, train=part(data.train), validation=part(data.validation), test=part(data.test))


def _one_after_the_other(places: np.ndarray, pictures: int, size: int) -> bool:
    """Whether the places are those of so many pictures, which fill so many bytes."""
    if places.shape != (pictures, 3) or places.dtype != np.int64 or not ((0 <= places) & (places <= size)).all():
        return False
    ends = [start + height * width * 3 for start, height, width in places.tolist()]  # Python's numbers do not overflow
    return bool((places[:, 1:] > 0).all()) and [0, *ends] == [*places[:, 0].tolist(), size]


def _mapped(file: Path) -> np.memmap:
    """The bytes of a file, read when they are used. Who writes into them changes a copy: tensors know no read-only."""
    return np.memmap(file, np.uint8, mode="c")


def _write(pictures: Any, side: int, folder: Path, title: str) -> None:
    places, start = [], 0
    with open(folder / "pixels.bin", "wb") as file:
        for rows in tqdm(_decoded(pictures, side), total=len(pictures), desc=f"decoding {title}", unit=" pictures"):
            places.append((start, *rows.shape[:2]))
            start += file.write(rows.tobytes())
    np.save(folder / "places.npy", np.array(places, dtype=np.int64))


def _decoded(pictures: Any, side: int) -> Iterator[np.ndarray]:
    """Every picture (h, w, 3), decoded by several threads and handed over in order, a few at a time."""

    def resized(i: int) -> np.ndarray:
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
