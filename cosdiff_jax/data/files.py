"""Walking through folders that others made, and saying what in them could not be used."""

import os
import pathlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

READABLE = frozenset(
    f".{kind}"
    for kind in ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "avif")
)
UNREADABLE = frozenset(
    f".{kind}" for kind in ("heic", "heif", "svg", "psd", "raw", "cr2", "nef", "arw", "dng", "eps")
)
NAMED = 20


def walk(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """(folder, names of its files), sorted, without what is hidden.

    Linked folders are followed, each once, so that a link to a parent ends nothing.
    """
    visited = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield pathlib.Path(folder), sorted(name for name in names if not name.startswith("."))


def relative(path: pathlib.Path, root: pathlib.Path) -> str:
    """The name of a file below ``root``, with / on every system."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def normal(name: str) -> str:
    """A name as NFC."""
    # macOS stores é as e and an accent; the person who wrote the metadata typed one letter.
    return unicodedata.normalize("NFC", name)


def decode(raw: bytes) -> str:
    """UTF-8, or UTF-16 where the file begins by saying so (Windows Notepad).

    Raises:
        UnicodeDecodeError: it is neither.
    """
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    return raw.decode("utf-16" if wide else "utf-8-sig")


def say(skipped: Sequence[tuple[str, str]]) -> str:
    """``2: a.png (no caption), b.png (zero bytes)``: the first NAMED, the others counted."""
    line = f"{len(skipped)}: " + ", ".join(f"{n} ({reason})" for n, reason in skipped[:NAMED])
    if len(skipped) > NAMED:
        counts = Counter(reason for _, reason in skipped).most_common()
        line += f" and {len(skipped) - NAMED} more; in all " + ", ".join(
            f"{number} {reason}" for reason, number in counts
        )
    return line
