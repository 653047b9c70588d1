"""`accelerate=True`: the same maps from a copy, and nothing of the caller's touched."""

import pytest
import torch
from torch import nn

import gradcam_lib as gc
from gradcam_lib import accelerate
from gradcam_lib.accelerate import accelerated


class Residual(nn.Module):
    """Batch norms that may be folded, one that may not, and a skip connection."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        y = self.conv3(x)
        x = self.bn3(y) + y  # the convolution's own output is read too: it must not be folded
        return self.head(self.pool(self.relu(x)).flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Residual()
    net(torch.rand(16, 3, 16, 16))  # batch norms with statistics of their own
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net.eval()


@pytest.fixture
def images():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(accelerate.shutil, "which", lambda name: None)  # as on a machine without a compiler


def apart(a, b):
    return ((a.signed - b.signed).abs().max() / b.signed.abs().max()).item()


@pytest.mark.parametrize("layer", ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "relu", ["bn1", "bn3"]])
@pytest.mark.parametrize("method", ["grad-cam", "layer-cam", "ablation-cam"])
def test_every_layer_gives_the_same_map(net, images, uncompiled, layer, method):
    plain = gc.explain(net, images, layer=layer, targets=2, method=method)
    fast = gc.explain(net, images, layer=layer, targets=2, method=method, accelerate=True)
    assert apart(fast, plain) < 1e-4
    assert torch.allclose(fast.logits, plain.logits, atol=1e-4)


@pytest.mark.parametrize("method", ["full-grad", "guided-grad-cam", "score-cam"])
def test_methods_that_need_the_whole_network_give_the_same_map(net, images, uncompiled, method):
    # FullGrad's biases differ by design when a batch norm is folded; their sum does not, and so completeness holds.
    if method == "full-grad":

        def method(x, dx, biases, z):
            return (z - (x * dx).flatten(1).sum(1) - sum(b.flatten(1).sum(1) for b in biases))[:, None, None]

    plain = gc.explain(net, images, targets=2, method=method)
    fast = gc.explain(net, images, targets=2, method=method, accelerate=True)
    assert apart(fast, plain) < 1e-4


def test_a_compiled_copy_gives_the_same_map(net, images):
    if not accelerate.shutil.which("g++"):
        pytest.skip("no C++ compiler to compile with")
    plain = gc.explain(net, images, layer="bn3", targets=[0, 1, 2, 3])
    fast = gc.explain(net, images, layer="bn3", targets=[0, 1, 2, 3], accelerate=True)
    assert apart(fast, plain) < 1e-4
    assert "forward" in vars(accelerated(net, ["bn3"], images).conv1), "nothing was compiled"


def test_it_is_compiled_for_as_many_shapes_as_come(net, images):
    if not accelerate.shutil.which("g++"):
        pytest.skip("no C++ compiler to compile with")
    for n in (1, 2, 3, 4):  # times three convolutions: more than PyTorch compiles one function by default
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            gc.explain(net, images[:n], layer="bn3", accelerate=True)
    plain, fast = (
        gc.explain(net, images, layer="bn3", targets=1, method="score-cam", batch_size=3, accelerate=accelerate)
        for accelerate in (False, True)
    )
    assert apart(fast, plain) < 1e-4


def test_batch_norms_are_folded_where_they_may_be(net, images, uncompiled):
    fast = accelerated(net, ["bn3"], images)
    assert isinstance(fast.bn1, nn.Identity) and isinstance(fast.bn2, nn.Identity)
    assert isinstance(fast.bn3, nn.BatchNorm2d)
    assert isinstance(accelerated(net, ["conv2"], images).bn2, nn.BatchNorm2d)


def test_the_model_itself_is_not_changed(net, images, uncompiled):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    strides = [p.stride() for p in net.parameters()]
    gc.explain(net.train(), images, accelerate=True)
    assert net.training and isinstance(net.bn1, nn.BatchNorm2d)
    assert [p.stride() for p in net.parameters()] == strides
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_the_copy_follows_the_weights(net, images, uncompiled):
    gc.explain(net, images, targets=2, accelerate=True)
    with torch.no_grad():
        net.conv2.weight.mul_(-1)
    assert apart(gc.explain(net, images, targets=2, accelerate=True), gc.explain(net, images, targets=2)) < 1e-4


def test_a_copy_that_cannot_be_compiled_still_works_and_says_so(net, images, monkeypatch):
    def broken(forward, **options):
        def run(*args):
            raise RuntimeError("no such compiler")

        return run

    monkeypatch.setattr(accelerate.torch, "compile", broken)
    monkeypatch.setattr(accelerate.shutil, "which", lambda name: name)
    with pytest.warns(UserWarning, match="uncompiled, for compiling it failed: no such compiler"):
        fast = gc.explain(net, images, targets=2, accelerate=True)
    assert apart(fast, gc.explain(net, images, targets=2)) < 1e-4


def test_what_the_copy_cannot_do_is_refused(net, images):
    with pytest.raises(ValueError, match="for evaluation alone"):
        gc.explain(net, images, accelerate=True, differentiable=True)
