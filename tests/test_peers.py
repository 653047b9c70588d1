"""The maps of pytorch-grad-cam, Captum and torch-cam: the same as ours, or different by a convention that is known."""

import sys
from pathlib import Path

import pytest
from cam_oracle import network, pictures

for module in ("captum", "pytorch_grad_cam", "torchcam"):
    pytest.importorskip(module, exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import agreement  # noqa: E402
import peers  # noqa: E402

# Networks, sides of the images, and layers that no in-place operation follows.
CASES = [("resnet18", 64, "layer2"), ("report-cnn", 32, "features.relu3")]
MANY_PASSES = [("resnet18", 32, "layer1"), ("report-cnn", 32, "features.relu2")]  # few feature maps
HEAD_OF_CAM = [("resnet18", 64, "layer4")]
EVERY_METHOD = [(library, method) for library, methods in peers.METHODS.items() for method in sorted(methods)]


def cases(method):
    return HEAD_OF_CAM if method == "cam" else MANY_PASSES if method in ("score-cam", "ablation-cam") else CASES


pytestmark = pytest.mark.usefixtures("one_thread")


def compare(library, method, name, side, layer, lowest=False):
    net, images = network(name, side), pictures(2, side)
    logits = net(images)
    return agreement.compare(
        library, method, net, layer, images, (logits.argmin if lowest else logits.argmax)(1).tolist()
    )


@pytest.mark.parametrize(("library", "method"), [case for case in EVERY_METHOD if case not in peers.DIFFERENCES])
def test_where_the_convention_is_ours_the_maps_are_the_same(library, method):
    for case in cases(method):
        assert compare(library, method, *case)[0] < 1e-4, case


@pytest.mark.parametrize(("library", "method"), peers.DIFFERENCES)
def test_where_the_convention_is_another_it_is_all_that_differs(library, method):
    # Of a score below zero: else Ablation-CAM's two conventions are one.
    found = [compare(library, method, *case, lowest=method == "ablation-cam") for case in cases(method)]
    assert all(by_theirs < 1e-4 for _, by_theirs, _ in found)
    assert any(as_is > 1e-3 for as_is, _, _ in found)


@pytest.mark.parametrize("library", peers.METHODS)
def test_an_in_place_operation_after_the_layer_spoils_the_maps_of_those_that_do_not_copy(library):
    error = compare(library, "grad-cam", "resnet18", 64, "layer4.1.bn2")[0]
    assert error < 1e-4 if library == "captum" else error > 0.1


def test_where_no_feature_map_reaches_zero_the_other_library_ablates_with_something_else():
    """pytorch-grad-cam puts the lowest value less 1e7 there instead of zero, which only a ReLU right behind undoes."""
    layer = "features.denseblock1.denselayer1.conv2"
    assert compare("grad-cam", "ablation-cam", "densenet121", 32, layer)[0] > 0.1
    assert compare("grad-cam", "ablation-cam", "report-cnn", 32, "features.conv1")[0] < 1e-4
