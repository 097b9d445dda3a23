"""How data becomes noise: the path z_t = a_t x0 + b_t eps and its velocity dz/dt.

Time runs from t = 0 (data) to t = 1 (noise).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float


@runtime_checkable
class Trajectory(Protocol):
    """A path between data and noise, in both directions."""

    def corrupt(
        self, x0: Float[Array, "B *x"], eps: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> tuple[Float[Array, "B *x"], Float[Array, "B *x"]]:
        """Data and noise to the noised sample z_t and the velocity v = dz/dt there."""
        ...

    def clean(
        self, z_t: Float[Array, "B *x"], v: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> Float[Array, "B *x"]:
        """The clean sample that a velocity at z_t points back to."""
        ...


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """Straight lines between data and noise (Liu et al. 2022; Esser et al. 2024, eq. 13).

    z_t = (1 - t) x0 + t eps
    v   = dz/dt = eps - x0
    x0  = z_t - t v
    """

    def corrupt(
        self, x0: Float[Array, "B *x"], eps: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> tuple[Float[Array, "B *x"], Float[Array, "B *x"]]:
        """Data and noise to (z_t, v).

        The velocity is taken as eps - x0 at once: the form through z_t and eps,
        a'_t / a_t z_t - ..., is 0 / 0 at t = 1.
        """
        t = along_rows(t, x0)
        return (1 - t) * x0 + t * eps, eps - x0

    def clean(
        self, z_t: Float[Array, "B *x"], v: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> Float[Array, "B *x"]:
        """The one-step estimate x0_hat = z_t - t v: exact where v is the path's own velocity."""
        return z_t - along_rows(t, z_t) * v


def along_rows(t: Float[Array, " B"], like: Float[Array, "B *x"]) -> Float[Array, "B *ones"]:
    """``t`` with as many axes as ``like``, so that it multiplies row by row."""
    return t.reshape(t.shape + (1,) * (like.ndim - 1))
