"""The definitions as a reader meets them, in NumPy: convolution, pooling, normalisation, softmax, and their gradients.

Slow and clear on purpose: this is what the chapters and the tests hold PyTorch against. The letters are those of the
book: n an image, c a map that goes in, k a map that comes out, i and j a place, u and v an offset inside the kernel.
Strides, paddings and dilations are one number for both axes. Arrays are floating-point, and keep their dtype.

A gradient is named after its function: `f_backward(dy, ...)` takes the gradient of a scalar L with respect to what f
returned, then what f was given, and returns the gradient of L with respect to each of them, in the order of f.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

__all__ = [
    "ReceptiveField",
    "batch_norm",
    "batch_norm_backward",
    "conv2d",
    "conv2d_backward",
    "conv2d_fft",
    "conv2d_im2col",
    "conv2d_loops",
    "conv_transpose2d",
    "cross_entropy",
    "cross_entropy_backward",
    "dense",
    "dense_backward",
    "dropout",
    "dropout_backward",
    "fold_batch_norm",
    "im2col",
    "log_softmax",
    "max_pool2d",
    "max_pool2d_backward",
    "numerical_gradient",
    "one_hot",
    "output_size",
    "receptive_field",
    "relu",
    "relu_backward",
    "smooth",
    "softmax",
    "windows",
]

Array = npt.NDArray[np.floating]


# --- convolution ---


def output_size(size: int, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """How many places a kernel has along an axis of `size` pixels.

    Raises ValueError where the kernel does not fit even once.
    """
    span = dilation * (kernel - 1) + 1  # pixels from the kernel's first to its last
    if span > size + 2 * padding:
        raise ValueError(
            f"A kernel that spans {span} pixels does not fit into {size} with a padding of {padding}: "
            "take a larger picture, a smaller kernel or more padding."
        )
    return (size + 2 * padding - span) // stride + 1


def pad(x: Array, padding: int, value: float = 0.0) -> Array:
    """Rows and columns of `value` around each map: (N, C, H, W) becomes (N, C, H + 2 padding, W + 2 padding)."""
    return np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=value)


def windows(x: Array, size: tuple[int, int], *, stride: int = 1, dilation: int = 1) -> Array:
    """What the kernel sees at each place: (N, C, H, W) becomes (N, C, H', W', R, S), a view without a copy.

    size  (R, S), the kernel's rows and columns
    """
    R, S = size
    output_size(x.shape[2], R, dilation=dilation), output_size(x.shape[3], S, dilation=dilation)  # they fit, or raise
    dense = sliding_window_view(x, (dilation * (R - 1) + 1, dilation * (S - 1) + 1), axis=(2, 3))
    return dense[:, :, ::stride, ::stride, ::dilation, ::dilation]


def conv2d(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Array:
    """Convolution as networks use the word, which mathematics calls cross-correlation: the kernel is not flipped.

    x        (N, C, H, W)
    w        (K, C / groups, R, S)
    b        (K,), or None
    groups   the C maps and the K kernels are divided into so many parts, each seeing its own part alone
    returns  (N, K, H', W'), H' and W' as `output_size` gives them

    Raises ValueError where the shapes do not go together.
    """
    _check_kernel(x, w, groups)
    seen = windows(pad(x, padding), w.shape[2:], stride=stride, dilation=dilation)
    y = [
        np.einsum("ncijuv,kcuv->nkij", maps, kernels, optimize=True)
        for maps, kernels in zip(np.split(seen, groups, axis=1), np.split(w, groups), strict=True)
    ]
    return _add_bias(np.concatenate(y, axis=1), b)


def conv2d_loops(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Array:
    """`conv2d`, one multiplication at a time."""
    _check_kernel(x, w, groups)
    N, _, H, W = x.shape
    K, C, R, S = w.shape  # C maps in each group
    rows = output_size(H, R, stride=stride, padding=padding, dilation=dilation)
    columns = output_size(W, S, stride=stride, padding=padding, dilation=dilation)
    x = pad(x, padding)
    y = np.zeros((N, K, rows, columns), np.result_type(x, w))
    for n, k, i, j in np.ndindex(y.shape):
        first = k // (K // groups) * C  # of the maps that kernel k sees
        for c, u, v in np.ndindex(C, R, S):
            y[n, k, i, j] += x[n, first + c, i * stride + u * dilation, j * stride + v * dilation] * w[k, c, u, v]
    return _add_bias(y, b)


def im2col(x: Array, size: tuple[int, int], *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Array:
    """Each window as a column: (N, C, H, W) becomes (N, C R S, H' W'), with R times S times as many numbers."""
    seen = windows(pad(x, padding), size, stride=stride, dilation=dilation)
    N, C, rows, columns, R, S = seen.shape
    return seen.transpose(0, 1, 4, 5, 2, 3).reshape(N, C * R * S, rows * columns)


def conv2d_im2col(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Array:
    """`conv2d` as one matrix product a group (Chellapilla, Puri and Simard 2006)."""
    _check_kernel(x, w, groups)
    (N, _, H, W), (R, S) = x.shape, w.shape[2:]
    rows = output_size(H, R, stride=stride, padding=padding, dilation=dilation)
    columns = output_size(W, S, stride=stride, padding=padding, dilation=dilation)
    y = [
        kernels.reshape(len(kernels), -1) @ im2col(maps, (R, S), stride=stride, padding=padding, dilation=dilation)
        for maps, kernels in zip(np.split(x, groups, axis=1), np.split(w, groups), strict=True)
    ]
    return _add_bias(np.concatenate(y, axis=1).reshape(N, len(w), rows, columns), b)


def conv2d_fft(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Array:
    """`conv2d` as a product of Fourier transforms: what a shift does to a picture, a phase does to its transform.

    A stride saves nothing here: all places are computed, and those between are thrown away.
    """
    _check_kernel(x, w, groups)
    x = pad(x, padding)
    K, C, R, S = w.shape
    spread = np.zeros((K, C, dilation * (R - 1) + 1, dilation * (S - 1) + 1), w.dtype)
    spread[:, :, ::dilation, ::dilation] = w
    size = x.shape[2:]
    rows, columns = (output_size(n, m) for n, m in zip(size, spread.shape[2:], strict=True))
    X, F = np.fft.rfft2(x), np.fft.rfft2(spread, s=size)
    Y = [
        np.einsum("ncij,kcij->nkij", maps, kernels.conj())  # the conjugate: correlation, no flip
        for maps, kernels in zip(np.split(X, groups, axis=1), np.split(F, groups), strict=True)
    ]
    y = np.fft.irfft2(np.concatenate(Y, axis=1), s=size)[:, :, :rows:stride, :columns:stride]
    return _add_bias(y.astype(np.result_type(x, w)), b)


def conv_transpose2d(
    y: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    size: tuple[int, int] | None = None,
) -> Array:
    """The adjoint of `conv2d`, also called transposed convolution: each value of y paints the kernel, weighted by it.

    y        (N, K, H', W')
    w        (K, C / groups, R, S), the kernel of the convolution
    b        (C,), or None
    size     (H, W) of what comes out. A strided convolution makes the same H' from several H; None takes the smallest.
    returns  (N, C, H, W)

    Raises ValueError where a convolution of `size` does not give maps of the size of y.
    """
    (N, K, rows, columns), (_, C, R, S) = y.shape, w.shape
    _check_groups(K, len(w), groups)
    smallest = ((n - 1) * stride + dilation * (m - 1) + 1 - 2 * padding for n, m in ((rows, R), (columns, S)))
    H, W = size or smallest
    for n, m, places in ((H, R, rows), (W, S, columns)):
        if output_size(n, m, stride=stride, padding=padding, dilation=dilation) != places:
            raise ValueError(f"No convolution with these settings makes maps of {rows} × {columns} from {H} × {W}.")
    x = np.zeros((N, groups * C, H + 2 * padding, W + 2 * padding), np.result_type(y, w))
    for maps, kernels, painted in zip(
        np.split(y, groups, axis=1), np.split(w, groups), np.split(x, groups, axis=1), strict=True
    ):
        for u, v in np.ndindex(R, S):
            i = slice(u * dilation, u * dilation + stride * (rows - 1) + 1, stride)
            j = slice(v * dilation, v * dilation + stride * (columns - 1) + 1, stride)
            painted[:, :, i, j] += np.einsum("nkij,kc->ncij", maps, kernels[:, :, u, v], optimize=True)
    return _add_bias(x[:, :, padding : padding + H, padding : padding + W], b)


def conv2d_backward(
    dy: Array, x: Array, w: Array, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> tuple[Array, Array, Array]:
    """Gradients of `conv2d`: of its input, a transposed convolution; of its kernel, a correlation of x with dy.

    dy       (N, K, H', W')
    returns  dx (N, C, H, W), dw (K, C / groups, R, S), db (K,)
    """
    dx = conv_transpose2d(dy, w, stride=stride, padding=padding, dilation=dilation, groups=groups, size=x.shape[2:])
    seen = windows(pad(x, padding), w.shape[2:], stride=stride, dilation=dilation)
    dw = [
        np.einsum("ncijuv,nkij->kcuv", maps, errors, optimize=True)
        for maps, errors in zip(np.split(seen, groups, axis=1), np.split(dy, groups, axis=1), strict=True)
    ]
    return dx, np.concatenate(dw), dy.sum((0, 2, 3))


def _check_groups(maps: int, kernels: int, groups: int) -> None:
    if maps % groups or kernels % groups:
        raise ValueError(f"{maps} maps and {kernels} kernels cannot both be divided into {groups} groups.")


def _check_kernel(x: Array, w: Array, groups: int) -> None:
    _check_groups(x.shape[1], len(w), groups)
    if x.shape[1] != w.shape[1] * groups:
        raise ValueError(
            f"The kernels are made for {w.shape[1] * groups} maps and there are {x.shape[1]}: "
            f"x is {x.shape}, w is {w.shape}, in {groups} group{'s' * (groups > 1)}."
        )


def _add_bias(y: Array, b: Array | None) -> Array:
    return y if b is None else y + b[:, None, None]


class ReceptiveField(NamedTuple):
    """Unit i of a layer sees the pixels from first + i jump to first + i jump + size - 1, along each axis.

    size   pixels that a unit can see
    jump   pixels from the field of a unit to that of the next
    first  where the field of unit 0 begins; negative where it begins in the padding
    """

    size: int
    jump: int
    first: int


def receptive_field(layers: Iterable[tuple[int, ...]]) -> ReceptiveField:
    """The receptive field of a chain of convolutions and poolings.

    layers  (kernel, stride, padding, dilation) of each, from the picture on; what is left out is 1, 0, 1
    """
    field = ReceptiveField(size=1, jump=1, first=0)
    for layer in layers:
        kernel, stride, padding, dilation = (*layer, *(1, 1, 0, 1)[len(layer) :])
        field = ReceptiveField(
            size=field.size + dilation * (kernel - 1) * field.jump,
            jump=field.jump * stride,
            first=field.first - padding * field.jump,
        )
    return field


# --- pooling, ReLU, dense layer, dropout ---


def max_pool2d(x: Array, size: int, *, stride: int | None = None, padding: int = 0) -> Array:
    """The largest value of each window, map by map: (N, C, H, W) becomes (N, C, H', W').

    stride   from window to window; None takes the size, so that windows lie side by side
    padding  rows and columns of -inf around
    """
    return windows(pad(x, padding, -np.inf), (size, size), stride=stride or size).max((4, 5))


def max_pool2d_backward(dy: Array, x: Array, size: int, *, stride: int | None = None, padding: int = 0) -> Array:
    """The gradient goes to the largest value of each window, to the first of several; returns dx (N, C, H, W)."""
    stride, padded = stride or size, pad(x, padding, -np.inf)
    seen = windows(padded, (size, size), stride=stride)
    u, v = np.divmod(seen.reshape(*seen.shape[:4], -1).argmax(-1), size)
    n, c, i, j = np.indices(dy.shape)
    dx = np.zeros_like(padded)
    np.add.at(dx, (n, c, i * stride + u, j * stride + v), dy)  # overlapping windows may share their largest value
    return dx[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]]


def relu(z: Array) -> Array:
    """What is negative becomes 0 (Nair and Hinton 2010)."""
    return np.maximum(z, 0)


def relu_backward(dy: Array, z: Array) -> Array:
    """The gradient passes where z is positive. At 0, where there is no slope, PyTorch's choice: 0."""
    return dy * (z > 0)


def dense(x: Array, w: Array, b: Array) -> Array:
    """A dense layer: x (N, D), w (K, D), b (K,) become (N, K)."""
    return x @ w.T + b


def dense_backward(dy: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
    """Gradients of `dense`: dx (N, D), dw (K, D), db (K,)."""
    return dy @ w, dy.T @ x, dy.sum(0)


def dropout(x: Array, kept: npt.NDArray[np.bool_], p: float) -> Array:
    """Drop values with probability p, and scale up those that stay, so that the mean stays (Srivastava et al. 2014).

    kept  of x's shape: True where a value stays, which has probability 1 - p
    """
    return x * kept / (1 - p)


def dropout_backward(dy: Array, kept: npt.NDArray[np.bool_], p: float) -> Array:
    """What was dropped gets no gradient; the rest gets it scaled as it was."""
    return dy * kept / (1 - p)


# --- batch normalisation ---


def batch_norm(
    x: Array, gamma: Array, beta: Array, *, mean: Array | None = None, var: Array | None = None, eps: float = 1e-5
) -> Array:
    """Bring each map to mean beta and standard deviation gamma over images and places (Ioffe and Szegedy 2015).

    x            (N, C, H, W)
    gamma, beta  (C,)
    mean, var    (C,) both, as collected in training; without them those of this batch, as training does
    eps          added to the variance, so that a constant map is not divided by 0
    """
    if mean is None:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    assert var is not None, "Give mean and var both, or neither."
    mean, var, gamma, beta = (values[:, None, None] for values in (mean, var, gamma, beta))
    return gamma * (x - mean) / np.sqrt(var + eps) + beta


def batch_norm_backward(dy: Array, x: Array, gamma: Array, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """Gradients of `batch_norm` with the batch's own statistics: dx (N, C, H, W), dgamma (C,), dbeta (C,)."""
    over = (0, 2, 3)
    std = np.sqrt(x.var(over, keepdims=True) + eps)
    normal = (x - x.mean(over, keepdims=True)) / std
    dgamma, dbeta = (dy * normal).sum(over), dy.sum(over)
    dnormal = dy * gamma[:, None, None]
    # Two directions of dnormal have no effect on L, as the batch's mean and variance take them out again.
    along = normal * (dnormal * normal).mean(over, keepdims=True)
    return (dnormal - dnormal.mean(over, keepdims=True) - along) / std, dgamma, dbeta


def fold_batch_norm(
    w: Array, b: Array | None, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float = 1e-5
) -> tuple[Array, Array]:
    """The kernel and bias of a convolution that does alone what it and the batch normalisation behind it do in use.

    w        (K, C, R, S)
    b        (K,), or None
    returns  w (K, C, R, S), b (K,)
    """
    scale = gamma / np.sqrt(var + eps)
    return w * scale[:, None, None, None], beta + (0 if b is None else b * scale) - mean * scale


# --- softmax and cross-entropy ---


def one_hot(labels: npt.ArrayLike, classes: int, dtype: npt.DTypeLike = np.float64) -> Array:
    """Labels (N,) of integers from 0 to classes - 1 as rows with a single 1: (N, classes).

    Raises ValueError for a label outside that range.
    """
    labels = np.asarray(labels)
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.size:
        raise ValueError(f"The labels of {classes} classes go from 0 to {classes - 1}, and here is a {outside[0]}.")
    return np.eye(classes, dtype=dtype)[labels]


def smooth(y: Array, epsilon: float) -> Array:
    """Label smoothing (Szegedy et al. 2016): the share epsilon of each row of y (N, C) is spread over all classes."""
    return (1 - epsilon) * y + epsilon / y.shape[-1]


def log_softmax(z: Array) -> Array:
    """Logarithms of `softmax`, finite where the probability itself is too small to be written."""
    z = z - z.max(-1, keepdims=True)  # changes nothing but that exp() cannot overflow
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z: Array) -> Array:
    """Logits (..., C) as probabilities: positive, with the sum 1 over the last axis."""
    return np.exp(log_softmax(z))


def cross_entropy(z: Array, y: Array) -> np.floating:
    """Mean cross-entropy, in nats, of logits z (N, C) against y (N, C), each row of which sums to 1: one-hot or not."""
    return -(y * log_softmax(z)).sum(-1).mean()


def cross_entropy_backward(z: Array, y: Array) -> Array:
    """The prediction minus the truth, over the number of images: (N, C)."""
    return (softmax(z) - y) / len(z)


# --- checking a gradient ---


def numerical_gradient(f: Callable[[Array], float | np.floating], x: Array, h: float = 1e-6) -> Array:
    """The gradient of f at x by central differences, with an error of the order of h².

    f        from an array of x's shape to a number
    x        float64, of any shape; restored after each step
    h        how far to go each way
    returns  of x's shape

    Raises TypeError for another dtype, in which rounding would drown the difference.
    """
    if x.dtype != np.float64:
        raise TypeError(f"Central differences need float64, and x is {x.dtype}: convert it with x.astype(np.float64).")
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        value = x[place]
        x[place] = value + h
        above = f(x)
        x[place] = value - h
        below = f(x)
        x[place] = value
        gradient[place] = (above - below) / (2 * h)
    return gradient
