"""Cosine similarity as a training signal: how much of it, from when on, above which target.

    loss = flow + lambda(step) mean_p diversity_p + ...

Nothing here reduces over prompts: the objective does. A bare penalty on the cosine is easiest paid
by breaking pictures, because broken pictures are alike in nothing; so penalise what exceeds the
real pictures' own cosine (``hinge``) and keep an alignment term (``alignment``) beside it.
"""

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.diversity.bank import Bank
from cosdiff_jax.diversity.measure import MeanCosine, Measure, expected
from cosdiff_jax.diversity.schedule import LinearRamp, Schedule, Step
from cosdiff_jax.shapes import Memory


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
        self,
        measure: Measure,
        real: Float[Array, "P K F"] | None,
        key: jax.Array | None = None,
        distinct: Bool[Array, "P K"] | None = None,
    ) -> Float[Array, " P"] | float:
        """The cosine to stay below, by ``measure``: one number, or one per prompt.

        Args:
          measure: how alike a group is.
          real: features of real pictures, where they are read.
          key: for a measure that draws.
          distinct: marks the real pictures that repeat no other; None where there are no repeats.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed:
    """The same target for every prompt; -1 penalises the cosine itself.

    Attributes:
      cosine: the target, in [-1, 1].
    """

    cosine: float = -1.0
    reads_real: ClassVar[bool] = False

    def __call__(
        self,
        measure: Measure,
        real: Float[Array, "P K F"] | None,
        key: jax.Array | None = None,
        distinct: Bool[Array, "P K"] | None = None,
    ) -> float:
        """The number."""
        return self.cosine


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealPictures:
    """The cosine that the real pictures of the same prompt have: no more variety than the truth.

    Pictures that only repeat others do not count. A prompt of which there are no two different
    ones has no target, and is not asked for anything.

    Attributes:
      margin: added to it; negative asks for more variety than the data shows.
    """

    margin: float = 0.0
    reads_real: ClassVar[bool] = True

    def __call__(
        self,
        measure: Measure,
        real: Float[Array, "P K F"] | None,
        key: jax.Array | None = None,
        distinct: Bool[Array, "P K"] | None = None,
    ) -> Float[Array, " P"]:
        """One number per prompt.

        Raises:
          ValueError: no real pictures given.
        """
        if real is None:
            raise ValueError("a target measured on real pictures needs their features")
        return measure(real, distinct, key) + self.margin


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineDiversity:
    """The diversity term: lambda(step) times how far each prompt's cosine exceeds its target.

        diversity_p = max(0, measure(f_p) - target_p)

    Of a measure that draws its expectation decides whether a prompt exceeds its target, and the
    draw by how much: that keeps the mean over draws, and over those of the gradient, at what the
    expectation itself would give. Single values may then lie below 0.

    What it remembers from step to step (the schedule's and the bank's part) is handed in and out.

    Attributes:
      schedule: lambda.
      measure: how alike a group is.
      target: what is not penalised.
      bank: vectors of earlier steps that today's samples are compared with as well; None for none.
    """

    schedule: Schedule = dataclasses.field(default_factory=LinearRamp)
    measure: Measure = dataclasses.field(default_factory=MeanCosine)
    target: Target = dataclasses.field(default_factory=RealPictures)
    bank: Bank | None = None

    @property
    def reads_real(self) -> bool:
        """Whether the call needs features of real pictures."""
        return self.target.reads_real

    def start(self, prompts: int, features: int) -> Memory:
        """What is remembered before the first step.

        Args:
          prompts: how many training prompts there are.
          features: F.
        """
        bank = {} if self.bank is None else self.bank.start(prompts, features)
        return {"schedule": self.schedule.start(), "bank": bank}

    def asked(
        self, mask: Bool[Array, "P K"], distinct: Bool[Array, "P K"] | None = None
    ) -> Bool[Array, " P"]:
        """Which prompts the term is for: two samples that count, and a target to hold them to.

        Args:
          mask: marks the samples that count.
          distinct: marks the real pictures that repeat no other; None where there are no repeats.
        """
        asked = _pairs(mask)
        if self.reads_real and distinct is not None:
            asked = asked & _pairs(distinct)
        return asked

    def weight(self, step: Step, memory: Memory) -> Float[Array, ""]:
        """lambda(step)."""
        return self.schedule(step, memory["schedule"])

    def __call__(
        self,
        f: Float[Array, "P K F"],
        real: Float[Array, "P K F"] | None,
        mask: Bool[Array, "P K"],
        *,
        memory: Memory,
        prompt: Int[Array, " P"] | None = None,
        key: jax.Array | None = None,
        distinct: Bool[Array, "P K"] | None = None,
    ) -> Float[Array, " P"]:
        """The penalty of each prompt, before lambda.

        Args:
          f: features of its samples.
          real: features of its real pictures, where the target reads them.
          mask: marks the samples that count.
          memory: as ``start`` or ``after`` gave it.
          prompt: number of each prompt, where there is a bank.
          key: for a measure that draws.
          distinct: marks the real pictures that repeat no other; None where there are no repeats. A
            prompt that is not ``asked`` costs nothing.

        Raises:
          ValueError: a bank, and nobody says which prompts these are.
        """
        asked = self.asked(mask, distinct)
        if self.bank is not None:
            f, mask = self.bank.beside(memory["bank"], _known(prompt), f, mask)

        def both(measure: Measure) -> tuple[jax.Array, Float[Array, " P"] | float]:
            return measure(f, mask, key), self.target(measure, real, key, distinct)

        cosine, target = both(self.measure)
        exact = expected(self.measure)
        if exact == self.measure:
            excess = hinge(cosine, target)
        else:
            above, most = both(exact)
            excess = jnp.where(above > most, cosine - jax.lax.stop_gradient(target), 0.0)
        return jnp.where(asked, excess, 0.0)

    def after(
        self,
        memory: Memory,
        f: Float[Array, "P K F"],
        mask: Bool[Array, "P K"],
        cosine: Float[Array, ""],
        step: Step,
        prompt: Int[Array, " P"] | None = None,
    ) -> Memory:
        """What to remember after a step, or after a part of one.

        Args:
          memory: before it.
          f: features of its samples.
          mask: which of them count.
          cosine: their mean cosine, over the prompts with two samples that count.
          step: the optimizer step.
          prompt: number of each prompt, where there is a bank.
        """
        bank, prompts = memory["bank"], jnp.sum(_pairs(mask))
        if self.bank is not None:
            bank = self.bank.after(bank, _known(prompt), f, mask)
        schedule = self.schedule.after(memory["schedule"], cosine, prompts, step)
        return {"schedule": schedule, "bank": bank}


def _pairs(mask: Bool[Array, "P K"]) -> Bool[Array, " P"]:
    return jnp.sum(mask, axis=1) >= 2


def _known(prompt: jax.Array | None) -> jax.Array:
    if prompt is None:
        raise ValueError("a memory bank needs to know the number of each prompt")
    return prompt
