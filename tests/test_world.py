"""Training by two processes that `torchrun` starts: as by one, also after one of them was killed."""

import json
import os
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from killing import fork
from safetensors.torch import load_file
from torch import nn

from gradcam_lib import world
from gradcam_lib.world import World

# Sixty-one images of noise in batches of 20: two halves of ten, and a last batch of which one worker gets nothing. The
# network has batch norm, and its images are mirrored and moved.
TRAIN = """
import os, signal, sys
from dataclasses import replace
import numpy as np, torch
import gradcam_lib as gc
from gradcam_lib import training
from gradcam_lib.datasets import DATASETS, ArrayDataset, Splits

torch.set_num_threads(1)
out, die_at = sys.argv[1], sys.argv[2]

def part(n, seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    images = rng.integers(0, 150, (n, 32, 32, 3), dtype=np.uint8)
    images[np.arange(n), :, :, targets] += 100
    return ArrayDataset(images, targets, ("red", "green", "blue"))

data = Splits(DATASETS["shapes"], part(61, 0), part(21, 1), part(20, 2), ("red", "green", "blue"), "0" * 64)
recipe = gc.Recipe("noise", "noise", "cifar10-fast", epochs=3, batch_size=20, optimizer="muon", lr=0.02,
                   momentum=0.6, schedule="linear", ema=0.9, flip="random", shift=2, label_smoothing=0.1)
step = training._step

def dying(state, *rest):
    here = f"{os.environ.get('RANK')}:{os.environ.get('TORCHELASTIC_RESTART_COUNT')}:{len(state.history)}:{state.step}"
    if here == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(state, *rest)

training._step = dying
gc.train(recipe, out=out, data=data, device="cpu", progress=False)

# A batch in parts, of which the workers add up their gradients once: by a network without batch norm and dropout.
build = training.build_model
def without_dropout(*of):
    model = build(*of)
    model.classifier.dropout1.p = model.classifier.dropout2.p = 0.0
    return model

training.build_model = without_dropout
plain = gc.Recipe("parts", "noise", "report-cnn", epochs=2, batch_size=20, accumulate=2, optimizer="sgd", lr=0.05)
gc.train(plain, out=out + "-parts", data=data, device="cpu", progress=False)
"""


def run(folder, *launcher, die_at="never"):
    script = folder.parent / "train.py"
    script.write_text(TRAIN)
    command = [sys.executable, *launcher, str(script), str(folder), die_at]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = {}
    for run in (folder, folder.with_name(f"{folder.name}-parts")):
        weights |= {f"{run.name}/{name}": t.float() for name, t in load_file(run / "weights.safetensors").items()}
    return weights, json.loads((folder / "run.json").read_text()), pd.read_csv(folder / "history.csv")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    return run(tmp_path_factory.mktemp("two") / "out", *TWO)


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2")


def test_two_processes_train_the_network_that_one_trains(by_two, tmp_path):
    weights, record, history = by_two
    expected, alone, expected_history = run(tmp_path / "out")
    assert (record["workers"], alone["workers"]) == (2, 1)
    for name in expected:  # both are rounded to half precision
        assert torch.allclose(weights[name], expected[name], rtol=2e-3, atol=2e-3), name
    columns = ["train_loss", "validation_loss"]
    assert (history[columns] / expected_history[columns] - 1).abs().max().max() < 1e-3
    assert (history["train_accuracy"] * 61).round().tolist() == pytest.approx(history["train_accuracy"] * 61)


def test_a_killed_worker_is_replaced_and_the_run_goes_on_to_the_same_bits(by_two, tmp_path):
    """Worker 1 is killed in the middle of the third epoch of the first attempt; the agent starts both again."""
    weights, _, history = run(tmp_path / "out", *TWO, die_at="1:0:2:1")
    expected, _, expected_history = by_two
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    pd.testing.assert_frame_equal(
        history.drop(columns="seconds"), expected_history.drop(columns="seconds"), check_exact=True
    )
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_a_worker_ends_with_an_agent_that_is_killed():
    """It would train on to the end, and write where the workers of the next torchrun write."""
    here, there = fork.Pipe()

    def work():
        world._end_with(os.getppid())
        there.send("begun")
        time.sleep(20)
        there.send("and went on")

    agent = fork.Process(target=lambda: fork.Process(target=work).start() or time.sleep(20))
    agent.start()
    there.close()
    assert here.recv() == "begun"
    agent.kill()
    with pytest.raises(EOFError):  # nobody is left who could say more
        here.recv()
    agent.join()


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_parts_are_all_of_it_in_order_and_nearly_equal(size):
    for n in (0, 1, 2, 7, 64, 1000):
        parts = [World(torch.device("cpu"), rank, size).part(n) for rank in range(size)]
        assert [i for part in parts for i in range(n)[part]] == list(range(n))
        lengths = [part.stop - part.start for part in parts]
        assert max(lengths) - min(lengths) <= 1


def test_one_worker_changes_nothing():
    alone, model = World(torch.device("cpu")), nn.Sequential(nn.BatchNorm2d(3))
    assert alone.together(model) is model and type(model[0]) is nn.BatchNorm2d
    assert alone.sum([1.5, 2.0]) == [1.5, 2.0]
