"""The drawn data set: reproducible, balanced, exactly masked, and learnable from shape alone."""

import cv2
import numpy as np
import pytest

from gradcam_lib import shapes
from gradcam_lib.shapes import CLASSES, SCENES, TIED, draw_object, make_shapes


@pytest.fixture(scope="module")
def drawn():
    return make_shapes(600, seed=11)


def draw(label, scene, size, state):
    return draw_object(label, scene, size, np.random.default_rng(state))


def dilated(mask, pixels):
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)) > 0


def accuracy_of_least_squares(features, labels):
    """Fit one-hot targets on the first half, score on the second."""
    X = np.hstack([features, np.ones((len(features), 1))])
    half = len(X) // 2
    W = np.linalg.lstsq(X[:half], np.eye(10)[labels[:half]], rcond=None)[0]
    return ((X[half:] @ W).argmax(1) == labels[half:]).mean()


def test_a_part_drawn_alone_is_that_part_of_the_whole(drawn):
    part = make_shapes(13, seed=11, start=27)
    for whole, alone in zip(drawn, part, strict=True):
        np.testing.assert_array_equal(whole[27:40], alone)


def test_the_seed_changes_every_picture(drawn):
    other = make_shapes(20, seed=12)
    assert (other.images != drawn.images[:20]).any((1, 2, 3)).all()


def test_the_number_of_threads_changes_nothing():
    before = cv2.getNumThreads()
    try:
        pictures = []
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            pictures.append(np.stack([draw(k, k, 128, k)[0] for k in range(len(SCENES))]))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(*pictures)


def test_each_ten_hold_every_class_once_in_changing_order(drawn):
    tens = drawn.labels.reshape(-1, 10)
    assert (np.sort(tens) == np.arange(10)).all()
    assert len(np.unique(tens, axis=0)) == len(tens)


def test_scenes_are_uniform_and_independent_of_the_class(drawn):
    table = np.zeros((len(CLASSES), len(SCENES)))
    np.add.at(table, (drawn.labels, drawn.scenes), 1)
    expected = len(drawn.labels) / table.size
    assert ((table - expected) ** 2 / expected).sum() < 112  # chi-squared, 70 free cells: 1 in 1,000 exceeds it


def test_colour_does_not_tell_the_class(drawn):
    inside = drawn.masks[..., None]
    of_object = (drawn.images * inside).sum((1, 2)) / inside.sum((1, 2))
    colours = np.hstack([drawn.images.mean((1, 2)), of_object])
    assert accuracy_of_least_squares(colours, drawn.labels) < 0.2  # chance is 0.1
    of_class = np.stack([colours[drawn.labels == k].mean(0) for k in range(10)])
    assert (of_class.var(0) / colours.var(0)).max() < 0.12  # the share of variance between the classes


def test_shape_tells_the_class(drawn):
    crops = []
    for mask in drawn.masks:
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        crops.append(cv2.resize(mask[y : y + h, x : x + w].astype(np.float32), (10, 10), interpolation=cv2.INTER_AREA))
    assert accuracy_of_least_squares(np.reshape(crops, (len(crops), -1)), drawn.labels) > 0.6


def test_objects_are_large_enough_and_inside_the_picture(drawn):
    area = drawn.masks.mean((1, 2))
    assert 0.08 <= area.min() and area.max() <= 0.45
    assert area.max() - area.min() > 0.25  # and their sizes vary
    inner = drawn.masks[:, 1:-1, 1:-1].sum((1, 2))
    assert (inner / drawn.masks.sum((1, 2))).min() > 0.85  # little lies on the outermost pixels


@pytest.mark.parametrize("label", range(10), ids=CLASSES)
def test_the_mask_is_where_the_object_is(label, monkeypatch):
    """Recolouring an object, from black to white, changes the pixels under its mask and no others."""
    size = 64
    for state in range(3):
        pictures = []
        for tone in (40, 160):
            colours = np.full((8, 3), tone, np.float32)
            colours[shapes.CLEAR] = 0
            monkeypatch.setattr(shapes, "choose_colours", lambda behind, rng, colours=colours: colours)
            image, mask = draw(label, state, size, state)
            pictures.append(image.astype(int).sum(2))
        change = np.abs(pictures[1] - pictures[0])
        changed = change > np.median(change[mask]) / 2
        assert (changed & mask).sum() / (changed | mask).sum() > 0.85  # the camera's blur loosens an edge
        assert change[~dilated(mask, 2)].max() == 0


@pytest.mark.parametrize("state", range(4))
def test_from_one_state_the_label_changes_only_the_object(state, monkeypatch):
    monkeypatch.setattr(shapes, "AREA", (0.10, 0.12))  # small, so that scene is left around both
    (one, here), (two, there) = (draw(label, 3, 64, state) for label in (state, state + 5))
    near = dilated(here | there, 18)  # a shadow falls up to 0.08 of the side away, and blurs 0.16 further
    assert (~near).sum() > 100
    np.testing.assert_array_equal(one[~near], two[~near])
    only = here & ~dilated(there, 2)
    assert (one[only] != two[only]).any(1).mean() > 0.95


def test_from_one_state_neither_scene_nor_size_moves_the_object():
    for label in range(10):
        mask = draw(label, 0, 32, label)[1]
        np.testing.assert_array_equal(mask, draw(label, 5, 32, label)[1])
        large = draw(label, 0, 128, label)[1].astype(np.float32)
        again = cv2.resize(large, (32, 32), interpolation=cv2.INTER_AREA) >= 0.5
        assert (mask & again).sum() / (mask | again).sum() > 0.9


def test_a_tie_moves_objects_to_their_scenes_and_changes_nothing_else(drawn):
    assert sorted(TIED[TIED >= 0]) == list(range(len(SCENES)))  # one class for each scene
    home, tied = TIED[drawn.labels], TIED[drawn.labels] >= 0
    moved_before = np.zeros(600, bool)
    for tie in (0.25, 0.75, 1):
        now = make_shapes(600, seed=11, tie=tie)
        np.testing.assert_array_equal(now.labels, drawn.labels)
        np.testing.assert_array_equal(now.masks, drawn.masks)
        moved = now.scenes != drawn.scenes
        assert (now.scenes == home)[moved].all() and not moved[~tied].any() and moved[moved_before].all()
        np.testing.assert_array_equal(now.images[~moved], drawn.images[~moved])
        # Of those that were not at home already, 7 in 8; within 4 standard errors.
        away = tied & (drawn.scenes != home)
        assert abs(moved[away].mean() - tie) <= 4 * (tie * (1 - tie) / away.sum()) ** 0.5
        moved_before = moved


def test_a_swap_puts_each_tied_object_where_another_one_is_at_home(drawn):
    astray = make_shapes(600, seed=11, tie=1, swap=True)
    tied = TIED[drawn.labels] >= 0
    assert (astray.scenes != TIED[drawn.labels])[tied].all()
    for label in np.flatnonzero(TIED >= 0):
        assert len(set(astray.scenes[drawn.labels == label])) == 1
    np.testing.assert_array_equal(astray.masks, drawn.masks)


def test_no_pictures_are_empty_arrays_of_the_right_shape():
    empty = make_shapes(0, size=48)
    assert [(a.shape, a.dtype) for a in empty] == [
        ((0, 48, 48, 3), np.uint8),
        ((0,), np.int64),
        ((0, 48, 48), np.bool_),
        ((0,), np.int64),
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"count": -1}, "count is -1; give a count 0 or more."),
        ({"count": 1, "size": 15}, "size is 15; give a size from 16 to 256."),
        ({"count": 0, "size": 257}, "size is 257; give a size from 16 to 256."),
        ({"count": 1, "seed": -1}, "seed is -1; give a seed 0 or more."),
        ({"count": 1, "tie": 1.5}, "tie is 1.5; give a tie from 0 to 1."),
        ({"count": 1, "start": -5}, "start is -5; give a start 0 or more."),
    ],
)
def test_a_bad_request_says_what_to_ask_for(arguments, message):
    with pytest.raises(ValueError) as error:
        make_shapes(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "label, scene, size, message",
    [
        (10, 0, 32, "label is 10; give a label from 0 to 9."),
        (-1, 0, 32, "label is -1; give a label from 0 to 9."),
        (0, 8, 32, "scene is 8; give a scene from 0 to 7."),
        (0, 0, 1024, "size is 1024; give a size from 16 to 256."),
    ],
)
def test_a_bad_object_says_what_to_ask_for(label, scene, size, message):
    with pytest.raises(ValueError) as error:
        draw(label, scene, size, 0)
    assert str(error.value) == message
