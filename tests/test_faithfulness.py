"""Scores of maps: a perfect map scores perfectly, one that knows nothing at chance, an inverted one worst; and each
score is its definition, which is written out here a second time, slowly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn.functional import interpolate

import gradcam_lib as gc
from gradcam_lib import faithfulness as fa

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE, N = 16, 100


class Brightness(nn.Module):
    """Its logit of class 1 is how bright the object is, less how bright all the rest is; that of class 0 is zero."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask.float()

    def forward(self, x):
        weights = 12 * self.mask / self.mask.sum() - 10 * (1 - self.mask) / (1 - self.mask).sum()
        z = (x[:, 0] * weights).sum((1, 2)) - 7
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture(scope="module")
def scene():
    """A bright object on a dark ground, in 100 pictures; the network that looks at it; and its mask (N, H, W)."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[3:9, 5:12] = True
    images = mask + 0.1 * torch.rand(N, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return Brightness(mask), images, mask.expand(N, -1, -1)


def scores(maps, scene):
    """Every score, turned so that higher is better: {name: (N,)}."""
    model, images, masks = scene
    drop, increase = fa.drop_and_increase(model, images, maps, 1)
    curves = {
        f"{name}, {fill if isinstance(fill, str) else 'black'}": sign
        * of(model, images, maps, 1, steps=16, fill=fill).area
        for name, of, sign in (("deletion", fa.deletion, -1), ("insertion", fa.insertion, 1))
        for fill in ("mean", "blur", torch.zeros(1))
    }
    return curves | {
        "pointing game": fa.pointing_game(maps, masks),
        "energy inside": fa.energy_inside(maps, masks),
        "iou": fa.iou(maps, masks),
        "best iou": fa.best_iou(maps, masks),
        "box iou": fa.box_iou(fa.boxes(maps), torch.tensor([[5, 3, 12, 9]]).expand(N, 4)),
        "road": fa.road(model, images, maps, 1)[0],
        "drop": -drop,
        "increase": increase.double(),
        "sensitivity-n": fa.sensitivity_n(model, images, maps, 1, fill=torch.zeros(1), shares=[0.2], subsets=50)[:, 0],
    }


def test_a_perfect_map_scores_perfectly_a_random_one_at_chance_and_an_inverted_one_worst(scene):
    _, images, masks = scene
    maps = {"perfect": masks.float(), "random": fa.random_map(images), "inverted": 1 - masks.float()}
    perfect, random, inverted = (scores(M, scene) for M in maps.values())
    for name in perfect:
        assert perfect[name].mean() > random[name].mean() + 0.01, name
        assert random[name].mean() > inverted[name].mean() - 1e-6, name
    for name in ("pointing game", "energy inside", "iou", "best iou", "box iou", "increase"):
        assert (perfect[name] == 1).all(), name
    for name in ("pointing game", "energy inside", "iou", "increase"):
        assert (inverted[name] == 0).all(), name
    assert (perfect["drop"] == 0).all() and (inverted["drop"] < -0.99).all()
    assert (perfect["sensitivity-n"] > 0.9).all() and (inverted["sensitivity-n"] < -0.9).all()
    # Chance is what the size of the object makes it, to within four standard errors.
    area = masks[0].float().mean()
    assert abs(random["pointing game"].mean() - area) < 4 * (area * (1 - area) / N) ** 0.5
    assert abs(random["energy inside"].mean() - area) < 0.01
    assert abs(random["road"].mean()) < 0.02
    assert abs(random["sensitivity-n"].mean()) < 4 / (50 * N) ** 0.5


# --- localisation, by its definition ---

grids = st.tuples(st.integers(1, 4), st.integers(2, 6), st.integers(2, 6))


@st.composite
def maps_and_masks(draw):
    """Maps with many equal values, and masks of at least one pixel and never all."""
    shape = draw(grids)
    maps = draw(hnp.arrays(np.float32, shape, elements=st.integers(0, 4).map(float)))
    masks = draw(hnp.arrays(bool, shape))
    masks[:, 0, 0], masks[:, -1, -1] = True, False
    return maps, masks


@given(maps_and_masks())
def test_localisation_is_its_definition(case):
    maps, masks = case
    got = {
        f.__name__: f(*map(torch.from_numpy, case)).numpy()
        for f in (fa.pointing_game, fa.energy_inside, fa.iou, fa.best_iou)
    }
    for n, (M, mask) in enumerate(zip(maps, masks, strict=True)):
        overlap = [(mask & (M >= t)).sum() / (mask | (M >= t)).sum() for t in np.unique(M)]
        assert got["best_iou"][n] == pytest.approx(max(overlap), abs=1e-6)
        assert got["pointing_game"][n] == pytest.approx(mask[M == M.max()].mean(), abs=1e-6)
        assert got["energy_inside"][n] == pytest.approx(M[mask].sum() / M.sum() if M.any() else mask.mean(), abs=1e-6)
        half = M >= M.max() / 2
        assert got["iou"][n] == pytest.approx((mask & half).sum() / (mask | half).sum(), abs=1e-6)
        assert got["iou"][n] <= got["best_iou"][n] + 1e-6


@given(maps_and_masks())
def test_the_box_is_round_the_largest_connected_part(case):
    def parts(inside):  # flood fill, in eight directions
        left = set(zip(*np.nonzero(inside), strict=True))
        while left:
            part, edge = set(), [left.pop()]
            while edge:
                y, x = edge.pop()
                part.add((y, x))
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
                left -= near
                edge += near
            yield np.array(sorted(part))

    for M, box in zip(case[0], fa.boxes(torch.from_numpy(case[0])).tolist(), strict=True):
        found = list(parts(M.max() * 0.15 <= M))
        largest = max(map(len, found))
        allowed = [[*p.min(0)[::-1], *(p.max(0) + 1)[::-1]] for p in found if len(p) == largest]
        assert box in allowed


def test_boxes_overlap_as_worked_out_by_hand():
    got = fa.box_iou(
        torch.tensor([[0, 0, 4, 4], [0, 0, 2, 2], [0, 0, 4, 2]]),
        torch.tensor([[2, 2, 6, 6], [2, 0, 4, 2], [0, 0, 4, 4]]),
    )
    assert got.tolist() == pytest.approx([4 / 28, 0, 0.5])


def test_small_maps_are_enlarged_as_heatmaps_are():
    model, x = gc.build_model("report-cnn").eval(), torch.rand(2, 3, 32, 32)
    result = gc.explain(model, x, method="layer-cam")
    assert (result.maps.flatten(1).amax(1) > 0).all()
    masks = torch.rand(2, 32, 32) > 0.7
    heat = result.heatmaps(None)
    assert torch.equal(fa.energy_inside(result.maps, masks), fa.energy_inside(heat, masks))


# --- what the network needs, by its definition ---


@pytest.fixture(scope="module")
def network():
    """A small network without equal values anywhere, its images, maps without equal values, and classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(144, 4)
    )
    images, maps = torch.randn(3, 1, 12, 12), torch.rand(3, 12, 12)
    return model.train(), images, maps, torch.tensor([3, 0, 2])


def by_hand(model, image, M, target, share, fill, most=True):
    """The probability of the class without a share of the pixels, and whether it is still the top one."""
    order = np.argsort(-M.numpy().ravel() if most else M.numpy().ravel())
    x = image.clone().flatten(1)
    gone = order[: round(share * M.numel())]
    x[:, gone] = fill.flatten(1)[:, gone]
    with torch.no_grad():
        z = model.eval()(x.view(1, *image.shape))[0]
    return z.softmax(0)[target].item(), bool(z.argmax() == target)


@pytest.mark.parametrize("fill", ["mean", "blur", "tensor"])
def test_deletion_and_insertion_are_their_definition(network, fill):
    model, images, maps, targets = network
    given = torch.randn_like(images) if fill == "tensor" else fill
    if fill == "mean":
        other = images.mean((1, 2, 3), keepdim=True).expand_as(images)
    elif fill == "blur":  # with the kernel written out, and the edges mirrored
        w = np.exp(-(np.arange(-3, 4) ** 2) / 2)
        w /= w.sum()
        padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="reflect")
        views = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (2, 3))
        other = torch.from_numpy((views * np.outer(w, w)).sum((-2, -1))).float()
    else:
        other = given
    deleted = fa.deletion(model, images, maps, targets, steps=6, fill=given, batch_size=4)
    inserted = fa.insertion(model, images, maps, targets, steps=6, fill=given, batch_size=5)
    assert deleted.shares.tolist() == pytest.approx(np.arange(7) / 6)
    assert torch.allclose(inserted.shares, deleted.shares)
    for n in range(3):
        away = [by_hand(model, images[n], maps[n], targets[n], k / 6, other[n]) for k in range(7)]
        back = [by_hand(model, images[n], maps[n], targets[n], 1 - k / 6, other[n], most=False) for k in range(7)]
        for curve, expected in ((deleted, away), (inserted, back)):
            assert curve.probabilities[n].tolist() == pytest.approx([p for p, _ in expected], abs=1e-5)
            assert curve.top[n].tolist() == [top for _, top in expected]
            p = curve.probabilities[n].double().numpy()
            assert curve.area[n] == pytest.approx((p[:-1] + p[1:]).sum() / 12, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(2, 7), st.integers(2, 7))
def test_imputation_solves_the_equations_of_the_paper(seed, C, H, W):
    rng = np.random.default_rng(seed)
    image, hole = rng.normal(size=(C, H, W)).astype(np.float32), rng.random((H, W)) < rng.random()
    filled = fa.impute(image[None], hole[None])[0]
    if hole.all():
        assert np.array_equal(filled, image)
        return
    assert np.array_equal(filled[:, ~hole], image[:, ~hole])
    for y, x in zip(*np.nonzero(hole), strict=True):
        mean, weights = np.zeros(C), 0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy or dx) and 0 <= y + dy < H and 0 <= x + dx < W:
                    w = 1 / 12 if dy and dx else 1 / 6
                    mean, weights = mean + w * filled[:, y + dy, x + dx], weights + w
        assert filled[:, y, x] == pytest.approx(mean / weights, abs=1e-5)


def test_the_noise_of_imputation_is_the_stated_one_and_the_same_however_the_pictures_are_batched(network):
    model, images, maps, targets = network
    noisy = fa._changed(images, lambda n, j: torch.ones(len(n), 12, 12).bool(), "noisy-linear", seed=0)
    x = noisy(torch.arange(3).repeat(40), torch.arange(120))
    assert (x - x.mean((2, 3), keepdim=True)).std() == pytest.approx(0.01, rel=0.05)
    runs = [fa.road(model, images, maps, targets, batch_size=size)[0] for size in (1, 7, 100)]
    assert torch.allclose(runs[0], runs[1], atol=1e-6) and torch.allclose(runs[0], runs[2], atol=1e-6)
    assert not torch.allclose(runs[0], fa.road(model, images, maps, targets, seed=1)[0], atol=1e-6)


def test_what_is_removed_is_what_deletion_shows(network):
    model, images, maps, targets = network
    for fill in ("mean", "blur", "noisy-linear"):
        shown = fa.remove(images, maps, 0.25, fill=fill)
        assert ((shown != images).any(1).sum((1, 2)) == 36).all()
        with torch.no_grad():
            p = model.eval()(shown).softmax(1).gather(1, targets[:, None])[:, 0]
        if fill != "noisy-linear":  # whose noise is another for each step
            curve = fa.deletion(model, images, maps, targets, steps=4, fill=fill)
            assert torch.allclose(curve.probabilities[:, 1], p, atol=1e-5)


def test_sensitivity_n_is_one_for_what_a_linear_network_does():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.randn(4, 1, 8, 8)
    maps = images[:, 0] * model[1].weight[2].view(8, 8).detach()
    got = fa.sensitivity_n(model, images, maps, 2, fill=torch.zeros(1), shares=(0.1, 0.5, 0.9))
    assert got.shape == (4, 3) and torch.allclose(got, torch.ones(4, 3, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(
        fa.sensitivity_n(model, images, -maps, 2, fill=torch.zeros(1)), -torch.ones(1, dtype=torch.float64), atol=1e-4
    )


def test_pixels_of_equal_value_go_in_random_order():
    mask = torch.zeros(SIDE, SIDE)
    mask[: SIDE // 2] = 1  # a network that looks at the upper half, and a map that is the same everywhere
    images = torch.ones(1, 1, SIDE, SIDE)
    black = torch.zeros(1)
    half = [
        fa._curve(
            Brightness(mask), images, torch.ones(1, SIDE, SIDE), 1, torch.tensor([0.5]), black, seed=s
        ).probabilities.item()
        for s in range(20)
    ]
    by_place = fa._curve(
        Brightness(mask), images, 1 - torch.arange(256.0).view(1, SIDE, SIDE), 1, torch.tensor([0.5]), black
    )
    assert np.std(half) > 0 and np.mean(half) > by_place.probabilities.item() + 0.002


def test_pictures_are_imputed_together_as_one_by_one(monkeypatch):
    rng = np.random.default_rng(0)
    images, holes = rng.normal(size=(5, 3, 9, 7)).astype(np.float32), rng.random((5, 9, 7)) < 0.5
    holes[2] = True
    together = fa.impute(images, holes)
    monkeypatch.setattr(fa, "PIXELS_AT_ONCE", 130)  # two at a time
    assert np.allclose(fa.impute(images, holes), together, atol=1e-6)
    assert np.allclose([fa.impute(images[k : k + 1], holes[k : k + 1])[0] for k in range(5)], together, atol=1e-6)
    assert np.array_equal(together[2], images[2])


def test_search_finds_what_is_best(scene):
    model, images, _ = scene
    some, black = images[:5], torch.zeros(1)
    for insert, curve, better in ((False, fa.deletion, torch.lt), (True, fa.insertion, torch.gt)):
        found = fa.search(model, some, 1, grid=8, fill=black, insert=insert)
        assert (found.flatten(1).sort(1).values == torch.arange(1, 65) / 64).all()
        areas = [
            curve(model, some, M, 1, steps=64, fill=black).area
            for M in (interpolate(found[:, None], SIDE)[:, 0], fa.random_map(some), fa.centre_map(some))
        ]
        assert better(areas[0], areas[1]).all() and better(areas[0], areas[2]).all()


def test_search_takes_the_best_step_every_time(network):
    model, images, _, targets = network
    found = fa.search(model, images, targets, grid=3, fill=torch.zeros(1))
    for n, order in enumerate((-found.flatten(1)).argsort(1).tolist()):
        gone, left = torch.zeros(3, 3), set(range(9))
        for cell in order:
            p = {}
            for c in left:
                trial = gone.clone()
                trial.view(-1)[c] = 1
                x = images[n] * (1 - trial.repeat_interleave(4, 0).repeat_interleave(4, 1))
                p[c] = model.eval()(x[None]).softmax(1)[0, targets[n]].item()
            assert p[cell] <= min(p.values()) + 1e-6
            gone.view(-1)[cell] = 1
            left.remove(cell)


def test_the_network_is_left_as_it_was(network):
    model, images, maps, targets = network
    model.train()
    fa.deletion(model, images, maps, targets, steps=2)
    fa.drop_and_increase(model, images, maps, targets)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


# --- what does not fit ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(maps=torch.full((3, 12, 12), torch.nan)), "maps of images [0, 1, 2] hold NaN"),
        (dict(maps=torch.rand(2, 12, 12)), "3 images, 2 maps and 3 targets"),
        (dict(targets=torch.tensor([1, 2])), "3 images, 3 maps and 2 targets"),
        (dict(maps=torch.rand(12, 12)), "pass map[None]"),
        (dict(images=torch.rand(1, 12, 12)), "pass image[None]"),
        (dict(fill="grey"), "fill must be"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(network, change, message):
    model, images, maps, targets = network
    with pytest.raises(ValueError) as caught:
        fa.deletion(model, **(dict(images=images, maps=maps, targets=targets) | change))
    assert message in str(caught.value)


def test_masks_that_do_not_fit_are_said_in_one_sentence():
    with pytest.raises(ValueError, match="masks must be"):
        fa.pointing_game(torch.rand(2, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="must both be"):
        fa.box_iou(torch.rand(2, 4), torch.rand(3, 4))
