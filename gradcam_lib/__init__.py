"""Convolutional networks from pixels to Grad-CAM: data sets, models, training, maps, and the figures of the book."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what each name is, for editors and type checkers
    from .architectures import build_model
    from .auditing import audit
    from .cam import Explanation, explain
    from .checkpoints import TrainingError
    from .datasets import at_hand, load_dataset
    from .images import load_image, overlay
    from .layers import list_layers
    from .methods import METHODS
    from .models import load_model
    from .quality import describe
    from .recipes import RECIPES, Recipe
    from .records import accelerator_found, read_record
    from .streaming import explain_dataset, read_maps
    from .summary import summarise
    from .training import predict, train

__all__ = [
    "METHODS",
    "RECIPES",
    "Explanation",
    "Recipe",
    "TrainingError",
    "accelerator_found",
    "at_hand",
    "audit",
    "build_model",
    "describe",
    "explain",
    "explain_dataset",
    "list_layers",
    "load_dataset",
    "load_image",
    "load_model",
    "overlay",
    "predict",
    "read_maps",
    "read_record",
    "summarise",
    "train",
]

# PyTorch takes seconds to import. So a module is imported when the first of its names is used, and the command line,
# which begins here, shows its help at once.
_MODULES = {
    "architectures": ["build_model"],
    "auditing": ["audit"],
    "cam": ["Explanation", "explain"],
    "datasets": ["at_hand", "load_dataset"],
    "images": ["load_image", "overlay"],
    "layers": ["list_layers"],
    "methods": ["METHODS"],
    "models": ["load_model"],
    "quality": ["describe"],
    "records": ["accelerator_found", "read_record"],
    "recipes": ["RECIPES", "Recipe"],
    "checkpoints": ["TrainingError"],
    "streaming": ["explain_dataset", "read_maps"],
    "summary": ["summarise"],
    "training": ["predict", "train"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        found = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):  # a module, as in gradcam_lib.plots
        found = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
