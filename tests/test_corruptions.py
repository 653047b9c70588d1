"""The corruptions do what they say: exactly where that can be worked out, and more with every severity."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradcam_lib.corruptions import CORRUPTIONS, corrupt, pixelate


@pytest.fixture(scope="module")
def images():
    """Neighbouring pixels are alike, as in photographs, with room above and below."""
    rng = np.random.default_rng(0)
    smooth = np.stack([cv2.GaussianBlur(noise, (0, 0), 1.5) for noise in rng.standard_normal((20, 32, 32, 3))])
    return np.clip(120 + 40 * smooth / smooth.std(), 20, 220).astype(np.uint8)


def change(images, worse):
    return np.abs(images.astype(float) - worse).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_changes_the_pictures_more_than_the_one_before(images, name):
    changes = [change(images, corrupt(images, name, severity)) for severity in range(1, 6)]
    assert changes[0] > 0
    assert (np.diff(changes) > 0).all()
    assert changes[-1] < 80  # of 255: worse, and not another picture


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_seed_gives_the_same_pictures(images, name):
    before = images.copy()
    first = corrupt(images[:5], name, 3, seed=7)
    assert np.array_equal(first, corrupt(images[:5], name, 3, seed=7))
    assert first.shape == (5, 32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(images, before)
    by_chance = name in ("Gaussian noise", "shot noise", "motion blur", "fog")
    assert np.array_equal(first, corrupt(images[:5], name, 3, seed=8)) != by_chance


def test_brightness_and_contrast_are_their_formulas(images):
    assert np.array_equal(corrupt(images, "brightness", 5), np.rint(np.minimum(images / 255 + 0.3, 1) * 255))
    means = images.mean(axis=(1, 2), keepdims=True)
    # Of two values half-way between two bytes, rounding may choose either.
    assert np.abs(corrupt(images, "contrast", 2) - (means + images) / 2).max() <= 0.5 + 1e-9


def test_noise_has_the_deviation_it_says():
    grey = np.full((50, 32, 32, 3), 128, np.uint8)  # far from black and white: nothing is cut off
    x = corrupt(grey, "Gaussian noise", 5) / 255
    assert x.std() == pytest.approx(0.10, rel=0.01) and x.mean() == pytest.approx(128 / 255, abs=0.001)
    x = corrupt(grey, "shot noise", 5) / 255
    assert x.std() == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.01)  # Poisson: the variance of 50 x is its mean


@pytest.mark.parametrize("name", ["Gaussian blur", "motion blur", "pixelate", "JPEG", "contrast"])
@settings(max_examples=20, deadline=None)
@given(value=st.integers(0, 255), severity=st.integers(1, 5))
def test_what_only_mixes_neighbours_leaves_an_even_picture_as_it_is(name, value, severity):
    even = np.full((1, 32, 32, 3), value, np.uint8)
    assert np.abs(corrupt(even, name, severity).astype(int) - value).max() <= 1


def test_pixelate_gives_the_means_of_boxes():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)) / 255
    means = image.reshape(10, 2, 15, 2, 3).mean(axis=(1, 3)).repeat(2, axis=0).repeat(2, axis=1)
    assert np.abs(pixelate(image, 0.5, None) - means).max() <= 1.01 / 255  # Pillow rounds rows, then columns


def test_blurs_spread_one_bright_pixel_and_keep_its_light():
    dot = np.zeros((1, 33, 33, 3), np.uint8)
    dot[0, 16, 16] = 255
    for name in ("Gaussian blur", "motion blur"):
        worse = corrupt(dot, name, 3)[0, :, :, 0].astype(float)
        assert worse.sum() == pytest.approx(255, rel=0.05)  # each pixel is rounded
        i, j = np.indices((33, 33))
        assert abs((worse * i).sum() / worse.sum() - 16) < 0.2 and abs((worse * j).sum() / worse.sum() - 16) < 0.2
        assert worse.max() < 200


def test_motion_goes_along_a_line():
    dot = np.zeros((30, 33, 33, 3), np.uint8)
    dot[:, 16, 16] = 255
    spread = []
    for worse in corrupt(dot, "motion blur", 5)[..., 0].astype(float):
        i, j = (axis - 16 for axis in np.indices((33, 33)))
        cov = np.array([[(worse * a * b).sum() for a in (i, j)] for b in (i, j)]) / worse.sum()
        spread.append(np.sqrt(np.linalg.eigvalsh(cov)))
    across, along = np.array(spread).T
    assert along.mean() == pytest.approx(6 / 12**0.5, rel=0.1)  # an even line of 6 pixels
    assert across.max() < 0.6


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no corruption 'snow'. Choose one of: Gaussian noise, "):
        corrupt(np.zeros((1, 8, 8, 3), np.uint8), "snow", 1)
    with pytest.raises(ValueError, match="from 1 to 5, not 0"):
        corrupt(np.zeros((1, 8, 8, 3), np.uint8), "fog", 0)
    for wrong in (np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3))):
        with pytest.raises(ValueError, match="are \\(N, H, W, 3\\) uint8, not"):
            corrupt(wrong, "fog", 1)
