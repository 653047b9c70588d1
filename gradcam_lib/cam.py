"""Class activation maps behind one call, `explain`.

The methods are equations, in `methods`. Everything here finds what they ask for: it runs the network once, stops the
gradient at the layer, and leaves the network as it was.
"""

import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate, relu
from torch.utils._pytree import tree_map_only

from .accelerate import accelerated, prepared
from .evidence import ARGUMENTS, OF_A_LAYER, Evidence, Options, full
from .faults import enough_memory
from .layers import Reshape, find_layer, near, one_at_a_time, output_of, size_of
from .methods import METHODS, Method
from .targets import Score, Targets

__all__ = ["Explanation", "explain"]

LESS_MEMORY = "explain fewer than {} images at once (a DataLoader's batch_size; of Score-CAM also batch_size= here)"


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns. Where several classes were asked for, T maps an image: (N, T, ...) for (N, ...).

    maps     (N, h, w) float, >= 0, at the layer's resolution, on the scale of the method: nothing is normalised
    signed   (N, h, w) float, the same before the ReLU: negative where the evidence is against the class
    targets  (N,) int64, the class that each map explains; None where a function gave the scores
    scores   (N,) float, the score that each map explains: the logit of the class
    logits   what the model returned: (N, classes) float, or whatever else it is
    layer    the dotted name of the layer that was used; of several, joined by " + "
    method   the name of the method that was used
    size     (H, W) of the images

    Tensors are on the model's device and detached, unless `explain` was asked for differentiable maps.
    """

    maps: torch.Tensor
    signed: torch.Tensor
    targets: torch.Tensor | None
    scores: torch.Tensor
    logits: object
    layer: str
    method: str
    size: tuple[int, int]

    def heatmaps(self, normalize: str | None = "image") -> torch.Tensor:
        """The maps at the images' resolution, (N, H, W), enlarged bilinearly with pixel centres kept in place.

        normalize  "image" divides each map by its own largest value, "batch" all by the largest of all, None
                   by nothing. The first two give values in [0, 1]; zero stays zero.

        Warns of maps that are zero everywhere, which no normalisation can make visible, and of maps that hold NaN.
        """
        if normalize not in ("image", "batch", None):
            raise ValueError(f'normalize must be "image", "batch" or None, not {normalize!r}.')
        largest = self.maps.flatten(-2).amax(-1)
        if empty := _numbers(largest == 0):
            warnings.warn(
                f"The maps of images {empty} are zero everywhere: {self.layer} holds no evidence for their classes. "
                "Look at .signed, or choose another layer.",
                stacklevel=2,
            )
        if broken := _numbers(~largest.isfinite()):
            warnings.warn(
                f"The maps of images {broken} hold NaN or infinity and show nothing: look for these in the images, in "
                ".logits, and in the model's weights.",
                stacklevel=2,
            )
        maps = self.maps.flatten(0, -3)[:, None]
        heat = interpolate(maps, self.size, mode="bilinear", align_corners=False)
        heat = heat.reshape(*self.maps.shape[:-2], *self.size)
        if normalize is None:
            return heat
        return divided_by_largest(heat, (-2, -1) if normalize == "image" else ())


def _numbers(which: torch.Tensor) -> list[int | tuple[int, ...]]:
    """Of those that are true: i, or (i, t) where there are several classes an image."""
    return [i[0] if len(i) == 1 else tuple(i) for i in which.nonzero().tolist()]


def divided_by_largest(maps: torch.Tensor, dim: tuple[int, ...] = (-2, -1)) -> torch.Tensor:
    """Maps (..., h, w), each divided by its largest magnitude, or all by that of all; zeros stay zeros."""
    largest = maps.abs().amax(dim, keepdim=True)
    return maps / largest.where(largest > 0, torch.ones_like(largest))


def explain(
    model: nn.Module,
    images: torch.Tensor,
    *,
    layer: str | int | nn.Module | Sequence[str | int | nn.Module] | None = None,
    targets: Targets = None,
    method: str | Method = "grad-cam",
    reshape: str | Reshape | None = None,
    counterfactual: bool = False,
    smooth: int = 0,
    noise: float = 0.15,
    strongest: int | None = None,
    batch_size: int = 32,
    differentiable: bool = False,
    eval_mode: bool = True,
    accelerate: bool = False,
) -> Explanation:
    """Maps of where a network found the evidence for a class.

    model       any network. It is run in evaluation mode and left as it was: no hooks, same mode, same
                `requires_grad`, same `.grad`, also after an exception.
    images      (N, C, H, W) float, prepared as the model expects them, on the model's device
    layer       a module of the model, its dotted name, or a negative number that counts from the end the layers
                with a map (`list_layers`); None takes the last of them. A list of these gives one map: each
                layer's is divided by its largest magnitude and enlarged to the finest, and the mean is taken. Of a
                layer that is used several times, the last use counts.
    targets     the class to explain: an int or a class name for all images, or one for each (a list, or a tensor
                (N,)); a list of lists or a tensor (N, T) for T classes an image, from one forward pass; or a
                function from what the model returns to scores (N,) or (N, T), each from its own image alone. None
                takes the predicted classes. Names are looked up in `model.classes`.
    method      a name in `METHODS`, or a function like those in it
    reshape     how the layer's output becomes feature maps (N, K, h, w), where it is none: "tokens" (N, T, K) as of a
                vision transformer, "channels-last" (N, h, w, K) as of Swin, or a function that picks and rearranges.
                None finds out which of these it is.
    counterfactual  explain the negated score: the evidence against the class (Selvaraju et al. 2017, sec. 3.3)
    smooth      average the signed map over this many noisy copies of each image (SmoothGrad, Smilkov et al. 2017)
    noise       the standard deviation of that noise, as a share of each image's range of values. It is drawn from
                PyTorch's global generator.
    strongest   for Score-CAM and Ablation-CAM: weigh only this many feature maps, the ones with the largest
                magnitude; much faster, and no longer exact
    batch_size  how many masked images Score-CAM runs at once
    differentiable  keep the graph, so that a loss on the maps can be trained
    eval_mode   False runs every module in the mode that it is in; running statistics are put back afterwards
    accelerate  run a fast copy of the model: batch norms folded, channels_last, and what lies before the layer
                compiled for this shape of batch, which takes tens of seconds at the first call. On a CPU the maps
                agree to 1e-4; on a GPU, where it computes in bfloat16, to 1e-2.

    Several threads may explain one model: each waits for its turn. But do not run or train it in the meantime.

    Raises ValueError for a model, images, a layer, targets or a method that do not fit; the message says what would.
    Raises torch.OutOfMemoryError, with a hint, where the images are too many for the memory.
    """
    name, equation, needs = _find_method(method)
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point():
        what = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(
            f"images must be a float tensor (N, C, H, W), not {what}. For a single image, pass image[None]."
        )
    if layer is not None and needs.isdisjoint(OF_A_LAYER):
        raise ValueError(f"{name} looks at the whole network and not at one layer: leave out layer=.")
    if counterfactual and needs == {"A"}:
        raise ValueError(f"{name} does not look at the class, so it has no counterfactual. Choose another method.")
    if differentiable and not needs <= {"A", "dA", "w", "z", "x", "dx"}:
        raise ValueError(f"{name} runs the network many times and has no differentiable map. Choose another method.")
    if accelerate and (differentiable or not eval_mode):
        raise ValueError("The fast copy is for evaluation alone: leave out accelerate=, differentiable= or eval_mode=.")
    if strongest is not None and needs.isdisjoint({"z_without", "z_through"}):
        raise ValueError(f"{name} does not weigh its feature maps one by one: leave out strongest=.")
    model = unwrapped(model)
    with ExitStack() as stack:
        stack.enter_context(enough_memory(LESS_MEMORY.format(len(images))))
        # A tensor made under inference_mode may not enter a graph; its clone may.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if not accelerate:
            stack.enter_context(_uncompiled())
        stack.enter_context(left_as_it_was(model, eval_mode, frozen=not differentiable))
        if images.is_inference():
            images = images.clone()
        if not differentiable:
            images = images.detach()
        layers: list[tuple[str, nn.Module]] = []
        if not needs.isdisjoint(OF_A_LAYER):
            each = layer if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
            layers = [find_layer(model, images, one) for one in each]
        names = getattr(model, "classes", None)
        if accelerate:
            # A compiled stage has no gradient, so where one is asked of the images, nothing is compiled.
            fast = accelerated(
                model, [n for n, _ in layers], images, compiled=needs <= OF_A_LAYER | {"z"} and bool(layers)
            )
            layers = [(n, fast.get_submodule(n)) for n, _ in layers]
            model, images = fast, prepared(images, fast)
            if images.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()  # the graphs may use the memory of the last call's again
        score = Score(targets, len(images), names, counterfactual)
        options = Options(
            reshape=reshape,
            strongest=strongest,
            batch_size=batch_size,
            differentiable=differentiable,
            accelerate=accelerate,
        )
        if smooth:
            with torch.no_grad():
                output = output_of(model, images)
                scores = score(output)
            spread = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
            signed = torch.zeros((), device=images.device)
            for _ in range(smooth):
                noisy = images + spread * torch.randn_like(images)
                signed = signed + Evidence(model, noisy, layers, score, needs, options).maps(equation) / smooth
        else:
            evidence = Evidence(model, images, layers, score, needs, options)
            signed, output, scores = evidence.maps(equation), evidence.output, evidence.z_all
            if evidence.incomplete > 0.01:
                warnings.warn(
                    f"FullGrad is not complete for this network: its gradients miss {evidence.incomplete:.0%} of a "
                    "score, because activations are multiplied or normalised outside any module. Mind that.",
                    stacklevel=2,
                )
        if accelerate:
            scores, output = full(scores), tree_map_only(torch.Tensor, full, output)
        classes = score.classes
        if counterfactual:
            scores = -scores
        if score.flat:
            signed, scores, classes = signed[:, 0], scores[:, 0], None if classes is None else classes[:, 0]
        if not differentiable:
            scores, output = scores.detach(), tree_map_only(torch.Tensor, torch.detach, output)
    where = " + ".join(name for name, _ in layers) or "the whole network"
    return Explanation(relu(signed), signed, classes, scores, output, where, name, size_of(images))


def _find_method(method: str | Method) -> tuple[str, Method, set[str]]:
    """Its name, its equation, and the names of what it asks for."""
    if callable(method):
        name, equation = getattr(method, "__name__", type(method).__name__), method
    elif method in METHODS:
        name, equation = method, METHODS[method]
    else:
        raise ValueError(f"There is no method {method!r}. {near(str(method), METHODS)}")
    needs = set(inspect.signature(equation).parameters)
    if not needs or not needs <= ARGUMENTS:
        raise ValueError(
            f"Method {name} asks for {', '.join(sorted(needs - ARGUMENTS)) or 'nothing'}. "
            f"A method may ask for: {', '.join(sorted(ARGUMENTS))}."
        )
    return name, equation, needs


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what trains it on several devices or compiles it: there hooks are heard.

    Raises ValueError for what is no network.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"A network is needed, a torch.nn.Module, not {type(model).__name__}. Weights alone are none: build the "
            "network, and give them to its load_state_dict."
        )
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule":
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _uncompiled() -> AbstractContextManager[None]:
    """Run as written what torch.compile has compiled; nothing has been where its machinery was never loaded."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def left_as_it_was(model: nn.Module, eval_mode: bool = True, frozen: bool = False) -> Iterator[None]:
    """Evaluation mode and frozen parameters, and afterwards each module's and parameter's own state again.

    Other threads that want this of the same model wait until then.
    """
    with one_at_a_time(model):
        modes = [(module, module.training) for module in model.modules()]
        switched = eval_mode and any(training for _, training in modes)
        trained = [p for p in model.parameters() if p.requires_grad] if frozen else []
        buffers = [] if eval_mode else [(b, b.clone()) for b in model.buffers()]
        try:
            if switched:
                model.eval()
            for p in trained:
                p.requires_grad_(False)  # a frozen parameter keeps nothing for its gradient
            yield
        finally:
            for module, mode in modes if switched else []:
                module.training = mode
            for p in trained:
                p.requires_grad_()
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
