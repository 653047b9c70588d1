"""A recipe in, a trained model and its record out. A run that was interrupted goes on from its last whole epoch."""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from .architectures import Preparation, build_model
from .batches import ArrayBatches, PictureBatches, in_order, normalised
from .batches import views as views_of
from .datasets import ArrayDataset, FolderSplit, Splits, load_dataset
from .decoded import DecodedPictures, decode
from .models import round_to_half, save_model
from .optimizers import build_optimizers, set_progress
from .recipes import RECIPES, Recipe
from .records import describe_machine, replacing, write_record

__all__ = ["RECIPES", "Recipe", "Run", "TrainingError", "measure", "predict", "train"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


PIXELS = Preparation(resize=224, size=224)  # neither normalised nor, for CIFAR and shapes, resized


class TrainingError(RuntimeError):
    """A run that cannot go on. The message says at which step, and what to try."""


@dataclass(frozen=True)
class Run:
    """What `train` returns.

    model    in evaluation mode, on the CPU, with `model.classes`
    history  a row an epoch: epoch, train_loss, train_accuracy (running, dropout and augmentation on), validation_loss,
             validation_accuracy (NaN where the recipe trains on these images too), seconds. Losses in nats, label
             smoothing included in train_loss; accuracies in [0, 1].
    record   what `run.json` holds, or None where no folder was given
    """

    model: nn.Module
    history: pd.DataFrame
    record: dict | None


def train(
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    data: Splits | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Run:
    """Train a recipe.

    out       the folder for the record. While the run lasts it holds a checkpoint, from which a run that was
              interrupted goes on: on the CPU, with the same number of threads, to the same weights bit for bit.
    data      the data set, where it is at hand already; otherwise the recipe's is loaded
    device    "cpu", "cuda" or "mps"; None takes the fastest there is
    progress  show a bar with the loss and the accuracy so far

    Raises ValueError where `out` holds the checkpoint of another recipe, or the recipe names what does not exist.
    Raises TrainingError where the loss is no longer a number; the last whole epoch's checkpoint stays.
    """
    if recipe.all_images and recipe.patience is not None:
        raise ValueError(f"{recipe.name!r}: patience needs validation images, and all_images trains on them. Drop one.")
    device = torch.device(device or _fastest_device())
    data = data or load_dataset(recipe.dataset)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(data.classes))
    model = model.to(device, memory_format=torch.channels_last)  # the images' own layout; 1.5 times as fast on a CPU
    model.prepare = _preparation(recipe, model.prepare)
    if isinstance(data.train, FolderSplit):
        data = decode(data, model.prepare.resize)
    training_set = _training_set(recipe, data)
    make = ArrayBatches if isinstance(training_set, ArrayDataset) else PictureBatches
    batches = make(training_set, recipe, model.prepare, device)
    if hasattr(model, "set_whitening"):
        model.set_whitening(normalised(batches.pixels[:5000], model.prepare))
    state = _State(recipe, model, device)

    checkpoint = Path(out) / "checkpoint.safetensors" if out else None
    if checkpoint:
        state.resume(checkpoint)
    done, total = len(state.history) * len(batches), recipe.epochs * len(batches)
    with tqdm(total=total, initial=done, unit=" steps", desc=recipe.name, disable=not progress) as bar:
        while len(state.history) < recipe.epochs and not _stops(state.history, recipe.patience):
            started = time.perf_counter()
            row = _train_epoch(state, batches, bar)
            if not recipe.all_images:
                logits = predict(state.tested, data.validation, views=recipe.views)
                loss, accuracy = measure(logits, data.validation.targets)
                row |= {"validation_loss": loss, "validation_accuracy": accuracy}
            state.history.append(row | {"seconds": time.perf_counter() - started})
            if recipe.patience is None or _best(state.history) == len(state.history):
                state.kept = {name: tensor.clone() for name, tensor in state.tested.state_dict().items()}
            if checkpoint:
                state.write(checkpoint)

    model.load_state_dict(state.kept)
    model = round_to_half(model).eval()
    model.classes = data.classes
    table = pd.DataFrame(state.history)
    record = _write_record(Path(out), recipe, model, table, training_set, data, device) if out else None
    if checkpoint:
        checkpoint.unlink()
    return Run(model.cpu(), table, record)


def _train_epoch(state: "_State", batches: ArrayBatches, bar: tqdm) -> dict:
    recipe, model, epoch = state.recipe, state.model, len(state.history) + 1
    # Each epoch draws from a seed of its own: a resumed run then needs no state of the random generator.
    torch.manual_seed(1_000_000 * recipe.seed + epoch)
    model.train()
    seen, total_loss, correct = 0, 0.0, 0.0
    for step, (x, y) in enumerate(batches.epoch(epoch)):
        set_progress(state.optimizers, recipe, (epoch - 1 + step / len(batches)) / recipe.epochs)
        loss, hits = _step(state, x, y)
        seen += len(y)
        total_loss += loss * len(y)
        correct += hits
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at step {step + 1} of epoch {epoch} of {recipe.name!r}. Try a smaller lr "
                f"(it is {recipe.lr:g}), a warm-up such as schedule='one-cycle', or precision='float32'."
            )
        bar.set_postfix_str(f"epoch {epoch}: {total_loss / seen:.3f} nats, {correct / seen:.1%}", refresh=False)
        bar.update()
    return {"epoch": epoch, "train_loss": total_loss / seen, "train_accuracy": correct / seen}


def _step(state: "_State", x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
    """One step of every optimiser; the mean loss of the batch, and how many of its images were right."""
    recipe, loss, hits = state.recipe, 0.0, 0
    for optimizer in state.optimizers:
        optimizer.zero_grad()
    for part_x, part_y in zip(x.chunk(recipe.accumulate), y.chunk(recipe.accumulate), strict=True):
        with torch.autocast(x.device.type, PRECISIONS[recipe.precision], enabled=recipe.precision != "float32"):
            logits = state.model(part_x)
        part = cross_entropy(logits.float(), part_y, label_smoothing=recipe.label_smoothing) * len(part_y) / len(y)
        state.scaler.scale(part).backward()
        loss += part.item()
        hits += (logits.argmax(1) == part_y).sum().item()
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.model)
    return loss, hits


class _State:
    """All that changes while a recipe is trained, and its way to a checkpoint and back.

    average  the moving average of the model's weights, or None
    history  a dictionary an epoch
    kept     the weights to be returned, as they stand
    """

    def __init__(self, recipe: Recipe, model: nn.Module, device: torch.device):
        self.recipe, self.model, self.history, self.kept = recipe, model, [], None
        self.optimizers = build_optimizers(recipe, model)
        self.average = None
        if recipe.ema is not None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")

    @property
    def tested(self) -> nn.Module:
        """What is tested and kept: the moving average, or the model itself where there is none."""
        return self.model if self.average is None else self.average.module

    def write(self, file: Path) -> None:
        tensors = {f"model/{name}": t for name, t in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average/{name}": t for name, t in self.average.state_dict().items()}
        tensors |= {f"kept/{name}": t for name, t in self.kept.items()}
        for number, optimizer in enumerate(self.optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{number}/{i}/{name}": t for name, t in state.items() if t is not None}
        about = {
            "recipe": json.dumps(asdict(self.recipe)),
            "history": json.dumps(self.history),
            "scaler": json.dumps(self.scaler.state_dict()),
        }
        with replacing(file) as scratch:
            save_file({name: t.contiguous() for name, t in tensors.items()}, scratch, metadata=about)

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint, where there is one. Raises ValueError for that of another recipe."""
        if not file.is_file():
            return
        parts = {"model": {}, "average": {}, "kept": {}, "optimizer": {}}
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata()
            if Recipe(**json.loads(about["recipe"])) != self.recipe:
                raise ValueError(
                    f"{file} belongs to another recipe. Delete it to start afresh, or choose another folder."
                )
            for key in stored.keys():
                part, name = key.split("/", 1)
                parts[part][name] = stored.get_tensor(key)
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        states = [{} for _ in self.optimizers]
        for key, tensor in parts["optimizer"].items():
            number, i, name = key.split("/")
            states[int(number)].setdefault(int(i), {})[name] = tensor
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.scaler.load_state_dict(json.loads(about["scaler"]))
        self.history, self.kept = json.loads(about["history"]), parts["kept"]


def _preparation(recipe: Recipe, own: Preparation) -> Preparation:
    """How the network is shown its pictures: as it was made for, or in the same way at the recipe's size."""
    if recipe.image_size is None:
        return own
    return replace(own, resize=round(own.resize * recipe.image_size / own.size), size=recipe.image_size)


def _training_set(recipe: Recipe, data: Splits) -> ArrayDataset | DecodedPictures:
    images = data.train
    if recipe.all_images and not isinstance(images, ArrayDataset):
        raise ValueError(f"{recipe.name!r}: all_images is for CIFAR and shapes; {data.info.title} keeps its parts.")
    if recipe.all_images:
        pixels, targets = (np.concatenate([getattr(part, name) for part in (data.train, data.validation)])
                           for name in ("data", "targets"))  # fmt: skip
        images = ArrayDataset(pixels, targets, data.classes)
    if recipe.per_class is not None:
        firsts = [np.flatnonzero(images.targets == c)[: recipe.per_class] for c in range(len(data.classes))]
        images = images.take(np.sort(np.concatenate(firsts)))
    return images.take(slice(0, recipe.train_images))


def _best(history: list[dict]) -> int:
    """The epoch of the best validation accuracy so far, the first among equals."""
    return max(history, key=lambda row: (row["validation_accuracy"], -row["epoch"]))["epoch"]


def _stops(history: list[dict], patience: int | None) -> bool:
    return bool(patience and history and len(history) - _best(history) >= patience)


def _fastest_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@torch.no_grad()
def predict(model: nn.Module, images, *, batch_size: int = 500, views: int = 1) -> torch.Tensor:
    """The logits of every image, (N, classes) float32 on the CPU. Leaves the model in evaluation mode.

    model   with `model.prepare`, as `build_model` and `load_model` give it; one without is shown pixels in [0, 1]
    images  an `ArrayDataset`, or `DecodedPictures`
    views   how many views of an image are averaged: 1, 2 or 6, as `batches.views` has them
    """
    device = next(model.parameters()).device
    model.eval()
    parts = []
    for x in in_order(images, getattr(model, "prepare", PIXELS), device, batch_size):
        parts.append(sum(share * model(view).float() for share, view in views_of(x, views)).cpu())
    return torch.cat(parts)


def measure(logits: torch.Tensor, targets) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy in [0, 1], of logits (N, C) against targets (N,)."""
    targets = torch.as_tensor(targets)
    return cross_entropy(logits, targets).item(), (logits.argmax(1) == targets).double().mean().item()


def _write_record(folder: Path, recipe, model, history, training_set, data: Splits, device) -> dict:
    """Save the weights and measure them, as they are saved, on all parts of the data set."""
    save_model(model, folder / "weights.safetensors", architecture=recipe.model, classes=data.classes)
    parts = {"train": training_set, "test": data.test}
    if not recipe.all_images:
        parts["validation"] = data.validation
    logits = {
        name: predict(model, images, views=recipe.views if name != "train" else 1) for name, images in parts.items()
    }
    logits["test"] = logits["test"].half()
    metrics = {}
    for name in parts:
        loss, accuracy = measure(logits[name].float(), parts[name].targets)
        metrics |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
    rows = history.to_dict("records")
    record = {
        "recipe": asdict(recipe),
        "command": f"gradcam-lib train {recipe.name}",
        "dataset_sha256": data.sha256,
        "images": {name: len(images) for name, images in parts.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs_run": len(rows),
        "kept_epoch": len(rows) if recipe.patience is None else _best(rows),
        "metrics": metrics,
        "training_seconds": round(float(history["seconds"].sum()), 1),
        **describe_machine(device),
    }
    write_record(folder, record, history, logits["test"].numpy())
    return record
