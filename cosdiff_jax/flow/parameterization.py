"""What the network's output means, and how it becomes a velocity.

Every meaning is a mixture of data and noise whose weights are known at each t,

    output = p_t x0 + q_t eps,      z_t = a_t x0 + b_t eps,

so that with Delta_t = a_t q_t - b_t p_t the output and z_t say all there is to know:

    x0_hat  = (q_t z_t - b_t output) / Delta_t
    eps_hat = (a_t output - p_t z_t) / Delta_t
    v_hat   = a'_t x0_hat + b'_t eps_hat

At fixed (z_t, t) the velocity is affine in the output, so guidance on velocities is guidance on
outputs. ``v``, ``edm`` and the velocity itself convert at every t. A network that predicts the
noise says nothing of the data where a_t = 0, nor one that predicts the data of the noise where
b_t = 0: there the part that is not known fades to 0, the mean of either, see each class.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.flow.trajectory import Trajectory, along_rows


@runtime_checkable
class Parameterization(Protocol):
    """A meaning of the network's output."""

    def mixture(
        self, t: Float[Array, " B"], trajectory: Trajectory
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(p_t, q_t): the output is p_t x0 + q_t eps."""
        ...

    def target(
        self,
        x0: Float[Array, "B *x"],
        eps: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """What the network should say at z_t = a_t x0 + b_t eps."""
        ...

    def velocity(
        self,
        output: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """The velocity that an output at z_t stands for."""
        ...

    def network_input(
        self, z_t: Float[Array, "B *x"], t: Float[Array, " B"], trajectory: Trajectory
    ) -> Float[Array, "B *x"]:
        """What the network is shown for z_t; z_t itself unless the class says otherwise."""
        return z_t


@dataclass(frozen=True, kw_only=True)
class Velocity(Parameterization):
    """v = dz/dt itself: p_t = a'_t, q_t = b'_t (Esser et al. 2024, eq. 8)."""

    def mixture(
        self, t: Float[Array, " B"], trajectory: Trajectory
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(a'_t, b'_t)."""
        return trajectory.rates(t)

    def target(
        self,
        x0: Float[Array, "B *x"],
        eps: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """The path's own velocity."""
        del z_t
        return trajectory.corrupt(x0, eps, t)[1]

    def velocity(
        self,
        output: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """The output."""
        del z_t, t, trajectory
        return output


@dataclass(frozen=True, kw_only=True)
class Noise(Parameterization):
    """eps (Ho et al. 2020): p_t = 0, q_t = 1, x0_hat = (z_t - b_t eps_hat) / a_t.

    Attributes:
      smallest: a_t below which 1 / a_t is replaced by a_t / smallest^2, so that x0_hat falls to 0
        at a_t = 0 and v_hat to b'_t eps_hat, where z_t holds no data to be recovered.
    """

    smallest: float = 5e-3

    def __post_init__(self):
        _check_smallest("eps", self.smallest)

    def mixture(
        self, t: Float[Array, " B"], trajectory: Trajectory
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(0, 1)."""
        return jnp.zeros_like(t), jnp.ones_like(t)

    def target(
        self,
        x0: Float[Array, "B *x"],
        eps: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """The noise."""
        del x0, z_t, t, trajectory
        return eps

    def velocity(
        self,
        output: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """a'_t (z_t - b_t output) / a_t + b'_t output."""
        a, b = trajectory.coefficients(t)
        x0 = (z_t - along_rows(b, z_t) * output) * along_rows(_inverse(a, self.smallest), z_t)
        return _moving(x0, output, t, trajectory)


@dataclass(frozen=True, kw_only=True)
class Clean(Parameterization):
    """x0: p_t = 1, q_t = 0, eps_hat = (z_t - a_t x0_hat) / b_t.

    Attributes:
      smallest: b_t below which 1 / b_t is replaced by b_t / smallest^2, so that eps_hat falls to 0
        at b_t = 0 and v_hat to a'_t x0_hat, where z_t holds no noise to be recovered.
    """

    smallest: float = 5e-3

    def __post_init__(self):
        _check_smallest("x0", self.smallest)

    def mixture(
        self, t: Float[Array, " B"], trajectory: Trajectory
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(1, 0)."""
        return jnp.ones_like(t), jnp.zeros_like(t)

    def target(
        self,
        x0: Float[Array, "B *x"],
        eps: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """The data."""
        del eps, z_t, t, trajectory
        return x0

    def velocity(
        self,
        output: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """a'_t output + b'_t (z_t - a_t output) / b_t."""
        a, b = trajectory.coefficients(t)
        eps = (z_t - along_rows(a, z_t) * output) * along_rows(_inverse(b, self.smallest), z_t)
        return _moving(output, eps, t, trajectory)


@dataclass(frozen=True, kw_only=True)
class Score(Parameterization):
    """The gradient of ln p_t(z | x0) (Song et al. 2021): -eps / b_t, so p_t = 0, q_t = -1 / b_t.

    Attributes:
      smallest: the least that b_t counts as: the score of data without noise is infinite. It is
        the same in both directions, which stay inverses; for a_t see ``Noise``.
    """

    smallest: float = 5e-3

    def __post_init__(self):
        _check_smallest("score", self.smallest)

    def mixture(
        self, t: Float[Array, " B"], trajectory: Trajectory
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(0, -1 / b_t)."""
        return jnp.zeros_like(t), -1 / self._size(t, trajectory)

    def target(
        self,
        x0: Float[Array, "B *x"],
        eps: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """-eps / b_t."""
        del x0, z_t
        return -eps / along_rows(self._size(t, trajectory), eps)

    def velocity(
        self,
        output: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """That of the noise -b_t output."""
        eps = -along_rows(self._size(t, trajectory), output) * output
        return Noise(smallest=self.smallest).velocity(eps, z_t, t, trajectory)

    def _size(self, t: Array, trajectory: Trajectory) -> Array:
        return jnp.maximum(trajectory.coefficients(t)[1], self.smallest)


@dataclass(frozen=True, kw_only=True)
class Edm(Parameterization):
    """EDM's preconditioned network F (Karras et al. 2022, section 5), on any path.

    With sigma = b_t / a_t and x = z_t / a_t, which has noise of size sigma, the denoiser is

        D      = c_skip x + c_out F(c_in x)
        c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)
        c_out  = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
        c_in   = 1 / sqrt(sigma^2 + sigma_data^2)

    Multiplied out by a_t nothing divides by 0 at either end. With s_t^2 = a_t^2 sigma_data^2 +
    b_t^2, the variance of z_t,

        c_in x  = z_t / s_t
        F       = (b_t x0 - a_t sigma_data^2 eps) / (sigma_data s_t)
        x0_hat  = (a_t sigma_data^2 z_t + b_t sigma_data s_t F) / s_t^2
        eps_hat = (b_t z_t - a_t sigma_data s_t F) / s_t^2

    Input and target have unit variance. Where sigma_data = 1 and a_t^2 + b_t^2 = 1, F is -v of
    ``V``. The published network is told ln(sigma) / 4 as its time; here it is told t, which says
    the same.

    Attributes:
      sigma_data: std of the data's values; 0.5 for pictures in [-1, 1] as published, 1.0 for
        latents scaled to unit variance.
    """

    sigma_data: float = 0.5

    def __post_init__(self):
        if not self.sigma_data > 0:
            raise ValueError(
                f"parameterization.edm.sigma_data must be above 0, not {self.sigma_data}"
            )

    def mixture(
        self, t: Float[Array, " B"], trajectory: Trajectory
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(b_t / sigma_data, -a_t sigma_data) / s_t."""
        a, b = trajectory.coefficients(t)
        size = self._size(t, trajectory)
        return b / (self.sigma_data * size), -a * self.sigma_data / size

    def target(
        self,
        x0: Float[Array, "B *x"],
        eps: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """F."""
        del z_t
        return _mixed(self, x0, eps, t, trajectory)

    def velocity(
        self,
        output: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """a'_t x0_hat + b'_t eps_hat."""
        return _solved(self, output, z_t, t, trajectory)

    def network_input(
        self, z_t: Float[Array, "B *x"], t: Float[Array, " B"], trajectory: Trajectory
    ) -> Float[Array, "B *x"]:
        """c_in x = z_t / s_t."""
        return z_t / along_rows(self._size(t, trajectory), z_t)

    def _size(self, t: Array, trajectory: Trajectory) -> Array:
        a, b = trajectory.coefficients(t)
        return jnp.sqrt((a * self.sigma_data) ** 2 + b**2)


@dataclass(frozen=True, kw_only=True)
class V(Parameterization):
    """v = alpha_t eps - sigma_t x0 (Salimans and Ho 2022), on any path.

    Their path is a circle, alpha_t^2 + sigma_t^2 = 1. On another one alpha_t = a_t / r_t and
    sigma_t = b_t / r_t with r_t^2 = a_t^2 + b_t^2, which is z_t / r_t on its own circle.
    """

    def mixture(
        self, t: Float[Array, " B"], trajectory: Trajectory
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(-b_t, a_t) / r_t."""
        a, b = trajectory.coefficients(t)
        r = jnp.sqrt(a**2 + b**2)
        return -b / r, a / r

    def target(
        self,
        x0: Float[Array, "B *x"],
        eps: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """alpha_t eps - sigma_t x0."""
        del z_t
        return _mixed(self, x0, eps, t, trajectory)

    def velocity(
        self,
        output: Float[Array, "B *x"],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        trajectory: Trajectory,
    ) -> Float[Array, "B *x"]:
        """a'_t x0_hat + b'_t eps_hat."""
        return _solved(self, output, z_t, t, trajectory)


def _check_smallest(name: str, smallest: float) -> None:
    if not smallest > 0:
        raise ValueError(f"parameterization.{name}.smallest must be above 0, not {smallest}")


def _inverse(x: Array, smallest: float) -> Array:
    return x / jnp.maximum(x, smallest) ** 2


def _moving(x0: Array, eps: Array, t: Array, trajectory: Trajectory) -> Array:
    da, db = trajectory.rates(t)
    return along_rows(da, x0) * x0 + along_rows(db, x0) * eps


def _mixed(
    meaning: Parameterization, x0: Array, eps: Array, t: Array, trajectory: Trajectory
) -> Array:
    p, q = meaning.mixture(t, trajectory)
    return along_rows(p, x0) * x0 + along_rows(q, x0) * eps


def _solved(
    meaning: Parameterization, output: Array, z_t: Array, t: Array, trajectory: Trajectory
) -> Array:
    """The velocity by the module's equations, where Delta_t is never 0."""
    p, q = meaning.mixture(t, trajectory)
    a, b = trajectory.coefficients(t)
    a, b, p, q = (along_rows(x, z_t) for x in (a, b, p, q))
    delta = a * q - b * p
    return _moving((q * z_t - b * output) / delta, (a * output - p * z_t) / delta, t, trajectory)
