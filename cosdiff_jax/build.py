"""The switchboard: a config string becomes an object here and nowhere else.

Every choice in ``configs/base.py`` is a dictionary with a ``name`` and one entry per alternative;
``make(TABLE, entry)`` calls the named constructor with that alternative's knobs. Below this file
nobody sees a ConfigDict.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax import weights
from cosdiff_jax.data import groups
from cosdiff_jax.data import tokenizer as tokenizers
from cosdiff_jax.data.digits import DigitGroups
from cosdiff_jax.data.folder import FolderGroups
from cosdiff_jax.data.scenes import builder, grammar
from cosdiff_jax.data.scenes.source import ScenesGroups, ScenesPairs
from cosdiff_jax.diversity import (
    bank,
    control,
    measure,
    noise,
    repulsion,
    schedule,
    selection,
)
from cosdiff_jax.diversity.programme import QuadraticProgram
from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.features.hidden import HiddenFeature
from cosdiff_jax.features.latent import LatentFeature
from cosdiff_jax.features.mix import Mix
from cosdiff_jax.flow import guidance, prediction, solver, timestep, trajectory, weighting
from cosdiff_jax.flow.condition import Cads
from cosdiff_jax.metrics import scenes
from cosdiff_jax.metrics.digits import DigitMetric
from cosdiff_jax.models import dit, fuse_dit, fusion, modulation, position
from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.objectives.autoencoder import Autoencoder
from cosdiff_jax.objectives.contrastive import Contrastive
from cosdiff_jax.objectives.flow_matching import FlowMatching
from cosdiff_jax.objectives.next_token import NextToken
from cosdiff_jax.optimizer import AdamW, Muon
from cosdiff_jax.sampler import Descent, Sampler
from cosdiff_jax.shapes import Frozen, Params

_log = logging.getLogger(__name__)

Entry = Any
"""A choice of the menu: ``{"name": n, n: {knobs}, ...}``."""

OPTIMIZERS = {"adamw": AdamW, "muon": Muon}
TRAJECTORIES = {"rectified_flow": trajectory.RectifiedFlow}
TIMES = {"uniform": timestep.Uniform, "logit_normal": timestep.LogitNormal}
WEIGHTINGS = {"constant": weighting.Constant}
SOLVERS = {"euler": solver.Euler, "heun": solver.Heun}
GUIDANCES = {"classifier_free": guidance.ClassifierFree}
SCHEDULES = {
    "constant": schedule.Constant,
    "linear": schedule.LinearRamp,
    "cosine": schedule.CosineRamp,
    "controller": schedule.Controller,
}
MEASURES = {
    "mean": measure.MeanCosine,
    "top": measure.TopCosine,
    "sampled": measure.SampledCosine,
    "log_determinant": measure.LogDeterminant,
    "vendi": measure.Vendi,
}
BANKS = {"none": lambda: None, "fifo": bank.Bank}
TARGETS = {"real": control.RealPictures, "fixed": control.Fixed}
NOISES = {
    "independent": noise.Independent,
    "orthogonal": noise.Orthogonal,
    "antithetic": noise.Antithetic,
    "repelled": noise.Repelled,
    "low_frequency": lambda **knobs: _nested(noise.LowFrequency, base=NOISES)(**knobs),
}
DESCENTS = {"none": lambda: None, "cosine": Descent}
CONDITIONS = {"none": lambda: None, "cads": Cads}
REPULSIONS = {
    "none": lambda: None,
    "particle": repulsion.ParticleGuidance,
    "svgd": repulsion.Svgd,
    "diverse_flow": repulsion.DiverseFlow,
}
SELECTIONS = {
    "max_min": selection.MaxMin,
    "min_sum": selection.MinSum,
    "relevance": selection.MaximalMarginalRelevance,
    "volume": selection.DeterminantalPointProcess,
    "medoids": selection.KMedoids,
    "programme": QuadraticProgram,
}
POSITIONS = {
    "ape": position.Ape,
    "rope_1d": position.Rope1D,
    "rope_2d": position.Rope2D,
    "rope_m": position.MRope,
}
MODULATIONS = {
    "adaln_zero": modulation.AdaLnZero,
    "adaln_single": modulation.AdaLnSingle,
    "addition": modulation.Addition,
    "none": modulation.Unconditioned,
}
FUSIONS = {
    "deep_self": fusion.SelfAttention,
    "deep_cross": fusion.CrossAttention,
    "shallow_self": dit.ShallowSelf,
    "shallow_cross": dit.ShallowCross,
}


def make(table: Mapping[str, Callable], entry: Entry, **more: Any) -> Any:
    """Call the constructor that ``entry["name"]`` picks with the knobs beside it.

    Args:
      table: name -> constructor.
      entry: the choice.
      **more: knobs that are objects already; they go before those of the entry.

    Raises:
      ValueError: no such choice; the choices are listed.
    """
    name = entry["name"]
    if name not in table:
        raise ValueError(f"{name!r} is not one of {', '.join(sorted(table))}")
    knobs = {key: _plain(key, value) for key, value in entry.get(name, {}).items()}
    return table[name](**{**knobs, **more})


def _plain(key: str, value: Any) -> Any:
    if key == "dtype":
        return jnp.dtype(value)
    return tuple(value) if isinstance(value, list) else value


def _nested(constructor: Callable, **tables: Mapping[str, Callable]) -> Callable:
    """A constructor some of whose knobs are choices themselves."""

    def build(**knobs: Any) -> Any:
        made = {key: make(table, knobs[key]) for key, table in tables.items() if key in knobs}
        return constructor(**{**knobs, **made})

    return build


# Roles: the networks a run can hold. The objective trains one of them, the others are frozen.
MODELS: dict[str, dict[str, Callable]] = {
    "language_model": {"gemma": Gemma},
    "vae": {"kl": AutoencoderKL, "none": lambda: None},
    "clip": {"clip": CLIP, "none": lambda: None},
    "backbone": {
        "fuse_dit": _nested(
            fuse_dit.FuseDiT, position=POSITIONS, modulation=MODULATIONS, attention=FUSIONS
        )
    },
}
# Key in Frozen -> role.
FROZEN = {"llm": "language_model", "vae": "vae", "clip": "clip", "anchor": "backbone"}
# Objective -> the role it trains.
TRAINED = {
    "next_token": "language_model",
    "autoencoder": "vae",
    "contrastive": "clip",
    "flow_matching": "backbone",
}
PREDICTIONS = {
    "one_step": prediction.OneStep,
    "rollout": _nested(prediction.Rollout, guidance=GUIDANCES),
}
DIVERSITIES = {
    "none": lambda: None,
    "cosine": _nested(
        control.CosineDiversity, schedule=SCHEDULES, measure=MEASURES, target=TARGETS, bank=BANKS
    ),
}


def resolve(entry: Entry) -> Entry:
    """An entry that names an asset becomes the entry stored beside the asset's weights."""
    return weights.entry(entry["asset"]["path"]) if entry["name"] == "asset" else entry


def model(role: str, entry: Entry) -> Any:
    """The module of one role.

    Raises:
      ValueError: no such model, or no such asset.
    """
    return make(MODELS[role], resolve(entry))


def parameters(entry: Entry) -> Params | None:
    """The weights of an entry that names an asset; None for a model that starts from scratch."""
    return weights.load(entry["asset"]["path"]) if entry["name"] == "asset" else None


def tokenizer(entry: Entry) -> tokenizers.Tokenizer:
    """The tokenizer that the entry names, or one learnt from captions on the spot."""
    return make({"asset": _stored_tokenizer, "bpe": _learnt_tokenizer}, entry)


def _stored_tokenizer(*, path: str) -> tokenizers.Tokenizer:
    folder = weights.EMBEDDED / path
    return tokenizers.load((folder if folder.is_dir() else Path(path)) / "tokenizer.json")


def _learnt_tokenizer(*, vocab: int, captions: int) -> tokenizers.Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        lines = grammar.corpus(2, captions)
        return tokenizers.train(lines, vocab, Path(folder) / "tokenizer.json")


def source(data: Any, split: str, samples: int | None = None) -> groups.Source:
    """The groups that ``data.name`` picks; a split is "train" or "test".

    ``samples`` pictures each, ``data.samples`` unless given.
    """
    return make(SOURCES, data, split=split, samples=samples or data.samples)


def _scenes(
    *, split: Any, samples: int, folder: str, train: int, test: int, stored: int, languages
) -> ScenesGroups:
    builder.prepare(folder, train=train, test=test, samples=stored)
    return ScenesGroups(folder, split, samples=samples, languages=languages)


def _scenes_pairs(
    *, split: Any, samples: int, folder: str, train: int, test: int, stored: int, languages
) -> ScenesPairs:
    builder.prepare(folder, train=train, test=test, samples=stored)
    return ScenesPairs(folder, split, languages=languages)


def _captions(*, split: str, samples: int, number: int, digits: bool) -> groups.Captions:
    # Held-out lines come from the same generator with another seed.
    seed, number = (0, number) if split == "train" else (1, 2048)
    return groups.Captions(tuple(grammar.corpus(seed, number, digits)))


SOURCES = {
    "scenes": _scenes,
    "scenes_pairs": _scenes_pairs,
    "captions": _captions,
    "digits": DigitGroups,
    "folder": FolderGroups,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """The networks of a run; None where the config says "none" or nothing needs one."""

    language_model: Any = None
    vae: Any = None
    clip: Any = None
    backbone: Any = None


def models(config: Any, roles: tuple[str, ...] = tuple(MODELS)) -> Models:
    """The modules of some roles."""
    return Models(**{role: model(role, config[role]) for role in roles})


def frozen(config: Any, roles: tuple[str, ...]) -> Frozen:
    """Weights nobody trains, as numpy; a frozen network without an asset is random.

    Args:
      config: the recipe.
      roles: keys of Frozen.
    """
    found: Frozen = {}
    for key in roles:
        entry = config[FROZEN[key]]
        if resolve(entry)["name"] == "none":
            continue
        stored = parameters(entry)
        found[key] = _random(config, key, model(FROZEN[key], entry)) if stored is None else stored
    return found


def _random(config: Any, key: str, network: Any) -> Params:
    """Untrained weights of a frozen network: for trying a recipe out, and for tests."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    if key == "llm":
        inputs = (tokens, tokens == 0)
    elif key == "vae":
        side = network.patch * 2 ** (len(network.widths) - 1)
        inputs = (jnp.zeros((1, side, side, network.channels)),)
    elif key == "clip":
        inputs = (jnp.zeros((1, network.size, network.size, 3)), tokens, tokens == 0)
    else:
        raise ValueError(
            "objective.flow_matching.anchor and feature=hidden compare with the weights the run "
            "starts from: set backbone.name=asset and backbone.asset.path"
        )
    _log.warning("%s: random weights, since no asset is named", FROZEN[key])
    return jax.jit(network.init)(jax.random.key(config.seed), *inputs)["params"]


def _flow_matching(config: Any) -> tuple[FlowMatching, tuple[str, ...]]:
    knobs = config.objective.flow_matching
    diversity = make(DIVERSITIES, knobs.diversity)
    predicts = diversity is not None or knobs.alignment > 0
    looks = _looks(knobs.feature) if predicts else set()
    needs_clip = "clip" in looks or knobs.alignment > 0
    nets = models(config, ("language_model", "vae", "backbone", *(("clip",) if needs_clip else ())))
    views: dict[str, Callable] = {
        "clip": lambda: ClipFeature(clip=nets.clip, vae=nets.vae),
        "hidden": lambda **knobs: HiddenFeature(backbone=nets.backbone, **knobs),
        "latent": LatentFeature,
    }

    def mix(**weights: float) -> Mix:
        used = {name: weight for name, weight in weights.items() if weight}
        parts = tuple(make(views, {**knobs.feature, "name": name}) for name in used)
        return Mix(parts=parts, weights=tuple(used.values()))

    features = {**views, "mix": mix}
    objective = FlowMatching(
        backbone=nets.backbone,
        language_model=nets.language_model,
        vae=nets.vae,
        clip=nets.clip if knobs.alignment > 0 else None,
        trajectory=make(TRAJECTORIES, knobs.trajectory),
        times=make(TIMES, knobs.times),
        weighting=make(WEIGHTINGS, knobs.weighting),
        caption_dropout=knobs.caption_dropout,
        samples=config.data.samples,
        diversity=diversity,
        alignment=knobs.alignment,
        anchor=knobs.anchor,
        prediction=make(PREDICTIONS, knobs.prediction),
        feature=make(features, knobs.feature) if predicts else None,
    )
    anchored = knobs.anchor > 0 or "hidden" in looks
    needs = ("llm", "vae") + ("clip",) * needs_clip + ("anchor",) * anchored
    return objective, needs


def _looks(feature: Entry) -> set[str]:
    """The views that a feature is made of."""
    if feature.name != "mix":
        return {feature.name}
    return {name for name, weight in feature.mix.items() if weight}


OBJECTIVES: dict[str, Callable[[Any], tuple[Any, tuple[str, ...]]]] = {
    "next_token": lambda c: (NextToken(llm=model("language_model", c.language_model)), ()),
    "autoencoder": lambda c: (make(_AUTOENCODER, c.objective, vae=model("vae", c.vae)), ()),
    "contrastive": lambda c: (Contrastive(clip=model("clip", c.clip)), ()),
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


def latent_shape(config: Any, images: tuple[int, int, int]) -> tuple[int, int, int]:
    """(h, w, c) of the latents of pictures of shape (X, Y, C), or the pictures' own."""
    vae = model("vae", config.vae)
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
    looks = _choice(knobs, "view")["name"] == "clip"
    nets = models(config, ("language_model", "vae", "backbone", *(("clip",) if looks else ())))
    fields = dict(
        backbone=nets.backbone,
        language_model=nets.language_model,
        vae=nets.vae,
        shape=latent_shape(config, images),
        steps=knobs.steps,
        guidance=make(GUIDANCES, knobs.guidance),
        solver=make(SOLVERS, knobs.solver),
        rows=knobs.rows,
        noise=make(NOISES, _choice(knobs, "noise", "independent")),
        descent=make(DESCENTS, _choice(knobs, "descent")),
        condition=make(CONDITIONS, _choice(knobs, "condition")),
        repulsion=make(REPULSIONS, _choice(knobs, "repulsion")),
        view=make(
            {
                "none": lambda: None,
                "clip": lambda: ClipFeature(clip=nets.clip, vae=nets.vae),
                "latent": LatentFeature,
            },
            _choice(knobs, "view"),
        ),
    )
    return Sampler(**{**fields, **changes})


def _choice(sample: Any, name: str, default: str = "none") -> Entry:
    """A choice of the menu that recipes stored by older versions lack."""
    return sample.get(name, {"name": default})


def measures(data: str, items: list[dict[str, Any]]) -> list[Callable]:
    """What can be said of pictures of these held-out groups, by the kind of data."""
    if data == "scenes":
        specs = [grammar.spec_from_json(item["spec"]) for item in items]
        return [lambda images: scenes.result(scenes.update(scenes.init(), images, specs))]
    if data == "digits":
        metric, asked = DigitMetric(), np.array([item["digit"] for item in items], np.int32)
        return [lambda images: metric.result(metric.update(metric.init(), images, asked))]
    return []
