"""Which times to train on: t in (0, 1) drawn from a density pi(t).

Drawing t from pi is the same as uniform times with the loss weighted by pi(t)
(Esser et al. 2024, section 3.1). A distribution says how to draw, its density, and its quantile
function, from which ``Stratified`` draws more evenly; ``Shifted`` moves one to higher noise.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from cosdiff_jax.flow.trajectory import Edm, RectifiedFlow, Trajectory


@runtime_checkable
class Times(Protocol):
    """A distribution over training times."""

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` independent times."""
        ...

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """pi(t), which integrates to 1 over (0, 1)."""
        ...

    def quantile(self, u: Float[Array, " B"]) -> Float[Array, " B"]:
        """The t below which a share u of the times lies: uniform u give times of this kind."""
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

    def quantile(self, u: Float[Array, " B"]) -> Float[Array, " B"]:
        """u."""
        return u


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
        _check_normal("times.logit_normal", self.mean, self.std)

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` times in (0, 1)."""
        return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (batch,)))

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """pi(t); it vanishes at both ends."""
        inside = (t > 0) & (t < 1)
        t = jnp.where(inside, t, 0.5)
        logit = jnp.log(t) - jnp.log1p(-t)
        normal = jnp.exp(-0.5 * ((logit - self.mean) / self.std) ** 2)
        density = normal / (self.std * jnp.sqrt(2 * jnp.pi) * t * (1 - t))
        return jnp.where(inside, density, 0.0)

    def quantile(self, u: Float[Array, " B"]) -> Float[Array, " B"]:
        """sigmoid(mean + std Phi^-1(u))."""
        return jax.nn.sigmoid(self.mean + self.std * _normal(u)).astype(u.dtype)


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Mode sampling with heavy tails (Esser et al. 2024, eq. 20).

        t     = f(u) = 1 - u - scale (cos(pi u / 2)^2 - 1 + u),   u uniform
        pi(t) = 1 / |f'(u)|,  f'(u) = -1 - scale (1 - pi / 2 sin(pi u)),  u = f^-1(t)

    The inverse is found by bisection. Near the upper limit of ``scale`` the density has a spike
    at t = 1/2 (about 900 at 1.75), at -1 it is infinite at both ends: such times can be drawn,
    but numbers of a spike mean little. They are cut at 1e4.

    Attributes:
      scale: s, from -1 to 2 / (pi - 2) = 1.7519..., beyond which f is not monotone. Above 0 leans
        to the middle, below 0 to the ends, 0 is uniform.
    """

    scale: float = 1.29

    def __post_init__(self):
        highest = 2 / (math.pi - 2)
        if not -1 <= self.scale <= highest:
            raise ValueError(
                f"times.mode.scale must lie in -1 .. 2 / (pi - 2) = {highest:.4f}, not {self.scale}"
            )

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` times in [0, 1]."""
        return self._falling(jax.random.uniform(key, (batch,)))

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """pi(t)."""

        def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = 0.5 * (ends[0] + ends[1])
            above = self._falling(middle) > t
            return jnp.where(above, middle, ends[0]), jnp.where(above, ends[1], middle)

        ends = jax.lax.fori_loop(0, 32, halve, (jnp.zeros_like(t), jnp.ones_like(t)))
        u = 0.5 * (ends[0] + ends[1])
        slope = 1 + self.scale * (1 - jnp.pi / 2 * jnp.sin(jnp.pi * u))
        return 1 / jnp.maximum(slope, 1e-4)

    def quantile(self, u: Float[Array, " B"]) -> Float[Array, " B"]:
        """f(1 - u), as f falls."""
        return self._falling(1 - u)

    def _falling(self, u: Array) -> Array:
        t = 1 - u - self.scale * (jnp.cos(jnp.pi / 2 * u) ** 2 - 1 + u)
        return jnp.clip(t, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class CosMap:
    """The log-SNRs of the cosine path, on rectified flow (Esser et al. 2024, section 3.1).

    t     = 1 - 1 / (tan(pi u / 2) + 1),   u uniform
    pi(t) = 2 / (pi - 2 pi t + 2 pi t^2)
    """

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` times in [0, 1]."""
        return self.quantile(jax.random.uniform(key, (batch,)))

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """pi(t): 2 / pi at the ends, 4 / pi in the middle."""
        return 2 / (jnp.pi * ((1 - t) ** 2 + t**2))

    def quantile(self, u: Float[Array, " B"]) -> Float[Array, " B"]:
        """The draw itself rises with u."""
        # sin / (sin + cos) is the same as the published form, without an infinite tangent.
        a, b = jnp.sin(jnp.pi / 2 * (1 - u)), jnp.sin(jnp.pi / 2 * u)
        return b / (a + b)


@dataclass(frozen=True, kw_only=True)
class LogNormalSigma:
    """ln sigma ~ N(mean, std^2) of the noise level sigma = b_t / a_t (Karras et al. 2022, table 1).

        pi(t) = N(ln sigma_t; mean, std^2) D_t / (a_t b_t),   d ln sigma / dt = D_t / (a_t b_t)

    on any path; on rectified flow and on ``trajectory.Edm`` this is a logit-normal t. A path that
    does not reach every noise level has the normal cut off where it ends.

    Attributes:
      mean: P_mean, of ln sigma.
      std: P_std, of ln sigma.
      trajectory: the path whose noise levels are meant: the one that is trained.
    """

    mean: float = -1.2
    std: float = 1.2
    trajectory: Trajectory = field(default_factory=Edm)

    def __post_init__(self):
        _check_normal("times.log_normal_sigma", self.mean, self.std)

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` times in [0, 1]."""
        return self.quantile(jax.random.uniform(key, (batch,)))

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """pi(t); 0 where sigma is 0 or infinite."""
        (a, b), (da, db) = self.trajectory.coefficients(t), self.trajectory.rates(t)
        inside = (a > 0) & (b > 0)
        a, b = jnp.where(inside, a, 1.0), jnp.where(inside, b, 1.0)
        below, above = self._reached()
        normal = jax.scipy.stats.norm.pdf(jnp.log(b / a), self.mean, self.std) / (above - below)
        density = jnp.where(inside, normal * (a * db - da * b) / (a * b), 0.0)
        return density.astype(t.dtype)

    def quantile(self, u: Float[Array, " B"]) -> Float[Array, " B"]:
        """The t where ln sigma = mean + std Phi^-1(u)."""
        below, above = self._reached()
        log_sigma = self.mean + self.std * _normal(below + u * (above - below))
        return self.trajectory.time(-2 * log_sigma).astype(u.dtype)

    def _reached(self) -> tuple[Array, Array]:
        """How much of the normal lies below the path's least noise, and below its most."""
        log_sigma = -0.5 * self.trajectory.log_snr(jnp.array([0.0, 1.0]))
        below, above = jax.scipy.stats.norm.cdf(log_sigma, self.mean, self.std)
        return below, above


@dataclass(frozen=True, kw_only=True)
class Stratified:
    """The times of another distribution, spread evenly over each batch.

    [0, 1) is cut into as many equal parts as there are rows, one u is taken from each, and t is
    the u-quantile: every row alone has the density of ``times``, but a batch holds all of it, and
    the loss varies less from step to step. Which row gets which part is drawn, too.

    Attributes:
      times: the distribution.
      lattice: one offset for all parts instead of one for each (Kingma et al. 2021, appendix I.1),
        the most even of all: neighbours are equally far apart.
    """

    times: Times
    lattice: bool = False

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` times, in no order."""
        offset, order = jax.random.split(key)
        inside = jax.random.uniform(offset, (1 if self.lattice else batch,))
        u = (jax.random.permutation(order, batch) + inside) / batch
        # The sum of a large number and a small one may round up to 1.
        return self.times.quantile(jnp.minimum(u, 1 - jnp.finfo(u.dtype).epsneg))

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """That of ``times``."""
        return self.times.density(t)

    def quantile(self, u: Float[Array, " B"]) -> Float[Array, " B"]:
        """That of ``times``."""
        return self.times.quantile(u)


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """The times of another distribution, moved to higher noise by ``shift``.

    Attributes:
      times: the distribution.
      alpha: as for ``shift``.
      double: as for ``shift``.
      trajectory: the path whose log-SNR moves by -2 ln(alpha): the one that is trained.
    """

    times: Times
    alpha: float = 3.0
    double: bool = False
    trajectory: Trajectory = field(default_factory=RectifiedFlow)

    def __post_init__(self):
        check_shift("objective.flow_matching.shift", self.alpha, self.double, self.trajectory)

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, " B"]:
        """``batch`` times."""
        return self._move(self.times(key, batch))

    def density(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """pi(s) ds/dt at the s that is moved to t; 0 where there is none."""
        if has_its_clock(self.trajectory):
            lowest = _lowest(self.alpha) if self.double else 0.0
            s = (shift(t, 1 / self.alpha) - lowest) / (1 - lowest)
            slope = self.alpha / (self.alpha * (1 - t) + t) ** 2 / (1 - lowest)
            return jnp.where(s >= 0, self.times.density(jnp.maximum(s, 0.0)) * slope, 0.0)
        # ds/dt = lambda'_t / lambda'_s; at the ends both are infinite, their quotient is not.
        wide = t.astype(jnp.promote_types(t.dtype, jnp.float32))
        inner = jnp.clip(wide, _END, 1 - _END)
        s = moved(self.trajectory, inner, 1 / self.alpha)
        slope = _falls(self.trajectory, inner) / _falls(self.trajectory, s)
        s = moved(self.trajectory, wide, 1 / self.alpha)
        return (self.times.density(s) * slope).astype(t.dtype)

    def quantile(self, u: Float[Array, " B"]) -> Float[Array, " B"]:
        """The quantile of ``times``, moved."""
        return self._move(self.times.quantile(u))

    def _move(self, t: Array) -> Array:
        if has_its_clock(self.trajectory):
            return shift(t, self.alpha, double=self.double)
        return moved(self.trajectory, t, self.alpha)


def shift(t: Any, alpha: float, *, double: bool = False) -> Any:
    """The time at m pixels that hides as much as t does at n (Esser et al. 2024, 5.3.2).

        t' = alpha t / (1 + (alpha - 1) t),    lambda' = lambda - 2 ln(alpha) on rectified flow

    Both ends stay. The inverse is the shift by 1 / alpha; shifts multiply. On a path with another
    clock ``moved`` does it.

    Args:
      t: times of a distribution (JAX) or of a sampler's grid (numpy, which stays numpy).
      alpha: sqrt(m / n), see ``resolution_shift``; above 1 means more noise. SD3 uses 3.0 at 1024
        pixels of side, in training and in sampling.
      double: the published samplers of SD3 lay their even grid between 1 and the first of 1,000
        times that are shifted already, and then shift it: t is first mapped to
        lo + (1 - lo) t with lo = shift(1 / 1000, alpha). At alpha = 3 the last time before 0 is
        then 0.0089 where it would be 0.003. Only for repeating their pictures.

    Raises:
      ValueError: alpha is not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"times are shifted by an alpha above 0, not {alpha}")
    if double:
        lowest = _lowest(alpha)
        t = lowest + (1 - lowest) * t
    # The denominator is 1 + (alpha - 1) t, written so that t = 1 stays 1 exactly.
    return alpha * t / ((1 - t) + alpha * t)


def moved(trajectory: Trajectory, t: Float[Array, " B"], alpha: float) -> Float[Array, " B"]:
    """The time where the log-SNR of a path is lower by 2 ln(alpha) than at t; its ends stay."""
    return trajectory.time(trajectory.log_snr(t) - 2 * math.log(alpha))


def has_its_clock(trajectory: Trajectory) -> bool:
    """Whether a path has the log-SNR of rectified flow at every t, for which ``shift`` is made."""
    return isinstance(trajectory, (RectifiedFlow, Edm))


def check_shift(owner: str, alpha: float, double: bool, trajectory: Trajectory) -> None:
    """Refuse a shift that is none, or none on this path.

    Raises:
      ValueError: naming ``owner``.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"{owner}.alpha must be above 0, not {alpha}")
    if has_its_clock(trajectory):
        return
    called = type(trajectory).__name__
    if double:
        raise ValueError(f"{owner}.double is SD3's, of rectified flow; {called} has only the other")
    with jax.ensure_compile_time_eval():
        ends = trajectory.log_snr(jnp.arange(2.0))
    if alpha != 1 and not bool(jnp.isinf(ends).all()):
        raise ValueError(
            f"{owner}.alpha={alpha:g}: {called} has no time for some log-SNRs, as it does not end "
            "in noise alone; its times cannot be shifted"
        )


def resolution_shift(pixels: int, reference: int) -> float:
    """alpha = sqrt(m / n) for pictures of m ``pixels``, of times that were good for n.

    Raises:
      ValueError: a number of pixels that is none.
    """
    if pixels < 1 or reference < 1:
        raise ValueError(f"pictures have at least one pixel, not {pixels} and {reference}")
    return math.sqrt(pixels / reference)


def resized(shifted: Any, reference: int, shape: tuple[int, ...]) -> Any:
    """A shift whose ``alpha`` is for squares of one side, at another size: times the root above.

    Args:
      shifted: ``Shifted`` times, or a ``grid.Shifted``.
      reference: side of the latents that its alpha is for; 0 leaves it as it is.
      shape: (h, w, ...) of the latents at hand; not read where ``reference`` is 0.

    Raises:
      ValueError: a side below 0.
    """
    if reference < 0:
        raise ValueError(
            "objective.flow_matching.shift.reference and sample.grid.shifted.reference are sides "
            f"of latents, or 0, not {reference}"
        )
    if reference == 0:
        return shifted
    factor = resolution_shift(shape[0] * shape[1], reference**2)
    return dataclasses.replace(shifted, alpha=shifted.alpha * factor)


def _check_normal(owner: str, mean: float, std: float) -> None:
    """Refuse what is no normal distribution."""
    if not 0 < std < math.inf:
        raise ValueError(f"{owner}.std must be above 0, not {std}")
    if not math.isfinite(mean):
        raise ValueError(f"{owner}.mean must be a finite number, not {mean}")


def _normal(u: Array) -> Array:
    """Phi^-1(u), at least in float32: there is no narrower one."""
    return ndtri(u.astype(jnp.promote_types(u.dtype, jnp.float32)))


_END = 1e-6
"""As near to 0 and 1 as a quotient of two infinite slopes is taken."""


def _falls(trajectory: Trajectory, t: Array) -> Array:
    """-lambda'_t / 2."""
    (a, b), (da, db) = trajectory.coefficients(t), trajectory.rates(t)
    return (a * db - da * b) / (a * b)


def _lowest(alpha: float) -> float:
    return float(shift(np.float64(1e-3), alpha))
