"""One picture file of any kind -> RGB bytes of the size a model wants."""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from cosdiff_jax.data.buckets import Bucket, cover, nearest


class Unusable(ValueError):
    """A picture that cannot be used; the message is the reason, in a few words."""


def read(
    path: str | pathlib.Path, size: int, shapes: Sequence[Bucket] = ()
) -> UInt8[np.ndarray, "Y X 3"]:
    """Decode a file, turn it upright, make it RGB, cut its middle to shape and resize it.

    Args:
        path: the file.
        size: side of the square, which all the shapes have about the area of.
        shapes: sizes to choose from: that of the shape nearest to the picture's. Without any it is
            the square.

    Raises:
        Unusable: "zero bytes", "broken image", "too many pixels" and so on.
    """
    path, square = pathlib.Path(path), Bucket(size, size)
    try:
        if path.is_symlink() and not path.exists():
            raise Unusable("broken link")
        if path.stat().st_size == 0:
            raise Unusable("zero bytes")
        with Image.open(path) as image:
            # A JPEG can be decoded at half, a quarter or an eighth: all that a thumbnail needs.
            # Only a hint, and the result is never smaller than what is asked for.
            image.draft(None, (2 * size, 2 * size))
            whole = to_rgb(upright(image))
            chosen = shapes[nearest(whole.height, whole.width, shapes)] if shapes else square
            return cover(whole, chosen)
    except Unusable:
        raise
    except FileNotFoundError:
        raise Unusable("no such file") from None
    except PermissionError:
        raise Unusable("no permission to read") from None
    except Image.DecompressionBombError:
        raise Unusable("too many pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, EOFError):
        raise Unusable("broken image") from None
    except MemoryError:
        raise Unusable("too large for the memory") from None
    # Decoders of damaged files raise nearly anything (struct.error, zlib.error, IndexError ...),
    # and one bad file must not end a run: whatever it is, its name goes into the reason.
    except Exception as error:
        raise Unusable(f"broken image: {type(error).__name__}") from None


def upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as the EXIF orientation says; as it is where EXIF is damaged."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a malformed EXIF block is no reason to lose the picture
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB from grey, palette, CMYK, 16-bit and transparent pictures (those on white).

    Raises:
        Unusable: a colour mode that has no conversion, such as LAB.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise Unusable(f"colour mode {image.mode}") from None


def _to_eight_bits(pixels: np.ndarray) -> UInt8[np.ndarray, "Y X"]:
    """Grey of more than 8 bits, scaled by the range that its values suggest."""
    values = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if pixels.dtype == np.uint16:
        low, high = 0.0, 65_535.0
    elif low >= 0:
        whole = np.issubdtype(pixels.dtype, np.integer)
        ranges = (255.0, 65_535.0) if whole else (1.0, 255.0, 65_535.0)
        low, high = 0.0, next((limit for limit in ranges if high <= limit), high)
    return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
