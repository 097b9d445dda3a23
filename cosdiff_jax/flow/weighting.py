"""How much each time counts: a factor on the squared error of the network's output, one per row.

Formulations are compared by the weight w_t of one common loss on the noise (Esser et al. 2024,
section 2, with lambda_t the log-SNR, which falls):

    L_w = -1/2 E_t[w_t lambda'_t |eps_hat - eps|^2],      t uniform

An error of an output p_t x0 + q_t eps (see ``parameterization``) is an error of the noise times
Delta_t / a_t, with Delta_t = a_t q_t - b_t p_t; and lambda'_t = -2 D_t / (a_t b_t), with
D_t = a_t b'_t - a'_t b_t. So the factor on |output_hat - output|^2 is

    factor_t = w_t D_t a_t / (b_t Delta_t^2)

for the velocity, where Delta_t = D_t, it is w_t a_t / (b_t D_t): the constant one of rectified
flow means w_t = t / (1 - t). Times drawn from a density pi(t) multiply w_t by it.

As a function of lambda, w does not depend on the path's clock: L_w = 1/2 int w |..|^2 d lambda.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.flow.parameterization import Parameterization
from cosdiff_jax.flow.trajectory import Trajectory

END = 1e-5
"""Factors of times nearer to an end than this are those of this distance: most are infinite at an
end, or 0 / 0."""


@runtime_checkable
class Weighting(Protocol):
    """A weight for each time."""

    def __call__(
        self, t: Float[Array, " B"], trajectory: Trajectory, parameterization: Parameterization
    ) -> Float[Array, " B"]:
        """The factor on |output_hat - output|^2 at t."""
        ...


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The plain regression of whatever the network predicts: the factor is 1.

    The weight this means depends on path and output: t / (1 - t) for the velocity of rectified
    flow, sech(lambda / 2) for eps and exp(-lambda / 2) for v on the cosine path, both times a
    constant.
    """

    def __call__(
        self, t: Float[Array, " B"], trajectory: Trajectory, parameterization: Parameterization
    ) -> Float[Array, " B"]:
        """1 for every row."""
        del trajectory, parameterization
        return jnp.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class Exponential:
    """w = exp(-lambda / 2), that of rectified flow and of v on the cosine path."""

    def __call__(
        self, t: Float[Array, " B"], trajectory: Trajectory, parameterization: Parameterization
    ) -> Float[Array, " B"]:
        """The factor at t."""
        return _factor(-0.5 * _log_snr(t, trajectory), t, trajectory, parameterization)


@dataclass(frozen=True, kw_only=True)
class Sech:
    """w = sech(lambda / 2), that of eps on the cosine path (Nichol and Dhariwal 2021)."""

    def __call__(
        self, t: Float[Array, " B"], trajectory: Trajectory, parameterization: Parameterization
    ) -> Float[Array, " B"]:
        """The factor at t."""
        half = 0.5 * _log_snr(t, trajectory)
        return _factor(jnp.log(2.0) - jnp.logaddexp(half, -half), t, trajectory, parameterization)


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """w = 1 / (1 + exp(lambda - bias)) (Kingma and Gao 2023; Hoogeboom et al. 2024).

    Attributes:
      bias: log-SNR at which the weight is 1/2; less of it looks more at noise.
    """

    bias: float = -1.0

    def __post_init__(self):
        if not math.isfinite(self.bias):
            raise ValueError(f"weighting.sigmoid.bias must be a finite number, not {self.bias}")

    def __call__(
        self, t: Float[Array, " B"], trajectory: Trajectory, parameterization: Parameterization
    ) -> Float[Array, " B"]:
        """The factor at t."""
        log_weight = jax.nn.log_sigmoid(self.bias - _log_snr(t, trajectory))
        return _factor(log_weight, t, trajectory, parameterization)


@dataclass(frozen=True, kw_only=True)
class Edm:
    """w = N(lambda; -2 mean, (2 std)^2) (exp(-lambda) + sigma_data^2) (Karras et al. 2022).

    What a constant factor on EDM's F means when ln sigma is drawn from N(mean, std^2), up to a
    constant; this is the same loss for uniform times, with more spread from row to row.

    Attributes:
      mean: P_mean, of ln sigma.
      std: P_std, of ln sigma.
      sigma_data: std of the data's values.
    """

    mean: float = -1.2
    std: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self):
        if not (self.std > 0 and self.sigma_data > 0):
            raise ValueError(
                "weighting.edm.std and sigma_data must be above 0, not "
                f"{self.std} and {self.sigma_data}"
            )

    def __call__(
        self, t: Float[Array, " B"], trajectory: Trajectory, parameterization: Parameterization
    ) -> Float[Array, " B"]:
        """The factor at t."""
        log_snr = _log_snr(t, trajectory)
        normal = jax.scipy.stats.norm.logpdf(log_snr, -2 * self.mean, 2 * self.std)
        log_weight = normal + jnp.logaddexp(-log_snr, 2 * jnp.log(self.sigma_data))
        return _factor(log_weight, t, trajectory, parameterization)


def common_weight(
    factor: Float[Array, " B"],
    t: Float[Array, " B"],
    trajectory: Trajectory,
    parameterization: Parameterization,
) -> Float[Array, " B"]:
    """w_t = factor_t b_t Delta_t^2 / (D_t a_t): what a factor on an output's error means in L_w.

    Args:
      factor: on |output_hat - output|^2; times the density where times are not uniform.
      t: inside (0, 1); nearer than ``END`` to an end counts as that.
      trajectory: the path.
      parameterization: what the output means.
    """
    return factor * jnp.exp(-_exchange(t, trajectory, parameterization))


def _factor(
    log_weight: Array, t: Array, trajectory: Trajectory, parameterization: Parameterization
) -> Array:
    return jnp.exp(log_weight + _exchange(t, trajectory, parameterization)).astype(t.dtype)


def _exchange(t: Array, trajectory: Trajectory, parameterization: Parameterization) -> Array:
    """ln(factor_t / w_t); logarithms, as both alone may be 0 or infinite near an end."""
    t = _inside(t)
    (a, b), (da, db) = trajectory.coefficients(t), trajectory.rates(t)
    p, q = parameterization.mixture(t, trajectory)
    slope, delta = a * db - da * b, a * q - b * p
    return jnp.log(slope) + jnp.log(a) - jnp.log(b) - 2 * jnp.log(jnp.abs(delta))


def _log_snr(t: Array, trajectory: Trajectory) -> Array:
    return trajectory.log_snr(_inside(t))


def _inside(t: Array) -> Array:
    return jnp.clip(t.astype(jnp.promote_types(t.dtype, jnp.float32)), END, 1 - END)
