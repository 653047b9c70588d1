"""Every fault planted in a folder is found and named; the search for near-duplicates is exact; counts are right."""

import builtins
import io
import os
import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import ExifTags, Image

import gradcam_lib as gc
from gradcam_lib import quality
from gradcam_lib.datasets import DATASETS, ArrayDataset, DatasetError, FolderSplit, Splits
from gradcam_lib.quality import (
    Fingerprints,
    describe,
    disputes,
    fingerprints,
    human_labels,
    near_duplicates,
    object_boxes,
)

unhurried = settings(deadline=None)  # the machines that run the tests are shared


def picture(seed, height=60, width=80):
    """Smooth random colours: pictures of different seeds have nothing in common."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def file_of(pixels, format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def bomb():
    """The header of a PNG of 60,000 × 60,000 pixels."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(1000))
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def folder_of(top, files):
    """Write {name: content}; a name that ends in a slash is an empty folder."""
    for name, content in files.items():
        path = top / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return top


def findings(description):
    return {(row.kind, *row.files) for row in description.problems.itertuples()}


# --- what a folder may hold ---


def test_every_planted_fault_is_found_and_nothing_else(tmp_path):
    cat, dog, owl = (picture(seed) for seed in range(3))
    whole = file_of(dog, "JPEG")
    folder_of(
        tmp_path,
        {
            "cat/a.png": file_of(cat),
            "cat/b.png": file_of(cat),
            "cat/c.jpg": file_of(cat, "JPEG", quality=60),
            "cat/good.png": file_of(picture(3)),
            "dog/a.jpg": whole,
            "dog/cut.jpg": whole[: len(whole) // 2],
            "dog/flipped.png": file_of(dog)[:60] + b"\xff" + file_of(dog)[61:],
            "dog/empty.png": b"",
            "dog/page.jpg": b"<html>404</html>",
            "dog/notes.txt": b"taken in June",
            "dog/bomb.png": bomb(),
            "dog/named.gif": file_of(picture(4)),
            "dog/.hidden.jpg": whole,
            "dog/bird.png": file_of(owl),
            "owl/deep/er/a.png": file_of(owl),
            ".git/x.png": file_of(owl),
            "teapot/": None,
            "loose.png": file_of(picture(5)),
        },
    )
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "dog" / "pipe.png")  # opened, it would keep the reader waiting for ever
    found = describe(tmp_path)
    assert findings(found) == {
        ("duplicate", "cat/a.png", "cat/b.png"),
        ("near-duplicate", "cat/a.png", "cat/b.png", "cat/c.jpg"),
        ("damaged", "dog/cut.jpg"),
        ("damaged", "dog/flipped.png"),
        ("empty file", "dog/empty.png"),
        ("not a picture", "dog/page.jpg"),
        ("not a picture", "dog/notes.txt"),
        ("not a picture", "dog/pipe.png"),
        ("too large", "dog/bomb.png"),
        ("wrong extension", "dog/named.gif"),
        ("hidden", "dog/.hidden.jpg"),
        ("hidden", ".git"),
        ("duplicate, two labels", "dog/bird.png", "owl/deep/er/a.png"),
        ("one picture", "owl"),
        ("empty class", "teapot"),
        ("no class", "loose.png"),
        ("link", "cat/gone.png"),
        ("link", "again"),
    }
    assert found.classes["pictures"].to_dict() == {"cat": 4, "dog": 3, "owl": 1, "teapot": 0}
    text = str(found)
    assert all(kind in text for kind in found.problems["kind"]) and str(tmp_path) in text.splitlines()[0]


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WebP"])
def test_a_file_cut_short_is_damaged_whatever_its_format(tmp_path, format):
    whole = file_of(picture(0), format)
    folder_of(tmp_path, {"a.bin": whole[: len(whole) // 2]})
    found = describe(tmp_path)
    assert findings(found) == {("damaged", "a.bin")}
    assert found.pictures.empty and "0 pictures" in str(found)


@pytest.mark.parametrize("source", ["missing", "file.png", "empty"])
def test_a_folder_that_is_none_is_refused_in_one_sentence(tmp_path, source):
    folder_of(tmp_path, {"file.png": file_of(picture(0)), "empty/": None})
    with pytest.raises(DatasetError) as caught:
        describe(tmp_path / source)
    assert str(tmp_path / source) in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_cannot_be_printed_are_escaped(tmp_path):
    folder_of(tmp_path, {"cät: 1/line\nfeed.png": file_of(picture(0)), "cät: 1/cut: 2.png": file_of(picture(1))[:200]})
    bad = os.path.join(os.fsencode(tmp_path), "cät: 1".encode(), b"\xff.png")
    with open(bad, "wb") as file:
        file.write(file_of(picture(2)))
    found = describe(tmp_path)
    assert set(found.pictures["name"]) == {"cät: 1/line\\nfeed.png", "cät: 1/\\udcff.png"}
    (damage,) = found.problems.itertuples()
    assert damage.files == ["cät: 1/cut: 2.png"] and damage.what.startswith("its PNG")
    str(found).encode()


def test_what_may_not_be_read_is_reported(tmp_path, monkeypatch):
    folder_of(tmp_path, {f"{c}/{k}.png": file_of(picture(ord(c) + k)) for c in "ab" for k in range(2)})
    scandir, open_ = os.scandir, builtins.open

    def refuse(call, locked):
        def guarded(path, *rest, **options):
            if str(path) == str(tmp_path / locked):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *rest, **options)

        return guarded

    monkeypatch.setattr(os, "scandir", refuse(scandir, "a"))
    monkeypatch.setattr(builtins, "open", refuse(open_, "b/1.png"))
    found = describe(tmp_path)
    assert findings(found) == {
        ("unreadable", "a"),
        ("unreadable", "b/1.png"),
        ("empty class", "a"),
        ("one picture", "b"),
    }


def test_a_flat_folder_has_pictures_and_no_classes(tmp_path):
    folder_of(tmp_path, {f"{k}.png": file_of(picture(k)) for k in range(3)})
    found = describe(tmp_path)
    assert len(found.pictures) == 3 and found.classes.empty and found.problems.empty
    assert str(found).splitlines()[0].endswith("3 pictures, " + quality._bytes(found.pictures["bytes"].sum()))


def test_parts_above_the_classes_are_parts_and_leaks_are_named(tmp_path):
    files = {f"{part}/{c}/{k}.png": file_of(picture(k)) for k, (part, c) in enumerate(
        (part, c) for part in ("train", "test") for c in ("cat", "dog") for _ in range(2)
    )}  # fmt: skip
    files["test/cat/seen.png"] = files["train/cat/0.png"]
    files["train/owl/only.png"] = file_of(picture(99))
    files["train/owl/too.png"] = file_of(picture(98))
    found = describe(folder_of(tmp_path, files))
    assert found.classes.to_dict("index") == {
        "cat": {"pictures": 5, "test": 3, "train": 2},
        "dog": {"pictures": 4, "test": 2, "train": 2},
        "owl": {"pictures": 2, "test": 0, "train": 2},
    }
    assert findings(found) == {("duplicate, leak", "test/cat/seen.png", "train/cat/0.png"), ("empty class", "owl")}
    assert "test 5, train 6" in str(found)


# --- what is counted ---


def test_greys_sizes_formats_and_balance(tmp_path):
    colour, grey = picture(0), picture(1)[..., 0]
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # a quarter turn
    folder_of(
        tmp_path,
        {
            "a/colour.png": file_of(colour),
            "a/grey.png": file_of(grey),
            "a/grey as colour.png": file_of(np.dstack([grey[::-1]] * 3)),
            "b/deep.png": file_of(picture(2)[..., 0].astype(np.uint16) << 8),
            "b/wide.jpg": file_of(picture(3, 50, 200), "JPEG"),
            "b/turned.jpg": file_of(picture(4, 50, 200), "JPEG", exif=turned),
            "b/more.png": file_of(picture(5)),
        },
    )  # fmt: skip
    found = describe(tmp_path)
    rows = found.pictures.set_index("name")
    assert set(rows.index[rows["stored_grey"]]) == {"a/grey.png", "b/deep.png"}
    assert set(rows.index[rows["looks_grey"]]) == {"a/grey.png", "a/grey as colour.png", "b/deep.png"}
    assert (rows.loc["b/turned.jpg", ["width", "height"]] == [50, 200]).all()
    assert found.balance == {"min": 3, "median": 3.5, "mean": 3.5, "max": 4, "ratio": 4 / 3}
    assert found.sizes.loc["width", ["min", "median", "max"]].tolist() == [50, 80, 200]
    assert found.sizes.loc["aspect ratio", ["min", "max"]].tolist() == [0.25, 4]
    assert found.formats.groupby("format")["pictures"].sum().to_dict() == {"JPEG": 2, "PNG": 5}
    assert found.formats["bytes"].sum() == sum(path.stat().st_size for path in tmp_path.glob("*/*"))


def test_the_number_of_threads_changes_nothing(tmp_path, monkeypatch):
    folder_of(tmp_path, {f"{'abc'[k % 3]}/{k}.png": file_of(picture(k % 20)) for k in range(40)})
    several = describe(tmp_path)
    monkeypatch.setattr(quality, "THREADS", 1)
    one = describe(tmp_path)
    assert several.pictures.equals(one.pictures) and several.problems.equals(one.problems)
    assert len(one.problems) == 20


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    """Thirty pictures are 135 MB once decoded; four threads hold at most a few of them at a time."""
    folder_of(tmp_path, {f"{k}.jpg": file_of(picture(k, 1000, 1500), "JPEG") for k in range(30)})
    tracemalloc.start()
    try:
        describe(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60e6


def test_a_named_set_of_arrays(monkeypatch):
    images = np.stack([picture(k, 32, 32) for k in range(12)])
    images[11] = images[0]
    labels = np.arange(12) % 2
    parts = [ArrayDataset(images[s], labels[s], ("even", "odd")) for s in (slice(6), slice(6, 8), slice(8, 12))]
    splits = Splits(DATASETS["cifar10"], *parts, ("even", "odd"), "")
    monkeypatch.setattr(quality, "load_dataset", lambda name: splits)
    found = describe("cifar10")
    assert found.classes.to_dict("index")["odd"] == {"pictures": 6, "train": 3, "validation": 1, "test": 2}
    assert findings(found) == {("duplicate, two labels, leak", "train[0]", "test[3]")}


def test_a_named_set_of_files_leaves_out_what_is_no_class_of_it(tmp_path, monkeypatch):
    folder_of(tmp_path, {f"101_ObjectCategories/{c}/{k}.png": file_of(picture(10 * ord(c[0]) + k))
                         for c in ("ant", "bee", "BACKGROUND_Google") for k in range(2)})  # fmt: skip
    whole = SimpleNamespace(root=tmp_path, categories=["ant", "bee"])
    train = FolderSplit(whole, np.array([0]), np.array([0, 1]), whole.categories)
    monkeypatch.setattr(quality, "load_dataset", lambda name: SimpleNamespace(train=train))
    found = describe("caltech101")
    assert found.source == "caltech101"
    assert found.classes["pictures"].to_dict() == {"ant": 2, "bee": 2}
    assert found.problems.empty


# --- the hash ---

pictures = arrays(np.uint8, (32, 32, 3), elements=st.integers(0, 100))


@unhurried
@given(pictures, st.sampled_from([1, 2]), st.integers(0, 55))
def test_brightness_and_contrast_leave_the_hash_as_it_is(image, contrast, brightness):
    changed = (contrast * image + brightness).astype(np.uint8)
    assert fingerprints([image]).hashes == fingerprints([changed]).hashes


@unhurried
@given(pictures)
def test_the_hash_of_the_transposed_picture_is_the_transposed_hash(image):
    bits = [np.unpackbits(fingerprints([x]).hashes.view(np.uint8)).reshape(8, 8) for x in (image, image.swapaxes(0, 1))]
    np.testing.assert_array_equal(bits[0], bits[1].T)


def test_pictures_of_any_size_are_hashed_as_their_small_versions():
    large = picture(0, 320, 320)
    small = np.rint(large.reshape(32, 10, 32, 10, 3).mean(axis=(1, 3))).astype(np.uint8)
    found = near_duplicates(fingerprints([large]), fingerprints([small]), max_distance=0, min_similarity=0.999)
    assert len(found) == 1
    for height, width in ((1, 1), (1, 500), (500, 1), (31, 33)):
        prints = fingerprints([np.full((height, width, 3), 7, np.uint8)])
        assert prints.hashes == 0 and (prints.thumbnails == 7).all()


def test_no_pictures_have_no_fingerprints_and_no_duplicates():
    none = fingerprints(np.empty((0, 32, 32, 3), np.uint8))
    assert none.hashes.shape == (0,) and none.thumbnails.shape == (0, 16, 16)
    assert near_duplicates(none).empty and near_duplicates(none, fingerprints([picture(0)])).empty


def brute_force(first, second, max_distance, min_similarity):
    """Every pair, one at a time, with whole numbers."""
    found = []
    for i in range(len(first.hashes)):
        for j in range(i + 1 if second is None else 0, len((second or first).hashes)):
            other = second or first
            distance = (int(first.hashes[i]) ^ int(other.hashes[j])).bit_count()
            a, b = (
                [*np.diff(t.astype(int), axis=0).ravel().tolist(), *np.diff(t.astype(int), axis=1).ravel().tolist()]
                for t in (first.thumbnails[i], other.thumbnails[j])
            )
            norm = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
            if (
                norm
                and distance <= max_distance
                and sum(x * y for x, y in zip(a, b, strict=True)) / norm >= min_similarity
            ):
                found.append((i, j, distance))
    return found


def noisy_prints(seed, n):
    """Prints of a few originals with bits flipped and noise added, and some flat ones, so that all distances occur."""
    rng = np.random.default_rng(seed)
    originals = rng.integers(0, 2**63, 3, dtype=np.uint64)
    flips = np.where(rng.random((n, 64)) < 0.08, np.uint64(1) << np.arange(64, dtype=np.uint64), np.uint64(0))
    hashes = originals[rng.integers(0, 3, n)] ^ np.bitwise_or.reduce(flips, axis=1)
    base = np.random.default_rng(0).integers(60, 200, (3, 16, 16))
    thumbnails = base[rng.integers(0, 3, n)] + rng.integers(-50, 50, (n, 16, 16)) * rng.integers(0, 2, (n, 1, 1))
    thumbnails[rng.random(n) < 0.2] = 90
    return Fingerprints(hashes, thumbnails.astype(np.uint8))


@pytest.mark.parametrize("block", [2048, 7])
@pytest.mark.parametrize("max_distance, min_similarity", [(0, -1), (7, 0.5), (12, 0.8), (64, 0.2)])
def test_the_search_finds_what_brute_force_finds(monkeypatch, block, max_distance, min_similarity):
    monkeypatch.setattr(quality, "BLOCK", block)
    first, second = noisy_prints(1, 45), noisy_prints(2, 30)
    for other in (None, second):
        found = near_duplicates(first, other, max_distance=max_distance, min_similarity=min_similarity)
        rows = list(found[["first", "second", "distance"]].itertuples(index=False, name=None))
        assert rows == brute_force(first, other, max_distance, min_similarity)
    swapped = near_duplicates(second, first, max_distance=max_distance, min_similarity=min_similarity)
    assert set(zip(swapped["second"], swapped["first"], swapped["similarity"], strict=True)) == set(
        zip(found["first"], found["second"], found["similarity"], strict=True)
    )


def test_flat_pictures_are_like_no_other_however_many_there_are():
    flat = np.full((3000, 32, 32, 3), np.arange(3000)[:, None, None, None] % 256, np.uint8)
    assert near_duplicates(fingerprints(flat), min_similarity=-1).empty


def test_smooth_pictures_whose_hashes_collide_are_told_apart_by_their_edges():
    ramp = np.linspace(200, 120, 32)[:, None, None] * np.ones((1, 32, 3))
    a, b = ramp.copy(), ramp.copy()
    a[8:11, 4:12] -= 60  # a small dark thing, upper left
    b[22:25, 20:28] -= 60  # and lower right
    prints = fingerprints(np.stack([a, b]).astype(np.uint8))
    assert len(near_duplicates(prints, max_distance=64, min_similarity=-1)) == 1
    assert near_duplicates(prints, max_distance=64).empty


@unhurried
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=30))
def test_groups_are_the_connected_components(pairs):
    pairs = [(i, j) for i, j in pairs if i != j]
    i, j = np.array(pairs, int).reshape(-1, 2).T
    graph = scipy.sparse.coo_matrix((np.ones(len(i)), (i, j)), shape=(16, 16))
    component = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    expected = {tuple(np.flatnonzero(component == c)) for c in set(component[i].tolist())}
    groups = quality._connected(np.array([pair]).T for pair in pairs)
    assert {tuple(group) for group in groups} == expected


# --- what people said ---


def test_human_labels_are_found_where_grad_cam_data_says(cache, tmp_path, monkeypatch):
    assert human_labels() is None
    counts = np.random.default_rng(0).integers(1, 9, (10_000, 10))
    np.save(tmp_path / "cifar10h-counts.npy", counts)
    monkeypatch.setenv("GRADCAM_DATA", str(tmp_path))
    np.testing.assert_array_equal(human_labels(), counts)


@pytest.mark.parametrize(
    "wrong",
    [
        np.ones((9_999, 10), int),
        np.ones((10_000, 10)),
        np.zeros((10_000, 10), int),
        -np.eye(10_000, 10, dtype=int) - 1,
        None,
    ],
)
def test_damaged_human_labels_are_refused(cache, tmp_path, monkeypatch, wrong):
    file = tmp_path / "cifar10h-counts.npy"
    file.write_bytes(b"\x93NUMPY") if wrong is None else np.save(file, wrong)
    monkeypatch.setenv("GRADCAM_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match="cifar10h-counts.npy"):
        human_labels()


@pytest.fixture
def boxes(cache, tmp_path, monkeypatch):
    """A folder with three small files of boxes, and GRADCAM_DATA naming it."""
    monkeypatch.setenv("GRADCAM_DATA", str(tmp_path))
    folder = tmp_path / "caltech101_boxes"
    folder.mkdir()
    for k, name in enumerate(("airplane", "face", "motorcycle")):
        (folder / f"{name}.csv").write_text(f"image_0001.jpg,{k},2,30,40,{name}\nimage_0002.jpg,5,6,70,80,{name}\n")
    return folder


def test_object_boxes_are_named_by_their_picture(boxes, monkeypatch):
    table = object_boxes()
    assert len(table) == 6 and table.loc["Faces/image_0001.jpg"].tolist() == [1, 2, 30, 40]
    assert table.loc["Motorbikes/image_0002.jpg", "y1"] == 80
    monkeypatch.delenv("GRADCAM_DATA")
    assert object_boxes() is None


@pytest.mark.parametrize(
    "wrong", ["", "image_0001.jpg,9,2,3,4,face\n", "image_0001.jpg,1,2,left,4,face\n", ",1,2,3,4,x\n", None]
)
def test_damaged_object_boxes_are_refused(boxes, wrong):
    file = boxes / "face.csv"
    file.unlink() if wrong is None else file.write_text(wrong)
    with pytest.raises(DatasetError, match="face.csv"):
        object_boxes()


def test_what_people_said_is_counted():
    table = disputes(np.array([[4, 0, 0], [1, 3, 0], [2, 2, 0], [0, 2, 2]]), np.array([0, 0, 1, 2]))
    assert table["majority"].tolist() == [0, 1, 1, 2]  # where two are equal, the label is not outvoted
    assert table["label_share"].tolist() == [1, 0.25, 0.5, 0.5]
    assert table["majority_share"].tolist() == [1, 0.75, 0.5, 0.5]
    assert table["answers"].tolist() == [4] * 4
    np.testing.assert_allclose(table["entropy"], [0, 0.8112781244591328, 1, 1], atol=1e-12)


# --- the records that chapter 1 reads ---


def test_the_record_of_the_human_labels_is_consistent():
    run, rows = gc.read_record("cifar10-human-labels").run, gc.read_record("cifar10-human-labels").history
    assert (rows["label"] != rows["majority"]).sum() == run["outvoted"]
    assert sum(run["label_share_histogram"]["pictures"]) == run["pictures"] == 10_000
    assert rows["entropy"].between(0, np.log2(10)).all() and rows["picture"].is_unique
    assert (rows["label_share"] <= rows["majority_share"]).all()
    assert "CC BY-NC-SA 4.0" in run["licence"]


def test_the_record_of_caltech101_is_consistent():
    run, rows = gc.read_record("caltech101-description").run, gc.read_record("caltech101-description").history
    n = rows.groupby("label")["pictures"].sum()
    assert n.sum() == run["pictures"] == DATASETS["caltech101"].images
    assert len(n) == run["classes"] == DATASETS["caltech101"].classes
    assert run["balance"] == {
        "min": n.min(), "median": n.median(), "mean": n.mean(), "max": n.max(), "ratio": n.max() / n.min()
    }  # fmt: skip
    width = np.sort(np.repeat(rows["width"], rows["pictures"]))
    assert run["sizes"]["width"]["median"] == np.median(width)
    assert np.isclose(run["stored_grey"], (rows["stored_grey"] * rows["pictures"]).sum() / n.sum())
