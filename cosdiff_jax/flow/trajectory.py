"""How data becomes noise: the path z_t = a_t x0 + b_t eps and its velocity dz/dt.

Time runs from t = 0 (data) to t = 1 (noise). A path is four functions of t,

    a_t, b_t,   a'_t, b'_t,   lambda_t = ln(a_t^2 / b_t^2),   and t as a function of lambda,

and everything else follows from them, with the determinant D_t = a_t b'_t - a'_t b_t > 0:

    v   = a'_t x0 + b'_t eps
    x0  = (b'_t z_t - b_t v) / D_t
    eps = (a_t v - a'_t z_t) / D_t
    lambda'_t = -2 D_t / (a_t b_t)

No division is by a_t or b_t, which are 0 at an end. The log-SNR lambda (Esser et al. 2024,
section 2) is +inf where b_t = 0 and -inf where a_t = 0.
"""

import abc
import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@runtime_checkable
class Trajectory(Protocol):
    """A path between data and noise, in both directions.

    A path that says ``coefficients``, ``rates``, ``log_snr`` and ``time`` can inherit the rest.
    All of it is finite for t in [0, 1], ends included, but for ``log_snr``.
    """

    def coefficients(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(a_t, b_t)."""
        ...

    def rates(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(da/dt, db/dt)."""
        ...

    def log_snr(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """lambda_t = ln(a_t^2 / b_t^2), which falls with t."""
        ...

    def time(self, log_snr: Float[Array, " B"]) -> Float[Array, " B"]:
        """The t of a log-SNR; the nearer end for one that the path never has."""
        ...

    def corrupt(
        self, x0: Float[Array, "B *x"], eps: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> tuple[Float[Array, "B *x"], Float[Array, "B *x"]]:
        """Data and noise to the noised sample z_t and the velocity v = dz/dt there."""
        a, b, da, db = _rows(self, t, x0)
        return a * x0 + b * eps, da * x0 + db * eps

    def clean(
        self, z_t: Float[Array, "B *x"], v: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> Float[Array, "B *x"]:
        """The clean sample that a velocity at z_t points back to."""
        a, b, da, db = _rows(self, t, z_t)
        return (db * z_t - b * v) / (a * db - da * b)

    def noise(
        self, z_t: Float[Array, "B *x"], v: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> Float[Array, "B *x"]:
        """The noise that a velocity at z_t comes from."""
        a, b, da, db = _rows(self, t, z_t)
        return (a * v - da * z_t) / (a * db - da * b)


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Trajectory):
    """Straight lines between data and noise (Liu et al. 2022; Esser et al. 2024, eq. 13).

    z_t = (1 - t) x0 + t eps
    v   = dz/dt = eps - x0
    x0  = z_t - t v
    eps = z_t + (1 - t) v
    """

    def coefficients(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(1 - t, t)."""
        return 1 - t, t

    def rates(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(-1, 1)."""
        return -jnp.ones_like(t), jnp.ones_like(t)

    def log_snr(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """2 ln((1 - t) / t)."""
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def time(self, log_snr: Float[Array, " B"]) -> Float[Array, " B"]:
        """1 / (1 + exp(lambda / 2))."""
        return jax.nn.sigmoid(-0.5 * log_snr)

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

    def noise(
        self, z_t: Float[Array, "B *x"], v: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> Float[Array, "B *x"]:
        """eps_hat = z_t + (1 - t) v."""
        return z_t + along_rows(1 - t, z_t) * v


@dataclass(frozen=True, kw_only=True)
class Cosine(Trajectory):
    """A quarter circle (Nichol and Dhariwal 2021, without their offset; Esser et al. 2024, 3).

    a_t = cos(pi t / 2),  b_t = sin(pi t / 2),  lambda_t = -2 ln tan(pi t / 2),  D_t = pi / 2
    """

    def coefficients(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(cos, sin) of pi t / 2, 0 and 1 exactly at the ends."""
        # cos(pi / 2) is not 0 in floating point; the sine of the other angle is.
        wide = _wide(t)
        a, b = jnp.sin(jnp.pi / 2 * (1 - wide)), jnp.sin(jnp.pi / 2 * wide)
        return a.astype(t.dtype), b.astype(t.dtype)

    def rates(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(-b, a) pi / 2."""
        a, b = self.coefficients(t)
        return -jnp.pi / 2 * b, jnp.pi / 2 * a

    def log_snr(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """-2 ln tan(pi t / 2)."""
        a, b = self.coefficients(t)
        return 2 * (jnp.log(a) - jnp.log(b))

    def time(self, log_snr: Float[Array, " B"]) -> Float[Array, " B"]:
        """2 / pi arctan(exp(-lambda / 2))."""
        angle = jnp.arctan(jnp.exp(-0.5 * _wide(log_snr)))
        return jnp.minimum(angle / (jnp.pi / 2), 1.0).astype(log_snr.dtype)


@dataclass(frozen=True, kw_only=True)
class Edm(Trajectory):
    """EDM's path (Karras et al. 2022) at constant size, with noise level sigma_t = t / (1 - t).

        x_sigma = x0 + sigma eps                     the published path, size up to sigma
        z_t     = x_sigma / sqrt(1 + sigma^2)        this one, size about 1 at every t
        a_t = (1 - t) / r,  b_t = t / r,  r^2 = (1 - t)^2 + t^2,  D_t = 1 / r^2

    The division changes neither the log-SNR, lambda = -2 ln sigma, nor what a network that scales
    its own input sees (``parameterization.Edm``), and it makes t = 1 an end: sigma = inf there.

    EDM leaves the clock open. This one gives every t the log-SNR of rectified flow, of which the
    path is the rescaled form, so that a log-normal sigma is a logit-normal t with the same mean
    and std, and the same Times mean the same noise levels on both.
    """

    def coefficients(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(1 - t, t) / r."""
        r = jnp.sqrt((1 - t) ** 2 + t**2)
        return (1 - t) / r, t / r

    def rates(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(-t, 1 - t) / r^3."""
        cube = ((1 - t) ** 2 + t**2) ** 1.5
        return -t / cube, (1 - t) / cube

    def log_snr(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """2 ln((1 - t) / t)."""
        return RectifiedFlow().log_snr(t)

    def time(self, log_snr: Float[Array, " B"]) -> Float[Array, " B"]:
        """1 / (1 + exp(lambda / 2))."""
        return RectifiedFlow().time(log_snr)


@dataclass(frozen=True, kw_only=True)
class _Chain(Trajectory):
    """A discrete noising chain in continuous time.

        a_t^2 = exp(-B(t)),  b_t^2 = 1 - exp(-B(t)),  B(n / steps) = -sum_{k < n} ln(1 - beta_k)

    B is a polynomial. It goes through the chain's own values at every t = n / steps (to 1e-6), so
    a model trained on step k of the chain is at home at t = (k + 1) / steps; t = 0 is data.

    Two things to know of the ends. At t = 1 a little of the data is left, a_1 > 0: what is called
    noise there is not the noise that sampling starts from. At t = 0 the true b' is infinite, as
    b_t grows like sqrt(t); ``rates`` stands still below ``1 / (100 steps)``, where it is finite
    and x0, eps and v still turn into one another exactly.
    """

    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self):
        if self.steps < 2 or not 0 < self.first < self.last < 0.2:
            raise ValueError(
                f"{type(self).__name__}: steps must be at least 2 and 0 < first < last < 0.2, not "
                f"{self.steps}, {self.first} and {self.last}"
            )

    @abc.abstractmethod
    def _beta(self) -> np.polynomial.Polynomial:
        """beta_k as a polynomial in k."""

    @functools.cached_property
    def _exponent(self) -> np.ndarray:
        """Coefficients of B(t) / t, lowest power first."""
        beta = self._beta()
        # -ln(1 - beta); further terms are below 1e-6 of the sum for beta < 0.2 at the very end.
        terms = [beta**m / m for m in range(1, 9)]
        density = sum(terms[1:], terms[0])
        # A sum over steps is an integral from half a step before to half a step after, up to
        # the slope's change over 24 (the midpoint rule with its first correction).
        whole = density.integ(lbnd=-0.5) - density.deriv() / 24
        whole = whole(np.polynomial.Polynomial([-0.5, self.steps]))
        return whole.coef[1:]

    def _spent(self, t: Array) -> tuple[Array, Array]:
        """(B(t), B'(t))."""
        over, slope = jnp.zeros_like(t), jnp.zeros_like(t)
        for c in self._exponent[::-1]:
            slope = slope * t + over
            over = over * t + c
        return over * t, over + slope * t

    def coefficients(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(exp(-B / 2), sqrt(1 - exp(-B)))."""
        spent, _ = self._spent(_wide(t))
        a, b = jnp.exp(-0.5 * spent), jnp.sqrt(-jnp.expm1(-spent))
        return a.astype(t.dtype), b.astype(t.dtype)

    def rates(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(-B' a / 2, B' a^2 / (2 b)), at t no lower than ``1 / (100 steps)``."""
        spent, slope = self._spent(jnp.maximum(_wide(t), 0.01 / self.steps))
        da = -0.5 * slope * jnp.exp(-0.5 * spent)
        db = 0.5 * slope * jnp.exp(-spent) / jnp.sqrt(-jnp.expm1(-spent))
        return da.astype(t.dtype), db.astype(t.dtype)

    def log_snr(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """-ln(exp(B) - 1)."""
        return -jnp.log(jnp.expm1(self._spent(_wide(t))[0])).astype(t.dtype)

    def time(self, log_snr: Float[Array, " B"]) -> Float[Array, " B"]:
        """The root of B(t) = ln(1 + exp(-lambda)): Newton's method from a table."""
        wanted = jax.nn.softplus(-_wide(log_snr))
        grid = np.linspace(0, 1, 257)
        table = grid * np.polynomial.Polynomial(self._exponent)(grid)
        wanted = jnp.minimum(wanted, table[-1])
        t = jnp.interp(wanted, jnp.asarray(table), jnp.asarray(grid))
        for _ in range(3):
            spent, slope = self._spent(t)
            t = jnp.clip(t - (spent - wanted) / slope, 0.0, 1.0)
        return t.astype(log_snr.dtype)


@dataclass(frozen=True, kw_only=True)
class DdpmLinear(_Chain):
    """DDPM's chain (Ho et al. 2020): beta_k from ``first`` to ``last`` in equal steps.

    a_1 is 0.0064 for the published numbers. What holds of every chain is said at ``_Chain``: t = 1
    is not quite noise, and at t = 0 the velocity is cut off.

    Attributes:
      steps: T, how many steps the chain has.
      first: beta_0.
      last: beta_{T-1}.
    """

    def _beta(self) -> np.polynomial.Polynomial:
        return np.polynomial.Polynomial([self.first, (self.last - self.first) / (self.steps - 1)])


@dataclass(frozen=True, kw_only=True)
class LdmLinear(_Chain):
    """Latent diffusion's chain (Rombach et al. 2022): sqrt(beta_k) in equal steps.

    a_1 is 0.068 for the published numbers, a signal-to-noise ratio of 0.0047 that a sampler which
    starts from pure noise never sees. Ends otherwise as for ``DdpmLinear``.

    Attributes:
      steps: T, how many steps the chain has.
      first: beta_0.
      last: beta_{T-1}.
    """

    first: float = 0.00085
    last: float = 0.012

    def _beta(self) -> np.polynomial.Polynomial:
        low, high = np.sqrt(self.first), np.sqrt(self.last)
        return np.polynomial.Polynomial([low, (high - low) / (self.steps - 1)]) ** 2


def check_path(trajectory: Trajectory, **parts: Any) -> None:
    """Refuse parts that, or a part of which, are made for another path.

    Args:
      trajectory: the path that is meant.
      **parts: dataclasses, looked through; others have no path.

    Raises:
      ValueError: naming the first that has another one.
    """
    for name, part in parts.items():
        if not dataclasses.is_dataclass(part):
            continue
        held = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        path = held.pop("trajectory", trajectory)
        if path != trajectory:
            raise ValueError(
                f"{name}.trajectory is {path}, the model's {trajectory}: make the {name} with the "
                "model's"
            )
        check_path(trajectory, **{f"{name}.{key}": each for key, each in held.items()})


def along_rows(t: Float[Array, " B"], like: Float[Array, "B *x"]) -> Float[Array, "B *ones"]:
    """``t`` with as many axes as ``like``, so that it multiplies row by row."""
    return t.reshape(t.shape + (1,) * (like.ndim - 1))


def _rows(path: Trajectory, t: Array, like: Array) -> tuple[Array, Array, Array, Array]:
    """(a, b, a', b'), each along the rows of ``like``."""
    a, b, da, db = (along_rows(x, like) for x in (*path.coefficients(t), *path.rates(t)))
    return a, b, da, db


def _wide(t: Array) -> Array:
    """At least float32: sines and polynomials of a bfloat16 time would miss the ends."""
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))
