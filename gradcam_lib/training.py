"""A recipe in, a trained model and its record out. A run that was interrupted goes on from its last whole epoch."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from .architectures import build_model
from .datasets import ArrayDataset, Splits, load_dataset
from .models import round_to_half, save_model
from .records import describe_machine, replacing, write_record

__all__ = ["RECIPES", "Recipe", "Run", "predict", "train"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, as plain data.

    lr            step size of the optimiser
    batch_size    images a step
    epochs        passes over the training set, at most
    patience      epochs without a better validation accuracy after which training stops, and the best epoch's weights
                  are kept; None trains all epochs and keeps the last one's
    train_images  use only the first so many training images; None uses all
    seed          of the weights, the order of the images and the dropout
    """

    name: str
    dataset: str
    model: str
    optimizer: str = "adam"
    lr: float = 1e-3
    batch_size: int = 64
    epochs: int = 50
    patience: int | None = None
    train_images: int | None = None
    seed: int = 0


CIFAR10_REPORT = Recipe(
    name="cifar10-report",
    dataset="cifar10",  # pixels in [0, 1]; "no explicit data augmentation was applied"
    model="report-cnn",
    optimizer="adam",
    lr=1e-3,
    batch_size=64,
    epochs=50,
    patience=5,  # the report says "early stopping" and gives no figure; ours
)

# The report's figures are those of its 50th epoch, which early stopping never reaches.
CIFAR10_REPORT_50 = replace(CIFAR10_REPORT, name="cifar10-report-50", patience=None)

RECIPES = {recipe.name: recipe for recipe in (CIFAR10_REPORT, CIFAR10_REPORT_50)}
OPTIMIZERS = {"adam": torch.optim.Adam}


@dataclass(frozen=True)
class Run:
    """What `train` returns.

    model    in evaluation mode, on the CPU, with `model.classes`
    history  a row an epoch: epoch, train_loss, train_accuracy (running, dropout on), validation_loss,
             validation_accuracy, seconds. Losses in nats, accuracies in [0, 1].
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

    Raises ValueError where `out` holds the checkpoint of another recipe.
    """
    device = torch.device(device or _fastest_device())
    data = data or load_dataset(recipe.dataset)
    training_set = data.train.take(slice(0, recipe.train_images))
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(data.classes))
    model = model.to(device, memory_format=torch.channels_last)  # the images' own layout; 1.5 times as fast on a CPU
    optimizer = OPTIMIZERS[recipe.optimizer](model.parameters(), lr=recipe.lr)

    checkpoint = Path(out) / "checkpoint.safetensors" if out else None
    history, kept = _resume(checkpoint, recipe, model, optimizer) if checkpoint else ([], None)
    steps = -(-len(training_set) // recipe.batch_size)  # in an epoch
    done, total = len(history) * steps, recipe.epochs * steps
    with tqdm(total=total, initial=done, unit=" steps", desc=recipe.name, disable=not progress) as bar:
        while len(history) < recipe.epochs and not _stops(history, recipe.patience):
            started, epoch = time.perf_counter(), len(history) + 1
            row = {"epoch": epoch, **_train_epoch(model, optimizer, training_set, recipe, epoch, device, bar)}
            loss, accuracy = measure(predict(model, data.validation), data.validation.targets)
            row |= {"validation_loss": loss, "validation_accuracy": accuracy, "seconds": time.perf_counter() - started}
            history.append(row)
            if recipe.patience is None or _best(history) == epoch:
                kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            if checkpoint:
                _write_checkpoint(checkpoint, recipe, model, optimizer, history, kept)

    model.load_state_dict(kept)
    model = round_to_half(model).eval()
    model.classes = data.classes
    table = pd.DataFrame(history)
    record = _write_record(Path(out), recipe, model, table, training_set, data, device) if out else None
    if checkpoint:
        checkpoint.unlink()
    return Run(model.cpu(), table, record)


def _train_epoch(model, optimizer, training_set: ArrayDataset, recipe: Recipe, epoch: int, device, bar) -> dict:
    # Each epoch draws from a seed of its own: a resumed run then needs no state of the random generator.
    torch.manual_seed(1_000_000 * recipe.seed + epoch)
    model.train()
    seen = total_loss = correct = 0
    for batch in torch.randperm(len(training_set)).split(recipe.batch_size):
        x, y = (t.to(device) for t in training_set.tensors(batch.numpy()))
        logits = model(x)
        loss = cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(y)
        total_loss += loss.item() * len(y)
        correct += (logits.argmax(1) == y).sum().item()
        bar.set_postfix_str(f"epoch {epoch}: {total_loss / seen:.3f} nats, {correct / seen:.1%}", refresh=False)
        bar.update()
    return {"train_loss": total_loss / seen, "train_accuracy": correct / seen}


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
def predict(model: nn.Module, images: ArrayDataset, *, batch_size: int = 500) -> torch.Tensor:
    """The logits of every image, (N, classes) float32 on the CPU. Leaves the model in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    parts = torch.arange(len(images)).split(batch_size)
    return torch.cat([model(images.tensors(part.numpy())[0].to(device)).float().cpu() for part in parts])


def measure(logits: torch.Tensor, targets) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy in [0, 1], of logits (N, C) against targets (N,)."""
    targets = torch.as_tensor(targets)
    return cross_entropy(logits, targets).item(), (logits.argmax(1) == targets).double().mean().item()


# --- checkpoint and record ---


def _write_checkpoint(file: Path, recipe: Recipe, model, optimizer, history: list[dict], kept: dict) -> None:
    tensors = {f"model/{name}": t for name, t in model.state_dict().items()}
    tensors |= {f"kept/{name}": t for name, t in kept.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{name}": t for name, t in state.items()}
    about = {"recipe": json.dumps(asdict(recipe)), "history": json.dumps(history)}
    with replacing(file) as scratch:
        save_file({name: t.contiguous() for name, t in tensors.items()}, scratch, metadata=about)


def _resume(file: Path, recipe: Recipe, model, optimizer) -> tuple[list[dict], dict | None]:
    """Put model and optimizer where the checkpoint left them; its history and kept weights, or none of either."""
    if not file.is_file():
        return [], None
    tensors = {"model": {}, "kept": {}, "optimizer": {}}
    with safe_open(file, framework="pt") as stored:
        about = stored.metadata()
        if json.loads(about["recipe"]) != asdict(recipe):
            raise ValueError(f"{file} belongs to another recipe. Delete it to start afresh, or choose another folder.")
        for key in stored.keys():
            part, name = key.split("/", 1)
            tensors[part][name] = stored.get_tensor(key)
    model.load_state_dict(tensors["model"])
    state = {}
    for key, tensor in tensors["optimizer"].items():
        i, name = key.split("/")
        state.setdefault(int(i), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return json.loads(about["history"]), tensors["kept"]


def _write_record(folder: Path, recipe, model, history, training_set, data: Splits, device) -> dict:
    """Save the weights and measure them, as they are saved, on all three parts of the data set."""
    save_model(model, folder / "weights.safetensors", architecture=recipe.model, classes=data.classes)
    test_logits = predict(model, data.test).half()
    metrics = {}
    for part, images in (("train", training_set), ("validation", data.validation), ("test", data.test)):
        logits = test_logits.float() if part == "test" else predict(model, images)
        loss, accuracy = measure(logits, images.targets)
        metrics |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
    rows = history.to_dict("records")
    record = {
        "recipe": asdict(recipe),
        "command": f"gradcam-lib train {recipe.name}",
        "dataset_sha256": data.sha256,
        "images": {"train": len(training_set), "validation": len(data.validation), "test": len(data.test)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs_run": len(rows),
        "kept_epoch": len(rows) if recipe.patience is None else _best(rows),
        "metrics": metrics,
        "training_seconds": round(float(history["seconds"].sum()), 1),
        **describe_machine(device),
    }
    write_record(folder, record, history, test_logits.numpy())
    return record
