"""What is measured side by side: each column's pictures, and what they depend on.

A column is a model drawing by a method, or a folder of anyone's pictures; beside them stand the
true distribution and the real pictures that sets are held to, where there are any.
"""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosdiff_jax import build, diverse, networks, trained
from cosdiff_jax.data import prompts as prompt_sets
from cosdiff_jax.data.digits import DigitGroups
from cosdiff_jax.data.gallery import Gallery
from cosdiff_jax.data.groups import Source
from cosdiff_jax.data.scenes import grammar
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.data.tokenizer import Tokenizer
from cosdiff_jax.drawn import DrawnGroups
from cosdiff_jax.metrics import scenes
from cosdiff_jax.metrics.digits import DigitMetric
from cosdiff_jax.survey import Eye, Measure

_log = logging.getLogger("cosdiff_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What is measured, and on which prompts.

    Attributes:
      models: embedded models' names, folders with weights or working directories.
      images: folders with pictures that something else made.
      methods: how a model's pictures of a prompt are kept different; each is a column.
      prompts: a number of held-out prompts, or a file of prompts; None takes 512, or what the
        layout of ``images`` says its pictures were drawn of.
      reference: folder of real pictures of a file's prompts.
      num: K.
      candidates, steps, guidance: as for ``diverse.DiverseSampler``.
      seed: of held-out prompts, true pictures and noise.
      eye: asset or folder of the CLIP that looks; None takes the first model's.
      vgg, lpips: folders as for ``perceptual.load``; None leaves out the distances.
      training: how many of the first model's training pictures are searched for copies.
      ema: whether models draw with their averaged weights or, runs only, with the newest.
    """

    models: Sequence[str] = ()
    images: Sequence[str] = ()
    methods: Sequence[str] = ("independent",)
    prompts: str | None = None
    reference: str | None = None
    num: int = 4
    candidates: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    eye: str | None = None
    vgg: str | None = None
    lpips: str | None = None
    training: int = 0
    ema: bool = True

    def __post_init__(self):
        if not self.models and not self.images:
            raise ValueError("nothing to measure: name a --model, a --workdir or --images")
        if self.lpips and not self.vgg:
            raise ValueError("--lpips weighs what --vgg sees: name that folder as well")
        if self.training and not self.models:
            raise ValueError("--training compares with a model's training pictures: name the model")
        if self.file is None and self.number < 2:
            raise ValueError(f"--prompts={self.prompts}: at least 2 are needed")
        if self.file is None and self.models and (self.images or self.reference):
            raise ValueError(
                "to put --images or a --reference beside a model, say with --prompts=FILE what all "
                "of them show"
            )

    @property
    def file(self) -> str | None:
        """The file of prompts, if there is one."""
        return None if self.prompts is None or self.prompts.isdigit() else self.prompts

    @property
    def number(self) -> int:
        """How many held-out prompts, where there is no file."""
        return int(self.prompts or 512)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One column: pictures, and what they depend on."""

    name: str
    source: Source
    facts: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """A name for its measurements."""
        return re.sub(r"[^\w.+-]+", "_", self.name).strip("_") or "pictures"

    def pictures(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The pictures of some prompts; those of a model are drawn together."""
        if isinstance(self.source, DrawnGroups):
            return self.source.several(indices)
        return [self.source[index]["images"] for index in indices]


def gather(asked: Asked, models: Mapping[str, trained.Trained], eye: Eye | None) -> list[Entry]:
    """Every column that is asked for, then the true pictures and the reference if there are any.

    Raises:
      ValueError: prompts or pictures that cannot be read, or two columns of one name.
    """
    prompts, truth = _prompts(asked, models, None if eye is None else eye.size)
    entries = [*_drawn(asked, models, prompts), *_found(asked, eye), *truth]
    _told_apart(entries)
    return entries


def _told_apart(entries: Sequence[Entry]) -> None:
    """Refuse columns that would be measured into one folder.

    Raises:
      ValueError: two of one name.
    """
    seen: set[str] = set()
    for entry in entries:
        if entry.folder in seen:
            raise ValueError(f"two columns would be called {entry.name!r}: rename one's folder")
        seen.add(entry.folder)


def eye_of(asked: Asked, models: Mapping[str, trained.Trained]) -> Eye | None:
    """The CLIP that looks: the one named, or the first model's if it sees their colours."""
    if asked.eye is None and models:
        model = next(iter(models.values()))
        if "clip" not in model.frozen:
            return None
        name = model.config.clip.asset.path if model.config.clip.name == "asset" else "its own CLIP"
        clip, params = build.model("clip", model.config.clip), model.frozen["clip"]
        words = model.tokenizer
        if model.shape[2] != clip.channels:
            return None
        return _looking(name, clip, params, words)
    return clip_eye(asked.eye or networks.ASSETS["clip"])


def clip_eye(name: str) -> Eye:
    """The CLIP of an asset or of a folder with weights, made ready to look."""
    return _looking(name, *networks.network("clip", name))


def _looking(name: str, clip: Any, params: Any, words: Tokenizer) -> Eye:
    def encode(caption: str) -> tuple[np.ndarray, np.ndarray]:
        tokens, mask = words.encode([caption], clip.context)
        return tokens[0], mask[0]

    return Eye(name=Path(name).name, clip=clip, params=params, encode=encode)


def _prompts(
    asked: Asked, models: Mapping[str, trained.Trained], size: int | None
) -> tuple[list[dict[str, Any]], list[Entry]]:
    """The prompts without pictures, and the columns of their true ones."""
    if asked.file is not None or not models:
        said = [] if asked.file is None else prompt_sets.read(asked.file)
        found = [{**prompt.extra, "caption": prompt.text, "key": prompt.key} for prompt in said]
        if asked.reference is None:
            return found, []
        return found, [_folder("reference", asked.reference, asked.file, size)]
    kinds = {model.config.data.name for model in models.values()}
    if len(kinds) > 1 or not kinds <= {"scenes", "digits"}:
        raise ValueError(
            f"--prompts={asked.number}: held-out prompts are of scenes or of digits, and these "
            f"models were trained on {' and '.join(sorted(kinds))}; give --prompts=FILE"
        )
    number, seed = asked.number, asked.seed
    facts = {"held out": kinds.pop(), "num": asked.num, "seed": seed}
    if facts["held out"] == "digits":
        true = DigitGroups(split="test", samples=asked.num, number=number, seed=seed)
        items = [true[index] for index in range(number)]
        prompts = [{"caption": item["caption"], "digit": item["digit"]} for item in items]
        return prompts, [Entry(name="true", source=true, facts=facts)]
    true = held_out(number, asked.num, seed)
    # As many other pictures of the same prompts: what the model's and the true ones are held to.
    other = true.redrawn(asked.num, seed + 1)
    return true.asked(), [
        Entry(name="true", source=true, facts=facts),
        Entry(name="reference", source=other, facts=facts),
    ]


def _drawn(
    asked: Asked, models: Mapping[str, trained.Trained], prompts: list[dict[str, Any]]
) -> list[Entry]:
    """A column for each model and method."""
    entries = []
    for model in models.values():
        for method in asked.methods:
            draw = diverse.DiverseSampler(
                model=model,
                num=asked.num,
                method=method,
                candidates=asked.candidates if diverse.chooses(method) else None,
                steps=asked.steps,
                guidance=asked.guidance,
            )
            facts = {
                "prompts": _digest(prompts),
                **model.digests,
                "sample": json.loads(draw.config.sample.to_json_best_effort()),
                "num": asked.num,
                "candidates": draw.total,
                "seed": asked.seed,
            }
            several = [*(model.name,) * (len(models) > 1), *(method,) * (len(asked.methods) > 1)]
            source = DrawnGroups(draw=draw, prompts=prompts, seed=asked.seed)
            entries.append(Entry(name=" ".join(several) or model.name, source=source, facts=facts))
    return entries


def _found(asked: Asked, eye: Eye | None) -> list[Entry]:
    """A column for each folder of pictures."""
    size = None if eye is None else eye.size
    # Folders may be called as the true distribution and the reference are here.
    names = [f"./{x}" if x in ("true", "reference") else x for x in asked.images]
    return [_folder(n, x, asked.file, size) for n, x in zip(names, asked.images, strict=True)]


def _folder(name: str, folder: str, prompts: str | None, size: int | None) -> Entry:
    # Broken pictures are told before the measuring begins, not after an hour of it.
    found = Gallery(folder, prompts, size=size or 64, check=True)
    _log.warning(found.summary)
    files = [file for index in range(len(found)) for file in found.names(index)]
    stats = [(Path(folder).expanduser() / file).stat() for file in files]
    state = [(f, s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)]
    return Entry(name=name, source=found, facts={"images": _digest(state)})


def measures(models: Mapping[str, trained.Trained]) -> list[Measure]:
    """What is measured of a prompt's pictures besides what the eye sees."""
    digits = {model.config.data.name for model in models.values()} == {"digits"}
    return [_cost, scenes_of, *([_digits(DigitMetric())] if digits else [])]


def _cost(images: np.ndarray, group: Mapping[str, Any]) -> Mapping[str, float]:
    del images
    return {name: float(value) for name, value in group.get("cost", {}).items()}


def scenes_of(images: np.ndarray, group: Mapping[str, Any]) -> Mapping[str, float]:
    """What the oracle reads in a group's pictures, where their prompt is a Scenes prompt."""
    if "spec" not in group:
        return {}
    spec = grammar.spec_from_json(group["spec"])
    return scenes.result(scenes.update(scenes.init(), images[None], [spec]))


def _digits(metric: DigitMetric) -> Measure:
    def read(images: np.ndarray, group: Mapping[str, Any]) -> Mapping[str, float]:
        asked = np.array([group["digit"]], np.int32)
        return metric.result(metric.update(metric.init(), images[None], asked))

    return read


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of, ensure_ascii=False).encode()).hexdigest()[:16]
