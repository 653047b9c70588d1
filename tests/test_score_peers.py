"""Our scores against those of Quantus, Captum, torch-cam and pytorch-grad-cam where they have the same: to 1e-4."""

import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from gradcam_lib import faithfulness as fa
from gradcam_lib import sanity

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import peers

for module in ("captum", "pytorch_grad_cam", "quantus", "torchcam"):
    pytest.importorskip(module, exc_type=ImportError)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Quantus's own: invalid escapes in its docstrings, and NumPy functions on their way out.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::UserWarning"),
]
BLACK = torch.zeros(1)


@pytest.fixture(scope="module")
def case():
    """A network for images of one channel, for Quantus counts each channel of a pixel by itself."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 4)
    ).eval()
    targets = torch.randint(4, (6,))
    return model, torch.randn(6, 1, 12, 12), torch.rand(6, 12, 12), targets, torch.rand(6, 12, 12) > 0.6


def quantus_score(name, case, explain_func=None, **options):
    return peers.quantus_score(name, *case, explain=explain_func, **options)


def test_localisation_is_quantus(case):
    _, _, maps, _, masks = case
    assert quantus_score("PointingGame", case) == fa.pointing_game(maps, masks).bool().tolist()
    assert quantus_score("RelevanceMassAccuracy", case) == pytest.approx(
        fa.energy_inside(maps, masks).tolist(), abs=1e-4
    )


def test_deletion_is_quantus_pixel_flipping(case):
    model, images, maps, targets, _ = case
    theirs = quantus_score("PixelFlipping", case, features_in_step=12, perturb_baseline=0.0)
    ours = fa.deletion(model, images, maps, targets, steps=12, fill=BLACK)
    assert np.allclose(theirs, ours.probabilities[:, 1:], atol=1e-4)


def test_road_is_quantus(case, monkeypatch):
    monkeypatch.setattr(fa, "NOISE", 0)
    model, images, maps, targets, _ = case
    theirs = quantus_score("ROAD", case, noise=0.0, percentages=[25, 50, 75])
    _, most, _ = fa.road(model, images, maps, targets, shares=(0.25, 0.5, 0.75))
    assert list(theirs.values()) == pytest.approx(most.top.double().mean(0).tolist(), abs=1e-4)


def test_road_is_pytorch_grad_cams(case, monkeypatch):
    from pytorch_grad_cam.metrics import road
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    monkeypatch.setattr(fa, "NOISE", 0)
    monkeypatch.setattr(road.NoisyLinearImputer.__init__, "__defaults__", (0, road.neighbors_weights))
    model, images, maps, targets, _ = case
    wanted = [ClassifierOutputSoftmaxTarget(t) for t in targets.tolist()]
    percentiles = [25, 50, 75]  # shares of 144 pixels that are whole numbers, for theirs are quantiles
    theirs = road.ROADCombined(percentiles)(images, maps.numpy(), wanted, model)
    ours, _, _ = fa.road(model, images, maps, targets, shares=(0.25, 0.5, 0.75))
    assert theirs == pytest.approx(ours.tolist(), abs=1e-4)


def test_sensitivity_n_is_quantus_faithfulness_correlation(case):
    model, images, maps, targets, _ = case
    generator = torch.Generator().manual_seed(0)
    sets = torch.rand(6, 100, 144, generator=generator).argsort(2) < 29
    drawn = iter([sets[n, j].nonzero()[:, 0].numpy() for j in range(100) for n in range(6)])
    with mock.patch("numpy.random.choice", lambda *a, **k: next(drawn)):
        options = dict(nr_runs=100, subset_size=29, perturb_baseline=0.0, return_aggregate=False)
        theirs = quantus_score("FaithfulnessCorrelation", case, softmax=False, **options)
    ours = fa.sensitivity_n(model, images, maps, targets, shares=[0.2], fill=BLACK)
    assert theirs == pytest.approx(ours[:, 0].tolist(), abs=1e-4)


def test_deletion_insertion_and_drop_are_torch_cams(case):
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    class Extractor:
        """Gives our maps, in the place of a method of theirs; they are not to be stretched once more."""

        def __init__(self, model, maps):
            self.model, self.maps = model, maps

        def __call__(self, *args, **kwargs):
            return [self.maps]

        def fuse_cams(self, cams):
            return cams[0]

        _hooks_off = nullcontext

    model, images, maps, targets, _ = case
    extractor = Extractor(model, maps / maps.amax((1, 2), keepdim=True))
    metrics = (
        DeletionInsertionMetric(extractor, lambda z: z.softmax(1), steps=12),
        ClassificationMetric(extractor, lambda z: z.softmax(1)),
    )
    theirs = {}
    for metric in metrics:
        metric.update(images, targets.tolist())
        theirs |= metric.summary()
    drop, increase = fa.drop_and_increase(model, images, maps, targets)
    ours = {
        "deletion_auc": fa.deletion(model, images, maps, targets, steps=12, fill=BLACK).area.mean().item(),
        "insertion_auc": fa.insertion(model, images, maps, targets, steps=12, fill=BLACK).area.mean().item(),
        "avg_drop": drop.mean().item(),
        "conf_increase": increase.double().mean().item(),
    }
    assert theirs == pytest.approx(ours, abs=1e-4)


def test_max_sensitivity_is_captums(case):
    from captum.metrics import sensitivity_max

    model, images, _, targets, _ = case
    method = sanity.explainer("hires-cam", layer="4")
    generator, theirs = torch.Generator().manual_seed(0), []

    def explain(x):
        return (method(model, x[0] if isinstance(x, tuple) else x, targets),)

    def noisy(x):  # draws what ours draws
        return x + 0.02 * (2 * torch.rand(images.shape, generator=generator) - 1)

    for _ in range(5):
        theirs.append(sensitivity_max(explain, images, noisy, n_perturb_samples=1))
    ours = sanity.max_sensitivity(method, model, images, targets, samples=5)
    assert torch.allclose(torch.stack(theirs).amax(0), ours, atol=1e-4)


def test_randomisation_is_quantus(case, monkeypatch):
    import quantus
    from quantus.helpers.model.pytorch_model import PyTorchModel

    # Theirs starts every layer from one seed, so that layers of one shape get the same weights; here they take ours.
    monkeypatch.setattr(PyTorchModel, "get_random_layer_generator", lambda self, **k: sanity.cascade(self.model, 3))
    model, images, _, targets, masks = case

    def method(model, images, targets):  # Quantus takes only maps of the images' size
        return fa.enlarged(sanity.explainer("hires-cam", layer="4")(model, images, targets), images.shape[2:])

    def explain(model, inputs, targets, **kwargs):
        return method(model, torch.from_numpy(inputs), torch.from_numpy(targets))[:, None].numpy()

    maps = method(model, images, targets)
    theirs = quantus_score(
        "MPRT",
        (model, images, maps, targets, masks),
        similarity_func=quantus.correlation_spearman,
        return_average_correlation=False,
        explain_func=explain,
    )
    ours = sanity.randomisation(method, model, images, targets, seed=3)
    for layer, rows in ours.groupby("layer"):
        assert theirs[layer] == pytest.approx(rows["rank_correlation"].tolist(), abs=1e-4)
