"""What the methods ask for, taken from a network: activations, gradients, scores of changed images and feature maps."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any, TypedDict

import torch
from torch import nn
from torch.nn.functional import batch_norm, interpolate
from torch.utils._pytree import tree_map_only

from .layers import RESHAPES, Reshape, feature_maps, first_tensor, kind_of, near, output_of, size_of
from .methods import Method
from .tail import Tail, replaced
from .targets import Score

__all__ = ["ARGUMENTS", "OF_A_LAYER", "Evidence", "Options"]

# Every argument that has to do with one layer.
OF_A_LAYER = {"A", "dA", "w", "z_without", "z_through", "tail"}
ARGUMENTS = OF_A_LAYER | {"x", "dx", "dx_guided", "z", "biases"}


class Options(TypedDict):
    """Arguments of `explain`."""

    reshape: str | Reshape | None
    strongest: int | None
    batch_size: int
    differentiable: bool
    accelerate: bool


class Evidence:
    """One pass of the network over the images, and what the methods ask for, computed when they do.

    A method's argument is the attribute of that name, for class number t of each image and layer number l.
    """

    def __init__(
        self,
        model: nn.Module,
        images: torch.Tensor,
        layers: list[tuple[str, nn.Module]],
        score: Score,
        needs: set[str],
        options: Options,
    ):
        self.model, self.images, self.layers, self.score, self.options = model, images, layers, score, options
        self.size = size_of(images)
        self.needs = needs
        self.raw: dict[int, torch.Tensor] = {}  # layer number -> what the layer gave
        # For FullGrad: (module, output, its bias) of every module with no modules inside.
        self.parts: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
        self.incomplete = 0.0  # for FullGrad: the share of a score that its gradients miss
        # For CAM: (module, input, output) of every linear layer.
        self.linear: list[tuple[nn.Linear, torch.Tensor, torch.Tensor]] = []
        gradient = not needs.isdisjoint({"dA", "dx", "biases"}) or options["differentiable"]
        if not needs.isdisjoint({"dx", "biases"}) and not images.requires_grad:
            self.images = images = images.clone().requires_grad_()
        with torch.set_grad_enabled(gradient), ExitStack() as hooks:
            tails = not needs.isdisjoint({"z_without", "tail"})
            self.tails = [Tail(model, images[:1], module) for _, module in layers] if tails else []
            for tail in self.tails:
                hooks.enter_context(tail.recording())
            if "biases" in needs:
                parts = [m for m in model.modules() if not list(m.children())]
                for part in parts:
                    if getattr(part, "inplace", False):  # it would overwrite its input, where its bias is found
                        hooks.enter_context(replaced(part, "inplace", False))
                self._watch(hooks, parts, self._keep_part)
            if "w" in needs:
                self._watch(hooks, [m for m in model.modules() if isinstance(m, nn.Linear)], self._keep_linear)
            for l, (_, module) in enumerate(layers):
                hooks.callback(module.register_forward_hook(self._stop_at(l)).remove)
            self.output = output_of(model, images)
        for l, (name, _) in enumerate(layers):
            if l not in self.raw:
                raise ValueError(
                    f"Layer {name!r} is never run in the model's forward pass, so it has no activations. "
                    "Choose another."
                )
        self.kinds = [self._kind(l) for l in range(len(layers))]
        self.z_all = score(self.output)  # (N, T)
        self._gradients_of: tuple[int | None, list[torch.Tensor | None]] = (None, [])

    def maps(self, equation: Method) -> torch.Tensor:
        """The signed maps (N, T, h, w)."""
        T = self.z_all.shape[1]
        return torch.stack([self._fused(equation, t) for t in range(T)], 1)

    def _fused(self, equation: Method, t: int) -> torch.Tensor:
        given = [{need: getattr(self, need)(t, l) for need in self.needs} for l in range(max(1, len(self.layers)))]
        if not self.options["differentiable"]:
            given = tree_map_only(torch.Tensor, torch.detach, given)
        # The network is run as the user runs it, under autocast or not; the map is computed in full precision.
        with torch.autocast(self.images.device.type, enabled=False):
            each = [equation(**g) for g in given]
            if len(each) == 1:
                return each[0]
            finest = max((m.shape[1:] for m in each), key=lambda size: size[0] * size[1])
            peaks = [m.abs().amax((1, 2), keepdim=True) for m in each]
            each = [m / peak.where(peak > 0, torch.ones_like(peak)) for m, peak in zip(each, peaks, strict=True)]
            enlarged = [interpolate(m[:, None], finest, mode="bilinear", align_corners=False)[:, 0] for m in each]
            return torch.stack(enlarged).mean(0)

    # What methods may ask for.

    def A(self, t: int, l: int) -> torch.Tensor:
        return full(self._feature_maps(self.raw[l], l))

    def dA(self, t: int, l: int) -> torch.Tensor:
        return self._feature_maps(needed(self._gradients(t)[l], f"layer {self.layers[l][0]!r}"), l)

    def x(self, t: int, l: int) -> torch.Tensor:
        return full(self.images)

    def dx(self, t: int, l: int) -> torch.Tensor:
        return needed(self._gradients(t)[len(self.layers)], "the images")

    def z(self, t: int, l: int) -> torch.Tensor:
        return full(self.z_all[:, t])

    def w(self, t: int, l: int) -> torch.Tensor:
        """The rows of the linear layer, if it reads the mean of the feature maps and gives the logits."""
        mean = self.A(t, l).mean((2, 3))
        for module, inputs, outputs in self.linear:
            if outputs is self.output and inputs.shape == mean.shape and close(full(inputs), mean):
                if self.score.classes is None:
                    raise ValueError("CAM needs classes as targets, for it reads their weights. Give their numbers.")
                return full(module.weight)[self.score.classes[:, t]] * self.score.sign
        raise ValueError(
            f"CAM needs a network in which layer {self.layers[l][0]!r} is followed by global average pooling and one "
            "linear layer, and nothing else. This one is not: Grad-CAM needs no such head, use method='grad-cam'."
        )

    def z_without(self, t: int, l: int) -> torch.Tensor:
        return self._without[l][..., t]

    def z_through(self, t: int, l: int) -> torch.Tensor:
        return self._through[l][..., t]

    def tail(self, t: int, l: int) -> Callable[[torch.Tensor], torch.Tensor]:
        if self.kinds[l] != "maps":
            raise ValueError(
                f"The output of layer {self.layers[l][0]!r} is no (N, K, h, w), so its tail cannot be run."
            )
        dtype = self.raw[l].dtype
        return lambda X: torch.stack([self._score_of_tail(l, n, X[n].to(dtype))[:, t] for n in range(len(X))])

    def biases(self, t: int, l: int) -> list[torch.Tensor]:
        """Gradient times bias of every module. With the input's they add up to the score, or leave it incomplete."""
        gradients = self._gradients(t)[len(self.layers) + 1 :]
        parts = [(*part, g) for part, g in zip(self.parts, gradients, strict=True) if g is not None]
        terms = [(module, g * bias) for module, _, bias, g in parts]
        total = (self.dx(t, l) * self.x(t, l)).flatten(1).sum(1) + sum(term.flatten(1).sum(1) for _, term in terms)
        # Everything was rounded, so of a score that large terms leave by cancelling, a part is lost without any fault.
        rounding = sum(
            torch.finfo(y.dtype).eps * ((g * y).abs() + term.abs()).flatten(1).sum(1)
            for (_, y, _, g), (_, term) in zip(parts, terms, strict=True)
        )
        missing = ((self.z(t, l) - total).abs() - 8 * rounding) / self.z(t, l).abs()
        self.incomplete = max(self.incomplete, missing.max().item())
        return [channels_first(module, term) for module, term in terms if term.ndim == 4]

    def dx_guided(self, t: int, l: int) -> torch.Tensor:
        if self._guided is None:
            raise ValueError(
                "Guided backpropagation changes the gradient of ReLUs and their kin; this network has none."
            )
        x, scores = self._guided
        gradient = None
        if scores.requires_grad:
            (gradient,) = torch.autograd.grad(scores[:, t].sum(), x, retain_graph=True, allow_unused=True)
        return full(needed(gradient, "the images"))

    # How they are computed.

    def _stop_at(self, l: int) -> Callable[[nn.Module, object, Any], Any]:
        def hook(module: nn.Module, inputs: object, output: Any) -> Any:
            first = first_tensor(output)
            if not isinstance(first, torch.Tensor) or not first.is_floating_point():
                raise ValueError(
                    f"Layer {self.layers[l][0]!r} gives a {type(first).__name__}, not feature maps. Choose another."
                )
            # A leaf ends the gradient here, unless something before the layer is asked for its own.
            leaf = first if first.requires_grad else first.detach().requires_grad_()
            self.raw[l] = leaf
            # A clone goes on: an in-place ReLU after this layer would otherwise overwrite A itself.
            return leaf.clone() if first is output else (leaf.clone(), *output[1:])

        return hook

    @staticmethod
    def _watch(hooks: ExitStack, modules: Iterable[nn.Module], hook: Callable[[Any, Any, Any], Any]) -> None:
        for module in modules:
            hooks.callback(module.register_forward_hook(hook).remove)

    def _keep_linear(self, module: nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self.linear.append((module, inputs[0], output))

    def _keep_part(self, module: nn.Module, inputs: tuple[Any, ...], output: object) -> torch.Tensor | None:
        if isinstance(output, torch.Tensor) and output.requires_grad and len(inputs) == 1:
            bias = bias_of(module, inputs[0])
            if bias is not None:
                self.parts.append((module, output, bias))
                return output.clone()
        return None

    def _kind(self, l: int) -> str | Reshape:
        reshape = self.options["reshape"]
        if reshape is not None and not callable(reshape) and reshape not in RESHAPES:
            raise ValueError(f"There is no reshape {reshape!r}. {near(reshape, RESHAPES)}")
        return reshape or kind_of(self.layers[l][1], self.raw[l], self.size) or "maps"

    def _feature_maps(self, X: torch.Tensor, l: int) -> torch.Tensor:
        return feature_maps(X, self.kinds[l], self.layers[l][0], self.size)

    def _gradients(self, t: int) -> list[torch.Tensor | None]:
        """The gradients of the scores of class t: of each layer's output, of the images, of each part's output."""
        if self._gradients_of[0] != t:
            wanted = [self.raw[l] for l in range(len(self.layers))]
            if not self.needs.isdisjoint({"dx", "biases"}):
                wanted += [self.images, *(output for _, output, _ in self.parts)]
            # In half precision the small gradients of an average vanish, so the score is scaled up before.
            scale = 1024 if self.z_all.dtype == torch.float16 else 1
            score = self.z_all[:, t].sum() * scale
            more = self.options["differentiable"]
            gradients: Sequence[torch.Tensor | None] = [None] * len(wanted)
            if score.requires_grad:
                retain = more or t + 1 < self.z_all.shape[1]
                gradients = torch.autograd.grad(
                    score, wanted, retain_graph=retain, create_graph=more, allow_unused=True
                )
            self._gradients_of = (t, [g if g is None else full(g) / scale for g in gradients])
        return self._gradients_of[1]

    @cached_property
    def _guided(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        x = self.images.detach().clone().requires_grad_()
        with torch.enable_grad(), GuidedActivations() as guided:
            scores = self.score(self.model(x))
        return (x, scores) if guided.met else None

    def _strongest(self, l: int) -> torch.Tensor:
        """(N, K) bool, the feature maps that are weighed one by one."""
        A = self.A(0, l)
        strength = A.flatten(2).norm(dim=2)
        k = self.options["strongest"]
        if k is None or k >= A.shape[1]:
            return torch.ones_like(strength, dtype=torch.bool)
        return torch.zeros_like(strength, dtype=torch.bool).scatter_(1, strength.topk(k, 1).indices, True)

    @cached_property
    def _without(self) -> list[torch.Tensor]:
        """For each layer (N, K, T): the scores with feature map k set to zero. It is its own tail that is run."""
        tables = []
        for l in range(len(self.layers)):
            if callable(self.kinds[l]):
                raise ValueError("With a reshape of your own, it is not known which axis holds the feature maps.")
            X, axis = self.raw[l], 1 if self.kinds[l] == "maps" else -1
            N, K = X.shape[0], X.shape[axis]
            changes = self._strongest(l) & self.A(0, l).flatten(2).any(2)  # without a map of zeros nothing changes
            table = full(self.z_all.detach())[:, None].repeat(1, K, 1)
            for n in range(N):
                for ks in changes[n].nonzero()[:, 0].split(64):
                    without = X[n].expand(len(ks), *X.shape[1:]).clone()
                    without.movedim(axis, 1)[torch.arange(len(ks)), ks] = 0
                    table[n, ks] = self._score_of_tail(l, n, without)
            tables.append(table)
        return tables

    def _score_of_tail(self, l: int, n: int, X: torch.Tensor) -> torch.Tensor:
        """Scores (M, T) of image n with X (M, ...) in place of what layer l gave."""
        with torch.no_grad():
            if l not in self._ways:
                self._ways[l] = self._way(l)
            return full(self.score(self.tails[l](self.images[n : n + 1], n, X, self._ways[l]), n))

    @cached_property
    def _ways(self) -> dict[int, str]:
        return {}

    def _way(self, l: int) -> str:
        """The cheapest way to run the tail that gives, for what the layer gave, the score that is known."""
        for way in ("narrow", "wide", "whole"):
            try:
                output = self.tails[l](
                    self.images[:1], 0, self.raw[l][:1].expand(2, *self.raw[l].shape[1:]).clone(), way
                )
                again = full(self.score(output, 0))
                if again.shape[0] == 2 and close(again, full(self.z_all[:1])):
                    return way
            except (RuntimeError, ValueError, IndexError):  # a concatenation, for instance, does not broadcast
                continue
        raise ValueError(
            f"The network after layer {self.layers[l][0]!r} cannot be run by itself: with the same feature maps it "
            "gives another score. A function as target must score each row of the output by itself."
        )

    @cached_property
    def _through(self) -> list[torch.Tensor]:
        """For each layer (N, K, T): the scores of the images seen through each feature map."""
        x = self.images.detach()
        tables = []
        for l in range(len(self.layers)):
            A = self.A(0, l).detach()
            low, high = A.amin((2, 3), keepdim=True), A.amax((2, 3), keepdim=True)
            weighed = self._strongest(l)
            table = full(self.z_all.detach())[:, None].repeat(1, A.shape[1], 1)
            table[~weighed] = -torch.inf
            for n in range(len(x)):
                flat = (high == low)[n, :, 0, 0]  # all of these show the same black picture
                todo = weighed[n] & ~flat
                for ks in todo.nonzero()[:, 0].split(self.options["batch_size"]):
                    table[n, ks] = self._score_through(A[n, ks], n)
                if (weighed[n] & flat).any():
                    table[n, weighed[n] & flat] = self._score_through(torch.zeros_like(A[n, :1]), n)
            tables.append(table)
        return tables

    def _score_through(self, masks: torch.Tensor, n: int) -> torch.Tensor:
        """The scores of image n seen through the maps (M, h, w), each first enlarged, then scaled to [0, 1]."""
        M, size = len(masks), self.options["batch_size"]
        if self.options["accelerate"]:  # compiled for one size of batch: the first mask fills a smaller one up
            masks = torch.cat([masks, masks[:1].expand(size - M, *masks.shape[1:])])
        masks = interpolate(masks[:, None], self.size, mode="bilinear", align_corners=False)
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        masks = ((masks - low) / torch.where(high > low, high - low, 1)).to(self.images.dtype)
        with torch.no_grad():
            seen = (self.images[n] * masks).contiguous(memory_format=torch.channels_last)  # faster in convolutions
            return full(self.score(self.model(seen), n))[:M]


NAMES = "relu relu_ relu6 hardtanh hardtanh_ leaky_relu leaky_relu_ prelu elu elu_ celu selu gelu silu hardswish"
ACTIVATIONS = {
    getattr(home, name)
    for home in (torch, torch.Tensor, nn.functional)
    for name in NAMES.split()
    if hasattr(home, name)
}
# The same, as networks of torch.export and TorchScript call them.
ACTIVATIONS |= {getattr(torch.ops.aten, f.__name__).default for f in ACTIVATIONS if hasattr(torch.ops.aten, f.__name__)}


class GuidedActivations(torch.overrides.TorchFunctionMode):
    """Guided backpropagation (Springenberg et al. 2015): behind each activation function, negative gradients stop."""

    def __init__(self) -> None:
        super().__init__()
        self.met = 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in ACTIVATIONS and output.requires_grad:
            self.met += 1
            output.register_hook(lambda gradient: gradient.clamp(min=0))
        return output


# A module f of these has f(u) = f'(u) u: it adds no bias.
HOMOGENEOUS: tuple[type[nn.Module], ...]
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.MaxPool2d)
HOMOGENEOUS += (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d)


def bias_of(module: nn.Module, u: torch.Tensor) -> torch.Tensor | None:
    """What the module adds to a linear function of its input, at u: f(u) - f'(u) u, shaped like its output.

    Of a convolution it is its bias; of an activation function that is no straight line, the implicit bias of the
    FullGrad paper. None where it is zero.
    """
    if isinstance(module, HOMOGENEOUS):
        return None
    with torch.no_grad():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module.bias is None:
                return None
            return module.bias.view(-1, 1, 1) if isinstance(module, nn.Conv2d) else module.bias
        if isinstance(module, nn.BatchNorm2d) and not module.training and module.affine:
            mean, var = module.running_mean, module.running_var
            if mean is not None and var is not None:
                return (module.bias - module.weight * mean / (var + module.eps).sqrt()).view(-1, 1, 1)
        u, f = u.detach(), module.forward
        if isinstance(module, nn.BatchNorm2d) and module.training:  # its forward would count the batch once more

            def f(v: torch.Tensor) -> torch.Tensor:
                return batch_norm(v, None, None, module.weight, module.bias, training=True, eps=module.eps)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own, of torch.jit, at the first jvp
            y, slope, *_ = torch.func.jvp(lambda v: f(v.clone()), (u,), (u,))
        rounding = 100 * torch.finfo(y.dtype).eps * y.abs().max()  # FullGrad would scale that up to [0, 1]
        return y - slope if ((y - slope).abs() > rounding).any() else None


def needed(gradient: torch.Tensor | None, of: str) -> torch.Tensor:
    """The gradient of the score. Raises ValueError where there is none, since autograd knows of no way between."""
    if gradient is None:
        other = "Choose another layer, or a score" if of != "the images" else "Choose a score"
        raise ValueError(
            f"The score does not depend on {of} in a way that has a gradient. {other} that is computed from the "
            "model's output without detaching it."
        )
    return gradient


def channels_first(module: nn.Module, X: torch.Tensor) -> torch.Tensor:
    return X.permute(0, 3, 1, 2) if type(module) in (nn.Linear, nn.LayerNorm) else X


def full(X: torch.Tensor) -> torch.Tensor:
    """In float32 at least: sums over a map are not for half precision."""
    return X.float() if X.dtype in (torch.float16, torch.bfloat16) else X


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    atol = 1e-3 * b.abs().nan_to_num(0, 0, 0).max().item()
    return torch.allclose(a, b.expand_as(a), rtol=1e-2, atol=atol, equal_nan=True)
