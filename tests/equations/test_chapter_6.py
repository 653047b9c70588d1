"""Chapter 6, equation by equation, written out in loops and held against the package, or against other libraries."""

from math import comb, exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, hypergeom
from sklearn import metrics

from gradcam_lib.evaluation import (
    accuracy_among,
    bootstrap,
    calibration_error,
    confused_pairs,
    fit_temperature,
    headline,
    mcnemar,
)

answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50)  # (label, guess)


def one_of_four(seed, N=300):
    rng = np.random.default_rng(seed)
    y = rng.integers(4, size=N)
    return 2 * rng.normal(size=(N, 4)) + 2 * np.eye(4)[y], y


@given(answers)
def test_equation_6_1_accuracy(pairs):
    a = sum(1 if guess == label else 0 for label, guess in pairs) / len(pairs)
    labels, guesses = zip(*pairs, strict=True)
    assert metrics.accuracy_score(labels, guesses) == pytest.approx(a)
    assert headline(np.eye(4)[list(guesses)], labels, resamples=1)["value"]["accuracy"] == pytest.approx(a)


def test_equation_6_2_error_of_an_accuracy():
    N, truth = 400, 0.76
    measured = np.random.default_rng(0).binomial(N, truth, 20_000) / N
    assert measured.std() == pytest.approx(sqrt(truth * (1 - truth) / N), rel=0.02)
    right = np.arange(N) < N * truth
    interval = bootstrap(np.mean, right, resamples=5000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * sqrt(truth * (1 - truth) / N), rel=0.06)


@given(b=st.integers(0, 60), c=st.integers(0, 60))
def test_equation_6_3_mcnemar(b, c):
    p = min(1, 2 * sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c))
    first, second = np.repeat([True, False, True], [b, c, 3]), np.repeat([False, True, True], [b, c, 3])
    assert mcnemar(first, second) == (b, c, pytest.approx(p))
    if b + c:
        assert binomtest(c, b + c).pvalue == pytest.approx(p)


@given(answers)
def test_equation_6_4_confusion_matrix(pairs):
    N = np.zeros((4, 4), int)
    for label, guess in pairs:
        N[label, guess] += 1
    labels, guesses = zip(*pairs, strict=True)
    assert (metrics.confusion_matrix(labels, guesses, labels=range(4)) == N).all()
    errors = confused_pairs(N, list("abcd")).set_index(["first", "second"])["errors"].to_dict()
    expected = {("abcd"[i], "abcd"[j]): N[i, j] + N[j, i] for i in range(4) for j in range(i + 1, 4)}
    assert errors == {pair: n for pair, n in expected.items() if n}


@given(answers)
def test_equation_6_5_precision_and_recall(pairs):
    labels, guesses = zip(*pairs, strict=True)
    theirs = metrics.precision_recall_fscore_support(labels, guesses, labels=range(4), zero_division=0)
    for c in range(4):
        hits = sum(label == guess == c for label, guess in pairs)
        said, there = guesses.count(c), labels.count(c)
        assert theirs[0][c] == pytest.approx(hits / said if said else 0)
        assert theirs[1][c] == pytest.approx(hits / there if there else 0)


def test_equation_6_6_f1():
    z, y = one_of_four(0)
    guess, F = z.argmax(1), []
    for c in range(4):
        P = ((guess == c) & (y == c)).sum() / (guess == c).sum()
        R = ((guess == c) & (y == c)).sum() / (y == c).sum()
        F.append(2 * P * R / (P + R))
        assert min(P, R) <= F[-1] <= (P + R) / 2  # nearer to the smaller than their mean is
    assert headline(z, y, resamples=1)["value"]["macro F1"] == pytest.approx(sum(F) / 4)
    assert metrics.f1_score(y, guess, average=None) == pytest.approx(F)


def test_equation_6_7_calibration_error():
    rng = np.random.default_rng(1)
    q = rng.uniform(0.25, 1, 500)
    right = rng.random(500) < q**2
    for B in (1, 5, 15):
        ece = 0.0
        for b in range(1, B + 1):
            inside = [n for n in range(500) if (b - 1) / B < q[n] <= b / B]
            if inside:
                gap = sum(right[n] for n in inside) / len(inside) - sum(q[n] for n in inside) / len(inside)
                ece += len(inside) / 500 * abs(gap)
        assert calibration_error(q, right, B) == pytest.approx(ece)
        assert ece >= abs(right.mean() - q.mean()) - 1e-12  # one bin sees the least


def test_equation_6_8_temperature():
    z, y = one_of_four(2)

    def loss(T):
        total = 0.0
        for n in range(len(y)):
            total -= z[n, y[n]] / T - log(sum(exp(z[n, c] / T) for c in range(4)))
        return total / len(y)

    T = fit_temperature(z, y)
    h = 1e-3
    assert (loss(T + h) - loss(T - h)) / (2 * h) == pytest.approx(0, abs=1e-5)
    assert loss(T) < min(loss(T / 1.1), loss(T * 1.1), loss(1))


@given(r=st.integers(0, 9), k=st.integers(1, 10))
def test_equation_6_9_fewer_candidates(r, k):
    C = 10
    share = comb(C - 1 - r, k - 1) / comb(C - 1, k - 1)
    assert hypergeom(C - 1, r, k - 1).pmf(0) == pytest.approx(share)  # none of the r among the k - 1 drawn
    z = -np.arange(C, dtype=float)[None]  # r classes are ahead of class r
    assert accuracy_among(z, [r], k) == pytest.approx(share, abs=1e-12)
