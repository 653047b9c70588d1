"""Chapter 4, equation by equation: each against central differences, and against PyTorch's autograd, in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gradcam_lib import maths

rng = np.random.default_rng(0)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def jacobian(f, x, h=1e-6):
    """∂f_i/∂x_j by central differences, for f from (n,) to (m,)."""
    steps = h * np.eye(len(x))
    return np.stack([(f(x + step) - f(x - step)) / (2 * h) for step in steps], axis=1)


def test_equation_4_1_softmax():
    z = rng.normal(0, 3, size=7)
    assert np.allclose(np.exp(z) / sum(np.exp(z_j) for z_j in z), torch.softmax(torch.from_numpy(z), 0), **CLOSE)
    assert np.allclose(maths.softmax(z), np.exp(z) / np.exp(z).sum(), **CLOSE)


def test_equation_4_2_the_largest_score_may_be_subtracted():
    z = np.array([1000.0, 999.0, -1000.0])
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.isnan(np.exp(z) / np.exp(z).sum()).any()
    assert np.allclose(maths.softmax(z), [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0], **CLOSE)


def test_equation_4_3_cross_entropy():
    """Report, eq. 2."""
    z, labels = rng.normal(size=(6, 5)), rng.integers(5, size=6)
    p, y = maths.softmax(z), maths.one_hot(labels, 5)
    by_hand = np.mean([-sum(y[n, k] * np.log(p[n, k]) for k in range(5)) for n in range(6)])
    assert np.isclose(by_hand, F.cross_entropy(torch.from_numpy(z), torch.from_numpy(labels)).item(), **CLOSE)
    assert np.isclose(by_hand, maths.cross_entropy(z, y), **CLOSE)


def test_equation_4_4_the_jacobian_of_softmax():
    z = rng.normal(size=6)
    p = maths.softmax(z)
    J = np.array([[p[i] * ((i == k) - p[k]) for k in range(6)] for i in range(6)])
    assert np.abs(J - jacobian(maths.softmax, z)).max() < 1e-9
    assert np.allclose(J, torch.func.jacrev(lambda t: torch.softmax(t, 0))(torch.from_numpy(z)), **CLOSE)


@pytest.mark.parametrize("truth", ["one-hot", "any distribution"])
def test_equation_4_5_prediction_minus_truth(truth):
    """Report, eq. 3. All that the derivation uses of y is that it sums to 1."""
    z = rng.normal(size=6)
    y = np.eye(6)[2] if truth == "one-hot" else maths.softmax(rng.normal(size=6))
    p = maths.softmax(z)
    through_both = -(y / p) @ (np.diag(p) - np.outer(p, p))  # ∂L/∂p, then (4.4)
    assert np.allclose(p - y, through_both, **CLOSE)
    assert np.abs(p - y - maths.numerical_gradient(lambda z: maths.cross_entropy(z[None], y[None]), z)).max() < 1e-9
    t = torch.from_numpy(z).requires_grad_()
    F.cross_entropy(t[None], torch.from_numpy(y)[None]).backward()
    assert np.allclose(p - y, t.grad, **CLOSE)


def test_equation_4_6_the_gradient_of_a_weight():
    """Report, eq. 4."""
    x, W, b = rng.normal(size=4), rng.normal(size=(3, 4)), rng.normal(size=3)
    y = np.eye(3)[1]
    p = maths.softmax(W @ x + b)
    dW = np.array([[(p[k] - y[k]) * x[d] for d in range(4)] for k in range(3)])
    tW, tb = (torch.from_numpy(a).requires_grad_() for a in (W, b))
    F.cross_entropy((tW @ torch.from_numpy(x) + tb)[None], torch.tensor([1])).backward()
    assert np.allclose(dW, tW.grad, **CLOSE)
    assert np.allclose(p - y, tb.grad, **CLOSE)


def test_equation_4_7_the_chain_rule_is_a_transposed_jacobian():
    def layer(x):
        return np.tanh(W @ x) ** 2

    x, W, delta = rng.normal(size=5), rng.normal(size=(4, 5)), rng.normal(size=4)
    backwards = jacobian(layer, x).T @ delta
    assert np.abs(backwards - maths.numerical_gradient(lambda x: delta @ layer(x), x)).max() < 1e-8
    dx, _, _ = maths.dense_backward(delta[None], x[None], W)
    assert np.allclose(dx[0], W.T @ delta, **CLOSE)


def test_equation_4_8_relu():
    z, delta = np.array([-2.0, 0.0, 3.0]), np.array([5.0, 6.0, 7.0])
    t = torch.from_numpy(z).requires_grad_()
    F.relu(t).backward(torch.from_numpy(delta))
    assert maths.relu_backward(delta, z).tolist() == [0, 0, 7] == t.grad.tolist()


@pytest.mark.parametrize(("m", "s"), [(2, 2), (3, 1)])
def test_equation_4_9_max_pooling(m, s):
    x = rng.normal(size=(1, 1, 6, 6))
    y = maths.max_pool2d(x, m, stride=s)
    delta, dx = rng.normal(size=y.shape), np.zeros((6, 6))
    for a, b in np.ndindex(y.shape[2:]):
        u, v = np.unravel_index(x[0, 0, s * a : s * a + m, s * b : s * b + m].argmax(), (m, m))
        dx[s * a + u, s * b + v] += delta[0, 0, a, b]
    t = torch.from_numpy(x).requires_grad_()
    F.max_pool2d(t, m, s).backward(torch.from_numpy(delta))
    assert np.allclose(dx, t.grad[0, 0], **CLOSE)
    assert np.allclose(maths.max_pool2d_backward(delta, x, m, stride=s)[0, 0], dx, **CLOSE)


def test_equation_4_10_dropout():
    x, r, q, delta = rng.normal(size=50), rng.random(50) >= 0.4, 0.4, rng.normal(size=50)
    t = torch.from_numpy(x).requires_grad_()
    y = torch.where(torch.from_numpy(r), t / (1 - q), 0)
    y.backward(torch.from_numpy(delta))
    assert np.allclose(maths.dropout(x, r, q), y.detach(), **CLOSE)
    assert np.allclose(r / (1 - q) * delta, t.grad, **CLOSE)
    assert np.allclose(maths.dropout_backward(delta, r, q), t.grad, **CLOSE)


@pytest.fixture(scope="module")
def convolution():
    x, w, delta = rng.normal(size=(1, 2, 6, 7)), rng.normal(size=(3, 2, 3, 2)), rng.normal(size=(1, 3, 4, 6))
    tx, tw = (torch.from_numpy(a).requires_grad_() for a in (x, w))
    F.conv2d(tx, tw).backward(torch.from_numpy(delta))
    return x, w, delta, tx.grad.numpy(), tw.grad.numpy()


def test_equation_4_11_the_kernel_of_a_convolution(convolution):
    x, w, delta, _, dw = convolution
    by_hand = np.zeros_like(w)
    for k, c, u, v in np.ndindex(w.shape):
        by_hand[k, c, u, v] = sum(delta[0, k, i, j] * x[0, c, i + u, j + v] for i, j in np.ndindex(4, 6))
    assert np.allclose(by_hand, dw, **CLOSE)
    assert np.allclose(maths.conv2d_backward(delta, x, w)[1], dw, **CLOSE)


def test_equation_4_12_the_input_of_a_convolution(convolution):
    x, w, delta, dx, _ = convolution

    def error(k, i, j):
        return delta[0, k, i, j] if 0 <= i < 4 and 0 <= j < 6 else 0

    by_hand = np.zeros_like(x)
    for _, c, i, j in np.ndindex(x.shape):
        terms = (error(k, i - u, j - v) * w[k, c, u, v] for k, u, v in np.ndindex(3, 3, 2))
        by_hand[0, c, i, j] = sum(terms)
    assert np.allclose(by_hand, dx, **CLOSE)
    assert np.allclose(maths.conv_transpose2d(delta, w), dx, **CLOSE)


@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"groups": 2}])
def test_equation_4_13_what_makes_it_the_transpose(geometry):
    x, w = rng.normal(size=(1, 4, 9, 9)), rng.normal(size=(4, 4 // geometry.get("groups", 1), 3, 3))
    y = maths.conv2d(x, w, **geometry)
    delta = rng.normal(size=y.shape)
    back = maths.conv_transpose2d(delta, w, **geometry, size=(9, 9))
    assert np.isclose((delta * y).sum(), (back * x).sum(), rtol=1e-10, atol=1e-10)
    tx = torch.from_numpy(x).requires_grad_()
    F.conv2d(tx, torch.from_numpy(w), **geometry).backward(torch.from_numpy(delta))
    assert np.allclose(back, tx.grad, **CLOSE)


def test_equation_4_14_the_jacobian_of_normalisation():
    def normal(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5)

    x = rng.normal(2, 3, size=7)
    s, hat = np.sqrt(x.var() + 1e-5), normal(x)
    J = np.array([[((m == l) - 1 / 7 - hat[m] * hat[l] / 7) / s for l in range(7)] for m in range(7)])
    assert np.abs(J - jacobian(normal, x)).max() < 1e-8


def test_equation_4_15_batch_normalisation():
    x, g = rng.normal(2, 3, size=(2, 5, 3, 2, 2))
    gamma, beta = rng.normal(size=(2, 3))
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, gamma, beta)]
    F.batch_norm(tensors[0], None, None, *tensors[1:], training=True).backward(torch.from_numpy(g))
    dx, dgamma, dbeta = (t.grad.numpy() for t in tensors)
    for c in range(3):
        values, errors = x[:, c], g[:, c]
        s = np.sqrt(values.var() + 1e-5)
        hat = (values - values.mean()) / s
        by_hand = gamma[c] / s * (errors - errors.mean() - hat * (errors * hat).mean())
        assert np.allclose(by_hand, dx[:, c], **CLOSE)
        assert np.isclose((errors * hat).sum(), dgamma[c], **CLOSE)
        assert np.isclose(errors.sum(), dbeta[c], **CLOSE)


def test_equation_4_16_the_error_of_central_differences_falls_as_the_square():
    def error(h):
        return abs(maths.numerical_gradient(lambda x: np.exp(x).sum(), np.array([0.3]), h)[0] - np.exp(0.3))

    # exp has all derivatives equal, so the error is exp(x) h²/6 and the next term is smaller by h²/20.
    assert error(1e-2) == pytest.approx(np.exp(0.3) * 1e-4 / 6, rel=1e-4)
    assert error(1e-2) / error(1e-3) == pytest.approx(100, rel=1e-2)


@pytest.mark.parametrize("gain", [1, 2, 4])
def test_equation_4_17_the_gain_of_a_layer(gain):
    """Mean over 40 layers, each with weights of its own; its standard error is about 1 %."""
    n, ratios = 256, []
    for _ in range(40):
        w, z = rng.normal(size=(n, n)) * np.sqrt(gain / n), rng.normal(size=(32, n))
        delta = rng.normal(size=(32, n))  # at the layer's output
        before = maths.relu_backward(delta @ w, z)  # through the weights, then the ReLU before them
        ratios.append((before**2).sum() / (delta**2).sum())
    assert np.mean(ratios) == pytest.approx(gain / 2, rel=0.05)


def test_equation_4_18_label_smoothing():
    z, labels, epsilon = rng.normal(size=(5, 10)), rng.integers(10, size=5), 0.1
    y = maths.one_hot(labels, 10)
    by_hand = maths.softmax(z) - ((1 - epsilon) * y + epsilon / 10)
    t = torch.from_numpy(z).requires_grad_()
    F.cross_entropy(t, torch.from_numpy(labels), label_smoothing=epsilon, reduction="sum").backward()
    assert np.allclose(by_hand, t.grad, **CLOSE)
    lead = np.log(91) * np.eye(10)[:1]
    assert np.abs(maths.softmax(lead) - maths.smooth(np.eye(10)[:1], epsilon)).max() < 1e-15
