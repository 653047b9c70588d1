"""What turns gradients into steps: the optimisers of a recipe, Muon, and how the step size changes over a run."""

from collections.abc import Callable, Iterable
from math import cos, pi
from typing import Any

import torch
from torch import nn

from .architectures import last_linear
from .recipes import Recipe

__all__ = ["SCHEDULES", "Muon", "build_optimizers", "set_progress"]


# --- the step size over a run ---


def one_cycle(t: float) -> float:
    """Up from 1/25 to 1 in the first 30 %, then down to 1/250,000, both along a cosine (Smith and Topin 2018)."""

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + cos(pi * share)) / 2

    return between(1 / 25, 1, t / 0.3) if t < 0.3 else between(1, 1 / 250_000, (t - 0.3) / 0.7)


# The share of the largest step size, by the share t of the run that lies behind.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + cos(pi * t)) / 2,
    "one-cycle": one_cycle,
}


def set_progress(optimizers: Iterable[torch.optim.Optimizer], recipe: Recipe, t: float) -> None:
    """Give every parameter its step size, and its momentum, for the share t of the run that lies behind."""
    factor = SCHEDULES[recipe.schedule]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            share = factor(min(t / group["until"], 1))
            group["lr"] = group["largest_lr"] * share
            if recipe.least_momentum is not None:
                group["momentum"] = recipe.momentum + share * (recipe.least_momentum - recipe.momentum)


# --- optimisers ---


class Muon(torch.optim.Optimizer):
    """SGD with momentum whose step is made orthogonal, for the filters of convolutions (Jordan et al. 2024).

    A filter bank (K, C, R, S) is taken as a matrix (K, C R S). Of its step U S Vᵀ only U Vᵀ is kept, nearly: every
    direction is learned equally fast, also those in which the gradient is small. Before each step the filters are
    scaled to a mean square of 1 a filter, so that the step size means the same for every layer and throughout.

    params    filters, (K, C, R, S) float
    lr        length of a step: each singular value of the update is about lr
    momentum  share of the old momentum that is kept; the step looks ahead along it (Nesterov)
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.24, momentum: float = 0.6):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure, which would compute the loss again
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
                g = p.grad + group["momentum"] * state["momentum_buffer"]
                p.mul_(len(p) ** 0.5 / p.norm())
                p.add_(orthogonal(g.flatten(1)).view_as(p), alpha=-group["lr"])


def orthogonal(G: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """U Vᵀ of G = U S Vᵀ (m, n), nearly: all singular values come to lie between about 0.5 and 1.5.

    Three steps of a Newton-Schulz iteration, which needs matrix products alone. Its quintic polynomial rises as steeply
    as it can from 0 and does not settle at 1, which saves steps and does no harm (Jordan et al. 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = len(G) > G.shape[1]
    X = G.T if tall else G  # the smaller side first: the products are (m, m)
    X = X.bfloat16() if X.is_cuda else X  # fast there, and precise enough
    X = X / (X.norm() + 1e-7)  # so that no singular value is above 1
    for _ in range(steps):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return (X.T if tall else X).to(G.dtype)


def build_optimizers(recipe: Recipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """The optimisers of a recipe. Each group has its `largest_lr`, and is trained for the share `until` of the run.

    Raises ValueError for an optimiser that does not exist.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if recipe.optimizer == "muon":
        optimizers = _muon_and_sgd(recipe, trained)
    elif recipe.optimizer in ("adam", "sgd"):
        head = last_linear(model)[0] if recipe.pretrained else ""  # every name begins with ""
        groups = [
            {
                "params": [p for name, p in trained.items() if (p.ndim > 1) == wide and name.startswith(head) == new],
                "weight_decay": recipe.weight_decay if wide else 0.0,  # biases and batch norm's scales have one axis
                "lr": recipe.lr if new else recipe.lr * recipe.pretrained_lr,
            }
            for new in ((True, False) if recipe.pretrained else (True,))
            for wide in (True, False)
        ]
        if recipe.optimizer == "adam":
            optimizers = [torch.optim.AdamW(groups, recipe.lr)]
        else:
            optimizers = [torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.nesterov)]
    else:
        raise ValueError(f"There is no optimiser {recipe.optimizer!r}. Choose one of: adam, sgd, muon.")
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["largest_lr"] = group["lr"]
        group.setdefault("until", 1.0)
    return optimizers


def _muon_and_sgd(recipe: Recipe, trained: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """As in the author's code of the 94 % recipe, whose loss is the sum over a batch: step sizes are for that."""
    filters = [p for p in trained.values() if p.ndim == 4]
    n, decay = recipe.batch_size, 2e-6
    biases, head = 0.053 * n, 0.67 * n
    rest: list[dict[str, Any]] = [
        # The whitening's bias is trained in the first three of eight epochs alone.
        {"params": [p for name, p in trained.items() if "whiten" in name], "lr": biases, "until": 3 / 8},
        {"params": [p for name, p in trained.items() if "norm" in name], "lr": biases},
        {"params": [p for name, p in trained.items() if "dense" in name], "lr": head},
    ]
    for group in rest:
        group["weight_decay"] = decay * n / group["lr"]
    return [torch.optim.SGD(rest, momentum=0.85, nesterov=True), Muon(filters, recipe.lr, recipe.momentum)]
