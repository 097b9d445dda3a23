"""The switchboard: a recipe becomes objects here and nowhere else.

``tables`` says which name stands for which constructor; here what depends on several parts of a
recipe is put together: data, objectives, the sampler. ``modules`` makes the networks and loads
their weights. Below these files nobody sees a ConfigDict.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax import judge, modules, tables, weights
from cosdiff_jax.data import groups
from cosdiff_jax.data import tokenizer as tokenizers
from cosdiff_jax.data.scenes import grammar
from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.features.hidden import HiddenFeature
from cosdiff_jax.features.latent import LatentFeature
from cosdiff_jax.features.latent_clip import LatentClipFeature
from cosdiff_jax.features.mix import Mix
from cosdiff_jax.features.vgg import VggFeature
from cosdiff_jax.flow import composed, timestep
from cosdiff_jax.flow.parameterization import Parameterization
from cosdiff_jax.flow.solver import Solver
from cosdiff_jax.flow.trajectory import Trajectory
from cosdiff_jax.metrics import scenes
from cosdiff_jax.metrics.digits import DigitMetric
from cosdiff_jax.objectives.autoencoder import Autoencoder
from cosdiff_jax.objectives.contrastive import Contrastive
from cosdiff_jax.objectives.flow_matching import FlowMatching
from cosdiff_jax.objectives.next_token import NextToken
from cosdiff_jax.sampler import Sampler

# The views that look through a network of their own: its key in Frozen and its role, too.
LOOKING = ("clip", "latent_clip", "vgg")


def tokenizer(entry: tables.Entry) -> tokenizers.Tokenizer:
    """The tokenizer that the entry names, or one learnt from captions on the spot."""
    return tables.make(tables.TOKENIZERS, entry, "tokenizer")


def source(data: Any, split: str, samples: int | None = None) -> groups.Source:
    """The groups that ``data.name`` picks; a split is "train" or "test".

    ``samples`` pictures each, ``data.samples`` unless given.
    """
    return tables.make(tables.SOURCES, data, "data", split=split, samples=samples or data.samples)


def _flow_matching(config: Any) -> tuple[FlowMatching, tuple[str, ...]]:
    knobs = config.objective.flow_matching
    diversity = _make(tables.DIVERSITIES, knobs.diversity, "diversity")
    alignment = _make(tables.ALIGNMENTS, knobs.alignment, "alignment")
    predicts = diversity is not None or alignment is not None
    # The network that alignment compares through has the term's own name.
    reads = alignment is not None and alignment.projection is None
    looks = _looks(knobs.feature) if predicts else set()
    through = _through(looks | ({knobs.alignment.name} if reads else set()))
    nets = modules.models(config, ("language_model", "vae", "backbone", *through))
    views = _views(nets, knobs)

    def mix(**weights: float) -> Mix:
        used = {name: weight for name, weight in weights.items() if weight}
        parts = tuple(_make(views, {**knobs.feature, "name": name}, "feature") for name in used)
        return Mix(parts=parts, weights=tuple(used.values()))

    features = {**views, "mix": mix}
    trajectory = _make(tables.TRAJECTORIES, knobs.trajectory, "trajectory")
    objective = FlowMatching(
        backbone=nets.backbone,
        language_model=nets.language_model,
        vae=nets.vae,
        reader=views[knobs.alignment.name]() if reads else None,
        trajectory=trajectory,
        parameterization=_parameterization(knobs),
        times=_times(config, trajectory),
        weighting=_make(tables.WEIGHTINGS, knobs.weighting, "weighting"),
        caption_dropout=knobs.caption_dropout,
        samples=config.data.samples,
        diversity=diversity,
        alignment=alignment,
        anchor=knobs.anchor,
        anchor_to=knobs.get("anchor_to", "start"),
        prediction=_along(trajectory, _make(tables.PREDICTIONS, knobs.prediction, "prediction")),
        feature=_make(features, knobs.feature, "feature") if predicts else None,
    )
    # The average is the training's own, and comes with each step.
    anchored = (knobs.anchor > 0 and objective.anchor_to == "start") or "hidden" in looks
    # What is drawn meanwhile may look through a network where the loss does not.
    through = _through({*through, *drawing(config.sample)})
    return objective, ("llm", "vae", *through, *("anchor",) * anchored)


def _parameterization(knobs: Any) -> Parameterization:
    entry = _choice(knobs, "parameterization", "velocity")
    return _make(tables.PARAMETERIZATIONS, entry, "parameterization")


def _times(config: Any, trajectory: Trajectory) -> timestep.Times:
    """The times that are trained on: drawn, moved to higher noise, spread over the batch."""
    knobs = config.objective.flow_matching
    own = functools.partial(timestep.LogNormalSigma, trajectory=trajectory)
    times = _make({**tables.TIMES, "log_normal_sigma": own}, knobs.times, "times")
    shift = {"alpha": 1.0, **knobs.get("shift", {})}
    reference = shift.pop("reference", 0)
    shape = latent_shape(config, picture_shape(config.data)) if reference else ()
    moved = timestep.Shifted(times=times, trajectory=trajectory, **shift)
    moved = timestep.resized(moved, reference, shape)
    if moved.alpha != 1 or moved.double:
        times = moved
    entry = _choice(knobs, "spread", "independent")
    return _make(tables.SPREADS, entry, "spread", times=times)


def _views(nets: modules.Models, trained: Any) -> dict[str, Callable]:
    """The features, of networks that are built already; ``trained`` says how the backbone was."""

    return {
        "clip": lambda: ClipFeature(clip=_there(nets, "clip"), vae=nets.vae),
        "latent_clip": lambda: LatentClipFeature(clip=_there(nets, "latent_clip")),
        "vgg": lambda **knobs: VggFeature(vgg=_there(nets, "vgg"), vae=nets.vae, **knobs),
        "hidden": functools.partial(_hidden, nets.backbone, trained),
        "latent": LatentFeature,
    }


def _hidden(backbone: Any, trained: Any, **knobs: Any) -> HiddenFeature:
    return HiddenFeature(
        backbone=backbone,
        trajectory=_make(tables.TRAJECTORIES, trained.trajectory, "trajectory"),
        parameterization=_parameterization(trained),
        **knobs,
    )


def hidden(config: Any) -> HiddenFeature:
    """What the recipe's own backbone makes of pictures at t = 0.1, not centred.

    Its weights are ``frozen["anchor"]``. The numbers are the feature's defaults, whatever the
    recipe's own feature looks at, so that models trained in different ways are seen alike.
    """
    trained = config.objective.flow_matching
    return _hidden(modules.model("backbone", config.backbone), trained)


def _there(nets: modules.Models, role: str) -> Any:
    network = getattr(nets, role)
    if network is None:
        raise ValueError(
            f"the feature {role} has no network: set {role}.name=asset and {role}.asset.path to a "
            "folder with its weights"
        )
    return network


def _through(looks: set[str]) -> tuple[str, ...]:
    return tuple(name for name in (*LOOKING, "weaker") if name in looks)


def viewed(sample: Any) -> tuple[str, ...]:
    """Of Frozen, what repulsion and descent look through."""
    return _through({_choice(sample, "view")["name"], rollouts_view(sample)["name"]})


def rollouts_view(sample: Any) -> tables.Entry:
    """What a descent compares: an alternative of ``sample.view``, with its knobs there."""
    view, chosen = _choice(sample, "view"), _choice(sample, "descent")
    # Recipes stored by older versions have one view for both.
    return {**view, "name": chosen.get(chosen["name"], {}).get("view", view["name"])}


def drawing(sample: Any) -> tuple[str, ...]:
    """Of Frozen, what drawing needs beside the captions' network and the autoencoder."""
    return (*viewed(sample), *("weaker",) * (modules.weaker(sample) is not None))


def _weaker_network(config: Any, stronger: Any) -> Any:
    entry = modules.weaker(config.sample)
    if entry is None:
        return None
    network = modules.model("backbone", entry)
    for part in ("rotate", "layers", "echo"):
        if getattr(network.attention, part) != getattr(stronger.attention, part):
            raise ValueError(
                f"autoguidance: {entry['asset']['path']} reads captions in another way than the "
                f"model ({part}), and one reading serves both"
            )
    for part, theirs, ours in trained_otherwise(entry["asset"]["path"], config):
        raise ValueError(
            f"autoguidance: {entry['asset']['path']} was trained with {part}.name={theirs}, the "
            f"model with {ours}"
        )
    return network


def trained_otherwise(path: str, config: Any) -> list[tuple[str, str, str]]:
    """Where the output of an asset's weights means something else than a recipe's does.

    Returns:
      (field, the asset's choice, the recipe's); [] where nobody knows how it was trained.
    """
    recipe = weights.folder(path) / "recipe.json"
    if not recipe.is_file():
        return []
    theirs = json.loads(recipe.read_text())["objective"]["flow_matching"]
    ours = config.objective.flow_matching
    usual = {"trajectory": "rectified_flow", "parameterization": "velocity"}
    names = [
        (part, *(str(_choice(knobs, part, name)["name"]) for knobs in (theirs, ours)))
        for part, name in usual.items()
    ]
    return [(part, a, b) for part, a, b in names if a != b]


def _looks(feature: tables.Entry) -> set[str]:
    """The views that a feature is made of."""
    if feature.name != "mix":
        return {feature.name}
    return {name for name, weight in feature.mix.items() if weight}


def _contrastive_latents(config: Any) -> tuple[Contrastive, tuple[str, ...]]:
    nets = modules.models(config, ("vae", "latent_clip"))
    for role in ("vae", "latent_clip"):
        if getattr(nets, role) is None:
            raise ValueError(f"objective.name=contrastive_latents needs {role}.name, which is none")
    return Contrastive(clip=nets.latent_clip, vae=nets.vae), ("vae",)


OBJECTIVES: dict[str, Callable[[Any], tuple[Any, tuple[str, ...]]]] = {
    "next_token": lambda c: (NextToken(llm=modules.model("language_model", c.language_model)), ()),
    "autoencoder": lambda c: (
        tables.make(_AUTOENCODER, c.objective, vae=modules.model("vae", c.vae)),
        (),
    ),
    "contrastive": lambda c: (Contrastive(clip=modules.model("clip", c.clip)), ()),
    "contrastive_latents": _contrastive_latents,
    "flow_matching": _flow_matching,
}
"""Name -> config -> (the objective, the keys of Frozen that it reads)."""

_AUTOENCODER = {"autoencoder": Autoencoder}


def objective(config: Any) -> tuple[Any, tuple[str, ...]]:
    """The objective and the keys of Frozen that it reads.

    Raises:
      ValueError: no such objective.
    """
    if config.objective.name not in OBJECTIVES:
        raise ValueError(f"{config.objective.name!r} is not one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[config.objective.name](config)


def picture_shape(data: Any) -> tuple[int, int, int]:
    """(X, Y, C) of the pictures of ``data.name``; the square, where some keep their shapes."""
    if data.name == "digits":
        return 8, 8, 1
    side = data.folder.size if data.name == "folder" else 64
    return side, side, 3


def latent_shape(config: Any, images: tuple[int, int, int]) -> tuple[int, int, int]:
    """(h, w, c) of the latents of pictures of shape (X, Y, C), or the pictures' own."""
    vae = modules.model("vae", config.vae)
    if vae is None:
        return images
    like = jax.eval_shape(
        lambda: vae.init_with_output(
            jax.random.key(0), jnp.zeros((1, *images)), method="to_latents"
        )[0]
    )
    return tuple(like.shape[1:])


def sampler(config: Any, images: tuple[int, int, int], **changes: Any) -> Sampler:
    """Draws pictures as ``config.sample`` says; ``changes`` are the sampler's own fields."""
    knobs = config.sample
    nets = modules.models(config, ("language_model", "vae", "backbone", *viewed(knobs)))
    trained = config.objective.flow_matching
    trajectory = _make(tables.TRAJECTORIES, trained.trajectory, "trajectory")
    guidance = _along(trajectory, tables.make(tables.GUIDANCES, knobs.guidance, "sample.guidance"))
    shape = latent_shape(config, images)
    solver = _solver(knobs, trajectory, shape)
    asked = getattr(solver, "asked", solver.grid)
    views = {"none": lambda: None, **_views(nets, trained)}
    descent = tables.make(tables.DESCENTS, _choice(knobs, "descent"), "sample.descent")
    if descent is not None:
        compared = tables.make(views, rollouts_view(knobs), "sample.view")
        descent = dataclasses.replace(descent, feature=compared)
    fields = dict(
        backbone=nets.backbone,
        language_model=nets.language_model,
        vae=nets.vae,
        shape=shape,
        trajectory=trajectory,
        parameterization=_parameterization(trained),
        steps=knobs.steps,
        weaker=_weaker_network(config, nets.backbone),
        guidance=composed.late(guidance, asked(knobs.steps), knobs.get("unguided", 0)),
        solver=solver,
        precision=knobs.get("matmul_precision", ""),
        rows=knobs.rows,
        noise=tables.make(tables.NOISES, _choice(knobs, "noise", "independent"), "sample.noise"),
        descent=descent,
        condition=tables.make(tables.CONDITIONS, _choice(knobs, "condition"), "sample.condition"),
        repulsion=tables.make(tables.REPULSIONS, _choice(knobs, "repulsion"), "sample.repulsion"),
        view=tables.make(views, _choice(knobs, "view"), "sample.view"),
    )
    return Sampler(**{**fields, **changes})


def _solver(knobs: Any, trajectory: Trajectory, shape: tuple[int, int, int]) -> Solver:
    shifted = functools.partial(tables.GRIDS["shifted"], shape=shape)
    grids = {**tables.GRIDS, "shifted": shifted}
    grid = tables.make(grids, _choice(knobs, "grid", "uniform"), "sample.grid")
    solver = tables.make(tables.SOLVERS, knobs.solver, "sample.solver")
    return _along(trajectory, dataclasses.replace(solver, grid=grid))


def _along(trajectory: Trajectory, part: Any) -> Any:
    """A part and all that it is made of, on the path that is trained."""
    if isinstance(part, Trajectory):
        return trajectory
    if not dataclasses.is_dataclass(part):
        return part
    fields = [field.name for field in dataclasses.fields(part) if field.init]
    parts = {name: _along(trajectory, getattr(part, name)) for name in fields}
    return dataclasses.replace(part, **parts)  # pyright: ignore[reportArgumentType]


def _make(table: Mapping[str, Callable], entry: tables.Entry, choice: str, **more: Any) -> Any:
    """What an entry of the flow's own menu picks."""
    return tables.make(table, entry, f"objective.flow_matching.{choice}", **more)


def _choice(knobs: Any, name: str, default: str = "none") -> tables.Entry:
    """A choice of the menu that recipes stored by older versions lack."""
    return knobs.get(name, {"name": default})


def measures(data: str, items: list[dict[str, Any]]) -> list[judge.Measure]:
    """What can be said of pictures of these held-out groups, by the kind of data."""
    if data == "scenes":
        specs = [grammar.spec_from_json(item["spec"]) for item in items]
        return [lambda images: judge.prompt_by_prompt(scenes, images, specs)]
    if data == "digits":
        asked = np.array([item["digit"] for item in items], np.int32)
        metric = DigitMetric()
        return [lambda images: judge.prompt_by_prompt(metric, images, asked)]
    return []
