"""How much each time counts: a factor on the squared error of the velocity, one value per row."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float


@runtime_checkable
class Weighting(Protocol):
    """A weight for each time."""

    def __call__(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """The factor on |v_hat - v|^2 at t."""
        ...


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The plain velocity regression, w(t) = 1.

    On the noise-prediction scale this is w_t = t / (1 - t) (Esser et al. 2024, eq. 14).
    """

    def __call__(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """1 for every row."""
        return jnp.ones_like(t)
