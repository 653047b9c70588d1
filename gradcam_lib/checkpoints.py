"""What changes while a recipe is trained, and its way to a file and back: safetensors and JSON, never unpickled."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .architectures import Network
from .optimizers import build_optimizers
from .recipes import Recipe
from .records import write_tensors
from .stored import reading

__all__ = ["State", "TrainingError", "best_epoch", "ends_the_run"]

# What an optimiser keeps of each parameter.
KEPT = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "SGD": ("momentum_buffer",), "Muon": ("momentum_buffer",)}


class TrainingError(RuntimeError):
    """A run that cannot go on. The message says why, and what to try."""


class State:
    """All that changes while a recipe is trained. What chance decides is drawn anew from the recipe's seed.

    history  a dictionary for each whole epoch
    kept     with patience, the best epoch's weights so far; otherwise empty
    step     how many steps of the epoch under way are done
    sums     of these: images, loss times images, images that were right, seconds
    average  the moving average of the model's weights, or None
    """

    def __init__(self, recipe: Recipe, model: Network, device: torch.device):
        self.recipe, self.model = recipe, model
        self.history: list[dict[str, Any]] = []
        self.kept: dict[str, torch.Tensor] = {}
        self.step, self.sums = 0, [0.0] * 4
        self.optimizers = build_optimizers(recipe, model)
        self.average = None
        if recipe.ema is not None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")

    @property
    def tested(self) -> nn.Module:
        """What is tested and kept: the moving average, or the model itself where there is none."""
        return self.model if self.average is None else self.average.module

    @property
    def result(self) -> dict[str, torch.Tensor]:
        """The weights to be returned: the best epoch's, or without patience those that were tested last."""
        return self.tested.state_dict() if self.recipe.patience is None else self.kept

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Add a row to the history, and keep the weights where patience asks for the best epoch's and it is this."""
        self.history.append(row)
        self.step, self.sums = 0, [0.0] * 4
        if self.recipe.patience is not None and best_epoch(self.history) == len(self.history):
            self.kept = {name: tensor.clone() for name, tensor in self.tested.state_dict().items()}

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or the patience is at its end."""
        patience, done = self.recipe.patience, len(self.history)
        return done >= self.recipe.epochs or bool(patience and done and done - best_epoch(self.history) >= patience)

    def write(self, file: Path) -> None:
        """Write a checkpoint over the one before, whole or not at all. Raises TrainingError where that cannot be."""
        parts = {"model": self.model.state_dict(), "kept": self.kept}
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        for number, optimizer in enumerate(self.optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                parts[f"optimizer/{number}/{i}"] = {name: t for name, t in state.items() if t is not None}
        tensors = {f"{part}/{name}": t.contiguous() for part, named in parts.items() for name, t in named.items()}
        about = {"recipe": asdict(self.recipe), "history": self.history, "step": self.step, "sums": self.sums}
        about["scaler"] = self.scaler.state_dict()
        with ends_the_run():
            write_tensors(file, tensors, {name: json.dumps(value) for name, value in about.items()})

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint, where there is one. Raises ValueError for a damaged one, or another recipe's."""
        if not file.is_file():
            return
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "kept": {}, "optimizer": {}}

        def damaged(why: str) -> ValueError:
            return ValueError(f"{file} is no checkpoint of this version ({why}). Delete it to start afresh.")

        with reading(damaged):
            with safe_open(file, framework="pt") as stored:
                about = {name: json.loads(value) for name, value in stored.metadata().items()}
                for key in stored.keys():
                    part, name = key.split("/", 1)
                    parts[part][name] = stored.get_tensor(key)
            history, step, sums = (about[name] for name in ("history", "step", "sums"))
            recipe = Recipe(**about["recipe"])
        if recipe != self.recipe:
            raise ValueError(f"{file} belongs to another recipe. Delete it to start afresh, or choose another folder.")
        with reading(damaged):
            _check_progress(history, step, sums)
            states = self._states(parts["optimizer"])
            self._check_weights(parts, bool(history))
            self.scaler.load_state_dict(about["scaler"])
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.history, self.kept, self.step, self.sums = history, parts["kept"], step, sums

    def _check_weights(self, parts: dict[str, dict[str, torch.Tensor]], kept: bool) -> None:
        expected = {"model": _kinds(self.model.state_dict()), "kept": {}, "average": {}}
        if self.average is not None:
            expected["average"] = _kinds(self.average.state_dict())
        if kept and self.recipe.patience is not None:
            expected["kept"] = _kinds(self.tested.state_dict())
        for part, kinds in expected.items():
            if _kinds(parts[part]) != kinds:
                raise ValueError(f"its {part} is not of this network")

    def _states(self, tensors: dict[str, torch.Tensor]) -> list[dict[int, dict[str, torch.Tensor]]]:
        """What each optimiser keeps of each parameter, by its number; of some nothing."""
        states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in self.optimizers]
        for key, tensor in tensors.items():
            number, parameter, name = key.split("/")
            states[int(number)].setdefault(int(parameter), {})[name] = tensor
        for optimizer, state in zip(self.optimizers, states, strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for i, kept in state.items():
                kind = _kinds({"": parameters[i]})[""]
                expected = dict.fromkeys(KEPT[type(optimizer).__name__], kind)
                if "step" in expected:
                    expected["step"] = ((), torch.float32)
                if i < 0 or _kinds(kept) != expected:
                    raise ValueError("its optimizer is not of this network")
        return states


def _kinds(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _check_progress(history: object, step: object, sums: object) -> None:
    def numbers(values: list[object]) -> bool:
        return all(isinstance(value, int | float) for value in values)

    rows = isinstance(history, list) and all(numbers([row["epoch"], row["validation_accuracy"]]) for row in history)
    totals = isinstance(sums, list) and len(sums) == 4 and numbers(sums)
    if not (rows and totals and isinstance(step, int) and step >= 0):
        raise ValueError("it does not say how far it came")


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The epoch of the best validation accuracy so far, the first among equals."""
    return max(history, key=lambda row: (row["validation_accuracy"], -row["epoch"]))["epoch"]


@contextmanager
def ends_the_run() -> Iterator[None]:
    """A file that cannot be written: TrainingError."""
    try:
        yield
    except OSError as error:
        raise TrainingError(str(error)) from error
