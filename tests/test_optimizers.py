"""The step sizes against PyTorch's schedulers, Muon against the decomposition, and which parameters get what."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradcam_lib import build_model
from gradcam_lib.optimizers import SCHEDULES, Muon, build_optimizers, orthogonal, set_progress
from gradcam_lib.recipes import RECIPES, Recipe

STEPS = 50


def by_pytorch(make):
    """The step sizes of a scheduler of PyTorch's, over a run of 50 steps with a largest step size of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, sizes = make(optimizer), []
    for _ in range(STEPS):
        sizes.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return sizes


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=STEPS)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS)),
    ],
)
def test_the_schedules_are_pytorchs(schedule, make):
    ours = [SCHEDULES[schedule](step / STEPS) for step in range(STEPS)]
    assert ours == pytest.approx(by_pytorch(make), abs=1e-12)


def test_one_cycle_is_pytorchs_at_its_corners_and_along_its_curves():
    """PyTorch counts to the last step inclusive, and turns at step 0.3 · total - 1; its curve is laid over ours."""
    total = 1001
    sizes = []
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, cycle_momentum=False)
    for _ in range(total):
        sizes.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(sizes) < total:
            scheduler.step()
    turn = 0.3 * total - 1
    for step, size in enumerate(sizes):
        t = 0.3 * step / turn if step <= turn else 0.3 + 0.7 * (step - turn) / (total - 1 - turn)
        assert SCHEDULES["one-cycle"](t) == pytest.approx(size, abs=1e-9)


def test_momentum_falls_while_the_step_size_rises_as_in_pytorch():
    recipe = Recipe("x", "x", "report-cnn", optimizer="sgd", schedule="one-cycle", momentum=0.95, least_momentum=0.85)
    ours = build_optimizers(recipe, build_model("report-cnn"))
    total = 1001
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=1.0, total_steps=total)
    turn = 0.3 * total - 1
    for step in range(total):
        t = 0.3 * step / turn if step <= turn else 0.3 + 0.7 * (step - turn) / (total - 1 - turn)
        set_progress(ours, recipe, t)
        # Theirs begins at 0.95 itself, ours where the step size is 1/25 of its largest.
        assert ours[0].param_groups[0]["momentum"] == pytest.approx(theirs.param_groups[0]["momentum"], abs=0.0041)
        theirs.step()
        if step + 1 < total:
            scheduler.step()


def test_every_group_has_its_own_end():
    recipe = RECIPES["cifar10-fast"]
    optimizers = build_optimizers(recipe, build_model("cifar10-fast"))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    set_progress(optimizers, recipe, 0.375)
    assert [round(group["lr"] / group["largest_lr"], 6) for group in groups] == [0, 0.625, 0.625, 0.625]
    set_progress(optimizers, recipe, 0.9)  # after its end a step size stays at 0
    assert groups[0]["lr"] == 0


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_orthogonal_keeps_the_directions_and_evens_out_the_sizes(m, n, seed):
    """Against the decomposition itself: the same singular vectors, in the same order, and sizes near 1."""
    G = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    inner = U.T @ orthogonal(G, steps=8) @ Vh.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-8
    large = S > 1e-2 * S[0]  # the iteration lifts the others too, but needs more steps for it
    assert (inner.diag()[large] > 0.5).all() and (inner.diag() < 1.3).all()


def test_a_step_of_muon_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(6, 2, 3, 3, generator=generator)
    g1, g2 = torch.randn(2, 6, 2, 3, 3, generator=generator)
    p = nn.Parameter(w.clone())
    muon = Muon([p], lr=0.1, momentum=0.6)
    by_hand, buffer = w.clone(), torch.zeros_like(w)
    for g in (g1, g2):
        p.grad = g.clone()
        muon.step()
        buffer = 0.6 * buffer + g
        ahead = g + 0.6 * buffer
        by_hand = by_hand / by_hand.pow(2).sum().sqrt() * 6**0.5
        by_hand = by_hand - 0.1 * orthogonal(ahead.reshape(6, 18)).reshape(6, 2, 3, 3)
    assert torch.allclose(p, by_hand, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_weight_decay_leaves_biases_and_batch_norm_alone(name):
    recipe = Recipe("x", "cifar10", "se-resnet18", optimizer=name, weight_decay=0.01)
    model = build_model("cifar10-se-resnet18")
    (optimizer,) = build_optimizers(recipe, model)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decayed) == set(names.values())
    for n, decay in decayed.items():
        assert decay == (0 if n.endswith("bias") or "norm" in n else 0.01), n


def test_the_fast_recipe_trains_every_parameter_once_and_no_frozen_one():
    model = build_model("cifar10-fast")
    optimizers = build_optimizers(RECIPES["cifar10-fast"], model)
    chosen = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(chosen) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_an_optimiser_that_does_not_exist_is_named():
    recipe = replace(RECIPES["cifar10-report"], optimizer="adagrad")
    with pytest.raises(ValueError, match="no optimiser 'adagrad'. Choose one of: adam, sgd, muon"):
        build_optimizers(recipe, build_model("report-cnn"))
