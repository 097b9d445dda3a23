"""The clean image a model in training would make: what diversity and alignment are measured on.

One step is cheap and blurred; a rollout is what the sampler really draws and costs its steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cosdiff_jax.flow.guidance import ClassifierFree, Guidance
from cosdiff_jax.flow.solver import Euler, Solver, Velocity
from cosdiff_jax.flow.trajectory import Trajectory


@runtime_checkable
class Prediction(Protocol):
    """A way to x0_hat."""

    @property
    def shared_time(self) -> bool:
        """Whether the K samples of a prompt must be noised to one and the same t."""
        ...

    @property
    def drops(self) -> bool:
        """Whether the estimate is the training pass's own, in which some captions are dropped.

        The rows of those prompts then say nothing about the caption.
        """
        ...

    def __call__(
        self,
        *,
        trajectory: Trajectory,
        guided: Callable[[Guidance], Velocity],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        v: Float[Array, "B *x"],
        noise: Float[Array, "B *x"],
    ) -> tuple[Float[Array, "B *x"], Bool[Array, " B"]]:
        """(x0_hat, whether each row counts).

        Args:
          trajectory: the path the model is trained on.
          guided: the captions' velocity field under a guidance.
          z_t: the noised rows of the training pass.
          t: their times.
          v: the model's velocity there.
          noise: fresh standard noise to start from.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """x0_hat = z_t - t v, from the training pass itself: nothing extra is computed.

    Attributes:
      window: only rows with lo <= t <= hi count. Low t tells little: there x0_hat is the training
        picture whatever the model does.
      shared_time: one t for the K samples of a prompt. An estimate is blurred at high t and sharp
        at low t; samples at different times differ for a reason that is not diversity.
    """

    window: tuple[float, float] = (0.0, 1.0)
    shared_time: bool = True
    drops: bool = field(default=True, init=False)

    def __post_init__(self):
        lo, hi = self.window
        if not 0 <= lo < hi <= 1:
            raise ValueError(
                "objective.flow_matching.prediction.one_step.window must satisfy 0 <= lo < hi <= "
                f"1, not ({lo}, {hi})"
            )

    def __call__(
        self,
        *,
        trajectory: Trajectory,
        guided: Callable[[Guidance], Velocity],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        v: Float[Array, "B *x"],
        noise: Float[Array, "B *x"],
    ) -> tuple[Float[Array, "B *x"], Bool[Array, " B"]]:
        """The one-step estimate, and whether each row's time lies in the window."""
        del guided, noise
        lo, hi = self.window
        return trajectory.clean(z_t, v, t), (t >= lo) & (t <= hi)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Solve the flow from pure noise, with the gradient through the last steps only.

    With Euler steps z_{i+1} = z_i + dt_i v(z_i), the gradient of a loss L in the weights is

        sum_i dt_i (dv / dweights at z_i)^T g_{i+1},    g_i = (1 + dt_i dv / dz_i)^T g_{i+1},

    g = dL / dz. The products of Jacobians in g grow beyond all bounds where the rollout is chaotic,
    and a few such rows then decide the direction of a whole batch's gradient. ``detached`` leaves
    dv / dz out: every g_i is dL / dx0_hat, and a step answers for what it adds to the picture
    itself, not for what later steps make of it (Wu et al. 2024, DRTune, arXiv 2405.00760).

    Attributes:
      steps: steps from t = 1 to t = 0.
      gradient_steps: m, how many of them, counted from the end, the gradient passes through;
        memory grows with m.
      detached: whether no gradient passes through what the network is shown.
      guidance: how captions steer the rollout; ``scale=1`` halves the cost.
      solver: the rule of a step.
    """

    steps: int = 6
    gradient_steps: int = 2
    detached: bool = False
    guidance: Guidance = field(default_factory=ClassifierFree)
    solver: Solver = field(default_factory=Euler)
    shared_time: bool = field(default=False, init=False)
    drops: bool = field(default=False, init=False)

    def __post_init__(self):
        if not 1 <= self.gradient_steps <= self.steps:
            raise ValueError(
                f"gradient_steps must lie in 1..steps ({self.steps}), not {self.gradient_steps}"
            )

    def __call__(
        self,
        *,
        trajectory: Trajectory,
        guided: Callable[[Guidance], Velocity],
        z_t: Float[Array, "B *x"],
        t: Float[Array, " B"],
        v: Float[Array, "B *x"],
        noise: Float[Array, "B *x"],
    ) -> tuple[Float[Array, "B *x"], Bool[Array, " B"]]:
        """The solution from ``noise``; every row counts."""
        del trajectory, z_t, v
        velocity = guided(self.guidance)
        free = self.steps - self.gradient_steps
        z = jax.lax.stop_gradient(self.solver(velocity, noise, self.steps, last=free))

        def seen(z: Float[Array, "B *x"], t: Float[Array, " B"]) -> Float[Array, "B *x"]:
            return velocity(jax.lax.stop_gradient(z) if self.detached else z, t)

        # Each step is recomputed on the way back: m steps' activations would not fit beside
        # those of the training pass.
        x0_hat = self.solver(jax.checkpoint(seen), z, self.steps, first=free)
        return x0_hat, jnp.ones(t.shape, bool)
