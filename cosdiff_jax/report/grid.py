"""Groups of pictures -> one PNG: a row for each prompt, a column for each of its K samples."""

import functools
import io
import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8
from matplotlib import font_manager, ft2font
from PIL import Image, ImageDraw, ImageFont

Pictures: TypeAlias = (
    Float[Array, "P K X Y C"] | Float[np.ndarray, "P K X Y C"] | UInt8[np.ndarray, "P K X Y C"]
)
"""Groups of pictures: floats in [-1, 1] or bytes, with 1 (grey) or 3 (RGB) channels."""

PAPER, INK, FAINT = (250, 249, 246), (33, 31, 28), (150, 145, 136)

# Faces that hold Hangul and Han together, tried before the rest because opening every font of a
# desktop takes seconds.
CJK_FACES = (
    "Noto Sans CJK",
    "Noto Sans KR",
    "Source Han Sans",
    "Apple SD Gothic Neo",
    "Malgun Gothic",
    "NanumGothic",
    "Arial Unicode MS",
    "Droid Sans Fallback",
    "Unifont",
)


def to_bytes(images: Pictures) -> UInt8[np.ndarray, "P K X Y C"]:
    """Floats in [-1, 1] as bytes 0..255, rounded and clipped; bytes pass through.

    A NaN becomes 0 (black): a broken picture has to be seen, not to stop the report.
    """
    pixels = np.asarray(images)
    if pixels.dtype == np.uint8:
        return pixels
    pixels = np.nan_to_num(pixels.astype(np.float32), nan=-1.0, posinf=1.0, neginf=-1.0)
    return np.round((np.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def grid(
    images: Pictures,
    labels: Sequence[str] | None = None,
    scale: int | None = None,
    gutter: int = 2,
) -> Image.Image:
    """Draw groups of pictures as a contact sheet.

    Args:
        images: row p holds the K samples of prompt p.
        labels: P captions, written in the left margin; None leaves the margin out. A caption
            with a character that no font on this machine can draw is written as ``#p`` (counted
            from 1) instead; ``undrawable`` lists those, for a key beside the picture.
        scale: whole-number nearest-neighbour enlargement; by default the one that brings a
            picture nearest to 128 pixels, at least 1.
        gutter: pixels between two pictures.

    Raises:
        ValueError: the number of labels is not the number of rows.
    """
    pixels = to_bytes(images)
    rows, columns, height, width, channels = pixels.shape
    if labels is not None and len(labels) != rows:
        raise ValueError(f"the grid has {rows} rows of pictures but {len(labels)} labels")
    scale = scale or max(1, round(128 / max(height, width)))
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    height, width = height * scale, width * scale
    if channels == 1:
        pixels = pixels.repeat(3, axis=-1)

    margin = 0 if labels is None else max(132, min(260, 2 * width))
    sheet = Image.new(
        "RGB",
        (margin + columns * (width + gutter) + gutter, rows * (height + gutter) + gutter),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for row in range(rows):
        top = gutter + row * (height + gutter)
        if labels is not None:
            _caption(draw, labels[row], row, (8, top, margin - 10, height))
        for column in range(columns):
            left = margin + gutter + column * (width + gutter)
            sheet.paste(Image.fromarray(pixels[row, column]), (left, top))
    return sheet


def write_png(
    path: str | os.PathLike,
    images: Pictures,
    labels: Sequence[str] | None = None,
    scale: int | None = None,
    gutter: int = 2,
) -> None:
    """``grid`` into a PNG file, folders made as needed.

    Where captions could only be numbered, ``captions.txt`` beside the picture says which is which.
    """
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    grid(images, labels, scale, gutter).save(buffer, format="PNG", optimize=True)
    file.write_bytes(buffer.getvalue())
    key = undrawable(labels or ())
    if key:
        lines = "".join(f"{number} {caption}\n" for number, caption in key.items())
        (file.parent / "captions.txt").write_text(lines, encoding="utf-8")


def undrawable(labels: Sequence[str]) -> dict[str, str]:
    """``{"#3": caption}`` for the captions that ``grid`` can only number on this machine."""
    return {f"#{row + 1}": label for row, label in enumerate(labels) if _face(label) is None}


def _caption(
    draw: ImageDraw.ImageDraw, text: str, row: int, box: tuple[int, int, int, int]
) -> None:
    """Write a caption into (left, top, width, height), wrapped, vertically centred."""
    left, top, width, height = box
    face = _face(text)
    if face is None:
        text, face, colour = f"#{row + 1}", _latin_face(), FAINT
    else:
        colour = INK
    size = min(16, max(10, height // 8))
    font = ImageFont.truetype(face[0], size=size, index=face[1])
    line_height = round(size * 1.3)
    lines = _wrap(text, font, width)
    room = max(1, height // line_height)
    if len(lines) > room:
        lines = lines[:room]
        while lines[-1] and font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    y = top + (height - line_height * len(lines)) // 2
    for line in lines:
        draw.text((left, y), line, font=font, fill=colour)
        y += line_height


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break at spaces; inside a word only where it alone is too wide (Chinese has no spaces)."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _latin_face() -> tuple[str, int]:
    # matplotlib brings DejaVu Sans along, so Latin captions need no font of the system.
    return font_manager.findfont("DejaVu Sans", fallback_to_default=True), 0


def _face(text: str) -> tuple[str, int] | None:
    """The first font with a glyph for every character of ``text`` as (file, index), or None."""
    wanted = frozenset(ord(letter) for letter in text if not letter.isspace())
    return _covering(wanted)


@functools.cache
def _covering(wanted: frozenset[int]) -> tuple[str, int] | None:
    latin = _latin_face()
    if wanted <= _glyphs(*latin):
        return latin
    for file, index in _faces():
        if wanted <= _glyphs(file, index):
            return file, index
    return None


@functools.cache
def _faces() -> tuple[tuple[str, int], ...]:
    def order(font: font_manager.FontEntry) -> tuple[bool, bool, str, str]:
        known = any(font.name.startswith(face) for face in CJK_FACES)
        return (not known, str(font.weight) not in ("400", "normal"), font.name, font.fname)

    # "Last Resort" claims every character and draws a box for each: the very thing to avoid.
    fonts = [font for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name]
    return tuple((font.fname, getattr(font, "index", 0)) for font in sorted(fonts, key=order))


@functools.cache
def _glyphs(file: str, index: int) -> frozenset[int]:
    try:
        font = ft2font.FT2Font(file, face_index=index)
        # Colour-emoji fonts hold bitmaps of one size and cannot be drawn at ours.
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, TypeError):  # unreadable, or removed since the cache was made
        return frozenset()
