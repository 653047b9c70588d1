"""The named architectures, and the weights trained for them.

A weight file describes itself: its header names the architecture and the classes, so that the file alone is enough to
rebuild the model. Weights are safetensors; nothing is ever unpickled.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .records import records_folder, replacing

__all__ = ["ARCHITECTURES", "build_model", "load_model", "save_model"]


class ReportCNN(nn.Module):
    """The CIFAR-10 network of the internship report: convolutions with ReLU, max pooling, dropout, dense layers.

    The report gives the kinds of layer and no sizes; the sizes are ours, the smallest usual ones. Input (N, 3, 32, 32)
    in [0, 1], output (N, classes) logits. 356,810 parameters with ten classes.
    """

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


ARCHITECTURES = {"report-cnn": ReportCNN}


def build_model(architecture: str, classes: int = 10) -> nn.Module:
    """An untrained network, its weights drawn from PyTorch's global random generator.

    Raises ValueError for an architecture that does not exist.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"There is no architecture {architecture!r}. Choose one of: {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[architecture](classes)


def load_model(name: str | Path) -> nn.Module:
    """A trained network in evaluation mode; `model.classes` holds the names of its classes.

    name  a recipe that has a record, such as "cifar10-report", or the path of a file that `save_model` wrote

    Raises ValueError where there is no such record, or the file is not one of ours.
    """
    file = Path(name)
    if file.suffix != ".safetensors":
        file = records_folder() / str(name) / "weights.safetensors"
        if not file.is_file():
            known = sorted(f.parent.name for f in records_folder().glob("*/weights.safetensors"))
            raise ValueError(f"There are no trained weights named {name!r}. There are: {', '.join(known) or 'none'}.")
    try:
        with safe_open(file, framework="pt") as weights:
            about = weights.metadata() or {}
            state = {key: weights.get_tensor(key).float() for key in weights.keys()}
        model, classes = build_model(about["architecture"], int(about["outputs"])), json.loads(about["classes"])
        model.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} holds no model of this library: {' '.join(str(error).split())}") from error
    model.classes = tuple(classes)
    return model.eval()


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
