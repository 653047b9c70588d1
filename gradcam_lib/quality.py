"""What is in a data set, and what is wrong with it: classes, sizes, greys, damaged files, duplicates, doubtful labels.

`describe` looks at every picture of a named data set or of any folder. `fingerprints` and `near_duplicates` find
pictures that are nearly the same; `human_labels` are the answers that people gave for the CIFAR-10 test set.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from . import datasets
from .datasets import DATASETS, ArrayDataset, DatasetError, FolderSplit, Splits, load_dataset
from .images import FORMATS, MAX_PIXELS, ImageError, load_image, strict_pillow
from .stored import printable, read_array, reading

__all__ = ["Description", "Fingerprints", "describe", "disputes", "fingerprints", "human_labels", "near_duplicates"]

Item = TypeVar("Item")
Found = TypeVar("Found")

THREADS = 4  # that read files; each holds one picture, of MAX_PIXELS at most
EXTENSIONS = {  # the ones that each format may have; another is reported
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "WebP": (".webp",),
}
GREY_MODES = ("1", "L", "LA", "I", "F")  # Pillow's names; those of 16 bits begin with "I;16"
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # folders above the classes

# The perceptual hash, and what counts as nearly the same. Measured on CIFAR-10: chapter 1.
SIDE = 32  # pixels a side of the grey picture that is hashed
LOW = 8  # frequencies in each direction: 8 × 8 bits
MAX_DISTANCE = 12  # bits of 64
MIN_SIMILARITY = 0.8  # of the edges of two thumbnails
BLOCK = 2048  # hashes a side of the squares that are compared at once: 16 MB
LUMA = np.array([299, 587, 114])  # thousandths of red, green and blue in grey (ITU-R BT.601); whole, so sums are exact
DCT = np.cos(np.pi * np.arange(1, LOW + 1)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)  # (8, 32): frequencies 1 to 8


# --- nearly the same ---


class Fingerprints(NamedTuple):
    """What is kept of pictures to find near-duplicates: 264 bytes each.

    hashes      (N,) uint64, the perceptual hash of each
    thumbnails  (N, 16, 16) uint8, grey
    """

    hashes: np.ndarray
    thumbnails: np.ndarray


def fingerprints(images: Sequence[np.ndarray]) -> Fingerprints:
    """The perceptual hash of each picture, and a thumbnail to verify by.

    images  (N, H, W, 3) uint8, RGB; or a sequence of (H, W, 3) arrays, which may differ in size

    The hash is pHash's (Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions): 32 × 32 grey
    pixels, their discrete cosine transform, its frequencies 1 to 8 in both directions, and for each of the 64 one bit:
    is it above their median? (pHash blurs large pictures before it takes every k-th pixel; here areas are averaged, so
    a few bits may differ from its own.) Brightness and contrast leave the hash as it is; a shift, crop or mirror image
    does not.
    """
    grey = np.empty((len(images), SIDE, SIDE), np.float32)
    for k, image in enumerate(images):
        if image.shape[:2] != (SIDE, SIDE):
            image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        grey[k] = image @ LUMA  # thousandths, at most 255,000: exact
    hashes = np.empty(len(images), np.uint64)
    for k in range(0, len(images), BLOCK):
        C = (DCT @ grey[k : k + BLOCK].astype(np.float64) @ DCT.T).reshape(-1, LOW * LOW)
        C = np.rint(C)  # in a flat or symmetric picture many are 0: rounding errors must not decide
        bits = C > np.median(C, axis=1, keepdims=True)
        hashes[k : k + BLOCK] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    squares = grey.reshape(len(images), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
    return Fingerprints(hashes, np.rint(squares / 1000).astype(np.uint8))


def near_duplicates(
    first: Fingerprints,
    second: Fingerprints | None = None,
    *,
    max_distance: int = MAX_DISTANCE,
    min_similarity: float = MIN_SIMILARITY,
) -> pd.DataFrame:
    """Pairs of pictures that are nearly the same: one in `first`, one in `second`, or both in `first`.

    max_distance    of the two hashes, in bits of 64; two pictures that have nothing in common differ in about 32
    min_similarity  the cosine of the angle between the edges of the two thumbnails: the differences of neighbouring
                    pixels, to the right and downwards, as one vector. 1 for the same edges, about 0 for unrelated ones.
                    Hashes of smooth pictures collide: any sky is like any other. Edges tell them apart.
    returns         a table with the columns first, second (indices), distance and similarity, ordered by the indices

    A picture without any edge is like no other. Every pair is compared, so time grows with len(first) × len(second):
    10,000 against 50,000 take some three seconds on one core.
    """
    pairs = [np.empty((4, 0)), *_matches(first, second, max_distance, min_similarity)]
    table = pd.DataFrame(np.concatenate(pairs, axis=1).T, columns=["first", "second", "distance", "similarity"])
    table = table.astype({"first": int, "second": int, "distance": int})
    return table.sort_values(["first", "second"], ignore_index=True)


def _matches(
    first: Fingerprints, second: Fingerprints | None, max_distance: int, min_similarity: float
) -> Iterator[np.ndarray]:
    """The pairs, block by block: (4, pairs) arrays of two indices, distance and similarity."""
    (rows, a), (columns, b) = _signs(first), _signs(first if second is None else second)
    for r in tqdm(range(0, len(rows), BLOCK), desc="comparing hashes", delay=1):
        for c in range(r if second is None else 0, len(columns), BLOCK):
            # With bits as -1 and 1, the product of two hashes is 64 minus twice their distance.
            products = a[r : r + BLOCK] @ b[c : c + BLOCK].T
            i, j = np.divmod(np.flatnonzero(products >= 64 - 2 * max_distance), products.shape[1])
            distances = (64 - products[i, j]) / 2
            i, j = rows[r + i], columns[c + j]
            once = i < j if second is None else np.full(len(i), True)
            for piece in np.array_split(np.flatnonzero(once), len(i) // 2**12 + 1):
                p, q = i[piece], j[piece]
                e, f = _edges(first.thumbnails[p]), _edges((second or first).thumbnails[q])
                similarities = (e * f).sum(axis=1) / np.sqrt((e * e).sum(axis=1) * (f * f).sum(axis=1))
                alike = similarities >= min_similarity
                yield np.stack([p, q, distances[piece], similarities])[:, alike]


def _signs(prints: Fingerprints) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures have edges, and the (M, 64) bits of their hashes as -1 and 1. Flat pictures all have one hash."""
    x = prints.thumbnails.reshape(len(prints.thumbnails), 256)
    chosen = np.flatnonzero((x != x[:, :1]).any(axis=1))
    bits = np.unpackbits(prints.hashes[chosen][:, None].view(np.uint8), axis=1)
    return chosen, 2 * bits.astype(np.float32) - 1


def _edges(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 480): the differences of neighbouring pixels. Whole numbers in double precision, so their sums are exact."""
    x = thumbnails.astype(np.float64)
    return np.hstack([np.diff(x, axis=axis).reshape(len(x), 240) for axis in (1, 2)])


# --- what people said ---


def human_labels() -> np.ndarray | None:
    """How often people gave each label to each picture of the CIFAR-10 test set: (10000, 10) integers.

    These are the counts of CIFAR-10H (Peterson et al. 2019, Human Uncertainty Makes Classification More Robust; licence
    CC BY-NC-SA 4.0), in the order of the test set. The file `cifar10h-counts.npy` is looked for in the folder that the
    environment variable GRADCAM_DATA names, then in the cache; None where neither has it.

    Raises DatasetError where the file is damaged, or GRADCAM_DATA names no folder.
    """
    places = [place for place in (datasets.user_folder(), datasets.data_cache()) if place]
    for file in (place / "cifar10h-counts.npy" for place in places):
        if not file.is_file():
            continue
        with _read_by_hand(file):
            counts = read_array(file)
        whole = counts.shape == (10_000, 10) and counts.dtype.kind in "iu"
        if not whole or (counts < 0).any() or (counts.sum(axis=1) == 0).any():
            raise DatasetError(
                f"{file} is not the counts of CIFAR-10H: (10000, 10) whole numbers, none of its rows empty."
            )
        return counts
    return None


def _read_by_hand(file: Path) -> AbstractContextManager[None]:
    """Of files that a person fetched."""
    return reading(lambda why: DatasetError(f"{file} cannot be read ({why}); fetch it again."))


BOXES = {"airplanes": "airplane", "Faces": "face", "Motorbikes": "motorcycle"}  # folder of Caltech-101: file of boxes


def object_boxes() -> pd.DataFrame | None:
    """The box round the object in 2,032 pictures of Caltech-101, all in three of its classes.

    The files `caltech101_boxes/{airplane,face,motorcycle}.csv`, with the columns file, x0, y0, x1, y1 and class and no
    heading, are looked for where `human_labels` looks; None where neither place has them.

    returns  a row a picture, its index being the name, such as "airplanes/image_0001.jpg"; x0, y0, x1, y1 in pixels of
             the picture, int. A box may reach past its picture; one that has no height is left out

    Raises DatasetError where a file is damaged, or GRADCAM_DATA names no folder.
    """
    places = [place / "caltech101_boxes" for place in (datasets.user_folder(), datasets.data_cache()) if place]
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        return None
    tables = []
    for folder, name in BOXES.items():
        file = place / f"{name}.csv"
        with _read_by_hand(file):
            table = pd.read_csv(file, names=["file", "x0", "y0", "x1", "y1", "class"], dtype={"file": str})
            if table["file"].isna().any():
                raise ValueError("a row of it names no picture")
            corners = table[["x0", "y0", "x1", "y1"]].astype(np.int64)
        if not len(table) or (corners["x0"] > corners["x1"]).any() or (corners["y0"] > corners["y1"]).any():
            raise DatasetError(f"{file} holds no boxes, or one whose first corner is not above and left of its second.")
        tables.append(corners.set_index(folder + "/" + table["file"]))
    return pd.concat(tables).rename_axis("picture").query("x0 < x1 and y0 < y1")


def disputes(counts: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """What people said of each picture, in the order of the pictures.

    counts   (N, K) integers, how often people gave each label
    labels   (N,) the labels of the data set
    returns  a row a picture: its index, its label, the label most people gave, the share of each, the entropy of the
             answers in bits, and how many answers there were
    """
    p = counts / counts.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(p > 0, -p * np.log2(p), 0).sum(axis=1)
    n, majority = np.arange(len(p)), p.argmax(axis=1)
    # Two labels may be equally frequent; then the data set's own is not outvoted.
    majority = np.where(p[n, labels] == p[n, majority], labels, majority)
    return pd.DataFrame(
        {
            "picture": n,
            "label": labels,
            "majority": majority,
            "label_share": p[n, labels],
            "majority_share": p[n, majority],
            "entropy": entropy,
            "answers": counts.sum(axis=1),
        }
    )


# --- what is in a data set ---


@dataclass(frozen=True)
class Description:
    """What `describe` found. `print` shows it as text.

    source    the name or the folder
    pictures  a row a picture that could be read: name, part (train, …, or empty), label, width, height, format, mode,
              bytes, stored_grey (its file has one channel), looks_grey (red, green and blue are equal in every pixel)
    classes   a row a class: pictures, and how many of them are in each part where there are parts
    problems  a row a finding: kind, files (a list of names), what
    """

    source: str
    pictures: pd.DataFrame
    classes: pd.DataFrame
    problems: pd.DataFrame

    @property
    def balance(self) -> dict[str, float]:
        """Pictures a class: the fewest, median, mean, most, and the ratio of the most to the fewest."""
        n = self.classes["pictures"]
        if n.empty:
            return dict.fromkeys(("min", "median", "mean", "max", "ratio"), np.nan)
        ratio = n.max() / n.min() if n.min() else np.inf
        return {"min": n.min(), "median": n.median(), "mean": n.mean(), "max": n.max(), "ratio": ratio}

    @property
    def sizes(self) -> pd.DataFrame:
        """Quantiles of width and height in pixels, as displayed, and of the aspect ratio, width / height."""
        x = self.pictures[["width", "height"]].astype(float)
        x["aspect ratio"] = x["width"] / x["height"]
        table = x.quantile([0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).T
        return table.set_axis(["min", "5 %", "25 %", "median", "75 %", "95 %", "max"], axis=1)

    @property
    def formats(self) -> pd.DataFrame:
        """Pictures and bytes for each format of file and mode of pixels."""
        groups = self.pictures.groupby(["format", "mode"])["bytes"]
        return groups.agg(pictures="count", bytes="sum").reset_index()

    def as_dict(self) -> dict[str, Any]:
        """What `print` shows, and every problem, as dictionaries and lists."""
        return {
            "source": self.source,
            "pictures": len(self.pictures),
            "bytes": int(self.pictures["bytes"].sum()),
            "balance": self.balance,
            "classes": self.classes.to_dict("index"),
            "sizes": self.sizes.to_dict("index") if len(self.pictures) else {},
            "formats": self.formats.to_dict("records"),
            "problems": self.problems.to_dict("records"),
        }

    def __str__(self) -> str:
        n = len(self.pictures)
        classes = f" in {len(self.classes):,} classes" if len(self.classes) else ""
        lines = [f"{self.source}: {n:,} pictures{classes}, {_bytes(self.pictures['bytes'].sum())}"]
        if n:
            if classes:
                b = self.balance
                spread = f"min {b['min']:,}, median {b['median']:,g}, mean {b['mean']:,.1f}, max {b['max']:,}"
                ratio = f"; the largest is {b['ratio']:.1f} times the smallest" if b["min"] else ""
                lines.append(f"a class       {spread}{ratio}")
            if len(self.classes.columns) > 1:
                parts = self.classes.iloc[:, 1:].sum().items()
                lines.append("parts         " + ", ".join(f"{part} {n:,}" for part, n in parts))
            for name, row in self.sizes.iterrows():
                digits = 2 if name == "aspect ratio" else 0
                lines.append(f"{name:13} " + ", ".join(f"{key} {value:.{digits}f}" for key, value in row.items()))
            stored, looks = self.pictures["stored_grey"].mean(), self.pictures["looks_grey"].mean()
            lines.append(f"grey          {stored:.1%} stored with one channel, {looks:.1%} without any colour")
            kinds = (f"{row.format} {row.mode} {row.pictures:,}" for row in self.formats.itertuples())
            lines.append("files         " + ", ".join(kinds))
        lines.append(f"problems      {len(self.problems):,}")
        for kind, group in self.problems.groupby("kind", sort=False):
            lines.append(f"  {kind}: {len(group):,}")
            found: Any  # its attributes are the table's columns
            for found in group.head(3).itertuples():
                files = ", ".join(found.files[:3]) + f" and {len(found.files) - 3:,} more" * (len(found.files) > 3)
                lines.append(f"    {files}: {found.what}" if files else f"    {found.what}")
            if len(group) > 3:
                lines.append(f"    and {len(group) - 3:,} more")
        return "\n".join(lines)


def describe(source: str | os.PathLike[str]) -> Description:
    """Look at every picture of a data set, and report what is in it and what is wrong with it.

    source  the name of a data set of `load_dataset`; or the path of any folder of pictures, where each sub-folder is a
            class and holds its pictures at any depth. Folders named train, validation, test or alike may lie above the
            classes. Without sub-folders there are no classes. (A folder with the name of a data set: "./cifar10".)

    Reported as problems are:

    empty file       a file without any bytes
    damaged          a picture that is cut short or broken
    too large        a picture of more pixels than `load_image` reads, by its header; none is decoded
    not a picture    any other file, whatever its name; pipes and devices, which are not opened
    unreadable       a file or folder that may not be read
    wrong extension  a picture named for another format than its own
    link             a link that leads nowhere, or to a folder; it is not followed
    hidden           a file or folder whose name begins with a dot; it is not read
    no class         pictures beside the class folders, so without a label
    empty class      a class without a picture, in all or in one of the parts
    one picture      a class of one picture, which cannot be split
    duplicate        pictures with the same pixels; "duplicate, two labels" where they are of different classes, and
                     "leak" where they are in different parts, such as train and test
    near-duplicate   pictures of which each is nearly the same as another of them (see `near_duplicates`); likewise

    Files are read by `load_image`, several threads at a time. Of each picture less than a kilobyte is kept. A JPEG
    file may be damaged in a way that no decoder notices: such a picture counts as good.

    Raises DatasetError where there is no such folder, or no file in it.
    """
    if isinstance(source, str) and source in DATASETS:
        splits = load_dataset(source)
        if isinstance(splits.train, ArrayDataset):
            return _describe_arrays(source, splits)
        assert isinstance(splits.train, FolderSplit)
        whole: Any = splits.train.dataset  # torchvision's; its folder may hold more than its classes
        folder = Path(whole.root) / DATASETS[source].archive.removesuffix(".tar")
        return _describe_folder(source, folder, classes=whole.categories)
    folder = Path(source)
    if folder.is_file():
        raise DatasetError(f"{str(folder)!r} is a file; name the folder that holds the pictures.")
    if not folder.is_dir():
        raise DatasetError(
            f"There is no folder {str(folder)!r}, and no data set of that name; those are {', '.join(DATASETS)}."
        )
    return _describe_folder(str(folder), folder)


class Place(NamedTuple):
    """Where a picture stands in its data set."""

    name: str
    part: str
    label: str


Digest = bytes  # inside of Facts, `bytes` is another thing


class Facts(NamedTuple):
    """What is kept of a picture that could be read."""

    width: int
    height: int
    format: str
    mode: str
    bytes: int
    stored_grey: bool
    looks_grey: bool
    digest: Digest  # of its pixels
    prints: Fingerprints


class Problem(NamedTuple):
    kind: str
    files: list[str]
    what: str


def _facts(pixels: np.ndarray, format: str, mode: str, size: int) -> Facts:
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    looks_grey = bool((pixels == pixels[..., :1]).all())
    stored_grey = mode in GREY_MODES or mode.startswith("I;16")
    height, width = pixels.shape[:2]
    return Facts(width, height, format, mode, size, stored_grey, looks_grey, digest.digest(), fingerprints([pixels]))


def _describe_arrays(source: str, splits: Splits) -> Description:
    places, pictures = [], []
    for part in ("train", "validation", "test"):
        data = getattr(splits, part)
        places += [Place(f"{part}[{k}]", part, data.classes[y]) for k, y in enumerate(data.targets)]
        pictures.append(data.data)
    size = pictures[0][0].nbytes
    every = (_facts(image, "array", "RGB", size) for data in pictures for image in data)
    results = list(tqdm(every, total=len(places), desc=f"describing {source}", unit=" pictures"))
    return _description(source, places, results, splits.classes, [])


def _describe_folder(source: str, folder: Path, classes: Sequence[str] | None = None) -> Description:
    files, folders, problems = _walk(folder)
    if not (files or problems):
        raise DatasetError(f"The folder {str(folder)!r} holds no file.")
    top = {path[0].lower() for path in folders}
    depth = 1 if top and top <= PARTS else 0  # the level of the classes
    if classes is None:
        # A class is a folder at that level; what lies deeper belongs to it.
        classes = sorted({printable(path[depth]) for path in folders if len(path) == depth + 1})
    else:
        files = [path for path in files if path[0] in classes]
    places = []
    for path in files:
        part = path[0] if depth and len(path) > 1 else ""
        places.append(
            Place(printable("/".join(path)), printable(part), printable(path[depth]) if len(path) > depth + 1 else "")
        )
    results = _in_threads(lambda path: _read_file(folder.joinpath(*path)), files, f"describing {source}")
    return _description(printable(source), places, results, classes, problems)


def _walk(folder: Path) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]], list[Problem]]:
    """The files and the folders below a folder, each as the parts of its path, and what was left out.

    No link to a folder is followed: it might lead back up, for ever.
    """
    files, folders, problems = [], [], []

    def left_out(kind: str, path: Sequence[str], what: str) -> None:
        problems.append(Problem(kind, [printable("/".join(path))], what))

    def failed(error: OSError) -> None:
        path = Path(error.filename).relative_to(folder).parts
        left_out("unreadable", path or (".",), f"the folder cannot be listed ({error.strerror})")

    for place, below, names in os.walk(folder, onerror=failed):
        here = Path(place).relative_to(folder).parts
        for name in sorted(below):
            if name.startswith("."):
                left_out(
                    "hidden", (*here, name), "a hidden folder; torchvision's ImageFolder would take it for a class"
                )
            elif os.path.islink(os.path.join(place, name)):
                left_out("link", (*here, name), "a link to a folder, which is not followed")
            else:
                folders.append((*here, name))
                continue
            below.remove(name)
        below.sort()
        for name in sorted(names):
            if name.startswith("."):
                left_out("hidden", (*here, name), "a hidden file")
            else:
                files.append((*here, name))
    return files, folders, problems


def _in_threads(work: Callable[[Item], Found], items: list[Item], title: str) -> list[Found]:
    pool = ThreadPoolExecutor(THREADS)
    try:
        return list(tqdm(pool.map(work, items), total=len(items), desc=title, unit=" files"))
    finally:
        pool.shutdown(cancel_futures=True)  # what is not begun when somebody interrupts


def _read_file(path: Path) -> Facts | tuple[str, str]:
    """The facts of a picture; or the kind of problem, and what it is."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            return "not a picture", "a pipe, socket or device, which is not opened"
        if not about.st_size:
            return "empty file", "there are no bytes in it"
        with open(path, "rb") as file:
            head = file.read(1024)
            format = next((f for f, (first, _) in FORMATS.items() if re.match(first, head, re.DOTALL)), None)
            mode, pixels = _header(file, format) if format else ("", 0)
        if pixels > MAX_PIXELS:
            return "too large", f"{pixels:,} pixels, above the {MAX_PIXELS:,} that are read"
        facts = _facts(load_image(path), format or "", mode, about.st_size)  # of no format is no picture: ImageError
    except ImageError as error:
        return "damaged" if format else "not a picture", _without_name(error, path)
    except FileNotFoundError:
        return "link", "a link to a file that is not there"
    except OSError as error:
        return "unreadable", error.strerror or type(error).__name__
    return facts


def _without_name(error: ImageError, path: Path) -> str:
    """What load_image says is wrong, without the name of the file before it and the advice behind it."""
    return str(error).removeprefix(f"{os.fspath(path)!r}: ").rsplit("; ", 1)[0]


def _header(file: IO[bytes], format: str) -> tuple[str, int]:
    """The mode and the number of pixels as the header gives them; nothing where it is damaged: load_image says how."""
    file.seek(0)
    with strict_pillow():
        try:
            image = FORMATS[format][1](file)
            return image.mode, image.width * image.height
        except Exception:  # a damaged file makes Pillow raise nearly anything
            return "", 0


def _description(
    source: str,
    places: list[Place],
    results: list[Facts] | list[Facts | tuple[str, str]],
    classes: Sequence[str],
    left_out: list[Problem],
) -> Description:
    """Tables from what was found in each place."""
    problems = list(left_out)
    good = []
    for place, result in zip(places, results, strict=True):
        if isinstance(result, Facts):
            good.append((place, result))
            if result.format in EXTENSIONS and Path(place.name).suffix.lower() not in EXTENSIONS[result.format]:
                problems.append(
                    Problem("wrong extension", [place.name], f"a {result.format} picture by its first bytes")
                )
        else:
            problems.append(Problem(result[0], [place.name], result[1]))
    pictures = pd.DataFrame([(*p, *f[:-2]) for p, f in good], columns=[*Place._fields, *Facts._fields[:-2]])
    labelled = pictures[pictures["label"] != ""]
    table = pd.DataFrame({"pictures": labelled["label"].value_counts()}, index=pd.Index(classes, name="class"))
    for part in labelled["part"].unique():
        if part:
            table[part] = labelled.loc[labelled["part"] == part, "label"].value_counts()
    table = table.fillna(0).astype(int)

    loose = [p.name for p, _ in good if not p.label]
    if loose and len(classes):
        problems.append(Problem("no class", loose, "beside the class folders, so without a label"))
    for key, n in table.iterrows():
        name = str(key)
        if n["pictures"] == 0:
            problems.append(Problem("empty class", [name], "no picture of it could be read"))
        elif missing := list(n.index[n == 0]):
            problems.append(Problem("empty class", [name], f"no picture of it in {', '.join(missing)}"))
        if n["pictures"] == 1:
            problems.append(Problem("one picture", [name], "a class of one picture cannot be split"))
    problems += _duplicates(good)
    found = pd.DataFrame(problems, columns=Problem._fields).sort_values("kind", kind="stable", ignore_index=True)
    return Description(source, pictures, table, found)


def _duplicates(good: list[tuple[Place, Facts]]) -> Iterator[Problem]:
    """Groups of pictures with the same pixels, then groups of those that are nearly the same."""
    same: dict[Digest, list[Place]] = {}
    prints = []
    for place, facts in good:
        if facts.digest not in same:
            prints.append(facts.prints)  # of one of each: a thousand copies are not half a million pairs
        same.setdefault(facts.digest, []).append(place)
    copies = list(same.values())
    for places in copies:
        if len(places) > 1:
            yield _group("duplicate", places, "the same pixels")
    if prints:
        every = Fingerprints(*(np.concatenate(column) for column in zip(*prints, strict=True)))
        for group in _connected(_matches(every, None, MAX_DISTANCE, MIN_SIMILARITY)):
            yield _group("near-duplicate", [place for k in group for place in copies[k]], "nearly the same")


def _group(kind: str, places: list[Place], what: str) -> Problem:
    labels, parts = ({getattr(p, field) for p in places} - {""} for field in ("label", "part"))
    if len(labels) > 1:
        kind, what = f"{kind}, two labels", f"{what} as {', '.join(sorted(labels))}"
    if len(parts) > 1:
        kind, what = f"{kind}, leak", f"{what} in {', '.join(sorted(parts))}"
    return Problem(kind, [p.name for p in places], what)


def _connected(blocks: Iterable[np.ndarray]) -> list[list[int]]:
    """Groups in which each is paired with another one, from blocks of pairs."""
    leader: dict[int, int] = {}

    def find(k: int) -> int:
        while leader.setdefault(k, k) != k:
            leader[k] = k = leader[leader[k]]
        return k

    for block in blocks:
        for i, j in block[:2].T.astype(int).tolist():
            i, j = find(i), find(j)
            leader[max(i, j)] = min(i, j)
    groups: dict[int, list[int]] = {}
    for k in sorted(leader):
        groups.setdefault(find(k), []).append(k)
    return list(groups.values())


def _bytes(n: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            break
        n, unit = n / 1000, {"bytes": "kB", "kB": "MB", "MB": "GB"}[unit]
    return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
