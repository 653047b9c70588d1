"""The definitions of `gradcam_lib.maths`: held against PyTorch, against each other, and against what defines them.

Everything is in float64, where two right computations agree to about 1e-13 of the largest value; the bound is 1e-10.
Gradients are held against central differences to 1e-6.
"""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gradcam_lib import maths

settings.register_profile("maths", deadline=None, max_examples=60)
EXACT = 1e-10
CONVOLUTIONS = [maths.conv2d, maths.conv2d_loops, maths.conv2d_im2col, maths.conv2d_fft]


@st.composite
def convolutions(draw, largest=9):
    """x (N, C, H, W), w (K, C / groups, R, S), b and the settings of a convolution that exists."""
    groups = draw(st.integers(1, 3))
    N, C, K = draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    H, W, R, S = (
        draw(st.integers(1, largest)),
        draw(st.integers(1, largest)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
    )
    geometry = {
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, 3)),
        "dilation": draw(st.integers(1, 3)),
    }
    for size, kernel in ((H, R), (W, S)):
        assume(geometry["dilation"] * (kernel - 1) + 1 <= size + 2 * geometry["padding"])
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    x, w, b = rng.normal(size=(N, C, H, W)), rng.normal(size=(K, C // groups, R, S)), rng.normal(size=K)
    return x, w, b, geometry | {"groups": groups}


def tensors(*arrays):
    return [torch.from_numpy(a).requires_grad_() for a in arrays]


def assert_close(got, expected, tolerance=EXACT):
    """The largest difference, as a share of the largest value (or of 1, where all are smaller)."""
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= tolerance * max(1, np.abs(expected).max(initial=0))


# --- convolution ---


@pytest.mark.parametrize("conv2d", CONVOLUTIONS)
@settings(settings.get_profile("maths"))
@given(case=convolutions())
def test_convolution_agrees_with_pytorch(conv2d, case):
    x, w, b, geometry = case
    assert_close(conv2d(x, w, b, **geometry), F.conv2d(*tensors(x, w, b), **geometry))
    assert_close(conv2d(x, w, **geometry), F.conv2d(*tensors(x, w), **geometry))


@pytest.mark.parametrize("conv2d", CONVOLUTIONS)
@settings(settings.get_profile("maths"))
@given(case=convolutions(largest=6), a=st.floats(-3, 3))
def test_convolution_is_linear_in_the_picture_and_in_the_kernel(conv2d, case, a):
    x, w, _, geometry = case
    other_x, other_w = np.roll(x[..., ::-1], 1, axis=2), w[..., ::-1, :] + 1
    y = conv2d(x, w, **geometry)
    assert_close(conv2d(a * x + other_x, w, **geometry), a * y + conv2d(other_x, w, **geometry))
    assert_close(conv2d(x, a * w + other_w, **geometry), a * y + conv2d(x, other_w, **geometry))


@settings(settings.get_profile("maths"))
@given(case=convolutions())
def test_the_transposed_convolution_is_the_adjoint(case):
    """<y, conv(x)> = <conv_transpose(y), x>, for every x and y: that is what transposed means."""
    x, w, _, geometry = case
    image = maths.conv2d(x, w, **geometry)
    y = np.random.default_rng(1).normal(size=image.shape)
    back = maths.conv_transpose2d(y, w, **geometry, size=x.shape[2:])
    assert back.shape == x.shape
    assert np.isclose((y * image).sum(), (back * x).sum(), rtol=EXACT, atol=EXACT * np.abs(y).sum())


@settings(settings.get_profile("maths"))
@given(case=convolutions())
def test_the_transposed_convolution_agrees_with_pytorch(case):
    x, w, _, geometry = case
    y = maths.conv2d(x, w, **geometry)
    b = np.random.default_rng(2).normal(size=x.shape[1])
    smallest = maths.conv2d(x, w, **geometry).shape[2:]
    bare = [(n - 1) * geometry["stride"] + geometry["dilation"] * (m - 1) + 1 - 2 * geometry["padding"]
            for n, m in zip(smallest, w.shape[2:], strict=True)]  # fmt: skip
    extra = [size - n for size, n in zip(x.shape[2:], bare, strict=True)]
    assume(max(extra) < max(geometry["stride"], geometry["dilation"]))  # PyTorch's condition on output_padding
    expected = F.conv_transpose2d(*tensors(y, w, b), **geometry, output_padding=extra)
    assert_close(maths.conv_transpose2d(y, w, b, **geometry, size=x.shape[2:]), expected)
    if min(bare) > 0:
        assert_close(maths.conv_transpose2d(y, w, b, **geometry), F.conv_transpose2d(*tensors(y, w, b), **geometry))


@settings(settings.get_profile("maths"))
@given(case=convolutions())
def test_the_gradients_of_convolution_agree_with_pytorch(case):
    x, w, b, geometry = case
    tx, tw, tb = tensors(x, w, b)
    y = F.conv2d(tx, tw, tb, **geometry)
    dy = torch.from_numpy(np.random.default_rng(3).normal(size=y.shape))
    y.backward(dy)
    for got, expected in zip(
        maths.conv2d_backward(dy.numpy(), x, w, **geometry), (tx.grad, tw.grad, tb.grad), strict=True
    ):
        assert_close(got, expected)


@settings(settings.get_profile("maths"))
@given(case=convolutions())
def test_im2col_is_pytorchs_unfold(case):
    x, w, _, geometry = case
    geometry = {key: value for key, value in geometry.items() if key != "groups"}
    assert_close(maths.im2col(x, w.shape[2:], **geometry), F.unfold(torch.from_numpy(x), w.shape[2:], **geometry))


def test_windows_are_a_view():
    x = np.zeros((1, 1, 100, 100))
    assert np.shares_memory(maths.windows(x, (7, 7)), x)


@pytest.mark.parametrize("conv2d", [*CONVOLUTIONS, maths.conv_transpose2d])
def test_float32_stays_float32(conv2d):
    x, w, b = (np.ones(shape, np.float32) for shape in ((1, 2, 5, 5), (2, 2, 3, 3), (2,)))
    assert conv2d(x, w, b, padding=1).dtype == np.float32


@settings(settings.get_profile("maths"))
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 4), st.integers(1, 4))
def test_the_output_size_counts_the_kernels_places(size, kernel, stride, padding, dilation):
    span = dilation * (kernel - 1) + 1
    places = range(-padding, size + padding - span + 1, stride)  # where the kernel may begin
    if places:
        assert maths.output_size(size, kernel, stride=stride, padding=padding, dilation=dilation) == len(places)
    else:
        with pytest.raises(ValueError, match=f"spans {span} pixels does not fit into {size}"):
            maths.output_size(size, kernel, stride=stride, padding=padding, dilation=dilation)


@pytest.mark.parametrize("conv2d", CONVOLUTIONS)
def test_shapes_that_do_not_go_together_are_named(conv2d):
    x = np.zeros((1, 3, 8, 8))
    with pytest.raises(ValueError, match="made for 4 maps and there are 3"):
        conv2d(x, np.zeros((2, 4, 3, 3)))
    with pytest.raises(ValueError, match="3 maps and 4 kernels cannot both be divided into 2 groups"):
        conv2d(x, np.zeros((4, 1, 3, 3)), groups=2)
    with pytest.raises(ValueError, match="spans 9 pixels does not fit into 8"):
        conv2d(x, np.zeros((2, 3, 9, 9)))


def test_a_transposed_convolution_refuses_a_size_that_no_convolution_has():
    y, w = np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 3, 3))
    assert maths.conv_transpose2d(y, w, stride=2, size=(10, 10)).shape == (1, 1, 10, 10)
    with pytest.raises(ValueError, match="4 × 4 from 12 × 12"):
        maths.conv_transpose2d(y, w, stride=2, size=(12, 12))


@settings(settings.get_profile("maths"))
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2)), max_size=4),
    st.integers(0, 3),
)
def test_a_unit_sees_its_receptive_field_and_nothing_else(layers, i):
    """The gradient of one unit, through kernels of ones, is above 0 exactly on its field."""
    x = torch.zeros(1, 1, 1, 400, dtype=torch.float64, requires_grad=True)
    y = x
    for kernel, stride, padding, dilation in layers:
        ones = torch.ones(1, 1, 1, kernel, dtype=torch.float64)
        y = F.conv2d(y, ones, stride=(1, stride), padding=(0, padding), dilation=(1, dilation))
    i = min(i, y.shape[-1] - 1)
    y[..., i].sum().backward()
    seen = np.flatnonzero(x.grad.numpy())
    field = maths.receptive_field(layers)
    first = field.first + i * field.jump
    assume(first >= 0)  # else part of the field lies in the padding
    assert (seen[0], seen[-1]) == (first, first + field.size - 1)


# --- the other layers ---


@settings(settings.get_profile("maths"))
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(0, 100))
def test_max_pooling_and_its_gradient_agree_with_pytorch(size, stride, padding, seed):
    assume(padding <= size // 2)  # PyTorch's own condition
    x = np.random.default_rng(seed).integers(-2, 3, size=(2, 3, 7, 6)).astype(float)  # ties are frequent
    (tx,) = tensors(x)
    y = F.max_pool2d(tx, size, stride, padding)
    dy = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=y.shape))
    y.backward(dy)
    assert_close(maths.max_pool2d(x, size, stride=stride, padding=padding), y)
    assert_close(maths.max_pool2d_backward(dy.numpy(), x, size, stride=stride, padding=padding), tx.grad)


def test_max_pooling_lies_side_by_side_unless_told_otherwise():
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    assert maths.max_pool2d(x, 2).tolist() == [[[[5, 7], [13, 15]]]]


@settings(settings.get_profile("maths"))
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_batch_norm_and_its_gradient_agree_with_pytorch(seed, spread, middle):
    rng = np.random.default_rng(seed)
    x, gamma, beta = rng.normal(middle, spread, size=(4, 3, 5, 2)), rng.normal(size=3), rng.normal(size=3)
    tx, tgamma, tbeta = tensors(x, gamma, beta)
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    y = F.batch_norm(tx, mean, var, tgamma, tbeta, training=True, momentum=1.0)
    dy = torch.from_numpy(rng.normal(size=y.shape))
    y.backward(dy)
    assert_close(maths.batch_norm(x, gamma, beta), y)
    expected = tx.grad, tgamma.grad, tbeta.grad
    for got, value in zip(maths.batch_norm_backward(dy.numpy(), x, gamma), expected, strict=True):
        assert_close(got, value, 1e-9)  # sums of numbers that cancel
    in_use = F.batch_norm(tx, mean, var, tgamma, tbeta, training=False)
    assert_close(maths.batch_norm(x, gamma, beta, mean=mean.numpy(), var=var.numpy()), in_use)


@settings(settings.get_profile("maths"))
@given(case=convolutions(), biased=st.booleans())
def test_folding_changes_nothing(case, biased):
    x, w, b, geometry = case
    b = b if biased else None
    rng = np.random.default_rng(4)
    gamma, beta, mean = rng.normal(size=(3, len(w)))
    var = rng.uniform(0.1, 2, size=len(w))
    apart = maths.batch_norm(maths.conv2d(x, w, b, **geometry), gamma, beta, mean=mean, var=var)
    folded = maths.fold_batch_norm(w, b, gamma, beta, mean, var)
    assert_close(maths.conv2d(x, *folded, **geometry), apart)


def test_dropout_keeps_the_mean_and_its_gradient_follows_the_mask():
    rng = np.random.default_rng(5)
    x, p = rng.normal(3, 1, size=100_000), 0.3
    kept = rng.random(x.shape) >= p
    y = maths.dropout(x, kept, p)
    assert abs(y.mean() - x.mean()) < 0.03  # four standard errors
    assert (y[~kept] == 0).all()
    (tx,) = tensors(x)
    (tx * torch.from_numpy(kept) / (1 - p)).sum().backward()
    assert_close(maths.dropout_backward(np.ones_like(x), kept, p), tx.grad)


def test_dense_and_relu_agree_with_pytorch():
    rng = np.random.default_rng(6)
    x, w, b = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)), rng.normal(size=3)
    x[0], b[0] = 0, 0  # so that one ReLU stands exactly at 0
    tx, tw, tb = tensors(x, w, b)
    z = F.linear(tx, tw, tb)
    y = F.relu(z)
    dy = torch.from_numpy(rng.normal(size=y.shape))
    y.backward(dy)
    assert_close(maths.dense(x, w, b), z)
    assert_close(maths.relu(maths.dense(x, w, b)), y)
    dz = maths.relu_backward(dy.numpy(), maths.dense(x, w, b))
    for got, expected in zip(maths.dense_backward(dz, x, w), (tx.grad, tw.grad, tb.grad), strict=True):
        assert_close(got, expected)


# --- softmax and cross-entropy ---

logits = st.lists(st.floats(-1000, 1000), min_size=2, max_size=8).map(np.array)


@settings(settings.get_profile("maths"))
@given(logits, st.floats(-1000, 1000))
def test_softmax_is_a_distribution_that_a_constant_does_not_change(z, c):
    p = maths.softmax(z)
    assert np.isclose(p.sum(), 1, rtol=1e-12) and (p >= 0).all()
    assert_close(p, torch.softmax(torch.from_numpy(z), -1))
    assert np.abs(maths.softmax(z + c) - p).max() < 1e-9  # z + c itself is rounded
    assert_close(maths.log_softmax(z), torch.log_softmax(torch.from_numpy(z), -1))


@pytest.mark.parametrize("epsilon", [0, 0.1])
def test_cross_entropy_and_its_gradient_agree_with_pytorch(epsilon):
    rng = np.random.default_rng(7)
    z, labels = rng.normal(0, 3, size=(6, 5)), rng.integers(0, 5, size=6)
    z[0] = [1e4, -1e4, 0, 0, 0]  # a softmax without care overflows here
    y = maths.smooth(maths.one_hot(labels, 5), epsilon)
    (tz,) = tensors(z)
    loss = F.cross_entropy(tz, torch.from_numpy(labels), label_smoothing=epsilon)
    loss.backward()
    assert np.isclose(maths.cross_entropy(z, y), loss.item(), rtol=EXACT)
    assert_close(maths.cross_entropy_backward(z, y), tz.grad)


def test_one_hot_rows_and_the_labels_that_it_refuses():
    assert maths.one_hot([2, 0], 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    for labels, culprit in (([0, 3], 3), ([-1, 0], -1)):
        with pytest.raises(ValueError, match=f"go from 0 to 2, and here is a {culprit}"):
            maths.one_hot(labels, 3)


# --- every gradient against its definition ---


def gradients():
    """(name, the scalar function of an array, the array, its gradient by the package) for every backward function."""
    rng = np.random.default_rng(8)
    x, w, b = rng.normal(size=(2, 4, 5, 6)), rng.normal(size=(4, 2, 3, 2)), rng.normal(size=4)
    geometry = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    dy = rng.normal(size=maths.conv2d(x, w, b, **geometry).shape)
    dx, dw, db = maths.conv2d_backward(dy, x, w, **geometry)
    yield "conv2d x", lambda x: (dy * maths.conv2d(x, w, b, **geometry)).sum(), x, dx
    yield "conv2d w", lambda w: (dy * maths.conv2d(x, w, b, **geometry)).sum(), w, dw
    yield "conv2d b", lambda b: (dy * maths.conv2d(x, w, b, **geometry)).sum(), b, db

    pooled = rng.normal(size=maths.max_pool2d(x, 3, stride=2, padding=1).shape)
    dx = maths.max_pool2d_backward(pooled, x, 3, stride=2, padding=1)
    yield "max_pool2d", lambda x: (pooled * maths.max_pool2d(x, 3, stride=2, padding=1)).sum(), x, dx

    same, gamma, beta = rng.normal(size=x.shape), rng.normal(size=4), rng.normal(size=4)
    dx, dgamma, dbeta = maths.batch_norm_backward(same, x, gamma)
    yield "batch_norm x", lambda x: (same * maths.batch_norm(x, gamma, beta)).sum(), x, dx
    yield "batch_norm gamma", lambda gamma: (same * maths.batch_norm(x, gamma, beta)).sum(), gamma, dgamma
    yield "batch_norm beta", lambda beta: (same * maths.batch_norm(x, gamma, beta)).sum(), beta, dbeta

    yield "relu", lambda x: (same * maths.relu(x)).sum(), x, maths.relu_backward(same, x)
    kept = rng.random(x.shape) < 0.5
    yield "dropout", lambda x: (same * maths.dropout(x, kept, 0.5)).sum(), x, maths.dropout_backward(same, kept, 0.5)

    v, m, c = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), rng.normal(size=5)
    out = rng.normal(size=(3, 5))
    dv, dm, dc = maths.dense_backward(out, v, m)
    yield "dense x", lambda v: (out * maths.dense(v, m, c)).sum(), v, dv
    yield "dense w", lambda m: (out * maths.dense(v, m, c)).sum(), m, dm
    yield "dense b", lambda c: (out * maths.dense(v, m, c)).sum(), c, dc

    y = maths.smooth(maths.one_hot([1, 4, 0], 5), 0.1)
    yield "cross_entropy", lambda out: maths.cross_entropy(out, y), out, maths.cross_entropy_backward(out, y)


@pytest.mark.parametrize(("f", "x", "gradient"), [pytest.param(*case[1:], id=case[0]) for case in gradients()])
def test_every_gradient_is_the_limit_of_differences(f, x, gradient):
    before = x.copy()
    assert_close(gradient, maths.numerical_gradient(f, x), 1e-6)
    assert (x == before).all()


def test_every_backward_function_is_among_them():
    covered = {case[0].split()[0] for case in gradients()}
    assert covered == {name.removesuffix("_backward") for name in maths.__all__ if name.endswith("_backward")}


def test_differences_of_float32_are_refused():
    with pytest.raises(TypeError, match="need float64, and x is float32"):
        maths.numerical_gradient(np.sum, np.zeros(3, np.float32))
