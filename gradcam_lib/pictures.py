"""Overlays of pictures in files, of one or of a folder of ten thousand: constant memory, safe to kill.

A file is there whole or not at all, and says inside what it shows: so what is there is done, and what shows something
else is not taken for it.
"""

import glob
import json
import os
import textwrap
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

from .architectures import Network
from .batches import normalised
from .cam import Explanation, explain
from .images import ImageError, load_image, overlay, strict_pillow
from .layers import list_layers
from .records import replacing
from .stored import read_json
from .streaming import weights_digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GRIDS", "Explained", "explain_pictures", "find_pictures", "grid_figure"]

Item = TypeVar("Item")
Made = TypeVar("Made")
ToDo = tuple[Path | bytes, Path, Path | None]  # a picture, the file of its overlay, and that of its map's numbers

GRIDS = ("methods", "classes", "layers")  # what a grid compares
QUICK = ("grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam", "eigen-cam", "eigengrad-cam")
PANELS = 7  # of a grid, where nothing is said of how many
AHEAD = 4  # pictures that are read while another is explained
LABEL = "gradcam_lib"  # the text in a PNG file that says what it shows


@dataclass(frozen=True)
class Explained:
    """What became of one picture.

    image    its file, or "-" for bytes
    state    "written", "existing" (from an earlier run) or "skipped"
    overlay  the file that shows it, and map the one with its numbers; None where there is none
    why      it was skipped
    found    target, class, score, probability and layer, and whether the map is empty; where it was written
    """

    image: str
    state: str
    overlay: Path | None = None
    map: Path | None = None
    why: str = ""
    found: dict[str, Any] | None = None

    def __str__(self) -> str:
        if self.state == "skipped":
            return f"{self.image}: skipped, {self.why}"
        said = f"{self.found['class']} ({self.found['probability']:.1%})" if self.found else "compared"
        return f"{self.image}: {said}{', an empty map' * bool(self.found and self.found['empty'])} → {self.overlay}"


# --- which files ---


def find_pictures(names: Iterable[str | os.PathLike[str]], out: Path) -> dict[Path, str]:
    """The files that are meant, in order, and the name that each gets in `out`.

    names  of files, of folders (all that is in them at any depth, but hidden files), and patterns such as "*/x*.jpg",
           "**" standing for folders of any depth
    out    where what is made of them will be; what is in there already is left out

    A name is the path below the folder, or below the part of the pattern that is fixed. Raises ValueError where nothing
    is found, where two files would get one name, and where `out` is the folder of the pictures itself.
    """
    found: dict[Path, str] = {}
    taken: dict[str, str] = {}
    for name in (os.fspath(name) for name in names):
        if os.path.isdir(name):
            base, files = name, _below(name, out)
        elif glob.has_magic(name) and not os.path.lexists(name):
            fixed = name[: next(k for k, c in enumerate(name) if c in "*?[")]
            base, files = os.path.dirname(fixed), sorted(filter(os.path.isfile, glob.iglob(name, recursive=True)))
            files = [file for file in files if not _inside(file, out)]
        else:
            base, files = os.path.dirname(name), [name]
        if not files:
            raise ValueError(f"There is no file in {name!r}." if base == name else f"No file has a name like {name!r}.")
        for file in map(os.path.normpath, files):
            below = os.path.relpath(file, base or ".")
            if taken.setdefault(below, file) != file:
                raise ValueError(
                    f"{taken[below]} and {file} would both become {out / below}.png: name the folder that holds both."
                )
            found[Path(file)] = below
    return found


def _below(folder: str, out: Path) -> list[str]:
    if _inside(folder, out):
        raise ValueError(f"{folder} holds the pictures: name another folder for what is made of them.")
    files = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(n for n in below if n[0] != "." and not _inside(os.path.join(place, n), out))
        files += [os.path.join(place, n) for n in sorted(names) if n[0] != "."]
    return files


def _inside(path: str, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


# --- one after the other ---


def explain_pictures(
    model: Network,
    pictures: Mapping[Path, str] | Mapping[bytes, str],
    out: Path,
    *,
    raw: bool = False,
    grid: str | None = None,
    overwrite: bool = False,
    batch_size: int = 1,
    **options: Any,
) -> Iterator[Explained]:
    """Explain pictures and write what is seen, each when it is its turn.

    model       with `prepare`, as `load_model` gives it; it is run on the device where it is
    pictures    files, or the bytes of one, each with its name in `out`, as `find_pictures` gives them
    out         a folder; a picture x.jpg becomes x.jpg.png in it. Or a file named .png, for a single picture
    raw         also write the map itself, at the layer's resolution and not normalised: float32 (h, w), x.jpg.npy
    grid        one of GRIDS: write a figure that compares several of them, instead of one overlay
    overwrite   make again what is there; else it is left as it is
    batch_size  pictures at once
    options     `method`, `layer`, `targets` of `explain`; with a grid, a list of those that it compares

    Raises ValueError where a file in `out` shows something else, or is one of the pictures; and what `explain` raises.
    A picture that cannot be read is skipped.
    """
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise ValueError(f"Overlays are written as PNG: name {out.with_suffix('.png')}, or a folder.")
    settings = {"model": getattr(model, "name", type(model).__name__), "weights": weights_digest(model), "grid": grid}
    settings |= options
    inputs = {os.path.realpath(file) for file in pictures if isinstance(file, Path)}
    to_do: list[ToDo] = []
    for source, name in pictures.items():
        target = out if out.suffix.lower() == ".png" and not out.is_dir() else out / f"{name}.png"
        numbers = target.with_suffix(".npy") if raw else None
        if os.path.realpath(target) in inputs:
            raise ValueError(f"{target} is one of the pictures: choose another place for what is made of them.")
        to_do.append((source, target, numbers))
    if len(to_do) > 1 and len({target for _, target, _ in to_do}) == 1:
        raise ValueError(f"{out} is one file for {len(to_do)} pictures: name a folder.")

    def read(item: ToDo) -> tuple[ToDo, np.ndarray | Explained]:
        source, target, numbers = item
        if not overwrite and target.exists():
            if (there := _label(target)).get("settings") != settings:
                raise ValueError(f"{target} exists, made with other settings: choose another place, or overwrite it.")
            if numbers is None or numbers.exists():
                return item, Explained(_named(source), "existing", target, numbers, found=there["found"])
        try:
            return item, model.prepare.crop(load_image(source))
        except (ImageError, OSError) as error:
            return item, Explained(_named(source), "skipped", why=str(error))

    waiting: list[tuple[ToDo, np.ndarray]] = []
    for item, crop in _ahead(read, to_do):
        if isinstance(crop, Explained):
            yield crop
            continue
        waiting.append((item, crop))
        if len(waiting) == batch_size:
            yield from _explained(model, waiting, settings, options)
            waiting = []
    if waiting:
        yield from _explained(model, waiting, settings, options)


def _ahead(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What `work` makes of each item, in order, a few of them made by threads before they are asked for."""
    pool = ThreadPoolExecutor(AHEAD)
    coming: deque[Future[Made]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(work, item))
            if len(coming) > AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _explained(
    model: Network, waiting: list[tuple[ToDo, np.ndarray]], settings: dict[str, Any], options: dict[str, Any]
) -> Iterator[Explained]:
    crops = np.stack([crop for _, crop in waiting])
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = normalised(torch.from_numpy(crops).permute(0, 3, 1, 2).to(device), model.prepare)
    if settings["grid"]:
        for n, ((source, target, _), crop) in enumerate(waiting):
            figure = grid_figure(model, x[n : n + 1], crop, settings["grid"], **options)
            said = {LABEL: json.dumps({"settings": settings, "found": None})}
            with replacing(target) as scratch:
                figure.savefig(scratch, format="png", metadata=said)
            yield Explained(_named(source), "written", target)
        return
    result: Any = explain(model, x, **options)  # of a classifier: with logits and targets
    heats = _heatmaps(result)
    probabilities = result.logits.float().softmax(1).gather(1, result.targets[:, None])[:, 0]
    for n, ((source, target, numbers), crop) in enumerate(waiting):
        c = int(result.targets[n])
        found = {"target": c, "class": class_name(model, c), "layer": result.layer}
        found |= {"score": result.scores[n].item(), "probability": probabilities[n].item()}
        found["empty"] = not bool((result.maps[n] > 0).any())  # or NaN
        if numbers:  # first, for the overlay says that all is done
            with replacing(numbers) as scratch, open(scratch, "wb") as file:
                np.save(file, result.maps[n].float().cpu().numpy())
        label = PngInfo()
        label.add_itxt(LABEL, json.dumps({"settings": settings, "found": found}))
        with replacing(target) as scratch:
            Image.fromarray(overlay(crop, heats[n])).save(scratch, "PNG", pnginfo=label)
        yield Explained(_named(source), "written", target, numbers, found=found)


def _heatmaps(result: Explanation) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of maps that are empty; it is said of each picture
        return result.heatmaps().cpu()


def _named(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else "-"


def _label(target: Path) -> dict[str, Any]:
    """What a file says of itself; nothing where it is not one of ours."""
    try:
        with strict_pillow(), Image.open(target) as image:
            said = read_json(image.info[LABEL])
            found = said["found"]
            if found is not None:
                str(Explained("", "existing", found=found))  # what is said of it
            return said
    except Exception:  # of no picture, or a damaged one: anything
        return {}


def class_name(model: nn.Module, c: int) -> str:
    names = getattr(model, "classes", None)
    return str(names[c]) if names is not None else f"class {c}"


# --- several at once ---


def grid_figure(
    model: nn.Module,
    x: torch.Tensor,
    picture: np.ndarray,
    compare: str,
    *,
    method: str | list[str] = "grad-cam",
    layer: str | int | list[str | int] | None = None,
    targets: str | int | list[str | int] | None = None,
) -> "Figure":
    """The figure of a picture beside its maps by several methods, for several classes, or at several layers.

    x        (1, 3, H, W), the picture as the network takes it
    picture  (H, W, 3) uint8, the picture as the network sees it
    compare  one of GRIDS
    method, layer, targets  as for `explain`, but a list for what is compared; where this is not one, the methods that
             take one backward pass, the classes with the largest logits, or the last layer of each size
    """
    from .plots import image_grid  # here, for matplotlib takes seconds to import, and single maps do without

    options: dict[str, Any] = {"method": method, "layer": layer, "targets": targets}
    varied = {"methods": "method", "classes": "targets", "layers": "layer"}[compare]
    chosen = options.pop(varied)
    if not isinstance(chosen, list):
        chosen = _chosen(model, x, compare)
    each: list[Any] = [explain(model, x, **options, **{varied: one}) for one in chosen]  # with logits and targets
    explained = "" if compare == "classes" else f", {class_name(model, int(each[0].targets))} explained"
    panels, labels = [picture], ["the picture" + explained]
    for one in each:
        panels.append(overlay(picture, _heatmaps(one)[0]))
        name = class_name(model, int(one.targets))
        label = {"methods": one.method, "layers": f"{one.layer}, {' × '.join(map(str, one.maps.shape[1:]))}"}
        label["classes"] = f"{name}, {one.logits.float().softmax(1)[0, int(one.targets)]:.1%}"
        labels.append(label[compare])
    labels = ["\n".join(textwrap.wrap(label, 28)[:2]) for label in labels]
    return image_grid(panels, labels, columns=min(4, len(panels)), size=1.8)


def _chosen(model: nn.Module, x: torch.Tensor, compare: str) -> list[Any]:
    if compare == "methods":
        return list(QUICK)
    if compare == "classes":
        result: Any = explain(model, x, method="eigen-cam")  # of a classifier: with logits
        logits = result.logits[0]
        return logits.topk(min(PANELS, len(logits))).indices.tolist()
    last = {layer.shape[1:]: layer.name for layer in list_layers(model, x)}  # a later one takes its place
    return list(last.values())[-PANELS:]
