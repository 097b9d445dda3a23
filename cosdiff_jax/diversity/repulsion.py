"""Samples of one prompt that keep apart while they are drawn: a velocity field in, one out.

Rows are prompt-major, B = P K; prompts never meet. A repulsion adds to the score s of each sample
the gradient g of a potential log Phi that is high for groups that are spread out, weighted by w.
For a rectified flow z_t = (1 - t) x0 + t eps with v = eps - x0,

    s  = -E[eps | z] / t = -(z + (1 - t) v) / t
    v  = -(z + t s) / (1 - t)                       the same, solved for v
    dv = -w t / (1 - t) g = -w sigma g              what s + w g makes of v

where sigma is the noise level of z_t / (1 - t) = x0 + sigma eps, the variance-exploding picture.

Towards t = 1 the solved form is 0 / 0: z + t s vanishes with 1 - t, g does not, and sigma grows
without bound. A step has a finite length all the same, so each row's |dv| is held to ``largest``
times its |v|.

Where Phi looks at the estimates x0_hat = z - t v, v is held fixed and dx0_hat / dz = 1: the network
is never differentiated. At t = 1 itself these estimates are the mean of the data for every sample,
and what tells them apart is rounding; hence intervals that end below 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.diversity.exact import product
from cosdiff_jax.flow.solver import Velocity
from cosdiff_jax.flow.trajectory import RectifiedFlow, along_rows

Feature = Callable[[Array], Array]
"""x0_hat "B ..." -> f "B F", each row by itself."""


@runtime_checkable
class Repulsion(Protocol):
    """A way for the samples of one prompt to keep apart."""

    def __call__(self, velocity: Velocity, samples: int) -> Velocity:
        """The field in which groups of ``samples`` rows repel; one sample leaves it as it is."""
        ...


@dataclass(frozen=True, kw_only=True)
class ParticleGuidance:
    """Every sample is pushed away from the others of its group, hardly from distant ones.

        log Phi_i = -sum_{j != i} exp(-|f_i - f_j|^2 / h_i)
        h_i       = median_{j != i} |f_i - f_j|^2 / log K
        g_i       = sum_{j != i} 2 / h_i exp(-|f_i - f_j|^2 / h_i) (f_i - f_j)      for f = x0_hat

    where h_i and the others are held fixed (Corso et al. 2023, arXiv 2310.13102, and its published
    code, which has log (K - 1) in h_i, 0 for a pair, and no sigma where it compares features). The
    published latent form compares the z_t. While t is large these are nearly noise, equally far
    from one another whatever they will become; the x0_hat show that already. Identical samples do
    not move: the direction is undefined.

    Attributes:
      weight: w, multiplies log Phi and has no unit. |g| is about 2 log(K) / m for a median distance
        m, and m grows as the square root of the number of latent values.
      interval: acts while lo <= t <= hi; elsewhere exactly the plain velocity. The published code
        acts while sigma >= 1, that is from t = 0.5 on.
      largest: bound on |dv| / |v| of a row.
      feature: the space the samples are compared in, x0_hat itself if None. g is then the
        vector-Jacobian product of the g_i above through it.
    """

    weight: float = 1.0
    interval: tuple[float, float] = (0.5, 0.99)
    largest: float = 0.5
    feature: Feature | None = None

    def __post_init__(self):
        _check(self.weight, self.largest)

    def __call__(self, velocity: Velocity, samples: int) -> Velocity:
        """The repelled field.

        Args:
          velocity: (z "B ...", t "B") -> v "B ...".
          samples: K.

        Raises:
          ValueError: when called with a number of rows that K does not divide.
        """

        def force(f: Array) -> Array:
            kernel, bandwidth = _kernel(f)
            return _apart(2 / bandwidth * kernel, f)

        def push(z: Array, v: Array, t: Array) -> Array:
            x0 = RectifiedFlow().clean(z, v, t)
            return along_rows(t, z) * _through(self.feature, force, x0, samples)

        return _repelled(velocity, samples, push, self.weight, self.interval, self.largest)


@dataclass(frozen=True, kw_only=True)
class Svgd:
    """Stein variational gradient descent of the group towards p_t, beside the flow.

        g_i = 1 / K sum_j [drive k(f_j, f_i) s_j + grad_{f_j} k(f_j, f_i)], k as in ParticleGuidance

    with drive = 1 and f = z_t (Liu and Wang 2016, arXiv 1608.04471, eq. 8; as a form of particle
    guidance in the published code of arXiv 2310.13102, which sums where this averages). By Stein's
    identity the mean over p_t of the bracket then is 0, so that a group already spread as p_t is
    left alone; j = i is part of that and counts. In d dimensions, though, the slopes of the kernel
    come to some log K / sqrt(d) where the scores have sqrt(d) / t: nothing is left of the
    repulsion. A drive below 1 is the annealed form (D'Angelo and Fortuin 2021, arXiv 2101.09815),
    which heads for the flatter p_t^drive. Drive 0 with ``clean`` is ``ParticleGuidance`` at the
    weight w / K.

    Attributes:
      weight: w, has no unit; w drive / K times a sample's score is added to it.
      interval: acts while lo <= t <= hi; elsewhere exactly the plain velocity.
      largest: bound on |dv| / |v| of a row.
      drive: of the scores against the repulsion, has no unit: 1 is SVGD, 0 the repulsion alone.
      clean: f is x0_hat, which shows at large t already what the samples become, instead of z_t;
        the identity above does not hold for it.

    Raises:
      ValueError: a weight, bound or drive below 0.
    """

    weight: float = 1.0
    interval: tuple[float, float] = (0.5, 0.99)
    largest: float = 0.5
    drive: float = 1.0
    clean: bool = False

    def __post_init__(self):
        _check(self.weight, self.largest)
        if self.drive < 0:
            raise ValueError(f"the drive of svgd must be at least 0, not {self.drive}")

    def __call__(self, velocity: Velocity, samples: int) -> Velocity:
        """The repelled field; arguments and errors as for ``ParticleGuidance``."""

        def push(z: Array, v: Array, t: Array) -> Array:
            path, rows = RectifiedFlow(), along_rows(t, z)
            noise = path.noise(z, v, t).reshape(-1, samples, z[0].size)
            f = (path.clean(z, v, t) if self.clean else z).reshape(noise.shape)
            kernel, bandwidth = _kernel(f)
            pull = -self.drive / samples * product("pij,pjf->pif", kernel, noise)
            apart = _apart(2 / bandwidth * kernel, f) / samples
            return pull.reshape(z.shape) + rows * apart.reshape(z.shape)

        return _repelled(velocity, samples, push, self.weight, self.interval, self.largest)


@dataclass(frozen=True, kw_only=True)
class DiverseFlow:
    """A group is drawn towards the volume that it spans: a determinantal point process.

        log Phi = log det(L + jitter I) - log det(L + I)
        L_ij    = exp(-spread |f_i - f_j|^2 / m^2),    m = median_{i < j} |f_i - f_j| held fixed
        g       = grad_{x0_hat} log Phi

    (Morshed and Boddeti 2025, arXiv 2504.07894, on velocities and with this module's sigma for the
    paper's schedule; without its quality term, which lowers the kernel of samples whose estimated
    noise has left the shell of a Gaussian.) Two samples a small distance d apart repel by 2 / d, so
    near-duplicates dominate; identical samples do not move.

    Attributes:
      weight: w, multiplies log Phi and has no unit.
      interval: acts while lo <= t <= hi; elsewhere exactly the plain velocity.
      largest: bound on |dv| / |v| of a row.
      feature: the space the samples are compared in, x0_hat itself if None.
      spread: how narrow the kernel is; at distance m it is exp(-spread).
      jitter: added to the diagonal of L, which is 1. Identical samples make L singular; below a
        distance of about m sqrt(jitter / spread) the force falls off again.
    """

    weight: float = 1.0
    interval: tuple[float, float] = (0.5, 0.99)
    largest: float = 0.5
    feature: Feature | None = None
    spread: float = 1.0
    jitter: float = 1e-3

    def __post_init__(self):
        _check(self.weight, self.largest)

    def __call__(self, velocity: Velocity, samples: int) -> Velocity:
        """The repelled field; arguments and errors as for ``ParticleGuidance``."""

        def force(f: Array) -> Array:
            squares = _squares(f)
            first, second = jnp.triu_indices(samples, 1)
            median = jnp.median(jnp.sqrt(squares[:, first, second]), axis=-1)
            narrow = self.spread / jnp.maximum(median**2, _TINY).reshape(-1, 1, 1)
            kernel = jnp.exp(-narrow * squares)
            one = jnp.eye(samples).reshape(1, samples, samples)
            # d log Phi / d L; L_ij and L_ji are two entries, hence 4 and not 2 below.
            slope = jnp.linalg.inv(kernel + self.jitter * one) - jnp.linalg.inv(kernel + one)
            return _apart(-4 * narrow * slope * kernel, f)

        def push(z: Array, v: Array, t: Array) -> Array:
            x0 = RectifiedFlow().clean(z, v, t)
            return along_rows(t, z) * _through(self.feature, force, x0, samples)

        return _repelled(velocity, samples, push, self.weight, self.interval, self.largest)


# Least squared distance that a kernel's width is taken from: identical samples have none.
_TINY = 1e-12


def _repelled(
    velocity: Velocity,
    samples: int,
    push: Callable[[Array, Array, Array], Array],
    weight: float,
    interval: tuple[float, float],
    largest: float,
) -> Velocity:
    """v - w / (1 - t) push, bounded; ``push`` is t g, because the score in it is finite times t."""
    if samples == 1:
        return velocity
    lo, hi = interval

    def bounded(z: Array, v: Array, t: Array) -> Array:
        extra = push(z, v, t)
        most = largest * _norm(v) / jnp.maximum(_norm(extra), 1e-30)
        # t = 1 is a point of the solver's grid; the bound decides there, but not on 0 * inf.
        factor = jnp.minimum(weight / jnp.maximum(1 - t, 1e-6), most)
        return v - along_rows(factor, v) * extra

    def repelled(z: Array, t: Array) -> Array:
        if z.shape[0] % samples:
            raise ValueError(f"{z.shape[0]} rows are no groups of {samples} samples")
        v = velocity(z, t)
        inside = (t >= lo) & (t <= hi)
        # A feature network costs as much as a step; outside the interval it is not run.
        changed = jax.lax.cond(inside.any(), lambda: bounded(z, v, t), lambda: v)
        return jnp.where(inside.reshape(-1, *(1,) * (v.ndim - 1)), changed, v)

    return repelled


def _through(
    feature: Feature | None,
    force: Callable[[Array], Array],
    x0: Float[Array, "B *x"],
    samples: int,
) -> Float[Array, "B *x"]:
    """Pull a force on groups of features, "P K F" -> "P K F", back to the estimates."""

    def flat(x: Array) -> Array:
        return x.reshape(x.shape[0], -1)

    f, back = jax.vjp(flat if feature is None else feature, x0)
    return back(force(f.reshape(-1, samples, f.shape[-1])).reshape(f.shape))[0]


def _kernel(f: Float[Array, "P K F"]) -> tuple[Float[Array, "P K K"], Float[Array, "P K 1"]]:
    """exp(-|f_i - f_j|^2 / h_i) and h_i = median_{j != i} |f_i - f_j|^2 / log K."""
    squares = _squares(f)
    # The sample itself is among the nearest: sorted, it is the first of its row.
    others = jnp.sort(jnp.sqrt(squares), axis=-1)[..., 1:]
    median = jnp.median(others, axis=-1, keepdims=True)
    bandwidth = jnp.maximum(median**2, _TINY) / jnp.log(f.shape[1])
    return jnp.exp(-squares / bandwidth), bandwidth


# Both sums take the differences themselves, because x0_hat differ little while t is large and
# |a|^2 + |b|^2 - 2 a b would lose that. Compiled, "P K K F" is folded into the sum.


def _squares(f: Float[Array, "P K F"]) -> Float[Array, "P K K"]:
    """|f_i - f_j|^2."""
    return jnp.sum((f[:, :, None] - f[:, None]) ** 2, axis=-1)


def _apart(weight: Float[Array, "P K K"], f: Float[Array, "P K F"]) -> Float[Array, "P K F"]:
    """sum_j weight_ij (f_i - f_j)."""
    return jnp.sum(weight[..., None] * (f[:, :, None] - f[:, None]), axis=2)


def _norm(x: Float[Array, "B *x"]) -> Float[Array, " B"]:
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim))))


def _check(weight: float, largest: float) -> None:
    if weight < 0:
        raise ValueError(f"the weight of a repulsion must be at least 0, not {weight}")
    if largest < 0:
        raise ValueError(f"largest, a share of the velocity, must be at least 0, not {largest}")
