"""Chapter 3, equation by equation: each is computed as it is written, and held against PyTorch."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from gradcam_lib.architectures import AirbenchNet, SEBlock, SqueezeExcitation
from gradcam_lib.summary import summarise


@pytest.mark.parametrize(("K", "C", "R", "G"), [(64, 64, 3, 1), (10, 2048, 1, 1), (32, 32, 5, 32), (12, 6, 2, 3)])
def test_equation_3_1_parameters(K, C, R, G):
    assert K * (C // G * R**2 + 1) == sum(p.numel() for p in nn.Conv2d(C, K, R, groups=G).parameters())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("G", [1, 2])
def test_equation_3_2_multiply_adds_are_what_the_loops_count(G, stride):
    """With all numbers 1 and no padding, every output is the number of its products."""
    K, C, R = 4, 6, 3
    y = functional.conv2d(torch.ones(1, C, 11, 9), torch.ones(K, C // G, R, R), stride=stride, groups=G)
    H, W = y.shape[2:]
    assert y.sum() == H * W * K * C // G * R**2
    assert summarise(nn.Conv2d(C, K, R, stride, groups=G), (C, 11, 9)).multiply_adds == y.sum()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_equation_3_3_a_stack_of_small_kernels_sees_what_a_large_one_does_for_less(n):
    C = 8
    stack = nn.Sequential(*[nn.Conv2d(C, C, 3, bias=False) for _ in range(n)])
    large = nn.Conv2d(C, C, 2 * n + 1, bias=False)
    assert sum(p.numel() for p in stack.parameters()) == 9 * n * C**2
    assert sum(p.numel() for p in large.parameters()) == (2 * n + 1) ** 2 * C**2
    x = torch.zeros(1, C, 4 * n + 1, 4 * n + 1)
    x[:, :, 2 * n, 2 * n] = 1  # what one pixel reaches
    for network in (stack, large):
        with torch.no_grad():
            for p in network.parameters():
                p.fill_(1)
            assert (network(x) > 0).sum() == C * (2 * n + 1) ** 2


def test_equation_3_4_dropout_keeps_the_mean():
    torch.manual_seed(0)
    x, p, n = torch.randn(50, dtype=torch.float64), 0.3, 40_000
    mean = nn.Dropout(p)(x.expand(n, 50)).mean(0)
    deviation = x.abs() * (p / (1 - p) / n) ** 0.5  # of the mean of n values that are 0 or x / (1 - p)
    assert ((mean - x).abs() < 5 * deviation).all()
    m = torch.tensor([0.0, 1.0])
    assert torch.allclose(
        (torch.tensor([p, 1 - p], dtype=torch.float64) * m / (1 - p)).sum(), torch.tensor(1.0).double()
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_equation_3_5_the_residual_block(stride):
    torch.manual_seed(0)
    block = SEBlock(32, 32, stride).double()
    with torch.no_grad():
        block.norm2.weight.copy_(torch.rand(32))
    x = torch.randn(3, 32, 8, 8, dtype=torch.float64)
    F = block.gate(block.norm2(block.conv2(block.norm1(block.conv1(x)).relu())))
    assert torch.allclose(block(x), (block.shortcut(x) + F).relu())
    if stride == 1:
        assert torch.equal(block.shortcut(x), x)


def test_equation_3_6_the_gradient_through_a_residual_stack():
    """The whole Jacobian, block by block, and the vector that the loss sends back through it."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh()).double() for _ in range(4)]

    def added(x):
        total = torch.zeros_like(x)
        for block in blocks:
            F = block(x)
            x, total = x + F, total + F
        return total

    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    J = torch.autograd.functional.jacobian(added, x).reshape(18, 18)
    g = torch.randn(18, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((x + added(x)).flatten() @ g, x)
    assert torch.allclose(gradient.flatten(), g @ (torch.eye(18).double() + J))


def test_equation_3_7_a_dense_block_reads_all_maps_before():
    torch.manual_seed(0)
    block = torchvision.models.DenseNet(growth_rate=4, block_config=(5,), num_init_features=8).features.denseblock1
    block = block.double().eval()
    maps = [torch.randn(2, 8, 6, 6, dtype=torch.float64)]
    with torch.no_grad():
        for l, H in enumerate(block.children(), start=1):
            assert H.norm1.num_features == 8 + 4 * (l - 1)
            maps.append(H.conv2(H.norm2(H.conv1(H.norm1(torch.cat(maps, 1)).relu())).relu()))
        assert torch.allclose(block(maps[0]), torch.cat(maps, 1))


def test_equation_3_8_whitening():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(12, 12))
    p = A @ rng.normal(size=(12, 4000))  # a patch a column
    variances, V = np.linalg.eigh(p @ p.T / 4000)
    W = np.diag(variances**-0.5) @ V.T
    assert np.allclose((W @ p) @ (W @ p).T / 4000, np.eye(12), atol=1e-8)
    model = AirbenchNet().double()
    model.set_whitening(torch.from_numpy(p.T.reshape(4000, 3, 2, 2).copy()), eps=0)
    ours = model.features.whiten.weight[:12].reshape(12, 12).numpy()
    assert np.allclose(np.abs(ours), np.abs(W), atol=1e-8)  # an eigenvector's sign is free


def squeezed(u):
    """Equation 3.9, written out."""
    C, H, W = u.shape
    return np.array([sum(u[c, i, j] for i in range(H) for j in range(W)) / (H * W) for c in range(C)])


def test_equation_3_9_squeeze():
    """What reaches the first dense layer of the gate."""
    gate, u, seen = SqueezeExcitation(6, reduction=2).double(), torch.randn(2, 6, 3, 4, dtype=torch.float64), []
    gate.W1.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    gate(u)
    assert np.allclose(seen[0].numpy(), [squeezed(u[n].numpy()) for n in range(2)])


def test_equation_3_10_excitation():
    torch.manual_seed(0)
    gate, u = SqueezeExcitation(6, reduction=2).double(), torch.randn(2, 6, 3, 4, dtype=torch.float64)
    W1, b1, W2, b2 = (p.detach().numpy() for p in gate.parameters())
    for n in range(2):
        z = squeezed(u[n].numpy())
        s = 1 / (1 + np.exp(-(W2 @ np.maximum(W1 @ z + b1, 0) + b2)))
        assert np.allclose(gate(u)[n].detach().numpy(), s[:, None, None] * u[n].numpy())
