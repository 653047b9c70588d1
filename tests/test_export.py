"""The exported graph against `explain`, run by ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn

import gradcam_lib as gc
from gradcam_lib.architectures import Preparation
from gradcam_lib.export import export_explainer

PREPARE = Preparation(resize=48, size=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


class Everything(nn.Module):
    """Each operation whose gradient ONNX lacks, with strides that leave a rest, groups, and dilation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)
        )
        self.grouped = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=2, dilation=2, groups=4), nn.ReLU6())
        self.last = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GELU(), nn.BatchNorm2d(16))
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(16, 5)

    def forward(self, x):
        x = self.grouped(self.first(x))
        return self.head(self.pool(x + self.last(x)).mean((2, 3)))


def network(name):
    torch.manual_seed(0)
    model = Everything() if name == "everything" else torchvision.models.get_model(name, num_classes=5)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):  # statistics of no training would hide a batch norm that is left out
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    model.prepare = PREPARE
    return model.eval()


@pytest.mark.parametrize(
    "name, layers",
    [
        ("everything", ["first.2", "grouped", "last"]),
        ("resnet18", ["layer2", "layer4"]),
        ("mobilenet_v2", ["features"]),
    ],
)
def test_the_graph_gives_the_logits_and_maps_of_explain(name, layers, tmp_path):
    model = network(name)
    file = export_explainer(model, tmp_path / "net.onnx", layers=layers)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    for seed, target in enumerate([-1, 0, 4]):
        picture = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)
        got = dict(zip(outputs, session.run(None, {"picture": picture, "class": np.array([target])}), strict=True))
        x = model.prepare(picture)
        logits = model(x).detach()
        np.testing.assert_allclose(got["logits"], logits, atol=1e-4)
        chosen = logits.argmax().item() if target < 0 else target
        for i, layer in enumerate(layers):
            expected = gc.explain(model, x, layer=layer, targets=[chosen])
            largest = expected.signed.abs().max().item()
            assert np.abs(got[f"map_{i}"] - expected.maps.numpy()).max() < 1e-4 * largest
            # The parts that the page adds up make the map.
            summed = np.einsum("nk,nkhw->nhw", got[f"weights_{i}"], got[f"features_{i}"])
            assert np.abs(summed - expected.signed.numpy()).max() < 1e-4 * largest


def test_the_model_is_left_as_it_was(tmp_path):
    model = network("everything").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_explainer(model, tmp_path / "net.onnx", layers=["last"])
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_operation_that_cannot_be_exported_is_named(tmp_path):
    model = network("everything")
    model.pool = nn.FractionalMaxPool2d(2, output_size=2)
    with pytest.raises(ValueError, match="cannot be exported: ONNX lacks aten.fractional_max_pool2d"):
        export_explainer(model, tmp_path / "net.onnx", layers=["last"])
    assert list(tmp_path.iterdir()) == []


def test_a_pooling_with_uneven_windows_is_refused(tmp_path):
    model = network("everything")
    model.pool = nn.AvgPool2d(3, ceil_mode=True)
    with pytest.raises(ValueError, match="Only average pooling whose windows all have the same number of pixels"):
        export_explainer(model, tmp_path / "net.onnx", layers=["last"])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said(tmp_path):
    model = network("everything")
    with pytest.raises(ValueError, match="no layer 'third' with feature maps. It has: .*grouped"):
        export_explainer(model, tmp_path / "net.onnx", layers=["third"])
    with pytest.raises(ValueError, match="at least one layer"):
        export_explainer(model, tmp_path / "net.onnx", layers=[])
    del model.prepare
    with pytest.raises(ValueError, match="has no .prepare"):
        export_explainer(model, tmp_path / "net.onnx", layers=["last"])
    assert list(tmp_path.iterdir()) == []
