"""A network and its Grad-CAM as one ONNX file, for where there is no PyTorch: a browser, a telephone, another language.

ONNX has no gradients. So the network and the gradient of its end are traced together, as the plain sequence of tensor
operations that they are, and the few operations of a backward pass that ONNX lacks are written in those that it has.
"""

import copy
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from .accelerate import accelerated
from .architectures import Preparation
from .cam import left_as_it_was
from .layers import list_layers
from .methods import grad_cam
from .records import replacing

__all__ = ["export_explainer"]

aten = torch.ops.aten


def export_explainer(model: nn.Module, file: Path | str, *, layers: Sequence[str]) -> Path:
    """Write one ONNX file that classifies a picture and explains any class of it by Grad-CAM, at several layers.

    model   with logits (1, C), and a `prepare` whose `size` is the side of its pictures
    file    is there whole or not at all
    layers  dotted names of L layers with feature maps (1, K, h, w), as `list_layers` gives them

    Inputs of the graph: `picture`, (size, size, 3) uint8 RGB, which it normalises itself; `class`, (1,) int64, the
    class to explain, or -1 for the one that is predicted. Outputs: `logits` (1, C) float32, and for each layer, its
    number i counted from 0: `map_i` (1, h, w), Grad-CAM with its ReLU; `weights_i` (1, K), the α of its feature maps;
    and these, `features_i` (1, K, h, w).

    Raises ValueError for a model without a preparation, for no layers, for layers that it does not have or that have no
    map, and for operations that cannot be exported.
    """
    prepare = getattr(model, "prepare", None)
    if not isinstance(prepare, Preparation):
        raise ValueError(
            "The model has no .prepare, which says how large its pictures are and how they are normalised."
        )
    if not layers:
        raise ValueError("Name at least one layer to explain, of those that list_layers gives.")
    picture, target = torch.zeros(prepare.size, prepare.size, 3, dtype=torch.uint8), torch.tensor([-1])
    example = traceable(picture, prepare)
    with left_as_it_was(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the tracer finds old in its own libraries
        known = [layer.name for layer in list_layers(model, example)]
        if wrong := [name for name in layers if name not in known]:
            raise ValueError(f"The model has no layer {wrong[0]!r} with feature maps. It has: {', '.join(known)}.")
        folded = copy.deepcopy(accelerated(model, list(layers), example, compiled=False))
        # ONNX knows no other.
        network = folded.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # its types forgot this
        traced = make_fx(explainer(network, prepare, layers), BACKWARD)(picture, target)
        names = [f"{output}_{i}" for i in range(len(layers)) for output in ("map", "weights", "features")]
        try:
            program = torch.onnx.export(
                traced, (picture, target), input_names=["picture", "class"], output_names=["logits", *names],
                opset_version=18, dynamo=True, verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            lacking = set(re.findall(r"aten\.\w+", str(error))) or {"an operation"}
            raise ValueError(f"This model cannot be exported: ONNX lacks {', '.join(sorted(lacking))}.") from error
    with replacing(file := Path(file)) as scratch:
        assert program  # with dynamo=True there is one
        program.save(scratch)
    return file


def traceable(picture: torch.Tensor, prepare: Preparation) -> torch.Tensor:
    """A picture (H, W, 3) uint8 as the network takes it, (1, 3, H, W) float32.

    `batches.normalised` gives the same in place and channels last, of which ONNX knows neither.
    """
    x = picture.float().permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (prepare.mean, prepare.std))
    return (x - mean) / std


def explainer(
    network: nn.Module, prepare: Preparation, layers: Sequence[str]
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]:
    """The function of (picture, target) that becomes the graph: a forward pass, and back from one logit."""

    def explain(picture: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        A: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, object, torch.Tensor], torch.Tensor]:
            def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
                # The first of the layers begins the part that is differentiated; the others lie within it.
                A[name] = output if output.requires_grad else output.requires_grad_()
                return A[name]

            return hook

        handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
        try:
            with torch.enable_grad():
                logits = network(traceable(picture, prepare))
                target = torch.where(target < 0, logits.argmax(1), target)
                # A product, because ONNX cannot index by a number that it learns at run time within a gradient.
                score = (logits * (torch.arange(logits.shape[1]) == target[:, None])).sum()
                gradients = torch.autograd.grad(score, [A[name] for name in layers])
        finally:
            for handle in handles:
                handle.remove()
        outputs = [logits.detach()]
        for name, dA in zip(layers, gradients, strict=True):
            features = A[name].detach()
            map = grad_cam(features, dA).relu()  # type: ignore[no-untyped-call]  # an equation of `methods`
            outputs += [map, dA.mean((2, 3)), features]
        return tuple(outputs)

    return explain


# --- the backward pass in operations that ONNX has ---


def convolution_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    _: object,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[torch.Tensor, None, None]:
    """The gradient at the input: a transposed convolution, padded to the input's size."""
    if transposed or mask[1] or mask[2]:
        raise ValueError("Only the gradient of a plain convolution with respect to its input is exported.")
    rest = [
        x.shape[2 + d] - (stride[d] * (grad.shape[2 + d] - 1) + dilation[d] * (w.shape[2 + d] - 1) + 1 - 2 * padding[d])
        for d in range(2)
    ]
    return aten.convolution(grad, w, None, stride, padding, dilation, True, rest, groups), None, None


def max_pool_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: torch.Tensor,
) -> torch.Tensor:
    """Each gradient goes to the place that its maximum came from."""
    zeros = torch.zeros_like(x).flatten(2)
    return zeros.scatter_add(2, indices.flatten(2), grad.flatten(2)).view(x.shape)


def average_pool_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> torch.Tensor:
    """Each gradient spreads evenly over its window: averaging is a convolution of each map with equal weights."""
    if ceil_mode or divisor or (any(padding) and not count_include_pad):
        raise ValueError("Only average pooling whose windows all have the same number of pixels is exported.")
    w = torch.ones(x.shape[1], 1, *size) / (size[0] * size[1])
    only_input = True, False, False
    return convolution_backward(
        grad, x, w, None, stride or size, padding, [1, 1], False, [0, 0], x.shape[1], only_input
    )[0]


def relu_backward(grad: torch.Tensor, y: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.where(y <= threshold, 0.0, grad)


def relu6_backward(grad: torch.Tensor, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return torch.where((x <= low) | (x >= high), 0.0, grad)


BACKWARD = {
    **core_aten_decompositions(),
    aten.convolution_backward.default: convolution_backward,
    aten.avg_pool2d_backward.default: average_pool_backward,
    aten.max_pool2d_with_indices_backward.default: max_pool_backward,
    aten.threshold_backward.default: relu_backward,
    aten.hardtanh_backward.default: relu6_backward,
}
