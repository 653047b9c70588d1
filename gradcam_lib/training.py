"""A recipe in, a trained model and its record out, on one CPU, one GPU, or the workers that `torchrun` starts.

A run that was interrupted goes on from its checkpoint.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import count
from math import isfinite, log
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.metrics import recall_score
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from .architectures import AirbenchNet, Network, Preparation, build_model
from .batches import ArrayBatches, PictureBatches, at_once, at_size, in_order, normalised
from .batches import views as views_of
from .checkpoints import State, TrainingError, best_epoch, ends_the_run
from .datasets import ArrayDataset, FolderSplit, Part, Splits, first_of_each_class, load_dataset
from .decoded import DecodedPictures, decode
from .faults import enough_memory, writing
from .layers import output_of
from .models import load_pretrained, round_to_half, save_model
from .optimizers import set_progress
from .recipes import RECIPES, Recipe
from .records import describe_machine, write_record
from .world import World, fastest_device, joined, usable

__all__ = ["RECIPES", "Recipe", "Run", "TrainingError", "learning_rate_range", "measure", "predict", "train"]

Batches = ArrayBatches | PictureBatches
Decoded = ArrayDataset | DecodedPictures  # images that can be trained on

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LESS_MEMORY = (
    "compute each batch of {0.batch_size} in parts, replace(recipe, accumulate=2) or more of them, or train with a "
    "smaller batch_size"
)
LOOK = 0.1  # seconds between two looks at the loss: each makes a GPU wait until all that was asked of it is done

PIXELS = Preparation(resize=224, size=224)  # neither normalised nor, for CIFAR and shapes, resized


@dataclass(frozen=True)
class Run:
    """What `train` returns.

    model    in evaluation mode, on the CPU, with `model.classes`
    history  a row an epoch: epoch, train_loss, train_accuracy (running, dropout and augmentation on), validation_loss,
             validation_accuracy (NaN where the recipe trains on these images too), seconds. Losses in nats, label
             smoothing included in train_loss; accuracies in [0, 1].
    record   what `run.json` holds, or None where no folder was given, and in all workers but the first
    """

    model: nn.Module
    history: pd.DataFrame
    record: dict[str, Any] | None


def train(
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    data: Splits | None = None,
    device: str | torch.device | None = None,
    compile: bool = False,
    deterministic: bool = False,
    tensorboard: Path | str | None = None,
    progress: bool = True,
) -> Run:
    """Train a recipe.

    Under `torchrun`, all its workers train one network together: the recipe's batch is divided among them.

    out            the folder for the record, which all workers can see. While the run lasts it holds a checkpoint,
                   from which a run that was interrupted goes on: on the CPU, with the same number of threads, to the
                   same weights bit for bit. Ctrl-C writes one at the end of the step under way
    data           the data set, where it is at hand already; otherwise the recipe's is loaded
    device         "cpu", "cuda" or "mps"; None takes the fastest there is
    compile        let torch.compile make one program of the network: a minute at the start, then faster on a GPU
    deterministic  use only operations that give the same bits every time, also on a GPU; slower there. PyTorch raises
                   RuntimeError where it has none
    tensorboard    a folder for event files, a point an epoch for each column of the history; needs the package
    progress       show a bar with the loss and the accuracy so far

    Raises ValueError where `out` holds the checkpoint of another recipe, the recipe names what does not exist, or the
    data set or the device does not fit.
    Raises TrainingError where the loss is no longer a number, or a file cannot be written; the last checkpoint stays.
    Raises torch.OutOfMemoryError with a hint where a batch is too large for the memory.
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"A recipe is needed, such as RECIPES['cifar10-fast'], not {recipe!r}.")
    if recipe.all_images and recipe.patience is not None:
        raise ValueError(f"{recipe.name!r}: patience needs validation images, and all_images trains on them. Drop one.")
    out = Path(out) if out else None
    data = _fitting(recipe, data)
    world = joined(usable(device or fastest_device()))
    if out and world.rank == 0:
        with ends_the_run(), writing(out):  # rather now than after the first epoch
            out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out).close()
    with _algorithms(deterministic), enough_memory(LESS_MEMORY.format(recipe)):
        state, batches, data, training_set = _beginning(recipe, data, world)
        if out:
            state.resume(out / "checkpoint.safetensors")
        if world.sum([len(state.history)]) != [world.size * len(state.history)]:
            raise ValueError(f"Not all workers see the same checkpoint: {out} has to be on a disk that they share.")
        weights = _run(state, batches, world, data, out, compile, tensorboard, progress)
        # The network that was trained may have been changed for many workers; what is returned has not.
        kept = build_model(recipe.model, len(data.classes))
        kept.prepare, kept.classes = state.model.prepare, data.classes
        kept.load_state_dict(weights)
        kept = round_to_half(kept).eval()
        table = pd.DataFrame(state.history)
        record = None
        if out:
            record = _write_record(out, recipe, kept.to(world.device), table, training_set, data, world)
        return Run(kept.cpu(), table, record)


def learning_rate_range(
    recipe: Recipe,
    *,
    data: Splits | None = None,
    least: float = 1e-4,
    largest: float = 10.0,
    steps: int = 100,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """The loss while the step size rises exponentially: the learning rate range test (Smith 2017).

    What else the recipe says holds, but for its schedule. Where it has several step sizes, all rise together.

    data            as for `train`
    least, largest  step sizes of the first step and of the last
    device          as for `train`

    returns a row a step: lr, the step size, and loss, in nats, before that step. It ends early where the loss is no
    number or four times that of guessing.
    """
    data = _fitting(recipe, data)
    world = World(usable(device or fastest_device()))
    rows: list[dict[str, float]] = []
    state, batches, data, _ = _beginning(recipe, data, world)
    state.model.train()
    with tqdm(total=steps, unit=" steps", desc=f"{recipe.name}, step sizes") as bar:
        for epoch in count(1):
            for step, (x, y, n) in enumerate(batches.epoch(epoch)):
                torch.manual_seed(_seed_of_step(recipe, epoch, step, world))
                lr = least * (largest / least) ** (len(rows) / (steps - 1))
                for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
                    group["lr"] = group["largest_lr"] * lr / recipe.lr
                loss = _step(state, state.model, x, y, n, world)[0].item() / n
                rows.append({"lr": lr, "loss": loss})
                bar.update()
                if len(rows) == steps or not loss < 4 * log(len(data.classes)):
                    return pd.DataFrame(rows)
    raise AssertionError("unreachable: the epochs have no end")


def _fitting(recipe: Recipe, data: Splits | None) -> Splits:
    """The data set, where it fits the recipe; otherwise ValueError."""
    if recipe.precision not in PRECISIONS:
        raise ValueError(f"There is no precision {recipe.precision!r}. Choose one of: {', '.join(PRECISIONS)}.")
    if min(recipe.batch_size, recipe.epochs) < 1:
        raise ValueError(f"{recipe.name!r}: batch_size and epochs must be at least 1.")
    data = data or load_dataset(recipe.dataset)
    if not isinstance(data, Splits):
        raise ValueError(f"data is what load_dataset gives, with its three parts, not {type(data).__name__}.")
    for part in ("train", "validation", "test"):
        y, C = np.asarray(getattr(data, part).targets), len(data.classes)
        if not len(y):
            raise ValueError(f"There are no images in the {part} part of the data set.")
        if not (0 <= y.min() and y.max() < C):
            raise ValueError(f"Labels from {y.min()} to {y.max()} in the {part} part do not fit {C} classes.")
    return data


def _beginning(recipe: Recipe, data: Splits, world: World) -> tuple[State, Batches, Splits, Decoded]:
    """Before the first step: the state, the batches, the data set with its pictures decoded, and its training set."""
    torch.manual_seed(recipe.seed)
    model = _network(recipe, len(data.classes)).to(world.device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its types forgot this
    if isinstance(data.train, FolderSplit):
        data = decode(data, model.prepare.resize)
    training_set = _training_set(recipe, data)
    batches: Batches
    if isinstance(training_set, ArrayDataset):
        batches = ArrayBatches(training_set, recipe, model.prepare, world)
        with torch.no_grad():
            output_of(model.eval(), normalised(batches.pixels[:1], model.prepare))  # says what does not fit
        if isinstance(model, AirbenchNet):
            model.set_whitening(normalised(batches.pixels[:5000], model.prepare))
    else:
        if isinstance(model, AirbenchNet):
            raise ValueError(f"{recipe.name!r}: {recipe.model!r} is for CIFAR and shapes, not for {data.info.title}.")
        batches = PictureBatches(training_set, recipe, model.prepare, world)
    return State(recipe, model, world.device), batches, data, training_set


def _run(
    state: State,
    batches: Batches,
    world: World,
    data: Splits,
    out: Path | None,
    compile: bool,
    tensorboard: Path | str | None,
    progress: bool,
) -> dict[str, torch.Tensor]:
    """All epochs that are still to do; the weights that are kept."""
    recipe, steps = state.recipe, len(batches)
    network: Any = world.together(state.model)
    network = torch.compile(network) if compile else network
    checkpoint = out / "checkpoint.safetensors" if out and world.rank == 0 else None
    with (
        tqdm(
            total=recipe.epochs * steps,
            initial=len(state.history) * steps + state.step,
            unit=" steps",
            desc=recipe.name,
            disable=not progress or world.rank > 0,
        ) as bar,
        _events(tensorboard if world.rank == 0 else None, len(state.history)) as note,
        _interrupt_held_back(world) as interrupted,
    ):
        while not state.ended and not interrupted.is_set():
            if _train_epoch(state, network, batches, world, bar, interrupted):
                row = _row(state, world)
                began = time.perf_counter()
                if not recipe.all_images:
                    logits = _predict_together(state.tested, data.validation, recipe.views, world)
                    loss, accuracy = measure(logits, data.validation.targets)
                    row |= {"validation_loss": loss, "validation_accuracy": accuracy}
                row["seconds"] += time.perf_counter() - began
                state.end_epoch(row)
                note(row)
            if checkpoint:
                state.write(checkpoint)
        if not state.ended:
            raise KeyboardInterrupt(f"{recipe.name!r} was interrupted; the same call goes on from here")
    return state.result


def _train_epoch(
    state: State, network: Any, batches: Batches, world: World, bar: "tqdm[NoReturn]", interrupted: threading.Event
) -> bool:
    """The steps of an epoch that are still to do. False where an interruption left some of them."""
    recipe, epoch, steps = state.recipe, len(state.history) + 1, len(batches)
    network.train()
    unseen: list[tuple[int, torch.Tensor]] = []
    looked = time.perf_counter()
    for x, y, n in batches.epoch(epoch, first=state.step):
        torch.manual_seed(_seed_of_step(recipe, epoch, state.step, world))
        set_progress(state.optimizers, recipe, (epoch - 1 + state.step / steps) / recipe.epochs)
        unseen.append((len(y), _step(state, network, x, y, n, world)))
        state.step += 1
        if time.perf_counter() - looked > LOOK or state.step == steps or interrupted.is_set():
            _look(state, unseen, bar)
            now = time.perf_counter()
            state.sums[3] += now - looked
            looked = now
        if interrupted.is_set():
            break
    return state.step == steps


def _seed_of_step(recipe: Recipe, epoch: int, step: int, world: World) -> int:
    """Each step draws its dropout from a seed of its own, and each worker from another."""
    return ((recipe.seed * 10_007 + epoch) * 1_000_003 + step) * 1_009 + world.rank


def _step(state: State, network: Any, x: torch.Tensor, y: torch.Tensor, n: int, world: World) -> torch.Tensor:
    """One step of every optimiser on a batch of n images, of which x and y are this worker's part.

    returns (2,): the sum of this part's losses, and how many of its images were right; on the device
    """
    recipe, seen = state.recipe, torch.zeros(2, device=x.device)
    for optimizer in state.optimizers:
        optimizer.zero_grad()
    parts = max(1, min(recipe.accumulate, n // world.size))
    for left, (part_x, part_y) in enumerate(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True), 1 - parts):
        # Of a batch in parts, the workers add up their gradients once, after the last part.
        with network.no_sync() if world.size > 1 and left else nullcontext():
            with torch.autocast(x.device.type, PRECISIONS[recipe.precision], enabled=recipe.precision != "float32"):
                logits = network(part_x)
            loss = cross_entropy(logits.float(), part_y, label_smoothing=recipe.label_smoothing, reduction="sum")
            state.scaler.scale(loss * world.size / n).backward()  # the workers' gradients are averaged, not summed
        seen += torch.stack([loss.detach(), (logits.argmax(1) == part_y).sum()])
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.model)
    return seen


def _look(state: State, unseen: list[tuple[int, torch.Tensor]], bar: "tqdm[NoReturn]") -> None:
    """Add the steps since the last look to the sums of the epoch, and show these."""
    recipe, epoch = state.recipe, len(state.history) + 1
    values = torch.stack([seen for _, seen in unseen]).tolist()  # from the device all at once
    for number, ((images, _), (loss, hits)) in enumerate(
        zip(unseen, values, strict=True), state.step - len(unseen) + 1
    ):
        if not isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at step {number} of epoch {epoch} of {recipe.name!r}. Try a smaller lr "
                f"(it is {recipe.lr:g}), a warm-up such as schedule='one-cycle', or precision='float32'."
            )
        for i, value in enumerate((images, loss, hits)):
            state.sums[i] += value
    seen, loss, hits, _ = state.sums
    bar.set_postfix_str(f"epoch {epoch}: {loss / max(seen, 1):.3f} nats, {hits / max(seen, 1):.1%}", refresh=False)
    bar.update(len(unseen))
    unseen.clear()


def _row(state: State, world: World) -> dict[str, Any]:
    images, loss, hits = world.sum(state.sums[:3])
    row = {"epoch": len(state.history) + 1, "train_loss": loss / images, "train_accuracy": hits / images}
    return row | {"seconds": state.sums[3]}


@contextmanager
def _interrupt_held_back(world: World) -> Iterator[threading.Event]:
    """Ctrl-C is noted, for the loop to stop at the end of a step; a second one stops it at once."""
    asked = threading.Event()

    def note(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    ours = (
        world.size == 1  # several workers would stop at different steps, and wait for each other
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where a signal is ignored on purpose
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _events(folder: Path | str | None, done: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What takes a row of the history into TensorBoard's event files, where there is a folder for them."""
    if folder is None:
        yield lambda row: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("TensorBoard's event files need a package that is missing: pip install tensorboard") from error
    with SummaryWriter(folder, purge_step=done + 1) as writer:

        def note(row: dict[str, Any]) -> None:
            for name, value in row.items():
                writer.add_scalar(name, value, row["epoch"])

        yield note


@contextmanager
def _algorithms(deterministic: bool) -> Iterator[None]:
    """Operations that give the same bits every time, or the fastest."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
    torch.use_deterministic_algorithms(deterministic)
    # It measures the ways to convolve, and may choose another each time.
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _network(recipe: Recipe, classes: int) -> Network:
    """The network before training, with the size of its pictures as the recipe has it."""
    model = (load_pretrained if recipe.pretrained else build_model)(recipe.model, classes)
    if recipe.image_size is not None:
        model.prepare = at_size(model.prepare, recipe.image_size)
    return model


def _training_set(recipe: Recipe, data: Splits) -> Decoded:
    images = data.train
    if recipe.all_images and not isinstance(images, ArrayDataset):
        raise ValueError(f"{recipe.name!r}: all_images is for CIFAR and shapes; {data.info.title} keeps its parts.")
    if recipe.all_images:
        pixels, targets = (np.concatenate([getattr(part, name) for part in (data.train, data.validation)])
                           for name in ("data", "targets"))  # fmt: skip
        images = ArrayDataset(pixels, targets, data.classes)
    assert not isinstance(images, FolderSplit)  # they are decoded by now
    if recipe.per_class is not None:
        images = images.take(first_of_each_class(images.targets, recipe.per_class))
    return images.take(slice(0, recipe.train_images))


@torch.no_grad()
def predict(model: nn.Module, images: Decoded, *, batch_size: int | None = None, views: int = 1) -> torch.Tensor:
    """The logits of every image, (N, classes) float32 on the CPU. Leaves the model in evaluation mode.

    model       with `model.prepare`, as `build_model` and `load_model` give it; one without is shown pixels in [0, 1]
    images      an `ArrayDataset`, or `DecodedPictures`
    batch_size  how many at once; None takes what `batches.at_once` says
    views       how many views of an image are averaged: 1, 2 or 6, as `batches.views` has them
    """
    device, prepare = next(model.parameters()).device, getattr(model, "prepare", PIXELS)
    batch_size = batch_size or at_once(prepare.size, device)
    model.eval()
    parts: list[torch.Tensor] = []
    for x in in_order(images, prepare, device, batch_size):
        parts.append(sum(share * model(view).float() for share, view in views_of(x, views)).cpu())
    return torch.cat(parts)


def measure(logits: torch.Tensor, targets: npt.ArrayLike | torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy in [0, 1], of logits (N, C) against targets (N,)."""
    targets = torch.as_tensor(targets)
    return cross_entropy(logits, targets).item(), (logits.argmax(1) == targets).double().mean().item()


def _predict_together(model: nn.Module, images: Part, views: int, world: World) -> torch.Tensor:
    """As `predict`, each worker a part."""
    assert not isinstance(images, FolderSplit)  # they are decoded by now
    return world.gathered(predict(model, images.take(world.part(len(images))), views=views))


def _mean_class_accuracy(logits: torch.Tensor, targets: np.ndarray) -> float:
    """The mean over the classes of the accuracy in each: what the small classes count for as much as the large ones."""
    return float(recall_score(targets, logits.argmax(1), labels=np.unique(targets), average="macro", zero_division=0))


def _write_record(
    folder: Path,
    recipe: Recipe,
    model: Network,
    history: pd.DataFrame,
    training_set: Decoded,
    data: Splits,
    world: World,
) -> dict[str, Any] | None:
    """Save the weights and measure them, as they are saved, on all parts of the data set."""
    parts: dict[str, Part] = {"train": training_set, "test": data.test}
    if not recipe.all_images:
        parts["validation"] = data.validation
    logits = {
        name: _predict_together(model, images, recipe.views if name != "train" else 1, world)
        for name, images in parts.items()
    }
    if world.rank > 0:
        return None
    logits["test"] = logits["test"].half()
    metrics: dict[str, float] = {}
    for name in parts:
        loss, accuracy = measure(logits[name].float(), parts[name].targets)
        metrics |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        metrics[f"{name}_mean_class_accuracy"] = _mean_class_accuracy(logits[name], parts[name].targets)
    rows: list[Any] = history.to_dict("records")
    record = {
        "recipe": asdict(recipe),
        "command": f"gradcam-lib train {recipe.name}" + (f" --seed {recipe.seed}" if recipe.seed else ""),
        "dataset_sha256": data.sha256,
        "images": {name: len(images) for name, images in parts.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs_run": len(rows),
        "kept_epoch": len(rows) if recipe.patience is None else best_epoch(rows),
        "metrics": metrics,
        "training_seconds": round(float(history["seconds"].sum()), 1),
        **describe_machine(world.device),
        "workers": world.size,
    }
    with ends_the_run():
        save_model(model, folder / "weights.safetensors", architecture=recipe.model, classes=data.classes)
        write_record(folder, record, history, logits["test"].numpy())
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return record
