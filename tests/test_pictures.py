"""Overlays of pictures in files."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import gradcam_lib as gc
from gradcam_lib.pictures import LABEL, explain_pictures, find_pictures, grid_figure

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return gc.load_model("cifar10-report")


def picture(file: Path, seed=0, size=(40, 48)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file


# --- which files ---


def test_a_folder_is_read_at_any_depth_without_hidden_files_and_what_was_made(tmp_path):
    for name in ("b.png", "a b.png", "deep/er/x\ny.png", ".hidden.png", ".git/c.png", "maps/b.png.png"):
        picture(tmp_path / name)
    found = find_pictures([tmp_path], tmp_path / "maps")
    assert list(found.values()) == ["a b.png", "b.png", "deep/er/x\ny.png"]
    assert all(file.is_file() for file in found)


def test_a_pattern_that_no_shell_has_expanded_is(tmp_path, monkeypatch):
    for name in ("p/a/1.png", "p/b/1.png", "p/b/2.jpg", "odd [1].png"):
        picture(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    out = Path("maps")
    assert list(find_pictures(["p/*/*.png"], out).values()) == ["a/1.png", "b/1.png"]
    assert list(find_pictures(["**/*.jpg"], out).values()) == ["p/b/2.jpg"]
    assert list(find_pictures(["odd [1].png"], out)) == [Path("odd [1].png")]  # a name, though it looks like a pattern


def test_two_pictures_never_become_one_file(tmp_path):
    one, two = picture(tmp_path / "a/x.png"), picture(tmp_path / "b/x.png")
    with pytest.raises(ValueError, match="name the folder that holds both"):
        find_pictures([one, two], tmp_path / "maps")
    assert set(find_pictures([tmp_path], tmp_path / "maps").values()) == {"a/x.png", "b/x.png"}


@pytest.mark.parametrize("what", ["empty", "no*.png"])
def test_where_nothing_is_found_it_is_said(what, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There is no file in|No file has a name like"):
        find_pictures([tmp_path / what], tmp_path / "maps")


def test_the_folder_of_the_pictures_is_no_place_for_the_maps(tmp_path):
    picture(tmp_path / "x.png")
    with pytest.raises(ValueError, match="name another folder"):
        find_pictures([tmp_path], tmp_path)


# --- what is written ---


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_is_written_is_what_the_package_gives(model, batch_size, tmp_path):
    files = {picture(tmp_path / f"{n}.png", n): f"{n}.png" for n in range(3)}
    made = list(explain_pictures(model, files, tmp_path / "maps", raw=True, batch_size=batch_size, method="layer-cam"))
    for each, file in zip(made, files, strict=True):
        result = gc.explain(model, model.prepare(gc.load_image(file)), method="layer-cam")
        np.testing.assert_allclose(np.load(each.map), result.maps[0], atol=1e-5)
        expected = gc.overlay(model.prepare.crop(gc.load_image(file)), result.heatmaps()[0]).astype(int)
        assert np.abs(np.asarray(Image.open(each.overlay)).astype(int) - expected).max() <= 2
        assert each.found["class"] == model.classes[result.targets[0]] and each.found["layer"] == result.layer
        assert each.found["score"] == pytest.approx(result.scores[0].item(), abs=1e-4)


def test_what_is_there_is_left_alone_and_still_reported(model, tmp_path):
    files = {picture(tmp_path / f"{n}.png", n): f"{n}.png" for n in range(2)}
    first = list(explain_pictures(model, files, tmp_path / "maps"))
    first[1].overlay.unlink()  # as if killed before
    written = first[0].overlay.stat().st_mtime_ns
    again = list(explain_pictures(model, files, tmp_path / "maps"))
    assert [each.state for each in again] == ["existing", "written"]
    assert [each.found for each in again] == [each.found for each in first]
    assert first[0].overlay.stat().st_mtime_ns == written
    assert [e.state for e in explain_pictures(model, files, tmp_path / "maps", overwrite=True)] == ["written"] * 2


def test_numbers_that_are_asked_for_later_are_made_where_they_are_missing(model, tmp_path):
    files = {picture(tmp_path / "x.png"): "x.png"}
    list(explain_pictures(model, files, tmp_path / "maps"))
    (made,) = explain_pictures(model, files, tmp_path / "maps", raw=True)
    assert made.state == "written" and np.load(made.map).shape == (8, 8)
    picture(tmp_path / "maps/x.png.png").with_suffix(".npy").unlink()
    with pytest.raises(ValueError, match="made with other settings"):
        list(explain_pictures(model, files, tmp_path / "maps", raw=True))


def test_a_file_of_other_settings_or_of_others_is_not_taken_for_done(model, tmp_path):
    files = {picture(tmp_path / "x.png"): "x.png"}
    list(explain_pictures(model, files, tmp_path / "maps"))
    for made, options in ((tmp_path / "maps", {"method": "hires-cam"}), (tmp_path / "theirs", {})):
        picture(tmp_path / "theirs/x.png.png")
        before = (made / "x.png.png").read_bytes()
        with pytest.raises(ValueError, match="made with other settings"):
            list(explain_pictures(model, files, made, **options))
        assert (made / "x.png.png").read_bytes() == before


@pytest.mark.parametrize("found", [3, {"class": "cat"}, {"class": "cat", "probability": "x", "empty": False}])
def test_a_file_with_a_damaged_label_is_not_taken_for_done(model, tmp_path, found):
    files = {picture(tmp_path / "x.png"): "x.png"}
    (made,) = explain_pictures(model, files, tmp_path / "maps")
    with Image.open(made.overlay) as image:
        label = PngInfo()
        label.add_itxt(LABEL, json.dumps(json.loads(image.info[LABEL]) | {"found": found}))
        image.save(tmp_path / "again.png", pnginfo=label)
    (tmp_path / "again.png").replace(made.overlay)
    with pytest.raises(ValueError, match="made with other settings"):
        list(explain_pictures(model, files, tmp_path / "maps"))


def test_a_vast_picture_is_not_taken_for_done(model, tmp_path):
    """Pillow refuses 60,000 × 60,000 pixels in words of its own."""
    Image.new("P", (4, 4)).save(file := io.BytesIO(), "gif")
    vast = file.getvalue()[:6] + struct.pack("<HH", 60_000, 60_000) + file.getvalue()[10:]
    (tmp_path / "out.png").write_bytes(vast)
    with pytest.raises(ValueError, match="made with other settings"):
        list(explain_pictures(model, {picture(tmp_path / "x.png"): "x.png"}, tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes() == vast


def test_a_picture_is_never_overwritten(model, tmp_path):
    file = picture(tmp_path / "x.png")
    before = file.read_bytes()
    with pytest.raises(ValueError, match="is one of the pictures"):
        list(explain_pictures(model, {file: "x.png"}, file, overwrite=True))
    assert file.read_bytes() == before


def test_what_cannot_be_read_is_skipped_and_said(model, tmp_path):
    good = picture(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    made = list(explain_pictures(model, {tmp_path / "cut.png": "cut.png", good: "good.png"}, tmp_path / "maps"))
    assert [each.state for each in made] == ["skipped", "written"]
    assert "cut short" in made[0].why and not (tmp_path / "maps/cut.png.png").exists()


def test_a_file_that_could_not_be_finished_is_not_there(model, tmp_path, monkeypatch):
    source = picture_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError):
        list(explain_pictures(model, {source: "stdin"}, tmp_path / "maps"))
    assert list((tmp_path / "maps").iterdir()) == []


def picture_bytes() -> bytes:
    import io

    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").convert("P").save(file, "GIF")
    return file.getvalue()


# --- grids ---


def test_a_grid_says_in_its_file_what_it_compares(model, tmp_path):
    options = {"grid": "methods", "method": ["grad-cam", "eigen-cam"], "targets": "ship"}
    (made,) = explain_pictures(model, {picture(tmp_path / "x.png"): "x.png"}, tmp_path / "grid.png", **options)
    with Image.open(made.overlay) as image:
        settings = json.loads(image.info["gradcam_lib"])["settings"]
    assert {name: settings[name] for name in options} == options


@pytest.mark.parametrize(
    ("compare", "given", "labels"),
    [
        ("methods", {"method": ["hires-cam", "cam"]}, None),
        ("classes", {"targets": ["ship", 3]}, ["ship", "cat"]),
        ("layers", {"layer": [-2, "features.relu1"]}, ["features.conv3, 128 × 8 × 8", "features.relu1, 32 × 32 × 32"]),
        ("layers", {}, ["features.relu1", "features.relu2", "features.relu3"]),
        (
            "methods",
            {},
            ["grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam", "eigen-cam", "eigengrad-cam"],
        ),
    ],
)
def test_each_panel_of_a_grid_has_its_label(model, compare, given, labels):
    crop = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    x = model.prepare(crop)
    if labels is None:  # CAM, asked for by name, has no map in this network
        with pytest.raises(ValueError, match="CAM needs a network"):
            grid_figure(model, x, crop, compare, **given)
        return
    figure = grid_figure(model, x, crop, compare, **given)
    titles = [axis.get_title().replace("\n", " ") for axis in figure.axes if axis.get_title()]
    assert len(titles) == 1 + len(labels)
    assert all(title.startswith(label.split(",")[0]) for title, label in zip(titles[1:], labels, strict=True))


def test_the_classes_of_a_grid_are_the_likeliest(model):
    crop = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    x = model.prepare(crop)
    with torch.no_grad():
        order = model(x)[0].argsort(descending=True)[:7].tolist()
    titles = [axis.get_title() for axis in grid_figure(model, x, crop, "classes").axes if axis.get_title()]
    assert [title.split(",")[0] for title in titles[1:]] == [model.classes[c] for c in order]
