"""What a live figure hands to the page: a still described in words, and numbers that are the package's own."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from gradcam_lib import faithfulness, live
from gradcam_lib.optimizers import SCHEDULES

RNG = np.random.default_rng(0)
MAPS = torch.tensor(RNG.random((2, 9, 7)), dtype=torch.float32) ** 2
MASKS = torch.tensor(RNG.random((2, 9, 7)) < 0.4)
IMAGES = RNG.integers(0, 256, (2, 9, 7, 3)).astype(np.uint8)
FIGURES = {
    "convolution": lambda: live.convolution(RNG.random((8, 8)), {"<blur>": np.full((3, 3), 1 / 9)}),
    "softmax": lambda: live.softmax([1.5, -0.25, 3.0], 1, ["cat", "dog", '</script><b class="x">']),
    "schedule": lambda: live.schedule(steps=40, peak=0.3),
    "threshold": lambda: live.threshold(IMAGES, MAPS, MASKS, ["a", "b & c"]),
}


def parts(figure):
    """The still and the numbers, as a browser reads them."""
    soup = BeautifulSoup(figure._repr_html_(), "html.parser")
    (root,) = soup.find_all(recursive=False)
    image, script = root.find_all(recursive=False)
    return root, image, json.loads(script.string)


@pytest.mark.parametrize("name", FIGURES)
def test_the_still_is_a_picture_described_in_words(name):
    figure = FIGURES[name]()
    root, image, _ = parts(figure)
    assert root["class"] == ["live"] and root["data-live"] == name
    assert len(image["alt"]) > 60 and image["alt"].endswith(".")
    picture = Image.open(io.BytesIO(base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))))
    assert picture.width == pytest.approx(2 * int(image["width"]), abs=2)
    assert repr(figure) == f"<Live figure: {name}>"  # what nbval compares


@pytest.mark.parametrize("name", FIGURES)
def test_the_numbers_survive_the_page(name):
    figure = FIGURES[name]()
    assert parts(figure)[2] == figure.numbers
    html = figure._repr_html_()
    assert html.count("</script>") == 1 and "<b " not in html  # whatever the names are


def test_convolution_keeps_the_kernels_exactly():
    x, kernel = RNG.random((8, 8)), RNG.normal(size=(3, 3))
    numbers = live.convolution(x, {"random": kernel}).numbers
    assert np.abs(np.array(numbers["x"]) - x).max() <= 0.0005 + 1e-12
    assert (np.array(numbers["kernels"]["random"]) == kernel).all()


def test_schedule_has_the_constants_of_one_cycle():
    numbers = live.schedule(steps=40, peak=0.3).numbers
    start, end, warm_up = numbers["start"], numbers["end"], numbers["warmUp"]
    assert (start, end, warm_up) == pytest.approx((1 / 25, 1 / 250_000, 0.3), rel=1e-9)
    assert numbers["schedules"] == list(SCHEDULES)


def test_threshold_cuts_as_iou_does_at_every_hundredth():
    numbers = live.threshold(IMAGES, MAPS, MASKS, ["a", "b"]).numbers
    for k in range(101):
        expected = faithfulness.iou(MAPS, MASKS, k / 100)
        for picture, iou in zip(numbers["pictures"], expected, strict=True):
            region = np.array(picture["level"]) >= k
            mask = np.array(list(picture["mask"])) == "1"
            assert (region & mask).sum() / (region | mask).sum() == pytest.approx(iou.item(), abs=1e-6)


def test_threshold_keeps_the_picture():
    address = live.threshold(IMAGES, MAPS, MASKS, ["a", "b"]).numbers["pictures"][1]["image"]
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        assert (np.asarray(picture) == IMAGES[1]).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: live.convolution(np.zeros((4, 5)), {"a": np.eye(3)}), r"must be square.*\(4, 5\)"),
        (lambda: live.convolution(np.zeros((5, 5)), {"a": np.eye(2)}), r"'a' is \(2, 2\)"),
        (lambda: live.softmax([1.0, 2.0], 0, ["a", "b", "c"]), r"z must be \(3,\)"),
        (lambda: live.schedule(steps=1, peak=0.1), "two steps or more"),
        (lambda: live.threshold(IMAGES, MAPS[:1], MASKS, ["a", "b"]), "a map, a mask and a title"),
        (lambda: live.threshold(IMAGES, MAPS, MASKS & False, ["a", "b"]), "must hold an object"),
    ],
)
def test_bad_input_is_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()
