"""Cutting objects out and changing backgrounds, on pictures whose objects are known."""

import numpy as np
import pytest
import torch

from gradcam_lib.background import border_share, cut_out, only_background, with_background


@pytest.fixture(scope="module")
def scene():
    """A red square on a green ground, both with noise: the picture (32, 32, 3) and the square's mask."""
    rng, mask = np.random.default_rng(0), np.zeros((32, 32), bool)
    mask[10:22, 9:23] = True
    colours = np.where(mask[..., None], (200, 40, 40), (40, 160, 60)) + rng.normal(0, 8, (32, 32, 3))
    return colours.clip(0, 255).astype(np.uint8), mask


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_border_share_is_half_for_a_map_that_says_nothing_and_tells_middle_from_edge():
    flat, middle = torch.ones(1, 32, 32), torch.zeros(1, 32, 32)
    middle[:, 12:20, 12:20] = 1
    share = border_share(torch.cat([flat, 0 * flat, middle, 1 - (middle > 0).float(), -flat]))
    assert share[[0, 1, 4]] == pytest.approx([0.5] * 3, abs=0.01)
    assert abs(share[2]) < 1e-6 and share[3] == pytest.approx(0.5 / (1 - 64 / 1024), abs=0.02)


def test_the_object_is_cut_out_from_a_map_that_touches_it_and_from_its_place(scene):
    picture, mask = scene
    heat = np.zeros((8, 8))
    heat[3:5, 3:5] = 1  # an eighth of it, enlarged bilinearly
    assert iou(cut_out(picture, heat), mask) > 0.8
    assert iou(cut_out(picture), mask) > 0.7  # a seam of one pixel is a third of it
    # From a map of the ground, it is the ground.
    assert iou(cut_out(picture, 1 - heat), mask) < 0.5


def test_a_map_that_marks_all_or_nothing_cuts_out_all_or_nothing(scene):
    picture, _ = scene
    assert not cut_out(picture, np.zeros((4, 4))).any() and cut_out(picture, np.ones((4, 4))).all()


def test_backgrounds_change_and_objects_do_not(scene):
    picture, mask = scene
    blue = np.full((32, 32, 3), (0, 0, 255), np.uint8)
    inner, outer = mask.copy(), ~mask
    inner[[10, 21]] = inner[:, [9, 22]] = False
    outer[9:23, 8:24] = False
    swapped, blurred, empty = (
        with_background(picture, mask, blue),
        with_background(picture, mask),
        only_background(picture, mask),
    )
    for changed in (swapped, blurred):
        assert np.abs(changed[inner].astype(int) - picture[inner]).max() <= 12
    assert (np.abs(swapped[outer].astype(int) - blue[outer]) <= 2).all()
    assert blurred[outer].std(0).max() < picture[outer].std(0).max() / 2
    # No red is left, neither in the hole nor smeared over the ground.
    assert empty[..., 0].max() < 90 and blurred[outer][:, 0].max() < 90
    np.testing.assert_array_equal(empty[outer], picture[outer])
