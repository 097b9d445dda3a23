"""Which times to train on: t in (0, 1) drawn from a density pi(t).

Drawing t from pi is the same as uniform times with the loss weighted by pi(t)
(Esser et al. 2024, section 3.1).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@runtime_checkable
class Times(Protocol):
    """A distribution over training times."""

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` independent times."""
        ...

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """pi(t), which integrates to 1 over (0, 1)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """pi(t) = 1."""

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` times, uniform in [0, 1)."""
        return jax.random.uniform(key, (batch,))

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """1 everywhere."""
        return jnp.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2) (Esser et al. 2024, eq. 19).

    pi(t) = exp(-(logit(t) - mean)^2 / (2 std^2)) / (std sqrt(2 pi) t (1 - t)),
    logit(t) = ln(t / (1 - t)), drawn as t = sigmoid(u), u ~ N(mean, std^2).

    Attributes:
      mean: centre on the logit scale; above 0 leans to noise, below 0 to data.
      std: width on the logit scale; above sqrt(2) the density has two peaks, near 0 and near 1.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        if self.std <= 0:
            raise ValueError(f"times.logit_normal.std must be above 0, not {self.std}")

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` times in (0, 1)."""
        return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (batch,)))

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """pi(t) for t strictly inside (0, 1); it vanishes at both ends."""
        logit = jnp.log(t) - jnp.log1p(-t)
        normal = jnp.exp(-0.5 * ((logit - self.mean) / self.std) ** 2)
        return normal / (self.std * jnp.sqrt(2 * jnp.pi) * t * (1 - t))
