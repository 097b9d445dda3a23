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

from cosdiff_jax import build
from cosdiff_jax.data import groups
from cosdiff_jax.data.tokenizer import Tokenizer
from cosdiff_jax.report import record
from cosdiff_jax.shapes import Batch, Frozen

# Fields that may change between two parts of one run: they do not touch what is computed.
# Of ``sample`` those that say when a run looks, how much at once, and what `generate` does with
# candidates: a first and a last look that are not drawn alike cannot be compared.
_FREE = (
    *("recipe", "steps", "log_every", "checkpoint", "mesh", "export", "data.threads", "wandb"),
    *("sample.every", "sample.measure", "sample.rows"),
    *("sample.pruning", "sample.pruned_from", "sample.selection"),
)

# The least that numbers can be, by field; of ``sample`` some are read where pictures are drawn,
# another where there are none.
_LEAST = {
    **dict.fromkeys(("steps", "log_every", "checkpoint.every", "checkpoint.keep"), 1),
    **dict.fromkeys(("data.prompts", "data.samples", "data.context", "sample.every"), 1),
    **dict.fromkeys(("optimizer.accumulate", "optimizer.ema.every"), 1),
    **dict.fromkeys(("data.threads", "data.reflow.steps"), 0),
    "sample.measure": -1,
    **dict.fromkeys((f"optimizer.{name}" for name in ("rate", "warmup", "floor", "clip")), 0),
}
_DRAWN = tuple(f"sample.{name}" for name in ("prompts", "shown", "num", "steps", "rows"))
_UNDRAWN = ("sample.batches",)


def recipe(config: Any) -> None:
    """Refuse, in one line, what cannot work.

    Raises:
      ValueError: what is wrong and what to do.
    """
    flow = config.objective.name == "flow_matching"
    _numbers(config, {**_LEAST, **dict.fromkeys(_DRAWN if flow else _UNDRAWN, 1)})
    diversity = flow and config.objective.flow_matching.diversity.name != "none"
    if diversity and config.data.samples < 2:
        raise ValueError(
            f"data.samples = {config.data.samples}: the diversity term compares the samples of "
            "one prompt and needs at least 2; raise data.samples or set "
            "objective.flow_matching.diversity.name=none"
        )
    if config.data.reflow.steps:
        _reflow(config)
    if flow and config.backbone.name == "asset":
        _trained_likewise(config)
    if diversity:
        _controller(config.objective.flow_matching.diversity.cosine)
    aligned = config.objective.flow_matching.alignment
    form = aligned.get(aligned.name, {}).get("form", {"name": "none"})["name"]
    together = config.data.prompts // config.optimizer.accumulate
    if flow and form == "contrastive" and together < 2:
        raise ValueError(
            f"data.prompts = {config.data.prompts}: contrastive alignment tells a batch's captions "
            "apart and needs at least 2 (in each part that optimizer.accumulate makes); raise "
            f"data.prompts or set objective.flow_matching.alignment.{aligned.name}.form.name=cosine"
        )
    # Here, not where the record is opened: a missing package is told before anything is prepared.
    record.Wandb(**config.wandb)


def _numbers(config: Any, least: Mapping[str, int]) -> None:
    """Refuse numbers that would end in a division by zero, or in nothing, later on.

    Args:
      config: the recipe.
      least: what fields must at least be.

    Raises:
      ValueError: naming the field.
    """
    for field, lowest in least.items():
        value = functools.reduce(lambda tree, name: tree[name], field.split("."), config)
        if not value >= lowest:  # not a number is no number
            raise ValueError(f"{field} must be at least {lowest}, not {value}")
    if not 0 <= config.optimizer.ema.decay < 1:
        raise ValueError(
            f"optimizer.ema.decay must lie in [0, 1), not {config.optimizer.ema.decay}"
        )
    prompts, parts = config.data.prompts, config.optimizer.accumulate
    if prompts % parts:
        raise ValueError(
            f"data.prompts = {prompts} does not divide into optimizer.accumulate = {parts} parts"
        )
    for axis, size in config.mesh.items():
        if size < 1 and size != -1:
            raise ValueError(f"mesh.{axis} must be at least 1, or -1 for what is left, not {size}")


def _reflow(config: Any) -> None:
    """Refuse to train on what nothing can draw.

    Raises:
      ValueError: naming the field.
    """
    if config.objective.name != "flow_matching":
        raise ValueError(f"data.reflow.steps: objective.name={config.objective.name} draws nothing")
    path = config.objective.flow_matching.trajectory.name
    if path != "rectified_flow":
        raise ValueError(
            "data.reflow.steps straightens a rectified flow: set "
            f"objective.flow_matching.trajectory.name=rectified_flow, not {path}"
        )
    if config.backbone.name != "asset":
        raise ValueError(
            "data.reflow.steps draws with the weights that the run starts from: set "
            "backbone.name=asset and backbone.asset.path"
        )
    if config.data.encoded:
        raise ValueError("data.reflow.steps takes the place of the pictures: data.encoded=False")
    if config.data.name == "folder" and config.data.folder.longest != 1:
        raise ValueError("data.reflow.steps draws squares alone: set data.folder.longest=1.0")
    diversity = config.objective.flow_matching.diversity
    if diversity.name == "cosine" and diversity.cosine.target.name == "real":
        raise ValueError(
            "data.reflow.steps takes the place of the real pictures, which the target is of: set "
            "objective.flow_matching.diversity.cosine.target.name=fixed"
        )


def _trained_likewise(config: Any) -> None:
    """Refuse to go on from weights whose output meant something else.

    Raises:
      ValueError: naming the field.
    """
    path = config.backbone.asset.path
    for part, before, now in build.trained_otherwise(path, config):
        raise ValueError(
            f"objective.flow_matching.{part}.name={now}, but {path} was trained with {before}: set "
            "that, or another backbone.name"
        )


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
      before: the config that the folder's run was last started with, or None.
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
