"""Convolutional networks from pixels to Grad-CAM: data sets, models, training, maps, and the figures of the book."""

from .architectures import build_model
from .auditing import audit
from .cam import Explanation, explain
from .datasets import at_hand, load_dataset
from .images import load_image, overlay
from .layers import list_layers
from .methods import METHODS
from .models import load_model
from .quality import describe
from .records import read_record
from .streaming import explain_dataset, read_maps
from .summary import summarise
from .training import RECIPES, Recipe, TrainingError, predict, train

__all__ = [
    "METHODS",
    "RECIPES",
    "Explanation",
    "Recipe",
    "TrainingError",
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
