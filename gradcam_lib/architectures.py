"""The named architectures: networks as the papers and the two reports describe them, their weights not yet trained.

Every network takes pictures (N, 3, H, W), gives logits (N, classes), and says in `prepare` how a picture becomes its
input. What still has a height and a width is in `features`; what makes logits of it, in `classifier`.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from .images import Array, to_uint8

__all__ = [
    "ARCHITECTURES",
    "AirbenchNet",
    "EfficientNetLite0",
    "Network",
    "NormalisedReportCNN",
    "Preparation",
    "ReportCNN",
    "ReportVGG",
    "SEResNet18",
    "SmallResNet",
    "build_model",
    "last_linear",
    "torchvision_networks",
    "torchvision_preparation",
]

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR10: dict[str, Any] = {
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}  # of its 50,000 training images
LARGEST = 10_000  # pixels of a side that a file may ask for


@dataclass(frozen=True)
class Preparation:
    """How a network was shown its pictures: `model.prepare(pictures)` does the same to yours.

    resize         length of the short side, in pixels, that a picture is first brought to (antialiased)
    size           side of the square then cut from its middle, in pixels
    mean, std      of each channel, red first: a value x in [0, 1] becomes (x - mean) / std
    interpolation  "bilinear" or "bicubic"
    """

    resize: int
    size: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    interpolation: str = "bilinear"

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "Preparation":
        """What a file says of it, in JSON, which knows no tuples.

        Raises ValueError where no picture can be so prepared.
        """
        tupled: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in said.items()}
        prepare = cls(**tupled)
        sides, channels = (prepare.resize, prepare.size), (prepare.mean, prepare.std)
        if not (
            all(type(side) is int and 0 < side <= LARGEST for side in sides)
            and all(isinstance(values, tuple) and len(values) == 3 for values in channels)
            and all(np.isfinite([float(v) for v in values]).all() for values in channels)
            and all(value > 0 for value in prepare.std)
            and prepare.interpolation in ("bilinear", "bicubic")
        ):
            raise ValueError(f"no picture can be prepared as it says: {prepare}")
        return prepare

    def crop(self, picture: Array) -> np.ndarray:
        """The part of a picture that the network sees, (size, size, 3) uint8 RGB: what a heat map is laid over.

        picture  an (H, W, 3) uint8 RGB array as `load_image` gives, or another form that `images.to_uint8` takes
        """
        from torchvision.transforms import InterpolationMode, functional

        image = Image.fromarray(to_uint8(picture))
        image = functional.resize(image, self.resize, InterpolationMode(self.interpolation))
        return np.array(functional.center_crop(image, self.size))

    def __call__(self, pictures: Array | Sequence[Array]) -> torch.Tensor:
        """The crops of one picture, or of a list or batch of N, normalised: (N, 3, size, size) float32, on the CPU.

        Raises ValueError for what is no picture.
        """
        several = isinstance(pictures, list | tuple) or getattr(pictures, "ndim", 3) == 4
        batch: Any = pictures if several else [pictures]
        crops = np.stack([self.crop(picture) for picture in batch])
        x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std


class Network(nn.Module):
    """What a network is known by here, beside its layers. Networks of torchvision, and yours, are given the same.

    prepare  how it was shown its pictures
    classes  the names of its classes, once it has learnt them
    """

    if TYPE_CHECKING:  # torch.jit.script would compile what it finds announced
        prepare: Preparation
        classes: tuple[str, ...]


class ReportCNN(Network):
    """The CIFAR-10 network of the internship report: convolutions with ReLU, max pooling, dropout, dense layers.

    The report gives the kinds of layer and no sizes; the sizes are ours, the smallest usual ones. Input (N, 3, 32, 32)
    in [0, 1], output (N, classes) logits. 356,810 parameters with ten classes.
    """

    prepare = Preparation(resize=32, size=32)

    def __init__(self, classes: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 32, kernel_size=3, padding=1),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),  # 32 x 16 x 16
                conv2=nn.Conv2d(32, 64, kernel_size=3, padding=1),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),  # 64 x 8 x 8
                conv3=nn.Conv2d(64, 128, kernel_size=3, padding=1),
                relu3=nn.ReLU(),  # 128 x 8 x 8, the last feature maps before the dense layers
                pool3=nn.MaxPool2d(2),  # 128 x 4 x 4
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                dropout1=nn.Dropout(0.25),
                dense1=nn.Linear(128 * 4 * 4, 128),
                relu4=nn.ReLU(),
                dropout2=nn.Dropout(0.25),
                dense2=nn.Linear(128, classes),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class NormalisedReportCNN(ReportCNN):
    """`ReportCNN` with a batch normalisation behind each convolution (Ioffe and Szegedy 2015), shown normalised pixels.

    Input (N, 3, 32, 32) as `prepare` makes it, output (N, classes) logits. 357,258 parameters with ten classes.
    """

    prepare = Preparation(32, 32, **CIFAR10)

    def __init__(self, classes: int = 10):
        super().__init__(classes)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name, layer in self.features.named_children():
            layers[name] = layer
            if isinstance(layer, nn.Conv2d):
                layers[name.replace("conv", "norm")] = nn.BatchNorm2d(layer.out_channels)
        self.features = nn.Sequential(layers)


class ReportVGG(Network):
    """The five-block network of the Caltech-256 report: VGG-16's convolutions with batch norm, and a dense head.

    The report's table gives the shape after each block and the widths of the head, and its hook, on `features[42]`,
    gives the number of convolutions: with 2, 2, 3, 3, 3 of them, layer 42 is the last ReLU. (With biases, which batch
    norm makes redundant, `features` takes the weights of torchvision's VGG-16 with batch norm as they are.) The rate of
    dropout is ours, as in VGG (Simonyan and Zisserman 2015). Input (N, 3, 224, 224) as `prepare` makes it, output
    (N, classes) logits. 121,946,433 parameters with 257 classes.
    """

    BLOCKS = (  # maps, convolutions; the maps' size after the block's pooling
        (64, 2),  # 112 × 112
        (128, 2),  # 56 × 56
        (256, 3),  # 28 × 28
        (512, 3),  # 14 × 14
        (512, 3),  # 7 × 7
    )
    prepare = Preparation(224, 224, **IMAGENET)  # the report resizes pictures to 224 × 224; the longer side is cut here

    def __init__(self, classes: int = 257):
        super().__init__()
        layers, inputs = [], 3
        for outputs, convolutions in self.BLOCKS:
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)  # 0 to 43; 42 is the last ReLU, 512 × 14 × 14
        self.classifier = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(7),  # 512 × 7 × 7 whatever the picture's size
                flatten=nn.Flatten(),  # 25,088
                dense1=nn.Linear(512 * 7 * 7, 4096),
                relu1=nn.ReLU(),
                dropout1=nn.Dropout(0.5),
                dense2=nn.Linear(4096, 1024),
                relu2=nn.ReLU(),
                dropout2=nn.Dropout(0.5),
                dense3=nn.Linear(1024, classes),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


def conv_group(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 × 3 convolutions that start as the identity, the first one pooled: H × W becomes H // 2 × W // 2."""

    def conv(inputs: int) -> nn.Conv2d:
        layer = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        nn.init.dirac_(layer.weight.data[:inputs])  # the first filters hand their inputs on; the others are random
        return layer

    def norm() -> nn.BatchNorm2d:
        # The paper's momentum 0.6 is the share of the old statistics, PyTorch's 0.4 that of the new ones.
        layer = nn.BatchNorm2d(outputs, eps=1e-12, momentum=1 - 0.6)
        layer.weight.requires_grad_(False)  # the scale stays 1; the shift is trained
        return layer

    layers: dict[str, nn.Module]
    layers = dict(conv1=conv(inputs), pool=nn.MaxPool2d(2), norm1=norm(), act1=nn.GELU())
    layers |= dict(conv2=conv(outputs), norm2=norm(), act2=nn.GELU())
    return nn.Sequential(OrderedDict(layers))


class AirbenchNet(Network):
    """The network of "94 % on CIFAR-10 in 3.29 seconds on a single GPU" (Jordan 2024, arXiv:2404.00498).

    `whiten` maps patches of 2 × 2 pixels to uncorrelated values, which `set_whitening` takes from the training images
    before training; its filters are not trained, its bias is. The logits are divided by their number of inputs, and the
    head starts with deviation 1, as in the author's later code, which trains with Muon; the paper divides by 9 and
    leaves the head as PyTorch starts it. Input (N, 3, 32, 32) as `prepare` makes it, output (N, classes) logits.
    1,972,792 parameters with ten classes, of which 1,971,352 are trained: not the whitening filters, 288, nor the
    scales of the batch norms, 1,152.
    """

    features: Any  # of which a layer is an attribute, and no type checker knows which there are
    classifier: Any
    prepare = Preparation(32, 32, **CIFAR10)

    def __init__(self, classes: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                whiten=nn.Conv2d(3, 24, kernel_size=2),  # 24 × 31 × 31: 3 · 2 · 2 directions, each with both signs
                act=nn.GELU(),
                group1=conv_group(24, 64),  # 64 × 15 × 15
                group2=conv_group(64, 256),  # 256 × 7 × 7
                group3=conv_group(256, 256),  # 256 × 3 × 3, the last feature maps
                pool=nn.MaxPool2d(3),  # 256 × 1 × 1
            )
        )
        self.features.whiten.weight.requires_grad_(False)
        self.classifier = nn.Sequential(OrderedDict(flatten=nn.Flatten(), dense=nn.Linear(256, classes, bias=False)))
        with torch.no_grad():
            self.classifier.dense.weight /= self.classifier.dense.weight.std()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x)) / self.classifier.dense.in_features

    @torch.no_grad()
    def set_whitening(self, images: torch.Tensor, eps: float = 5e-4) -> None:
        """Set the first filters so that what they give on these images has unit variance and no correlation.

        images  (N, 3, H, W), as `prepare` makes them; the paper takes the first 5,000 training images
        eps     added to each variance, so that directions in which images hardly vary are not all noise
        """
        patches = nn.functional.unfold(images, kernel_size=2).transpose(1, 2).reshape(-1, 12)  # (patches, 12)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))  # (12,), and (12, 12) by column
        filters = (directions / (variances + eps).sqrt()).T.reshape(12, 3, 2, 2)
        self.features.whiten.weight.copy_(torch.cat([filters, -filters]))  # GELU keeps of each sign its positive part


class SqueezeExcitation(nn.Module):
    """A gate for each feature map, from the means of all of them (Hu et al. 2018). The shape, (N, C, H, W), is kept."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.W1 = nn.Linear(channels, channels // reduction)
        self.W2 = nn.Linear(channels // reduction, channels)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        z = u.mean((2, 3))  # (N, C): squeeze
        s = self.W2(self.W1(z).relu()).sigmoid()  # (N, C), each in (0, 1): excitation
        return u * s[:, :, None, None]


class SEBlock(nn.Module):
    """The basic block of ResNet (He et al. 2016), y = relu(x + F(x)), with squeeze-and-excitation at the end of F.

    Where F changes the shape, from (N, inputs, H, W) to (N, outputs, H / stride, W / stride), a strided 1 × 1
    convolution does the same to x.

    reduction  how many maps there are for each hidden unit of the gate; None leaves the gate out: ResNet's own block
    """

    def __init__(self, inputs: int, outputs: int, stride: int, reduction: int | None = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.gate = SqueezeExcitation(outputs, reduction) if reduction else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            shortcut = dict(conv=nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False))
            self.shortcut = nn.Sequential(OrderedDict(shortcut, norm=nn.BatchNorm2d(outputs)))
        self.relu2 = nn.ReLU()
        nn.init.zeros_(self.norm2.weight)  # F starts as 0, and the block as its shortcut (Goyal et al. 2017)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        F = self.gate(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x))))))
        return self.relu2(self.shortcut(x) + F)


class SEResNet18(Network):
    """ResNet-18 (He et al. 2016) with squeeze-and-excitation in every block (Hu et al. 2018).

    small  False: the first layer is ResNet's, a 7 × 7 convolution of stride 2 and a max pooling, for pictures of 224
           pixels; 11,778,592 parameters with 1,000 classes. True: it is a 3 × 3 convolution, for CIFAR's 32 pixels;
           11,263,042 parameters with ten classes.

    Input (N, 3, H, W) as `prepare` makes it, output (N, classes) logits.
    """

    def __init__(self, classes: int = 1000, small: bool = False):
        super().__init__()
        self.prepare = Preparation(32, 32, **CIFAR10) if small else Preparation(256, 224, **IMAGENET)
        first: dict[str, Any]
        first = dict(kernel_size=3, padding=1) if small else dict(kernel_size=7, stride=2, padding=3)
        stem = dict(conv=nn.Conv2d(3, 64, bias=False, **first), norm=nn.BatchNorm2d(64), relu=nn.ReLU())
        if not small:
            stem["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
        self.features = nn.Sequential(OrderedDict(stem=nn.Sequential(OrderedDict(stem))))  # 64 × 56 × 56; 64 × 32 × 32
        inputs = 64
        for number, outputs in enumerate((64, 128, 256, 512), start=1):
            # 64 × 56 × 56, 128 × 28 × 28, 256 × 14 × 14, 512 × 7 × 7; 32, 16, 8 and 4 where the pictures are small
            stage = nn.Sequential(SEBlock(inputs, outputs, stride=min(number, 2)), SEBlock(outputs, outputs, stride=1))
            self.features.add_module(f"stage{number}", stage)
            inputs = outputs
        self.classifier = nn.Sequential(
            OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), dense=nn.Linear(512, classes))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class SmallResNet(Network):
    """A residual network for pictures of 32 pixels that one processor core trains in a minute or two.

    A 3 × 3 convolution to 16 maps, and three of ResNet's basic blocks (He et al. 2016), each of which halves the maps'
    size. 172,746 parameters with ten classes.

    reduction  of squeeze-and-excitation in each block (Hu et al. 2018), or None for none; with 4, 179,004 parameters

    Input (N, 3, H, W) as `prepare` makes it, output (N, classes) logits.
    """

    prepare = Preparation(32, 32, **CIFAR10)

    def __init__(self, classes: int = 10, reduction: int | None = None):
        super().__init__()
        stem = dict(conv=nn.Conv2d(3, 16, 3, padding=1, bias=False), norm=nn.BatchNorm2d(16), relu=nn.ReLU())
        self.features = nn.Sequential(OrderedDict(stem=nn.Sequential(OrderedDict(stem))))  # 16 × 32 × 32
        inputs = 16
        for number, outputs in enumerate((24, 48, 96), start=1):
            # 24 × 16 × 16, 48 × 8 × 8, 96 × 4 × 4, the last feature maps
            self.features.add_module(f"stage{number}", SEBlock(inputs, outputs, stride=2, reduction=reduction))
            inputs = outputs
        self.classifier = nn.Sequential(
            OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), dense=nn.Linear(96, classes))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class SamePad(nn.Module):
    """Zeros around the maps, so that the strided convolution behind gives ceil(H / stride) rows: TensorFlow's "same".

    Of an odd number of rows or columns, the last goes below or to the right, where PyTorch's own padding cannot put it.
    """

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        H, W = (max(self.kernel - (size % self.stride or self.stride), 0) for size in x.shape[2:])
        return nn.functional.pad(x, (W // 2, W - W // 2, H // 2, H - H // 2))


def conv_norm(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """A convolution, which keeps the size or divides it by the stride, then batch normalisation, then ReLU6."""
    padding = kernel // 2 if stride == 1 else 0
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride > 1:
        layers["pad"] = SamePad(kernel, stride)
    layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)  # TensorFlow's momentum 0.99 is PyTorch's 0.01
    if relu:
        layers["relu"] = nn.ReLU6()
    return nn.Sequential(layers)


class MBConv(nn.Module):
    """The inverted residual block of MobileNetV2 (Sandler et al. 2018): widen, filter each map by itself, narrow again.

    The input is added to the output where both have the same shape. (N, inputs, H, W) becomes
    (N, outputs, H / stride, W / stride).
    """

    def __init__(self, inputs: int, outputs: int, widen: int, kernel: int, stride: int):
        super().__init__()
        wide = inputs * widen
        self.expand = conv_norm(inputs, wide) if widen > 1 else nn.Identity()
        self.depthwise = conv_norm(wide, wide, kernel, stride, groups=wide)
        self.project = conv_norm(wide, outputs, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(Network):
    """EfficientNet-Lite0: the smallest EfficientNet (Tan and Le 2019), without squeeze-and-excitation, with ReLU6.

    Input (N, 3, H, W) as `prepare` makes it, H = W = 224 in training; output (N, classes) logits. 4,652,008 parameters
    with 1,000 classes. Stochastic depth, which acts in training alone, is left out.
    """

    STAGES = (  # maps, widening inside, kernel, stride of the first block, blocks; the maps' size for 224 × 224
        (16, 1, 3, 1, 1),  # 112 × 112
        (24, 6, 3, 2, 2),  # 56 × 56
        (40, 6, 5, 2, 2),  # 28 × 28
        (80, 6, 3, 2, 3),  # 14 × 14
        (112, 6, 5, 1, 3),  # 14 × 14
        (192, 6, 5, 2, 4),  # 7 × 7
        (320, 6, 3, 1, 1),  # 7 × 7
    )
    # (v - 127) / 128 of a byte v, as its authors trained it: on 620 pictures of Caltech-101, in 31 classes that are
    # ImageNet's too, we measured 75.5 % right, and 67.9 % with the mean and deviation of most ImageNet networks.
    prepare = Preparation(256, 224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic")

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential(OrderedDict(stem=conv_norm(3, 32, kernel=3, stride=2)))
        inputs = 32
        for number, (outputs, widen, kernel, stride, blocks) in enumerate(self.STAGES, start=1):
            stage = [MBConv(inputs, outputs, widen, kernel, stride)]
            stage += [MBConv(outputs, outputs, widen, kernel, stride=1) for _ in range(blocks - 1)]
            self.features.add_module(f"stage{number}", nn.Sequential(*stage))
            inputs = outputs
        self.features.add_module("head", conv_norm(inputs, 1280))  # 1280 × 7 × 7, the last feature maps
        self.classifier = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(0.2),
                dense=nn.Linear(1280, classes),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "report-cnn": ReportCNN,
    "report-cnn-normalised": NormalisedReportCNN,
    "vgg-report": ReportVGG,
    "cifar10-fast": AirbenchNet,
    "se-resnet18": SEResNet18,
    "cifar10-se-resnet18": partial(SEResNet18, classes=10, small=True),
    "small-resnet": SmallResNet,
    "small-se-resnet": partial(SmallResNet, reduction=4),
    "efficientnet-lite0": EfficientNetLite0,
}


def torchvision_networks() -> list[str]:
    """The names of torchvision's classification networks."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)  # without those for detection, video and so on


def torchvision_preparation(name: str) -> Preparation:
    """How the best ImageNet weights of a torchvision network were shown their pictures."""
    from torchvision.models import get_model_weights

    shown = get_model_weights(name).DEFAULT.transforms()
    (resize,), (size,) = shown.resize_size, shown.crop_size
    return Preparation(resize, size, tuple(shown.mean), tuple(shown.std), shown.interpolation.value)


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """The layer that gives the logits, and its name. Raises ValueError for a network without a linear layer."""
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("This network has no linear layer that could be replaced by one for other classes.")
    return linear[-1]


def build_model(architecture: str, classes: int | None = None) -> Network:
    """An untrained network, its weights drawn from PyTorch's global random generator.

    architecture  "report-cnn" or "vgg-report", the networks of the two reports; "cifar10-fast"; "se-resnet18", or
                  "cifar10-se-resnet18" for pictures of 32 pixels; "efficientnet-lite0"; "report-cnn-normalised",
                  "small-resnet" or "small-se-resnet", the steps of chapter 10; or a classification network of
                  torchvision
    classes       how many; None takes those it was made for: 10 for CIFAR-10, 257 for Caltech-256, 1,000 for ImageNet

    Raises ValueError for an architecture that does not exist.
    """
    chosen = {} if classes is None else {"classes": classes}
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture](**chosen)
    if architecture not in torchvision_networks():
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"There is no architecture {architecture!r}. Choose one of: {known}; or one of torchvision's.")
    from torchvision.models import get_model

    model = get_model(architecture, weights=None, num_classes=classes or 1000)
    model.prepare = torchvision_preparation(architecture)
    return model
