"""Pictures that anything at all drew of known prompts -> groups to measure.

A folder is laid out in one of four ways:

    folders   one sub-folder a prompt: KEY/*.png, or 00012/*.png for row 12 of the prompt file
    geneval   00012/metadata.jsonl with the prompt, 00012/samples/0000.png ... (arXiv:2310.11513)
    prefix    KEY_0.png, KEY-0001.jpg, 00012_3.png, KEY.png, or the prompt itself instead of its
              key (T2I-CompBench's way); also in sub-folders, which say nothing (MJHQ-30K's way)
    generate  grid.json and grid_p0_k0.png ..., as ``cosdiff_jax.generate`` writes them

Names are listed at the beginning, pictures are read when they are asked for.
"""

import concurrent.futures
import dataclasses
import json
import logging
import pathlib
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from cosdiff_jax.data import files, preprocess
from cosdiff_jax.data import prompts as prompt_sets
from cosdiff_jax.data.prompts import Prompt

_log = logging.getLogger("cosdiff_jax")

LAYOUTS = ("folders", "geneval", "prefix", "generate")
_OURS = re.compile(r"(.+)_p(\d+)_k(\d+)")
_NUMBERED = re.compile(r"(.+)[-_]\d+")


class Gallery:
    """Groups of one prompt and the pictures found of it, any number, at least one.

    Attributes:
        prompts: the prompt set, those without pictures too.
        missing: keys of the prompts without pictures.
        skipped: (name, reason) of every picture that belongs to no prompt or cannot be read; grows
            while pictures are read.
        layout: how the folder turned out to be laid out.
        summary: one line for the user: how many pictures of how many prompts, what is missing.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        prompts: str | pathlib.Path | Sequence[Prompt] | None = None,
        *,
        size: int = 64,
        layout: str | None = None,
        check: bool = False,
    ) -> None:
        """List the folder.

        Args:
            path: the folder.
            prompts: the prompts, or their file; None where the layout tells them, which geneval
                and generate do.
            size: side in pixels; of another picture the middle square is resized to it with a
                triangle filter widened for shrinking, as ``preprocess.read`` does for every
                source of pictures (a JPEG at least four times as large is decoded smaller first).
            layout: one of ``LAYOUTS``; None recognises it.
            check: read every picture once now, so that a broken one is known before a long run.

        Raises:
            ValueError: no such folder, no picture that belongs to a prompt, or a wrong knob.
        """
        if layout not in (None, *LAYOUTS):
            raise ValueError(f"gallery: layout {layout!r} is not one of {', '.join(LAYOUTS)}")
        if size < 1:
            raise ValueError(f"gallery: size must be at least 1, not {size}")
        self._root = pathlib.Path(path).expanduser()
        if not self._root.is_dir():
            kind = "is a file, not a folder" if self._root.exists() else "does not exist"
            raise ValueError(f"gallery: {path} {kind}")
        self.size = size
        listing = _list(self._root)
        if not listing.pictures:
            raise ValueError(
                f"gallery: {path} has no pictures ({' '.join(sorted(files.READABLE))})"
            )
        given = _given(prompts)
        self.layout = layout or _recognise(listing, given)
        if given is None and self.layout in ("folders", "prefix"):
            raise ValueError(
                f"gallery: {path} does not say what its pictures were drawn of: give the prompts"
            )
        owners, known = _OWNERS[self.layout](listing, given)
        self.prompts: tuple[Prompt, ...] = tuple(known)
        skipped = list(listing.unreadable)
        found: dict[int, list[str]] = {}
        for name, owner in zip(listing.pictures, owners, strict=True):
            if isinstance(owner, int):
                found.setdefault(owner, []).append(name)
            elif owner:
                skipped.append((name, owner))
        if check:
            skipped += self._broken([name for names in found.values() for name in names])
            broken = {name for name, _ in skipped}
            found = {row: [n for n in names if n not in broken] for row, names in found.items()}
        self._groups = [
            (row, tuple(sorted(found[row], key=prompt_sets.natural)))
            for row in range(len(self.prompts))
            if found.get(row)
        ]
        self.skipped: tuple[tuple[str, str], ...] = tuple(skipped)
        if not self._groups:
            keys = ", ".join(prompt.key for prompt in self.prompts[:3]) or "none"
            raise ValueError(
                f"gallery {path}: as {self.layout}, none of its {len(listing.pictures)} pictures "
                f"({', '.join(listing.pictures[:3])} ...) can be used as one of the "
                f"{len(self.prompts)} prompts (keys {keys} ...); layouts are {', '.join(LAYOUTS)}"
            )
        pictured = {row for row, _ in self._groups}
        self.missing: tuple[str, ...] = tuple(
            prompt.key for row, prompt in enumerate(self.prompts) if row not in pictured
        )
        self.summary = self._say()
        _log.info(self.summary)

    def __len__(self) -> int:
        """Prompts that have pictures."""
        return len(self._groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"caption": str, "prompt": int, "key": str, "group": str, "names": [K names],
        "images": uint8 [K X X 3]}`` and whatever else the prompt set says of the prompt.

        "prompt" is its number in the prompt set. A picture that cannot be read is left out.

        Raises:
            ValueError: none of the group's pictures can be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"group {index} of {len(self)}")
        row, names = self._groups[index]
        prompt = self.prompts[row]
        images, read, lost = [], [], []
        for name in names:
            image = self._read(name)
            if isinstance(image, str):
                lost.append((name, image))
            else:
                images.append(image)
                read.append(name)
        if lost:
            known = set(self.skipped)
            self.skipped += tuple(loss for loss in lost if loss not in known)
            _log.warning("gallery %s: left out %s", self._root, files.say(lost))
        if not images:
            raise ValueError(
                f"gallery {self._root}: prompt {prompt.key} has no picture that can be read; "
                f"{files.say(lost)}"
            )
        return {
            **prompt.extra,
            "caption": prompt.text,
            "prompt": row,
            "key": prompt.key,
            "group": prompt.group,
            "names": read,
            "images": np.stack(images),
        }

    def names(self, index: int) -> tuple[str, ...]:
        """Files of group ``index``, relative to the folder; nothing is read."""
        return self._groups[index][1]

    def _read(self, name: str) -> UInt8[np.ndarray, "X X 3"] | str:
        """A picture, or why it cannot be used."""
        try:
            return preprocess.read(self._root / name, self.size)
        except preprocess.Unusable as error:
            return str(error)

    def _broken(self, names: Sequence[str]) -> list[tuple[str, str]]:
        def attempt(name: str) -> str | None:
            image = self._read(name)
            return image if isinstance(image, str) else None

        with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as pool:
            # Pillow warns of large pictures and odd metadata; losses are told by name.
            warnings.simplefilter("ignore")
            checked = pool.map(attempt, names)
            bar = tqdm(checked, f"Checking {self._root.name}", len(names), unit=" pictures")
            reasons = list(bar)
        return [(n, reason) for n, reason in zip(names, reasons, strict=True) if reason]

    def _say(self) -> str:
        counts = [len(names) for _, names in self._groups]
        each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        line = (
            f"gallery: {sum(counts)} pictures of {len(counts)} of {len(self.prompts)} prompts, "
            f"{each} each ({self.layout})"
        )
        if self.missing:
            line += f"; without pictures {len(self.missing)}: "
            line += ", ".join(self.missing[: files.NAMED])
            line += " ..." * (len(self.missing) > files.NAMED)
        if self.skipped:
            line += f"; skipped {files.say(self.skipped)}"
        return line


@dataclasses.dataclass(frozen=True)
class _Listing:
    """Names relative to the folder, with /."""

    root: pathlib.Path
    pictures: list[str]
    unreadable: list[tuple[str, str]]
    # Folders with a metadata.jsonl, and files of JSON at the top.
    told: list[str]
    records: list[str]


# Of every picture: its prompt's row, or why it has none; "" where none is wanted.
_Owners = list[int | str]


def _list(root: pathlib.Path) -> _Listing:
    listing = _Listing(root, [], [], [], [])
    for folder, names in files.walk(root):
        place = files.relative(folder, root)
        for name in names:
            suffix = pathlib.PurePath(name).suffix.lower()
            whole = name if place == "." else f"{place}/{name}"
            if suffix in files.READABLE:
                listing.pictures.append(whole)
            elif suffix in files.UNREADABLE:
                reason = f"{suffix[1:].upper()} is not a format that can be read"
                listing.unreadable.append((whole, reason))
            elif name == "metadata.jsonl" and _is_number(place):
                listing.told.append(place)
            elif suffix == ".json" and place == ".":
                listing.records.append(name)
    return listing


def _given(prompts: str | pathlib.Path | Sequence[Prompt] | None) -> list[Prompt] | None:
    if prompts is None:
        return None
    if isinstance(prompts, str | pathlib.Path):
        return prompt_sets.read(prompts)
    return prompt_sets.keyed(prompts)


def _recognise(listing: _Listing, given: Sequence[Prompt] | None) -> str:
    if listing.told:
        return "geneval"
    stems = {match[1] for name in listing.pictures if (match := _OURS.fullmatch(_stem(name)))}
    if stems & {_stem(name) for name in listing.records}:
        return "generate"
    rows = _Rows(given or ())
    inside = (name.split("/")[0] for name in listing.pictures if "/" in name)
    return "folders" if any(rows.of(folder) is not None for folder in inside) else "prefix"


class _Rows:
    """Which prompt a name means: by its key, its number or its text."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        prompts = list(prompts)
        self.keys = {prompt.key: row for row, prompt in reversed([*enumerate(prompts)])}
        self.texts = {_plain(prompt.text): row for row, prompt in reversed([*enumerate(prompts)])}
        # Where keys are numbers themselves, a number is a key; rows are counted where none is.
        self.numbers = {int(key): row for key, row in self.keys.items() if _is_number(key)}
        self.numbers = self.numbers or {row: row for row in range(len(prompts))}

    def of(self, name: str) -> int | None:
        name = files.normal(name)
        if name in self.keys:
            return self.keys[name]
        if _is_number(name) and int(name) in self.numbers:
            return self.numbers[int(name)]
        return self.texts.get(_plain(name))

    def of_numbered(self, name: str) -> int | None:
        """Of a picture's name, which may end in the picture's own number."""
        row = self.of(name)
        match = _NUMBERED.fullmatch(name)
        return self.of(match[1]) if row is None and match else row


def _folders(listing: _Listing, given: Sequence[Prompt] | None) -> tuple[_Owners, Sequence[Prompt]]:
    rows = _Rows(given or ())
    samples = {name.split("/")[0] for name in listing.pictures if _in_samples(name)}
    owners: _Owners = []
    for name in listing.pictures:
        folder, *rest = name.split("/")
        row = rows.of(folder) if rest else None
        if row is not None and folder in samples and not _in_samples(name):
            owners.append("")
        else:
            owners.append("no prompt" if row is None else row)
    return owners, given or ()


def _geneval(listing: _Listing, given: Sequence[Prompt] | None) -> tuple[_Owners, Sequence[Prompt]]:
    rows, owner, told = _Rows(given or ()), dict[str, int | str](), list[Prompt]()
    for folder in sorted(listing.told, key=int):
        prompt = _told(listing.root / folder)
        if prompt is None:
            owner[folder] = "its metadata.jsonl is not one prompt"
            continue
        if given is None:
            owner[folder] = len(told)
            told.append(prompt)
            continue
        row, text = int(folder), _plain(prompt.text)
        if row >= len(given) or _plain(given[row].text) != text:
            row = rows.texts.get(text)
        owner[folder] = "its prompt is not in the prompt set" if row is None else row
    owners: _Owners = []
    for name in listing.pictures:
        folder = name.split("/")[0]
        if folder in owner:
            owners.append(owner[folder] if _in_samples(name) else "")
        else:
            owners.append("no metadata.jsonl" if "/" in name else "no prompt")
    return owners, prompt_sets.keyed(told) if given is None else given


def _told(folder: pathlib.Path) -> Prompt | None:
    """The prompt of a folder in GenEval's layout, where its metadata tells one."""
    try:
        record = json.loads(files.decode((folder / "metadata.jsonl").read_bytes()))
        said = next(field for field in prompt_sets.TEXT_FIELDS if field in record)
        return Prompt(
            text=record[said].strip(),
            key=str(record.get("key", folder.name)),
            group=str(record.get("tag", record.get("group", ""))),
            extra={f: v for f, v in record.items() if f not in (said, "key", "group")},
        )
    except (OSError, ValueError, StopIteration, TypeError, AttributeError):
        return None


def _prefix(listing: _Listing, given: Sequence[Prompt] | None) -> tuple[_Owners, Sequence[Prompt]]:
    rows = _Rows(given or ())
    found = (rows.of_numbered(_stem(name)) for name in listing.pictures)
    return ["no prompt" if row is None else row for row in found], given or ()


def _generate(
    listing: _Listing, given: Sequence[Prompt] | None
) -> tuple[_Owners, Sequence[Prompt]]:
    written = {_stem(name): _written(listing.root / name) for name in listing.records}
    known = list(given or ())
    if given is None:
        texts = dict.fromkeys(text for texts in written.values() for text in texts)
        known = prompt_sets.keyed(Prompt(text=text) for text in texts)
    rows = _Rows(known)
    owners: _Owners = []
    for name in listing.pictures:
        match = _OURS.fullmatch(_stem(name))
        if match is None or match[1] not in written or "/" in name:
            # The grid itself is no picture of a prompt.
            owners.append("" if written.get(_stem(name)) else "no prompt")
            continue
        texts, number = written[match[1]], int(match[2])
        row = rows.texts.get(_plain(texts[number])) if number < len(texts) else None
        owners.append("its prompt is not in the prompt set" if row is None else row)
    return owners, known


_OWNERS = {"folders": _folders, "geneval": _geneval, "prefix": _prefix, "generate": _generate}


def _written(record: pathlib.Path) -> list[str]:
    """Prompts of a grid, by row; none where the file is another's."""
    try:
        found = json.loads(files.decode(record.read_bytes()))
        return [str(row["prompt"]) for row in found["prompts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _in_samples(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and parts[1] == "samples"


def _stem(name: str) -> str:
    return pathlib.PurePosixPath(name).stem


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _plain(text: str) -> str:
    """Text as a name of a file can say it: what a folder cannot hold counts as a space."""
    return " ".join(re.sub(r'[/\\:*?"<>|]', " ", files.normal(text)).split())
