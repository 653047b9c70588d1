"""`summarise` against what can be measured, counted by hand, or read in papers and in torchvision's own metadata."""

import copy
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import gradcam_lib as gc
from gradcam_lib.architectures import SamePad, SqueezeExcitation, build_model
from gradcam_lib.summary import summarise

NETWORKS = torchvision.models.list_models(module=torchvision.models)


def without_values(name):
    """A torchvision network as its weights were published for, on the meta device, and the metadata of these."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    # Pictures are scaled inside these two; their auxiliary heads are not published.
    options = {"transform_input": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name == "googlenet":
        options["aux_logits"] = False
    if name.startswith("vit"):
        options["image_size"] = weights.meta["min_size"][0]
    widths = torchvision.models.regnet.BlockParams.from_init_params  # computed with tensors

    def on_the_cpu(**options):
        with torch.device("cpu"):
            return widths(**options)

    with torch.device("meta"), mock.patch.object(torchvision.models.regnet.BlockParams, "from_init_params", on_the_cpu):
        model = torchvision.models.get_model(name, **options)
    return model, weights


# --- parameters and multiply-adds ---


@pytest.mark.parametrize("name", NETWORKS)
def test_every_torchvision_network_has_its_published_parameters_and_multiply_adds(name):
    model, weights = without_values(name)
    summary = summarise(model, (3, *weights.transforms().crop_size * 2))
    assert summary.parameters == weights.meta["num_params"]
    assert summary.table["parameters"].sum() == summary.parameters
    assert summary.multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.0006)  # published to 0.001
    assert summary.multiply_adds == summary.table["multiply_adds"].sum()


@pytest.mark.parametrize(
    ("name", "depth"),
    [  # as their papers count: convolutions and dense layers from the picture to the logits
        ("alexnet", 8),
        ("vgg16", 16),
        ("vgg19", 19),
        ("resnet18", 18),
        ("resnet50", 50),
        ("resnet152", 152),
        ("densenet121", 121),
        ("densenet201", 201),
        ("googlenet", 22),
    ],
)
def test_depth_is_the_number_in_the_name(name, depth):
    assert summarise(without_values(name)[0]).depth == depth


def test_products_are_those_of_the_formulas():
    model = nn.Sequential(
        nn.Conv2d(6, 8, kernel_size=(3, 2), stride=2, padding=1, groups=2),  # 8 × 8 × 9 values of 3 · 3 · 2 products
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 4, kernel_size=5),  # 8 × 8 × 9 values, each to 4 · 5 · 5
        nn.Flatten(2),
        nn.Linear(12 * 13, 7),  # for each of 4 maps
    )
    table = summarise(model, (6, 15, 17)).table
    assert list(table["multiply_adds"]) == [576 * 18, 0, 576 * 100, 0, 4 * 7 * 156]
    assert list(table["parameters"]) == [8 * 18 + 8, 16, 8 * 100 + 4, 0, 7 * 156 + 7]
    assert list(table["output"]) == [(8, 8, 9), (8, 8, 9), (4, 12, 13), (4, 156), (4, 7)]


def test_a_shared_layer_counts_once_as_memory_and_twice_as_work():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    summary = summarise(nn.Sequential(shared, nn.ReLU(), shared), (3, 10, 10))
    assert list(summary.table["parameters"]) == [84, 0, 0]
    assert summary.multiply_adds == 2 * 300 * 27
    assert summary.parameters == 84
    assert summary.depth == 2


def test_parameters_of_no_layer_have_a_row():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)
            self.scale = nn.Parameter(torch.ones(5, 1, 1))
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.conv(x) * self.scale

    table = summarise(Scaled(), (3, 4, 4)).table
    assert table[["name", "kind", "parameters"]].values.tolist() == [
        ["conv", "Conv2d", 20],
        ["", "mul", 5],
        ["unused.weight", "Parameter", 4],
        ["unused.bias", "Parameter", 2],
    ]


# --- activation memory ---


def test_activation_bytes_by_hand():
    """Four bytes a value: each convolution and its ReLU, each pooling, both dense layers; flattening, dropout: none."""
    values = (
        2 * 32 * 32 * 32 + 32 * 16 * 16 + 2 * 64 * 16 * 16 + 64 * 8 * 8 + 2 * 128 * 8 * 8 + 128 * 4 * 4 + 2 * 128 + 10
    )
    assert summarise(build_model("report-cnn"), (3, 32, 32)).activation_bytes == 4 * values


def test_additions_and_concatenations_are_layers():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.a(x)
            y += x
            return torch.cat([self.relu(y), self.b(y)], dim=1).flatten(1)

    summary = summarise(Joined(), (3, 8, 8))
    assert list(summary.table["kind"]) == ["Conv2d", "add", "ReLU", "Conv2d", "cat"]
    assert list(summary.table["activation_bytes"]) == [4 * 64 * n for n in (3, 3, 3, 2, 5)]
    assert list(summary.table["depth"]) == [1, 1, 1, 2, 2]
    assert list(summary.table["receptive_field"]) == [3, 3, 3, 3, 3]


# --- receptive field ---


def measured_field(model, size):
    """The longest stretch of rows, or of columns, that one place of the output depends on: by trying each of them.

    One row after the other is raised by a million. With positive weights every operation here passes a rise on, also a
    max pooling, so the output changes exactly at the places that see the row.
    """
    torch.manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand_like(p) + 0.5)
    x = torch.rand(1, 2, size, size, dtype=torch.float64)
    longest = 0
    for axis in (2, 3):
        raised = x.repeat(size, 1, 1, 1)
        for row in range(size):
            raised[row].select(axis - 1, row).add_(1e6)
        with torch.no_grad():
            seen = (model(raised) - model(x)).abs().amax(1) > 1  # (rows, h, w)
        rows = torch.arange(size)[:, None, None]
        last, first = torch.where(seen, rows, -1).amax(0), torch.where(seen, rows, size).amin(0)
        longest = max(longest, int((last - first + 1).max()))
    return longest


class Branches(nn.Module):
    """Convolutions of different size and padding beside each other, joined."""

    def __init__(self, kernels, dilation, join):
        super().__init__()
        self.joined = nn.Conv2d(2 * len(kernels), 2, 1) if join == "cat" else None
        self.paths = nn.ModuleList(
            nn.Sequential(nn.ZeroPad2d((left, (k - 1) * dilation - left) * 2), nn.Conv2d(2, 2, k, dilation=dilation))
            for k, left in kernels
        )

    def forward(self, x):
        outputs = [path(x) for path in self.paths]
        return self.joined(torch.cat(outputs, 1)) if self.joined else sum(outputs)


def convolutions():
    return st.builds(
        lambda k, stride, padding, dilation, groups: nn.Conv2d(2, 2, k, stride, padding, dilation, groups),
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.integers(1, 2), st.integers(1, 2)),
        st.tuples(st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.integers(1, 2), st.integers(1, 2)),
        st.sampled_from([1, 2]),
    )


def poolings():
    return st.builds(
        lambda kind, k, stride: kind(k, stride),
        st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]),
        st.integers(1, 3),
        st.sampled_from([None, 1, 2]),
    )


def branches():
    kernel = st.integers(1, 4).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k - 1)))
    return st.builds(
        Branches, st.lists(kernel, min_size=1, max_size=3), st.integers(1, 2), st.sampled_from(["add", "cat"])
    )


def same():
    return st.builds(lambda k: nn.Sequential(SamePad(k, 2), nn.Conv2d(2, 2, k, 2)), st.integers(2, 5))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(convolutions(), poolings(), branches(), same(), st.builds(nn.ReLU)), min_size=1, max_size=4))
def test_the_receptive_field_is_what_the_output_depends_on(layers):
    model, size = nn.Sequential(*layers), 90
    field = summarise(model, (2, size, size)).table["receptive_field"].iloc[-1]
    assume(field < size / 2)  # then at least one place has all of it inside the picture
    assert field == measured_field(model, size)


def test_densely_connected_layers_too():
    model = torchvision.models.DenseNet(growth_rate=2, block_config=(2, 2), num_init_features=4, bn_size=1).features
    model.conv0 = nn.Conv2d(2, 4, 3, stride=2, padding=1)
    assert summarise(model, (2, 128, 128)).receptive_field == measured_field(model, 128)


def test_residual_blocks_too():
    def block(inputs, outputs, stride):
        shortcut = nn.Conv2d(inputs, outputs, 1, stride)
        return torchvision.models.resnet.Bottleneck(inputs, outputs // 4, stride, shortcut)

    model = nn.Sequential(nn.Conv2d(2, 4, 7, stride=2, padding=3), block(4, 8, 1), block(8, 8, 2), block(8, 16, 2))
    assert summarise(model, (2, 96, 96)).receptive_field == measured_field(model, 96)


@pytest.mark.parametrize(
    ("name", "field"),
    [("alexnet", 195), ("vgg16", 212), ("inception_v3", 1311)],  # Araujo, Norris and Sim 2019
)
def test_published_receptive_fields(name, field):
    model, weights = without_values(name)
    assert summarise(model, (3, *weights.transforms().crop_size * 2)).receptive_field == field


@pytest.mark.parametrize(
    "mixer",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d(1),
        nn.AdaptiveAvgPool2d(3),  # 10 places in 3 parts
        nn.Sequential(nn.Flatten(), nn.Linear(200, 4)),
        nn.Sequential(nn.Flatten(2), nn.Linear(100, 4)),
        SqueezeExcitation(2, 1),
        nn.GroupNorm(1, 2),
        nn.LayerNorm([2, 10, 10]),
        nn.Softmax(dim=3),
        nn.Upsample(size=(7, 7)),
        nn.ConvTranspose2d(2, 2, 3, padding=1),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 2, 3, padding=1)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_mixes_all_places_sees_the_whole_picture(mixer):
    table = summarise(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), mixer), (2, 10, 10)).table
    assert table["receptive_field"].iloc[0] == 3
    assert table["receptive_field"].iloc[-1] == np.inf


class ChannelsLast(nn.Module):
    """What ConvNeXt and ShuffleNet do between convolutions: work along the channels, and nothing else."""

    def __init__(self):
        super().__init__()
        self.norm, self.dense = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        N, C, H, W = x.shape
        x = x.view(N, 2, C // 2, H, W).transpose(1, 2).flatten(1, 2)
        x = self.dense(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x.flatten(2).reshape(N, C, H, W)


@pytest.mark.parametrize(
    "module",
    [ChannelsLast(), nn.AdaptiveAvgPool2d(10), nn.Softmax(dim=1), nn.BatchNorm2d(4)],
    ids=lambda m: type(m).__name__,
)
def test_what_works_on_each_place_alone_keeps_the_field(module):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), module, nn.Conv2d(4, 4, 3))
    assert summarise(model, (2, 12, 12)).receptive_field == 5


def test_pooling_to_a_size_that_divides_the_map_is_a_window():
    assert (
        summarise(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.AdaptiveAvgPool2d(5)), (2, 10, 10)).receptive_field
        == 4
    )


def test_in_a_vision_transformer_only_the_patches_come_before_the_whole():
    table = summarise(without_values("vit_b_16")[0]).table
    fields = dict(zip(table["name"], table["receptive_field"], strict=True))
    assert fields["conv_proj"] == 16
    assert fields["encoder.layers.encoder_layer_0.ln_1"] == 16
    assert fields["encoder.layers.encoder_layer_0.mlp.0"] == np.inf


# --- how ---


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(inplace=True)).train()
    model[3].eval()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    summarise(model, (3, 9, 9))
    assert [m.training for m in model.modules()] == modes
    assert not calls
    assert len(model[0]._forward_hooks) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in list(model.modules())[2:])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


def test_half_precision_is_measured_in_float32_all_the_same():
    model = build_model("report-cnn")
    expected = summarise(model, (3, 32, 32)).activation_bytes
    assert summarise(model.half(), (3, 32, 32)).activation_bytes == expected


def test_it_prints_every_layer_and_the_totals():
    text = str(gc.summarise(build_model("report-cnn"), (3, 32, 32)))
    assert "features.conv2    Conv2d 64 × 16 × 16     18,496     4,718,592     8      2" in text
    assert "classifier.dense1    Linear          128    262,272       262,144   all      4" in text
    assert text.endswith(
        "parameters 356,810; multiply-adds 10,585,344; activations 517,160 bytes; depth 5; receptive field 22"
    )


@pytest.mark.parametrize(
    ("size", "reason"),
    [((1, 32, 32), "Invalid channel"), ((3, 20, 20), "same reduction dim"), ((3, 4, 4), "small")],
)
def test_a_picture_that_does_not_fit_is_one_sentence(size, reason):
    with pytest.raises(
        ValueError, match=r"^ReportCNN takes no image of \(\d, \d+, \d+\), \(channels, height, width\): "
    ) as e:
        summarise(build_model("report-cnn"), size)
    assert reason in str(e.value)
    assert "\n" not in str(e.value)
