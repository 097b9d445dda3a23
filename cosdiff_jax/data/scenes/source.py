"""Scenes read back by random access: one record is one prompt with its pictures."""

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosdiff_jax.data.scenes.grammar import LANGUAGES, Spec, Split, describe, split_of
from cosdiff_jax.data.scenes.grammar import caption as caption_of
from cosdiff_jax.data.scenes.prior import Scene, scenes_from_json

MISSING = "no Scenes dataset in {}: build it with cosdiff_jax.data.scenes.builder.prepare"


class ScenesGroups:
    """A Grain random-access source of prompt groups.

    Item i is ``{"caption": str, "images": uint8 [K, 64, 64, 3], "spec": str, "scenes": str}``;
    the last two are JSON (`prior.spec_from_json`, `prior.scenes_from_json`). The language of a
    caption follows from i alone, so that a prompt is always asked in the same one.

    Args:
      folder: the folder that `builder.prepare` was given, or the one it returned.
      split: "train" or "test".
      samples: K, pictures per prompt, at most as many as are stored; None takes all.
      languages: which languages captions come in, each about equally often.

    Raises:
      ValueError: no dataset there, an unknown split or language, or too many samples asked for.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split,
        samples: int | None = None,
        languages: Sequence[str] = LANGUAGES,
    ):
        self.folder = _find(folder)
        self.split = split
        self.languages = tuple(languages)
        unknown = set(self.languages) - set(LANGUAGES)
        if unknown or not self.languages:
            raise ValueError(f"languages {sorted(unknown)} are none of {', '.join(LANGUAGES)}")
        self._records, self.stored = self._open()
        self.samples = self.stored if samples is None else samples
        if not 1 <= self.samples <= self.stored:
            raise ValueError(
                f"{self.samples} samples per prompt asked for, {self.stored} are stored in "
                f"{self.folder}"
            )

    def __len__(self) -> int:
        """How many prompts."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The group of prompt ``index``; see the class."""
        found = self._records[index]
        language = self.languages[zlib.crc32(str(int(index)).encode()) % len(self.languages)]
        return {
            "caption": found["captions"][language].decode(),
            "images": np.stack(found["images"][: self.samples]),
            "spec": found["spec"].decode(),
            "scenes": found["scenes"].decode(),
        }

    def __repr__(self) -> str:
        return f"ScenesGroups({str(self.folder)!r}, {self.split!r}, samples={self.samples})"

    def true_scenes(self, index: int) -> tuple[Scene, ...]:
        """The scenes that the pictures of prompt ``index`` show."""
        return scenes_from_json(self._records[index]["scenes"].decode())[: self.samples]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the files itself: file handles do not travel.
        return {name: value for name, value in vars(self).items() if name != "_records"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._records, _ = self._open()

    def _open(self) -> tuple[Any, int]:
        import tensorflow_datasets as tfds

        # TFDS recommends another picture decoder once per process; PIL is what we have.
        logging.getLogger("absl").addFilter(lambda line: "OpenCV" not in line.getMessage())
        builder: Any = tfds.builder_from_directory(self.folder)
        if self.split not in builder.info.splits:
            raise ValueError(f"split {self.split!r} is none of {', '.join(builder.info.splits)}")
        return builder.as_data_source(self.split), int(builder.info.metadata["samples"])


def _find(folder: str | Path) -> Path:
    root = Path(folder).expanduser().resolve()
    # TFDS builds under another name and renames: this file is there only in a whole dataset.
    places = [root, *sorted(root.glob("scenes/[0-9]*"), reverse=True)]
    for place in places:
        if (place / "dataset_info.json").is_file():
            return place
    raise ValueError(MISSING.format(folder))


class ScenesPairs:
    """One picture and one caption at a time, for contrastive training.

    Of a prompt's pictures the even ones come with the prompt's own caption and the odd ones are
    said in full (`grammar.describe`), as long as that description belongs to the same split: a
    held-out meaning is never shown in training, and a training one never tested.

    Args:
      folder: as in `ScenesGroups`.
      split: "train" or "test".
      languages: which languages captions come in.
      described: keep only pictures said in full.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split,
        languages: Sequence[str] = LANGUAGES,
        described: bool = False,
    ):
        self.groups = ScenesGroups(folder, split, languages=languages)
        self.split, self.described = split, described
        self._kept = range(len(self.groups) * self.groups.stored)
        if described:
            self._kept = [index for index in self._kept if self._full(index) is not None]

    def __len__(self) -> int:
        """How many pairs."""
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"caption": str, "images": uint8 [1, 64, 64, 3]}``."""
        place = self._kept[index]
        prompt, number = divmod(place, self.groups.stored)
        group = self.groups[prompt]
        caption = group["caption"]
        spec = self._full(place) if number % 2 or self.described else None
        if spec is not None:
            languages = self.groups.languages
            language = languages[zlib.crc32(f"full {place}".encode()) % len(languages)]
            rng = np.random.default_rng(place)
            caption = caption_of(spec, language, rng if self.split == "train" else None)
        return {"caption": caption, "images": group["images"][number : number + 1]}

    def _full(self, place: int) -> Spec | None:
        prompt, number = divmod(place, self.groups.stored)
        spec = describe(self.groups.true_scenes(prompt)[number])
        return spec if split_of(spec) == self.split else None
