"""Cosine similarity as a training signal: how much of it, from when on, above which target.

    loss = flow + lambda(step) mean_p diversity_p + mu(step) mean_pk alignment_pk

Nothing here reduces over prompts: the objective does. A bare penalty on the cosine is easiest paid
by breaking pictures, because broken pictures are alike in nothing; so penalise what exceeds the
real pictures' own cosine (``hinge``) and keep the alignment term beside it.
"""

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.diversity import similarity


@runtime_checkable
class Schedule(Protocol):
    """The weight of a loss term at a step."""

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The weight at ``step``, counted in optimizer steps from 0."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The same weight throughout.

    Attributes:
      value: the weight.
    """

    value: float = 0.0

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The weight at ``step``."""
        return jnp.float32(self.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRamp:
    """0 up to step ``warmup``, then straight to ``end`` over ``ramp`` steps, then ``end``.

    Attributes:
      end: the final weight.
      warmup: optimizer steps at weight 0, so that the model settles first.
      ramp: optimizer steps from 0 to ``end``; 0 jumps.
    """

    end: float = 0.02
    warmup: int = 0
    ramp: int = 0

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The weight at ``step``."""
        return self.end * _progress(step, self.warmup, self.ramp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineRamp:
    """Like ``LinearRamp`` with level ends: end (1 - cos(pi s)) / 2 for s from 0 to 1.

    Attributes:
      end: the final weight.
      warmup: optimizer steps at weight 0, so that the model settles first.
      ramp: optimizer steps from 0 to ``end``; 0 jumps.
    """

    end: float = 0.02
    warmup: int = 0
    ramp: int = 0

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The weight at ``step``."""
        s = _progress(step, self.warmup, self.ramp)
        return self.end * 0.5 * (1.0 - jnp.cos(jnp.pi * s))


@runtime_checkable
class Measure(Protocol):
    """How alike each group is: one cosine per prompt, with a gradient."""

    def __call__(
        self, f: Float[Array, "P K F"], mask: Bool[Array, "P K"] | None = None
    ) -> Float[Array, " P"]:
        """The cosine of each prompt's K samples; ``mask`` marks the samples that count."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanCosine:
    """Mean over all pairs of one prompt, in O(K F)."""

    def __call__(
        self, f: Float[Array, "P K F"], mask: Bool[Array, "P K"] | None = None
    ) -> Float[Array, " P"]:
        """``similarity.mean_cosine``."""
        return similarity.mean_cosine(f, mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopCosine:
    """Mean over the most similar pairs of one prompt, in O(K^2 F): pushes on near-duplicates only.

    Attributes:
      percent: share of the pairs, in (0, 100]; at least one pair is taken.
    """

    percent: float = 20.0

    def __call__(
        self, f: Float[Array, "P K F"], mask: Bool[Array, "P K"] | None = None
    ) -> Float[Array, " P"]:
        """``similarity.top_cosine``."""
        return similarity.top_cosine(f, self.percent, mask)


def hinge(
    cosine: Float[Array, " P"], target: Float[Array, " P"] | float | None
) -> Float[Array, " P"]:
    """max(0, cosine - target): what lies above the target, with no pull below it.

    Args:
      cosine: one value per prompt.
      target: a number, or one per prompt such as the cosine of its real pictures (no gradient
        flows into it); None penalises the cosine itself.
    """
    if target is None:
        return cosine
    return jax.nn.relu(cosine - jax.lax.stop_gradient(target))


@runtime_checkable
class Target(Protocol):
    """How alike the samples of each prompt may be before it costs anything.

    Attributes:
      reads_real: whether it is measured on real pictures of the same prompts.
    """

    reads_real: ClassVar[bool]

    def __call__(
        self, measure: Measure, real: Float[Array, "P K F"] | None
    ) -> Float[Array, " P"] | float:
        """The cosine to stay below, by ``measure``: one number, or one per prompt."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed:
    """The same target for every prompt; -1 penalises the cosine itself.

    Attributes:
      cosine: the target, in [-1, 1].
    """

    cosine: float = -1.0
    reads_real: ClassVar[bool] = False

    def __call__(self, measure: Measure, real: Float[Array, "P K F"] | None) -> float:
        """The number."""
        return self.cosine


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealPictures:
    """The cosine that the real pictures of the same prompt have: no more variety than the truth.

    Attributes:
      margin: added to it; negative asks for more variety than the data shows.
    """

    margin: float = 0.0
    reads_real: ClassVar[bool] = True

    def __call__(self, measure: Measure, real: Float[Array, "P K F"] | None) -> Float[Array, " P"]:
        """One number per prompt.

        Raises:
          ValueError: no real pictures given.
        """
        if real is None:
            raise ValueError("a target measured on real pictures needs their features")
        return measure(real) + self.margin


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineDiversity:
    """The diversity term: lambda(step) times how far each prompt's cosine exceeds its target.

        diversity_p = max(0, measure(f_p) - target_p)

    Attributes:
      schedule: lambda.
      measure: how alike a group is.
      target: what is not penalised.
    """

    schedule: Schedule = dataclasses.field(default_factory=LinearRamp)
    measure: Measure = dataclasses.field(default_factory=MeanCosine)
    target: Target = dataclasses.field(default_factory=RealPictures)

    @property
    def reads_real(self) -> bool:
        """Whether the call needs features of real pictures."""
        return self.target.reads_real

    def weight(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """lambda(step)."""
        return self.schedule(step)

    def __call__(
        self,
        f: Float[Array, "P K F"],
        real: Float[Array, "P K F"] | None = None,
        mask: Bool[Array, "P K"] | None = None,
    ) -> Float[Array, " P"]:
        """The penalty of each prompt, before lambda.

        Args:
          f: features of its samples.
          real: features of its real pictures, where the target reads them.
          mask: marks the samples that count; a prompt with fewer than two of them costs nothing.
        """
        cost = hinge(self.measure(f, mask), self.target(self.measure, real))
        return cost if mask is None else jnp.where(mask.sum(axis=1) >= 2, cost, 0.0)


def alignment(images: Float[Array, "P K F"], text: Float[Array, "P F"]) -> Float[Array, "P K"]:
    """1 - cos(picture, its prompt), one value per sample, in [0, 2]; zero vectors give 1."""
    images, text = similarity.unit(images), similarity.unit(text)
    return 1.0 - jnp.einsum("pkf,pf->pk", images, text)


def _progress(step: jax.Array | int, warmup: int, ramp: int) -> jax.Array:
    past = jnp.asarray(step, jnp.float32) - warmup
    return jnp.clip(past / ramp, 0.0, 1.0) if ramp else (past >= 0).astype(jnp.float32)
