"""Pictures made worse as weather, cameras and files do it: nine corruptions in five severities each.

The idea, and the names, are those of Hendrycks and Dietterich (2019), "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations". The code is ours and so are the pictures, which are not those of their CIFAR-10-C: no
figure here may be compared with a published one for it. Where a parameter is as theirs, the table says so.
"""

import io
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image

__all__ = ["CORRUPTIONS", "corrupt"]

Corruption = Callable[[np.ndarray, float, Generator], np.ndarray]


def gaussian_noise(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    return x + c * rng.standard_normal(x.shape)


def shot_noise(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """What a sensor counts of light: c photons for white."""
    return rng.poisson(x * c) / c


def gaussian_blur(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    return cv2.GaussianBlur(x, (0, 0), c, borderType=cv2.BORDER_REFLECT)


def motion_blur(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """The mean along a line of c pixels, in a direction of its own for each picture."""
    side = 2 * int(np.ceil(c / 2)) + 3
    kernel, angle = np.zeros((side, side)), rng.uniform(0, np.pi)
    for t in np.linspace(-c / 2, c / 2, 50):
        row, column = side // 2 + t * np.sin(angle), side // 2 + t * np.cos(angle)
        i, j = int(row), int(column)
        weights = np.outer([1 - (row - i), row - i], [1 - (column - j), column - j])
        kernel[i : i + 2, j : j + 2] += weights / 50
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT)


def fog(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """Smooth clouds of strength c laid over the picture, and the whole brought back to the picture's brightness."""
    H, W, _ = x.shape
    clouds, strength = np.zeros((H, W)), 1.0
    for cells in (2, 4, 8, 16):
        clouds += strength * cv2.resize(rng.random((cells, cells)), (W, H), interpolation=cv2.INTER_CUBIC)
        strength /= 2
    clouds = (clouds - clouds.min()) / (clouds.max() - clouds.min())
    return (x + c * clouds[..., None]) * x.max() / (x.max() + c)


def brightness(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    return x + c


def contrast(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    means = x.mean(axis=(0, 1))
    return means + c * (x - means)


def pixelate(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """Made smaller, by the share c of each side, and large again, in boxes."""
    H, W, _ = x.shape
    image = Image.fromarray(np.rint(x * 255).astype(np.uint8))
    small = image.resize((int(W * c), int(H * c)), Image.Resampling.BOX)
    return np.asarray(small.resize((W, H), Image.Resampling.BOX)) / 255


def jpeg(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.rint(x * 255).astype(np.uint8)).save(file, "JPEG", quality=c)
    return np.asarray(Image.open(file)) / 255


# name: the function and its parameter c, from the weakest to the strongest
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "Gaussian noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),  # as theirs: deviation, of 1
    "shot noise": (shot_noise, (500, 250, 100, 75, 50)),  # as theirs
    "Gaussian blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),  # as theirs: deviation, in pixels
    "motion blur": (motion_blur, (1.5, 2.5, 3.5, 4.5, 6.0)),  # ours: length, in pixels
    "fog": (fog, (0.2, 0.5, 0.75, 1.0, 1.5)),  # as theirs; their clouds are another fractal
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),  # as theirs, who brighten the value of HSV
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),  # as theirs: the share that is left
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),  # as theirs
    "JPEG": (jpeg, (80, 65, 58, 50, 40)),  # as theirs: quality
}


def corrupt(images: npt.ArrayLike, name: str, severity: int, *, seed: int = 0) -> np.ndarray:
    """Pictures with one corruption.

    images    (N, H, W, 3) uint8 RGB
    name      of `CORRUPTIONS`
    severity  1, the weakest, to 5
    seed      of what chance decides: the noise, the direction of motion, the clouds; the same for every severity
    returns   (N, H, W, 3) uint8

    Raises ValueError for another name or severity, and for what is no batch of pictures.
    """
    images = np.asarray(images)
    if name not in CORRUPTIONS:
        raise ValueError(f"There is no corruption {name!r}. Choose one of: {', '.join(CORRUPTIONS)}.")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"The severity of a corruption is a whole number from 1 to 5, not {severity!r}.")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"Pictures to corrupt are (N, H, W, 3) uint8, not {images.shape} {images.dtype}.")
    function, parameters = CORRUPTIONS[name]
    rng = np.random.default_rng([seed, list(CORRUPTIONS).index(name)])
    worse = np.empty_like(images)
    for n, image in enumerate(images):
        x = function(image / 255, parameters[severity - 1], rng)
        worse[n] = np.rint(np.clip(x, 0, 1) * 255)
    return worse
