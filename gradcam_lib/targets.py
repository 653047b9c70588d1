"""What a map explains: from what a model returns to the score of each class that was asked for."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from .layers import near

__all__ = ["Score", "Targets"]

Target = int | str
# One for all images, one or several for each, a function from what the model returns to scores, or the predicted ones.
Targets = (
    Target
    | Sequence[Target]
    | Sequence[Sequence[Target]]
    | torch.Tensor
    | np.ndarray
    | Callable[[Any], torch.Tensor]
    | None
)


class Score:
    """From what the model returns to the scores (N, T) of the T classes that were asked for, of each image."""

    def __init__(self, targets: Targets, N: int, names: Sequence[str] | None, counterfactual: bool):
        self.targets, self.N, self.names, self.sign = targets, N, names, -1 if counterfactual else 1
        self.flat = True  # one class an image, and maps (N, h, w)
        self.classes: torch.Tensor | None = None  # (N, T) int64, known once an output has been seen

    def __call__(self, output: object, n: int | None = None) -> torch.Tensor:
        """n  the image that all rows of the output belong to, where it is not row by row"""
        if callable(self.targets):
            scores: object = self.targets(output)
            if (
                not isinstance(scores, torch.Tensor)
                or scores.ndim not in (1, 2)
                or (n is None and len(scores) != self.N)
            ):
                what = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
                raise ValueError(
                    f"The function given as targets returned {what}; it must return one score an image, ({self.N},), "
                    f"or T of them, ({self.N}, T)."
                )
            self.flat = scores.ndim == 1
            return self.sign * (scores[:, None] if self.flat else scores)
        if not isinstance(output, torch.Tensor) or output.ndim != 2:
            what = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(
                f"The model must return logits (N, classes), not {what}. Pass targets=, a function from what it "
                "returns to one score an image."
            )
        if self.classes is None:
            classes = class_indices(self.targets, output, self.names)
            self.flat = classes.ndim == 1
            self.classes = classes[:, None] if self.flat else classes
        rows = self.classes if n is None else self.classes[n].expand(len(output), -1)
        return self.sign * output.gather(1, rows)


def class_indices(targets: Any, logits: torch.Tensor, names: Sequence[str] | None) -> torch.Tensor:
    """The class each image's map explains, (N,) or (N, T) int64 on the logits' device."""
    N, C = logits.shape
    if targets is None:
        return logits.argmax(1).detach()
    if hasattr(targets, "tolist"):  # a tensor or an array
        targets = targets.tolist()
    if isinstance(targets, Integral | str):
        targets = [targets] * N
    if not isinstance(targets, Sequence):
        raise ValueError(f"A target is the number of a class or its name, not {targets!r}.")
    if len(targets) != N:
        raise ValueError(f"There are {len(targets)} targets for {N} images. Give one for each, or one for all.")
    several = any(isinstance(t, Sequence) and not isinstance(t, str) for t in targets)
    if several and len({len(t) if isinstance(t, Sequence) and not isinstance(t, str) else -1 for t in targets}) > 1:
        raise ValueError("The images have different numbers of targets. Give each image the same number.")
    if several and not targets[0]:
        raise ValueError("There are no targets. Give each image at least one.")
    rows = [[class_index(t, C, names) for t in (row if several else [row])] for row in targets]
    indices = torch.tensor(rows, dtype=torch.int64, device=logits.device).reshape(N, -1)
    return indices if several else indices[:, 0]


def check_names(names: Sequence[str], C: int) -> None:
    if len(names) != C:
        raise ValueError(
            f"model.classes has {len(names)} names, and the model gives {C} logits: name each of its classes, in their "
            "order, or set model.classes = None."
        )


def class_index(target: Target, C: int, names: Sequence[str] | None) -> int:
    if isinstance(target, str):
        if names is None:
            raise ValueError(
                f"The model does not name its classes, so {target!r} cannot be looked up. Set model.classes."
            )
        if target not in names:
            raise ValueError(f"There is no class {target!r}. {near(target, names)}")
        check_names(names, C)
        same = [str(c) for c, name in enumerate(names) if name == target]
        if len(same) > 1:
            raise ValueError(f"Several classes are named {target!r}: give the number of one, {' or '.join(same)}.")
        return int(same[0])
    if not isinstance(target, Integral) or isinstance(target, bool):
        raise ValueError(f"A target is the number of a class or its name, not {target!r}.")
    if not 0 <= target < C:
        raise ValueError(f"Class {target} does not exist: the model has {C} classes, 0 to {C - 1}.")
    return target
