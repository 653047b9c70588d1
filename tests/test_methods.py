"""Every method against its definition, the identities that tie the methods together, and the many ways models come.

The definitions are computed in float64 by `cam_oracle`. In float64 the library must agree with them to the last digits.
In float32 it must agree within 1e-5 of a map's largest magnitude, except where float32 itself cannot:

- A unit in front of a ReLU that is zero but for rounding is on in one precision and off in the other, which changes
  the gradient of everything before it. In the early layers of a deep ReLU network a million units lie behind the
  layer, and one of them nearly always is: gradients there differ by up to 1 %. These layers are tested in float64.
- XGrad-CAM divides by the sum of a feature map, Grad-CAM++ by 2 + gradient × sum. Where feature maps have both signs
  these come near zero and magnify rounding without bound. Such layers are tested in float64 for these two.
- Singular vectors turn into each other where two singular values are close: the two Eigen-CAMs are tested in float64
  where the second is above 90 % of the first.
- What follows a layer may not depend on the length of its vectors, such as a layer norm over channels. Then HiResCAM's
  sum over channels is zero (Euler's theorem), and in float32 nothing but rounding.
- Ablation-CAM weighs by differences of scores, which are small beside the scores. Its weights must be right to 1e-5
  of the score, not of themselves.
"""

import gc as garbage
import inspect
import itertools
import weakref
from contextlib import nullcontext
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from cam_oracle import (
    Definitions,
    calibrate,
    enlarge,
    in_float64,
    last_relu,
    network,
    pictures,
    random_net,
    randomise,
    relative_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradcam_lib as gc
from gradcam_lib.methods import METHODS

OF_GRADIENTS = ["grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam", "eigen-cam", "eigengrad-cam"]
WHOLE_NETWORK = {"full-grad"}
# Several layers of each network: early, in the middle, in front of an in-place operation, and (last) the default one.
LAYERS = {
    "report-cnn": ["features.conv1", "features.relu2", "features.relu3"],
    "vgg16_bn": ["features.1", "features.24", "features.41", "features.42"],  # 1 and 41: before an in-place ReLU
    "resnet18": ["conv1", "layer2", "layer4.1.bn2", "layer4"],  # bn2: before an in-place addition
    "resnet50": ["layer1.0.bn1", "layer3", "layer4.2.bn3", "layer4"],
    "densenet121": ["features.conv0", "features.denseblock2.denselayer3.conv2", "features.norm5", "features"],
    "mobilenet_v3_small": ["features.0", "features.4", "features.12.1", "features"],
    "efficientnet_b0": ["features.0.1", "features.4", "features.8.1", "features"],
    "convnext_tiny": ["features.1", "features.5", "features.7.2.block.3", "features"],
    "vit_b_16": ["conv_proj", "encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_11.ln_1"],
}
FORMS = {
    "features.7.2.block.3": "channels-last",
    "encoder.layers.encoder_layer_3": "tokens",
    "encoder.layers.encoder_layer_11.ln_1": "tokens",
}
SMOOTH = {"convnext_tiny", "vit_b_16", "efficientnet_b0"}  # no ReLU: float32 gradients are right in every layer
EVERY_LAYER = [(name, layer) for name, layers in LAYERS.items() for layer in layers]
LATE_LAYERS = [(n, l) for n, l in EVERY_LAYER if n in SMOOTH or l in LAYERS[n][-2:]]


pytestmark = pytest.mark.usefixtures("one_thread")


def size_of(name):
    return 32 if name in ("report-cnn", "vgg16_bn") else 64


def images_of(name):
    return pictures(2, size_of(name))


def net_of(name):
    return network(name, size_of(name))


@cache
def in_double(name):
    return in_float64(net_of(name))


@cache
def predicted(name):
    with torch.no_grad():
        return net_of(name)(images_of(name)).argmax(1).tolist()


@cache
def definitions(name, layer):
    return Definitions(in_double(name), images_of(name), layer, predicted(name), FORMS.get(layer, "maps"))


def side_by_side(A, dA):
    """The maps of all methods of gradients, from one pass."""
    given = {"A": A, "dA": dA}
    each = (METHODS[m] for m in OF_GRADIENTS)
    return torch.cat([f(**{n: given[n] for n in inspect.signature(f).parameters}) for f in each], 1)


def maps_of_gradients(model, images, layer, targets):
    maps = gc.explain(model, images, layer=layer, targets=targets, method=side_by_side).signed
    return dict(zip(OF_GRADIENTS, maps.chunk(len(OF_GRADIENTS), 1), strict=True))


def beyond_single_precision(method, exact):
    """Whether the method magnifies, on these feature maps, the rounding of float32: see above for the reasons."""
    if method in ("xgrad-cam", "grad-cam++"):
        return (exact.A < 0).any()
    if method.startswith("eigen"):
        X = exact.A if method == "eigen-cam" else exact.A * exact.dA
        first, second = torch.linalg.svdvals(X.flatten(2))[:, :2].T
        return (second > 0.9 * first).any()
    return method == "hires-cam" and (exact.of(method).abs().amax() < 1e-4 * (exact.A * exact.dA).abs().sum(1).amax())


# The definitions.


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradients_of_the_definitions_are_central_differences(name):
    smooth_there = {"report-cnn": "features.conv3", "vgg16_bn": "features.41", "vit_b_16": "conv_proj"}
    layer = smooth_there.get(name, LAYERS[name][-1])  # not before a max pooling that chooses between zeros
    exact = definitions(name, layer)
    direction = torch.randn(exact.A.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def score(step):
        with torch.no_grad():
            return exact.score(exact.run(exact.images, lambda X: X + step * direction)[0], range(len(exact.images)))

    slope = (score(1e-6) - score(-1e-6)) / 2e-6
    assert torch.allclose(slope, (exact.dA * direction).flatten(1).sum(1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "layer"), EVERY_LAYER)
def test_every_method_of_gradients_is_its_definition_to_the_last_digits(name, layer):
    exact = definitions(name, layer)
    got = maps_of_gradients(in_double(name), exact.images, layer, predicted(name))
    for method in OF_GRADIENTS:
        assert relative_error(got[method], exact.of(method)) < 1e-10, method


@pytest.mark.parametrize(("name", "layer"), LATE_LAYERS)
def test_every_method_of_gradients_is_its_definition_in_single_precision(name, layer):
    exact = definitions(name, layer)
    got = maps_of_gradients(net_of(name), images_of(name), layer, predicted(name))
    for method in OF_GRADIENTS:
        if not beyond_single_precision(method, exact):
            assert relative_error(got[method], exact.of(method)) < 1e-5, method


@pytest.mark.parametrize("method", [*OF_GRADIENTS, "full-grad", "guided-grad-cam"])
@pytest.mark.parametrize("name", LAYERS)
def test_each_method_called_by_its_name_is_its_definition_at_the_layer_chosen_for_it(name, method):
    exact = definitions(name, LAYERS[name][-1])
    double = method == "full-grad" or beyond_single_precision(method, exact)  # FullGrad looks at early layers too
    model = in_double(name) if double else net_of(name)
    images = exact.images if double else images_of(name)
    incomplete = method == "full-grad" and name in ("mobilenet_v3_small", "efficientnet_b0", "vit_b_16")
    with pytest.warns(UserWarning, match="not complete") if incomplete else nullcontext():
        got = gc.explain(model, images, targets=predicted(name), method=method)
    assert got.layer == ("the whole network" if method == "full-grad" else LAYERS[name][-1])
    assert relative_error(got.signed, exact.of(method)) < (1e-10 if double else 1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b0"])
def test_cam_is_its_definition_where_pooling_and_one_linear_layer_follow(name):
    got = gc.explain(net_of(name), images_of(name), targets=predicted(name), method="cam").signed
    assert relative_error(got, definitions(name, LAYERS[name][-1]).of("cam")) < 1e-5


@pytest.mark.parametrize("name", ["vgg16_bn", "mobilenet_v3_small", "densenet121", "convnext_tiny", "report-cnn"])
def test_cam_is_refused_where_something_else_follows(name):
    # A hidden layer; a ReLU behind DenseNet's features; a layer norm behind ConvNeXt's pooling.
    with pytest.raises(ValueError, match="followed by global average pooling and one linear layer, and nothing else"):
        gc.explain(net_of(name), images_of(name), method="cam")


class Tokens(nn.Module):
    """A vision transformer in small: patches, a class token, two rounds of attention with skip connections."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 12))
        self.rounds = nn.ModuleList(nn.TransformerEncoderLayer(12, 2, 24, batch_first=True) for _ in range(2))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = torch.cat([self.class_token.expand(len(x), 1, 12), self.patches(x).flatten(2).mT], 1)
        for attend in self.rounds:
            x = attend(x)
        return self.head(x[:, 0])


class ChannelsLast(nn.Module):
    """Between two convolutions a linear layer that works on (N, h, w, K)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.mix, self.conv2 = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 10), nn.Conv2d(10, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.mix(self.conv1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.conv2(x.relu()).relu().mean((2, 3)))


@cache
def small(kind):
    net = {Tokens.__name__: Tokens, ChannelsLast.__name__: ChannelsLast}[kind]()
    generator = torch.Generator().manual_seed(3)
    randomise(net, generator)
    calibrate(net, torch.randn(16, 3, 16, 16, generator=generator))
    return net


@pytest.mark.parametrize("method", ["ablation-cam", "score-cam"])
@pytest.mark.parametrize(
    ("name", "size", "layer", "form"),
    [
        ("report-cnn", 32, "features.conv1", "maps"),
        ("report-cnn", 32, "features.relu3", "maps"),
        ("resnet18", 32, "layer1.0.bn1", "maps"),  # before an in-place ReLU, with a skip connection past it
        ("densenet121", 32, "features.denseblock3.denselayer7.conv2", "maps"),  # concatenated with what came before
        ("mobilenet_v3_small", 32, "features.0", "maps"),  # with squeeze and excitation behind
        ("mobilenet_v3_small", 32, "features.3", "maps"),
        ("efficientnet_b0", 32, "features.1", "maps"),
        ("Tokens", 16, "rounds.0", "tokens"),
        ("ChannelsLast", 16, "mix", "channels-last"),
    ],
)
def test_the_methods_of_many_passes_are_their_definition(name, size, layer, form, method):
    net = small(name) if name in ("Tokens", "ChannelsLast") else network(name, size)
    images = pictures(1 if name in torchvision.models.list_models() else 3, size)
    targets = net(images).argmax(1).tolist()
    exact = Definitions(net, images, layer, targets, form)
    arguments = {"layer": layer, "targets": targets, "method": method}
    assert relative_error(gc.explain(exact.model, exact.images, **arguments).signed, exact.of(method)) < 1e-10
    got = gc.explain(net, images, **arguments).signed
    if method == "score-cam":
        assert relative_error(got, exact.of(method)) < 1e-5
    else:  # the weights are right to 1e-5 of the score
        wrong = (got - exact.of(method)).abs().flatten(1).amax(1)
        assert (wrong < 1e-5 * exact.A.abs().sum(1).flatten(1).amax(1)).all()


@pytest.mark.parametrize("method", [m for m in METHODS if m != "eigen-cam"])
def test_the_evidence_against_a_class_is_the_method_of_the_negated_score(method):
    net, images, targets = random_net(5), pictures(3, 12), [0, 3, 1]
    layer = last_relu(net)
    exact = Definitions(net, images, layer, targets, sign=-1)
    arguments = {} if method in WHOLE_NETWORK else {"layer": layer}
    got = gc.explain(net, images, targets=targets, method=method, counterfactual=True, **arguments)
    assert relative_error(got.signed, exact.of(method)) < 1e-5
    assert torch.allclose(got.scores, net(images)[range(3), targets])  # the score is the logit, its sign kept


def test_a_method_that_does_not_look_at_the_class_has_no_evidence_against_it():
    with pytest.raises(ValueError, match="no counterfactual"):
        gc.explain(random_net(5), pictures(1, 12), method="eigen-cam", counterfactual=True)


@pytest.mark.parametrize("method", METHODS)
def test_smoothing_is_the_mean_over_noisy_images(method):
    net, images, targets = random_net(6), pictures(3, 12), [0, 3, 1]
    layer = last_relu(net)
    arguments = {} if method in WHOLE_NETWORK else {"layer": layer}
    torch.manual_seed(0)
    got = gc.explain(net, images, targets=targets, method=method, smooth=3, noise=0.1, **arguments).signed
    torch.manual_seed(0)
    spread = torch.stack([0.1 * (image.max() - image.min()) for image in images])[:, None, None, None]
    noisy = [images + spread * torch.randn(images.shape) for _ in range(3)]
    exact = sum(Definitions(net, x, layer, targets).of(method) for x in noisy) / 3
    assert relative_error(got, exact) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_a_difference_of_two_classes_is_explained_as_the_score_that_it_is(method):
    def margin(logits):
        return logits[:, 2] - logits[:, 0]

    net, images = random_net(7), pictures(3, 12)
    layer = last_relu(net)
    if method == "cam":
        with pytest.raises(ValueError, match="needs classes as targets"):
            gc.explain(net, images, targets=margin, method=method)
        return
    arguments = {} if method in WHOLE_NETWORK else {"layer": layer}
    got = gc.explain(net, images, targets=margin, method=method, **arguments)
    assert relative_error(got.signed, Definitions(net, images, layer, margin).of(method)) < 1e-5
    assert got.targets is None
    assert torch.allclose(got.scores, margin(net(images)))


def test_hires_cam_is_zero_in_front_of_a_layer_norm():
    """What follows does not depend on the length of a place's vector, so gradient and vector are at right angles."""
    exact = definitions("convnext_tiny", "features.5")
    assert exact.of("hires-cam").abs().max() < 1e-4 * (exact.A * exact.dA).abs().sum(1).max()


# The identities, on networks drawn at random.

drawn = given(seed=st.integers(0, 10_000))
few = settings(max_examples=8, deadline=None, derandomize=True)


def maps_of(net, images, method, layer=None, **arguments):
    if method not in WHOLE_NETWORK:
        arguments["layer"] = layer or last_relu(net)
    return gc.explain(net, images, method=method, **arguments).signed


@few
@drawn
def test_grad_cam_is_cam_divided_by_the_number_of_places(seed):
    net, images = random_net(seed), pictures(3, 12, seed)
    cam = maps_of(net, images, "cam")
    assert relative_error(maps_of(net, images, "grad-cam"), cam / cam[0].numel()) < 1e-5


@few
@drawn
def test_hires_cam_is_grad_cam_where_the_gradient_is_the_same_everywhere(seed):
    net, images = random_net(seed), pictures(3, 12, seed)
    assert relative_error(maps_of(net, images, "hires-cam"), maps_of(net, images, "grad-cam")) < 1e-5


@few
@drawn
def test_ablation_cam_is_cam_divided_by_the_score_where_a_pooling_and_a_linear_layer_follow(seed):
    """Without map k, the score is less by w_k times the map's mean."""
    net, images = random_net(seed), pictures(3, 12, seed)

    def in_closed_form(A, w, z):
        return torch.einsum("nk,nkhw->nhw", w * A.mean((2, 3)) / z.abs()[:, None], A)

    expected = maps_of(net, images, in_closed_form)
    assert relative_error(maps_of(net, images, "ablation-cam"), expected) < 1e-4


@few
@drawn
def test_input_and_biases_add_up_to_the_score(seed):
    """Completeness of FullGrad (Srinivas and Fleuret 2019, prop. 1). The bias of the head has no place in a map."""
    net, images = random_net(seed), pictures(3, 12, seed)
    seen = {}

    def add_up(x, dx, biases, z):
        seen["sum"] = (dx * x).flatten(1).sum(1) + sum(b.flatten(1).sum(1) for b in biases)
        seen["z"] = z
        return x.sum(1)

    gc.explain(net, images, targets=2, method=add_up)
    assert torch.allclose(seen["sum"] + net[-1].bias[2], seen["z"], rtol=1e-4, atol=1e-4)


@few
@drawn
def test_a_shift_of_the_image_shifts_the_map(seed):
    """With circular padding, and by the stride. Methods that enlarge a map are left out: enlarging is not circular."""
    net, images = random_net(seed, padding_mode="circular"), pictures(2, 12, seed)
    stride = 12 // gc.explain(net, images, layer=last_relu(net)).maps.shape[-1]
    shifted = images.roll((stride, 2 * stride), (2, 3))
    for method in ["cam", *OF_GRADIENTS, "ablation-cam"]:
        expected = maps_of(net, images, method, targets=1).roll((1, 2), (1, 2))
        assert relative_error(maps_of(net, shifted, method, targets=1), expected) < 1e-4, method


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_explained_as_its_images_one_by_one(method):
    for seed in range(3):
        net, images, targets = random_net(seed, pooled=method == "cam"), pictures(4, 12, seed), [0, 1, 2, 3]
        together = maps_of(net, images, method, targets=targets)
        alone = [maps_of(net, images[n : n + 1], method, targets=targets[n]) for n in range(4)]
        assert relative_error(together, torch.cat(alone)) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_in_place_operations_change_nothing(method):
    """In the layer itself, right after it, and everywhere else."""
    for seed in (1, 2):
        plain = random_net(seed, pooled=method == "cam")
        inplace = random_net(seed, pooled=method == "cam", inplace=True)
        images, last = pictures(2, 12), int(last_relu(plain))
        for layer in [last] if method == "cam" else [0, 1, last - 1, last]:
            expected = maps_of(plain, images, method, str(layer), targets=1)
            assert relative_error(maps_of(inplace, images, method, str(layer), targets=1), expected) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_several_classes_in_one_call_are_explained_as_one_by_one(method):
    net, images = random_net(8, pooled=method == "cam"), pictures(3, 12)
    classes = torch.tensor([[0, 1], [2, 3], [1, 0]])
    got = gc.explain(net, images, targets=classes, method=method)
    assert got.targets.equal(classes) and got.scores.shape == (3, 2)
    for t in range(2):
        expected = gc.explain(net, images, targets=classes[:, t], method=method)
        assert relative_error(got.signed[:, t], expected.signed) < 1e-6
        assert torch.allclose(got.scores[:, t], expected.scores)
    if method != "cam":  # as scores that a function gives
        scores = gc.explain(net, images, targets=lambda z: z[:, [2, 0]], method=method)
        expected = gc.explain(net, images, targets=[[2, 0]] * 3, method=method)
        assert relative_error(scores.signed.flatten(0, 1), expected.signed.flatten(0, 1)) < 1e-6


@pytest.mark.parametrize("method", [m for m in METHODS if m not in {"cam", *WHOLE_NETWORK}])
def test_several_layers_are_fused_as_the_docstring_says(method):
    net, images = network("report-cnn", 32), pictures(2, 32)
    layers = ["features.relu2", "features.relu3", "features.pool3"]
    each = [gc.explain(net, images, layer=layer, targets=[1, 7], method=method).signed for layer in layers]
    each = [m / m.abs().amax((1, 2), keepdim=True) for m in each]
    expected = sum(enlarge(m.double(), each[0].shape[1:]) for m in each) / 3
    got = gc.explain(net, images, layer=layers, targets=[1, 7], method=method)
    assert relative_error(got.signed, expected) < 1e-5
    assert got.layer == " + ".join(layers)


class Twice(nn.Module):
    """The same convolution and the same ReLU used twice; or, `apart`, two of each with the same weights."""

    def __init__(self, apart):
        super().__init__()
        self.stem, self.conv, self.relu = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)
        self.conv_again, self.relu_again = self.conv, self.relu
        if apart:
            self.conv_again, self.relu_again = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.conv(self.stem(x)))
        return self.head(self.pool(self.relu_again(self.conv_again(x))).flatten(1))


@pytest.mark.parametrize("method", METHODS)
def test_of_a_layer_that_is_used_twice_the_last_use_counts(method):
    shared, apart, images = Twice(apart=False), Twice(apart=True), pictures(2, 10)
    randomise(shared, torch.Generator().manual_seed(0))
    weights = shared.state_dict()
    apart.load_state_dict(weights | {k.replace("conv.", "conv_again."): v for k, v in weights.items()})
    for layer in ["relu"] if method == "cam" else ["conv", "relu"]:
        expected = maps_of(apart, images, method, f"{layer}_again", targets=[0, 3])
        assert relative_error(maps_of(shared, images, method, layer, targets=[0, 3]), expected) < 1e-6


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("report-cnn", "features.conv2"),
        ("resnet18", "layer2.0.bn1"),
        ("densenet121", "features.denseblock2.denselayer3.conv2"),
        ("mobilenet_v3_small", "features.4.block.2"),
        ("convnext_tiny", "features.3.1.block.0"),
    ],
)
def test_the_tail_gives_with_the_layers_own_feature_maps_the_score(name, layer):
    seen = {}

    def through_the_tail(A, z, tail):
        seen["again"], seen["z"] = tail(torch.stack([A, 0 * A], 1)), z
        return A.sum(1)

    gc.explain(net_of(name), images_of(name), layer=layer, method=through_the_tail)
    assert torch.allclose(seen["again"][:, 0], seen["z"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(seen["again"][:, 1], seen["z"], rtol=1e-2)


@pytest.mark.parametrize("method", ["ablation-cam", "score-cam"])
def test_the_strongest_maps_alone_are_weighed_and_all_of_them_are_the_whole(method):
    net, images = network("report-cnn", 32), pictures(2, 32)
    whole = gc.explain(net, images, method=method).signed
    assert torch.equal(gc.explain(net, images, method=method, strongest=128).signed, whole)

    tables = []

    def without(A, z, z_without):
        tables.append((A, z, z_without))
        return A.sum(1)

    def through(A, z, z_through):
        tables.append((A, z, z_through))
        return A.sum(1)

    for strongest in (None, 10):
        table = {"ablation-cam": without, "score-cam": through}[method]
        gc.explain(net, images, method=table, strongest=strongest)
    (A, z, every), (_, _, some) = tables
    kept = A.flatten(2).norm(dim=2).topk(10).indices
    assert torch.allclose(some.gather(1, kept), every.gather(1, kept))
    others = torch.ones_like(some, dtype=torch.bool).scatter(1, kept, False)
    assert (some == (-torch.inf if method == "score-cam" else z[:, None]))[others].all()  # either way, a weight of zero


def test_batches_of_any_size_give_the_same_score_cam():
    net, images = network("report-cnn", 32), pictures(2, 32)
    expected = gc.explain(net, images, method="score-cam").signed
    for size in (1, 7, 1000):
        assert relative_error(gc.explain(net, images, method="score-cam", batch_size=size).signed, expected) < 1e-5


# What a model may be, and what may be around it.


def small_case(method):
    """A network, images and classes that every method takes: CAM asks for a pooled head."""
    return random_net(11, pooled=method == "cam", inplace=True), pictures(3, 12), [0, 3, 1]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, nullcontext])
@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_and_switched_off_gradients_change_nothing(method, context):
    net, images, targets = small_case(method)
    expected = gc.explain(net, images, targets=targets, method=method)
    net.requires_grad_(False)
    with context():
        got = gc.explain(net, images + 0, targets=targets, method=method)  # + 0: here, an inference tensor
    for name in ("maps", "signed", "scores", "logits"):
        assert torch.equal(getattr(got, name), getattr(expected, name))
        assert not getattr(got, name).requires_grad and not getattr(expected, name).requires_grad


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ablation-cam"])
def test_without_eval_mode_the_statistics_of_the_batch_count_and_the_running_ones_stay(method):
    net, images, targets = small_case(method)
    net.train()
    assert any(isinstance(m, nn.BatchNorm2d) for m in net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    # A score then depends on the other images too, so gradients and biases do not add up to it image by image.
    with pytest.warns(UserWarning, match="not complete") if method == "full-grad" else nullcontext():
        got = maps_of(net, images, method, targets=targets, eval_mode=False)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    if method in ("full-grad", "score-cam"):  # their oracles know running statistics alone, and single images
        assert got.isfinite().all() and unlike(got, maps_of(net, images, method, targets=targets)) > 0.01
    else:
        exact = Definitions(net, images, last_relu(net), targets)
        exact.model.train()
        assert relative_error(got, exact.of(method)) < 1e-5


def test_a_batch_norm_that_refuses_single_images_in_training_gets_them_all():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8)).train()
    assert gc.explain(net, pictures(3, 12), eval_mode=False).layer == "1"


def unlike(got, expected):
    """The length of the difference over the length of the map, in the image where that is worst."""
    difference = (got - expected).flatten(1).norm(dim=1)
    return (difference / expected.flatten(1).norm(dim=1)).max().item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.01), (torch.bfloat16, 0.03)])
def test_models_in_half_precision_give_nearly_the_same_maps(method, dtype, bound):
    """The bounds are what the network's own rounding makes of it; the maps themselves are computed in float32."""
    half, images = random_net(2).to(dtype), pictures(3, 12).to(dtype)
    single = deepcopy(half).float()
    expected = maps_of(single, images.float(), method, targets=[1, 2, 3])
    got = maps_of(half, images, method, targets=[1, 2, 3])
    assert got.dtype == torch.float32 and got.isfinite().all()
    assert unlike(got, expected) < bound


def test_the_tail_takes_full_precision_where_the_model_has_half():
    def first_map_alone(A, tail):
        return tail(A[:, None])[:, :, None]

    net, images = deepcopy(network("report-cnn", 32)).bfloat16(), pictures(2, 32).bfloat16()
    got = gc.explain(net, images, targets=1, method=first_map_alone)
    assert torch.allclose(got.signed[:, 0, 0], got.scores.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_under_autocast_maps_are_nearly_the_same(method):
    net, images = random_net(2), pictures(3, 12)
    expected = maps_of(net, images, method, targets=[1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        got = maps_of(net, images, method, targets=[1, 2, 3])
    assert got.dtype == torch.float32 and unlike(got, expected) < 0.03


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_memory_changes_nothing(method):
    net, images, targets = small_case(method)
    expected = gc.explain(net, images, targets=targets, method=method).signed
    net.to(memory_format=torch.channels_last)
    got = gc.explain(net, images.to(memory_format=torch.channels_last), targets=targets, method=method).signed
    assert relative_error(got, expected) < (1e-4 if method == "ablation-cam" else 1e-5)  # differences of scores


def compiled(net):
    return torch.compile(net, backend="eager")


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


def compiled_inside(net):
    net[0] = torch.compile(net[0], backend="eager")
    return net


@pytest.mark.parametrize("wrap", [compiled, compiled_in_place, compiled_inside, nn.DataParallel])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, in its compiler
def test_compiled_and_wrapped_models_are_explained_as_what_they_wrap(method, wrap):
    net, images, targets = small_case(method)
    layer = {} if method in WHOLE_NETWORK else {"layer": last_relu(net)}
    expected = gc.explain(net, images, targets=targets, method=method, **layer)
    wrapped = wrap(deepcopy(net))
    wrapped(images)  # compiled now, if ever
    for arguments in (layer, {}):
        got = gc.explain(wrapped, images, targets=targets, method=method, **arguments)
        assert torch.equal(got.signed, expected.signed) and got.layer == expected.layer
    assert torch.equal(wrapped(images), net(images))


@pytest.mark.parametrize("method", ["grad-cam", "layer-cam", "eigen-cam", "score-cam", "guided-grad-cam"])
@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'")
def test_a_segmentation_network_is_explained_through_a_function_of_what_it_returns(method):
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    randomise(net, torch.Generator().manual_seed(0))
    calibrate_outputs_of_any_kind(net, pictures(8, 64))

    def area(output):
        return output["out"][:, 3].mean((1, 2))

    images, layer = pictures(2, 64), "classifier.cbr"
    double = method == "layer-cam"  # an in-place ReLU, pooled: one is enough to see that float64 passes
    exact = Definitions(net, images, layer, area)
    model, x = (exact.model, exact.images) if double else (net, images)
    if method in ("score-cam",):
        got = gc.explain(model, x, layer="backbone.1", targets=area, method=method)
        exact = Definitions(net, images, "backbone.1", area)
    else:
        got = gc.explain(model, x, layer=layer, targets=area, method=method)
    assert relative_error(got.signed, exact.of(method)) < (1e-10 if double else 1e-5)
    assert set(got.logits) == {"out"}


@torch.no_grad()
def calibrate_outputs_of_any_kind(net, images):
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None
    net.train()(images)
    net.eval()


class Boxes(nn.Module):
    """Returns, as detection networks do, a dictionary for each image; or a tuple; or logits with others beside them."""

    def __init__(self, form):
        super().__init__()
        self.form, self.net = form, random_net(12, pooled=False)

    def forward(self, x):
        z = self.net(x)
        return {"list": [{"scores": row} for row in z], "tuple": (z, x.mean()), "dict": {"logits": z}}[self.form]


TAKE = {
    "list": lambda out: torch.stack([one["scores"][1] for one in out]),
    "tuple": lambda out: out[0][:, 1],
    "dict": lambda out: out["logits"][:, 1],
}


@pytest.mark.parametrize("form", TAKE)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "cam"])
def test_whatever_a_model_returns_a_function_makes_scores_of_it(method, form):
    model, images = Boxes(form), pictures(2, 12)
    layer = last_relu(model.net)
    expected = maps_of(model.net, images, method, layer, targets=1)
    arguments = {} if method in WHOLE_NETWORK else {"layer": f"net.{layer}"}
    got = gc.explain(model, images, targets=TAKE[form], method=method, **arguments)
    assert relative_error(got.signed, expected) < 1e-6
    with pytest.raises(ValueError, match="must return logits"):
        gc.explain(model, images, method=method, **arguments)


@pytest.mark.parametrize("method", ["cam", *OF_GRADIENTS])
def test_a_loss_on_the_maps_can_be_trained(method):
    """Its gradient with respect to the parameters is a central difference."""
    net = random_net(3, pooled=True).double()
    images = pictures(2, 12).double()
    layer, direction = last_relu(net), torch.Generator().manual_seed(0)
    steps = [torch.randn(p.shape, generator=direction, dtype=torch.float64) for p in net.parameters()]

    def loss():
        result = gc.explain(net, images, layer=layer, targets=[0, 1], method=method, differentiable=True)
        return (result.signed**2).sum(), result

    value, result = loss()
    gradients = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    assert result.maps.requires_grad and result.scores.requires_grad
    slope = sum((g * s).sum() for g, s in zip(gradients, steps, strict=True) if g is not None)

    def moved(step):
        with torch.no_grad():
            for p, s in zip(net.parameters(), steps, strict=True):
                p.add_(step * s)
        return loss()[0].item()

    difference = (moved(1e-6) - moved(-2e-6)) / 2e-6
    assert slope.item() == pytest.approx(difference, rel=1e-4)
    assert all(p.grad is None for p in net.parameters())


def test_methods_of_many_passes_have_no_differentiable_map():
    for method in ("score-cam", "ablation-cam", "full-grad", "guided-grad-cam"):
        with pytest.raises(ValueError, match="no differentiable map"):
            gc.explain(random_net(3), pictures(1, 12), method=method, differentiable=True)


@pytest.mark.parametrize("method", METHODS)
def test_hooks_that_the_user_has_set_are_heard_and_stay(method):
    """One changes the input, one what the layer gives: the network that is explained is the one with both."""
    net, images, targets = small_case(method)
    layer = last_relu(net)
    halved = nn.Sequential(*net[: int(layer) + 1], Times(0.5), *net[int(layer) + 1 :]).eval()
    halved = nn.Sequential(Times(2.0), *halved).eval()
    expected = maps_of(halved, images, method, str(int(layer) + 2), targets=targets)
    net.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    net[int(layer)].register_forward_hook(lambda module, inputs, output: 0.5 * output)
    got = maps_of(net, images, method, layer, targets=targets)
    if method == "full-grad":  # gradient times image: the hook's factor is part of the network, not of the image
        assert relative_error(got, expected) < 1e-5
    else:
        assert relative_error(got, expected) < 1e-5
    assert len(net._forward_pre_hooks) == len(net[int(layer)]._forward_hooks) == 1


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Skips(nn.Module):
    """A block whose forward is not called in evaluation, as with stochastic depth, and one that never is."""

    def __init__(self):
        super().__init__()
        self.conv, self.block, self.unused = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))

    def forward(self, x):
        x = self.conv(x)
        # The weights of `unused` are read, its forward is not run.
        x = x + nn.functional.conv2d(x, self.unused.weight)
        return self.head(x + self.block(x) if self.training else x)


@pytest.mark.parametrize("method", METHODS)
def test_modules_that_are_not_run_are_no_hindrance(method):
    torch.manual_seed(0)
    net, images = Skips().train(), pictures(2, 12)
    got = maps_of(net, images, method, "head.0", targets=[0, 1])
    if method != "full-grad":  # its oracle finds biases in modules alone, as the method does
        assert relative_error(got, Definitions(net, images, "head.0", [0, 1]).of(method)) < 1e-5
    if method not in WHOLE_NETWORK:
        for layer in ("block", "unused"):
            with pytest.raises(ValueError, match="never run"):
                gc.explain(net, images, layer=layer, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_images_that_require_a_gradient_get_none(method):
    net, images, targets = small_case(method)
    expected = gc.explain(net, images, targets=targets, method=method).signed
    images.requires_grad_()
    before = images.detach().clone()
    got = gc.explain(net, images, targets=targets, method=method)
    assert torch.equal(got.signed, expected) and not got.maps.requires_grad
    assert images.grad is None and images.requires_grad and torch.equal(images, before)


# FullGrad's biases.


class GeM(nn.Module):
    """Pooling by a power mean. It adds no bias, but its own rounding looks like one."""

    def forward(self, x):
        return x.clamp(min=1e-6).pow(3).mean((2, 3), keepdim=True).pow(1 / 3)


def test_full_grad_takes_no_rounding_for_a_bias():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), GeM(), nn.Flatten(), nn.Linear(8, 4))
    images, seen = pictures(2, 12), []

    def keep(x, biases):
        seen.extend(biases)
        return x.sum(1)

    gc.explain(net, images, method=keep)
    assert not seen


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU, nn.ELU, nn.ReLU6, nn.Mish])
@pytest.mark.parametrize("inplace", [False, True])
def test_full_grad_is_complete_for_activations_that_are_no_straight_lines(activation, inplace):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), activation(inplace=inplace), nn.Conv2d(8, 8, 3), activation())
    net = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    images = 3 * pictures(3, 12)  # far enough from zero to reach where an activation saturates

    def missing(x, dx, biases, z):
        seen.append(z - (dx * x).flatten(1).sum(1) - sum(b.flatten(1).sum(1) for b in biases))
        return x.sum(1)

    seen = []
    gc.explain(net, images, targets=2, method=missing)
    assert torch.allclose(seen[0], net[-1].bias[2], atol=1e-4)
    assert net[1].inplace == inplace


def test_full_grad_knows_a_batch_norm_without_running_statistics():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert gc.explain(net, pictures(1, 12), targets=0, method="full-grad").signed.isfinite().all()


# The model is left as it was.


def state_of(model):
    """Everything about a model that a call could leave changed."""
    modules = list(model.modules())
    hooks = [name for name in vars(nn.Module()) if name.endswith("_hooks") or "hooks_" in name]
    return {
        "modes": [m.training for m in modules],
        "hooks": [[list(getattr(m, name)) for name in hooks] for m in modules],
        "attributes": [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in modules],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "parameters": [id(p) for p in model.parameters()],
        "values": {name: value.tolist() for name, value in model.state_dict().items()},
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled),
        "threads": (torch.get_num_threads(), torch.get_default_dtype()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "random": torch.get_rng_state().tolist(),
        "intercepted": torch._C._len_torch_function_stack(),
    }


class Broken(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_as_it_was_after_every_method_also_when_it_failed_on_the_way(method):
    net, images, targets = small_case(method)
    net.train()
    net[1].eval()  # a module whose mode is not the others'
    net[0].weight.requires_grad_(False)
    net[0].forward = net[0].forward  # an own `forward`, as wrapping libraries set it
    net(images).sum().backward()
    before = state_of(net)
    gc.explain(net, images, targets=targets, method=method)
    assert state_of(net) == before

    def fail(module, inputs):
        if next(calls) == fails_at:
            raise Broken

    for where, number in itertools.product((net, net[0], net[-1]), (0, 1, 2, 3, 5)):
        # In the pass that seeks the layer, in the one that is explained, or in one of those after it.
        calls, fails_at = itertools.count(), number
        with where.register_forward_pre_hook(fail):
            before = state_of(net)
            try:
                gc.explain(net, images, method=method, targets=targets)
            except Broken:
                pass
            except ValueError as error:  # the tail is tried in several ways, and this one
                assert "cannot be run by itself" in str(error)
            assert state_of(net) == before


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_as_it_was_after_a_failure_in_the_users_own_function(method):
    net, images, _ = small_case(method)
    before = state_of(net)

    def no_score(logits):
        raise Broken

    def no_map(**ingredients):
        raise Broken

    with pytest.raises(Broken):
        gc.explain(net, images, targets=no_score, method=method)
    assert state_of(net) == before
    no_map.__signature__ = inspect.signature(METHODS[method])
    with pytest.raises(Broken):
        gc.explain(net, images, method=no_map)
    assert state_of(net) == before


def test_a_method_may_be_written_in_numpy():
    net, images = random_net(11, pooled=False), pictures(3, 12)

    def grad_cam(A, dA, z):
        assert z.numpy().shape == (3,)
        return torch.from_numpy(np.einsum("nk,nkhw->nhw", dA.numpy().mean((2, 3)), A.numpy()))

    expected = maps_of(net, images, "grad-cam", targets=1)
    assert relative_error(maps_of(net, images, grad_cam, targets=1), expected) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_the_network_is_held_by_the_result(method):
    net, images, targets = small_case(method)
    maps = gc.explain(net, images, targets=targets, method=method)
    gone = weakref.ref(net)
    del net
    garbage.collect()
    assert gone() is None
    assert maps.maps.numpy().shape[0] == 3  # detached: NumPy takes it
