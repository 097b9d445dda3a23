"""Different pictures of one prompt: every way to keep them apart, by name, behind one function.

A method changes a part of the menu's ``sample``: where samples start, what happens on the way, or
which of more candidates are kept. Methods of different parts act together.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from cosdiff_jax import build, modules, sharding, tables, trained
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.diversity import measure, similarity
from cosdiff_jax.diversity.selection import Selection
from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.features.latent import LatentFeature
from cosdiff_jax.pruning import Pruning
from cosdiff_jax.report import grid
from cosdiff_jax.sampler import Sampler
from cosdiff_jax.shapes import Frozen, Params


def _particle(weight: float) -> dict[str, Any]:
    return {"name": "particle", "particle": {"weight": weight}}


# As heavy as the particles' push where 8 samples share it. Of what was tried on 32 held-out prompts
# of seed 2 these moved the cosine most, at no cost that showed; those readings are not kept.
_SVGD = {"weight": 800.0, "drive": 3e-4, "clean": True}


def _away(name: str) -> dict[str, Any]:
    """Composed guidance away from the empty caption and from a network weakened in the middle."""
    weaker = {"name": name, name: {"layers": (), "scale": 2.0, "interval": (0.0, 1.0)}}
    return {"name": "composed", "composed": {"weaker": weaker}}


# What each method changes in the menu's ``sample``. The strengths of what acts on the way are those
# of configs/study/strengths.py that brought the base model embedded until 2026-11-23 variety and
# cost it least, but for svgd's.
METHODS: dict[str, Mapping[str, Any]] = {
    "independent": {},
    # where samples start
    "orthogonal": {"noise": {"name": "orthogonal"}},
    "antithetic": {"noise": {"name": "antithetic"}},
    "repelled": {"noise": {"name": "repelled", "repelled": {"cosine": -0.1}}},
    "low_frequency": {"noise": {"name": "low_frequency"}},
    "slerp": {"noise": {"name": "slerp"}},
    "descent": {"descent": {"name": "cosine", "cosine": {"view": "clip"}}},
    # on the way
    "particle": {"repulsion": _particle(100.0)},
    "particle_clip": {"repulsion": _particle(10.0), "view": {"name": "clip"}},
    # With its full drive, or on the noisy latents, it keeps nothing apart.
    "svgd": {"repulsion": {"name": "svgd", "svgd": _SVGD}},
    "diverse_flow": {"repulsion": {"name": "diverse_flow", "diverse_flow": {"weight": 100.0}}},
    "cads": {"condition": {"name": "cads", "cads": {"scale": 0.1}}},
    "interval": {"guidance": {"classifier_free": {"interval": (0.1, 0.9)}}},
    **{name: {"guidance": _away(name)} for name in ("skip_layer", "perturbed_attention")},
    "free_start": {"guidance": {"classifier_free": {"start": False}}},
    # which of the candidates are kept
    **{name: {"selection": {"name": name}} for name in tables.SELECTIONS},
    "pruning": {"pruning": 0.5},
    "late_pruning": {"pruning": 0.9, "pruned_from": 0.5},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates:
    """Pictures of P prompts, M of each, before any choice.

    Attributes:
      images: the pictures.
      number: which of those that were begun they are.
      f: what CLIP sees; None where there is no CLIP.
      score: cosine of each picture with its prompt.
      evaluations: of the velocity, for one prompt; guidance asks the network twice for each, and a
        weaker field once more.
    """

    images: UInt8[np.ndarray, "P M X Y C"]
    number: Int[np.ndarray, "P M"]
    f: Float[np.ndarray, "P M F"] | None
    score: Float[np.ndarray, "P M"] | None
    evaluations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures of P prompts, k of each, and what can be said of them.

    Attributes:
      images: the pictures kept.
      kept: their numbers among the candidates.
      score: cosine of each picture with its prompt, by CLIP; None where there is no CLIP.
      feature: what groups are compared by: "clip", or "pixels" where there is no CLIP.
      table: of each prompt, the group's ``mean_cosine``, ``top_cosine`` and ``vendi`` score, where
        it has two pictures or more, and its mean ``clip_score``, where there is a CLIP.
      evaluations: of the velocity, for one prompt; guidance asks the network twice for each, and a
        weaker field once more.
    """

    images: UInt8[np.ndarray, "P k X Y C"]
    kept: Int[np.ndarray, "P k"]
    score: Float[np.ndarray, "P k"] | None
    feature: str = "clip"
    table: list[dict[str, float]]
    evaluations: int


def overlay(method: str) -> dict[str, Any]:
    """The changes to the menu's ``sample`` of methods joined by +.

    Raises:
      ValueError: an unknown name, or two names that set the same knob differently.
    """
    changes: dict[str, Any] = {}
    for name in method.split("+"):
        if name not in METHODS:
            raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
        clash = _merge(changes, METHODS[name])
        if clash is not None:
            raise ValueError(f"--method={method}: two of these set the {clash}")
    return changes


def chooses(method: str) -> bool:
    """Whether methods joined by + keep some of more candidates."""
    changes = overlay(method)
    return "selection" in changes or changes.get("pruning", 0) > 0


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> str | None:
    """Add nested fields; returns the first one that holds something else already."""
    for field, value in more.items():
        if isinstance(value, Mapping):
            if _merge(into.setdefault(field, {}), value) is not None:
                return field
        elif into.setdefault(field, value) != value:
            return field
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiverseSampler:
    """Draws k pictures of each prompt, kept different by a method: compiled once, called often.

    Fields:
      model: with the role "clip" loaded where there is a CLIP: selection and the numbers need it.
      num: k.
      method: names from ``METHODS``, joined by +.
      candidates: M, drawn to choose k from; 4 k where a selection is named and None given.
      steps: solver steps; None as the recipe says.
      guidance: scale of classifier-free guidance; None as the recipe says.
      size: height and width in pixels; None as the model was trained.
      devices: of this host, that share out the pictures; () as ``sharding.local`` takes them.

    Raises:
      ValueError: an unknown method, one that the model cannot be drawn with, fewer candidates than
        pictures, or no CLIP to choose by.
    """

    model: trained.Trained
    num: int = 4
    method: str = "independent"
    candidates: int | None = None
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    devices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.total < self.num:
            raise ValueError(
                f"--candidates={self.total} are fewer than the --num={self.num} to keep"
            )
        looks = self._chooses or "clip" in build.viewed(self.config.sample)
        if looks and self._view is None:
            raise ValueError(
                f"{self.model.name} has no CLIP for its pictures, which {self.method} looks through"
            )
        # What cannot be drawn is refused before anything is written.
        _ = self._sampler

    def __call__(self, prompts: Sequence[str], *, seed: int = 0) -> Samples:
        """Pictures of P prompts; the same seed and prompt give the same ones.

        Raises:
          ValueError: a prompt is longer than the model's context.
        """
        return self.choose(self.draw(prompts, seed=seed))

    def draw(self, prompts: Sequence[str], *, seed: int = 0) -> Candidates:
        """What there is to choose from; pruning has chosen already."""
        model, pruning = self.model, self._pruning
        tokens, mask, seeds = model.read(prompts)
        with jax.set_mesh(self._mesh):
            asked = (*self._weights, tokens, mask, jax.random.key(seed))
            if pruning is None:
                drawn = self._sampler(*asked, num=self.total, seeds=seeds)
                left = np.tile(np.arange(self.total), (len(prompts), 1))
            else:
                drawn, left = pruning(*asked, candidates=self.total, num=self.num, seeds=seeds)
        images, f, score = grid.to_bytes(drawn), None, None
        if self._view is not None:
            f = np.stack([np.asarray(self.look(model.frozen, to_float(x))) for x in images])
            said = np.asarray(self._said(model.frozen, tokens, mask))
            score = np.einsum("pmf,pf->pm", f, said)
        return Candidates(
            images=images, number=left, f=f, score=score, evaluations=self.evaluations
        )

    def choose(self, drawn: Candidates) -> Samples:
        """The k of each prompt that are kept; candidates may be another sampler's."""
        images, number, f, score = drawn.images, drawn.number, drawn.f, drawn.score
        if f is not None and score is not None and self.num < images.shape[1]:
            best = np.sort(np.asarray(self._choose(f, score)), axis=1)
            images, number, f, score = (
                np.take_along_axis(x, best.reshape(*best.shape, *[1] * (x.ndim - 2)), axis=1)
                for x in (images, number, f, score)
            )
        seen = [np.asarray(_pixels(to_float(x))) for x in images] if f is None else f
        scores = [None] * len(images) if score is None else score
        return Samples(
            images=images,
            kept=number,
            score=score,
            feature="pixels" if f is None else "clip",
            table=[_measures(*group) for group in zip(seen, scores, strict=True)],
            evaluations=drawn.evaluations,
        )

    @cached_property
    def _changes(self) -> dict[str, Any]:
        return overlay(self.method)

    @property
    def _chooses(self) -> bool:
        named = self._share > 0 or "selection" in self._changes
        return named or (self.candidates or self.num) > self.num

    @property
    def _share(self) -> float:
        return self.config.sample.get("pruning", 0.0)

    @property
    def total(self) -> int:
        """Pictures of a prompt that are drawn, to be kept or to choose from."""
        return self.candidates or (4 * self.num if self._chooses else self.num)

    @property
    def evaluations(self) -> int:
        """Of the velocity, for one prompt, those of a descent included."""
        if self._pruning is not None:
            return self._pruning.evaluations(self.total, self.num)
        return self.total * self._sampler.evaluations

    @cached_property
    def config(self) -> Any:
        """The recipe as the method changes it."""
        return self.model.as_asked(self.steps, self.guidance, self._changes)

    @cached_property
    def _mesh(self) -> Mesh:
        return sharding.local(self.devices)

    @cached_property
    def _weights(self) -> tuple[Params, Frozen]:
        """The model's own where it lies on these devices already, as it does by default."""
        return sharding.replicate((self.model.params, self.model.frozen), self._mesh)

    @cached_property
    def _sampler(self) -> Sampler:
        size = self.model.shape[:2] if self.size is None else self.size
        return build.sampler(self.config, (*size, self.model.shape[2]))

    @cached_property
    def _view(self) -> ClipFeature | None:
        if "clip" not in self.model.frozen:
            return None
        clip = modules.model("clip", self.config.clip)
        # Grey digits are not what the CLIP at hand has learnt to see.
        return ClipFeature(clip=clip) if self.model.shape[2] == clip.channels else None

    @cached_property
    def _selection(self) -> Selection:
        entry = self.config.sample.get("selection", {"name": "programme"})
        return tables.make(tables.SELECTIONS, entry, "sample.selection")

    @cached_property
    def _pruning(self) -> Pruning | None:
        if self._share == 0 or self._view is None:
            return None
        view = dataclasses.replace(self._view, vae=self._sampler.vae)
        return Pruning(
            sampler=self._sampler,
            view=view,
            share=self._share,
            start=self.config.sample.get("pruned_from", 1.0),
            selection=self._selection,
        )

    @property
    def look(self) -> Callable:
        """(frozen, pictures "B X Y C" in [-1, 1]) -> what CLIP sees, unit vectors "B F"."""
        assert self._view is not None
        return _looking(self._view)[0]

    @property
    def _said(self) -> Callable:
        assert self._view is not None
        return _looking(self._view)[1]

    @cached_property
    def _choose(self) -> Callable:
        return _choosing(self._selection, self.num)


@lru_cache(maxsize=8)
def _looking(view: ClipFeature) -> tuple[Callable, Callable]:
    """Of pictures and of captions; compiled once for all samplers that look through it."""
    return jax.jit(view), jax.jit(view.text)


@lru_cache(maxsize=32)
def _choosing(selection: Selection, num: int) -> Callable:
    """Of every prompt's candidates; compiled once for all samplers that choose like that."""
    return jax.jit(jax.vmap(lambda f, score: selection(f, score, num)))


def diverse_samples(
    model: trained.Trained, prompts: Sequence[str], *, seed: int = 0, **options: Any
) -> Samples:
    """k pictures of each prompt, once; whoever draws again keeps a ``DiverseSampler``.

    Args:
      model: what to draw with.
      prompts: P prompts.
      seed: of the noise.
      **options: the other fields of ``DiverseSampler``.
    """
    return DiverseSampler(model=model, **options)(prompts, seed=seed)


@jax.jit
def _pixels(images: Float[Array, "k X Y C"]) -> Float[Array, "k F"]:
    """The pictures themselves, less their mean colour: always there, blind to what they mean."""
    return LatentFeature()({}, images)


def _measures(
    f: Float[np.ndarray, "k F"], score: Float[np.ndarray, " k"] | None
) -> dict[str, float]:
    table = {} if score is None else {"clip_score": float(score.mean())}
    if len(f) > 1:
        group = jnp.asarray(f)
        table["mean_cosine"] = float(similarity.mean_cosine(group))
        table["top_cosine"] = float(similarity.top_cosine(group, 20.0))
        table["vendi"] = float(jnp.exp(measure.spectral_entropy(group[None])[0]))
    return table
