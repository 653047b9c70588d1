"""A network and its maps on trial: `audit` runs the tests of this library, and writes one page about what it found.

Every figure is held against a bar; `TESTS` says which, and why. Intervals are 95 % bootstrap intervals over the images.
A test that cannot be made says so. Nothing here is a proof: what is flagged is worth a look.
"""

import datetime
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from scipy.stats import binomtest, norm, poisson
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset
from tqdm import tqdm

from .architectures import Preparation
from .audit_page import page, verdict_table
from .background import frame
from .batches import at_once, normalised
from .cam import divided_by_largest, explain, left_as_it_was, unwrapped
from .datasets import ArrayDataset
from .evaluation import Interval, bootstrap, calibration_error
from .faithfulness import centre_map, deletion, energy_inside, insertion, road
from .layers import output_of, size_of
from .methods import Method
from .quality import fingerprints, near_duplicates
from .records import replacing
from .sanity import Explainer, cascade, explainer, rank_correlation, views
from .stored import printable

__all__ = ["Audit", "audit"]

FEWEST = 10  # images from which anything is concluded, all together or of a class
MOST, LEAST = 64, 16  # images of the costly tests: of up to 64 pixels a side, and of large ones
REDRAWN = 3  # networks with weights drawn anew: a single one may look where the trained one looks by chance
BORDER = 0.25  # of the picture's area is its border
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the pixels that ROAD removes; the paper's nine cost twice as much
SHOWN = 18  # pictures in the report
SMALL = 0.05  # a calibration error that misleads nobody
SURE = 0.5  # the probability above which a network can be sure of a class
NONE = math.nan
Layers = str | int | nn.Module | Sequence[str | int | nn.Module] | None  # as `explain` takes them

KINDS = NOT_FINITE, MISLABELLED, BACKGROUND, DUPLICATE, EMPTY = range(5)  # of suspicion, the gravest first


class Test(NamedTuple):
    """What a test measures, the bar that it is held against with its reason, and what each verdict means."""

    measure: str
    bar: str
    passes: str
    warns: str = ""
    fails: str = ""


NEEDED = Test(
    "what the map scores more than a random map as coarse, or than the middle of the picture where that is better",
    "the one knows nothing, the other only that objects are in the middle",
    "The network needs what the map shows more than the middle of the picture, or anything else.",
    "It needs what the map shows, but not surely more than the middle of the picture: a map adds little to knowing "
    "that objects are in the middle.",
    "It does not surely need what the map shows more than what a random map shows. Try other methods and layers. "
    "Evidence that is all over the picture, such as a background, gives this too.",
)
TESTS = {
    "finite outputs": Test(
        "share of the images with finite logits",
        "none may be lost",
        "No image makes the network overflow.",
        fails="NaN or infinity comes out for some images, which are left out of all other tests. Look at their pixels.",
    ),
    "varied predictions": Test(
        "share of the most frequent prediction",
        "the same for every image",
        "The network tells images apart.",
        fails="Every image is called {top}. Are the images prepared as in training, and did it train?",
    ),
    "accuracy": Test(
        "share of right predictions",
        "the share of the most frequent label, which is right as often if always said",
        "The network has learnt something about these images.",
        fails="Not better than chance. Are the labels in the order of the classes, and the images prepared as in "
        "training? Maps of such a network explain nothing.",
    ),
    "calibration": Test(
        "expected calibration error",
        f"what chance gives a calibrated network in 95 of 100 draws, but at least {SMALL}, which misleads nobody",
        "Its probabilities can be taken at their word.",
        "It is too {mood} of itself: {confidence:.0%} sure on average, {accuracy:.0%} right. Fit a temperature, by "
        "evaluation.fit_temperature, on other images.",
    ),
    "maps not empty": Test(
        "share of the maps that are not zero everywhere",
        "what is left stands for all; below 0.5 it fails",
        "Nearly every prediction has a map.",
        "The layer holds no evidence for some predictions. Look at these images, or at another layer.",
        "Most maps are zero: choose another layer or method, and conclude nothing from those that are left.",
    ),
    "maps depend on the weights": Test(
        "rank correlation of maps before and after all weights are drawn anew",
        "halfway from a map that is unlike the first, 0, to an edge detector, which knows no weights, 1",
        "What was learnt decides the maps.",
        "Part of what the maps show is there without any training. Compare with other methods.",
        "The maps stay when all that was learnt is lost, as those of an edge detector do: they show the picture and "
        "not the network. Use another method.",
    ),
    "ROAD": NEEDED,
    "deletion": NEEDED,
    "insertion": NEEDED,
    "stable maps": Test(
        "how often a view of an image (mirrored, noisy, moved by a sixteenth of the side) has a map more like its own "
        "than another image has",
        "all but one in ten; a map that has nothing to do with its image has 0.5",
        "What changes nothing for a person changes little in the map.",
        "Too often the map of a view is no more like the first than the map of another image: the maps are all alike, "
        "or change with trifles. Average several views, or look at a finer layer.",
        "The map of a view is no more like the first than the map of another image. Do not trust a single map.",
    ),
    "maps on the object": Test(
        "share of the map on the object, less the object's share of the area",
        "what a map gets that is the same everywhere",
        "The maps point at the objects.{classes}",
        "The maps do not surely point at the objects more than beside them.{classes}",
        "The maps point beside the objects: background cheats to look at.{classes}",
    ),
    "needs the object": Test(
        "probability lost without the object, less that lost without the background",
        "object and background are worth the same",
        "It needs the object more than what is around it.{classes}",
        "The background is worth as much to it as the object, as far as these images tell.{classes}",
        "It needs the background more than the object. Train with more varied or exchanged backgrounds.{classes}",
    ),
    "border": Test(
        "classes whose maps lie in the border, and whose predictions need it, more than those of other classes",
        "none stands out, by two z tests, each corrected for the number of classes",
        "No class stands out. Where all classes cheat alike none does: only masks of the objects would tell.",
        "Background cheats to look at, no proof: {classes}. Look for a frame, a watermark or a scene that goes with "
        "them.",
    ),
    "labels": Test(
        "images that the network surely puts into another class than their label does",
        "the mistakes that its own probabilities admit, as many as chance gives in 95 of 100 draws",
        "No more than its own mistakes explain. Still look at them.",
        "More than the mistakes that it admits: labels are wrong, or it is too sure of itself. Look at each of them.",
    ),
    "near-duplicates": Test(
        "pairs of images that are nearly the same",
        "none; and of two labels for one picture, one is wrong",
        "None among the images looked at; describe() compares all of a data set.",
        "Some images come twice, and count twice in every figure. describe() looks through all of a data set.",
        "Some images come twice with two labels, one of which is wrong. describe() looks through all of a data set.",
    ),
}


@dataclass(frozen=True)
class Audit:
    """What `audit` returns. In a notebook it shows itself as the table of verdicts.

    verdicts  a row a test, named in the index: verdict ("passes", "warns", "fails", "not tested"), measure, the value
              with the ends of its interval (NaN where there is none), the bar and why_this_bar, and meaning: what it
              means, and what to do
    images    a row an image, the suspicious first: index in the data set, name, label, prediction, confidence,
              label_probability; of its map: empty, inside (its share on the object) or border (its share there), and
              of the images of the costly tests road and stability; and why it is suspicious, or an empty text
    scores    of the maps and of what they were compared with, on the same images: test, of, value, low, high
    about     what was audited, when, by which versions, and the call
    pictures  {index: (picture, heat map)}, (H, W, 3) uint8 and (h, w) in [0, 1] or None, of the most suspicious
    """

    verdicts: pd.DataFrame
    images: pd.DataFrame
    scores: pd.DataFrame
    about: dict[str, Any]
    pictures: dict[int, tuple[np.ndarray, np.ndarray | None]]

    def save(self, file: Path | str) -> Path:
        """Write the report: one HTML file that needs no other, no network and no script. It is there whole or not."""
        with replacing(file := Path(file)) as scratch:
            scratch.write_text(page(self), encoding="utf-8")
        return file

    def _repr_html_(self) -> str:
        return verdict_table(self.verdicts)


def audit(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    images: int = 256,
    method: str | Method = "grad-cam",
    layer: Layers = None,
    out: Path | str | None = None,
    seed: int = 0,
) -> Audit:
    """Test a classifier and its maps: what it can, whether the maps can be believed, and which images look wrong.

    model    any network with logits (N, classes), left as it was. Where `model.prepare` is a `Preparation`, as
             `load_model` gives it, it prepares the pictures; where `model.classes` names classes, they are used.
    dataset  with a length and an index, of images that the network was not trained with: it may know wrong labels by
             heart. Its items are an image, (image, label, ...), or a dict with image and label. An image is a picture,
             by PIL or as uint8 (array (H, W, 3), tensor (3, H, W)): `model.prepare` prepares it, and without one it is
             divided by 255. Or it is a float tensor (C, H, W), already prepared for the model; but an `ArrayDataset`
             counts as pictures where the model has a `prepare`. Where the data set has `masks`, (N, H, W) bool, true
             on the object, maps are held against these; otherwise classes are compared by the border of the pictures,
             which finds a frame or watermark of some, and no shortcut that all classes take.
    images   how many are drawn at random; all are held in memory. The costly tests take 64 of them, and as few as 16
             of images larger than 64 pixels a side. On one processor core that takes ten seconds for a small network
             and pictures of 32 pixels, and some three minutes for pictures of 224.
    method, layer  as for `explain`
    out      a file for the report
    seed     of all that is drawn: the same seed gives the same report

    Raises ValueError for a data set, a model or arguments that do not fit. The bars, and why they are there, stand in
    `TESTS`. Label errors are found by confident learning in its simplest form (Northcutt et al. 2021).
    """
    model = unwrapped(model)
    if not isinstance(images, Integral) or images < 1:
        raise ValueError(f"images is how many to draw, at least 1, not {images!r}.")
    with (
        torch.random.fork_rng(devices=()),
        left_as_it_was(model),
        tqdm(total=18, desc="auditing", unit=" steps") as bar,
    ):
        torch.default_generator.manual_seed(seed)  # a transform of the data set may draw, and a method
        trial = _Trial(model, _drawn(model, dataset, int(images), seed), method, layer, seed, bar.update)
        trial.run()
        bar.update(bar.total - bar.n)  # the steps of tests that could not be made
    name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
    how = repr(name) if isinstance(method, str) else name
    about = {
        "model": printable(str(getattr(model, "name", type(model).__name__))),
        "data set": f"{type(dataset).__name__} of {len(dataset):,} images, {trial.N:,} of them looked at",
        "maps": f"{name}, {trial.where}",
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in ("gradcam-lib", "torch", "torchvision", "numpy")),
        "call": f"gc.audit(model, dataset, images={images}, method={how}, layer={trial.layer!r}, seed={seed})",
    }
    report = trial.report(about)
    if out is not None:
        report.save(out)
    return report


# --- the images that are looked at ---


@dataclass(frozen=True)
class _Drawn:
    """Some images of a data set, in the order in which they were drawn.

    places    (N,) their indices in it, and their names
    x         (N, C, H, W) as the network gets them, on its device
    pictures  N arrays (H, W, 3) uint8, as it sees them
    labels    (N,) int64, or None
    masks     (N, H, W) bool, on the device, or None
    classes   the names that the data set has for its labels, or None
    """

    places: np.ndarray
    names: list[str]
    x: torch.Tensor
    pictures: list[np.ndarray]
    labels: np.ndarray | None
    masks: torch.Tensor | None
    classes: list[str] | None


def _drawn(model: nn.Module, dataset: Dataset[Any], number: int, seed: int) -> _Drawn:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"A data set with a length and an index is needed, not {type(dataset).__name__}. Of the parts that "
            "load_dataset gives, pass one, such as .test; of a DataLoader, its .dataset."
        )
    if not len(dataset):
        raise ValueError("The data set is empty: there is no image to look at.")
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:number]
    data: Any = dataset
    within, classes = chosen, getattr(dataset, "classes", None)
    while isinstance(data, Subset):
        data, within = data.dataset, np.asarray(data.indices)[within]
        classes = getattr(data, "classes", None) if classes is None else classes
    given = getattr(model, "prepare", None)
    prepare = given if isinstance(given, Preparation) else None
    as_pixels = prepare is not None and isinstance(data, ArrayDataset)
    items = []
    for place, i in zip(chosen.tolist(), within.tolist(), strict=True):
        try:
            item = (np.array(data.data[i]), data.targets[i]) if as_pixels else data[i]
        except Exception as error:
            raise ValueError(f"Image {place} of the data set cannot be read: {' '.join(str(error).split())}") from error
        image, label = _image_and_label(item)
        # Arrays are taken whole, as by `predict`; other pictures are resized and cropped.
        items.append((*_as_seen(image, None if as_pixels else prepare), label))
    xs, pictures, labels = zip(*items, strict=True)
    if len({x.shape for x in xs}) > 1:
        raise ValueError(
            f"The images have different sizes, {tuple(xs[0].shape)} and others. Give the model a .prepare, as "
            "load_model does, or the data set a transform that crops."
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if as_pixels and prepare is not None:
        x = normalised(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), prepare)
    else:
        x = torch.stack(xs)
    files = getattr(data, "samples", None)  # torchvision's folders know them
    masks = getattr(data, "masks", None)
    masks = None if masks is None else torch.from_numpy(np.array(masks[within], bool)).to(device)
    return _Drawn(
        places=chosen,
        names=[
            printable(Path(str(files[i][0])).name) if files else f"image {k}"
            for k, i in zip(chosen, within, strict=True)
        ],
        x=x.to(device),
        pictures=list(_as_pictures(x, prepare) if any(p is None for p in pictures) else pictures),
        labels=None if None in labels else np.array(labels, np.int64),
        masks=masks if masks is not None and masks.shape[1:] == x.shape[2:] else None,
        classes=None if classes is None else [str(c) for c in classes],
    )


def _image_and_label(item: Any) -> tuple[Any, int | None]:
    """The image, and its label as an int, or None where there is no whole number."""
    if isinstance(item, dict):
        image, label = item.get("image", item.get("pixel_values")), item.get("label", item.get("labels"))
    else:
        image, label = (*item, None)[:2] if isinstance(item, tuple | list) else (item, None)
    if isinstance(label, torch.Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    return image, int(label) if isinstance(label, Integral) else None


def _as_seen(image: Any, prepare: Preparation | None) -> tuple[torch.Tensor, np.ndarray | None]:
    """An image as the network gets it, and as it sees it; the second is None where it comes prepared."""
    if isinstance(image, torch.Tensor) and image.is_floating_point() and image.ndim == 3:
        return image, None
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    elif isinstance(image, torch.Tensor) and image.ndim == 3 and len(image) in (1, 3):
        image = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        what = f"{tuple(image.shape)} {image.dtype}" if hasattr(image, "shape") else type(image).__name__
        raise ValueError(f"An image is a PIL picture, uint8 pixels or a float tensor (C, H, W), not {what}.")
    if prepare is None:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255, image
    return prepare(image)[0], prepare.crop(image)


def _as_pictures(x: torch.Tensor, prepare: Preparation | None) -> np.ndarray:
    """Prepared images as pictures: without their normalisation where it is known, else stretched to the range."""
    x = x.detach().float().cpu().nan_to_num(0, 0, 0)
    if x.shape[1] not in (1, 3):
        x = x.mean(1, keepdim=True)
    elif prepare is not None:
        x = x * torch.tensor(prepare.std)[:, None, None] + torch.tensor(prepare.mean)[:, None, None]
    if prepare is None and (x.min() < 0 or x.max() > 1):
        x = (x - x.min()) / (x.max() - x.min())
    return (255 * x.clamp(0, 1).expand(-1, 3, -1, -1)).round().byte().permute(0, 2, 3, 1).numpy()


# --- the tests ---


class _Trial:
    """The tests, one after the other, and what they leave: verdicts, columns of the table of images, suspicions."""

    def __init__(
        self,
        model: nn.Module,
        drawn: _Drawn,
        method: str | Method,
        layer: Layers,
        seed: int,
        step: Callable[[], object],
    ):
        self.model, self.all, self.method, self.layer, self.seed, self.step = model, drawn, method, layer, seed, step
        self.N = len(drawn.x)
        self.rows: dict[str, tuple[object, ...]] = {}
        self.scores: list[tuple[object, ...]] = []
        self.where = "none made"
        # Of each image: (kind, -strength, text).
        self.reasons: list[list[tuple[int, float, str]]] = [[] for _ in drawn.places]
        self.columns = {"empty": np.full(self.N, None)}
        self.columns |= {name: np.full(self.N, NONE) for name in ("inside", "border", "road", "stability")}
        self.maps: Any = None  # (N, h, w), once they are made

    def say(self, test: str, verdict: str, value: float | Interval, bar: float, **words: object) -> None:
        value = value if isinstance(value, Interval) else Interval(value, NONE, NONE)
        meaning = getattr(TESTS[test], verdict).format(**words)
        self.rows[test] = (verdict, TESTS[test].measure, *map(float, value), float(bar), TESTS[test].bar, meaning)

    def untested(self, why: str, *tests: str) -> None:
        for test in tests or [test for test in TESTS if test not in self.rows]:
            row = "not tested", TESTS[test].measure, NONE, NONE, NONE, NONE, TESTS[test].bar, f"Not tested: {why}."
            self.rows[test] = row

    def suspect(self, n: int, kind: int, strength: float, text: str) -> None:
        self.reasons[n].append((kind, -float(strength), text))

    def interval(self, values: npt.ArrayLike, of: tuple[str, str] | None = None, sign: int = 1) -> Interval:
        """The mean of some values with its interval; shown among the scores where it is one `of` (test, what)."""
        mean = bootstrap(np.mean, np.asarray(values, np.float64), seed=self.seed)
        if of:
            ends = sorted((sign * mean.low, sign * mean.high))
            self.scores.append((*of, sign * mean.value, *ends))
        return mean

    def run(self) -> None:
        logits = self.logits(self.all.x)
        finite = torch.isfinite(logits).all(1).numpy()
        self.finite = np.flatnonzero(finite)
        self.P = torch.softmax(logits.double(), 1).numpy()
        self.P[~finite] = NONE
        self.guess = np.where(finite, logits.argmax(1).numpy(), -1)
        self.name_classes(logits.shape[1])
        self.say("finite outputs", "passes" if finite.all() else "fails", finite.mean(), 1)
        for n in np.flatnonzero(~finite):
            self.suspect(int(n), NOT_FINITE, 1, "its logits hold NaN or infinity")
        self.duplicates()
        same = len(self.finite) > 1 and (self.P[self.finite] == self.P[self.finite[0]]).all()
        if len(self.finite) and not same:
            self.explain()
        if len(self.finite) < FEWEST:
            return self.untested(f"of {len(self.finite)} images nothing can be concluded, at least {FEWEST} are needed")
        self.predictions()
        if same:
            return self.untested("every image gets the same probabilities, so there is nothing to explain")
        if len(self.shown) < FEWEST:
            return self.untested(f"{len(self.shown)} maps are not zero everywhere, at least {FEWEST} are needed")
        H, W = self.all.x.shape[2:]
        # The costly tests, on a few images.
        self.few = self.shown[: min(MOST, max(LEAST, MOST * 64**2 // (H * W)))]
        x, targets = self.all.x[self.few], torch.from_numpy(self.guess[self.few])
        method = explainer(self.method, layer=self.layer)
        self.weights(method, x, targets)
        self.needed(x, targets)
        self.stability(method, x, targets)
        self.background(self.all.x[self.shown], self.maps[self.shown], self.guess[self.shown])

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C) float32, on the CPU."""
        with torch.no_grad():
            parts = [output_of(self.model, part) for part in x.split(at_once(x.shape[-1], x.device))]
        self.step()
        if not isinstance(parts[0], torch.Tensor) or parts[0].ndim != 2 or parts[0].shape[1] < 2:
            what = tuple(parts[0].shape) if isinstance(parts[0], torch.Tensor) else type(parts[0]).__name__
            raise ValueError(f"A classifier is audited, which returns logits (N, classes) of two or more, not {what}.")
        return torch.cat(parts).float().cpu()

    def name_classes(self, C: int) -> None:
        """The model's names where it has them, else the data set's; and the labels as numbers of these classes."""
        y, own, theirs = self.all.labels, getattr(self.model, "classes", None), self.all.classes
        own = list(map(str, own)) if own is not None and len(own) == C else None
        if own is None and theirs is not None and len(theirs) == C:
            own = theirs
        self.unlabelled = "the data set gives no whole numbers as labels"
        if y is not None and own and theirs and own != theirs:
            # By their names: the order may be another, or the data set has a part of the classes.
            if set(theirs) <= set(own) and 0 <= y.min() and y.max() < len(theirs):
                y = np.array([own.index(c) for c in theirs])[y]
            else:
                y, self.unlabelled = None, "the classes of the data set are not those of the model"
        if y is not None and not (0 <= y.min() and y.max() < C):
            raise ValueError(f"Labels from {y.min()} to {y.max()} do not fit a model of {C} classes, 0 to {C - 1}.")
        self.labels = y
        self.classes = [printable(c) for c in own] if own else [f"class {c}" for c in range(C)]

    def duplicates(self) -> None:
        pairs, y = near_duplicates(fingerprints(self.all.pictures)), self.labels
        two = np.zeros(len(pairs), bool) if y is None else y[pairs["first"]] != y[pairs["second"]]
        row: Any  # its attributes are the table's columns
        for row, differ in zip(pairs.itertuples(), two, strict=True):
            for n, m in ((row.first, row.second), (row.second, row.first)):
                text = f"nearly the same as {self.all.names[m]}"
                text += f", which is labelled {self.classes[y[m]]}" if y is not None and differ else ""
                self.suspect(n, MISLABELLED if differ else DUPLICATE, row.similarity, text)
        self.say("near-duplicates", "fails" if two.any() else "warns" if len(pairs) else "passes", len(pairs), 0)
        self.step()

    def explain(self) -> None:
        x, targets = self.all.x[self.finite], torch.from_numpy(self.guess[self.finite])
        parts = []
        size = at_once(x.shape[-1], x.device)
        for part, t in zip(x.split(size), targets.split(size), strict=True):
            result = explain(self.model, part, targets=t, method=self.method, layer=self.layer)
            parts.append(result.maps.nan_to_num(0, 0, 0))
            self.where = result.layer
            if self.where != "the whole network":
                names = self.where.split(" + ")  # for a network drawn anew has layers of its own
                self.layer = names[0] if len(names) == 1 else names
        maps = torch.cat(parts)
        self.maps = torch.zeros(self.N, *maps.shape[1:], device=maps.device)
        self.maps[self.finite] = maps
        empty = self.maps.flatten(1).amax(1).cpu().numpy() == 0
        self.columns["empty"][self.finite] = empty[self.finite]
        self.shown = np.flatnonzero(~empty)
        for n in np.intersect1d(self.finite, np.flatnonzero(empty)):
            self.suspect(int(n), EMPTY, 0, f"its map is zero everywhere: no evidence for {self.classes[self.guess[n]]}")
        share = len(self.shown) / len(self.finite)
        self.say("maps not empty", "passes" if share >= 0.95 else "warns" if share >= 0.5 else "fails", share, 0.95)
        self.step()

    def predictions(self) -> None:
        P, guess = self.P[self.finite], self.guess[self.finite]
        counts = np.bincount(guess)
        verdict = "passes" if counts.max() < len(guess) else "fails"
        self.say("varied predictions", verdict, counts.max() / len(guess), 1, top=self.classes[counts.argmax()])
        if self.labels is None:
            return self.untested(self.unlabelled, "accuracy", "calibration", "labels")
        y, confidence = self.labels[self.finite], P.max(1)
        right, always = guess == y, np.bincount(y).max() / len(y)
        if always == 1:
            self.untested("all images have one label, which is right if always said", "varied predictions", "accuracy")
        else:
            wilson = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
            verdict = "passes" if wilson.low > always else "fails"
            self.say("accuracy", verdict, Interval(right.mean(), wilson.low, wilson.high), always)
        error = bootstrap(calibration_error, confidence, right, resamples=200, seed=self.seed)
        rng = np.random.default_rng(self.seed)
        by_chance = [calibration_error(confidence, rng.random(len(right)) < confidence) for _ in range(200)]
        bar = max(SMALL, np.quantile(by_chance, 0.95))
        words = {"mood": "sure" if confidence.mean() > right.mean() else "unsure", "confidence": confidence.mean()}
        self.say("calibration", "passes" if error.value <= bar else "warns", error, bar, accuracy=right.mean(), **words)
        self.label_errors(P, y)

    def label_errors(self, P: np.ndarray, y: np.ndarray) -> None:
        """Confident learning: sure of a class is who gives it more than the images get that are labelled with it."""
        own = P[np.arange(len(y)), y]
        threshold = np.full(P.shape[1], own.mean())
        for c in np.unique(y):
            if (y == c).sum() >= FEWEST // 2:
                threshold[c] = own[y == c].mean()
        sure = np.where((P >= threshold) & (P > SURE), P, 0)
        other, p = sure.argmax(1), sure.max(1)
        found = np.flatnonzero((p > 0) & (other != y))
        for k in found:
            text = f"{self.classes[other[k]]} gets {p[k]:.0%} of probability, "
            text += f"and its label, {self.classes[y[k]]}, {own[k]:.1%}"
            self.suspect(self.finite[k], MISLABELLED, p[k] - own[k], text)
        bar = poisson.ppf(0.95, (1 - p)[p > 0].sum()) if p.any() else 0
        self.say("labels", "passes" if len(found) <= bar else "warns", len(found), bar)

    def weights(self, method: Explainer, x: torch.Tensor, targets: torch.Tensor) -> None:
        """The sanity check of Adebayo et al. (2018), with all layers drawn anew."""
        before, alike = self.maps[self.few], []
        for k in range(REDRAWN):
            network = _redrawn(self.model, x, self.seed + k)
            after = method(network, x, targets).nan_to_num(0, 0, 0)
            there = after.flatten(1).amax(1) > 0  # a map of zeros is like no other, and says nothing
            alike += rank_correlation(before[there], after[there]).tolist() if there.any() else []
            self.step()
        if len(alike) < FEWEST:
            return self.untested("nearly all maps of the redrawn network are zero", "maps depend on the weights")
        value = self.interval(alike, ("alike", "its weights drawn anew"))
        verdict = "passes" if value.high < 0.5 else "fails" if value.low >= 0.5 else "warns"
        self.say("maps depend on the weights", verdict, value, 0.5)

    def needed(self, x: torch.Tensor, targets: torch.Tensor) -> None:
        """The three scores of the maps against those of maps that know nothing, image by image."""
        maps = self.maps[self.few]
        # Noise as fine as the pixels would spoil every picture at once: it is as coarse as the map.
        noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(self.seed)).to(maps)
        rivals = {"the map": maps, "a random map": noise, "the middle": centre_map(x)}
        scores: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "ROAD": lambda M: road(self.model, x, M, targets, shares=SHARES, seed=self.seed)[0],
            "deletion": lambda M: -deletion(self.model, x, M, targets, steps=16, seed=self.seed).area,
            "insertion": lambda M: insertion(self.model, x, M, targets, steps=16, seed=self.seed).area,
        }
        for name, score in scores.items():
            got = {}
            for of, M in rivals.items():
                got[of] = score(M).double().numpy()
                self.interval(got[of], (name, of), sign=-1 if name == "deletion" else 1)
                self.step()
            random, middle = (self.interval(got["the map"] - got[of]) for of in ("a random map", "the middle"))
            verdict = "fails" if random.low <= 0 else "warns" if middle.low <= 0 else "passes"
            self.say(name, verdict, random if verdict == "fails" else min(random, middle), 0)
            if name == "ROAD":
                self.columns["road"][self.few] = got["the map"]

    def stability(self, method: Explainer, x: torch.Tensor, targets: torch.Tensor) -> None:
        first, *others = views(method, self.model, x, targets, shift=max(1, min(x.shape[2:]) // 16))
        view = torch.stack([rank_correlation(other, first) for other in others]).numpy()
        null = torch.stack([rank_correlation(first, first.roll(k, 0)) for k in range(1, 6)]).numpy()
        self.interval(view.mean(0), ("alike", "another view of the image"))
        self.interval(null.mean(0), ("alike", "another image"))
        self.columns["stability"][self.few] = view.mean(0)
        value = self.interval((view[:, None] > null).mean((0, 1)))
        verdict = "passes" if value.low > 0.9 else "fails" if value.high <= 0.5 else "warns"
        self.say("stable maps", verdict, value, 0.9)
        self.step()

    def background(self, x: torch.Tensor, maps: torch.Tensor, guess: np.ndarray) -> None:
        masks, objects = self.all.masks, ("maps on the object", "needs the object")
        if masks is not None and masks[self.shown].any():
            self.untested("the object is known, and all around it is looked at", "border")
            return self.on_objects(x, maps, guess, masks[self.shown])
        self.untested("the data set has no masks of the objects in the size of the images", *objects)
        border = frame(*size_of(x), BORDER).to(x.device)
        share = energy_inside(maps, border.expand(len(x), -1, -1)).double().cpu().numpy()
        self.columns["border"][self.shown] = share
        lost = self.lost(x, guess, border[None])
        classes = [c for c in np.unique(guess) if FEWEST <= (guess == c).sum() <= len(guess) - FEWEST]
        if len(classes) < 2:
            return self.untested(f"fewer than two classes have {FEWEST} images to compare", "border")
        bar = norm.isf(0.05 / len(classes))  # Bonferroni: so many classes, so many chances to stand out
        found = [
            c
            for c in classes
            if min(_z(values[guess == c], values[guess != c]) for values in (share, lost)) > bar
            and share[guess == c].mean() > border.float().mean().item()
        ]
        for k in np.flatnonzero(np.isin(guess, found)):
            text = f"{share[k]:.0%} of its map in the border, and {lost[k]:.0%} of probability lost without it"
            self.suspect(self.shown[k], BACKGROUND, share[k] * lost[k], text)
        names = ", ".join(self.classes[c] for c in found)
        self.say("border", "warns" if found else "passes", len(found), 0, classes=names)

    def on_objects(self, x: torch.Tensor, maps: torch.Tensor, guess: np.ndarray, masks: torch.Tensor) -> None:
        inside = energy_inside(maps, masks).double().cpu().numpy()
        area = masks.double().mean((1, 2)).cpu().numpy()
        need = self.lost(x, guess, masks) - self.lost(x, guess, ~masks)
        self.columns["inside"][self.shown] = inside
        classes = [c for c in np.unique(guess) if (guess == c).sum() >= FEWEST]
        bar = norm.isf(0.05 / max(1, len(classes)))  # Bonferroni
        for test, values, lead in (
            ("maps on the object", inside - area, "Beside the object are the maps of"),
            ("needs the object", need, "The background is worth more to"),
        ):
            against = {c: _z(-values[guess == c]) for c in classes}
            found = [c for c in sorted(classes, key=against.__getitem__, reverse=True) if against[c] > bar]
            names = f" {lead} {', '.join(self.classes[c] for c in found)}." if found else ""
            value = self.interval(values)
            verdict = "passes" if value.low > 0 else "fails" if value.high <= 0 else "warns"
            self.say(test, verdict, value, 0, classes=names)
        for k in np.flatnonzero((inside < area) & (need < -SURE)):
            text = f"{inside[k]:.0%} of its map on the object, which has {area[k]:.0%} of the area; without the "
            text += f"background it loses {-need[k]:.0%} of probability more than without the object"
            self.suspect(self.shown[k], BACKGROUND, -need[k], text)

    def lost(self, x: torch.Tensor, guess: np.ndarray, where: torch.Tensor) -> np.ndarray:
        """The probability of the prediction that is lost when a part (N or 1, H, W) is taken from another image.

        Real pixels: blurred or grey ones would tell the shape of the hole, and a coloured frame survives a blur.
        """
        P = torch.softmax(self.logits(torch.where(where[:, None], x.roll(1, 0), x)).double(), 1).numpy()
        return self.P[self.shown, guess] - P[np.arange(len(guess)), guess]

    def report(self, about: dict[str, Any]) -> Audit:
        columns = ["verdict", "measure", "value", "low", "high", "bar", "why_this_bar", "meaning"]
        verdicts = pd.DataFrame.from_dict({t: self.rows[t] for t in TESTS}, orient="index", columns=columns)
        n, y, known = np.arange(self.N), self.labels, self.guess >= 0
        table = {
            "index": self.all.places,
            "name": self.all.names,
            "label": np.full(self.N, None) if y is None else [self.classes[c] for c in y],
            "prediction": [self.classes[c] if c >= 0 else None for c in self.guess],
            "confidence": np.where(known, self.P[n, self.guess], NONE),
            "label_probability": NONE if y is None else self.P[n, y],
            **self.columns,
            "why": ["; ".join(text for *_, text in sorted(each)) for each in self.reasons],
        }
        gravest = [min(each)[:2] if each else (len(KINDS), 0.0) for each in self.reasons]
        order = sorted(range(self.N), key=lambda k: (*gravest[k], self.all.places[k]))
        first = [[k for k in order if gravest[k][0] == kind] for kind in KINDS]
        # A third of the room for each kind, and what is left for the gravest.
        chosen = [k for kind in first for k in kind[: SHOWN // 3]] + [k for kind in first for k in kind[SHOWN // 3 :]]
        pictures = {}
        for k in chosen[:SHOWN]:
            empty = self.maps is None or not self.maps[k].any()
            heat = None if empty else divided_by_largest(self.maps[k]).cpu().numpy()
            pictures[int(self.all.places[k])] = self.all.pictures[k], heat
        scores = pd.DataFrame(self.scores, columns=["test", "of", *Interval._fields])
        images = pd.DataFrame(table).iloc[order].reset_index(drop=True)
        return Audit(verdicts.rename_axis("test"), images, scores, about, pictures)


def _redrawn(model: nn.Module, x: torch.Tensor, seed: int) -> nn.Module:
    """A copy with all weights drawn anew, and batch norms that have measured what comes of it."""
    network = [model, *(copy for _, copy in cascade(model, seed))][-1]
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if network is not model and norms:
        # With the statistics of other weights, or none, a deep network gives zeros or infinity.
        for m in norms:
            m.reset_running_stats()
            m.momentum = None
            m.train()
        with torch.no_grad():
            network(x)
        network.eval()
    return network


def _z(values: np.ndarray, rest: np.ndarray | None = None) -> float:
    """By how many standard errors the mean is above that of the rest, or above 0."""
    groups = [values] if rest is None else [values, rest]
    gap = values.mean() - (0 if rest is None else rest.mean())
    error = math.sqrt(sum(g.var(ddof=1) / len(g) for g in groups))
    return gap / error if error else math.inf * np.sign(gap) if gap else 0.0
