"""Class activation maps behind one call, `explain`.

A method is a function from the activations A of a layer and their gradients dA to one signed map an image, written like
its equation. Everything else here finds the layer, runs the network and leaves it as it was.
"""

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn
from torch.nn.functional import interpolate

__all__ = ["METHODS", "Explanation", "explain", "grad_cam"]


def grad_cam(A, dA):
    """Grad-CAM (Selvaraju et al. 2017, eqs. 1 and 2).

    A   (N, K, h, w)   feature maps of the layer
    dA  (N, K, h, w)   gradient of each image's class score with respect to A
    returns (N, h, w)  the signed map; the caller applies the ReLU
    """
    alpha = dA.mean((2, 3))  # eq. 1: one weight a feature map
    return torch.einsum("nk,nkhw->nhw", alpha, A)  # eq. 2


METHODS = {"grad-cam": grad_cam}


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns. Tensors are detached and on the model's device.

    maps     (N, h, w) float, >= 0, at the layer's resolution
    signed   (N, h, w) float, the same before the ReLU: negative where the evidence is against the class
    targets  (N,) int64, the class that each map explains
    logits   (N, classes) float, the model's output for the images
    layer    the dotted name of the layer that was used
    method   the name of the method that was used
    size     (H, W) of the images
    """

    maps: torch.Tensor
    signed: torch.Tensor
    targets: torch.Tensor
    logits: torch.Tensor
    layer: str
    method: str
    size: tuple[int, int]

    def heatmaps(self, normalize: str | None = "image") -> torch.Tensor:
        """The maps at the images' resolution, (N, H, W), enlarged bilinearly with pixel centres kept in place.

        normalize  "image" divides each map by its own largest value, "batch" all by the largest of all, None
                   by nothing. The first two give values in [0, 1]; zero stays zero.

        Warns of maps that are zero everywhere, which no normalisation can make visible.
        """
        if normalize not in ("image", "batch", None):
            raise ValueError(f'normalize must be "image", "batch" or None, not {normalize!r}.')
        empty = [i for i, largest in enumerate(self.maps.flatten(1).amax(1).tolist()) if largest == 0]
        if empty:
            warnings.warn(
                f"The maps of images {empty} are zero everywhere: {self.layer} holds no evidence for their classes. "
                "Look at .signed, or choose another layer.",
                stacklevel=2,
            )
        heat = interpolate(self.maps[:, None], self.size, mode="bilinear", align_corners=False)[:, 0]
        if normalize is None:
            return heat
        largest = heat.amax((1, 2), keepdim=True) if normalize == "image" else heat.amax()
        return heat / largest.where(largest > 0, torch.ones_like(largest))


def explain(
    model: nn.Module,
    images: torch.Tensor,
    *,
    layer: str | nn.Module | None = None,
    targets: int | str | Sequence | torch.Tensor | None = None,
    method: str = "grad-cam",
) -> Explanation:
    """Maps of where a network found the evidence for a class.

    model    any network that maps images to logits (N, classes). It is run in evaluation mode and left as it was: no
             hooks, same mode, same `requires_grad`, same `.grad`, also after an exception.
    images   (N, C, H, W) float, prepared as the model expects them, on the model's device
    layer    a module of the model or its dotted name; None takes the last one whose output still has a height and a
             width and is not a pooling's
    targets  the class to explain: an int or a class name for all images, or one for each; None takes the predicted
             ones. Names are looked up in `model.classes`.
    method   a name in `METHODS`

    Raises ValueError for images, a layer, targets or a method that do not fit; the message says what would.
    """
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}. {_near(method, METHODS)}")
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point():
        what = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(
            f"images must be a float tensor (N, C, H, W), not {what}. For a single image, pass image[None]."
        )
    # A tensor made under inference_mode may not enter a graph; its clone may.
    with torch.inference_mode(False), torch.enable_grad(), _evaluating(model):
        images = images.clone() if images.is_inference() else images.detach()
        name, module = _find_layer(model, images, layer)
        logits, A = _run(model, images, name, module)
        classes = _class_indices(targets, logits, getattr(model, "classes", None))
        scores = logits.gather(1, classes[:, None]).sum()  # each score depends on its own image alone
        (dA,) = torch.autograd.grad(scores, A)
        signed = METHODS[method](A.detach(), dA)
    return Explanation(signed.clamp(min=0), signed, classes, logits.detach(), name, method, tuple(images.shape[2:]))


def _run(model: nn.Module, images: torch.Tensor, name: str, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits, and the layer's output as a leaf of their graph; what comes before the layer is not recorded."""
    captured = []

    def hook(module, inputs, output):
        # A clone goes on: an in-place ReLU after this layer would otherwise overwrite A itself.
        leaf = output.detach().requires_grad_()
        captured.append(leaf)
        return leaf.clone()

    handle = module.register_forward_hook(hook)
    try:
        logits = model(images)
    finally:
        handle.remove()
    if not captured:
        raise ValueError(
            f"Layer {name!r} is never run in the model's forward pass, so it has no activations. Choose another."
        )
    A = captured[-1]  # of a layer that is used several times, the last use
    if A.ndim != 4:
        raise ValueError(
            f"Layer {name!r} gives {tuple(A.shape)}, not feature maps (N, K, h, w). Choose an earlier layer."
        )
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"The model must return logits (N, classes), not {what}. Wrap it in one that does.")
    return logits, A


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _find_layer(model: nn.Module, images: torch.Tensor, layer: str | nn.Module | None) -> tuple[str, nn.Module]:
    modules = dict(model.named_modules())
    if layer is None:
        name = _last_spatial_layer(model, images)
    elif isinstance(layer, str):
        name = layer
        if name not in modules:
            raise ValueError(f"The model has no layer {name!r}. {_near(name, [n for n in modules if n])}")
    else:
        name = next((name for name, module in modules.items() if module is layer), None)
        if name is None:
            raise ValueError(f"This {type(layer).__name__} is not a layer of the model. See model.named_modules().")
    return name, modules[name]


POOLING = tuple(
    getattr(nn, f"{kind}Pool2d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "FractionalMax", "LP")
)


def _last_spatial_layer(model: nn.Module, images: torch.Tensor) -> str:
    """The last module, in the order of a forward pass, whose output has a height and a width and is no pooling's."""
    found, pooled = [], []

    def tracer(name):
        def hook(module, inputs, output):
            if not isinstance(output, torch.Tensor) or output.ndim != 4 or output.shape[2] * output.shape[3] == 1:
                return
            if isinstance(module, POOLING):
                pooled.append(output)
            # A container that ends in a pooling gives that pooling's output.
            elif not any(output is p for p in pooled):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(tracer(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError("No layer of this model has an output (N, K, h, w), so there is no map to draw. Name a layer.")
    return found[-1]


def _class_indices(targets, logits: torch.Tensor, names: Sequence[str] | None) -> torch.Tensor:
    """The class each image's map explains, (N,) int64 on the logits' device."""
    N, C = logits.shape
    if targets is None:
        return logits.argmax(1).detach()
    if isinstance(targets, torch.Tensor):
        targets = targets.tolist()
    if isinstance(targets, Integral | str):
        targets = [targets] * N
    targets = list(targets)
    if len(targets) != N:
        raise ValueError(f"There are {len(targets)} targets for {N} images. Give one for each, or one for all.")
    indices = [_class_index(t, names) if isinstance(t, str) else t for t in targets]
    for i in indices:
        if not isinstance(i, Integral):
            raise ValueError(f"A target is the number of a class or its name, not {i!r}.")
        if not 0 <= i < C:
            raise ValueError(f"Class {i} does not exist: the model has {C} classes, 0 to {C - 1}.")
    return torch.tensor(indices, dtype=torch.int64, device=logits.device)


def _class_index(name: str, names: Sequence[str] | None) -> int:
    if names is None:
        raise ValueError(f"The model does not name its classes, so {name!r} cannot be looked up. Set model.classes.")
    if name not in names:
        raise ValueError(f"There is no class {name!r}. {_near(name, names)}")
    return list(names).index(name)


def _near(name: str, names) -> str:
    near = difflib.get_close_matches(name, list(names), n=5) or list(names)[:10]
    return f"Did you mean: {', '.join(near)}?"
