"""Object and background: how much of a map lies at the border, and what a network says when the background changes."""

import math

import cv2
import numpy as np
import numpy.typing as npt
import torch

from .faithfulness import energy_inside
from .images import Array, to_uint8

__all__ = ["border_share", "cut_out", "frame", "only_background", "with_background"]

ENLARGED = 64  # pixels: a smaller picture is enlarged, for GrabCut fits colours, and 32 x 32 are few to fit them to


def border_share(maps: torch.Tensor) -> torch.Tensor:
    """The share of each map's sum that lies in the outer half of the picture: (N,) float in [0, 1].

    maps  (N, h, w) float; negative values count as zero

    The inner half is a square in the middle with half the area, so that a map that is the same everywhere has 0.5, and
    so has one of zeros. Objects stand in the middle of most photographs: a share says something beside another's.
    """
    return energy_inside(maps, frame(224, 224, 0.5).to(maps.device).expand(len(maps), -1, -1))


def frame(height: int, width: int, area: float) -> torch.Tensor:
    """True in a frame along the edges that has a share of the picture's area: (height, width) bool.

    It is as wide, in parts of the side, at all four edges, and at least one pixel.
    """
    around = torch.ones(height, width, dtype=torch.bool)
    top, left = (max(1, round(side * (1 - math.sqrt(1 - area)) / 2)) for side in around.shape)
    around[top:-top, left:-left] = False
    return around


def cut_out(image: Array, heatmap: npt.ArrayLike | None = None, *, rounds: int = 5) -> np.ndarray:
    """The object's pixels by GrabCut (Rother et al. 2004), from a map or from nothing but the place in the picture.

    image    one picture, in any form that `to_uint8` takes
    heatmap  (h, w) float in [0, 1]: above 0.4 object, below 0.02 background, and what lies between is to be found out.
             None takes the middle: a tenth of the side at each edge is background
    rounds   of fitting the colours of object and background, and of cutting

    returns (H, W) bool. From a map, what is cut out is what the network looked at: if that is the sky, then the sky.
    All or nothing is cut out where the colours do not differ.
    """
    picture = to_uint8(image)
    H, W = picture.shape[:2]
    scale = max(1, ENLARGED / min(H, W))
    large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    h, w = large.shape[:2]
    if heatmap is None:
        state = np.full((h, w), cv2.GC_PR_FGD, np.uint8)
        edge = round(0.1 * min(h, w))
        state[:edge], state[-edge:], state[:, :edge], state[:, -edge:] = (cv2.GC_BGD,) * 4
    else:
        M = cv2.resize(np.asarray(heatmap, np.float32), (w, h))
        state = np.select([M > 0.4, M < 0.02], [cv2.GC_FGD, cv2.GC_BGD], cv2.GC_PR_BGD).astype(np.uint8)
        if not (M > 0.4).any() or (M > 0.4).all():  # GrabCut needs some of both
            return np.full((H, W), bool((M > 0.4).all()))
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # it draws where its clusters of colours begin
    cv2.grabCut(large, state, None, *models, rounds, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]  # no frame
    inside = np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    return cv2.resize(inside, (W, H), interpolation=cv2.INTER_AREA) >= 0.5


def with_background(image: Array, mask: np.ndarray, other: Array | None = None) -> np.ndarray:
    """The object of a picture before another background: (H, W, 3) uint8.

    image  one picture, in any form that `to_uint8` takes
    mask   (H, W) bool, the object's pixels
    other  a picture of the same size; None blurs the background that is there. Of the blur, no colour of the object is
           part: the hole that it leaves is filled from around it first
    """
    picture = to_uint8(image)
    if other is None:
        other = cv2.GaussianBlur(only_background(picture, mask), (0, 0), picture.shape[1] / 10)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.5)[..., None]  # a seam of one pixel
    return np.rint(soft * picture + (1 - soft) * to_uint8(other)).astype(np.uint8)


def only_background(image: Array, mask: np.ndarray) -> np.ndarray:
    """The picture with the object filled in from around it (Telea 2004): (H, W, 3) uint8.

    image  one picture, in any form that `to_uint8` takes
    mask   (H, W) bool, the object's pixels; a pixel more is filled in, for the object's edge
    """
    hole = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    return cv2.inpaint(to_uint8(image), hole, 3, cv2.INPAINT_TELEA)
