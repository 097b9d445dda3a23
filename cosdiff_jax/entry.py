"""One column of a comparison: its pictures, what they depend on, and what is measured of them.

What the oracle, the digits' classifier and the clock say goes for every column; what a user brings
(real pictures to hold each to, texts that some reader found, answers to questions) for those that
it is about.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cosdiff_jax import estimates
from cosdiff_jax.data import files
from cosdiff_jax.data.gallery import Gallery
from cosdiff_jax.data.groups import Source, to_float, to_uint8
from cosdiff_jax.data.scenes import grammar
from cosdiff_jax.drawn import DrawnGroups
from cosdiff_jax.features.pictures import fit
from cosdiff_jax.metrics import psnr, questions, scenes, ssim
from cosdiff_jax.metrics.digits import DigitMetric
from cosdiff_jax.metrics.text_rendering import WEIGHTS, TextRendering
from cosdiff_jax.survey import Measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One column: pictures, what they depend on, and what is measured of no other column."""

    name: str
    source: Source
    facts: Mapping[str, Any]
    measures: Sequence[Measure] = ()

    @property
    def folder(self) -> str:
        """A name for its measurements."""
        return re.sub(r"[^\w.+-]+", "_", self.name).strip("_") or "pictures"

    def pictures(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The pictures of some prompts; those of a model are drawn together."""
        if isinstance(self.source, DrawnGroups):
            return self.source.several(indices)
        return [self.source[index]["images"] for index in indices]


def paired(entry: Entry, reference: Entry) -> Entry:
    """The column with each picture held to the reference's in its place.

    Only of prompts that both have, by key and caption, and as many pictures of.
    """
    real = reference.source
    assert isinstance(real, Gallery)  # beside held-out prompts no reference can be named
    there = [prompt for prompt in real.prompts if prompt.key not in real.missing]
    rows = [{"key": prompt.key, "caption": prompt.text} for prompt in there]
    place = {estimates.key(row): index for index, row in enumerate(rows)}

    def compare(images: np.ndarray, group: Mapping[str, Any]) -> Mapping[str, float]:
        index = place.get(estimates.key(group))
        if index is None or len(real.names(index)) != len(images):
            return {}
        others = to_float(real[index]["images"])
        own = np.asarray(fit(jnp.asarray(to_float(images)), real.size))
        own = np.broadcast_to(own, others.shape)  # grey ones show all colours alike
        return {
            **psnr.result(psnr.update(psnr.init(), own, others)),
            **ssim.result(ssim.update(ssim.init(), own, others)),
        }

    facts = {**entry.facts, "paired": reference.facts["images"]}
    return dataclasses.replace(entry, facts=facts, measures=[*entry.measures, compare])


def texts(entry: Entry, folder: str, told: Mapping[str, str], *, alone: bool) -> Entry:
    """A folder's column with the texts read in it; names inside the folder do if it is alone."""
    pictures = entry.source
    assert isinstance(pictures, Gallery)
    root, metric = os.path.abspath(Path(folder).expanduser()), TextRendering()
    plain = {files.normal(os.path.normpath(name)): text for name, text in told.items()}
    whole = {files.normal(os.path.abspath(name)): text for name, text in told.items()}
    found: dict[str, str] = {}
    wanted = {p.key for p in pictures.prompts if str(p.extra.get("text") or "").strip()}
    keys = [prompt.key for prompt in pictures.prompts if prompt.key not in pictures.missing]
    for index, key in enumerate(keys):
        for name in pictures.names(index) if key in wanted else ():
            said = whole.get(files.normal(os.path.join(root, name)))
            said = plain.get(files.normal(name)) if said is None and alone else said
            if said is None:
                raise ValueError(
                    f"--read says nothing of {name} in {folder}; a picture in which nothing was "
                    "read has an empty text"
                )
            found[name] = said
    if not found:
        raise ValueError(f'--read: no prompt of the pictures in {folder} has a "text" to show')

    def compare(images: np.ndarray, group: Mapping[str, Any]) -> Mapping[str, float]:
        del images
        if group["key"] not in wanted:
            return {}
        read = [found[name] for name in group["names"]]
        state = metric.update(metric.init(), [str(group["text"])] * len(read), read)
        return metric.counted(state)

    # What was measured without the counts is another measurement.
    facts = {**entry.facts, "read": digest(found), "counted": sorted(set(WEIGHTS.values()))}
    return dataclasses.replace(entry, facts=facts, measures=[*entry.measures, compare])


def answered(function: str, entries: Sequence[Entry]) -> list[Entry]:
    """The columns with a user's answers to the prompts' questions."""
    name = f"--answers={function}"
    try:
        metric = questions.Questions(answers=questions.load(function), name=name)
    except ValueError as error:
        raise ValueError(f"--answers={error}") from None
    for entry in entries:
        if not any([questions.asked(prompt) for prompt in _said(entry.source)]):
            raise ValueError(f"{name}: no prompt of {entry.name} has questions")

    def ask(images: np.ndarray, group: Mapping[str, Any]) -> Mapping[str, float]:
        return metric.result(metric.update(metric.init(), images[None], [questions.asked(group)]))

    facts = {"answers": function}
    return [
        dataclasses.replace(e, facts={**e.facts, **facts}, measures=[*e.measures, ask])
        for e in entries
    ]


def _said(source: Source) -> list[Mapping[str, Any]]:
    """What is known of a column's prompts."""
    if isinstance(source, DrawnGroups):
        return list(source.prompts)
    assert isinstance(source, Gallery)
    return [{**prompt.extra, "caption": prompt.text} for prompt in source.prompts]


def cost(images: np.ndarray, group: Mapping[str, Any]) -> Mapping[str, float]:
    """What drawing a group took, where it was drawn here."""
    del images
    return {name: float(value) for name, value in group.get("cost", {}).items()}


def scenes_of(images: np.ndarray, group: Mapping[str, Any]) -> Mapping[str, float]:
    """What the oracle reads in a group's pictures, where their prompt is a Scenes prompt."""
    spec = _spec(group)
    if spec is None:
        return {}
    if images.shape[1:3] != (grammar.SIDE, grammar.SIDE):
        # The oracle measures in pixels of its own pictures.
        images = to_uint8(np.asarray(fit(jnp.asarray(to_float(images)), grammar.SIDE)))
    return scenes.result(scenes.update(scenes.init(), images[None], [spec]))


def _spec(group: Mapping[str, Any]) -> grammar.Spec | None:
    """What a Scenes prompt means; another benchmark may call something else so."""
    try:
        spec = grammar.spec_from_json(group["spec"])
        grammar.check(spec)
    except (KeyError, TypeError, ValueError):
        return None
    return spec


def digits(metric: DigitMetric) -> Measure:
    """What the classifier reads in a group's pictures of a digit."""

    def read(images: np.ndarray, group: Mapping[str, Any]) -> Mapping[str, float]:
        asked = np.array([group["digit"]], np.int32)
        return metric.result(metric.update(metric.init(), images[None], asked))

    return read


def digest(of: Any) -> str:
    """A short name of whatever JSON can hold; another content has another one."""
    return hashlib.sha256(json.dumps(of, ensure_ascii=False).encode()).hexdigest()[:16]
