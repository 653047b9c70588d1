"""Chapter 2, equation by equation: each is computed as it is written, and held against PyTorch or SciPy in float64."""

import numpy as np
import pytest
import torch
from scipy import signal
from torch.nn import functional as F

from gradcam_lib import build_model, maths

rng = np.random.default_rng(0)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def torch_conv(x, w, b=None, **geometry):
    return F.conv2d(*(None if a is None else torch.from_numpy(a) for a in (x, w, b)), **geometry).numpy()


def test_equation_2_1_convolution():
    """Report, eq. 1: with channels last, as it is written there."""
    x, w, b = rng.normal(size=(7, 8, 3)), rng.normal(size=(3, 2, 3, 4)), rng.normal(size=4)
    y = np.empty((5, 7, 4))
    for i, j, k in np.ndindex(y.shape):
        y[i, j, k] = b[k] + sum(x[i + u, j + v, c] * w[u, v, c, k] for u, v, c in np.ndindex(3, 2, 3))
    theirs = torch_conv(x.transpose(2, 0, 1)[None].copy(), w.transpose(3, 2, 0, 1).copy(), b)
    assert np.allclose(y, theirs[0].transpose(1, 2, 0), **CLOSE)
    assert np.allclose(maths.conv2d(x.transpose(2, 0, 1)[None], w.transpose(3, 2, 0, 1), b), theirs, **CLOSE)


def test_equation_2_2_true_convolution_is_the_flipped_correlation():
    x, w = rng.normal(size=(9, 8)), rng.normal(size=(3, 4))
    y = np.empty((7, 5))
    for i, j in np.ndindex(y.shape):
        y[i, j] = sum(x[i + 2 - u, j + 3 - v] * w[u, v] for u, v in np.ndindex(3, 4))
    assert np.allclose(y, signal.convolve2d(x, w, mode="valid"), **CLOSE)
    assert np.allclose(y, maths.conv2d(x[None, None], w[None, None, ::-1, ::-1])[0, 0], **CLOSE)


def test_true_convolution_commutes_and_correlation_does_not():
    a, b = rng.normal(size=(2, 4, 4))
    assert np.allclose(signal.convolve2d(a, b), signal.convolve2d(b, a), **CLOSE)
    assert not np.allclose(signal.correlate2d(a, b), signal.correlate2d(b, a))


def test_equation_2_3_the_feature_maps_of_a_layer():
    model = build_model("report-cnn").double()
    x = torch.from_numpy(rng.random((2, 3, 32, 32)))
    A = x.numpy()
    for layer in ("conv1", "conv2", "conv3"):
        conv = model.features.get_submodule(layer)
        A = maths.relu(maths.conv2d(A, conv.weight.detach().numpy(), conv.bias.detach().numpy(), padding=1))
        if layer != "conv3":
            A = maths.max_pool2d(A, 2)
    with torch.no_grad():
        assert np.allclose(A, model.features[:8](x).numpy(), **CLOSE)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (2, 1), (4, 3)])
def test_equation_2_4_the_cost_is_what_the_loops_count(groups, stride):
    """Every product of the loops adds 1 when all numbers are 1."""
    x, w = np.ones((1, 4, 9, 8)), np.ones((8, 4 // groups, 3, 2))
    y = maths.conv2d_loops(x, w, stride=stride, groups=groups)
    _, K, rows, columns = y.shape
    assert y.sum() == rows * columns * K * (4 // groups) * 3 * 2


def test_equation_2_5_image_to_column():
    x, w = rng.normal(size=(1, 3, 8, 9)), rng.normal(size=(5, 3, 3, 2))
    Y = w.reshape(5, -1) @ maths.im2col(x, (3, 2))[0]
    assert np.allclose(Y.reshape(1, 5, 6, 8), torch_conv(x, w), **CLOSE)


def test_equation_2_6_the_fourier_transform_and_its_conjugate():
    x, w = rng.normal(size=(8, 9)), rng.normal(size=(3, 3))
    X, W = np.fft.fft2(x), np.fft.fft2(w, s=(8, 9))
    assert np.allclose(np.fft.ifft2(X * W.conj()).real[:6, :7], torch_conv(x[None, None], w[None, None])[0, 0], **CLOSE)
    assert np.allclose(np.fft.ifft2(X * W).real[2:, 2:], signal.convolve2d(x, w, mode="valid"), **CLOSE)


@pytest.mark.parametrize("H", [5, 6, 7, 32])
@pytest.mark.parametrize(("R", "s", "p", "d"), [(3, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (2, 2, 0, 1), (3, 2, 2, 2)])
def test_equation_2_7_the_size_of_the_map(H, R, s, p, d):
    rows = (H + 2 * p - d * (R - 1) - 1) // s + 1
    assert rows == maths.output_size(H, R, stride=s, padding=p, dilation=d)
    assert rows == F.conv2d(torch.zeros(1, 1, H, H), torch.zeros(1, 1, R, R), None, s, p, d).shape[2]


def test_equation_2_8_stride_dilation_and_padding():
    x, w, b = rng.normal(size=(2, 9, 9)), rng.normal(size=(4, 2, 3, 3)), rng.normal(size=4)
    s, d, p = 2, 2, 3
    y = maths.conv2d(x[None], w, b, stride=s, dilation=d, padding=p)[0]

    def pixel(c, i, j):
        return x[c, i, j] if 0 <= i < 9 and 0 <= j < 9 else 0

    for k, i, j in np.ndindex(y.shape):
        terms = (pixel(c, s * i + d * u - p, s * j + d * v - p) * w[k, c, u, v] for c, u, v in np.ndindex(2, 3, 3))
        assert np.isclose(y[k, i, j], b[k] + sum(terms), **CLOSE)
    assert np.allclose(y, torch_conv(x[None], w, b, stride=s, dilation=d, padding=p)[0], **CLOSE)


def test_equation_2_9_groups_see_their_own_channels():
    x, w = rng.normal(size=(2, 6, 7, 7)), rng.normal(size=(9, 2, 3, 3))
    y = torch_conv(x, w, groups=3)
    for k in range(9):
        members = range(2 * (k // 3), 2 * (k // 3) + 2)  # G(k)
        alone = torch_conv(x[:, list(members)], w[k : k + 1])
        assert np.allclose(y[:, k : k + 1], alone, **CLOSE)
    assert np.allclose(maths.conv2d(x, w, groups=3), y, **CLOSE)


@pytest.mark.parametrize("shift", [1, 2, 5])
def test_equation_2_10_a_shift_of_the_picture_shifts_the_map(shift):
    x, w = rng.normal(size=(1, 3, 16, 16)), rng.normal(size=(2, 3, 3, 3))
    y = maths.conv2d(x, w)
    assert np.allclose(maths.conv2d(x[:, :, shift:], w), y[:, :, shift:], **CLOSE)
    strided = maths.conv2d(x, w, stride=2)
    moved = maths.conv2d(x[:, :, shift:], w, stride=2)
    rows = min(moved.shape[2], strided.shape[2] - shift // 2)
    same = np.allclose(moved[:, :, :rows], strided[:, :, shift // 2 :][:, :, :rows], **CLOSE)
    assert same == (shift % 2 == 0)  # a stride of 2 follows even shifts alone


def test_equation_2_11_the_receptive_field_of_vgg16():
    """196 pixels at the last convolution and 212 after the last pooling, with units 16 and 32 pixels apart."""
    layers = []
    for block, convolutions in enumerate((2, 2, 3, 3, 3)):
        layers += [(2, 2)] * (block > 0) + [(3, 1, 1)] * convolutions
    size, jump = 1, 1
    for kernel, stride, *_ in layers:
        size, jump = size + (kernel - 1) * jump, jump * stride
    assert (size, jump) == (196, 16) == maths.receptive_field(layers)[:2]
    assert maths.receptive_field([*layers, (2, 2)])[:2] == (212, 32)


def test_equation_2_12_relu_and_why_layers_need_it():
    z = rng.normal(size=1000)
    assert (maths.relu(z) == np.where(z > 0, z, 0)).all()
    x, v, w = rng.normal(size=(1, 1, 12, 12)), *rng.normal(size=(2, 1, 1, 3, 3))
    assert np.allclose(maths.conv2d(maths.conv2d(x, v), w), maths.conv2d(x, maths.conv_transpose2d(v, w)), **CLOSE)


@pytest.mark.parametrize(("m", "s"), [(2, 2), (3, 2), (3, 1)])
def test_equation_2_13_max_pooling(m, s):
    x = rng.normal(size=(2, 3, 9, 8))
    y = maths.max_pool2d(x, m, stride=s)
    for n, k, i, j in np.ndindex(y.shape):
        assert y[n, k, i, j] == max(x[n, k, s * i + u, s * j + v] for u, v in np.ndindex(m, m))
    assert (y == F.max_pool2d(torch.from_numpy(x), m, s).numpy()).all()


def test_equation_2_14_batch_normalisation():
    x, gamma, beta = rng.normal(3, 2, size=(4, 2, 3, 5)), rng.normal(size=2), rng.normal(size=2)
    y = maths.batch_norm(x, gamma, beta)
    for c in range(2):
        values = x[:, c].ravel()
        mean = sum(values) / values.size
        var = sum((v - mean) ** 2 for v in values) / values.size
        assert np.allclose(y[:, c], gamma[c] * (x[:, c] - mean) / np.sqrt(var + 1e-5) + beta[c], **CLOSE)
    layer = torch.nn.BatchNorm2d(2).double()
    layer.weight.data, layer.bias.data = torch.from_numpy(gamma), torch.from_numpy(beta)
    assert np.allclose(y, layer(torch.from_numpy(x)).detach().numpy(), **CLOSE)


def test_equation_2_15_folding():
    conv, norm = torch.nn.Conv2d(3, 6, 3, padding=1).double(), torch.nn.BatchNorm2d(6).double()
    norm.weight.data, norm.bias.data = torch.rand(6).double(), torch.rand(6).double()
    for _ in range(5):  # so that it has statistics
        norm(conv(torch.rand(8, 3, 8, 8).double()))
    w, b, gamma, beta, mean, var = (t.detach().numpy() for t in (
        conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var))  # fmt: skip
    x = rng.normal(size=(2, 3, 8, 8))
    folded = maths.conv2d(x, *maths.fold_batch_norm(w, b, gamma, beta, mean, var), padding=1)
    with torch.no_grad():
        assert np.allclose(folded, norm.eval()(conv(torch.from_numpy(x))).numpy(), **CLOSE)
