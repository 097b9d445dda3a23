"""Scenes to pixels: signed distances, antialiased by how much of a pixel lies inside.

Pixel (row j, column i) has its centre at y = j + 1/2, x = i + 1/2. Inside an object whose signed
distance is d (negative inside, in pixels), the colour covers clip(1/2 - d, 0, 1) of a pixel.
"""

import functools

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from cosdiff_jax.data.scenes.prior import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES, Scene

RING_HOLE = 0.45
"""Radius of a ring's hole, as a part of its outer radius."""


def render(scene: Scene) -> UInt8[np.ndarray, "X Y C"]:
    """Paints a scene: uint8 RGB [64, 64, 3], the same bytes for the same scene."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = BACKGROUNDS[str(scene.background)]
    for item in scene.objects:
        radius = SIZES[str(item.size)]
        left, right = _window(item.x, radius)
        top, bottom = _window(item.y, radius)
        x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - item.x)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - item.y)
        cover = coverage(str(item.shape), x, y, radius)[..., None]
        patch = image[top:bottom, left:right]
        patch += cover * (np.array(COLOURS[str(item.colour)], np.float32) - patch)
    pixels = (image + 0.5).astype(np.uint8)
    words = [(item.word, item.x, item.y) for item in scene.objects if item.word]
    return _write(pixels, words) if words else pixels


def coverage(
    shape: str, x: Float[np.ndarray, "1 Y"], y: Float[np.ndarray, "X 1"], radius: float
) -> Float[np.ndarray, "X Y"]:
    """How much of each pixel an object covers, in [0, 1].

    Args:
      shape: one of SHAPES.
      x: pixel centres to the right of the object's centre, in pixels.
      y: pixel centres below the object's centre, in pixels.
      radius: half the side of the object's box, in pixels.

    Raises:
      ValueError: an unknown shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r} is none of {', '.join(SHAPES)}")
    return np.clip(0.5 - _distance(shape, x, y, radius), 0.0, 1.0)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Signed distance in pixels, exact near straight and round edges (corners only nearly)."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - np.float32(0.96 * r)
    if shape == "ring":
        middle, half = r * (1 + RING_HOLE) / 2, r * (1 - RING_HOLE) / 2
        return np.abs(np.sqrt(x * x + y * y) - np.float32(middle)) - np.float32(half)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.88 * r)
    if shape == "cross":
        across, down, arm = np.abs(x), np.abs(y), np.float32(0.31 * r)
        lying = np.maximum(across - np.float32(r), down - arm)
        standing = np.maximum(across - arm, down - np.float32(r))
        return np.minimum(lying, standing)
    if shape == "triangle":
        # Equilateral, base 2 r wide at the bottom; the slopes make 60 degrees with it.
        half = np.float32(np.sqrt(3) / 2 * r)
        slope = np.abs(x) * half / np.float32(r) - (y + half) * np.float32(0.5)
        return np.maximum(slope, y - half)
    # Five-pointed star: fold the plane into half a point, where the outline is one straight line.
    y = y - np.float32(0.05 * r)
    outer, inner = 1.06 * r, 0.47 * r
    angle = np.arctan2(x, -y)
    fold = np.float32(2 * np.pi / 5)
    angle = np.abs(angle - fold * np.round(angle / fold))
    length = np.sqrt(x * x + y * y)
    u, v = length * np.cos(angle), length * np.sin(angle)
    du, dv = inner * np.cos(np.pi / 5) - outer, inner * np.sin(np.pi / 5)
    scale = np.hypot(du, dv)
    return (u - np.float32(outer)) * np.float32(dv / scale) - v * np.float32(du / scale)


def _window(centre: float, radius: float) -> tuple[int, int]:
    # One pixel and a half more than the box: no shape's soft edge reaches further.
    low, high = int(centre - radius - 1.5), int(centre + radius + 2.5)
    return max(low, 0), min(high, SIDE)


def _write(pixels: np.ndarray, words: list[tuple[str, float, float]]) -> np.ndarray:
    """Prints each word in black or white, whichever differs more from what is under it."""
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    for word, x, y in words:
        under = pixels[min(int(y), SIDE - 1), min(int(x), SIDE - 1)].mean()
        pen.text((x, y), word, fill=(0, 0, 0) if under > 110 else (255, 255, 255),
                 font=_font(), anchor="mm")  # fmt: skip
    return np.asarray(picture)


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=11)
