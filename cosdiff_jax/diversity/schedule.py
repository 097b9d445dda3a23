"""The weight lambda of the diversity term: over the steps, or by what the cosine turns out to be.

A schedule may remember something. What it remembers is handed in and out, so that it lies in the
train state, is checkpointed, and a resumed run goes on with it.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Step = Int[Array, ""] | int


@runtime_checkable
class Schedule(Protocol):
    """The weight of a loss term at a step."""

    def start(self) -> Any:
        """What is remembered before the first step; ``()`` for a schedule by the steps alone."""
        ...

    def __call__(self, step: Step, memory: Any = ()) -> Float[Array, ""]:
        """The weight at ``step``, counted in optimizer steps from 0."""
        ...

    def after(
        self, memory: Any, cosine: Float[Array, ""], prompts: Int[Array, ""] | int, step: Step
    ) -> Any:
        """What to remember after a step, or after a part of one.

        Args:
          memory: before it.
          cosine: the mean of the prompts' cosines.
          prompts: over how many; with 0 there was nothing to measure.
          step: the optimizer step; a batch worked through in parts comes with the same one.
        """
        ...


class _ByStep:
    """A schedule that remembers nothing."""

    def start(self) -> tuple:
        """Nothing."""
        return ()

    def after(
        self, memory: Any, cosine: Float[Array, ""], prompts: Int[Array, ""] | int, step: Step
    ) -> Any:
        """Nothing still."""
        return memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(_ByStep):
    """The same weight throughout.

    Attributes:
      value: the weight.
    """

    value: float = 0.0

    def __call__(self, step: Step, memory: Any = ()) -> Float[Array, ""]:
        """The weight at ``step``."""
        return jnp.float32(self.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRamp(_ByStep):
    """0 up to step ``warmup``, then straight to ``end`` over ``ramp`` steps, then ``end``.

    Attributes:
      end: the final weight.
      warmup: optimizer steps at weight 0, so that the model settles first.
      ramp: optimizer steps from 0 to ``end``; 0 jumps.
      until: cut-off; from this step on the weight is 0 again and the model settles without the
        term. None for never.
    """

    end: float = 0.02
    warmup: int = 0
    ramp: int = 0
    until: int | None = None

    def __call__(self, step: Step, memory: Any = ()) -> Float[Array, ""]:
        """The weight at ``step``."""
        return self.end * _progress(step, self.warmup, self.ramp) * _before(step, self.until)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineRamp(_ByStep):
    """Like ``LinearRamp`` with level ends: end (1 - cos(pi s)) / 2 for s from 0 to 1.

    Attributes:
      end: the final weight.
      warmup: optimizer steps at weight 0, so that the model settles first.
      ramp: optimizer steps from 0 to ``end``; 0 jumps.
      until: cut-off, as for ``LinearRamp``.
    """

    end: float = 0.02
    warmup: int = 0
    ramp: int = 0
    until: int | None = None

    def __call__(self, step: Step, memory: Any = ()) -> Float[Array, ""]:
        """The weight at ``step``."""
        s = _progress(step, self.warmup, self.ramp)
        return self.end * 0.5 * (1.0 - jnp.cos(jnp.pi * s)) * _before(step, self.until)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controller:
    """A bounded integral controller: the user names the cosine wanted, it finds the weight.

        lambda_{n+1} = clip(lambda_n + gain (cosine_n - wanted), 0, largest)

    cosine_n is the mean over the prompts of optimizer step n that have one, in however many parts
    its batch came; where none has, the weight stays. The clip is the anti-windup: a cosine that
    stays out of reach does not pile up weight that would have to be worked off later. Once the
    cosine is below the one wanted the weight falls, and at 0 the term is off.

    Attributes:
      wanted: mean cosine to hold.
      gain: growth of the weight per step and unit of cosine too much; 30 goes from 0 to 30 in ten
        steps at a cosine 0.1 too high.
      largest: bound on the weight.
      warmup: optimizer steps at weight 0, in which nothing is integrated either.
    """

    wanted: float = 0.8
    gain: float = 30.0
    largest: float = 60.0
    warmup: int = 0

    def __post_init__(self):
        if self.gain <= 0 or self.largest <= 0:
            raise ValueError(
                f"a controller needs gain and largest above 0, not {self.gain} and {self.largest}"
            )

    def start(self) -> dict[str, jax.Array]:
        """Weight 0 and nothing seen.

        Beside the ``weight`` of the newest ``step`` stand the sum of that step's cosines so far
        and their ``count``.
        """
        zero = jnp.zeros(())
        return {"weight": zero, "step": jnp.zeros((), jnp.int32), "cosines": zero, "count": zero}

    def __call__(self, step: Step, memory: Any = ()) -> Float[Array, ""]:
        """The weight that was found in the steps before."""
        # Only when the next step asks are all parts of the last one in.
        acts = (memory["step"] < step) & (memory["step"] >= self.warmup) & (memory["count"] > 0)
        mean = memory["cosines"] / jnp.maximum(memory["count"], 1.0)
        error = jnp.where(acts, mean - self.wanted, 0.0)
        return jnp.clip(memory["weight"] + self.gain * error, 0.0, self.largest)

    def after(
        self, memory: Any, cosine: Float[Array, ""], prompts: Int[Array, ""] | int, step: Step
    ) -> dict[str, jax.Array]:
        """The sums with these cosines in them, begun anew where the step is a new one."""
        held = jnp.where(memory["step"] < step, 0.0, 1.0)
        number = jnp.asarray(prompts, jnp.float32)
        found = {
            "weight": self(step, memory),
            "step": jnp.asarray(step, jnp.int32),
            "cosines": held * memory["cosines"] + number * cosine,
            "count": held * memory["count"] + number,
        }
        return jax.lax.stop_gradient(found)


def _progress(step: Step, warmup: int, ramp: int) -> jax.Array:
    past = jnp.asarray(step, jnp.float32) - warmup
    return jnp.clip(past / ramp, 0.0, 1.0) if ramp else (past >= 0).astype(jnp.float32)


def _before(step: Step, until: int | None) -> jax.Array:
    return jnp.float32(1.0) if until is None else (jnp.asarray(step) < until).astype(jnp.float32)
