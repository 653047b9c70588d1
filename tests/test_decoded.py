"""Photographs decoded once: the same pixels, in order, whole or not at all; and what a recipe then does to them."""

import json
import os
import pickle
import signal
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from killing import fork, in_child
from PIL import Image
from safetensors import safe_open
from torch.utils.data import Dataset

import gradcam_lib as gc
from gradcam_lib import batches, decoded, training
from gradcam_lib.architectures import Preparation
from gradcam_lib.batches import PictureBatches, as_tested, at_size, in_order
from gradcam_lib.datasets import DATASETS, DatasetError, FolderSplit, Splits
from gradcam_lib.decoded import decode
from gradcam_lib.recipes import Recipe
from gradcam_lib.world import World

CPU = World(torch.device("cpu"))
RECIPE = Recipe("photographs", "caltech101", "report-cnn", batch_size=8)
SQUARE = Preparation(32, 32)


class Photographs(Dataset):
    """Pictures of many sizes, as torchvision's folder data sets give them."""

    def __init__(self, count=30):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((int(rng.integers(20, 90)), int(rng.integers(20, 90)))), i % 3


@pytest.fixture
def photographs(cache):
    targets = np.arange(30) % 3
    parts = np.arange(0, 18), np.arange(18, 24), np.arange(24, 30)
    whole, classes = Photographs(), ("ant", "bee", "cat")
    return Splits(
        DATASETS["caltech101"], *(FolderSplit(whole, part, targets, classes) for part in parts), classes, "0" * 64
    )


def test_small_pictures_keep_their_pixels_and_large_ones_their_shape(photographs):
    parts = decode(photographs, 40)
    for name in ("train", "validation", "test"):
        split, pictures = getattr(photographs, name), getattr(parts, name)
        assert len(pictures) == len(split) and (pictures.targets == split.targets).all()
        for i in range(len(split)):
            (image, label), (picture, target) = split[i], pictures[i]
            assert (picture.dtype, label) == (torch.uint8, target)
            width, height = image.size
            share = min(40 / min(width, height), 1)
            assert picture.shape == (3, round(height * share), round(width * share))
            expected = np.asarray(image.resize(picture.shape[:0:-1], Image.Resampling.BILINEAR))
            assert (picture.permute(1, 2, 0).numpy() == expected).all()


def test_they_are_decoded_once(photographs, monkeypatch):
    first = decode(photographs, 40)
    monkeypatch.setattr(decoded, "_write", lambda *a: pytest.fail("decoded again"))
    again = decode(photographs, 40)
    assert torch.equal(first.test[3][0], again.test[3][0])


@pytest.mark.parametrize("harm", ["cut short", "of another version", "no places", "no numbers", "other places"])
def test_damage_is_noticed(photographs, cache, harm):
    decode(photographs, 40)
    folder = cache / "caltech101-40px"
    if harm == "cut short":
        os.truncate(folder / "pixels.bin", 1000)
    elif harm == "no places":
        (folder / "places.npy").unlink()
    elif harm in ("no numbers", "other places"):
        places = np.load(folder / "places.npy")
        places[3, 1] += 1  # the first one is now longer than the room before the next
        np.save(folder / "places.npy", places.astype(str) if harm == "no numbers" else places)
    else:
        about = json.loads((folder / "about.json").read_text())
        (folder / "about.json").write_text(json.dumps(about | {"source_sha256": "1" * 64}))
    with pytest.raises(DatasetError, match=r"decoded Caltech-101 is damaged .*\. Delete .*caltech101-40px and decode"):
        decode(photographs, 40)


def test_a_data_set_with_a_transform_is_refused(photographs):
    class Tensors(Photographs):
        def __getitem__(self, i):
            return torch.zeros(3, 5, 5), 0

    split = FolderSplit(Tensors(), np.arange(3), np.zeros(30, int), ("ant",))
    with pytest.raises(ValueError, match="load the data set without a transform"):
        decode(replace(photographs, train=split), 40)


def test_a_process_that_is_killed_leaves_nothing_half_made(photographs, cache):
    class Slow(Photographs):
        def __getitem__(self, i):
            time.sleep(0.02)
            return super().__getitem__(i)

    slow = replace(photographs, train=FolderSplit(Slow(), np.arange(18), np.arange(30) % 3, photographs.classes))
    for wait in np.random.default_rng(0).uniform(0.01, 0.1, 6):
        in_child(decode, slow, 40, kill_after=wait)
        assert not (cache / "caltech101-40px").exists()
    assert len(decode(photographs, 40).train) == 18


# --- batches of them ---


def epoch(data, recipe, number=1, prepare=SQUARE):
    x, y, _ = zip(*PictureBatches(data, recipe, prepare, CPU).epoch(number), strict=True)
    return torch.cat(x), torch.cat(y)


def test_a_centre_crop_is_the_one_of_testing(photographs):
    train = decode(photographs, 40).train
    x, y = epoch(train, RECIPE)
    tested = torch.cat(list(in_order(train, SQUARE, CPU.device, 7)))
    assert tested.shape == (18, 3, 32, 32)
    order = [(tested == image).flatten(1).all(1).nonzero().item() for image in x]
    assert sorted(order) == list(range(18)) and order != list(range(18))
    assert (y.numpy() == train.targets[order]).all()


def test_what_happens_to_a_picture_does_not_depend_on_how_many_processes_there_are(photographs, monkeypatch):
    train = decode(photographs, 40).train
    recipe = replace(RECIPE, crop="random", flip="random", jitter=0.3)
    results = []
    for number in (0, 1, 2):
        monkeypatch.setattr(batches, "workers", lambda number=number: number)
        results.append(epoch(train, recipe)[0])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert not torch.equal(results[0], epoch(train, recipe, number=2)[0])
    assert not torch.equal(results[0], epoch(train, replace(recipe, seed=1))[0])


def test_a_recipe_of_photographs_trains_at_its_size_and_its_weights_remember_it(photographs, tmp_path):
    recipe = replace(RECIPE, epochs=2, image_size=32, crop="random", flip="random", per_class=4)
    run = gc.train(recipe, data=photographs, out=tmp_path, progress=False)
    assert run.record["images"] == {"train": 12, "validation": 6, "test": 6}
    model = gc.load_model(tmp_path / "weights.safetensors")
    assert model.prepare == run.model.prepare == Preparation(32, 32)
    logits = gc.predict(model, decode(photographs, 32).test)
    assert np.abs(logits.numpy() - np.load(tmp_path / "test_logits.npy")).max() < 0.01


def test_a_size_of_ones_own_keeps_the_way_of_showing():
    own = Preparation(256, 224, mean=(0.5, 0.4, 0.3), interpolation="bicubic")
    assert at_size(own, 112) == replace(own, resize=128, size=112)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_picture_is_tested_as_its_network_prepares_it(interpolation):
    """The cropped picture of `Preparation`, by Pillow, and the one of the batches, by torchvision on tensors."""
    prepare = Preparation(40, 32, interpolation=interpolation)
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    got = as_tested(prepare)(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - prepare.crop(image).astype(int)).max() <= 2
    other = Preparation(40, 32, interpolation={"bilinear": "bicubic", "bicubic": "bilinear"}[interpolation])
    assert np.abs(got - other.crop(image).astype(int)).max() > 10


def test_another_process_gets_the_name_of_the_file_and_not_its_bytes(photographs):
    train = decode(photographs, 40).train
    sent = pickle.dumps(train)
    assert len(sent) < 5000 < train.pixels.size
    assert torch.equal(pickle.loads(sent)[7][0], train[7][0])


@pytest.mark.parametrize("processes", [2, 9])
def test_the_parts_of_all_workers_make_the_batch_of_one(photographs, processes, monkeypatch):
    monkeypatch.setattr(batches, "workers", lambda: 0)
    train = decode(photographs, 40).train
    recipe = replace(RECIPE, crop="random", flip="random")
    whole = list(PictureBatches(train, recipe, SQUARE, CPU).epoch(2))
    ranks = [World(CPU.device, rank, processes) for rank in range(processes)]
    parts = [list(PictureBatches(train, recipe, SQUARE, world).epoch(2)) for world in ranks]
    for (x, y, n), *of_workers in zip(whole, *parts, strict=True):
        assert torch.equal(x, torch.cat([part[0] for part in of_workers]))
        assert torch.equal(y, torch.cat([part[1] for part in of_workers]))
        assert {part[2] for part in of_workers} == {n} == {len(x)}
    later = list(PictureBatches(train, recipe, SQUARE, CPU).epoch(2, first=1))
    assert torch.equal(later[0][0], whole[1][0])


def test_ctrl_c_reaches_the_processes_that_prepare_pictures_and_does_not_break_the_step(
    photographs, tmp_path, monkeypatch
):
    """A terminal sends it to the whole group. The run stops after its step, and goes on from its checkpoint."""
    monkeypatch.setattr(batches, "workers", lambda: 2)
    recipe = replace(RECIPE, epochs=2, image_size=32, flip="random")
    decode(photographs, 32)

    def child():
        os.setpgid(0, 0)
        torch.set_num_threads(1)
        original = training._step

        def pressing(state, *rest):
            if (len(state.history), state.step) == (1, 0):
                os.killpg(0, signal.SIGINT)
                time.sleep(0.5)  # for what it does to the others to be done
            return original(state, *rest)

        training._step = pressing
        try:
            gc.train(recipe, data=photographs, out=tmp_path / "out", device="cpu", progress=False)
        except KeyboardInterrupt:
            os._exit(130)

    process = fork.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 130
    with safe_open(tmp_path / "out" / "checkpoint.safetensors", framework="pt") as stored:
        assert (len(json.loads(stored.metadata()["history"])), stored.metadata()["step"]) == (1, "1")
    run = gc.train(recipe, data=photographs, out=tmp_path / "out", device="cpu", progress=False)
    whole = gc.train(recipe, data=photographs, device="cpu", progress=False)
    pd.testing.assert_frame_equal(run.history.drop(columns="seconds"), whole.history.drop(columns="seconds"))


# --- what may go wrong while they are decoded ---


def test_a_damaged_picture_is_named(photographs, cache):
    class Damaged(Photographs):
        root = "the folder"

        def __getitem__(self, i):
            if i == 7:
                raise OSError("image file is truncated")
            return super().__getitem__(i)

    torn = replace(photographs, train=FolderSplit(Damaged(), np.arange(18), np.arange(30) % 3, photographs.classes))
    with pytest.raises(DatasetError, match=r"Picture 7 of the folder is damaged \(image file is truncated\). Delete"):
        decode(torn, 40)
    assert [f.name for f in cache.iterdir()] == ["caltech101-40px.lock"]
    assert len(decode(photographs, 40).train) == 18


def test_a_full_disk_leaves_nothing(photographs, cache, full_disk):
    with (
        full_disk(50_000),
        pytest.raises(DatasetError, match=r"decoded Caltech-101: .*40px could not be written .*make ro"),
    ):
        decode(photographs, 40)
    assert [f.name for f in cache.iterdir()] == ["caltech101-40px.lock"]
    assert len(decode(photographs, 40).train) == 18


def test_two_processes_at_once_decode_them_once(photographs, cache, tmp_path):
    class Counted(Photographs):
        def __getitem__(self, i):
            if i == 29:
                time.sleep(0.3)
                with open(tmp_path / "asked", "a") as file:
                    file.write("x")
            return super().__getitem__(i)

    slow = replace(photographs, train=FolderSplit(Counted(), np.arange(18), np.arange(30) % 3, photographs.classes))
    children = [fork.Process(target=decode, args=(slow, 40)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0] and (tmp_path / "asked").read_text() == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "cifar10-fast"}, "'cifar10-fast' is for CIFAR and shapes, not for Caltech-101"),
        ({"all_images": True}, "all_images is for CIFAR and shapes; Caltech-101 keeps its parts"),
    ],
)
def test_what_is_for_small_images_alone_is_refused_for_photographs(photographs, change, message):
    with pytest.raises(ValueError, match=message):
        gc.train(replace(RECIPE, image_size=32, **change), data=photographs, device="cpu", progress=False)
