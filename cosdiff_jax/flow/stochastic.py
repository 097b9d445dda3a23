"""Solvers that add noise on the way: each step draws from a Gaussian around a mean.

For every one of them the marginal law of z at each t is that of the flow, in the limit of small
steps. Noise belongs to a row, the row's key and the number of the step: a row draws the same
whatever other rows stand beside it, and a walk in two stretches is the whole walk.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cosdiff_jax.flow.grid import Grid, Uniform
from cosdiff_jax.flow.solver import Between, Step, Velocity, rows, walk
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory


@dataclass(frozen=True, kw_only=True)
class Ddim:
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16) on any trajectory.

        z_{i+1} = a' x0 + sqrt(b'^2 - s^2) eps + s n,   n ~ N(0, I)
        s       = eta b' / b sqrt(b^2 - (a / a')^2 b'^2)

    with a, b at t_i and a', b' at t_{i+1}. eta = 0 is deterministic, needs no key and is exact for
    x0 and eps that do not change in a step; on rectified flow it is Euler. eta = 1 is ``Ddpm``.

    Attributes:
      eta: share of the posterior's std that is drawn anew, 0 to 1.
      grid: the times t_i.
      trajectory: a and b, and x0 and eps from a velocity.
    """

    eta: float = 0.0
    grid: Grid = field(default_factory=Uniform)
    trajectory: Trajectory = field(default_factory=RectifiedFlow)
    calls: int = field(default=1, init=False)

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"solver.ddim.eta must lie in 0..1, not {self.eta}")

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` to ``last``; arguments as for ``Euler``.

        Args:
          velocity: see ``Euler``.
          z: see ``Euler``.
          steps: see ``Euler``.
          first: see ``Euler``.
          last: see ``Euler``.
          between: see ``Euler``.
          key: of the noise; one, or one for each row.

        Raises:
          ValueError: eta above 0 and no key.
        """
        keys = _keys(key, z, "ddim") if self.eta else None
        a, b = self.trajectory.coefficients(jnp.asarray(self.grid(steps), float))
        spread = self.eta * _posterior_std(a, b)
        return _ancestral(self, velocity, z, steps, first, last, between, keys, (spread, spread))


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """DDPM's ancestral sampling (Ho et al. 2020, eq. 7 and section 3.2) on any trajectory.

        z_{i+1} = a' x0 + sqrt(b'^2 - s^2) eps + r n,   n ~ N(0, I)
        s       = b' / b w,   w = sqrt(b^2 - (a / a')^2 b'^2)

    The mean is that of q(z_{i+1} | z_i, x0). r = s is its own std (right for data without spread),
    r = w the std of the forward step (right for data that are N(0, I)). The step that ends at
    t = 0 adds no noise.

    Attributes:
      large: r = w instead of r = s.
      grid: the times t_i.
      trajectory: a and b, and x0 and eps from a velocity.
    """

    large: bool = False
    grid: Grid = field(default_factory=Uniform)
    trajectory: Trajectory = field(default_factory=RectifiedFlow)
    calls: int = field(default=1, init=False)

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` to ``last``; arguments as for ``Ddim``.

        Raises:
          ValueError: no key.
        """
        keys = _keys(key, z, "ddpm")
        a, b = self.trajectory.coefficients(jnp.asarray(self.grid(steps), float))
        small = _posterior_std(a, b)
        wide = jnp.where(b[1:] > 0, _forward_std(a, b), 0.0) if self.large else small
        return _ancestral(self, velocity, z, steps, first, last, between, keys, (small, wide))


class Path(NamedTuple):
    """What a stochastic walk went through, for policy gradients.

    Attributes:
      states: z at every grid point, the first one included.
      log_probs: of each step, a mean over the values of a row.
    """

    states: Float[Array, "points B *x"]
    log_probs: Float[Array, "steps B"]


@dataclass(frozen=True, kw_only=True)
class FlowSde:
    """The reverse SDE of a flow by Euler and Maruyama, as Flow-GRPO has it (arXiv 2505.05470).

        mean    = z_i - h (v + g^2 / (2 b_i) eps),   h = t_i - t_{i+1}
        z_{i+1} = mean + g sqrt(h) n,                n ~ N(0, I)
        g       = level sqrt(b_i / a_i)

    On rectified flow, eps = z + (1 - t) v and g = level sqrt(t / (1 - t)), this is the published
    rule. Where a_i = 0, at t = 1, a_{i+1} stands in for it, so that the first step's noise has the
    variance level^2 / |a'_1| however short the step is: with Gaussian data and the default level
    the covariance's error falls at order 0.3 on the cosine path (0.018 after 128 steps, 0.015
    after 256) and 0.4 on EDM's, while from t = 3/4 on, or on the discrete chains, the order is 1.
    The last step adds noise as well, so that every step has a density; the smaller it is, the less
    of it is seen.

    The log-probability of a step is that of a Gaussian, averaged over the values of a row:

        log p = mean over values of -(z_{i+1} - mean)^2 / (2 g^2 h) - ln(g sqrt(h)) - ln(2 pi) / 2

    Attributes:
      level: size of the noise; above 0, or there is no density. The published runs take 0.7.
      grid: the times t_i.
      trajectory: a and b, and eps from a velocity.
    """

    level: float = 0.7
    grid: Grid = field(default_factory=Uniform)
    trajectory: Trajectory = field(default_factory=RectifiedFlow)
    calls: int = field(default=1, init=False)

    def __post_init__(self):
        if not self.level > 0:
            raise ValueError(f"solver.flow_sde.level must be above 0, not {self.level}")

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` to ``last``; arguments as for ``Ddim``.

        Raises:
          ValueError: no key.
        """
        keys, drift = _keys(key, z, "flow_sde"), self._drift(steps)

        def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
            mean, std = drift(v, z, step)
            return mean + std * normal(keys, z, step.index), held

        return walk(rule, velocity, z, self.grid, steps, first, last, between)[0]

    def path(
        self, velocity: Velocity, z: Float[Array, "B *x"], steps: int, *, key: jax.Array
    ) -> Path:
        """The whole walk from noise to data with every state and log-probability.

        Args:
          velocity: the field.
          z: pure noise.
          steps: of the grid.
          key: of the noise; one, or one for each row.
        """
        keys, drift = _keys(key, z, "flow_sde"), self._drift(steps)

        def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
            mean, std = drift(v, z, step)
            after = (mean + std * normal(keys, z, step.index)).astype(z.dtype)
            states = held.states.at[step.index + 1].set(after)
            log_probs = held.log_probs.at[step.index].set(_log_normal(after, mean, std))
            return after, Path(states, log_probs)

        states = jnp.zeros((steps + 1, *z.shape), z.dtype).at[0].set(z)
        held = Path(states, jnp.zeros((steps, z.shape[0]), jnp.promote_types(z.dtype, jnp.float32)))
        return walk(rule, velocity, z, self.grid, steps, held=held)[1]

    def log_prob(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        after: Float[Array, "B *x"],
        steps: int,
        index: int | Int[Array, ""],
    ) -> Float[Array, " B"]:
        """log p of the step ``index`` from ``z`` to ``after``, for another velocity perhaps.

        Args:
          velocity: the field whose step it would be; gradients flow through it.
          z: the state at grid point ``index``.
          after: the state at grid point ``index`` + 1.
          steps: of the grid.
          index: which step.
        """
        times = jnp.asarray(self.grid(steps), float)
        here, ahead = times[index], times[index + 1]
        step = Step(index=jnp.asarray(index), t=here, ahead=ahead, length=here - ahead)
        return _log_normal(after, *self._drift(steps)(velocity, z, step))

    def _drift(self, steps: int):
        """(velocity, z, step) -> (mean, std)."""
        a, b = self.trajectory.coefficients(jnp.asarray(self.grid(steps), float))
        spread = self.level**2 * b[:-1] / jnp.where(a[:-1] > 0, a[:-1], a[1:])

        def drift(velocity: Velocity, z: Array, step: Step) -> tuple[Array, Array]:
            t = rows(z, step.t)
            v = velocity(z, t)
            eps = self.trajectory.noise(z, v, t)
            variance = spread[step.index]
            mean = z - step.length * (v + 0.5 * variance / b[step.index] * eps)
            return mean, jnp.sqrt(variance * step.length)

        return drift


@dataclass(frozen=True, kw_only=True)
class Edm:
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2) on any trajectory.

    In its own variables x = z / a and sigma = b / a, a step first raises the noise level and then
    solves dx/dsigma = eps from there by Heun's rule, which Euler alone replaces where sigma is
    infinite or the step ends at 0:

        sigma^ = (1 + gamma) sigma,   x^ = x + sqrt(sigma^^2 - sigma^2) inflation n
        x'     = x^ + (sigma' - sigma^) eps(x^, sigma^)
        x''    = x^ + (sigma' - sigma^) (eps(x^, sigma^) + eps(x', sigma')) / 2

    gamma = min(churn / steps, sqrt(2) - 1) for smallest <= sigma <= largest, else 0. Without churn
    it needs no key and is the deterministic sampler, algorithm 1.

    Attributes:
      churn: noise added over the whole way; 0 is none.
      smallest: sigma below which none is added.
      largest: sigma above which none is added.
      inflation: of the noise's std; just above 1 makes up for networks that remove too much.
      corrected: Heun's rule; without it Euler, one evaluation a step instead of two.
      grid: the times t_i; the published one is ``grid.Karras``.
      trajectory: a and b, the t of a sigma, and x0 and eps from a velocity.
    """

    churn: float = 0.0
    smallest: float = 0.05
    largest: float = 50.0
    inflation: float = 1.003
    corrected: bool = True
    grid: Grid = field(default_factory=Uniform)
    trajectory: Trajectory = field(default_factory=RectifiedFlow)

    def __post_init__(self):
        for name in ("churn", "inflation"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"solver.edm.{name} must be at least 0, not {value}")
        if not self.smallest <= self.largest:
            raise ValueError(
                "solver.edm must satisfy smallest <= largest, not "
                f"{self.smallest} and {self.largest}"
            )

    @property
    def calls(self) -> int:
        """Velocity evaluations of a step; those of steps that Euler takes alone are not used."""
        return 2 if self.corrected else 1

    def asked(self, steps: int) -> Float[np.ndarray, " points"]:
        """Where each step asks first, once the noise is raised, and the end of the last one."""
        with jax.ensure_compile_time_eval():
            return np.append(np.asarray(self._raised(steps)[3], np.float64), 0.0)

    def _raised(self, steps: int) -> tuple[Array, Array, Array, Array]:
        """(a, b) of the grid, and of each step sigma and the t of sigma^."""
        path, times = self.trajectory, jnp.asarray(self.grid(steps), float)
        a, b = path.coefficients(times)
        level = b[:-1] / jnp.where(a[:-1] > 0, a[:-1], 1.0)
        raised = (a[:-1] > 0) & (level >= self.smallest) & (level <= self.largest)
        gamma = min(self.churn / steps, math.sqrt(2) - 1)
        t_hat = path.time(-2 * jnp.log((1 + gamma) * level))
        return a, b, level, jnp.where(raised & (gamma > 0), t_hat, times[:-1])

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` to ``last``; arguments as for ``Ddim``.

        Raises:
          ValueError: churn and no key.
        """
        keys = _keys(key, z, "edm") if self.churn else None
        path = self.trajectory
        a, b, level, t_hat = self._raised(steps)
        a_hat, b_hat = path.coefficients(t_hat)
        finite = a_hat > 0
        level_hat = b_hat / jnp.where(finite, a_hat, 1.0)
        added = a_hat * self.inflation * jnp.sqrt(jnp.maximum(level_hat**2 - level**2, 0.0))
        kept = a_hat / jnp.where(finite, a[:-1], 1.0)
        half = 0.5 * (b[1:] - a[1:] * level_hat) * (finite & (b[1:] > 0))

        def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
            i, t = step.index, rows(z, t_hat[step.index])
            if keys is not None:
                churned = kept[i] * z + added[i] * normal(keys, z, i)
                z = jnp.where(t_hat[i] > step.t, churned, z).astype(z.dtype)
            here = v(z, t)
            eps = path.noise(z, here, t)
            after = a[i + 1] * path.clean(z, here, t) + b[i + 1] * eps
            if self.corrected:
                ahead = rows(z, step.ahead)
                eps_ahead = path.noise(after, v(after, ahead), ahead)
                after = after + half[i] * (eps_ahead - eps)
            return after, held

        return walk(rule, velocity, z, self.grid, steps, first, last, between)[0]


def normal(keys: jax.Array, z: Float[Array, "B *x"], index: Int[Array, ""]) -> Float[Array, "B *x"]:
    """Standard noise of step ``index``, every row from its own key."""

    def one(key: jax.Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, index), z.shape[1:], z.dtype)

    return jax.vmap(one)(keys)


def _keys(key: jax.Array | None, z: Array, name: str) -> jax.Array:
    if key is None:
        raise ValueError(f"solver.{name} draws noise and was given no key")
    if key.ndim:
        return key
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(z.shape[0]))


def _forward_std(a: Array, b: Array) -> Array:
    """Std of q(z_{t_i} | z_{t_{i+1}}), for each step."""
    back = a[:-1] / a[1:] * b[1:]
    return jnp.sqrt(jnp.maximum(b[:-1] ** 2 - back**2, 0.0))


def _posterior_std(a: Array, b: Array) -> Array:
    """Std of q(z_{t_{i+1}} | z_{t_i}, x0), for each step; 0 where it ends at data."""
    return b[1:] / b[:-1] * _forward_std(a, b)


def _ancestral(
    solver: Ddim | Ddpm,
    velocity: Velocity,
    z: Array,
    steps: int,
    first: int,
    last: int | None,
    between: Between | None,
    keys: jax.Array | None,
    spread: tuple[Array, Array],
) -> Array:
    """a' x0 + sqrt(b'^2 - taken^2) eps + given n, with (taken, given) = ``spread``."""
    path, (taken, given) = solver.trajectory, spread
    a, b = path.coefficients(jnp.asarray(solver.grid(steps), float))
    pointing = jnp.sqrt(jnp.maximum(b[1:] ** 2 - taken**2, 0.0))

    def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
        i, t = step.index, rows(z, step.t)
        here = v(z, t)
        after = a[i + 1] * path.clean(z, here, t) + pointing[i] * path.noise(z, here, t)
        if keys is not None:
            after = after + given[i] * normal(keys, z, i)
        return after, held

    return walk(rule, velocity, z, solver.grid, steps, first, last, between)[0]


def _log_normal(x: Array, mean: Array, std: Array) -> Float[Array, " B"]:
    each = -((x - mean) ** 2) / (2 * std**2) - jnp.log(std) - 0.5 * math.log(2 * math.pi)
    return jnp.mean(each.reshape(x.shape[0], -1), axis=1)
