"""Metrics against brute force, known distributions and other libraries; what is wrong with an input is said."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, softmax
from scipy.stats import binom, norm
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, top_k_accuracy_score

from gradcam_lib.evaluation import (
    accuracy_among,
    bootstrap,
    calibration_error,
    confused_pairs,
    fit_temperature,
    headline,
    mcnemar,
    reliability,
    similarity_order,
)

unhurried = settings(deadline=None)  # the machines that run the tests are shared


def some(N=400, C=7, seed=0, skill=1.5):
    """Logits of a classifier that knows something, and labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(C, size=N)
    return rng.normal(size=(N, C)) + skill * np.eye(C)[y], y


# --- bootstrap ---


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    x = np.random.default_rng(1).normal(3, 2, 2000)
    value, low, high = bootstrap(np.mean, x, resamples=4000)
    error = x.std() / np.sqrt(len(x))
    assert value == x.mean()
    # The end of a percentile interval of 4,000 resamples is itself off by about 0.04 standard errors.
    assert (low - x.mean()) / error == pytest.approx(norm.ppf(0.025), abs=0.15)
    assert (high - x.mean()) / error == pytest.approx(norm.ppf(0.975), abs=0.15)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(300):
        _, low, high = bootstrap(np.mean, rng.random(200) < 0.7, resamples=300, seed=seed)
        held += low <= 0.7 <= high
    assert binom.ppf(0.0005, 300, 0.95) <= held <= binom.ppf(0.9995, 300, 0.95) + 1


def test_arrays_are_drawn_together():
    x = np.arange(50.0)
    pairs = np.stack([x, 2 * x], axis=1)
    value, low, high = bootstrap(lambda a, b: np.abs(2 * a - b[:, 1]).max(), x, pairs, resamples=50)
    assert value == low == high == 0


def test_a_statistic_may_be_an_array_and_the_seed_decides():
    x = np.random.default_rng(3).random((100, 4))

    def mean(x):
        return x.mean(axis=0)

    one, same, other = (bootstrap(mean, x, resamples=100, seed=seed) for seed in (0, 0, 1))
    assert one.value.shape == one.low.shape == one.high.shape == (4,)
    assert (one.low < one.value).all() and (one.value < one.high).all()
    assert (one.low == same.low).all() and (one.low != other.low).any()


def test_a_wider_level_gives_a_wider_interval():
    x = np.random.default_rng(4).random(100)
    narrow, wide = (bootstrap(np.mean, x, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((np.zeros(3), np.zeros(4)), {}, "{3, 4}"),
        ((np.zeros(0),), {}, "at least one"),
        ((), {}, "at least one"),
        ((np.zeros(3),), {"level": 95}, "between 0 and 1"),
        ((np.zeros(3),), {"resamples": 0}, "resamples"),
    ],
)
def test_bootstrap_says_what_is_wrong(given, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(lambda *a: 0, *given, **options)


# --- headline ---


@pytest.mark.parametrize("C", [7, 60])  # of 60 classes, some have no image
def test_the_headline_is_what_scikit_learn_says(C):
    z, y = some(N=400 if C == 7 else 100, C=C, skill=3)
    table, p = headline(z, y, resamples=200), softmax(z, axis=1)
    expected = {
        "accuracy": accuracy_score(y, z.argmax(1)),
        "top-5 accuracy": top_k_accuracy_score(y, z, k=5, labels=range(C)),
        "macro F1": f1_score(y, z.argmax(1), average="macro"),
        "cross-entropy": log_loss(y, p, labels=range(C)),
        "calibration error": calibration_error(p.max(1), z.argmax(1) == y),
    }
    assert table["value"].to_dict() == pytest.approx(expected, abs=1e-12)
    certain = table.drop(index="calibration error")
    assert (certain["low"] < certain["value"]).all() and (certain["value"] < certain["high"]).all()


def test_the_headline_of_a_perfect_and_of_a_random_classifier():
    rng = np.random.default_rng(5)
    y = np.arange(5000) % 10
    perfect = headline(50 * np.eye(10)[y], y, resamples=20)["value"]
    assert perfect.to_dict() == pytest.approx(
        {"accuracy": 1, "top-5 accuracy": 1, "macro F1": 1, "cross-entropy": 0, "calibration error": 0}, abs=1e-9
    )
    ignorant = headline(1e-9 * rng.normal(size=(5000, 10)), y, resamples=20)["value"]
    assert ignorant["accuracy"] == pytest.approx(0.1, abs=0.02)
    assert ignorant["top-5 accuracy"] == pytest.approx(0.5, abs=0.03)
    assert ignorant["cross-entropy"] == pytest.approx(np.log(10), abs=1e-6)
    assert ignorant["calibration error"] < 0.02  # it knows that it knows nothing


def test_half_precision_is_enough():
    z, y = some()
    assert np.allclose(headline(z.astype(np.float16), y, resamples=5), headline(z, y, resamples=5), atol=0.01)


# --- calibration ---


@given(
    table=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    bins=st.integers(1, 20),
)
def test_the_calibration_error_is_that_of_a_loop(table, bins):
    confidence, correct = np.array([c for c, _ in table]), np.array([r for _, r in table])
    expected = 0.0
    for b in range(1, bins + 1):
        inside = [(c, r) for c, r in table if int(np.clip(np.ceil(c * bins), 1, bins)) == b]
        if inside:
            gap = abs(sum(r for _, r in inside) / len(inside) - sum(c for c, _ in inside) / len(inside))
            expected += len(inside) / len(table) * gap
    assert calibration_error(confidence, correct, bins) == pytest.approx(expected, abs=1e-12)


@given(confidence=arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1)), bins=st.integers(1, 20))
def test_the_bins_hold_every_image_once_and_between_their_ends(confidence, bins):
    table = reliability(confidence, np.ones(len(confidence), bool), bins)
    assert table["images"].sum() == len(confidence)
    full = table[table["images"] > 0]
    tiny = 1e-9
    assert (full["confidence"] >= full["low"] - tiny).all() and (full["confidence"] <= full["high"] + tiny).all()
    assert table[table["images"] == 0][["confidence", "accuracy"]].isna().all(axis=None)


def test_a_calibrated_classifier_has_an_error_near_nought_and_a_liar_a_large_one():
    rng = np.random.default_rng(6)
    p = rng.uniform(0.1, 1, 50_000)
    correct = rng.random(50_000) < p
    assert calibration_error(p, correct) < 0.01
    assert calibration_error(np.ones(50_000), correct) == pytest.approx(1 - correct.mean())
    assert calibration_error(1 - correct, correct) == 1  # sure where wrong, and unsure where right


@unhurried
@given(scale=st.floats(0.2, 8), seed=st.integers(0, 20))
def test_the_temperature_is_the_factor_by_which_honest_logits_were_scaled(scale, seed):
    # Labels drawn from softmax(z): z itself is calibrated, up to chance.
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(3000, 5))
    y = (rng.random((3000, 1)) > softmax(z, axis=1).cumsum(axis=1)).sum(axis=1).clip(max=4)
    assert fit_temperature(z, y) == pytest.approx(1, abs=0.1)
    assert fit_temperature(scale * z, y) == pytest.approx(scale * fit_temperature(z, y), rel=1e-4)


def test_no_temperature_on_a_grid_is_better():
    z, y = some(seed=7)
    z *= 3

    def loss(T):
        return -log_softmax(z / T, axis=1)[np.arange(len(y)), y].mean()

    best = fit_temperature(z, y)
    assert loss(best) <= min(loss(T) for T in np.geomspace(0.01, 100, 2001)) + 1e-9
    assert fit_temperature(np.eye(3) / 10, np.arange(3)) == pytest.approx(
        0.01, rel=1e-3
    )  # all right: as sure as can be
    assert fit_temperature(-np.eye(3), np.arange(3)) == pytest.approx(100, rel=1e-3)  # all wrong: as unsure as can be


# --- two classifiers ---


def test_mcnemar_is_the_binomial_worked_by_hand():
    def right(both, first, second, neither):
        a = [True] * (both + first) + [False] * (second + neither)
        b = [True] * both + [False] * first + [True] * second + [False] * neither
        return np.array(a), np.array(b)

    assert mcnemar(*right(5, 1, 5, 9)) == (1, 5, pytest.approx(2 * (1 + 6) / 2**6))  # 14/64
    assert mcnemar(*right(0, 0, 4, 0)) == (0, 4, pytest.approx(2 / 2**4))
    assert mcnemar(*right(3, 2, 2, 3)) == (2, 2, 1.0)
    assert mcnemar(*right(3, 0, 0, 3)) == (0, 0, 1.0)
    # The table of Agresti (2002, Categorical Data Analysis, table 10.1): 150 and 86 people change their answer.
    b, c, p = mcnemar(*right(794, 150, 86, 570))
    assert (b, c) == (150, 86)
    assert p == pytest.approx(2 * sum(binom.pmf(k, 236, 0.5) for k in range(87)))
    assert p == pytest.approx(2 * norm.sf((150 - 86 - 1) / np.sqrt(236)), rel=0.15)  # its normal form, corrected


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_does_not_care_which_comes_first_nor_about_ties(pairs):
    a, b = np.array(pairs).T
    forth, back = mcnemar(a, b), mcnemar(b, a)
    assert forth.p == pytest.approx(back.p) and 0 < forth.p <= 1
    assert (forth.only_first, forth.only_second) == (back.only_second, back.only_first)
    assert mcnemar(np.append(a, [True, False]), np.append(b, [True, False])) == forth


# --- confusions ---


@unhurried
@given(arrays(np.int64, st.integers(1, 12).map(lambda n: (n, n)), elements=st.integers(0, 30)))
def test_the_order_is_a_permutation(confusion):
    if not confusion.any():
        confusion[0, 0] = 1
    assert sorted(similarity_order(confusion)) == list(range(len(confusion)))


@unhurried
@given(seed=st.integers(0, 50), pair=st.tuples(st.integers(0, 19), st.integers(0, 19)))
def test_a_planted_pair_comes_to_lie_side_by_side(seed, pair):
    i, j = pair
    if i == j:
        return
    confusion = np.random.default_rng(seed).integers(0, 4, (20, 20)) + 60 * np.eye(20, dtype=int)
    confusion[i, j] += 30
    confusion[j, i] += 30
    order = list(similarity_order(confusion))
    assert abs(order.index(i) - order.index(j)) == 1
    worst = confused_pairs(confusion, [str(c) for c in range(20)]).iloc[0]
    assert {worst["first"], worst["second"]} == {str(i), str(j)}


def test_planted_groups_stay_together():
    group = np.random.default_rng(8).permutation(np.repeat(np.arange(4), 5))
    confusion = 100 * np.eye(20, dtype=int) + 5 * (group[:, None] == group[None, :])
    assert (np.diff(group[similarity_order(confusion)]) != 0).sum() == 3


def test_pairs_with_their_rates_by_hand():
    #             cat dog owl
    confusion = [[6, 3, 1],
                 [8, 12, 0],
                 [0, 0, 0]]  # fmt: skip
    table = confused_pairs(confusion, ["cat", "dog", "owl"])
    expected = pd.DataFrame(
        {
            "first": ["cat", "cat"],
            "second": ["dog", "owl"],
            "first_as_second": [0.3, 0.1],
            "second_as_first": [0.4, 0.0],
            "errors": [11, 1],
        }
    )
    pd.testing.assert_frame_equal(table, expected)


@given(st.integers(0, 1000))
def test_the_pairs_hold_every_error_once_the_worst_first(seed):
    z, y = some(N=80, C=6, seed=seed)
    confusion = confusion_matrix(y, z.argmax(1), labels=range(6))
    table = confused_pairs(confusion, list("abcdef"))
    assert table["errors"].sum() == (z.argmax(1) != y).sum()
    assert (np.diff(table["first_as_second"] + table["second_as_first"]) <= 1e-12).all()
    assert (table["first"] < table["second"]).all()


# --- fewer candidates ---


def test_among_k_candidates_is_the_mean_over_all_draws():
    from itertools import combinations

    z, y = some(N=60, C=6, seed=9)
    for k in range(1, 7):
        hits, draws = 0, 0
        for n in range(60):
            others = [c for c in range(6) if c != y[n]]
            for chosen in combinations(others, k - 1):
                hits += all(z[n, y[n]] > z[n, c] for c in chosen)
                draws += 1
        assert accuracy_among(z, y, k) == pytest.approx(hits / draws)


@given(st.integers(0, 200))
def test_more_candidates_are_harder(seed):
    z, y = some(N=50, C=8, seed=seed)
    z = np.round(z)  # with ties
    among = [accuracy_among(z, y, k) for k in range(1, 9)]
    assert among[0] == pytest.approx(1) and among[-1] == pytest.approx((z.argmax(1) == y).mean())
    assert (np.diff(among) <= 1e-12).all()


def test_of_a_thousand_candidates_no_factorial_overflows():
    rng = np.random.default_rng(10)
    z, y = rng.normal(size=(4000, 1000)), rng.integers(1000, size=4000)
    for k in (2, 500, 1000):
        assert accuracy_among(z, y, k) == pytest.approx(1 / k, abs=0.02)  # it knows nothing: chance


# --- what is wrong is said ---

z, y = some(N=10, C=3)
BAD_LOGITS = [
    (z[0], y, "(3,)"),
    (z, y[:5], "(5,)"),
    (z[:0], y[:0], "(0, 3)"),
    (np.where(np.eye(10, 3), np.nan, z), y, "3 images have a logit that is not finite"),
    (np.where(np.eye(10, 3), np.inf, z), y, "not finite"),
    (z, y + 1, "0 to 2"),
    (z, y - 1, "0 to 2"),
    (z, y.astype(float), "whole numbers"),
]


@pytest.mark.parametrize("measure", [headline, fit_temperature, lambda z, y: accuracy_among(z, y, 2)])
@pytest.mark.parametrize(("logits", "labels", "message"), BAD_LOGITS)
def test_bad_logits_and_labels_are_refused(measure, logits, labels, message):
    with pytest.raises(ValueError) as error:
        measure(logits, labels)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy_among(z, y, 4), "1 to 3, not 4"),
        (lambda: reliability(z, y == y), "shapes"),
        (lambda: reliability([0.5, 0.6], [1, 0]), "int64"),
        (lambda: reliability([], np.array([], bool)), "each image"),
        (lambda: reliability([1.5], np.array([True])), "not a logit"),
        (lambda: reliability([np.nan], np.array([True])), "not a logit"),
        (lambda: calibration_error([0.5], np.array([True]), bins=0), "At least 1 bin"),
        (lambda: mcnemar([True], [True, False]), "(1,) and bool (2,)"),
        (lambda: mcnemar([1, 0], [0, 1]), "int64"),
        (lambda: mcnemar(np.array([], bool), np.array([], bool)), "one length"),
        (lambda: similarity_order(np.zeros((2, 3))), "square"),
        (lambda: similarity_order(np.zeros((3, 3))), "not all may be 0"),
        (lambda: similarity_order([[1, -1], [0, 1]]), "negative"),
        (lambda: similarity_order([[1, np.nan], [0, 1]]), "NaN"),
        (lambda: confused_pairs(np.eye(3), ["a"]), "1 names for 3 classes"),
    ],
)
def test_other_bad_input_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
