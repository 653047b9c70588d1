"""Pictures: reading any file a user may have, safely, and laying a heat map over a picture.

A picture on the screen is an (H, W, 3) uint8 array, red first. A picture in front of a network is a (3, H, W) float
tensor in [0, 1]. `load_image` makes the first from a file, `to_uint8` makes it from the second.
"""

import contextlib
import difflib
import io
import os
import re
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

Picture = npt.NDArray[np.uint8]  # (H, W, 3), red first
Array = npt.NDArray[Any] | torch.Tensor
Readable = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

MAX_PIXELS = 100_000_000  # 300 MB once decoded

# The formats that are read. A file is known by its first bytes, never by its name. Pillow's classes are called
# directly: Image.open would add its own limit on the size, a global that any other library may have moved. (Inside the
# classes for TIFF and WebP that limit still counts, so a program can lower it for them.)
FORMATS: dict[str, tuple[bytes, Callable[[IO[bytes]], ImageFile.ImageFile]]] = {
    "BMP": (rb"BM", BmpImageFile),
    "GIF": (rb"GIF8[79]a", GifImageFile),
    "JPEG": (rb"\xff\xd8\xff", JpegImageFile),
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", TiffImageFile),
    "WebP": (rb"RIFF....WEBP", WebPImageFile),
}

# What people hand over instead, so that the message can say so.
OTHERS = {
    "an HEIC or AVIF picture": rb"....ftyp(hei|hev|mif|msf|avi)",
    "an HTML page": rb"(?i)\s*<(!doctype )?html",
    "an SVG drawing": rb"(?i).*<svg",
    "a PDF document": rb"%PDF",
    "text": rb"[^\0-\x08\x0e-\x1f]+$",
}

# EXIF orientation: the turn that stands the stored picture upright. ImageOps.exif_transpose would also rewrite the EXIF
# data, and fail where they are damaged.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

COLORMAPS = {name[9:].lower(): getattr(cv2, name) for name in dir(cv2) if name.startswith("COLORMAP_")}
ROUNDING = 1e-3  # how far outside [0, 1] a value may lie: a quarter of one of the 255 steps, lost in rounding to them


class ImageError(ValueError):
    """A picture that cannot be read. The message is one line: which file, what is wrong, what to do."""


def load_image(source: Readable) -> Picture:
    """The picture in a file, upright and in colour.

    source   a path, the bytes of a file, or a file open in binary mode (read from where it stands, not closed)
    returns  (H, W, 3) uint8 array, RGB

    Reads BMP, GIF, JPEG, PNG, TIFF and WebP; the first frame or page of those that hold several. The EXIF orientation
    is applied. Transparency is laid over white. Colour profiles are not applied. Of 16 bits the upper 8 are kept,
    v >> 8, in grey as in colour. Grey float and 32-bit pictures have no fixed range: their smallest value becomes 0
    and their largest 255.

    Raises ImageError if there is no such file, if it is no picture of these formats, is damaged or cut short, has
    more than MAX_PIXELS pixels (told from its header, before any is decoded), or holds NaN or infinity; TypeError if
    `source` is none of the three.
    """
    if isinstance(source, str | os.PathLike):
        with _open(source) as file:
            return _read(file if file.seekable() else io.BytesIO(file.read()), repr(os.fspath(source)))
    data = source.read() if hasattr(source, "read") else source
    if not isinstance(data, bytes | bytearray | memoryview):
        kind = type(source).__name__
        raise TypeError(f"load_image reads a path, bytes, or a file opened in binary mode ('rb'), not a {kind}")
    name = getattr(source, "name", None)
    return _read(io.BytesIO(data), repr(name) if isinstance(name, str) else f"the {type(source).__name__} given")


def _open(path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        problem = "there is no such file; check its path, and the folder you are in"
    except IsADirectoryError:
        problem = "this is a folder; name a picture in it"
    except PermissionError:
        problem = "you may not read this file; ask its owner, or change its permissions"
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        problem = f"the file cannot be opened ({getattr(error, 'strerror', None) or error}); check its path"
    raise ImageError(f"{os.fspath(path)!r}: {problem}")


def _read(file: IO[bytes], name: str) -> Picture:
    head = file.read(1024)
    if not head:
        raise ImageError(f"{name}: there are no bytes in it; fetch or save the picture again")
    format = next((f for f, (first, _) in FORMATS.items() if re.match(first, head, re.DOTALL)), None)
    if format is None:
        kind = next((k for k, first in OTHERS.items() if re.match(first, head, re.DOTALL)), "an unknown kind of file")
        remedy = f"save the picture as one of {', '.join(FORMATS)}"
        raise ImageError(f"{name}: its first bytes are those of {kind}, which is not read here; {remedy}")
    wrong = f"its {format} header is damaged, cut short, of an unusual kind, or gives a size of zero"
    with strict_pillow():
        try:
            file.seek(0)
            image = FORMATS[format][1](file)
            W, H = image.size
            if W * H > MAX_PIXELS:  # told before any pixel is decoded
                raise Image.DecompressionBombError(f"{W} × {H} is above the {MAX_PIXELS:,} that load_image allows")
            wrong = f"its {format} pixels are damaged, cut short, or of an unusual kind"
            image.load()
            return _upright_rgb(image)
        except Image.DecompressionBombError as error:  # ours, or Pillow's: on the tiles of a TIFF, say
            raise ImageError(f"{name}: it has too many pixels ({error}); make it smaller first") from None
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            reason = textwrap.shorten(str(error) or type(error).__name__, 120)
            remedy = "fetch the file again, or save the picture as an ordinary PNG or JPEG"
            raise ImageError(f"{name}: {wrong} ({reason}); {remedy}") from error


_lock, _readers, _settings = threading.Lock(), 0, contextlib.ExitStack()


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Pillow without its warnings, and with an error for what is cut short, for as long as any thread is in here."""
    global _readers
    # The settings belong to the whole process: the first thread in makes them, the last one out restores them.
    with _lock:
        _readers += 1
        if _readers == 1:
            _settings.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # they repeat what the errors here say
            # If another library has set it, what is missing would be filled with grey.
            _settings.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
            ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                _settings.close()


def _upright_rgb(image: Image.Image) -> Picture:
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data: the pixels are still good
        turn = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_deep_grey(image))
    elif image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return np.array(image if turn is None else image.transpose(turn))


def _deep_grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The (H, W) uint8 values of a picture with one channel of more than 8 bits, which Pillow's convert would clip."""
    v = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # only TIFF has them
    if image.mode.startswith("I;16") or image.format == "PNG":  # an older Pillow gives a 16-bit PNG mode I
        bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]  # 12 from some cameras
        v = (v >> (bits - 8)).astype(np.uint8)
    else:
        if image.mode == "I" and tags.get(ExifTags.Base.SampleFormat, (1,))[0] == 1:
            v = v.view(np.uint32)  # Pillow gives unsigned values as signed ones
        v = v.astype(np.float64)
        if not np.isfinite(v).all():
            raise ValueError("they include NaN or infinity")
        v = np.rint(255 * (v - v.min()) / (np.ptp(v) or 1)).astype(np.uint8)
    # Where 0 means white, Pillow turns 8-bit pictures round, but not deeper ones.
    return 255 - v if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else v


def to_uint8(image: Array) -> Picture:
    """The (H, W, 3) uint8 picture, RGB, of an image in any of the three forms used here.

    image  (H, W, 3) uint8, returned as it is; or (3, H, W) or (1, H, W) float in [0, 1], rounded to 255 steps.
           An array or a tensor, on any device, with or without a gradient.

    Raises ValueError for another shape or type, for values outside [0, 1], NaN or infinity.
    """
    x = _to_numpy(image)
    if x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3 and x.size:
        return np.ascontiguousarray(x)
    if not (x.dtype.kind == "f" and x.ndim == 3 and x.shape[0] in (1, 3) and x.size):
        raise ValueError(
            "one picture is (H, W, 3) uint8, or (3, H, W) or (1, H, W) float in [0, 1], and this one is "
            f"{x.shape} {x.dtype}: take one from a batch with images[0], and move the channels with permute"
        )
    x = _in_unit_range(x, "picture", "undo the normalisation first (x * std + mean), or divide by the largest value")
    x = np.rint(255 * np.moveaxis(x, 0, 2)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(x, (*x.shape[:2], 3)))


def overlay(image: Array, heatmap: Array, *, opacity: float = 0.5, colormap: str = "inferno") -> Picture:
    """A heat map, in colour, over its picture.

    image     the picture, in any form that `to_uint8` takes
    heatmap   (h, w) array or tensor in [0, 1]; another size than the picture's is interpolated (bilinear, half-pixel
              centres), so a map may be given at the resolution of its layer
    opacity   0 shows the picture alone, 1 the map alone
    colormap  one of OpenCV's; the default is perceptually uniform, so equal steps of the map look equal
    returns   (H, W, 3) uint8 array, RGB

    Raises ValueError for a wrong shape, values outside [0, 1], NaN, or an unknown colour map.
    """
    picture = to_uint8(image)
    M = _to_numpy(heatmap)
    if M.ndim != 2 or M.dtype.kind not in "fiub" or not M.size:
        raise ValueError(f"one heat map is (h, w), and this one is {M.shape} {M.dtype}: take one with heatmaps[0]")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity lies between 0 (the picture) and 1 (the map), and {opacity} does not")
    if colormap not in COLORMAPS:
        near = difflib.get_close_matches(str(colormap), COLORMAPS) or COLORMAPS
        raise ValueError(f"there is no colour map {colormap!r}; there is {', '.join(near)}")
    M = _in_unit_range(M, "heat map", "divide it by its largest value")
    M = cv2.resize(M, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.rint(255 * M).astype(np.uint8), COLORMAPS[colormap])
    colours = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.addWeighted(colours, opacity, picture, 1 - opacity, 0), np.uint8)


def _to_numpy(x: Array) -> npt.NDArray[Any]:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()  # NumPy has no bfloat16
    return np.asarray(x)


def _in_unit_range(x: npt.NDArray[Any], what: str, remedy: str) -> npt.NDArray[np.float32]:
    if not np.isfinite(x).all():
        raise ValueError(f"the {what} holds NaN or infinity: look for a division by zero where it was made")
    if x.min() < -ROUNDING or x.max() > 1 + ROUNDING:
        raise ValueError(f"the {what} runs from {x.min():.3g} to {x.max():.3g}, not within [0, 1]: {remedy}")
    return x.astype(np.float32)
