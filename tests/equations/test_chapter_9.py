"""Chapter 9, equation by equation, written out in loops and held against the package."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import nn

from gradcam_lib import faithfulness as fa
from gradcam_lib import sanity

seeds = st.integers(0, 2**32)


def map_and_object(seed):
    rng = np.random.default_rng(seed)
    M, O = rng.random((5, 6)).astype(np.float32), rng.random((5, 6)) < 0.4
    O[0, 0] = True
    return M, O


def scored(score, M, O, *more):
    return score(torch.from_numpy(M)[None], torch.from_numpy(O)[None], *more).item()


@given(seeds)
def test_equation_9_1_pointing_game(seed):
    M, O = map_and_object(seed)
    best = max(((i, j) for i in range(5) for j in range(6)), key=lambda at: M[at])
    assert scored(fa.pointing_game, M, O) == O[best]


@given(seeds)
def test_equation_9_2_energy_inside(seed):
    M, O = map_and_object(seed)
    inside = total = 0.0
    for value, on_object in zip(M.flat, O.flat, strict=True):
        inside, total = inside + value * on_object, total + value
    assert scored(fa.energy_inside, M, O) == pytest.approx(inside / total, rel=1e-5)


@given(seeds, st.floats(0.05, 0.95))
def test_equation_9_3_intersection_over_union(seed, t):
    M, O = map_and_object(seed)
    above = {at for at in np.ndindex(5, 6) if M[at] >= np.float32(t) * M.max()}
    objects = {at for at in np.ndindex(5, 6) if O[at]}
    assert scored(fa.iou, M, O, float(np.float32(t))) == pytest.approx(len(above & objects) / len(above | objects))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    return model, torch.randn(4, 1, 8, 8), torch.rand(4, 8, 8)


def test_equation_9_4_deletion(network):
    model, x, maps = network
    n, D = 8, np.zeros(4)
    for picture in range(4):
        order, changed, p = maps[picture].flatten().argsort(descending=True), x[picture : picture + 1].clone(), []
        for k in range(n + 1):
            changed.flatten(1)[:, order[: 8 * k]] = 0
            p.append(model(changed).softmax(1)[0, 1].item())
        D[picture] = sum((p[k - 1] + p[k]) / (2 * n) for k in range(1, n + 1))
    got = fa.deletion(model, x, maps, 1, steps=n, fill=torch.zeros(1)).area
    assert got.tolist() == pytest.approx(D, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_equation_9_5_imputation(seed):
    rng = np.random.default_rng(seed)
    x, hole = rng.random((1, 1, 7, 7)).astype(np.float32), np.zeros((1, 7, 7), bool)
    hole[0, 1:6, 1:6] = rng.random((5, 5)) < 0.6
    filled = fa.impute(x, hole)[0, 0]
    for i, j in zip(*hole[0].nonzero(), strict=True):
        total = 0.0
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                if (a, b) != (0, 0):
                    total += filled[i + a, j + b] / (12 if a and b else 6)
        assert filled[i, j] == pytest.approx(total, abs=1e-5)


def test_equation_9_6_road(network):
    model, x, maps = network
    S = (0.25, 0.5)
    R, most, least = fa.road(model, x, maps, 1, shares=S)
    by_hand = [
        sum(least.probabilities[n, k].item() - most.probabilities[n, k].item() for k in range(2)) / (2 * len(S))
        for n in range(4)
    ]
    assert R.tolist() == pytest.approx(by_hand, abs=1e-6)
    # The least important of a map are the most important of its opposite.
    opposite, _, _ = fa.road(model, x, -maps, 1, shares=S)
    assert opposite.tolist() == pytest.approx([-r for r in by_hand], abs=1e-6)


@given(seeds)
def test_equation_9_7_rank_correlation(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, (2, 5, 5)).astype(np.float32)
    r, s = rankdata(a) - 13, rankdata(b) - 13  # the mean rank of 25
    top = sum(u * v for u, v in zip(r, s, strict=True))
    rho = top / (sum(u * u for u in r) * sum(v * v for v in s)) ** 0.5
    got = sanity.rank_correlation(torch.from_numpy(a)[None], torch.from_numpy(b)[None])
    assert got.item() == pytest.approx(rho, abs=1e-9)
