"""The tables: each choice of the menu, name -> constructor.

Every choice in ``configs/base.py`` is a dictionary with a ``name`` and one entry per alternative;
``make(TABLE, entry)`` calls the named constructor with that alternative's knobs. To add an
alternative is to add a line here and its knobs to the menu.
"""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from cosdiff_jax import weights
from cosdiff_jax.data import groups
from cosdiff_jax.data import tokenizer as tokenizers
from cosdiff_jax.data.digits import DigitGroups
from cosdiff_jax.data.folder import FolderGroups
from cosdiff_jax.data.scenes import builder, grammar
from cosdiff_jax.data.scenes.source import ScenesGroups, ScenesPairs
from cosdiff_jax.diversity import (
    alignment,
    bank,
    control,
    measure,
    noise,
    repulsion,
    schedule,
    selection,
)
from cosdiff_jax.diversity.programme import QuadraticProgram
from cosdiff_jax.flow import (
    composed,
    grid,
    guidance,
    multistep,
    parameterization,
    prediction,
    solver,
    stochastic,
    timestep,
    trajectory,
    weaker,
    weighting,
)
from cosdiff_jax.flow.condition import Cads
from cosdiff_jax.models import dit, fuse_dit, fusion, modulation, position
from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.models.vgg import VGG
from cosdiff_jax.optimizer import AdamW, Muon
from cosdiff_jax.sampler import Descent

Entry = Any
"""A choice of the menu: ``{"name": n, n: {knobs}, ...}``."""


def make(table: Mapping[str, Callable], entry: Entry, field: str = "", /, **more: Any) -> Any:
    """Call the constructor that ``entry["name"]`` picks with the knobs beside it.

    Args:
      table: name -> constructor.
      entry: the choice.
      field: where in the recipe it stands, for messages.
      **more: knobs that are objects already; they go before those of the entry.

    Raises:
      ValueError: no such choice; the choices are listed.
    """
    name = entry["name"]
    if name not in table:
        said = f"{field}.name={name!r}" if field else repr(name)
        raise ValueError(f"{said} is not one of {', '.join(sorted(table))}")
    knobs = {key: _plain(key, value) for key, value in entry.get(name, {}).items()}
    return table[name](**{**knobs, **more})


def _plain(key: str, value: Any) -> Any:
    if key == "dtype":
        return jnp.dtype(value)
    return tuple(value) if isinstance(value, list) else value


def nested(constructor: Callable, **tables: Mapping[str, Callable]) -> Callable:
    """A constructor some of whose knobs are choices themselves."""

    # Marked with whose knobs it takes, for the test that holds menu and constructors equal.
    @functools.wraps(constructor, assigned=(), updated=())
    def build(**knobs: Any) -> Any:
        made = {key: make(table, knobs[key], key) for key, table in tables.items() if key in knobs}
        return constructor(**{**knobs, **made})

    return build


OPTIMIZERS = {"adamw": AdamW, "muon": Muon}
TRAJECTORIES = {
    "rectified_flow": trajectory.RectifiedFlow,
    "cosine": trajectory.Cosine,
    "edm": trajectory.Edm,
    "ddpm_linear": trajectory.DdpmLinear,
    "ldm_linear": trajectory.LdmLinear,
}
PARAMETERIZATIONS = {
    "velocity": parameterization.Velocity,
    "eps": parameterization.Noise,
    "v": parameterization.V,
    "x0": parameterization.Clean,
    "score": parameterization.Score,
    "edm": parameterization.Edm,
}


def _log_normal_sigma(**knobs: Any) -> timestep.LogNormalSigma:
    # Its path is the one that is trained, no knob of its own: build hands it over.
    return timestep.LogNormalSigma(**knobs)


TIMES = {
    "uniform": timestep.Uniform,
    "logit_normal": timestep.LogitNormal,
    "mode": timestep.Mode,
    "cos_map": timestep.CosMap,
    "log_normal_sigma": _log_normal_sigma,
}


def _independent(times: timestep.Times) -> timestep.Times:
    return times


def _stratified(times: timestep.Times) -> timestep.Times:
    return timestep.Stratified(times=times)


def _lattice(times: timestep.Times) -> timestep.Times:
    return timestep.Stratified(times=times, lattice=True)


SPREADS = {"independent": _independent, "stratified": _stratified, "lattice": _lattice}
WEIGHTINGS = {
    "constant": weighting.Constant,
    "exponential": weighting.Exponential,
    "sech": weighting.Sech,
    "sigmoid": weighting.Sigmoid,
    "edm": weighting.Edm,
}


@functools.wraps(grid.Shifted, assigned=(), updated=())
def _shifted(
    *, reference: int = 0, shape: tuple[int, ...] | None = None, **knobs: Any
) -> grid.Shifted:
    # The size of the latents at hand is no knob of its own: build hands it over.
    made = grid.Shifted(**knobs)
    return made if shape is None else timestep.resized(made, reference, shape)


GRIDS = {
    "uniform": grid.Uniform,
    "shifted": _shifted,
    "karras": grid.Karras,
    "given": grid.Given,
}
SOLVERS = {
    "euler": solver.Euler,
    "heun": solver.Heun,
    "midpoint": solver.Midpoint,
    "runge_kutta_4": solver.RungeKutta4,
    "dpm_solver": multistep.DpmSolver,
    "unipc": multistep.UniPc,
    "ddim": stochastic.Ddim,
    "ddpm": stochastic.Ddpm,
    "flow_sde": stochastic.FlowSde,
    "edm": stochastic.Edm,
}


@functools.wraps(weaker.Autoguidance, assigned=(), updated=())
def _autoguidance(*, path: str, **knobs: Any) -> weaker.Autoguidance:
    # The weaker network itself is a part of the sampler: build puts it there.
    return weaker.Autoguidance(**knobs)


def _alone(constructor: Callable) -> Callable:
    @functools.wraps(constructor, assigned=(), updated=())
    def build(**knobs: Any) -> tuple[Any]:
        return (constructor(**knobs),)

    return build


WEAKER = {
    "none": lambda: (),
    "autoguidance": _alone(_autoguidance),
    "skip_layer": _alone(weaker.SkipLayer),
    "perturbed_attention": _alone(weaker.PerturbedAttention),
}


@functools.wraps(composed.Composed, assigned=(), updated=())
def _composed(**knobs: Any) -> composed.Composed:
    # Names of weaker fields joined by + act together.
    entry = knobs.get("weaker", {"name": "none"})
    each = [
        make(WEAKER, {**entry, "name": name}, "guidance.composed.weaker")
        for name in entry["name"].split("+")
    ]
    return composed.Composed(**{**knobs, "weaker": sum(each, ())})


GUIDANCES = {"classifier_free": guidance.ClassifierFree, "composed": _composed}
BY_STEP = {
    "constant": schedule.Constant,
    "linear": schedule.LinearRamp,
    "cosine": schedule.CosineRamp,
}
SCHEDULES = {**BY_STEP, "controller": schedule.Controller}
MEASURES = {
    "mean": measure.MeanCosine,
    "top": measure.TopCosine,
    "sampled": measure.SampledCosine,
    "log_determinant": measure.LogDeterminant,
    "vendi": measure.Vendi,
}
BANKS = {"none": lambda: None, "fifo": bank.Bank}
TARGETS = {"real": control.RealPictures, "fixed": control.Fixed}
NOISES: dict[str, Callable] = {
    "independent": noise.Independent,
    "orthogonal": noise.Orthogonal,
    "antithetic": noise.Antithetic,
    "repelled": noise.Repelled,
}
NOISES |= {"low_frequency": nested(noise.LowFrequency, base=dict(NOISES)), "slerp": noise.Slerp}


@functools.wraps(Descent, assigned=(), updated=())
def _descent(*, view: str = "none", **knobs: Any) -> Descent:
    # A view may need a network of the run: build puts it there.
    return Descent(**knobs)


DESCENTS = {"none": lambda: None, "cosine": _descent}
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
    "rope_2d_scaled": position.ScaledRope2D,
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


# Roles: the networks a run can hold. The objective trains one of them, the others are frozen.
MODELS: dict[str, dict[str, Callable]] = {
    "language_model": {"gemma": Gemma},
    "vae": {"kl": AutoencoderKL, "none": lambda: None},
    "clip": {"clip": CLIP, "none": lambda: None},
    "latent_clip": {"clip": CLIP, "none": lambda: None},
    "vgg": {"vgg": VGG, "none": lambda: None},
    "backbone": {
        "fuse_dit": nested(
            fuse_dit.FuseDiT, position=POSITIONS, modulation=MODULATIONS, attention=FUSIONS
        )
    },
}
PREDICTIONS = {
    "one_step": prediction.OneStep,
    "rollout": nested(prediction.Rollout, guidance=GUIDANCES),
}
DIVERSITIES = {
    "none": lambda: None,
    "cosine": nested(
        control.CosineDiversity, schedule=SCHEDULES, measure=MEASURES, target=TARGETS, bank=BANKS
    ),
}
FORMS = {"cosine": alignment.Cosine, "contrastive": alignment.Contrastive}


def _projected(*, schedule: Any, form: Any, **knobs: Any) -> alignment.Alignment:
    projection = alignment.Projection(**knobs)
    return alignment.Alignment(schedule=schedule, form=form, projection=projection)


ALIGNMENTS = {
    "none": lambda: None,
    "clip": nested(alignment.Alignment, schedule=BY_STEP, form=FORMS),
    "latent_clip": nested(alignment.Alignment, schedule=BY_STEP, form=FORMS),
    "llm": nested(_projected, schedule=BY_STEP, form=FORMS),
}


def _scenes(
    *,
    split: Any,
    samples: int,
    folder: str,
    train: int,
    test: int,
    stored: int,
    languages: Sequence[str],
    focus: float = 0.0,
) -> ScenesGroups:
    builder.prepare(folder, train=train, test=test, samples=stored, focus=focus)
    return ScenesGroups(folder, split, samples=samples, languages=languages)


def _scenes_pairs(
    *, split: Any, samples: int, folder: str, train: int, test: int, stored: int, languages
) -> ScenesPairs:
    builder.prepare(folder, train=train, test=test, samples=stored)
    return ScenesPairs(folder, split, languages=languages)


def _captions(
    *,
    split: str,
    samples: int,
    number: int,
    digits: bool,
    focus: float = 0.0,
    placed: float = 0.0,
    ordered: float = 0.0,
    languages: Sequence[str] = grammar.LANGUAGES,
) -> groups.Captions:
    known = tuple(languages)
    if split == "train":
        lines = grammar.corpus(0, number, digits, focus, placed, ordered, known)
    else:  # from the same generator with another seed, in the plain words that captions have
        lines = grammar.corpus(1, 2048, digits, languages=known)
    return groups.Captions(tuple(lines))


SOURCES: dict[str, Callable] = {
    "scenes": _scenes,
    "scenes_pairs": _scenes_pairs,
    "captions": _captions,
    "digits": DigitGroups,
    "folder": FolderGroups,
}


def _stored_tokenizer(*, path: str) -> tokenizers.Tokenizer:
    folder = weights.EMBEDDED / path
    return tokenizers.load((folder if folder.is_dir() else Path(path)) / "tokenizer.json")


def _learnt_tokenizer(*, vocab: int, captions: int) -> tokenizers.Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        lines = grammar.corpus(2, captions)
        return tokenizers.train(lines, vocab, Path(folder) / "tokenizer.json")


TOKENIZERS = {"asset": _stored_tokenizer, "bpe": _learnt_tokenizer}
