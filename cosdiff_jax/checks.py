"""What cannot work is told in one line, with the field to change, before hours go into it.

The checks look at the whole recipe at once, or at all of the data; what concerns one object alone
is refused by that object.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cosdiff_jax.data import groups
from cosdiff_jax.data.tokenizer import Tokenizer
from cosdiff_jax.report import record
from cosdiff_jax.shapes import Batch, Frozen

# Fields that may change between two parts of one run: they do not touch what is computed.
_FREE = (
    *("recipe", "steps", "log_every", "checkpoint", "sample", "mesh", "export", "data.threads"),
    "wandb",
)


def recipe(config: Any) -> None:
    """Refuse, in one line, what cannot work.

    Raises:
      ValueError: what is wrong and what to do.
    """
    flow = config.objective.name == "flow_matching"
    diversity = flow and config.objective.flow_matching.diversity.name != "none"
    if diversity and config.data.samples < 2:
        raise ValueError(
            f"data.samples = {config.data.samples}: the diversity term compares the samples of "
            "one prompt and needs at least 2; raise data.samples or set "
            "objective.flow_matching.diversity.name=none"
        )
    if diversity:
        _controller(config.objective.flow_matching.diversity.cosine)
    aligned = config.objective.flow_matching.alignment
    form = aligned.get(aligned.name, {}).get("form", {"name": "none"})["name"]
    together = config.data.prompts // max(config.optimizer.accumulate, 1)
    if flow and form == "contrastive" and together < 2:
        raise ValueError(
            f"data.prompts = {config.data.prompts}: contrastive alignment tells a batch's captions "
            "apart and needs at least 2 (in each part that optimizer.accumulate makes); raise "
            f"data.prompts or set objective.flow_matching.alignment.{aligned.name}.form.name=cosine"
        )
    for field in ("prompts", "samples", "context"):
        if config.data[field] < 1:
            raise ValueError(f"data.{field} must be at least 1, not {config.data[field]}")
    if config.steps < 1 or config.log_every < 1 or config.checkpoint.every < 1:
        raise ValueError("steps, log_every and checkpoint.every must be at least 1")
    # Here, not where the record is opened: a missing package is told before anything is prepared.
    record.Wandb(**config.wandb)


def _controller(knobs: Any) -> None:
    """Refuse a controller whose term may push nothing while the cosine is above the one wanted.

    Raises:
      ValueError: so it is: the weight would grow to its largest for nothing.
    """
    if knobs.schedule.name != "controller":
        return
    field = "objective.flow_matching.diversity.cosine"
    wanted = knobs.schedule.controller.wanted
    if knobs.target.name != "fixed":
        raise ValueError(
            f"{field}.schedule.name=controller holds the cosine at wanted = {wanted}, which may "
            f"lie below the target {knobs.target.name}, where nothing is pushed: set "
            f"{field}.target.name=fixed"
        )
    if knobs.target.fixed.cosine > wanted:
        raise ValueError(
            f"{field}.target.fixed.cosine = {knobs.target.fixed.cosine} lies above the cosine that "
            f"the controller is to hold, wanted = {wanted}: below it nothing is pushed; set it to "
            f"at most {wanted}"
        )


def captions(words: Tokenizer, context: int, said: Sequence[str]) -> None:
    """Read every caption: the one that is too long may come after hours only.

    Raises:
      ValueError: some have more tokens than the context.
    """
    long = {caption: n for caption in said if (n := words.count(caption)) > context}
    if long:
        first, most = next(iter(long)), max(long.values())
        raise ValueError(
            f"data.context = {context}: {len(long)} of {len(said)} captions have more tokens, "
            f"such as {first!r} with {long[first]}; set data.context={most}"
        )


def target(objective: Any, data: groups.Source) -> None:
    """Refuse a target that no prompt of the data has.

    Raises:
      ValueError: so it is: the term would do nothing.
    """
    term = getattr(objective, "diversity", None)
    if term is not None and term.reads_real and not getattr(data, "varied", 1):
        raise ValueError(
            "no caption of the data has two pictures that differ (and have one shape), so there is "
            "no cosine of real ones: set objective.flow_matching.diversity.cosine.target.name=fixed"
        )


def shapes(config: Any, objective: Any, frozen: Frozen, data: groups.Source) -> None:
    """Try pictures of every shape, without computing: some would come after hours only.

    Raises:
      ValueError: what reads them takes no such shape, or vectors of one length alone are kept.
    """
    several = getattr(data, "shapes", ())
    if len(several) < 2:
        return
    rows, kept = config.data.prompts * config.data.samples, None

    def remembered(frozen: Frozen, height: int, width: int) -> Any:
        text = jnp.zeros((config.data.prompts, config.data.context), jnp.int32)
        images = jnp.zeros((rows, height, width, 3))
        batch = Batch(tokens=text, mask=text == 0, images=images)
        objective.init(jax.random.key(0), batch)
        return objective.start(frozen, batch, 1)

    for shape in several:
        said = f"data.folder.longest: with pictures of {shape.height} x {shape.width}, "
        try:
            size = {"height": shape.height, "width": shape.width}
            memory = jax.eval_shape(functools.partial(remembered, **size), frozen)
        except ValueError as error:
            raise ValueError(said + str(error)) from None
        if kept not in (None, memory):
            raise ValueError(
                said + "vectors are of another length than with others, and some are remembered: "
                "set objective.flow_matching.feature.name=clip, or remember none"
            )
        kept = memory


def same_run(config: Any, before: Mapping[str, Any] | None, workdir: str) -> None:
    """Refuse to go on in a folder that another recipe began.

    Args:
      config: the recipe asked for.
      before: the config stored in the folder's newest checkpoint, or None.
      workdir: the folder.

    Raises:
      ValueError: naming the first field that differs.
    """
    if before is None:
        return
    now, then = _flat(json.loads(config.to_json_best_effort())), _flat(before)
    # A field that only one side knows came or went with a version of the menu.
    for name in sorted(now.keys() & then.keys()):
        free = any(name == field or name.startswith(field + ".") for field in _FREE)
        if not free and now.get(name) != then.get(name):
            raise ValueError(
                f"{workdir} holds a run with {name} = {then.get(name)}, not {now.get(name)}: "
                "choose another --workdir, or the recipe that began it"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found
