"""Pictures of many prompts, measured prompt by prompt into a folder: streamed, resumable, shared.

Every prompt becomes one line of a ``rows`` file, and the feature vectors of its pictures so many
lines of a ``features`` file: 50,000 pictures never sit in memory, what was measured before a stop
is not measured again, and several hosts write files of their own that read like one host's.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from cosdiff_jax.data.groups import Source, to_float
from cosdiff_jax.features.clip import see
from cosdiff_jax.metrics import cosine, vendi
from cosdiff_jax.shapes import Params

Measure = Callable[[UInt8[np.ndarray, "K X Y C"], Mapping[str, Any]], Mapping[str, float]]
"""(a prompt's pictures, its group) -> measures by name; what cannot be said of them is absent."""

TOP_PERCENT = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eye:
    """A network that sees pictures, and reads captions, as unit vectors.

    Attributes:
      name: of the features, for reports.
      clip: the network.
      params: its weights.
      encode: caption -> tokens "T" and mask "T"; a ValueError where it is too long.
      rows: pictures looked at in one call; rounded up to a multiple of the devices.
    """

    name: str
    clip: Any
    params: Params
    encode: Callable[[str], tuple[np.ndarray, np.ndarray]]
    rows: int = 64

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.clip.size

    def see(self, images: UInt8[np.ndarray, "n X Y C"]) -> Float[np.ndarray, "n F"]:
        """Vectors of any number of pictures: always the same program, split over the devices."""
        local = jax.local_devices()
        rows = math.ceil(self.rows / len(local)) * len(local)
        parts = []
        for first in range(0, len(images), rows):
            part = images[first : first + rows]
            filled = np.concatenate([part, np.repeat(part[-1:], rows - len(part), axis=0)])
            parts.append(np.asarray(self._image(to_float(filled)))[: len(part)])
        return np.concatenate(parts)

    def read(self, caption: str) -> Float[np.ndarray, " F"] | None:
        """The caption's vector; None where it is longer than the network reads."""
        try:
            tokens, mask = self.encode(caption)
        except ValueError:
            return None
        return np.asarray(self._text(tokens[None], mask[None]))[0]

    @functools.cached_property
    def _image(self) -> Callable:
        mesh = jax.sharding.Mesh(jax.local_devices(), ("rows",))
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        params = jax.device_put(self.params, whole)
        look = jax.jit(functools.partial(see, self.clip))
        # Placed by hand: among several hosts jit takes no numpy array that is to be split.
        return lambda x: look(params, jax.device_put(x, split))

    @functools.cached_property
    def _text(self) -> Callable:
        text = jax.jit(lambda p, t, m: self.clip.apply({"params": p}, t, m, method="text"))
        return lambda t, m: text(self.params, t, m)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What a survey found.

    Attributes:
      rows: of each prompt its ``index``, ``key``, ``caption``, ``group`` (what its author counts
        it among, or ""), number of pictures ``num``, whether its caption is ``too_long`` for the
        eye to read, and ``measures`` by name.
      f: of every picture, prompt by prompt in the order of ``rows``; None without an eye.
    """

    rows: list[dict[str, Any]]
    f: Float[np.ndarray, "n F"] | None

    def column(self, name: str) -> Float[np.ndarray, " P"]:
        """A measure of every prompt, NaN where it cannot be said."""
        return np.array([row["measures"].get(name, math.nan) for row in self.rows])

    @property
    def names(self) -> list[str]:
        """Measures that some prompt has, in order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row["measures"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """Measures a source of groups into a folder.

    Attributes:
      folder: where ``rows-SHARD-of-SHARDS.jsonl`` and ``features-SHARD-of-SHARDS.f32`` go.
      eye: sees pictures; None leaves out what needs feature vectors.
      measures: what else is computed of each prompt.
      facts: what the numbers depend on; a folder begun under other facts is refused.
      label: of the progress bar.
      top_percent: share of a prompt's pairs, the most alike, in ``top_cosine``; one of the facts.
    """

    folder: Path
    eye: Eye | None
    measures: Sequence[Measure] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = "Measuring"
    top_percent: float = TOP_PERCENT

    def run(self, source: Source, *, shard: int = 0, shards: int = 1) -> None:
        """Measure this host's prompts, from the first that is not measured yet.

        Args:
          source: groups with "caption" and "images" uint8 [K X Y C], K at least 1 and free to
            differ; nothing is asked for before its turn.
          shard: this host's number.
          shards: hosts; each takes a stretch of neighbouring prompts.

        Raises:
          ValueError: the folder was begun under other facts.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim(len(source), shard, shards)
        rows, features = self._files(shard, shards)
        each = math.ceil(len(source) / shards)
        mine = range(min(shard * each, len(source)), min((shard + 1) * each, len(source)))
        done, width = _whole_rows(rows), self._width()
        held = features.stat().st_size if features.exists() else 0
        ends = np.cumsum([row["num"] for row in done]) * width * 4
        done = done[: np.searchsorted(ends, held, side="right")]
        with open(rows, "r+b" if rows.exists() else "w+b") as lines:
            lines.truncate(sum(len(_line(row)) for row in done))
            lines.seek(0, os.SEEK_END)
            seen = sum(row["num"] for row in done)
            with open(features, "r+b" if features.exists() else "w+b") as vectors:
                # The vectors are written first: of a prompt without a line there may be some.
                vectors.truncate(seen * width * 4)
                vectors.seek(0, os.SEEK_END)
                bar = tqdm(total=len(mine), initial=len(done), desc=self.label, unit=" prompts")
                with bar:
                    for groups in self._together(source, mine[len(done) :]):
                        for row, f in self._look(groups):
                            if f is not None:
                                vectors.write(np.asarray(f, "<f4").tobytes())
                                vectors.flush()
                            lines.write(_line(row))
                            lines.flush()
                            bar.update()

    def result(self) -> Surveyed:
        """Everything that all hosts have measured.

        Raises:
          ValueError: a host has not finished.
        """
        facts = json.loads((self.folder / "survey.json").read_text())
        shards, rows, f = facts["shards"], [], []
        for shard in range(shards):
            lines, features = self._files(shard, shards)
            rows += _whole_rows(lines)
            if self.eye is not None and features.exists():
                f.append(np.fromfile(features, "<f4").reshape(-1, self._width()))
        if len(rows) != facts["prompts"]:
            raise ValueError(
                f"{self.folder}: {len(rows)} of {facts['prompts']} prompts are measured"
            )
        return Surveyed(rows=rows, f=np.concatenate(f) if f else None)

    def _together(self, source: Source, indices: range) -> Iterator[list[tuple[int, Any]]]:
        """Neighbouring groups, as many as fill the eye."""
        waiting, rows = [], 1 if self.eye is None else self.eye.rows
        for index in indices:
            waiting.append((index, source[index]))
            if sum(len(group["images"]) for _, group in waiting) >= rows:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _look(self, groups: list[tuple[int, Any]]) -> Iterator[tuple[dict[str, Any], Any]]:
        images = [group["images"] for _, group in groups]
        seen = [None] * len(groups)
        if self.eye is not None:
            ends = np.cumsum([len(part) for part in images])[:-1]
            seen = np.split(self.eye.see(np.concatenate(images)), ends)
        for (index, group), f in zip(groups, seen, strict=True):
            found, too_long = {}, False
            if self.eye is not None and f is not None:
                said = self.eye.read(group["caption"])
                found, too_long = of_features(f, said, self.top_percent), said is None
            for measure in self.measures:
                found |= measure(group["images"], group)
            row = {
                "index": index,
                "key": str(group.get("key", index)),
                "caption": group["caption"],
                "group": str(group.get("group") or ""),
                "num": len(group["images"]),
                "too_long": too_long,
                "measures": {k: float(v) for k, v in found.items() if math.isfinite(v)},
            }
            yield row, f

    def _claim(self, prompts: int, shard: int, shards: int) -> None:
        place = self.folder / "survey.json"
        known: dict[str, float] = {"prompts": prompts, "shards": shards}
        if self.eye is not None:
            known["top_percent"] = self.top_percent
        facts = json.loads(json.dumps({**self.facts, **known}))
        if place.exists():
            before = json.loads(place.read_text())
            changed = sorted(k for k in {*before, *facts} if before.get(k) != facts.get(k))
            if changed:
                raise ValueError(
                    f"{self.folder} holds another measurement ({', '.join(changed)} differ); name "
                    "another --out or delete it"
                )
            return
        # In containers all hosts may have the same process number.
        half = place.with_suffix(f".{shard}.{os.getpid()}.part")
        half.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        half.replace(place)

    def _files(self, shard: int, shards: int) -> tuple[Path, Path]:
        name = f"{shard:05d}-of-{shards:05d}"
        return self.folder / f"rows-{name}.jsonl", self.folder / f"features-{name}.f32"

    def _width(self) -> int:
        return 0 if self.eye is None else self.eye.clip.features


def of_features(
    f: Float[np.ndarray, "K F"],
    text: Float[np.ndarray, " F"] | None,
    top_percent: float = TOP_PERCENT,
) -> dict[str, float]:
    """Measures of one prompt's pictures by their unit vectors.

    ``mean_cosine``, ``top_cosine`` (of the most alike ``top_percent`` % of the pairs) and Vendi
    scores of order 0.5, 1, 2 and infinity need two pictures; ``clip_score`` needs the caption's
    vector.
    """
    found = {} if text is None else {"clip_score": float(np.mean(f @ text))}
    if len(f) > 1:
        scores = vendi.Vendi()
        found |= scores.result(scores.update(scores.init(), f[None]))
        del found["vendi_q1"]  # the same as "vendi"
        found |= cosine.result(cosine.update(cosine.init(), f[None], top_percent))
    return found


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file up to the first that a stop left unfinished."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if row is None or _line(row) != line:
            break
        rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()
