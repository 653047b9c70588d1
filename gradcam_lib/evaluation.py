"""Predictions in, metrics out: what scikit-learn and SciPy lack for judging a classifier.

Accuracy, cross-entropy, the confusion matrix and the classification report are `sklearn.metrics`'. Here are intervals
for all of them, an order of classes that makes a large confusion matrix legible, calibration, and McNemar's test.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import squareform
from scipy.special import gammaln, log_softmax
from scipy.stats import binomtest

from .datasets import load_dataset
from .records import Record

__all__ = [
    "Interval",
    "McNemar",
    "accuracy_among",
    "bootstrap",
    "calibration_error",
    "confused_pairs",
    "evaluate",
    "fit_temperature",
    "headline",
    "mcnemar",
    "reliability",
    "similarity_order",
]

BINS = 15  # as in Guo et al. 2017
TEMPERATURES = 0.01, 100.0  # the smallest and the largest that are tried


class Interval(NamedTuple):
    """A measured value and the ends of its interval: numbers, or arrays of one shape."""

    value: Any
    low: Any
    high: Any


class McNemar(NamedTuple):
    """What `mcnemar` returns.

    only_first, only_second  how many images one of the two classifiers gets right and the other wrong
    p                        how likely so uneven a split of these is, or a more uneven one, between equal classifiers
    """

    only_first: int
    only_second: int
    p: float


def bootstrap(
    statistic: Callable[..., Any], *arrays: np.ndarray, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """A statistic of test images with its percentile interval (Efron and Tibshirani 1993, chapter 13).

    The images are drawn anew, with replacement, and the statistic is computed again. It covers the choice of the test
    images; not that of the training images, nor the seed of the training.

    statistic  of the arrays: a number, or an array
    arrays     (N, ...) each; of an image that is drawn, every array's row is drawn
    level      the share of resamples inside of the interval

    Raises ValueError for arrays that are empty or differ in length, a level outside of (0, 1), and no resamples.
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    lengths = {len(array) if array.ndim else 0 for array in arrays}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"Arrays with a row for each image, and at least one, are needed; these have {lengths or 0}.")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"A level between 0 and 1 and resamples of at least 1, not {level} and {resamples}.")
    rng, (N,) = np.random.default_rng(seed), lengths
    again = []
    for _ in range(resamples):
        drawn = rng.integers(N, size=N)
        again.append(statistic(*(array[drawn] for array in arrays)))
    low, high = np.quantile(again, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(statistic(*arrays), low, high)


def headline(logits: np.ndarray, labels: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The figures that a classifier is introduced with, each with its 95 % bootstrap interval.

    logits   (N, C), of any floating type
    labels   (N,) integers in [0, C)
    returns  columns value, low, high; rows accuracy, top-5 accuracy, macro F1 (the mean over the classes that are among
             the labels or the predictions), all three in [0, 1], higher is better; cross-entropy in nats and
             calibration error in [0, 1], lower is better

    Raises ValueError as `fit_temperature` does.
    """
    z, y = _checked(logits, labels)
    C, guess, place = z.shape[1], z.argmax(axis=1), _place(z, y)
    log_p = log_softmax(z, axis=1)

    def f1(guess: np.ndarray, y: np.ndarray) -> np.floating:
        found, said, there = (np.bincount(a, minlength=C) for a in (y[guess == y], guess, y))
        known = said + there > 0
        return np.mean(2 * found[known] / (said + there)[known])

    figures: dict[str, tuple[Any, ...]] = {  # of each a statistic, and the arrays that it is of
        "accuracy": (np.mean, guess == y),
        "top-5 accuracy": (np.mean, place < 5),
        "macro F1": (f1, guess, y),
        "cross-entropy": (np.mean, -log_p[np.arange(len(y)), y]),
        "calibration error": (_calibration_error, np.exp(log_p.max(axis=1)), guess == y),
    }
    rows = {name: bootstrap(*figure, resamples=resamples, seed=seed) for name, figure in figures.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=Interval._fields)


def evaluate(record: Record) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What a recorded run does on its test images: the tables of `headline` and of `confused_pairs`.

    Raises ValueError where the record has no predictions, or the data set is another than that of the run, and what
    `load_dataset` raises.
    """
    recipe = record.run.get("recipe")
    if record.test_logits is None or not isinstance(recipe, dict) or not isinstance(recipe.get("dataset"), str):
        raise ValueError(f"The record {record.name!r} holds no predictions of test images: name a run of `train`.")
    data = load_dataset(recipe["dataset"])
    if data.sha256 != record.run.get("dataset_sha256"):
        raise ValueError(f"{data.info.title} here is not the one of the run: its SHA-256 is {data.sha256}.")
    labels, C = data.test.targets, len(data.classes)
    if record.test_logits.shape != (len(labels), C) or record.test_logits.dtype.kind != "f":
        raise ValueError(f"The record {record.name!r} holds no logits of {len(labels)} test images for {C} classes.")
    guess = record.test_logits.argmax(axis=1)
    counts = np.bincount(labels * C + guess, minlength=C * C).reshape(C, C)
    return headline(record.test_logits, labels), confused_pairs(counts, data.classes)


def mcnemar(first_correct: np.ndarray, second_correct: np.ndarray) -> McNemar:
    """McNemar's exact test (1947): do two classifiers differ by more than chance on the same images?

    Images that both get right, or both wrong, say nothing. Of the others, equal classifiers win half each; the p value
    is that of a fair coin, two-sided. It is about these two networks, not about two ways of training (Dietterich 1998).

    first_correct, second_correct  (N,) bool, whether each classifier is right

    Raises ValueError for arrays that are empty, not bool, or of different shapes.
    """
    first, second = np.asarray(first_correct), np.asarray(second_correct)
    if first.dtype != bool or second.dtype != bool or first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(
            "Two bool arrays of one length are needed, right or wrong for each image; these are "
            f"{first.dtype} {first.shape} and {second.dtype} {second.shape}."
        )
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemar(b, c, float(binomtest(b, b + c).pvalue) if b + c else 1.0)


def similarity_order(confusion: np.ndarray) -> np.ndarray:
    """The order of classes that puts those next to each other that are confused with each other.

    The leaves of a hierarchical clustering (average linkage), turned so that neighbours are as similar as possible
    (Bar-Joseph, Gifford and Jaakkola 2001). Two classes are as similar as the sum of the rates at which each is taken
    for the other.

    confusion  (C, C) counts, true classes in rows, predicted ones in columns
    returns    (C,) a permutation: `confusion[order][:, order]`

    Raises ValueError where the matrix is not square, or has negative or no counts.
    """
    rates = _rates(confusion)
    if len(rates) < 3:
        return np.arange(len(rates))
    distance = 2 - rates - rates.T
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def confused_pairs(confusion: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """The pairs of classes that are taken for each other, the worst first.

    confusion  (C, C) counts, true classes in rows, predicted ones in columns
    classes    their C names
    returns    a row a pair with any error: `first` and `second`, in the order of the classes; `first_as_second`, the
               share of the images of the first that are taken for the second, and `second_as_first`; `errors`, how many
               images in both directions. Sorted by the sum of the two shares

    Raises ValueError as `similarity_order` does, and where the names are not C.
    """
    rates, counts = _rates(confusion), np.asarray(confusion)
    if len(classes) != len(rates):
        raise ValueError(f"There are {len(classes)} names for {len(rates)} classes.")
    i, j = np.triu_indices(len(rates), 1)
    errors = counts[i, j] + counts[j, i]
    order = np.argsort(-(rates[i, j] + rates[j, i]), kind="stable")
    order = order[errors[order] > 0]
    i, j = i[order], j[order]
    names = np.array(classes, dtype=object)
    return pd.DataFrame(
        {
            "first": names[i],
            "second": names[j],
            "first_as_second": rates[i, j],
            "second_as_first": rates[j, i],
            "errors": errors[order],
        }
    )


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Confidence against accuracy, in bins of confidence of equal width (Guo et al. 2017).

    confidence  (N,) in [0, 1], the probability of the predicted class
    correct     (N,) bool
    returns     a row a bin: its ends, `low` < confidence ≤ `high` (the first takes 0 as well), `images` in it, their
                mean `confidence` and their `accuracy`, both NaN where there are none

    Raises ValueError for other shapes and types, an empty array, and what is no probability.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if confidence.ndim != 1 or correct.shape != confidence.shape or correct.dtype != bool or not len(correct):
        raise ValueError(
            "A confidence and a bool, right or wrong, are needed for each image; the arrays have the shapes "
            f"{confidence.shape} and {correct.shape}, and the second is {correct.dtype}."
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("A confidence is a probability between 0 and 1; take the largest softmax output, not a logit.")
    if bins < 1:
        raise ValueError(f"At least 1 bin is needed, not {bins}.")
    images, sums, hits = _binned(confidence, correct, bins)
    edges = np.arange(bins + 1) / bins
    with np.errstate(invalid="ignore"):
        table = {"images": images.astype(int), "confidence": sums / images, "accuracy": hits / images}
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], **table})


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error, ECE, in [0, 1]; lower is better (Naeini et al. 2015, Guo et al. 2017).

    The gap between accuracy and mean confidence, without its sign, in the bins of `reliability`, weighted by their
    images. It sees differences between bins, not within one, and is never below 0: chance alone makes it positive.

    Arguments and errors are those of `reliability`.
    """
    table = reliability(confidence, correct, bins)
    gap = (table["accuracy"] - table["confidence"]).abs()  # NaN in empty bins, which sum() leaves out
    return float((gap * table["images"]).sum() / table["images"].sum())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T with the least mean cross-entropy of softmax(logits / T) (Guo et al. 2017).

    Fit it on images that are not used to measure what it does. No prediction changes, only its confidence: T > 1 lowers
    it, T < 1 raises it.

    logits   (N, C), of any floating type
    labels   (N,) integers in [0, C)
    returns  T in [0.01, 100]; at an end where no T in between is best, as for predictions that are all right

    Raises ValueError where the shapes are others, there is no image, a logit is not finite or a label out of range.
    """
    z, y = _checked(logits, labels)
    n = np.arange(len(y))
    # One minimum in log T: the cross-entropy is convex in 1 / T.
    found = minimize_scalar(
        lambda log_t: -log_softmax(z / np.exp(log_t), axis=1)[n, y].mean(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def accuracy_among(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Accuracy in [0, 1] if only k candidate classes were possible, the true one and k - 1 others drawn at random.

    The mean over all such draws, exactly: an image with r classes ahead of the true one is right if none of these is
    drawn, with probability (C-1-r choose k-1) / (C-1 choose k-1).

    logits  (N, C), of any floating type
    labels  (N,) integers in [0, C)

    Raises ValueError as `fit_temperature` does, and for a k outside of 1 to C.
    """
    z, y = _checked(logits, labels)
    C = z.shape[1]
    if not 1 <= k <= C:
        raise ValueError(f"There are {C} classes: k is 1 to {C}, not {k}.")
    r = _place(z, y)
    # Factorials by their logarithms: gammaln is infinite where r > C - k, and the probability 0.
    log_share = gammaln(C - r) - gammaln(C - r - k + 1) - gammaln(C) + gammaln(C - k + 1)
    return float(np.exp(log_share).mean())


def _checked(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) float64 and labels (N,) int64, or ValueError."""
    z, y = np.asarray(logits), np.asarray(labels)
    if z.ndim != 2 or not z.size or y.shape != z.shape[:1]:
        raise ValueError(f"Logits (N, C) and labels (N,) are needed, not {z.shape} and {y.shape}.")
    if y.dtype.kind not in "iu":
        raise ValueError(f"Labels are the numbers of classes, whole numbers, not {y.dtype}.")
    z = z.astype(np.float64)
    if not np.isfinite(z).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(z).all(axis=1))} images have a logit that is not finite.")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"Labels lie in 0 to {z.shape[1] - 1}, as there are {z.shape[1]} logits, not up to {y.max()}.")
    return z, y.astype(np.int64)


def _place(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How many classes come before the true one, (N,): 0 for a right prediction. Of equal logits, the first counts."""
    own = z[np.arange(len(y)), y][:, None]
    return ((z > own) | ((z == own) & (np.arange(z.shape[1]) < y[:, None]))).sum(axis=1)


def _binned(confidence: np.ndarray, correct: np.ndarray, bins: int) -> np.ndarray:
    """Images, sum of confidences, and right ones in each bin: (3, bins)."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return np.array([np.bincount(place, weights, bins) for weights in (None, confidence, correct)])


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    _, sums, hits = _binned(confidence, correct, BINS)
    return np.abs(sums - hits).sum() / len(confidence)


def _rates(confusion: npt.ArrayLike) -> np.ndarray:
    """The share of each true class, in rows, that is taken for each class; 0 in the row of one without images."""
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ValueError(f"A confusion matrix is square, a row and a column for each class; this is {counts.shape}.")
    if not (counts >= 0).all() or not counts.any():
        raise ValueError("A confusion matrix holds counts: none may be negative or NaN, and not all may be 0.")
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
