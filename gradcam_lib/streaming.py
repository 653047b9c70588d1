"""Maps of a whole data set, streamed to Parquet files: constant memory, any number of processes, safe to kill.

Part s holds the images s * shard_size, s * shard_size + 1, ..., and of W processes number r makes the parts
r, r + W, r + 2 W, ... No batch reaches over the end of a part. So the files come out the same however many processes
made them and however often they were killed. A part is there whole or not at all: what is there is done.
"""

import hashlib
import inspect
import json
import math
import multiprocessing
import os
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from .cam import Explanation, explain, unwrapped
from .faults import writing
from .stored import read_json, reading
from .targets import Targets, check_names

__all__ = ["Streamed", "explain_dataset", "read_maps"]

SCHEMA = pa.schema(
    {
        "index": pa.int64(),  # of the image in the data set
        "t": pa.int32(),  # which of the T classes that were asked for
        "label": pa.int64(),
        "target": pa.int64(),
        "target_name": pa.string(),
        "score": pa.float32(),
        "predicted": pa.int64(),
        "probability": pa.float32(),  # of the predicted class
        "largest": pa.float32(),  # value of the map
        "map": pa.list_(pa.float32()),  # row by row
        "map_height": pa.int32(),
        "map_width": pa.int32(),
        "image_height": pa.int32(),
        "image_width": pa.int32(),
        "error": pa.string(),
    }
)
BATCH_SIZE = 32  # where a data set is given and no loader
ENDS = ("first_image", "last_image")  # of the data set, by which it is known again
HOPELESS = 100  # images in a row that cannot be read, in whole batches: then the fault lies elsewhere

Item = tuple[int, Any, str | None]  # of a data set: its index, and what it is or why it cannot be read
Batch = tuple[list[int], dict[int, str], Any]  # indices, why some cannot be read, and the others together
Parts = dict[int, tuple[dict[str, Any], dict[str, Any]]]  # by their numbers, what made them, and what is said of each


@dataclass(frozen=True)
class Streamed:
    """What `explain_dataset` returns, about this process's share of the data set.

    folder  where the files are
    images  how many images it has
    before  how many of these an earlier run had done
    failed  the index of each image that could not be read, and why; those of earlier runs too
    """

    folder: Path
    images: int
    before: int
    failed: dict[int, str] = field(default_factory=dict)


def explain_dataset(
    model: nn.Module,
    loader: DataLoader[Any] | Dataset[Any],
    out: Path | str,
    *,
    targets: Targets = None,
    shard_size: int = 1024,
    progress: bool = True,
    **options: Any,
) -> Streamed:
    """Maps and scores of every image of a data set, in files that pandas, pyarrow and `read_maps` read.

    model       as for `explain`; the images are moved to the device of its parameters
    loader      a DataLoader, or the data set itself (then batches of 32, read by two processes). Its items are an
                image (C, H, W), a tuple (image, label, ...), or a dict with `image` and `label`, also named
                `pixel_values` and `labels`. Of a DataLoader the data set, batch_size, num_workers and collate_fn
                count, not the order: every image comes once. The images are read while others are computed, by the
                loader's processes, or by a thread where it has none.
    out         the folder for the files. A run that was killed goes on from the parts that are there.
    targets     as for `explain`: None for the predicted classes, one class for all images, or a function; "label" for
                each image's own label; or a list or tensor (N,) or (N, T) for the N images of the data set
    shard_size  images in a file: so much work a kill may cost, and so many images' maps are held in memory
    progress    show a bar
    options     the other arguments of `explain`, such as `method` and `layer`. Noise (`smooth`) is drawn from a seed
                that is the batch's first index.

    The files are `part-000000.parquet` and so on, with a row for each image and class, in the order of the data set:

        index, t                    the image, and which of its T classes (0 where there is one)
        label                       of the data set; null where it gives no whole number
        target, target_name, score  the class explained, its name in `model.classes`, its logit
        predicted, probability      the class with the largest logit, and its softmax
        largest                     the largest value of the map
        map                         h * w float32, row by row, as in `Explanation.maps`
        map_height, map_width, image_height, image_width
        error                       why the image could not be read; all but index and t is then null

    What made them stands in the metadata of each file, as JSON: under `gradcam_lib` the arguments, a digest of the
    weights, and one of the first and the last image; under `gradcam_lib.part` the layer that was used.

    Under `torchrun` each process takes its share, known from RANK and WORLD_SIZE; together they make the same files.

    An image that cannot be read does not end the run; a warning counts them. To have them tried again, delete their
    parts. Where whole batches fail, a hundred images in a row, RuntimeError is raised and their part not written.

    Raises ValueError where `out` holds another run (of functions, only the names are compared), and for a loader,
    targets or options that do not fit; OSError where a file cannot be written, the parts before it being whole.
    """
    model = unwrapped(model)
    loader = _loader(loader, on_gpu=_device(model).type == "cuda")
    data: Any = loader.dataset
    N, out, step = len(data), Path(out), loader.batch_size or BATCH_SIZE
    given: Any = targets
    if hasattr(given, "tolist"):  # a tensor or an array
        targets = given.tolist()
    if isinstance(targets, list | tuple) and len(targets) != N:
        raise ValueError(f"There are {len(targets)} targets for the {N} images of the data set. Give one for each.")
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, not {shard_size}.")
    if options.get("differentiable"):
        raise ValueError("Maps in files have no graph: leave out differentiable=.")
    run = _describe(model, N, shard_size, targets, options)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    there = _parts(out)
    rank, world = _place()
    share = {s: range(N)[s * shard_size : (s + 1) * shard_size] for s in range(rank, -(-N // shard_size), world)}
    missing = {s: images for s, images in share.items() if s not in there}
    total, to_do = (sum(map(len, some.values())) for some in (share, missing))
    failed = {i: why for s in share if s in there for i, why in there[s][1]["failed"].items()}
    in_a_row = not_finite = 0
    # The first and the last image come by the same way as all others: a data set that opens its file at the first
    # reading must do so in the reading processes, not in this one.
    ends = [range(i, i + 1) for i in ((0, N - 1) if N else ())]
    batches = (images[k : k + step] for images in missing.values() for k in range(0, len(images), step))
    desc = "explaining" if world == 1 else f"explaining, process 1 of {world}"
    hidden = not progress or rank > 0
    with (
        closing(_read(loader, chain(ends, batches))) as reader,
        tqdm(total=total, initial=total - to_do, unit=" images", desc=desc, disable=hidden) as bar,
    ):
        for end, (_, errors, batch) in zip(ENDS, reader, strict=False):
            run[end] = None if errors else _digest(_images_and_labels(batch))
        _compare(run, there, out)
        for s, images in missing.items():
            rows: list[pa.Table] = []
            part: dict[str, Any] = {"layer": None, "failed": {}}
            for indices, errors, batch in islice(reader, -(-len(images) // step)):
                good = [i for i in indices if i not in errors]
                if good:
                    result, labels = _explain(model, batch, good, targets, step, options)
                    rows.append(_rows(good, labels, result, getattr(model, "classes", None)))
                    part["layer"] = result.layer
                    not_finite += int((~np.isfinite(rows[-1]["largest"].to_numpy())).sum())
                if errors:
                    rows.append(_table({"index": list(errors), "t": [0] * len(errors), "error": list(errors.values())}))
                    part["failed"] |= errors
                in_a_row = 0 if good else in_a_row + len(errors)
                if in_a_row >= HOPELESS:
                    i, why = errors.popitem()
                    raise RuntimeError(
                        f"{in_a_row} images in a row cannot be read, up to number {i}: {why}. Their part was not "
                        "written; run this again once they can be read."
                    )
                bar.update(len(indices))
            _write(_file(out, s), rows, run, part)
            failed |= part["failed"]
    there = _parts(out)
    _compare(run, there, out)  # again, for two different runs may have begun at the same time
    if len(there) == -(-N // shard_size):
        for litter in out.glob(".part-*.partial"):  # of processes that were killed while they wrote
            litter.unlink(missing_ok=True)
    if not_finite:
        warnings.warn(
            f"{not_finite} maps hold NaN or infinity: look for these in the images, and in the model's weights.",
            stacklevel=2,
        )
    if failed:
        i = min(failed)
        warnings.warn(
            f"{len(failed)} of {total} images could not be read, the first of them number {i}: {failed[i]}. "
            "Their rows have an error and no map.",
            stacklevel=2,
        )
    return Streamed(out, total, total - to_do, failed)


def read_maps(out: Path | str) -> tuple[pd.DataFrame, torch.Tensor]:
    """The table that `explain_dataset` wrote, and its maps as one tensor (rows, h, w) float32, on the CPU.

    The map of an image that could not be read is NaN. Of an unfinished run, the finished parts are read. All maps are
    held in memory; where they are too many, go through `pyarrow.dataset.dataset(out).to_batches()`.

    Raises ValueError where the folder holds no maps, or maps of several sizes.
    """
    if not (parts := _parts(Path(out))):
        raise ValueError(f"{out} holds no maps. explain_dataset writes them.")
    tables = []
    for file in (_file(Path(out), s) for s in sorted(parts)):
        with _reading(file):
            tables.append(_table_in(file))
    table = pa.concat_tables(tables)
    sizes = {(h, w) for h, w in zip(*(table[c].to_pylist() for c in ("map_height", "map_width")), strict=True) if h}
    if len(sizes) > 1:
        raise ValueError(f"The maps in {out} have several sizes: {sorted(sizes)}. Read them with pandas.")
    maps = torch.full((len(table), *next(iter(sizes), (0, 0))), math.nan)
    row = 0
    for chunk in table["map"].chunks:
        there = torch.from_numpy(chunk.is_valid().to_numpy(zero_copy_only=False))
        maps[row : row + len(chunk)][there] = torch.tensor(chunk.flatten().to_numpy()).reshape(-1, *maps.shape[1:])
        row += len(chunk)
    return table.drop_columns(["map"]).to_pandas(), maps


def _place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


# --- reading ---


def _loader(given: DataLoader[Any] | Dataset[Any], on_gpu: bool) -> DataLoader[Any]:
    """The loader whose settings count. Raises ValueError for one that has no order that we may replace by our own."""
    data: Any = given.dataset if isinstance(given, DataLoader) else given
    if isinstance(data, IterableDataset) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise ValueError(
            f"{type(data).__name__} has no index, so a run could not go on after a kill. Give a data set with "
            "__len__ and __getitem__."
        )
    if not isinstance(given, DataLoader):
        method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
        # Other processes than forked ones cannot read a data set that holds a function of a notebook; a thread can.
        return DataLoader(data, BATCH_SIZE, num_workers=2 if method == "fork" else 0, pin_memory=on_gpu)
    if not given.batch_size:
        raise ValueError("This DataLoader has no batch_size. Give it one, or give the data set itself.")
    if type(given.sampler) not in (SequentialSampler, RandomSampler, DistributedSampler):
        raise ValueError(
            f"This DataLoader picks its images by a {type(given.sampler).__name__}, but every image of its data set "
            "is explained. To explain some of them, give torch.utils.data.Subset(dataset, indices)."
        )
    return given


class _Marked(Dataset[Item]):
    """A data set whose items say whether they could be read: (index, item or None, error or None)."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitem__(self, i: int) -> Item:
        try:
            return i, self.dataset[i], None
        except Exception as error:
            # On one line, and without the addresses of objects, which are others in each run.
            text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))
            return i, None, f"{type(error).__name__}: {text}"[:300]


@dataclass
class _Collate:
    """A batch of marked items: their indices, {index: error} of those that failed, and the others as one batch."""

    collate_fn: Callable[[list[Any]], Any]

    def __call__(self, items: list[Item]) -> Batch:
        good = [item for _, item, error in items if error is None]
        errors = {i: error for i, _, error in items if error is not None}
        return [i for i, _, _ in items], errors, self.collate_fn(good) if good else None


def _read(loader: DataLoader[Any], batches: Iterable[range]) -> Generator[Batch]:
    """Each of the batches of indices, read: by a thread, so that the next one is at hand when this one is computed."""
    taken = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
    ours = DataLoader(
        _Marked(loader.dataset),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of indices will do
        collate_fn=_Collate(loader.collate_fn),
        generator=torch.Generator().manual_seed(0),  # otherwise it would draw from the global one
        **{name: getattr(loader, name) for name in taken},
    )
    each = iter(ours)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, each, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, each, None)
            yield batch


def _images_and_labels(batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The images, and their labels (N,) int64 where there are such."""
    if isinstance(batch, dict):
        images = batch.get("image", batch.get("pixel_values"))
        labels = batch.get("label", batch.get("labels"))
    elif isinstance(batch, list | tuple):
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    else:
        images, labels = batch, None
    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"The data set gives {type(images).__name__} where an image (C, H, W) is needed as a tensor. Its items "
            "are an image, (image, label, ...), or a dict with image and label."
        )
    is_label = isinstance(labels, torch.Tensor) and labels.shape == images.shape[:1] and not labels.is_floating_point()
    return images, labels.long() if labels is not None and is_label else None


# --- computing ---


def _explain(
    model: nn.Module, batch: Any, indices: list[int], targets: Any, step: int, options: dict[str, Any]
) -> tuple[Explanation, torch.Tensor | None]:
    images, labels = _images_and_labels(batch)
    if len(images) != len(indices):
        raise ValueError(f"The loader's collate_fn made {len(images)} images of {len(indices)}. It must keep each one.")
    if targets == "label":
        if labels is None:
            raise ValueError('targets="label" needs a data set whose items are (image, label), the label an int.')
        targets = labels.tolist()
    elif isinstance(targets, list | tuple):
        targets = [targets[i] for i in indices]
    # A compiled model is compiled for one size of batch: the last image fills a smaller one up.
    surplus = step - len(images) if options.get("accelerate") else 0
    if surplus > 0:
        images = torch.cat([images, images[-1:].expand(surplus, *images.shape[1:])])
        if isinstance(targets, list):
            targets = targets + targets[-1:] * surplus
    device = _device(model)
    images = images.to(device, non_blocking=True)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        generators = [torch.default_generator]
        if device.type == "cuda":
            generators.append(torch.cuda.default_generators[device.index])
        for generator in generators:
            generator.manual_seed(indices[0])
        return explain(model, images, targets=targets, **options), labels


def _rows(
    indices: list[int], labels: torch.Tensor | None, result: Explanation, names: Sequence[str] | None
) -> pa.Table:
    """A row for each of the first n images and each of its T classes."""
    n = len(indices)
    maps = result.maps[:n].detach().float().cpu()
    T = maps.shape[1] if maps.ndim == 4 else 1
    maps = maps.reshape(n * T, *maps.shape[-2:])
    h, w = maps.shape[1:]
    flat = pa.array(maps.flatten().numpy())
    columns: dict[str, Any] = {
        "index": np.repeat(indices, T),
        "t": np.tile(np.arange(T), n),
        "score": result.scores[:n].detach().float().flatten().cpu().numpy(),
        "largest": maps.amax((1, 2)).numpy(),
        "map": pa.ListArray.from_arrays(pa.array(np.arange(n * T + 1) * (h * w), pa.int32()), flat),
    }
    sizes = {"map_height": h, "map_width": w, "image_height": result.size[0], "image_width": result.size[1]}
    columns |= {name: np.full(n * T, size) for name, size in sizes.items()}
    if labels is not None:
        columns["label"] = labels.repeat_interleave(T).numpy()
    if result.targets is not None:
        columns["target"] = result.targets[:n].flatten().cpu().numpy()
        if names is not None and isinstance(result.logits, torch.Tensor):
            check_names(names, result.logits.shape[1])
            columns["target_name"] = [str(names[c]) for c in columns["target"]]
    if isinstance(result.logits, torch.Tensor) and result.logits.ndim == 2:
        p = result.logits[:n].float().softmax(1).cpu()
        predicted = result.logits[:n].argmax(1, keepdim=True).cpu()
        columns["predicted"] = predicted[:, 0].repeat_interleave(T).numpy()
        columns["probability"] = p.gather(1, predicted)[:, 0].repeat_interleave(T).numpy()
    return _table(columns)


def _table(columns: dict[str, Any]) -> pa.Table:
    rows = len(columns["index"])
    arrays = [pa.array(columns[c.name], c.type) if c.name in columns else pa.nulls(rows, c.type) for c in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


# --- files ---


def _write(file: Path, rows: list[pa.Table], run: dict[str, Any], part: dict[str, Any]) -> None:
    table = pa.concat_tables(rows)
    if part["failed"]:
        table = table.sort_by([("index", "ascending"), ("t", "ascending")])
    table = table.replace_schema_metadata({"gradcam_lib": json.dumps(run), "gradcam_lib.part": json.dumps(part)})
    # A name of its own, for another process may by mistake be making the same part; hidden, so that no reader of the
    # folder meets it.
    scratch = file.with_name(f".{file.name}.{uuid4().hex}.partial")
    with writing(file):
        try:
            with open(scratch, "wb") as opened:
                # Numbers that hardly repeat: a dictionary of them would cost ten times the time, and a third more room.
                pq.write_table(table, opened, compression="zstd", use_dictionary=["target_name", "error"])
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(scratch, file)
        except FileNotFoundError:  # that other one has finished, and cleared our scratch file away
            if not file.exists():
                raise
        finally:
            scratch.unlink(missing_ok=True)


def _file(out: Path, s: int) -> Path:
    return out / f"part-{s:06d}.parquet"


def _reading(file: Path) -> AbstractContextManager[None]:
    return reading(lambda why: ValueError(f"{file} is damaged ({why}). Delete it, and explain its images again."))


def _table_in(file: Path) -> pa.Table:
    """The rows of a part. Raises ValueError where a map has not the size that is said of it."""
    with pq.ParquetFile(file) as opened:
        table = opened.read()
    table.validate(full=True)
    h, w = (table[name].to_numpy() for name in ("map_height", "map_width"))  # NaN where there is no map
    if (
        (h <= 0).any()
        or (w <= 0).any()
        or not np.array_equal(h * w, pc.list_value_length(table["map"]), equal_nan=True)
    ):
        raise ValueError(f"{file.name} has a map that is not of the size that it says")
    return table


def _parts(out: Path) -> Parts:
    """The number of each part that is there whole, with its metadata. Raises ValueError for files of something else."""
    found = {}
    for file in sorted(out.glob("*.parquet")):
        name = re.fullmatch(r"part-(\d+)\.parquet", file.name)
        try:
            schema = pq.read_schema(file)
        except Exception:  # of a damaged file: anything
            schema = None
        if name and schema is None:
            continue  # as by a power failure: it is made again
        if not name or not schema.equals(SCHEMA) or b"gradcam_lib" not in (schema.metadata or {}):
            raise ValueError(f"{file} is not from explain_dataset. Choose a folder of its own for the maps.")
        with _reading(file):
            run, part = (read_json(schema.metadata[key]) for key in (b"gradcam_lib", b"gradcam_lib.part"))
            part["failed"] = {int(i): str(why) for i, why in part["failed"].items()}
        found[int(name[1])] = run, part
    return found


def _describe(model: nn.Module, N: int, shard_size: int, targets: Any, options: dict[str, Any]) -> dict[str, Any]:
    """All that decides the maps, as plain data. What decides the speed alone may differ when a run goes on."""
    bound = inspect.signature(explain).bind(model, None, targets=targets, **options)
    bound.apply_defaults()
    arguments = {k: v for k, v in bound.arguments.items() if k not in ("model", "images", "batch_size")}
    return {"weights": weights_digest(model), "count": N, "shard_size": shard_size} | {
        k: _plain(v, model) for k, v in arguments.items()
    }


def weights_digest(model: nn.Module) -> str:
    """By which a network is known again: 16 hexadecimal digits."""
    return _digest(list(model.state_dict().values()))


def _plain(value: Any, model: nn.Module) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, nn.Module):
        return next((name for name, module in model.named_modules() if module is value), type(value).__name__)
    if isinstance(value, list | tuple):
        each = [_plain(v, model) for v in value]
        return each if len(each) <= 10 else f"{len(each)} values, {_digest(each)}"
    return value.tolist() if hasattr(value, "tolist") else getattr(value, "__qualname__", type(value).__name__)


def _digest(value: Any) -> str:
    """The first 16 digits of the SHA-256 of tensors and plain values, nested."""
    sha = hashlib.sha256()

    def add(x: Any) -> None:
        if isinstance(x, torch.Tensor):
            sha.update(f"{tuple(x.shape)} {x.dtype}".encode())
            sha.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(x, list | tuple | dict):
            for each in x.items() if isinstance(x, dict) else x:
                add(each)
        else:
            sha.update(f"{x!r}\n".encode())

    add(value)
    return sha.hexdigest()[:16]


def _compare(run: dict[str, Any], there: Parts, out: Path) -> None:
    for other, _ in there.values():
        # An image that could not be read then, or cannot now, is no sign of another data set.
        known = [k for k in run if not (k in ENDS and None in (run[k], other.get(k)))]
        differ = [f"{k} {other.get(k)!r} and not {run[k]!r}" for k in known if other.get(k) != run[k]]
        if differ:
            raise ValueError(f"{out} holds another run, with {', '.join(differ)}. Choose another folder, or delete it.")
