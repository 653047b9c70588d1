"""Every CAM method computed from its paper's definition, in float64, without any of the library's machinery.

Slow and plain on purpose: what the library gives is held against this. And the networks to try it on.
"""

from copy import deepcopy
from functools import cache, cached_property
from unittest import mock

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional

from gradcam_lib.architectures import build_model

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid)
LINEAR = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity, nn.Dropout)  # add no bias
LINEAR += (torchvision.ops.StochasticDepth, torchvision.ops.Permute)


class Definitions:
    """The methods of one network, layer and class an image: `of(method)` is the signed map, (N, h, w) float64.

    model    any network in evaluation mode; of one that is not in float64, a copy is used that is
    layer    the dotted name of the layer
    targets  a class for each image, or a function from the model's output to one score a row
    form     how the layer's output is laid out: "maps" (N, K, h, w), "tokens" (N, T, K), "channels-last" (N, h, w, K)
    sign     -1 for the evidence against the class
    """

    def __init__(self, model, images, layer, targets, form="maps", sign=1):
        self.model = model if next(model.parameters()).dtype == torch.float64 else in_float64(model)
        self.layer = dict(self.model.named_modules())[layer]
        self.images, self.targets, self.form, self.sign = images.double(), targets, form, sign
        self.known = {}

    def of(self, method):
        if method not in self.known:
            self.known[method] = getattr(self, method.replace("++", "-plus-plus").replace("-", "_"))().detach()
        return self.known[method]

    # What the definitions speak of.

    def score(self, output, images):
        """The scores of the images with these numbers, one a row of the output."""
        if callable(self.targets):
            return self.sign * self.targets(output)
        return self.sign * output[range(len(output)), [self.targets[n] for n in images]]

    def run(self, images, change=lambda X: X):
        """The model's output, and what the layer gave in its last use, with `change` made to it on the way."""
        seen = []

        def copy_in_and_out(module, inputs, output):
            # What is looked at and what goes on are copies: an in-place operation can spoil neither.
            seen.append(change((output[0] if isinstance(output, tuple) else output).clone()))
            return (seen[-1].clone(), *output[1:]) if isinstance(output, tuple) else seen[-1].clone()

        handle = self.layer.register_forward_hook(copy_in_and_out)
        output = self.model(images)
        handle.remove()
        return output, seen[-1]

    def maps(self, X):
        """The layer's output as (N, K, h, w). The images of these tests are square."""
        if self.form == "tokens":
            side = int((X.shape[1] - 1) ** 0.5)
            assert X.shape[1] == 1 + side**2  # one class token, in front
            X = X[:, 1:].reshape(len(X), side, side, -1)
        return X if self.form == "maps" else X.permute(0, 3, 1, 2)

    @cached_property
    @torch.enable_grad()
    def forward(self):
        x = self.images.clone().requires_grad_()
        output, X = self.run(x)
        z = self.score(output, range(len(x)))
        dX, dx = torch.autograd.grad(z.sum(), [X, x])
        return self.maps(X), self.maps(dX), z.detach(), dx

    A = property(lambda self: self.forward[0].detach())
    dA = property(lambda self: self.forward[1])
    z = property(lambda self: self.forward[2])
    dx = property(lambda self: self.forward[3])

    # The methods, each as its paper has it.

    def cam(self):
        """The weights of the class in the last linear layer. Whether the network's head allows it is not asked here."""
        head = [m for m in self.model.modules() if isinstance(m, nn.Linear)][-1]
        return self.sign * torch.stack(
            [sum_of_maps(head.weight[c], A) for c, A in zip(self.targets, self.A, strict=True)]
        )

    def grad_cam(self):
        return torch.stack([sum_of_maps(g.mean((1, 2)), A) for A, g in zip(self.A, self.dA, strict=True)])

    def grad_cam_plus_plus(self):
        """Eq. 19 for Y = exp(z), without the factor exp(z) that all weights of an image share."""
        maps = []
        for A, g in zip(self.A, self.dA, strict=True):
            alpha = g**2 / (2 * g**2 + A.sum((1, 2), keepdim=True) * g**3)
            alpha[g == 0] = 0
            maps.append(sum_of_maps((alpha * g.relu()).sum((1, 2)), A))
        return torch.stack(maps)

    def xgrad_cam(self):
        maps = []
        for A, g in zip(self.A, self.dA, strict=True):
            share = A / A.sum((1, 2), keepdim=True)
            share[A.sum((1, 2)) == 0] = 0
            maps.append(sum_of_maps((share * g).sum((1, 2)), A))
        return torch.stack(maps)

    def hires_cam(self):
        return (self.A * self.dA).sum(1)

    def layer_cam(self):
        return (self.A * self.dA.relu()).sum(1)

    def eigen_cam(self):
        return torch.stack([first_component(A) for A in self.A])

    def eigengrad_cam(self):
        return torch.stack([first_component(A * g) for A, g in zip(self.A, self.dA, strict=True)])

    @torch.no_grad()
    def score_cam(self):
        maps = []
        for n, A in enumerate(self.A):
            scores = []
            for channel in A:
                flat = channel.min() == channel.max()  # enlarged, rounding would make a picture of it
                mask = torch.zeros_like(channel) if flat else channel
                seen = from_zero_to_one(enlarge(mask, self.images.shape[2:])) * self.images[n]
                scores.append(self.score(self.model(seen[None]), [n])[0])
            maps.append(sum_of_maps(torch.stack(scores).softmax(0), A))
        return torch.stack(maps)

    @torch.no_grad()
    def ablation_cam(self):
        maps, axis = [], 1 if self.form == "maps" else -1
        for n, A in enumerate(self.A):
            weights = []
            for k in range(len(A)):
                without = self.run(self.images[n : n + 1], lambda X, k=k: zero_at(X, axis, k))[0]
                weights.append((self.z[n] - self.score(without, [n])[0]) / self.z[n].abs())
            maps.append(sum_of_maps(torch.stack(weights), A))
        return torch.stack(maps)

    def full_grad(self):
        """Eq. 8, with the biases that a convolution or a batch norm has, and the implicit ones of activations."""
        size, terms = self.images.shape[2:], self.bias_terms()
        return sum(
            torch.stack([enlarge(from_zero_to_one(b.abs()).sum(0), size) for b in term])
            for term in [self.dx * self.images, *(t for t in terms if t.ndim == 4)]
        )

    def bias_terms(self):
        """Gradient times bias at the output of every module without modules in it; zero terms are left out."""
        x, seen = self.images.clone().requires_grad_(), []

        def before(module, inputs):
            return tuple(u.clone() for u in inputs)  # what an in-place activation overwrites is this copy

        def after(module, inputs, output):
            if not isinstance(output, torch.Tensor):
                return None
            seen.append((module, inputs_of[module], output.clone()))
            return seen[-1][2].clone()

        inputs_of = {}
        leaves = [m for m in self.model.modules() if not list(m.children())]
        handles = [m.register_forward_pre_hook(before) for m in leaves]
        handles += [
            m.register_forward_pre_hook(lambda m, u: inputs_of.__setitem__(m, u[0].detach().clone())) for m in leaves
        ]
        handles += [m.register_forward_hook(after) for m in leaves]
        z = self.score(self.model(x), range(len(x)))
        for handle in handles:
            handle.remove()
        terms, gradients = [], torch.autograd.grad(z.sum(), [y for _, _, y in seen], allow_unused=True)
        for (module, u, y), g in zip(seen, gradients, strict=True):
            if g is None:
                continue
            if isinstance(module, nn.Conv2d):
                bias = torch.zeros(len(y[0]), 1, 1) if module.bias is None else module.bias[:, None, None]
            elif isinstance(module, nn.BatchNorm2d):
                bias = module.bias - module.weight * module.running_mean / (module.running_var + module.eps) ** 0.5
                bias = bias[:, None, None]
            elif isinstance(module, nn.Linear):
                bias = torch.zeros(()) if module.bias is None else module.bias
            elif isinstance(module, ACTIVATIONS):  # implicit: f(u) - f'(u) u
                u = u.clone().requires_grad_()
                bias = y.detach() - torch.autograd.grad(module(u.clone()).sum(), u)[0] * u.detach()
            elif isinstance(module, nn.LayerNorm):  # the same, of a function that mixes the channels
                bias = y.detach() - torch.autograd.functional.jvp(module, u, u)[1]
            else:
                assert isinstance(module, LINEAR), module
                continue
            if (bias != 0).any():
                last = type(module) in (nn.Linear, nn.LayerNorm) and y.ndim == 4  # these work on the last axis
                terms.append((g * bias).permute(0, 3, 1, 2) if last else g * bias)
        return terms

    def guided_grad_cam(self):
        x = self.images.clone().requires_grad_()
        with guided_activations():
            z = self.score(self.model(x), range(len(x)))
        guided = torch.autograd.grad(z.sum(), x)[0]
        where = torch.stack([enlarge(m.relu(), x.shape[2:]) for m in self.grad_cam()])
        return (guided * where[:, None]).abs().amax(1)


def in_float64(model):
    return deepcopy(model).double().eval().requires_grad_(False)


def sum_of_maps(weights, A):
    return (weights[:, None, None] * A).sum(0)


def zero_at(X, axis, k):
    X.select(axis, k).zero_()
    return X


def first_component(X):
    """(K, h, w) projected on the first right singular vector of its (h w, K) matrix, not centred; towards the sum."""
    rows = X.reshape(len(X), -1).T.numpy()
    projected = rows @ np.linalg.svd(rows, full_matrices=False)[2][0]
    if projected @ rows.sum(1) < 0:
        projected = -projected
    return torch.from_numpy(projected).reshape(X.shape[1:])


def from_zero_to_one(X):
    return (X - X.min()) / (X.max() - X.min()) if X.max() > X.min() else torch.zeros_like(X)


def enlarge(picture, size):
    """(..., h, w) to (..., H, W), bilinearly: pixel i has its centre at (i + 1/2) h / H - 1/2; the border goes on."""

    def matrix(H, h):
        at = ((torch.arange(H, dtype=torch.float64) + 0.5) * h / H - 0.5).clamp(0, h - 1)
        return (1 - (at[:, None] - torch.arange(h)).abs()).clamp(min=0)  # (H, h): a hat around each pixel

    return matrix(size[0], picture.shape[-2]) @ picture @ matrix(size[1], picture.shape[-1]).T


class StopNegative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.relu()


def guided_activations():
    """While it lasts, all activation functions of these networks stop negative gradients behind themselves."""
    names = ("relu", "gelu", "silu", "hardswish", "relu6", "hardtanh")

    def guided(f):
        return lambda *args, **options: StopNegative.apply(f(*args, **options))

    return mock.patch.multiple(functional, **{name: guided(getattr(functional, name)) for name in names})


def relative_error(got, expected):
    """The largest difference over the largest magnitude, in the image where that is worst."""
    wrong, largest = (got - expected).abs().flatten(1).amax(1), expected.abs().flatten(1).amax(1)
    return torch.where(wrong == 0, 0, wrong / largest).max().item()  # a map of zeros must be one of zeros


# The networks. Trained weights are not needed, but activations and logits must be of order one, as in a trained
# network: untrained MobileNet and EfficientNet give logits of 1e-10, and a ViT's head and a ConvNeXt's blocks nothing.


@cache
def network(name, size=64, classes=10, seed=0):
    """A torchvision architecture, or "report-cnn", with random weights and batch-norm statistics, in evaluation mode.

    Shared between tests: `explain` leaves it as it was, which is a test of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    if name == "report-cnn":
        net = build_model(name)
    else:
        options = {"image_size": size} if name.startswith("vit") else {}
        with torch.device("meta"):  # VGG's classifier alone has 120 million weights, nearly all of them cut off here
            net = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
            if name.startswith("vgg"):
                net.avgpool = nn.AdaptiveAvgPool2d(2)
                net.classifier[0], net.classifier[3] = nn.Linear(512 * 4, 256), nn.Linear(256, 128)
                net.classifier[6] = nn.Linear(128, classes)
        net.to_empty(device="cpu")
    randomise(net, generator)
    calibrate(net, torch.randn(64 if size < 64 else 16, 3, size, size, generator=generator))
    return net


@torch.no_grad()
def randomise(net, generator):
    def normal(p, scale, mean=0.0):
        p.copy_(torch.randn(p.shape, generator=generator) * scale + mean)

    for module in net.modules():
        for name, p in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d):
                normal(p, 0.15, mean=0.5)
            elif name == "bias" or name.endswith("_bias"):
                normal(p, 0.2)
            elif isinstance(module, nn.Conv2d):
                normal(p, (2 / p[0].numel()) ** 0.5)
            elif p.ndim == 2:  # linear layers and the projections of attention
                normal(p, p.shape[1] ** -0.5)
            else:  # norms, layer scales, class token, position embedding
                normal(p, 0.2, mean=0 if name in ("class_token", "pos_embedding") else 0.8)


@torch.no_grad()
def calibrate(net, images):
    """Running statistics as after training on these images, and logits of order one."""
    net.eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    logits = net(images)
    net.eval()
    for norm in norms:
        norm.momentum = 0.1
    head = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    for p in head.parameters():
        p.div_(logits.std())


def pictures(N=2, size=64, seed=1):
    return torch.randn(N, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_net(seed, *, inplace=False, pooled=True, padding_mode="zeros"):
    """A small network drawn at random: two or three convolutions, some with batch norm, bias or stride, for 12 × 12.

    pooled  the head is global average pooling and one linear layer; otherwise max pooling and two of them
    """
    generator = torch.Generator().manual_seed(seed)
    flip, channels, side, layers = torch.rand(12, generator=generator).tolist(), 3, 12, []
    for i in range(2 + (flip[0] < 0.5)):
        wide, stride = 4 + int(6 * flip[1 + i]), 2 if i == 1 and flip[4] < 0.5 else 1
        layers += [nn.Conv2d(channels, wide, 3, stride, 1, bias=flip[5 + i] < 0.7, padding_mode=padding_mode)]
        layers += [nn.BatchNorm2d(wide)] if flip[8 + i] < 0.6 else []
        layers += [nn.ReLU(inplace)]
        channels, side = wide, side // stride
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)]
    if not pooled:
        places = channels * (side // 2) ** 2
        head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(places, 12), nn.ReLU(inplace), nn.Linear(12, 4)]
    net = nn.Sequential(*layers, *head)
    randomise(net, generator)
    calibrate(net, torch.randn(16, 3, 12, 12, generator=generator))
    return net


def last_relu(net):
    """The name of the last ReLU with feature maps in one of these."""
    pooling = next(i for i, m in enumerate(net) if isinstance(m, nn.AdaptiveAvgPool2d | nn.MaxPool2d))
    return str(pooling - 1)
