"""Time grids: where a solver's steps begin and end.

A grid of n steps is n + 1 times that fall from exactly 1 (noise) to exactly 0 (data). They are
plain numbers on the host, in float64: a solver rounds them once, and t = 0 is hit exactly.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cosdiff_jax.flow.timestep import check_shift, has_its_clock, moved, shift
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory


@runtime_checkable
class Grid(Protocol):
    """A way to spread steps over time."""

    def __call__(self, steps: int) -> Float[np.ndarray, " points"]:
        """``steps`` + 1 times from 1 to 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """t_i = 1 - i / steps."""

    def __call__(self, steps: int) -> Float[np.ndarray, " points"]:
        """``steps`` + 1 times from 1 to 0."""
        return 1 - np.arange(steps + 1) / steps


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """Steps closer together at the noisy end, for larger pictures.

        t_i = alpha u_i / (1 + (alpha - 1) u_i),   u_i = 1 - i / steps

    (Esser et al. 2024, eq. 23, with alpha = sqrt(m / n) for m pixels instead of n.)

    Attributes:
      alpha: above 1 favours noise, 1 is the uniform grid; SD3 takes 3.
      double: the grid that SD3's own code and the usual implementations make. They cut u at the
        shifted 1/1000, go down to it in steps - 1 equal steps and shift the result once more; the
        last step goes from there to 0. With alpha = 1 that is not quite the uniform grid.
      trajectory: the path whose log-SNR is lower by 2 ln(alpha) than on the uniform grid; the
        formula is that of rectified flow and of EDM.
    """

    alpha: float = 3.0
    double: bool = False
    trajectory: Trajectory = field(default_factory=RectifiedFlow)

    def __post_init__(self):
        check_shift("sample.grid.shifted", self.alpha, self.double, self.trajectory)

    def __call__(self, steps: int) -> Float[np.ndarray, " points"]:
        """``steps`` + 1 times from 1 to 0."""
        u = Uniform()(steps)
        if self.double:
            u = np.append(np.linspace(1, shift(np.float64(1e-3), self.alpha), steps), 0.0)
        if has_its_clock(self.trajectory):
            return shift(u, self.alpha)
        # A grid is a constant of the program that is being traced.
        with jax.ensure_compile_time_eval():
            inner = moved(self.trajectory, jnp.asarray(u[1:-1], float), self.alpha)
        return np.concatenate([[1.0], np.asarray(inner, np.float64), [0.0]])


@dataclass(frozen=True, kw_only=True)
class Karras:
    """Equal steps of sigma^(1 / rho), sigma = b_t / a_t (Karras et al. 2022, eq. 5).

        sigma_i = (largest^(1/rho) + i / (steps - 1) (smallest^(1/rho) - largest^(1/rho)))^rho

    for i < steps, and then 0. The start is the trajectory's own end t = 1, pure noise, whatever
    its sigma is: ``largest`` only spaces the steps after it.

    Attributes:
      rho: higher puts more steps at low noise.
      smallest: sigma before the last step.
      largest: sigma that the first step is reckoned from.
      trajectory: says which t has which sigma.
    """

    rho: float = 7.0
    smallest: float = 0.002
    largest: float = 80.0
    trajectory: Trajectory = field(default_factory=RectifiedFlow)

    def __post_init__(self):
        if not self.rho > 0:
            raise ValueError(f"grid.karras.rho must be above 0, not {self.rho}")
        if not 0 < self.smallest < self.largest:
            raise ValueError(
                "grid.karras must satisfy 0 < smallest < largest, not "
                f"{self.smallest} and {self.largest}"
            )

    def __call__(self, steps: int) -> Float[np.ndarray, " points"]:
        """``steps`` + 1 times from 1 to 0.

        Raises:
          ValueError: sigmas beyond what the trajectory has before t = 1.
        """
        ramp = np.arange(1, steps) / max(steps - 1, 1)
        high, low = self.largest ** (1 / self.rho), self.smallest ** (1 / self.rho)
        log_snr = -2 * self.rho * np.log(high + ramp * (low - high))
        # A grid is a constant of the program that is being traced.
        with jax.ensure_compile_time_eval():
            inner = np.asarray(self.trajectory.time(jnp.asarray(log_snr, float)), np.float64)
        if steps > 1 and inner[0] >= 1:
            raise ValueError(
                f"grid.karras.largest={self.largest} lies beyond the end of the trajectory"
            )
        return np.concatenate([[1.0], inner, [0.0]])


@dataclass(frozen=True, kw_only=True)
class Given:
    """The times themselves.

    Attributes:
      times: from 1 to 0, falling; a solver must be asked for one step fewer than there are times.
    """

    times: tuple[float, ...] = (1.0, 0.0)

    def __post_init__(self):
        checked(np.asarray(self.times, np.float64), len(self.times) - 1)

    def __call__(self, steps: int) -> Float[np.ndarray, " points"]:
        """The times.

        Raises:
          ValueError: another number of steps than these times make.
        """
        if steps != len(self.times) - 1:
            raise ValueError(f"grid.given.times make {len(self.times) - 1} steps, not {steps}")
        return np.asarray(self.times, np.float64)


@dataclass(frozen=True, kw_only=True)
class Reversed:
    """t_i of another grid as seen from data to noise: 1 - t_{steps - i}."""

    grid: Grid

    def __call__(self, steps: int) -> Float[np.ndarray, " points"]:
        """``steps`` + 1 times from 1 to 0."""
        return 1 - self.grid(steps)[::-1]


def checked(times: np.ndarray, steps: int) -> np.ndarray:
    """The times of ``steps`` steps as they are.

    Raises:
      ValueError: they are of another number or do not fall from 1 to 0.
    """
    falls = times.shape == (steps + 1,) and bool(np.all(np.diff(times) < 0))
    if steps < 1 or not (falls and times[0] == 1 and times[-1] == 0):
        raise ValueError(f"the times of a grid must fall from 1 to 0, not {times.tolist()}")
    return times
