"""Whether a map follows the network and the image: each measure held against an independent one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

import gradcam_lib as gc
from gradcam_lib import sanity
from gradcam_lib.faithfulness import BASELINES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network():
    """A network with batch norms, images for it, and its classes."""
    torch.manual_seed(0)
    model, images = gc.build_model("report-cnn-normalised"), torch.rand(3, 3, 32, 32)
    for _ in range(20):  # statistics of its own
        model.train()(torch.rand(16, 3, 32, 32))
    return model.eval(), images, torch.tensor([1, 5, 9])


def edges(model, images, targets):
    """What looks like a map and has nothing to do with the network."""
    return BASELINES["edges"](images)


pairs = st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=st.integers(-3, 3).map(float))] * 2)
)


@given(pairs)
def test_rank_correlation_is_scipys(pair):
    got = sanity.rank_correlation(*map(torch.from_numpy, pair))
    for n, (a, b) in enumerate(zip(*pair, strict=True)):
        constant = np.ptp(a) == 0 or np.ptp(b) == 0
        assert got[n] == pytest.approx(0 if constant else spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(11, 20), st.integers(11, 20))
def test_ssim_is_scikit_images(seed, h, w):
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(seed)
    a = rng.random((2, h, w))
    b = rng.random() * a + rng.normal(size=a.shape) * rng.random()
    got = sanity.ssim(torch.from_numpy(a), torch.from_numpy(b))
    for n in range(2):
        x, y = a[n] / np.abs(a[n]).max(), b[n] / np.abs(b[n]).max()
        options = dict(data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        assert got[n] == pytest.approx(metrics.structural_similarity(x, y, **options), abs=1e-6)


def test_a_map_is_like_itself_and_unlike_its_opposite():
    M = torch.rand(4, 12, 12)
    assert torch.allclose(sanity.rank_correlation(M, 3 * M + 1), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(sanity.rank_correlation(M, -M), -torch.ones(4, dtype=torch.float64))
    assert torch.allclose(sanity.ssim(M, 5 * M), torch.ones(4))
    assert (sanity.ssim(M, 1 - M) < 0.1).all() and (
        sanity.ssim(torch.zeros(4, 12, 12), torch.zeros(4, 12, 12)) == 1
    ).all()
    table = sanity.agreement({"one": M, "same": 2 * M, "opposite": -M})
    assert np.allclose(table, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]])


def test_cascade_goes_from_the_last_layer_to_the_first_and_changes_a_copy(network):
    model, _, _ = network
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = [name for name, p in model.named_parameters() if p.ndim > 1]
    seen, layers = [], []
    for layer, changed in sanity.cascade(model):
        layers.append(layer)
        now = {name for name in weights if not torch.equal(changed.state_dict()[name], before[name])}
        seen.append(len(now))
        # What has changed is the end of the network, all of it and nothing else.
        assert now == set(weights[len(weights) - len(now) :])
    assert seen[0] == 1 and seen[-1] == len(weights) and len(set(layers)) == len(layers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_cascade_is_the_same_for_the_same_seed_and_leaves_the_random_state_alone(network):
    model, state = network[0], torch.random.get_rng_state()
    ends = [list(sanity.cascade(model, seed))[-1][1].state_dict() for seed in (0, 0, 1)]
    name = next(name for name, p in model.named_parameters() if p.ndim > 1)
    assert torch.equal(ends[0][name], ends[1][name]) and not torch.equal(ends[0][name], ends[2][name])
    assert torch.equal(state, torch.random.get_rng_state())


def test_randomisation_tells_a_map_of_the_network_from_an_edge_detector(network):
    model, images, targets = network
    deaf = sanity.randomisation(edges, model, images, targets)
    assert (deaf["rank_correlation"] > 1 - 1e-9).all() and (deaf["ssim"] > 1 - 1e-5).all()
    table = sanity.randomisation(sanity.explainer("grad-cam"), model, images, targets)
    assert len(table) == 3 * table["layer"].nunique() and table.groupby("layer")["depth"].nunique().eq(1).all()
    assert table[table["depth"] == table["depth"].max()]["rank_correlation"].abs().mean() < 0.8


def test_max_sensitivity_is_its_definition(network):
    model, images, targets = network
    method = sanity.explainer("hires-cam", layer="features.relu2")
    got = sanity.max_sensitivity(method, model, images, targets, samples=4, radius=0.1)
    generator, largest = torch.Generator().manual_seed(0), torch.zeros(3)
    M = method(model, images, targets)
    for _ in range(4):
        noisy = images + 0.1 * (2 * torch.rand(images.shape, generator=generator) - 1)
        changed = method(model, noisy, targets)
        largest = torch.maximum(largest, ((changed - M).square().sum((1, 2)) / M.square().sum((1, 2))).sqrt())
    assert torch.allclose(got, largest, atol=1e-6) and (got > 0).all()


def test_views_are_moved_back_over_the_image(network):
    model, images, targets = network

    def brightness(model, x, targets):  # follows every move of the image exactly
        return x.mean(1)

    found = sanity.views(brightness, model, images, targets, shift=3)
    inside = (slice(None), slice(3, -3), slice(3, -3))
    for k in (0, 1, 3, 4, 5, 6):
        assert torch.allclose(found[k][inside], images.mean(1)[inside])
    assert 0 < (found[2] - found[0]).std() < 0.1 * images.std()


def test_maps_that_do_not_fit_are_said_in_one_sentence():
    with pytest.raises(ValueError, match="as many images"):
        sanity.rank_correlation(torch.rand(2, 4, 4), torch.rand(3, 4, 4))
