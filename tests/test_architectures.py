"""The named networks are those of their papers and reports: shapes, parameters, and how they start."""

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

import gradcam_lib as gc
from gradcam_lib.architectures import (
    ARCHITECTURES,
    IMAGENET,
    AirbenchNet,
    Preparation,
    ReportVGG,
    SEBlock,
    SEResNet18,
    SmallResNet,
    SqueezeExcitation,
    build_model,
    last_linear,
)


def without_values(name, **options):
    with torch.device("meta"):
        return ARCHITECTURES[name](**options)


def conv(inputs, outputs, kernel, bias=False):
    return kernel * kernel * inputs * outputs + bias * outputs


def norm(channels):
    return 2 * channels


def dense(inputs, outputs):
    return inputs * outputs + outputs


VGG = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]  # channels from one convolution to the next
SE_STAGES = [(64, 64), (64, 128), (128, 256), (256, 512)]


def small_resnet(gate=lambda n: 0):
    total = conv(3, 16, 3) + norm(16) + dense(96, 10)
    for i, o in ((16, 24), (24, 48), (48, 96)):
        total += conv(i, o, 3) + conv(o, o, 3) + conv(i, o, 1) + 3 * norm(o) + gate(o)
    return total


def se_stage(inputs, outputs):
    total = conv(inputs, outputs, 3) + 3 * conv(outputs, outputs, 3) + 4 * norm(outputs)
    total += 2 * (dense(outputs, outputs // 16) + dense(outputs // 16, outputs))
    return total + (conv(inputs, outputs, 1) + norm(outputs)) * (inputs != outputs)


BY_HAND = {
    "report-cnn": conv(3, 32, 3, True)
    + conv(32, 64, 3, True)
    + conv(64, 128, 3, True)
    + dense(2048, 128)
    + dense(128, 10),
    "report-cnn-normalised": 356_810 + norm(32) + norm(64) + norm(128),
    "small-resnet": small_resnet(),
    "small-se-resnet": small_resnet(lambda n: dense(n, n // 4) + dense(n // 4, n)),
    "vgg-report": sum(conv(i, o, 3, True) + norm(o) for i, o in pairwise(VGG))
    + dense(512 * 49, 4096)
    + dense(4096, 1024)
    + dense(1024, 257),
    "cifar10-fast": conv(3, 24, 2, True)
    + conv(24, 64, 3)
    + conv(64, 64, 3)
    + conv(64, 256, 3)
    + 3 * conv(256, 256, 3)
    + 2 * (norm(64) + norm(256) + norm(256))
    + 256 * 10,
    "se-resnet18": conv(3, 64, 7) + norm(64) + sum(se_stage(*s) for s in SE_STAGES) + dense(512, 1000),
    "cifar10-se-resnet18": conv(3, 64, 3) + norm(64) + sum(se_stage(*s) for s in SE_STAGES) + dense(512, 10),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_parameters_by_hand_and_in_the_docstring(name):
    parameters = sum(p.numel() for p in without_values(name).parameters())
    assert parameters == BY_HAND[name]
    documented = {"small-se-resnet": SmallResNet}.get(name, SEResNet18 if "se-" in name else ARCHITECTURES[name])
    assert f"{parameters:,} parameters" in " ".join(documented.__doc__.split())


def test_classes_are_those_of_the_data_set_unless_said_otherwise():
    small = ("report-cnn", "report-cnn-normalised", "cifar10-fast", "cifar10-se-resnet18")
    expected = dict.fromkeys((*small, "small-resnet", "small-se-resnet"), 10)
    expected |= {"vgg-report": 257, "se-resnet18": 1000, "efficientnet-lite0": 1000}
    for name, classes in expected.items():
        with torch.device("meta"):
            for model, outputs in ((build_model(name), classes), (build_model(name, 7), 7)):
                size = model.prepare.size
                assert model.eval()(torch.empty(2, 3, size, size)).shape == (2, outputs), name
    with pytest.raises(ValueError, match="no architecture 'vgg'. Choose one of: report-cnn, report-cnn-normalised, "):
        build_model("vgg")


def test_untrained_batch_norm_leaves_the_reports_network_as_it_is():
    """Its running mean is 0 and its variance 1; the weights around it are drawn as without it."""
    x = torch.randn(4, 3, 32, 32)
    torch.manual_seed(0)
    plain = build_model("report-cnn").eval()
    torch.manual_seed(0)
    normalised = build_model("report-cnn-normalised").eval()
    with torch.no_grad():
        assert torch.allclose(plain(x), normalised(x), atol=1e-4)
    assert [n for n, _ in normalised.features.named_children()][:3] == ["conv1", "norm1", "relu1"]


def test_the_small_residual_network_takes_pictures_that_grow():
    model = build_model("small-se-resnet")
    for side in (16, 24, 32):
        assert model(torch.randn(2, 3, side, side)).shape == (2, 10)


# --- the network of the Caltech-256 report ---


def test_report_vgg_has_the_shapes_of_the_reports_table():
    model, shapes = without_values("vgg-report").eval(), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
    with torch.device("meta"):
        model(torch.empty(1, 3, 224, 224))
    pooled = [shapes[f"features.{i}"] for i, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)]
    assert pooled == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    assert [shapes[f"classifier.dense{k}"] for k in (1, 2, 3)] == [(4096,), (1024,), (257,)]
    assert isinstance(model.features[42], nn.ReLU)
    assert not any(isinstance(layer, nn.ReLU) for layer in model.features[43:])
    assert shapes["features.42"] == (512, 14, 14)


def test_report_vgg_takes_the_weights_of_torchvisions_vgg16():
    with torch.device("meta"):
        theirs = torchvision.models.vgg16_bn().features.state_dict()
    ours = without_values("vgg-report").features.state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_report_vgg_takes_pictures_of_other_sizes():
    with torch.device("meta"):
        assert ReportVGG(5).eval()(torch.empty(1, 3, 160, 256)).shape == (1, 5)


# --- cifar10-fast ---


@pytest.fixture
def images():
    """Neighbouring pixels and channels are alike, as in photographs."""
    noise = torch.randn(200, 3, 36, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1)
    return (smooth + smooth.mean(1, keepdim=True)) / smooth.std()


def whitened(model, images):
    """What the whitening filters give, a patch a row: (patches, 24)."""
    return nn.functional.conv2d(images, model.features.whiten.weight).permute(0, 2, 3, 1).reshape(-1, 24)


def test_whitened_patches_have_unit_covariance(images):
    model = AirbenchNet().double()
    model.set_whitening(images, eps=0)
    y = whitened(model, images)
    covariance = y[:, :12].T @ y[:, :12] / len(y)
    assert torch.allclose(covariance, torch.eye(12, dtype=torch.float64), atol=1e-9)
    assert torch.equal(y[:, 12:], -y[:, :12])


def test_directions_in_which_images_hardly_vary_are_amplified_less(images):
    model = AirbenchNet().double()
    patches = nn.functional.unfold(images, 2).transpose(1, 2).reshape(-1, 12)
    variances = torch.linalg.eigvalsh(patches.T @ patches / len(patches))
    model.set_whitening(images, eps=0.01)
    y = whitened(model, images)[:, :12]
    assert torch.allclose(y.T @ y / len(y), torch.diag(variances / (variances + 0.01)), atol=1e-9)


def test_untrained_convolutions_hand_their_inputs_on():
    model = build_model("cifar10-fast")
    for group, inputs in (("group1", 24), ("group2", 64), ("group3", 256)):
        group = model.features.get_submodule(group)
        x = torch.randn(2, inputs, 8, 8)
        assert torch.allclose(group.conv1(x)[:, :inputs], x)
        assert group.conv1(x)[:, inputs:].std() > 0.1 if inputs < group.conv1.out_channels else True
        y = torch.randn(2, group.conv2.in_channels, 8, 8)
        assert torch.allclose(group.conv2(y), y)


def test_what_is_trained_and_how_the_statistics_move():
    model = build_model("cifar10-fast")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    norms = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert frozen == {"features.whiten.weight"} | {f"{name}.weight" for name in norms}
    layer = model.features.group1.norm1
    before, x = layer.running_mean.clone(), torch.randn(16, 64, 5, 5) + 3
    layer.train()(x)
    # "momentum 0.6" of the paper: six tenths of the old, four tenths of the new
    assert torch.allclose(layer.running_mean, 0.6 * before + 0.4 * x.mean((0, 2, 3)), atol=1e-6)


def test_logits_start_small_whatever_the_width():
    torch.manual_seed(0)
    model = build_model("cifar10-fast").eval()
    assert model.classifier.dense.weight.std().item() == pytest.approx(1)
    x = torch.randn(8, 3, 32, 32)
    assert torch.allclose(model(x), model.features(x).flatten(1) @ model.classifier.dense.weight.T / 256)


# --- squeeze-and-excitation ---


def test_the_gate_is_its_equations():
    torch.manual_seed(0)
    gate, u = SqueezeExcitation(32, reduction=8).double(), torch.randn(4, 32, 5, 6, dtype=torch.float64)
    for n in range(4):
        z = torch.stack([u[n, c].sum() / 30 for c in range(32)])
        s = 1 / (
            1 + torch.exp(-(gate.W2.weight @ torch.clamp(gate.W1.weight @ z + gate.W1.bias, min=0) + gate.W2.bias))
        )
        expected = torch.stack([s[c] * u[n, c] for c in range(32)])
        assert torch.allclose(gate(u)[n], expected, atol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (8, 16, 2)])
def test_an_untrained_block_is_its_shortcut(inputs, outputs, stride):
    """The last batch norm starts at zero, and with it all that is added to the shortcut."""
    block, x = SEBlock(16 * inputs, 16 * outputs, stride).eval(), torch.randn(2, 16 * inputs, 6, 6)
    assert torch.equal(block(x), block.shortcut(x).relu())


def test_without_its_gates_it_is_resnet18():
    """The same weights, gates held open, give torchvision's logits."""
    torch.manual_seed(0)
    ours, theirs = build_model("se-resnet18", 5).eval(), torchvision.models.resnet18(num_classes=5).eval()
    for module in ours.modules():
        if isinstance(module, SqueezeExcitation):
            module.forward = lambda u: u
    tensors = iter(t for name, t in theirs.state_dict().items())
    state = {name: t if ".gate." in name else next(tensors) for name, t in ours.state_dict().items()}
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("cifar10-fast", "features.group3", (256, 3, 3)),
        ("cifar10-se-resnet18", "features", (512, 4, 4)),
    ],
)
def test_the_layer_that_grad_cam_takes_is_the_last_one_with_a_map(name, layer, shape):
    model = build_model(name).eval()
    result = gc.explain(model, torch.randn(2, 3, 32, 32))
    assert (result.layer, result.maps.shape[1:]) == (layer, shape[1:])
    assert gc.list_layers(model, torch.randn(1, 3, 32, 32))[-1].shape == shape


def test_torchvisions_networks_are_built_for_as_many_classes_as_are_asked_for():
    model = build_model("mobilenet_v3_small", 7)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert model.prepare == Preparation(256, 224, **IMAGENET)


def test_a_network_without_a_linear_layer_has_no_last_one():
    with pytest.raises(ValueError, match="no linear layer that could be replaced"):
        last_linear(torch.nn.Conv2d(3, 3, 1))
