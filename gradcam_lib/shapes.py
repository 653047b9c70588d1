"""The data set "shapes": ten kinds of object drawn on textured scenes, with the exact mask of each object.

It needs no download, and its masks are a ground truth for saliency: they say which pixels are the object. Class,
scene, colour, pose and light are drawn independently, so that only its shape tells what an object is.

An object is a list of parts `(tone, points, width)`: a polygon in a plane about 2 units wide, x right and y down,
filled where the width is 0, else a line that wide. The tone says which of the object's colours the part has. A scene
is a function from a random generator to a canvas (S, S, 3), float32 RGB in 0..255.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import cos, pi, sin  # these give Python floats, which keep float32 arrays float32; NumPy's need not
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.random import Generator

if TYPE_CHECKING:
    from _typeshed import SupportsLenAndGetItem

Item = TypeVar("Item")
Point = tuple[float, float]
Part = tuple[int, Sequence[Point] | np.ndarray, float]
PosedPart = tuple[int, np.ndarray, float]

SUPERSAMPLE = 4            # canvas pixels along the side of an image pixel: an edge has 17 levels of coverage
AREA = (0.10, 0.42)        # the share of the picture that an object is to cover; one that would not fit covers less
CLEAR, BODY, SHADE, TINT, ACCENT, INK, PALE, MARKS = range(8)      # the tones; CLEAR cuts a hole


def rgb(colours: str) -> np.ndarray:
    """Hexadecimal colours as (n, 3) float32."""
    return np.array([list(bytes.fromhex(colour)) for colour in colours.split()], np.float32)


# Body and accent of an object: pairs that go together, spread over hue and lightness.
PALETTE = rgb("""c8453b f2d6a2 e07b39 3c5a78 e9b44c 7b3f3f 8fae4b f4ead0 3f7d58 f0c36d 2a9d8f f4e3c1 3b8ea5 f7c59f
                 31588a f2b5a7 5b4b8a e8c8e8 9b5d9e f5dd90 d96c8a f8ead8 f0a6a0 4a6c6f f3e9d6 b5523b d7d9ce 4b6a88
                 8c5a3c e9d8a6 54423a d9a441 2f3e46 e0a458 6f8f9b 2d3142""").reshape(-1, 2, 3)


def pick(rng: Generator, options: "SupportsLenAndGetItem[Item]") -> Item:
    return options[int(rng.integers(len(options)))]


# ---- points -----------------------------------------------------------------------------------------------------

def box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


@lru_cache(maxsize=128)
def unit_arc(start: float, stop: float) -> np.ndarray:
    a = np.radians(np.linspace(start, stop, 24))
    return np.stack([np.cos(a), np.sin(a)], 1)


def arc(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> np.ndarray:
    """24 points on an ellipse, from one angle in degrees to another; 0 is right and 90 is down."""
    return unit_arc(start, stop) * (rx, ry) + (x, y)


T = np.arange(6)[:, None] / 6
CATMULL_ROM = np.hstack([-T + 2 * T**2 - T**3, 2 - 5 * T**2 + 3 * T**3, T + 4 * T**2 - 3 * T**3, T**3 - T**2]) / 2


def smooth(points: Sequence[Point] | np.ndarray) -> np.ndarray:
    """The closed Catmull-Rom spline through n points, in six steps from each to the next: (6 n, 2)."""
    neighbours = (np.arange(len(points))[:, None] + (-1, 0, 1, 2)) % len(points)
    return (CATMULL_ROM @ np.array(points)[neighbours]).reshape(-1, 2)


def squeezed(parts: Iterable[Part], factor: float) -> list[Part]:
    return [(tone, np.asarray(points) * (factor, 1), width) for tone, points, width in parts]


# ---- objects ----------------------------------------------------------------------------------------------------

def butterfly(rng: Generator) -> Sequence[Part]:
    high, low, tip = rng.uniform((0.7, 0.6, 0.2), (1.0, 0.95, 0.5))
    upper = smooth([(0.04, -0.05), (0.3, -0.75 * high), (0.85, -high), (1.0, -tip), (0.7, 0.02), (0.1, 0.1)])
    lower = smooth([(0.04, 0.05), (0.6, 0.05), (0.8, 0.4), (0.5, low), (0.15, 0.55)])
    wings = [(SHADE, lower, 0), (ACCENT, lower * 0.72 + (0.1, 0.08), 0), (SHADE, upper, 0),
             (BODY, upper * 0.78 + (0.1, -0.07), 0), (PALE, arc(0.74, -0.65 * high, 0.1, 0.1), 0)]
    feeler = [(INK, [(0.02, -0.3), (0.08, -0.6), (0.25, -0.85)], 0.06)]
    return [*squeezed(wings, -1), *squeezed(wings, rng.uniform(0.65, 1)), *feeler, *squeezed(feeler, -1),
            (INK, [(0, -0.32), (0, 0.5)], 0.15)]


def car(rng: Generator) -> Sequence[Part]:
    roof, front, back, bonnet, wheel = rng.uniform((-0.8, 0.2, -0.95, -0.2, 0.2), (-0.58, 0.4, -0.4, -0.1, 0.27))
    cabin = np.array([(back - 0.12, -0.12), (back + 0.02, roof), (front, roof), (front + 0.3, -0.12)])
    glass = (cabin - cabin.mean(0)) * (0.8, 0.68) + cabin.mean(0)
    pillar = [((front + back) / 2, roof), ((front + back) / 2, 0)]
    hull = smooth([(-1.05, 0.25), (-1.05, -0.1), (-0.8, -0.2), (0.3, -0.2), (0.8, bonnet), (1.05, 0.05), (1.05, 0.25),
                   (0.6, 0.34), (-0.6, 0.34)])
    parts = [(BODY, cabin, 0), (PALE, glass, 0), (BODY, pillar, 0.1), (BODY, hull, 0),
             (SHADE, [(-1.0, 0.2), (1.0, 0.2)], 0.08), (ACCENT, arc(0.97, 0, 0.08, 0.08), 0)]
    for x in (-0.58, 0.58):
        parts += [(INK, arc(x, 0.32, wheel, wheel), 0), (TINT, arc(x, 0.32, wheel / 2.2, wheel / 2.2), 0)]
    return parts


def fish(rng: Generator) -> Sequence[Part]:
    h, tail, fin = rng.uniform((0.36, 0.35, 0.12), (0.62, 0.6, 0.3))
    body = smooth([(-1, 0.03), (-0.6, -0.75 * h), (-0.1, -h), (0.4, -0.6 * h), (0.72, -0.1), (0.72, 0.1),
                   (0.4, 0.6 * h), (-0.1, h), (-0.6, 0.75 * h)])
    parts: list[Part]
    parts = [(ACCENT, smooth([(0.6, 0), (0.95, -tail), (1.2, -tail), (1.02, 0), (1.2, tail), (0.95, tail)]), 0),
             (ACCENT, [(-0.4, -0.7 * h), (0.1, -h - fin), (0.45, -h - fin / 3), (0.5, -0.4 * h)], 0),
             (ACCENT, [(-0.1, 0.8 * h), (0.3, h + fin), (0.35, 0.6 * h)], 0), (BODY, body, 0)]
    for x in np.linspace(0.0, 0.5, rng.integers(0, 4)):
        parts.append((SHADE, arc(x - 0.3, 0, 0.25, 0.72 * h * (1 - x / 2), -60, 60), 0.09))
    return [*parts, (SHADE, arc(-0.75, 0.05, 0.32, 0.6 * h, -55, 55), 0.07),            # the gill
            (PALE, arc(-0.68, -0.15, 0.13, 0.13), 0), (INK, arc(-0.7, -0.15, 0.07, 0.07), 0)]


def house(rng: Generator) -> Sequence[Part]:
    w, eaves, apex, ridge, door = rng.uniform((0.55, -0.2, -1.0, 0, -0.25), (0.8, 0.05, -0.75, 0.3, 0.25))
    stack = w * pick(rng, (-0.62, 0.55))
    parts = [(SHADE, box(stack - 0.11, apex, stack + 0.11, eaves), 0), (BODY, box(-w, eaves, w, 0.75), 0),
             (SHADE, box(-w, 0.65, w, 0.75), 0), (INK, box(door - 0.13, 0.25, door + 0.13, 0.75), 0),
             (ACCENT, [(-w - 0.2, eaves), (-ridge, apex), (ridge, apex), (w + 0.2, eaves)], 0),
             (SHADE, [(-w - 0.15, eaves + 0.03), (w + 0.15, eaves + 0.03)], 0.08)]
    for x in (door - 0.42, door + 0.42):
        if abs(x) < w - 0.12:                                        # room for a window on this side of the door
            parts += [(PALE, box(x - 0.14, 0.15, x + 0.14, 0.45), 0), (SHADE, [(x, 0.15), (x, 0.45)], 0.05)]
    return parts


def key(rng: Generator) -> Sequence[Part]:
    r, thick, bit, end = rng.uniform((0.3, 0.2, 0.25, 0.4), (0.42, 0.26, 0.42, 0.62))
    bow = [*box(-r, -r, r, r), (-r, -r)] if rng.random() < 0.4 else arc(0, 0, r, r * rng.uniform(0.85, 1.25))
    parts = [(BODY, [(-0.65 + r, 0), (1.0, 0)], thick), (BODY, np.add(bow, (-0.65, 0)), 1.05 * thick),
             (SHADE, [(-0.6 + r, 0.06), (0.95, 0.06)], 0.06), (ACCENT, box(-0.5 + r, -0.16, -0.38 + r, 0.16), 0)]
    for x in np.linspace(0.94, end, rng.integers(2, 4)):
        parts.append((BODY, box(x - 0.08, 0, x + 0.08, bit * rng.uniform(0.75, 1.05)), 0))
    return parts


def mug(rng: Generator) -> Sequence[Part]:
    w, foot, h, reach, thick = rng.uniform((0.45, 0.7, 0.55, 0.26, 0.14), (0.66, 1.08, 0.8, 0.4, 0.2))
    parts = [(BODY, arc(0.93 * w, 0, reach, 0.58 * h, -95, 95), thick),
             (BODY, np.vstack([[(-w, -h), (w, -h)], arc(0, h, foot * w, 0.14, 0, 180)]), 0)]
    if rng.random() < 0.5:                                            # a band, curved like the wall
        band = np.vstack([arc(0, 0.15, 0.93 * w, 0.14, 0, 180), arc(0, -0.15, 0.95 * w, 0.14, 180, 0)])
        parts.append((ACCENT, band, 0))
    return [*parts, (TINT, arc(0, -h, w, 0.17), 0), (INK, arc(0, 0.02 - h, 0.84 * w, 0.11), 0)]


def mushroom(rng: Generator) -> Sequence[Part]:
    w, h, brim, stem, foot = rng.uniform((0.7, 0.6, 0.1, 0.18, 1.0), (1.0, 1.05, 0.24, 0.28, 1.6))
    stalk = smooth([(-stem, -0.1), (stem, -0.1), (0.9 * stem, 0.4), (foot * stem, 0.85), (0, 0.95),
                    (-foot * stem, 0.85), (-0.9 * stem, 0.4)])
    cap = np.vstack([arc(0, 0, w, h, 180, 360), arc(0, 0, w, 0.35 * brim, 0, 180)])
    parts = [(PALE, stalk, 0), (SHADE, arc(0, 0, w, brim), 0), (BODY, cap, 0)]
    spots = rng.permutation([(-0.55, -0.25), (0.02, -0.3), (0.55, -0.3), (-0.25, -0.68), (0.3, -0.65)])
    for x, y in spots[:rng.integers(2, 6)]:
        parts.append((ACCENT, arc(x * w, y * h, 0.15 * w, 0.12 * h), 0))
    return parts


def sailboat(rng: Generator) -> Sequence[Part]:
    boom, main, jib, mast, leech = rng.uniform((0.15, 0.6, 0.4, -1.1, 0.5), (0.3, 0.9, 0.75, -0.85, 0.75))
    sail = [(0.06, mast), (0.06 + leech * main, mast + 0.55), (0.06 + main, boom), (0.06, boom)]
    hull = smooth([(-0.9, 0.38), (0, 0.46), (0.95, 0.36), (0.7, 0.75), (0.3, 0.85), (-0.55, 0.82)])
    return [(INK, [(0, 0.5), (0, mast - 0.05)], 0.09), (BODY, sail, 0),
            (TINT, [(-0.06, mast + 0.15), (-0.06, boom), (-0.06 - jib, boom)], 0),
            (ACCENT, hull, 0), (SHADE, [(-0.72, 0.62), (0.75, 0.6)], 0.07)]


def teapot(rng: Generator) -> Sequence[Part]:
    w, h, lip, lid = rng.uniform((0.52, 0.5, -0.45, 0.5), (0.66, 0.62, -0.2, 0.7))
    spout = smooth([(-0.7 * w, 0.35), (-w - 0.12, 0.1), (-w - 0.5, lip), (-w - 0.28, lip - 0.04), (-w, -0.15),
                    (-0.5 * w, -0.15)])
    top = 0.15 - 0.82 * h
    parts: list[Part]
    parts = [(BODY, arc(0.9 * w, 0.1, 0.42, 0.68 * h, -110, 100), 0.15), (BODY, spout, 0),
             (SHADE, box(-0.55 * w, h, 0.55 * w, h + 0.2), 0), (BODY, arc(0, 0.15, w, h), 0),
             (ACCENT, arc(0, top, lid * w, 0.2, 180, 360), 0), (ACCENT, arc(0, top - 0.24, 0.1, 0.1), 0),
             (SHADE, arc(0, top - 0.05, 1.05 * lid * w, 0.1, 0, 180), 0.06)]
    return [*parts, (TINT, arc(0, 0.05, 0.9 * w, 0.3, 20, 160), 0.09)] if rng.random() < 0.5 else parts


def umbrella(rng: Generator) -> Sequence[Part]:
    h, scallop, hook = rng.uniform((0.6, 0.1, 0.14), (0.9, 0.17, 0.22))
    ribs = np.linspace(-1, 1, rng.integers(5, 7))
    parts = [(BODY, arc(0, 0, 1, h, 180, 360), 0)]
    for k, x in enumerate(ribs[ribs > 0.1][-2::-1]):                  # nested half ellipses leave panels of two colours
        parts.append(((ACCENT, BODY)[k % 2], arc(0, 0, x, h, 180, 360), 0))
    for a, b in pairwise(ribs):
        parts.append((CLEAR, arc((a + b) / 2, 0.02, (b - a) / 2, scallop), 0))
    return [*parts, (INK, [(0, -h - 0.1), (0, -h + 0.05)], 0.09), (INK, [(0, -0.1), (0, 0.8)], 0.1),
            (INK, arc(hook, 0.8, hook, hook, 180, 20), 0.11)]


# Each class, and the tilt in degrees to either side at which it is still met in life.
OBJECTS = {butterfly: 60, car: 14, fish: 35, house: 9, key: 180, mug: 20, mushroom: 22, sailboat: 14, teapot: 18,
           umbrella: 40}
CLASSES = tuple(draw.__name__ for draw in OBJECTS)


def pose(parts: Sequence[Part], tilt: float, rng: Generator) -> tuple[list[PosedPart], np.ndarray]:
    """Tilt, shear, mirror and foreshorten an object, then fit it into the square from -1 to 1.

    returns the moved parts, and the half width and half height (2,) of their bounding box, the greater being 1
    """
    angle, shear, stretch = np.radians(rng.uniform(-tilt, tilt)), rng.uniform(-0.15, 0.15), rng.uniform(0.88, 1.14)
    flip, vanishing = pick(rng, (-1, 1)), rng.uniform(-0.1, 0.1, 2)
    tones, polygons, widths = zip(*parts, strict=True)
    p = np.vstack(polygons) @ ([[flip * stretch, 0], [0, 1 / stretch]] @ np.array([[1, 0], [shear, 1]])
                               @ [[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
    p /= 1 + (p @ vanishing)[:, None]
    lengths = [len(polygon) for polygon in polygons]
    margin = np.repeat(widths, lengths)[:, None] / 2
    low, high = (p - margin).min(0), (p + margin).max(0)
    half = (high - low).max() / 2
    moved = np.split((p - (low + high) / 2) / half, np.cumsum(lengths)[:-1])
    return list(zip(tones, moved, np.array(widths) / half, strict=True)), (high - low) / 2 / half


def fill(canvas: np.ndarray, points: np.ndarray, width: float, colour: float | Sequence[float]) -> None:
    """Draw one part, in canvas pixels."""
    xy = np.rint(points * 16).astype(np.int32)                        # OpenCV's fixed point: 4 fractional bits
    if width:
        cv2.polylines(canvas, [xy], False, colour, max(1, round(width)), shift=4)
    else:
        cv2.fillPoly(canvas, [xy], colour, shift=4)


def paint(parts: Iterable[PosedPart], S: int) -> np.ndarray:
    """The tone of each pixel (S, S), uint8, of posed parts that fill the canvas."""
    tones = np.zeros((S, S), np.uint8)
    for tone, points, width in parts:
        fill(tones, (points + 1) * (S / 2), width * S / 2, tone)
    return tones


# ---- scenes -----------------------------------------------------------------------------------------------------

@lru_cache(maxsize=4)
def plane(S: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y (S, S), float32 from 0 to 1."""
    at = (np.arange(S, dtype=np.float32) + 0.5) / S
    return np.meshgrid(at, at)


def noise(rng: Generator, S: int, rows: int, cols: int, octaves: int = 3) -> np.ndarray:
    """Value noise (S, S), float32 spread over 0..1: random grids, each twice as fine as the last and half as strong."""
    field: np.ndarray = rng.random((rows, cols), np.float32)
    for k in range(1, octaves):
        field = cv2.resize(field, (cols << k, rows << k), interpolation=cv2.INTER_CUBIC)
        field += rng.random(field.shape, np.float32) / 2**k
    field = cv2.resize(field, (S, S), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(field, None, 0, 1, cv2.NORM_MINMAX)  # type: ignore[call-overload]  # None is a fresh array


@lru_cache(maxsize=64)
def gradient(colours: str) -> np.ndarray:
    """256 colours (256, 3), in even steps through the hexadecimal ones given."""
    stops = rgb(colours)
    t = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(t, range(len(stops)), channel) for channel in stops.T], 1).astype(np.float32)


def ramp(field: np.ndarray, colours: str) -> np.ndarray:
    """Colour a field (S, S) of 0..1."""
    return np.take(gradient(colours), (np.clip(field, 0, 1) * 255).astype(np.uint8), axis=0)


def blend(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return below + (above - below) * alpha[..., None]


def frac(field: np.ndarray) -> np.ndarray:
    return field - np.floor(field)


def step(low: float, high: float, field: np.ndarray) -> np.ndarray:
    """0 up to low, 1 from high, a smooth rise between."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def disc(canvas: np.ndarray, x: float, y: float, r: float, colour: Sequence[float]) -> None:
    """Fill a disc, in canvas pixels."""
    cv2.circle(canvas, (round(x * 16), round(y * 16)), round(r * 16), colour, -1, shift=4)


def sky(rng: Generator, S: int) -> np.ndarray:
    """Clouds with the light on their upper edges: at noon, at dawn, at dusk, before rain."""
    y = plane(S)[1]
    air, cloud = pick(rng, (
        ("2f6fb0 6ea8d8 b9dcec", "b8c6d6 ffffff"), ("5b5f97 c58fa8 f6c89f", "a06c8b ffe3c8"),
        ("274060 6d6a8f e89a7a", "4a4a6d f3b08f"), ("66788a 8fa0ad b8c1c4", "6f7b87 dde2e3")))
    puffs = noise(rng, S, 3, 2, 5) + 0.25 * y
    lit = puffs - puffs[np.minimum(np.arange(S) + S // 24, S - 1)]    # thicker than what lies below it
    return blend(ramp(y + 0.1 * puffs, air), ramp(0.6 + 5 * lit, cloud), step(0.52, 0.8, puffs))


def sea(rng: Generator, S: int) -> np.ndarray:
    """Waves that grow toward the viewer, the light's path on them, and a strip of sky."""
    x, y = plane(S)
    air, water = pick(rng, (
        ("86b9dc d9ecf2", "0e4d6c 2b87a3 7cc4c4 f2fbf8"), ("e7a977 fbe3b8", "2b3a5b 5d5f85 c98a79 ffe5bd"),
        ("9aa7b0 cdd5d6", "26414a 4c6d74 86a3a3 eef3ef"), ("3e4f7a 8d94b8", "121f3f 2a4570 5e86a8 d6e6f0")))
    horizon, path = rng.uniform(0.05, 0.35), rng.uniform(0.1, 0.9)
    depth = np.maximum(y - horizon, 0)
    chop = noise(rng, S, 12, 4)
    wave = np.sin(26 * np.log(depth + 0.06) + 9 * chop + 2 * x) * 0.5 + 0.5
    glitter = np.exp(-((x - path) / (0.06 + 0.3 * depth)) ** 2) * chop * wave
    foam = step(0.75, 1, wave * (0.5 + 0.5 * chop))
    waves = ramp(0.08 + 0.15 * chop + 0.4 * wave * chop + 0.55 * glitter + 0.35 * foam, water)
    return blend(ramp(3 * y + 0.1 * chop, air), waves, step(0, 0.012, y - horizon))


def meadow(rng: Generator, S: int) -> np.ndarray:
    """Grass in tufts, with flowers."""
    tufts, blades = noise(rng, S, 3, 5, 4), noise(rng, S, 8, 48, 1)
    grass = pick(rng, ("1f4d2b 3f7d3a 7fb04d d3d77c", "35501f 6b8a2f a9b84f e8dc8a",
                       "1d4a44 34786a 6fae86 cfe0a8", "5a4a1e 937a30 c9a84c f0dc98"))
    canvas = ramp(0.45 * tufts + 0.45 * blades + 0.15 * plane(S)[1] - 0.03, grass)
    petal = pick(rng, PALETTE)[1].tolist()
    for x, y in rng.uniform(0, S, (rng.integers(4, 26), 2)).tolist():
        r = 0.008 * S + 0.014 * y                                     # flowers nearer the viewer are larger
        for k in range(5):
            disc(canvas, x + r * cos(0.4 * pi * k), y + r * sin(0.4 * pi * k), 0.75 * r, petal)
        disc(canvas, x, y, 0.6 * r, (70, 50, 30))
    return canvas


def dunes(rng: Generator, S: int) -> np.ndarray:
    """Four crests of sand, the far ones in haze, each lit on one slope and rippled."""
    x, y = plane(S)
    sand, air = pick(rng, (
        ("7a4a33 c98f5a eec894 fdeccb", "8fb8d6 f3e7d0"), ("5e3b47 b0705f e6ae88 fbe0c4", "8a7aa3 f6cdb0"),
        ("6d675c aaa080 d9cfb0 f6f0dc", "b8c4c4 eeeadb"), ("6b3f22 b87333 e3a857 f9dc9c", "5f9ccf dfeaf0")))
    sun, crest, slope, haze = pick(rng, (-1, 1)), np.zeros_like(x), np.zeros_like(x), np.ones_like(x)
    for k in range(4):
        height = 0.1 + 0.2 * k + 0.25 * noise(rng, S, 1, 3, 2)[0]     # (S,): the crest's y at each x
        front = step(0, 0.012, y - height)
        crest += (height - crest) * front
        slope += (np.tanh(sun * S * np.gradient(height)) - slope) * front
        haze += (0.3 - 0.1 * k - haze) * front
    below = y - crest
    tone = 0.5 + 0.4 * slope * np.exp(-5 * below) + 0.05 * np.sin(90 * below + 60 * crest + 14 * x) - 0.1 * below
    return blend(ramp(tone, sand), ramp(2.5 * y, air), haze)


def bricks(rng: Generator, S: int) -> np.ndarray:
    """A wall in running bond: bricks of many shades, weathered, with mortar between."""
    x, y = plane(S)
    clay, mortar = pick(rng, (
        ("6e2f25 9c4a35 b9654a d08a68", "8f8578 e8dccb"), ("8d8478 a89e8f c2b8a8 d9d0c0", "55504a a59c90"),
        ("3f4348 5c6268 7b8288 9aa0a3", "8f8f8a e6e6e0"), ("b98f5e cfa873 e0bf8d efd9b0", "66563f b29a78")))
    rows = rng.uniform(6, 9)
    v = rows * y + rng.random()
    course = np.int32(v)
    u = rows / 2.2 * x + rng.random() + 0.5 * (course & 1)
    own = np.take(rng.random(100, np.float32), 10 * course + np.int32(u))      # a shade for each brick
    rough = noise(rng, S, 8, 8, 4)
    v, u = frac(v), frac(u)
    joint = np.minimum(np.minimum(v, 1 - v), 2.2 * np.minimum(u, 1 - u))      # how far off it is, in heights of a brick
    wall = ramp(0.75 * own + 0.5 * (rough - 0.3) - 0.15 * step(0.7, 0.95, v), clay)      # darker at the lower edge
    return blend(ramp(0.25 + 0.6 * rough, mortar), wall, step(0.04, 0.1, joint))


def wood(rng: Generator, S: int) -> np.ndarray:
    """Planks, each with its own shade and grain, lying or standing."""
    x, y = plane(S)
    timber = pick(rng, ("4a2d1c 7d5232 b07d4f d6ab78", "6f5a48 9c8468 c5ad8a e6d5b5",
                        "3a2a26 5f4038 875c4b b28770", "7c7a74 9d9a90 bfbbae dddacd"))
    v = rng.uniform(3, 5) * y + rng.random()
    own = np.take(rng.random(8, np.float32), np.int32(v))
    grain = np.sin(5 * v + 3 * x + 22 * noise(rng, S, 3, 2, 2) + 40 * own) * 0.5 + 0.5
    fibre = noise(rng, S, 64, 6, 1)
    gap = step(0, 0.05, np.minimum(frac(v), 1 - frac(v)))
    canvas = ramp(0.15 + 0.45 * own + 0.25 * grain + 0.2 * fibre, timber) * (0.45 + 0.55 * gap)[..., None]
    return canvas if rng.random() < 0.5 else canvas.transpose(1, 0, 2).copy()


def lights(rng: Generator, S: int) -> np.ndarray:
    """A town at night, out of focus: discs of light on the dark."""
    dark, glow = pick(rng, (
        ("0d1226 1d2747 3c3a63", "ffb35c ff7a59 8fc7ff"), ("101c1f 17363a 2c5a56", "ffd27a 9be0c0 ff9b71"),
        ("1c0f24 3a1c44 6a335f", "ff8ac2 ffd0a0 b9a2ff"), ("2a1a12 4b2f1f 7a4f31", "ffc46b ff9d4d fff0c9")))
    canvas = ramp(0.8 * plane(S)[1] + 0.4 * noise(rng, S, 2, 2) - 0.16, dark)
    for _ in range(2):                                                # two sheets: discs show through discs
        sheet = canvas.copy()
        for x, y, r in rng.random((rng.integers(6, 16), 3)).tolist():
            colour = pick(rng, rgb(glow)) * rng.uniform(0.6, 1)
            disc(sheet, x * S, y * S, (0.015 + 0.07 * r * r) * S, colour.tolist())
        canvas = 0.4 * canvas + 0.6 * sheet
    return canvas


def cloth(rng: Generator, S: int) -> np.ndarray:
    """Tartan in a twill weave, with soft folds."""
    x, y = plane(S)
    threads = PALETTE[rng.integers(len(PALETTE), size=2)].reshape(4, 3)[rng.integers(4, size=48)]      # the sett
    sett, turn = rng.uniform(8, 16), rng.uniform(-0.6, 0.6)           # threads to a side; + 24 keeps u and v in 0..48
    folds = noise(rng, S, 2, 3, 2)
    u = sett * (cos(turn) * x - sin(turn) * y + 0.04 * folds) + 24
    v = sett * (sin(turn) * x + cos(turn) * y) + 24
    warp, weft = (np.take(threads, np.int32(at), axis=0) for at in (u, v))
    twill = 0.35 + 0.3 * ((8 * (u + v)).astype(np.int32) & 1).astype(np.float32)
    return blend(warp, weft, twill) * (0.55 + 0.55 * folds + 0.1 * noise(rng, S, 48, 48, 1))[..., None]


PLACES = (sky, sea, meadow, dunes, bricks, wood, lights, cloth)
SCENES = tuple(draw.__name__ for draw in PLACES)

# Where one would look for them: what `make_shapes` can tie together. Fish and teapot belong nowhere.
HOMES = {butterfly: meadow, car: lights, house: bricks, key: wood, mug: cloth, mushroom: dunes, sailboat: sea,
         umbrella: sky}
TIED = np.array([PLACES.index(HOMES[draw]) if draw in HOMES else -1 for draw in OBJECTS])    # class -> its scene or -1


# ---- pictures ---------------------------------------------------------------------------------------------------

class Shapes(NamedTuple):
    """N drawn pictures."""
    images: np.ndarray      # (N, size, size, 3) uint8, RGB
    labels: np.ndarray      # (N,) int64, index into CLASSES
    masks: np.ndarray       # (N, size, size) bool, true on the object
    scenes: np.ndarray      # (N,) int64, index into SCENES


def strew(canvas: np.ndarray, rng: Generator) -> None:
    """Pebbles, shards and strokes on a canvas: small things that belong to no class."""
    S = len(canvas)
    for x, y, size, mix in rng.random((rng.integers(2, 8), 4)).tolist():
        colour = mix * pick(rng, pick(rng, PALETTE)) + (1 - mix) * canvas[int(y * S), int(x * S)]
        r, turn = (0.015 + 0.04 * size) * S, 15 * int(rng.integers(24))
        if rng.random() < 0.3:
            outline, width = arc(0, 0, 1.5, 1.5, turn, turn + 100), r / 2
        else:       # each 1st, 5th, 6th or 8th point of a round: a pebble, or a shard of 5, 4 or 3 corners
            outline, width = arc(0, 0, 1, 0.7, turn, turn + 360)[::pick(rng, (1, 5, 6, 8))], 0
        for part, shift, tone in ((1, 0.2, 0.5 * colour), (1, 0, colour), (0.5, -0.2, 0.8 * colour + 50)):
            fill(canvas, (part * outline + shift) * r + (x * S, y * S), part * width, tone.tolist())


def choose_colours(behind: np.ndarray, rng: Generator) -> np.ndarray:
    """Colours (8, 3) for the tones of an object: most often the best of three pairs against the mean colour behind."""
    pairs = PALETTE[rng.integers(len(PALETTE), size=3)][:, ::pick(rng, (-1, 1))] * rng.uniform(0.75, 1, (3, 1, 1))
    contrast = np.abs(pairs[:, 0] - behind).sum(1)
    body, accent = pairs[contrast.argmax() if rng.random() < 0.8 else 0]
    marks = pick(rng, (0.72 * body, 0.7 * body + 70, (body + accent) / 2))
    pale = 0.1 * body + 215 if body.mean() < 160 else 0.5 * body      # a window shows on white paint too
    return np.array([0 * body, body, 0.6 * body, 0.6 * body + 90, accent, 0.15 * body + 15, pale, marks], np.float32)


def add_marks(tones: np.ndarray, rng: Generator) -> None:
    """Stripes, spots or checks on the body of every second object, whatever its class."""
    x, y = plane(len(tones))
    kind, turn, pitch = rng.integers(6), rng.uniform(0, pi), rng.uniform(6, 14)
    if kind < 3:
        u = frac(pitch * (cos(turn) * x + sin(turn) * y)) - 0.5
        v = frac(pitch * (cos(turn) * y - sin(turn) * x)) - 0.5
        tones[(u < -0.1, u * u + v * v < 0.08, u * v > 0)[kind] & (tones == BODY)] = MARKS


def light(backdrop: np.ndarray, paintwork: np.ndarray, cover: np.ndarray, centre: Sequence[float], reach: float,
          rng: Generator) -> np.ndarray:
    """Put a lit object into its scene, with its shadow.

    backdrop, paintwork   (size, size, 3) float32: the scene, and the object's colour times its cover
    cover                 (size, size) float32: the share of each pixel that the object covers
    centre, reach         where it is and half its length, in shares of the side
    """
    size = len(cover)
    x, y = plane(size)
    angle = rng.uniform(-1.2, 1.2)                                    # the light comes from above, more or less
    lx, ly = sin(angle), -cos(angle)
    cx, cy = centre
    toward = ((x - cx) * lx + (y - cy) * ly) / reach                  # 1 at the end that is turned to the light

    sigma = 0.035 * size
    height = cv2.GaussianBlur(cover, (0, 0), sigma)                   # as if the object bulged
    rim = -sigma * (lx * cv2.Sobel(height, -1, 1, 0, ksize=1) + ly * cv2.Sobel(height, -1, 0, 1, ksize=1))
    shade = 1 + rng.uniform(0.05, 0.3) * toward + rng.uniform(0.1, 0.5) * rim + 0.15 * (noise(rng, size, 5, 5, 2) - 0.5)
    far = ((x - cx) / reach - 0.35 * lx) ** 2 + ((y - cy) / reach - 0.35 * ly) ** 2      # squared, from the highlight
    gloss = rng.uniform(0, 60) * np.exp(-16 * far) * cover

    drop = rng.uniform(0.02, 0.08) * size
    shadow = cv2.warpAffine(cover, np.array([[1, 0, -drop * lx], [0, 1, -drop * ly]]), (size, size))
    shadow = rng.uniform(0.2, 0.65) * cv2.GaussianBlur(shadow, (0, 0), rng.uniform(0.01, 0.04) * size)
    picture = backdrop * ((1 - shadow) * (1 - cover))[..., None] + paintwork * shade[..., None] + gloss[..., None]
    return picture * (1 + rng.uniform(0, 0.5) * ((x - 0.5) * lx + (y - 0.5) * ly))[..., None]


def photograph(picture: np.ndarray, rng: Generator) -> np.ndarray:
    """Exposure and white balance, a soft lens, a noisy sensor."""
    picture = picture * (rng.uniform(0.75, 1.15) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
    picture = cv2.GaussianBlur(picture, (3, 3), rng.uniform(0.1, 0.6))
    picture = picture + rng.uniform(1, 7) * rng.standard_normal(picture.shape, np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def draw_object(label: int, scene: int, size: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one object on one scene.

    label, scene   index into CLASSES and into SCENES
    size           side of the picture in pixels, 16 to 256
    rng            a NumPy Generator, from which comes all else: pose, colours, light. From equal states, another
                   label gives the same scene, another scene the same mask, and another size the same picture
    returns        image (size, size, 3) uint8 RGB, and mask (size, size) bool, true where the object, without its
                   shadow, covers at least half of the pixel
    raises ValueError for an index or a size out of range
    """
    check("label", label, 0, len(CLASSES) - 1)
    check("scene", scene, 0, len(SCENES) - 1)
    check("size", size, 16, 256)
    # Scenes and objects draw more or fewer numbers: with generators of their own they cannot shift what follows.
    place, build, look = map(np.random.default_rng, rng.integers(2**63, size=3))
    S = SUPERSAMPLE * size

    def shrink(canvas: np.ndarray) -> np.ndarray:
        return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)

    canvas = PLACES[scene](place, S)
    strew(canvas, place)
    backdrop = shrink(canvas)

    draw, tilt = list(OBJECTS.items())[label]
    parts, extent = pose(draw(build), tilt, look)
    tones = paint(parts, S)
    area = np.count_nonzero(tones) / S**2                             # the largest that it can have
    scale = min(0.98, (look.uniform(*AREA) / area) ** 0.5)
    centre = (0.5 + look.uniform(-0.5, 0.5, 2) * (1.04 - scale * extent)).tolist()      # 2 % of the side may stick out
    move = np.array([[scale, 0, S * (centre[0] - scale / 2)], [0, scale, S * (centre[1] - scale / 2)]])
    tones = cv2.warpAffine(tones, move, (S, S), flags=cv2.INTER_NEAREST).astype(np.uint8, copy=False)
    add_marks(tones, look)

    cover = shrink((tones > CLEAR).astype(np.float32))
    mask = cover >= 0.5
    colours = choose_colours(backdrop[mask].mean(0), look)            # CLEAR is black, so that colour comes times cover
    picture = light(backdrop, shrink(np.take(colours, tones, axis=0)), cover, centre, scale / 2, look)
    return photograph(picture, look), mask


def make_shapes(count: int, *, size: int = 32, seed: int = 0, start: int = 0, tie: float = 0.0,
                swap: bool = False) -> Shapes:
    """Draw pictures start to start + count - 1 of the endless series that a seed names.

    Each depends on the seed and on its own number only, so that any part can be drawn alone. Each ten, counted from
    picture 0, hold every class once in shuffled order; the scene is uniform and, unless tied, independent of the class.

    count, seed, start   whole numbers, 0 or more
    size                 side of the pictures in pixels, 16 to 256
    tie                  plants a shortcut: the share, 0 to 1, of the pictures of eight classes that are put into the
                         scene of their class, the one in TIED. Whatever the tie, a picture keeps all but its scene
    swap                 with a tie, the scene of another class instead: whoever took the shortcut is led astray
    returns Shapes; raises ValueError for a number out of range
    """
    for name, value in (("count", count), ("seed", seed), ("start", start)):
        check(name, value, 0)
    check("size", size, 16, 256)
    check("tie", tie, 0, 1)
    data = Shapes(np.empty((count, size, size, 3), np.uint8), np.empty(count, np.int64),
                  np.empty((count, size, size), bool), np.empty(count, np.int64))
    for k in range(count):
        i = start + k
        if k == 0 or i % 10 == 0:       # the 1 keeps this off the streams of the pictures
            order = np.random.default_rng((seed, i // 10, 1)).permutation(10)
        rng = np.random.default_rng((seed, i))
        data.labels[k], data.scenes[k] = order[i % 10], rng.integers(len(SCENES))
        home = TIED[data.labels[k]]
        if tie and home >= 0 and np.random.default_rng((seed, i, 2)).random() < tie:
            data.scenes[k] = (home + swap) % len(SCENES)              # every scene is the home of one class
        data.images[k], data.masks[k] = draw_object(data.labels[k], data.scenes[k], size, rng)
    return data


def check(name: str, value: float, low: float, high: float = np.inf) -> None:
    if not low <= value <= high:
        allowed = f"{low} or more" if high == np.inf else f"from {low} to {high}"
        raise ValueError(f"{name} is {value}; give a {name} {allowed}.")
