"""The batches of a recipe: every image once an epoch, moved and mirrored as the recipe says and in no other way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gradcam_lib.architectures import Preparation
from gradcam_lib.batches import ArrayBatches, normalised, side_of, views
from gradcam_lib.datasets import ArrayDataset
from gradcam_lib.recipes import Recipe
from gradcam_lib.world import World

CPU = World(torch.device("cpu"))
PLAIN = Recipe("plain", "none", "none", batch_size=16)
AS_IS = Preparation(32, 32)


@pytest.fixture(scope="module")
def data():
    """Images whose first pixel is their number, so that each can be recognised."""
    images = np.random.default_rng(0).integers(0, 256, (50, 12, 12, 3), dtype=np.uint8)
    images[:, 0, 0] = np.arange(50)[:, None]
    return ArrayDataset(images, np.arange(50) % 5, tuple("abcde"))


def epoch(data, recipe, number=1, seed=0, prepare=AS_IS):
    x, y, _ = zip(*ArrayBatches(data, replace(recipe, seed=seed), prepare, CPU).epoch(number), strict=True)
    return torch.cat(x), torch.cat(y)


def test_an_epoch_holds_every_image_once_with_its_label_in_a_new_order(data):
    x, y = epoch(data, PLAIN)
    numbers = (x[:, 0, 0, 0] * 255).round().long()
    assert sorted(numbers.tolist()) == list(range(50))
    assert torch.equal(y, numbers % 5)
    original = torch.from_numpy(data.data).permute(0, 3, 1, 2) * (1 / torch.tensor(255.0))
    assert torch.equal(x, original[numbers])
    assert numbers.tolist() not in (list(range(50)), (epoch(data, PLAIN, seed=1)[0][:, 0, 0, 0] * 255).tolist())
    sizes = [n for _, _, n in ArrayBatches(data, PLAIN, AS_IS, CPU).epoch(1)]
    assert sizes == [16, 16, 16, 2] and len(ArrayBatches(data, PLAIN, AS_IS, CPU)) == 4


def test_normalising_is_by_the_networks_own_mean_and_deviation():
    pixels = torch.tensor([51, 102, 255], dtype=torch.uint8)[None, :, None, None]
    prepare = Preparation(1, 1, mean=(0.2, 0.2, 0.5), std=(1.0, 0.1, 0.25))
    assert torch.allclose(normalised(pixels, prepare).flatten(), torch.tensor([0.0, 2.0, 2.0]))
    assert normalised(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), prepare).is_contiguous(
        memory_format=torch.channels_last
    )


def mirrored(x, data):
    """For each image of a batch whether it is its original (False) or the mirror image (True); else an error."""
    originals = torch.from_numpy(data.data).permute(0, 3, 1, 2) * (1 / torch.tensor(255.0))
    found = {}
    for image in x:
        for flipped, candidates in ((False, originals), (True, originals.flip(3))):
            same = (candidates == image).flatten(1).all(1).nonzero()
            if len(same):
                found[same[0, 0].item()] = flipped
    assert len(found) == len(x)
    return np.array([found[k] for k in sorted(found)])


def test_random_mirroring_is_new_in_every_epoch(data):
    recipe = replace(PLAIN, flip="random")
    first, second = (mirrored(epoch(data, recipe, seed=seed)[0], data) for seed in (0, 1))
    assert 10 < first.sum() < 40 and (first != second).any() and (first == second).any()


def test_alternating_mirroring_shows_every_image_both_ways_in_turn(data):
    recipe = replace(PLAIN, flip="alternating")
    sides = [mirrored(epoch(data, recipe, number=n)[0], data) for n in (1, 2, 3, 4)]
    assert 10 < sides[0].sum() < 40
    assert (sides[0] != sides[1]).all() and (sides[0] == sides[2]).all() and (sides[1] == sides[3]).all()
    other = mirrored(epoch(data, recipe, seed=1)[0], data)
    assert (other != sides[0]).any()


def test_a_shift_moves_the_image_and_reflects_its_border(data):
    x, _ = epoch(data, replace(PLAIN, shift=2, batch_size=50))
    originals = torch.from_numpy(data.data).permute(0, 3, 1, 2) * (1 / torch.tensor(255.0))
    bordered = F.pad(originals, (2, 2, 2, 2), mode="reflect")
    offsets = set()
    for image in x:
        places = [
            (i, j) for i in range(5) for j in range(5)
            if (bordered[:, :, i : i + 12, j : j + 12] == image).flatten(1).all(1).any()
        ]  # fmt: skip
        assert len(places) == 1
        offsets.add(places[0])
    assert len(offsets) > 10 and {i for i, _ in offsets} == {j for _, j in offsets} == set(range(5))


def test_cutout_greys_one_square_within_the_image(data):
    x, _ = epoch(data, replace(PLAIN, cutout=4, batch_size=50), prepare=Preparation(32, 32, mean=(0.5,) * 3))
    for image in x:
        rows, columns = (image == 0).all(0).nonzero().T  # 0.5 is no byte: no other pixel is 0
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert len(rows) == height * width  # a rectangle, cut off at the border
        assert 2 <= min(height, width) and max(height, width) <= 4


def test_balanced_batches_draw_every_class_equally_often():
    targets = np.repeat([0, 1, 2], [900, 90, 10])
    data = ArrayDataset(np.zeros((1000, 2, 2, 3), np.uint8), targets, tuple("abc"))
    batches = ArrayBatches(data, replace(PLAIN, balanced=True), AS_IS, CPU)
    counts = torch.bincount(torch.cat([y for n in (1, 2, 3) for _, y, _ in batches.epoch(n)]))
    assert counts.sum() == 3000 and (counts - 1000).abs().max() < 130  # five standard deviations


EVERYTHING = replace(PLAIN, flip="alternating", shift=2, cutout=4, first_size=8, epochs=4)


@pytest.mark.parametrize("recipe", [PLAIN, EVERYTHING, replace(EVERYTHING, flip="random", balanced=True)])
@pytest.mark.parametrize("workers", [2, 3, 7])
def test_the_parts_of_all_workers_make_the_batch_of_one(data, recipe, workers):
    """Also the last batch, of two images, in which most of the workers have no part."""
    whole = list(ArrayBatches(data, recipe, AS_IS, CPU).epoch(2))
    parts = [list(ArrayBatches(data, recipe, AS_IS, World(CPU.device, r, workers)).epoch(2)) for r in range(workers)]
    for (x, y, n), *of_workers in zip(whole, *parts, strict=True):
        assert torch.equal(x, torch.cat([part[0] for part in of_workers]))
        assert torch.equal(y, torch.cat([part[1] for part in of_workers]))
        assert {part[2] for part in of_workers} == {n} == {len(x)}


def test_an_epoch_can_be_begun_at_any_of_its_batches(data):
    batches = ArrayBatches(data, EVERYTHING, AS_IS, CPU)
    whole, rest = list(batches.epoch(3)), list(batches.epoch(3, first=2))
    assert len(rest) == 2
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[2:], rest, strict=True))


def test_pictures_grow_to_their_full_size_in_three_quarters_of_the_run(data):
    recipe = replace(PLAIN, epochs=21, first_size=64)
    sides = [side_of(recipe, 128, epoch) for epoch in range(1, 22)]
    assert sides == sorted(sides) and sides[0] == 64 and set(sides[16:]) == {128} and sides[8] == 96
    assert all(side % 8 == 0 for side in sides)
    assert side_of(replace(recipe, first_size=None), 128, 1) == 128
    small = next(iter(ArrayBatches(data, replace(recipe, first_size=6), AS_IS, CPU).epoch(1)))[0]
    original = next(iter(ArrayBatches(data, PLAIN, AS_IS, CPU).epoch(1)))[0]
    assert small.shape == (16, 3, 6, 6)
    # Antialiased, half the size: the weights of a triangle four pixels wide, where the border does not count.
    weights = torch.tensor([1, 3, 3, 1]) / 8
    expected = torch.einsum("i,bcij,j->bc", weights, original[:, :, 3:7, 5:9], weights)
    assert torch.allclose(small[:, :, 2, 3], expected, atol=1e-6)


def test_the_views_of_an_image_are_itself_its_mirror_image_and_both_moved_by_a_pixel():
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for number in (1, 2, 6):
        shares, seen = zip(*views(x, number), strict=True)
        assert len(seen) == number and sum(shares) == 1 and torch.equal(seen[0], x)
        assert all(view.shape == x.shape for view in seen)
    assert shares == (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)
    assert torch.equal(seen[1], x.flip(3))
    assert torch.equal(seen[2][:, :, 1:, 1:], x[:, :, :-1, :-1]) and torch.equal(seen[3], seen[2].flip(3))
    assert torch.equal(seen[4][:, :, :-1, :-1], x[:, :, 1:, 1:]) and torch.equal(seen[5], seen[4].flip(3))


def test_other_numbers_of_views_are_refused():
    with pytest.raises(ValueError, match="1, 2 or 6 views of an image, not with 4"):
        views(torch.zeros(1, 3, 4, 4), 4)
