"""What is measured side by side: each column's pictures, and what they depend on.

A column is a model drawing by a method, or a folder of anyone's pictures; beside them stand the
true distribution and the real pictures that sets are held to, where there are any.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosdiff_jax import diverse, modules, networks, trained
from cosdiff_jax.data import prompts as prompt_sets
from cosdiff_jax.data.digits import DigitGroups
from cosdiff_jax.data.gallery import Gallery
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.data.tokenizer import Tokenizer
from cosdiff_jax.drawn import DrawnGroups
from cosdiff_jax.entry import Entry, answered, cost, digest, digits, paired, scenes_of, texts
from cosdiff_jax.metrics.digits import DigitMetric
from cosdiff_jax.survey import TOP_PERCENT, Eye, Measure

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
      paired: whether each picture is also held to the one of ``reference`` in its place.
      num: K.
      candidates, steps, guidance: as for ``diverse.DiverseSampler``.
      seed: of held-out prompts, true pictures and noise.
      eye: asset or folder of the CLIP that looks; None takes the first model's.
      vgg, lpips: folders as for ``perceptual.load``; None leaves out the distances.
      views: in which cosines are measured besides CLIP's, as for ``views.load``.
      top_percent: share of a prompt's pairs, the most alike, in the top-k cosine.
      read: file with the texts that some reader found in ``images``, see ``prompts.texts_read``.
      answers: MODULE:FUNCTION, a ``metrics.questions.Answers``.
      training: how many of the first model's training pictures are searched for copies.
      ema: whether models draw with their averaged weights or, runs only, with the newest.
      sample: changes to the recipes' ``sample``, as "solver.name=heun".
    """

    models: Sequence[str] = ()
    images: Sequence[str] = ()
    methods: Sequence[str] = ("independent",)
    prompts: str | None = None
    reference: str | None = None
    paired: bool = False
    num: int = 4
    candidates: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    eye: str | None = None
    vgg: str | None = None
    lpips: str | None = None
    views: Sequence[str] = ()
    top_percent: float = TOP_PERCENT
    read: str | None = None
    answers: str | None = None
    training: int = 0
    ema: bool = True
    sample: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.models and not self.images:
            raise ValueError("nothing to measure: name a --model, a --workdir or --images")
        if self.lpips and not self.vgg:
            raise ValueError("--lpips weighs what --vgg sees: name that folder as well")
        if not 0 < self.top_percent <= 100:
            raise ValueError(f"--top_percent={self.top_percent:g} is not within (0, 100]")
        if self.paired and not self.reference:
            raise ValueError("--paired compares picture by picture with --reference: name that one")
        if self.read and not self.images:
            raise ValueError("--read says what is written in --images: name their folder")
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


def gather(asked: Asked, models: Mapping[str, trained.Trained], eye: Eye | None) -> list[Entry]:
    """Every column that is asked for, then the true pictures and the reference if there are any.

    Raises:
      ValueError: prompts or pictures that cannot be read, or two columns of one name.
    """
    prompts, truth = _prompts(asked, models, None if eye is None else eye.size)
    entries = [*_drawn(asked, models, prompts), *_found(asked, eye)]
    if asked.paired:
        entries = [paired(entry, truth[0]) for entry in entries]
    if asked.answers is not None:
        entries = answered(asked.answers, entries)
    entries += truth
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
        clip, params = modules.model("clip", model.config.clip), model.frozen["clip"]
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
        found = [_known(prompt) for prompt in said]
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


def _known(prompt: prompt_sets.Prompt) -> dict[str, Any]:
    """What is known of a prompt, as ``Gallery`` says it too."""
    group = {"group": prompt.group} if prompt.group else {}
    return {**prompt.extra, "caption": prompt.text, "key": prompt.key, **group}


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
                "asked": digest(prompts),
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
    found = [_folder(n, x, asked.file, size) for n, x in zip(names, asked.images, strict=True)]
    if asked.read is None:
        return found
    told = prompt_sets.texts_read(asked.read)
    folders = zip(found, asked.images, strict=True)
    return [texts(entry, folder, told, alone=len(found) == 1) for entry, folder in folders]


def _folder(name: str, folder: str, prompts: str | None, size: int | None) -> Entry:
    # Broken pictures are told before the measuring begins, not after an hour of it.
    found = Gallery(folder, prompts, size=size or 64, check=True)
    _log.warning(found.summary)
    names = [name for index in range(len(found)) for name in found.names(index)]
    stats = [(Path(folder).expanduser() / name).stat() for name in names]
    state = [(n, s.st_size, s.st_mtime_ns) for n, s in zip(names, stats, strict=True)]
    asked = [dataclasses.asdict(prompt) for prompt in found.prompts]
    return Entry(name=name, source=found, facts={"images": digest(state), "asked": digest(asked)})


def measures(models: Mapping[str, trained.Trained]) -> list[Measure]:
    """What is measured of a prompt's pictures besides what the eye sees."""
    of_digits = {model.config.data.name for model in models.values()} == {"digits"}
    return [cost, scenes_of, *([digits(DigitMetric())] if of_digits else [])]
