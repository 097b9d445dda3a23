"""A trained text-to-image model with everything it draws with: from a run, or from a folder.

A run's newest checkpoint is taken, so a run can be looked at while it goes on; a folder with
weights is one that a finished run left (``runs/x/model``) or one inside the package.
"""

import ast
import dataclasses
import difflib
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cosdiff_jax import build, checkpoint, modules, sharding, tables, weights
from cosdiff_jax.data.tokenizer import Tokenizer
from cosdiff_jax.shapes import Frozen, Params

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A model ready to draw.

    Attributes:
      name: where it comes from, for messages and reports.
      config: the recipe it was trained by.
      params: the backbone's weights.
      frozen: the other networks' weights, where the recipe has them.
      tokenizer: of the captions.
      told: the changes to the recipe's ``sample`` that were asked for when it was loaded.
    """

    name: str
    config: Any
    params: Params
    frozen: Frozen
    tokenizer: Tokenizer
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, C) of its pictures."""
        return build.picture_shape(self.config.data)

    @property
    def digests(self) -> dict[str, str]:
        """Which weights draw: its own, and those that autoguidance moves away from."""
        found = {"weights": weights.digest(self.params)}
        weaker = self.frozen.get("weaker")
        return found if weaker is None else {**found, "weaker": weights.digest(weaker)}

    def as_asked(
        self, steps: int | None, guidance: float | None, sample: Mapping[str, Any] | None
    ) -> Any:
        """The recipe with these changes to its ``sample``, over which goes what was told.

        Raises:
          ValueError: both choose, count steps, or say how strong guidance is, and differ; or what
            was told is of an alternative that is not chosen.
        """
        _same_choices(sample or {}, self.told)
        config = _changed(_changed(self.config, sample or {}), self.told)
        _chosen(config.sample, self.told)
        if steps is not None:
            if self.told.get("steps", steps) != steps:
                raise ValueError(f"--sample=steps={self.told['steps']}: --steps says {steps}")
            config.sample.steps = steps
        if guidance is not None:
            chosen = config.sample.guidance
            told = self.told.get("guidance", {})
            # The form's own scale acts, and the plain one's where it has none.
            for form in (chosen.name, "classifier_free"):
                if "scale" in told.get(form, {}):
                    scale = told[form]["scale"]
                    if scale != guidance:
                        said = f"--sample=guidance.{form}.scale={scale:g}"
                        raise ValueError(f"{said}: --guidance says {guidance:g}")
                    break
            if "scale" not in chosen[chosen.name]:
                raise ValueError(f"guidance.{chosen.name} has no scale that could be {guidance:g}")
            chosen[chosen.name].scale = float(guidance)
        return config

    def read(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens and mask "P T" of the prompts, and a number "P" that is each prompt's own.

        Raises:
          ValueError: a prompt is longer than the model's context.
        """
        tokens, mask = self.tokenizer.encode(prompts, self.config.data.context)
        return tokens, mask, np.array([_number(prompt) for prompt in prompts], np.int32)


def load(
    source: str,
    roles: tuple[str, ...] = ("llm", "vae"),
    *,
    ema: bool = True,
    sample: Sequence[str] = (),
) -> Trained:
    """The model of a working directory, of a folder with weights, or one inside the package.

    Args:
      source: the folder, or an embedded model's name.
      roles: which frozen networks to load; measuring and choosing want "clip" too.
      ema: the averaged weights, or those of the last step, which only a run still has.
      sample: changes to the recipe's ``sample``, as "solver.name=heun".

    Raises:
      ValueError: there is no such folder, no model in it, or one that draws no pictures; only
        averaged weights, and others are wanted; a change of a field that is not there.
    """
    place = Path(source)
    if (place / "checkpoints").is_dir():
        return _from_run(place, roles, ema, sample)
    if not ema:
        raise ValueError(
            f"{source} has averaged weights alone; name a run's own folder, with its checkpoints"
        )
    if (place / "model" / "config.json").is_file():
        source = str(place / "model")
    elif not (weights.EMBEDDED / source).is_dir() and not place.is_dir():
        raise ValueError(f"no model in {source!r}: there is no such folder")
    folder = weights.folder(source)
    if not (folder / "recipe.json").is_file():
        raise ValueError(f"{folder} has weights but no recipe.json that says how they draw")
    config = _config(json.loads((folder / "recipe.json").read_text()), source)
    config.backbone = {"name": "asset", "asset": {"path": str(folder)}}
    if (folder / "tokenizer.json").is_file():
        config.tokenizer = {"name": "asset", "asset": {"path": str(folder)}}
    return _ready(source, config, modules.parameters(config.backbone), roles, sample)


def _from_run(workdir: Path, roles: tuple[str, ...], ema: bool, sample: Sequence[str]) -> Trained:
    with checkpoint.Checkpoints(workdir, write=False) as checkpoints:
        stored = checkpoints.config()
        if stored is None:
            raise ValueError(f"no checkpoint in {workdir} yet")
        config = _config(stored, str(workdir))
        step, params = checkpoints.weights("ema" if ema else "params")
    which = f"step {step}" if ema else f"step {step}, not averaged"
    return _ready(f"{workdir} ({which})", config, params, roles, sample)


def _config(stored: dict[str, Any], source: str) -> Any:
    config: Any = ConfigDict(stored)
    if config.objective.name != "flow_matching":
        raise ValueError(
            f"{source} was trained by {config.objective.name}: a model that draws no pictures"
        )
    # As the run drew for its own report, where all was in this precision.
    said = config.sample.get("matmul_precision", "") or config.get("matmul_precision", "")
    config.sample.matmul_precision = said
    return config


def _told(config: Any, words: Sequence[str]) -> dict[str, Any]:
    """Changes to the recipe's ``sample`` that are written "field=value"."""
    changes: dict[str, Any] = {}
    known = _with_newer_knobs(config.sample) if words else config.sample
    for word in words:
        try:
            field, value = _assignment(known, word)
        except ValueError as error:
            raise ValueError(f"--sample={word}: {error}") from None
        *path, last = field.split(".")
        inner = changes
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return changes


def _same_choices(method: Mapping[str, Any], told: Mapping[str, Any], above: str = "") -> None:
    """Numbers that were told go before a method's own, but what is chosen is the method."""
    for field, value in told.items():
        theirs = method.get(field)
        if isinstance(value, Mapping) and isinstance(theirs, Mapping):
            _same_choices(theirs, value, f"{above}{field}.")
        elif field == "name" and theirs not in (None, value):
            raise ValueError(f"--sample={above}name={value}: the method takes {theirs}")


def _chosen(sample: Any, told: Mapping[str, Any], above: str = "") -> None:
    """Refuse to be told of what then takes no part, such as DDIM's eta where Heun steps."""
    for field, value in told.items():
        entry = sample.get(field)
        if not isinstance(value, Mapping) or not isinstance(entry, ConfigDict):
            continue
        here = f"{above}{field}."
        if "name" in entry:
            taking_part = [*str(entry.name).split("+"), *_also_read(sample, field)]
            for idle in value.keys() - {"name", *taking_part}:
                knob = next(iter(value[idle]))
                raise ValueError(
                    f"--sample={here}{idle}.{knob}={value[idle][knob]}: {here}name is "
                    f"{entry.name}; choose it by --sample={here}name={idle}"
                )
        _chosen(entry, value, here)


def _also_read(sample: Any, field: str) -> tuple[str, ...]:
    """Alternatives that take part without being chosen."""
    if field == "guidance" and sample.guidance.name == "composed":
        return ("classifier_free",)  # its fields are the composed form's, too
    if field == "view":
        return (build.rollouts_view(sample)["name"],)
    return ()


def _with_newer_knobs(sample: Any) -> Any:
    """A copy that has the knobs which came after the recipe was stored, as they act unsaid."""
    known: Any = ConfigDict(json.loads(sample.to_json_best_effort()))
    for choice, table in _GROWING.items():
        for name, knobs in known.get(choice, {}).items():
            if isinstance(knobs, ConfigDict) and name in table:
                for knob, value in _unsaid(table[name]).items():
                    if knob not in knobs:
                        knobs[knob] = value
    return known


def _unsaid(maker: Callable) -> dict[str, Any]:
    """What the knobs of a constructor are by default, in whatever it is wrapped."""
    made = inspect.unwrap(maker)
    fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
    # Objects are no knobs, nor are tuples of them, which are empty by default.
    kinds = (bool, int, float, str, tuple)
    return {
        field.name: field.default
        for field in fields
        if field.init and isinstance(field.default, kinds) and field.default != ()
    }


_GROWING = {
    "solver": tables.SOLVERS,
    "grid": tables.GRIDS,
    "guidance": tables.GUIDANCES,
    "noise": tables.NOISES,
    "descent": tables.DESCENTS,
    "condition": tables.CONDITIONS,
    "repulsion": tables.REPULSIONS,
    "selection": tables.SELECTIONS,
}


def _assignment(known: Any, word: str) -> tuple[str, Any]:
    """The field and its value, of the same kind as the one that stands there."""
    field, sign, said = word.partition("=")
    if not sign:
        raise ValueError("write field=value")
    old: Any = known
    for part in field.split("."):
        names = list(old) if isinstance(old, ConfigDict) else []
        if part not in names:
            near = difflib.get_close_matches(part, names, 1)
            meant = f"do you mean {near[0]}" if near else f"there is {', '.join(names) or 'none'}"
            raise ValueError(f"the recipe has no {part!r} there; {meant}")
        old = old[part]
    if isinstance(old, ConfigDict):
        raise ValueError(f"{field} has the fields {', '.join(old)}; name one of them")
    try:
        value = ast.literal_eval(said)
    except (ValueError, SyntaxError):
        value = said  # a name
    if isinstance(old, float) and isinstance(value, int):
        value = float(value)
    if isinstance(value, (list, tuple)) and isinstance(old, (list, tuple)):
        value = type(old)(value)
    if old is not None and type(value) is not type(old):
        raise ValueError(f"a value like {old!r} is wanted")
    return field, value


def _changed(config: Any, sample: Mapping[str, Any]) -> Any:
    """A copy with these fields of ``sample``; another form of guidance is as strong as the old."""
    config = ConfigDict(json.loads(config.to_json_best_effort()))
    before = config.sample.guidance
    scale = before[before.name].get("scale")
    # Recipes stored by older versions lack the choices that came later.
    config.sample.update(dict(sample))
    said = dict(sample.get("guidance", {}))
    chosen = config.sample.guidance
    if chosen.name == "composed":
        # What is asked of the plain form holds for the composed one, which has its fields too.
        asked = {**said.get("classifier_free", {}), **said.get("composed", {})}
        chosen.composed.update(asked)
    else:
        asked = said.get(chosen.name, {})
    if "name" in said and "scale" in chosen[chosen.name] and scale is not None:
        # Another form is as strong as the recipe's own, unless it says.
        chosen[chosen.name].scale = asked.get("scale", scale)
    return config


def _ready(
    name: str, config: Any, params: Params, roles: tuple[str, ...], sample: Sequence[str]
) -> Trained:
    told = _told(config, sample)
    config = _changed(config, told) if told else config
    roles = tuple(dict.fromkeys((*roles, *build.drawing(config.sample))))
    frozen = modules.frozen(config, tuple(role for role in roles if role != "clip"))
    if "clip" in roles:
        try:
            frozen |= modules.frozen(config, ("clip",))
        except ValueError as error:
            # It measures and chooses; drawing needs none.
            _log.warning("without CLIP: %s", error)
    return Trained(
        name=name,
        config=config,
        # On every device that draws, once, for all that draw with it: numpy weights, or those of
        # one device, would travel with every call.
        params=sharding.replicate(params, sharding.local()),
        frozen=sharding.replicate(frozen, sharding.local()),
        tokenizer=build.tokenizer(config.tokenizer),
        told=told,
    )


def _number(prompt: str) -> int:
    # Python's own hash() is salted per process.
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") >> 1
