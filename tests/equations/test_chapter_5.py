"""Chapter 5, equation by equation: each against PyTorch's optimisers, in float64, or against what it says it does."""

from math import cos, pi

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gradcam_lib.datasets import DATASETS, ArrayDataset, Splits
from gradcam_lib.optimizers import SCHEDULES
from gradcam_lib.recipes import Recipe
from gradcam_lib.training import learning_rate_range

rng = np.random.default_rng(0)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def trajectory(make, w, gradients):
    """All points of an optimiser of PyTorch's that is given these gradients, (steps, n) float64."""
    p = torch.tensor(w, requires_grad=True)
    optimizer, points = make([p]), []
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
        points.append(p.detach().numpy().copy())
    return np.array(points)


@pytest.mark.parametrize("curvature", [0.5, 10.0])
def test_equation_5_1_gradient_descent_along_one_direction(curvature):
    for share, rests in ((0.1, True), (0.99, True), (1.01, False)):
        lr = share * 2 / curvature
        w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr)
        for _ in range(50):
            optimizer.zero_grad()
            (curvature * w**2 / 2).backward()
            optimizer.step()
        assert np.isclose(w.item(), (1 - lr * curvature) ** 50 * 3.0, **CLOSE)
        assert (abs(w.item()) < 3) == rests


def test_equation_5_2_the_step_sizes_of_a_range_test():
    """Evenly spaced on a logarithmic scale, from the least to the largest."""
    images = rng.integers(0, 255, (64, 32, 32, 3), dtype=np.uint8)
    part = ArrayDataset(images, rng.integers(0, 3, 64), ("a", "b", "c"))
    data = Splits(DATASETS["shapes"], part, part, part, part.classes, "0" * 64)
    recipe = Recipe("tiny", "x", "report-cnn", optimizer="sgd", lr=0.05, batch_size=32)
    table = learning_rate_range(recipe, data=data, least=1e-6, largest=1e-2, steps=9, device="cpu")
    assert np.allclose(table["lr"], np.geomspace(1e-6, 1e-2, 9), rtol=1e-10)
    assert np.allclose(table["lr"], [1e-6 * (1e-2 / 1e-6) ** (i / 8) for i in range(9)], rtol=1e-10)


@settings(max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_equation_5_3_the_corrected_moving_average_is_a_weighted_mean(x, beta):
    m, averages = 0.0, []
    for t, value in enumerate(x, start=1):
        m = beta * m + (1 - beta) * value
        averages.append(m / (1 - beta**t))
    for t in range(1, len(x) + 1):
        shares = beta ** np.arange(t)[::-1]
        assert np.isclose(averages[t - 1], np.average(x[:t], weights=shares), rtol=1e-6, atol=1e-6)
    assert np.allclose(averages, pd.Series(x).ewm(alpha=1 - beta).mean(), rtol=1e-6, atol=1e-6)


def test_equation_5_4_one_cycle():
    """PyTorch turns at the step 0.3 · total - 1, and counts to the last step inclusive."""

    def c(a, b, s):
        return b + (a - b) * (1 + cos(pi * s)) / 2

    def written(t):
        return c(1 / 25, 1, t / 0.3) if t < 0.3 else c(1, 1 / 250_000, (t - 0.3) / 0.7)

    for t in np.linspace(0, 1, 201):
        assert np.isclose(written(t), SCHEDULES["one-cycle"](t), **CLOSE)
    total = 501
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, cycle_momentum=False)
    turn = 0.3 * total - 1
    for step in range(total):
        t = 0.3 * step / turn if step <= turn else 0.3 + 0.7 * (step - turn) / (total - 1 - turn)
        assert np.isclose(written(t), optimizer.param_groups[0]["lr"], atol=1e-9)
        optimizer.step()
        if step + 1 < total:
            scheduler.step()


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_equation_5_5_momentum(mu):
    w, gradients = rng.normal(size=4), rng.normal(size=(12, 4))
    theirs = trajectory(lambda p: torch.optim.SGD(p, lr=0.1, momentum=mu), w, gradients)
    v = np.zeros(4)
    for g, expected in zip(gradients, theirs, strict=True):
        v = mu * v + g
        w = w - 0.1 * v
        assert np.allclose(w, expected, **CLOSE)
    v = 0.0  # gradients that agree add up to g / (1 - mu)
    for _ in range(500):
        v = mu * v + 1
    assert np.isclose(v, 1 / (1 - mu))


@pytest.mark.parametrize("mu", [0.5, 0.9])
def test_equation_5_6_nesterov(mu):
    w, gradients = rng.normal(size=4), rng.normal(size=(12, 4))
    theirs = trajectory(lambda p: torch.optim.SGD(p, lr=0.1, momentum=mu, nesterov=True), w, gradients)
    v = np.zeros(4)
    for g, expected in zip(gradients, theirs, strict=True):
        v = mu * v + g
        w = w - 0.1 * (g + mu * v)
        assert np.allclose(w, expected, **CLOSE)


def adam_step(w, m, v, g, t, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8):
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    return w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps), m, v


def test_equation_5_7_adam():
    w, gradients = rng.normal(size=4), rng.normal(size=(12, 4)) * [1, 1e-3, 1e3, 0]
    m = v = np.zeros(4)
    start = w
    for t, expected in enumerate(trajectory(lambda p: torch.optim.Adam(p, lr=0.01), w, gradients), start=1):
        w, m, v = adam_step(w, m, v, gradients[t - 1], t)
        assert np.allclose(w, expected, **CLOSE)
        if t == 1:  # its length is the step size, whatever the gradient
            assert np.allclose(np.abs(w - start), [0.01, 0.01, 0.01, 0], rtol=1e-3)


def test_equation_5_8_decoupled_weight_decay():
    w, gradients = rng.normal(size=4), rng.normal(size=(12, 4))
    theirs = trajectory(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3), w, gradients)
    m = v = np.zeros(4)
    for t, expected in enumerate(theirs, start=1):
        w, m, v = adam_step((1 - 0.01 * 0.3) * w, m, v, gradients[t - 1], t)
        assert np.allclose(w, expected, **CLOSE)


def test_equation_5_9_k_small_steps_are_one_large_one_to_first_order():
    """A smooth network: where the step size falls to a tenth, so does the share in which the two differ."""
    x, y = torch.from_numpy(rng.normal(size=(40, 6))), torch.from_numpy(rng.integers(0, 3, 40))
    start = torch.from_numpy(rng.normal(size=(6, 3)))

    def moved(parts, lr):
        w = start.clone()
        for part_x, part_y in parts:
            w.requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy((part_x @ w).tanh(), part_y), w)
            w = (w - lr * gradient).detach()
        return w - start

    differences = []
    for lr in (1e-2, 1e-3):
        small = moved(zip(x.split(10), y.split(10), strict=True), lr)
        large = moved([(x, y)], 4 * lr)
        differences.append(((small - large).norm() / small.norm()).item())
    assert differences[0] < 0.05
    assert differences[0] / differences[1] == pytest.approx(10, rel=0.05)


def test_equation_5_10_the_average_of_the_weights():
    beta, layer = 0.8, torch.nn.Linear(3, 2).double()
    average = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(beta))
    average.update_parameters(layer)
    by_hand = layer.weight.detach().numpy().copy()
    for _ in range(10):
        torch.nn.init.normal_(layer.weight)
        average.update_parameters(layer)
        by_hand = beta * by_hand + (1 - beta) * layer.weight.detach().numpy()
    assert np.allclose(by_hand, average.module.weight.detach(), **CLOSE)


@pytest.mark.parametrize("S", [2.0**8, 2.0**16])
def test_equation_5_11_loss_scaling(S):
    """The scaler's own division gives the gradient back, also where float16 would have lost it without the scale."""
    w = torch.tensor([1e-9, 2e-9], requires_grad=True)

    def loss():
        return (w * torch.tensor([1e-6, 2e-8])).sum()

    (unscaled,) = torch.autograd.grad(loss(), w)
    (scaled,) = torch.autograd.grad(S * loss(), w)
    assert torch.equal(scaled / S, unscaled)  # a power of two: exactly
    assert unscaled.half()[1] == 0 and (scaled.half() != 0).all()
    scaler, sgd = torch.amp.GradScaler("cpu", init_scale=S), torch.optim.SGD([w], lr=1.0)
    scaler.scale(loss()).backward()
    scaler.unscale_(sgd)
    assert torch.equal(w.grad, unscaled)
