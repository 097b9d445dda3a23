"""A folder of anyone's pictures with captions -> prompt groups.

A caption stands in a text file beside its picture (``cat.jpg``, ``cat.txt``) or in a
``metadata.jsonl`` or ``metadata.csv`` in the same folder or above it (``file_name`` and ``text``
or ``caption``, the layout of Hugging Face's imagefolder). Pictures with the same caption form the
group of that prompt. What cannot be used is passed over, and said.
"""

import concurrent.futures
import csv
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import pathlib
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from cosdiff_jax.data import buckets, files, preprocess
from cosdiff_jax.data.buckets import Bucket

_log = logging.getLogger("cosdiff_jax")

CAPTION_FIELDS = ("text", "caption")

# Decoded pictures are kept up to this many bytes; beyond, they are decoded again when drawn.
KEEP = 2**30
# A small folder still gives an epoch of at least this many groups, each a fresh draw.
SHORTEST_EPOCH = 256


@dataclasses.dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        pictures: (path, caption) of every picture that has a caption, sorted by path.
        skipped: (name relative to the folder, reason) of every one that has none, and of every
            line of metadata that says nothing about a picture.
        total: picture files seen.
    """

    pictures: tuple[tuple[pathlib.Path, str], ...]
    skipped: tuple[tuple[str, str], ...]
    total: int


class _Usable(NamedTuple):
    """A picture that can be used: the number of its shape, and itself where it is kept."""

    bucket: int
    image: np.ndarray | None


class _Pile(NamedTuple):
    """Pictures of one caption and one shape, by number."""

    prompt: int
    bucket: int
    pictures: tuple[pathlib.Path, ...]


class FolderGroups:
    """Groups of one caption and K of its pictures, all of one shape.

    In one round every caption's pictures are shuffled and dealt out K at a time, so that each
    picture is seen; the last hand is filled up from the others. A caption with fewer than K
    pictures gives one group a round in which they repeat. Rounds follow until an epoch has at
    least SHORTEST_EPOCH groups. Group ``i`` is a function of the folder, ``seed`` and ``i``. Where
    pictures keep their shapes (``longest``), those of one caption and one shape are dealt out.

    Attributes:
        captions: the captions of this split, sorted.
        prompts: how many captions there are.
        varied: how many of them have two pictures that can stand in one group.
        shapes: the sizes that pictures are cut to.
        buckets: for each group the number of its size; None where all have one.
        skipped: (name, reason) of everything that was passed over, broken pictures included.
        summary: one line for the user: how many of how many, what was skipped and why.
    """

    def __init__(
        self,
        *,
        path: str,
        size: int = 64,
        longest: float = 1.0,
        step: int = 16,
        split: str = "train",
        samples: int = 8,
        test: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Read the folder.

        Args:
            path: the folder; sub-folders are searched too.
            size: side in pixels of the square that is cut from the middle.
            longest: ratio of long side to short side up to which pictures for training keep their
                shape, at the square's area; at 1 all are squares. Held-out pictures always are.
            step: pixels that both sides of such a shape are multiples of: the autoencoder's
                reduction times the transformer's patch, or a multiple of that.
            split: "train" or "test".
            samples: K, pictures a prompt.
            test: share of the captions held out, chosen by a hash of the caption, so that more
                pictures later do not move the old ones; at 0 both splits are the whole folder.
            seed: of the draw.

        Raises:
            ValueError: no folder, no usable picture in it, no caption in this split, or a wrong
                knob.
        """
        if split not in ("train", "test"):
            raise ValueError(f"folder: split {split!r} is neither train nor test")
        if samples < 1 or size < 1 or not 0 <= test < 1:
            raise ValueError(
                "folder: samples and size must be at least 1 and test in [0, 1), "
                f"not {samples}, {size} and {test}"
            )
        self.shapes = (Bucket(size, size),)
        if longest != 1 and split == "train":
            try:
                self.shapes = buckets.sizes(size, step, longest=longest)
            except ValueError as error:
                fields = "data.folder.size, data.folder.step or data.folder.longest"
                raise ValueError(f"{fields}: {error}") from None
        self.size, self.samples, self.seed = size, samples, seed
        found = scan(path)
        usable, broken = self._decode(found.pictures)
        root = pathlib.Path(path).expanduser()
        broken = [(files.relative(place, root), reason) for place, reason in broken]
        self.skipped = tuple(sorted({*found.skipped, *broken}))
        if not usable:
            raise ValueError(
                f"folder {path}: none of its {found.total} images can be used; "
                f"{files.say(self.skipped)}"
            )
        piles: dict[tuple[str, int], list[pathlib.Path]] = {}
        for place, caption in found.pictures:
            if place in usable and (not test or (_share(caption) < test) == (split == "test")):
                piles.setdefault((caption, usable[place].bucket), []).append(place)
        if not piles:
            raise ValueError(
                f"folder {path}: with data.folder.test = {test} no caption is left for the {split} "
                "split; change the share or add captions"
            )
        self.captions: Sequence[str] = tuple(sorted({caption for caption, _ in piles}))
        self.prompts = len(self.captions)
        self.path = str(path)
        numbers = {caption: number for number, caption in enumerate(self.captions)}
        self._piles = tuple(
            _Pile(numbers[caption], bucket, tuple(piles[caption, bucket]))
            for caption, bucket in sorted(piles)
        )
        self.varied = len({pile.prompt for pile in self._piles if len(pile.pictures) > 1})
        self._kept = usable
        self._deals = [
            (deal, place)
            for deal in range(max(-(-len(p.pictures) // samples) for p in self._piles))
            for place in range(len(self._piles))
            if deal * samples < len(self._piles[place].pictures)
        ]
        self.summary = self._say(found, len(usable), split if test else "")
        _log.info(self.summary)

    def __len__(self) -> int:
        rounds = -(-SHORTEST_EPOCH // len(self._deals))
        return rounds * len(self._deals)

    @functools.cached_property
    def buckets(self) -> Sequence[int] | None:
        """See above."""
        if len({pile.bucket for pile in self._piles}) == 1:
            return None
        return tuple(self._piles[self._deal(index)[2]].bucket for index in range(len(self)))

    def caption(self, index: int) -> str:
        """The caption of group ``index``."""
        return self.captions[self._piles[self._deal(index)[2]].prompt]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"caption": str, "prompt": int, "images": uint8 [K Y X 3], "distinct": bool [K]}``.

        ``distinct`` is False where a picture repeats one before it.
        """
        turn, deal, place = self._deal(index)
        prompt, _, pictures = self._piles[place]
        order = np.random.default_rng([self.seed, turn, place]).permutation(len(pictures))
        # np.take wraps round: the last hand is filled from the start of the shuffled pile.
        wanted = np.arange(deal * self.samples, (deal + 1) * self.samples)
        chosen = np.take(order, wanted, mode="wrap")
        images = np.stack([self._image(pictures[picture]) for picture in chosen])
        return {
            "caption": self.captions[prompt],
            "prompt": prompt,
            "images": images,
            "distinct": np.arange(self.samples) < len(pictures),
        }

    def _deal(self, index: int) -> tuple[int, int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"group {index} of {len(self)}")
        turn, rest = divmod(int(index), len(self._deals))
        return turn, *self._deals[rest]

    def _read(self, path: pathlib.Path) -> UInt8[np.ndarray, "Y X 3"]:
        return preprocess.read(path, self.size, self.shapes)

    def _image(self, path: pathlib.Path) -> UInt8[np.ndarray, "Y X 3"]:
        kept = self._kept[path].image
        return self._read(path) if kept is None else kept

    def _decode(
        self, pictures: Sequence[tuple[pathlib.Path, str]]
    ) -> tuple[dict[pathlib.Path, _Usable], list[tuple[pathlib.Path, str]]]:
        """Read every picture once: the good ones, and (path, reason) of the others.

        They are kept unless all together are more than KEEP bytes.
        """

        def attempt(path: pathlib.Path) -> np.ndarray | str:
            try:
                return self._read(path)
            except preprocess.Unusable as error:
                return str(error)

        paths = [path for path, _ in pictures]
        keep = len(paths) * self.size**2 * 3 <= KEEP
        usable, broken = {}, []
        with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as pool:
            # Pillow warns of large pictures and odd metadata; each loss gets a reason below.
            warnings.simplefilter("ignore")
            for path, result in zip(paths, pool.map(attempt, paths), strict=True):
                if isinstance(result, str):
                    broken.append((path, result))
                else:
                    bucket = self.shapes.index(Bucket(*result.shape[:2]))
                    usable[path] = _Usable(bucket, result if keep else None)
        return usable, broken

    def _say(self, found: Found, usable: int, split: str) -> str:
        line = f"folder: used {usable} of {found.total} images"
        if split:
            here = sum(len(pile.pictures) for pile in self._piles)
            line += f", {here} of them in the {len(self.captions)} captions of the {split} split"
        else:
            line += f" in {len(self.captions)} caption{'s' * (len(self.captions) > 1)}"
        if self.skipped:
            line += f"; skipped {files.say(self.skipped)}"
        few, shapes = sum(len(p.pictures) < self.samples for p in self._piles), len(self.shapes) > 1
        if few:
            line += (
                f". {few} of {len(self._piles)} captions{' and shapes' * shapes} have fewer than "
                f"{self.samples} pictures: their pictures repeat"
            )
        return line


def scan(path: str | pathlib.Path) -> Found:
    """List a folder's pictures and their captions without opening a picture.

    Hidden files and folders are not looked at. Linked folders are followed, each once, so that a
    link to a parent ends nothing. A line of metadata wins over a text file.

    Raises:
        ValueError: there is no such folder, or no picture in it.
    """
    if not str(path):
        raise ValueError("data.folder.path is empty: say which folder has the pictures")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise ValueError(f"data.folder.path: {path} {kind}")
    captions: dict[str, str | None] = {}
    skipped: list[tuple[str, str]] = []
    listed: list[pathlib.Path] = []
    for folder, names in files.walk(root):
        for name in names:
            if name in ("metadata.jsonl", "metadata.csv"):
                _metadata(folder / name, root, captions, skipped)
            elif pathlib.Path(name).suffix.lower() in files.READABLE | files.UNREADABLE:
                listed.append(folder / name)
    if not listed:
        raise ValueError(
            f"data.folder.path: {path} has no pictures ({' '.join(sorted(files.READABLE))})"
        )

    pictures = []
    seen = set()
    for file in sorted(listed):
        name = files.relative(file, root)
        seen.add(files.normal(name))
        if file.suffix.lower() in files.UNREADABLE:
            skipped.append((name, f"{file.suffix[1:].upper()} is not a format that can be read"))
            continue
        caption: str | None = captions.get(files.normal(name))
        if files.normal(name) not in captions:
            try:
                caption = _text_beside(file)
            except ValueError as error:
                skipped.append((name, str(error)))
                continue
            if caption is None:
                skipped.append((name, "no caption"))
                continue
        caption = " ".join(unicodedata.normalize("NFC", caption or "").split())
        if caption:
            pictures.append((file, caption))
        else:
            skipped.append((name, "empty caption"))
    skipped += [
        (name, "named in the metadata, but no such file") for name in captions if name not in seen
    ]
    return Found(tuple(pictures), tuple(skipped), len(listed))


def _metadata(
    file: pathlib.Path,
    root: pathlib.Path,
    captions: dict[str, str | None],
    skipped: list[tuple[str, str]],
) -> None:
    """Add what one metadata file says to ``captions``, by name relative to ``root``."""
    try:
        text = _decode_text(file.read_bytes())
    except (OSError, ValueError) as error:
        skipped.append((files.relative(file, root), f"cannot be read: {error}"))
        return
    for number, record in _records(file, text):
        line = f"{files.relative(file, root)} line {number}"
        if not isinstance(record, Mapping) or not isinstance(record.get("file_name"), str):
            skipped.append((line, "no file_name"))
            continue
        place = pathlib.Path(os.path.normpath(file.parent / record["file_name"]))
        if not place.is_relative_to(os.path.normpath(root)):
            skipped.append((line, "points outside the folder"))
            continue
        caption = next((record[field] for field in CAPTION_FIELDS if record.get(field)), None)
        if isinstance(caption, str | None):
            captions[files.normal(files.relative(place, root))] = caption
        else:
            skipped.append((line, "its caption is not text"))


def _records(file: pathlib.Path, text: str) -> Iterator[tuple[int, Any]]:
    if file.suffix == ".csv":
        yield from enumerate(csv.DictReader(io.StringIO(text)), start=2)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _text_beside(picture: pathlib.Path) -> str | None:
    for suffix in (".txt", ".TXT"):
        file = picture.with_suffix(suffix)
        if file.is_file():
            try:
                return _decode_text(file.read_bytes())
            except OSError:
                raise ValueError("its caption file cannot be read") from None
    return None


def _decode_text(raw: bytes) -> str:
    try:
        return files.decode(raw)
    except UnicodeDecodeError:
        raise ValueError("its caption is not UTF-8") from None


def _share(caption: str) -> float:
    """A number in [0, 1) that depends on the caption alone, on every machine."""
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8]) / 2**64
