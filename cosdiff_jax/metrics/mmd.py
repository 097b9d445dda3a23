"""How far apart are two sets of pictures, without taking them for Gaussians?

The squared maximum mean discrepancy under a kernel k(x, y) of feature vectors,

    biased    mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)
    unbiased  the same, the first two means over i != j only

(Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html, eq. 5 and 3). The biased one is
never negative, and above 0 for two draws of one distribution; the unbiased one is 0 on average and
may be negative. No pair is kept: kernels are formed block by block and summed.

The defaults are those of CMMD (Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603, section 4:
Gaussian kernel, sigma = 10, times 1,000, biased), whose features are the unit vectors of CLIP
ViT-L/14 at 336 pixels; over any other feature it is another number.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Features = Float[Array, "n F"] | Float[np.ndarray, "n F"]
Others = Float[Array, "m F"] | Float[np.ndarray, "m F"]


@runtime_checkable
class Kernel(Protocol):
    """How alike vectors are; must be hashable."""

    def __call__(self, x: Float[Array, "n F"], y: Float[Array, "m F"]) -> Float[Array, "n m"]:
        """k(x_i, y_j), up to a constant, which no discrepancy sees."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """k(x, y) = exp(-|x - y|^2 / (2 sigma^2)) - 1.

    Attributes:
      sigma: the width, in the unit of the features.
    """

    sigma: float = 10.0

    def __call__(self, x: Float[Array, "n F"], y: Float[Array, "m F"]) -> Float[Array, "n m"]:
        """One less than the kernel: a wide one is 1 nearly everywhere, where float32 is coarse."""
        squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
        apart = jnp.maximum(squares - 2.0 * _products(x, y), 0.0)
        return jnp.expm1(-apart / (2.0 * self.sigma**2))


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """k(x, y) = (x . y / F + 1)^degree, whose unbiased discrepancy of all pictures is KID's.

    Source: Binkowski et al. 2018, https://arxiv.org/abs/1801.01401, section 3.1, where Inception's
    features are meant and the mean over random subsets is reported.

    Attributes:
      degree: the power.
    """

    degree: int = 3

    def __call__(self, x: Float[Array, "n F"], y: Float[Array, "m F"]) -> Float[Array, "n m"]:
        """The kernel itself."""
        return (_products(x, y) / x.shape[1] + 1.0) ** self.degree


class Sets(NamedTuple):
    """State: the vectors of both sets so far, in the parts they came in."""

    made: tuple[np.ndarray, ...]
    real: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class Discrepancy:
    """The squared maximum mean discrepancy of made and real pictures.

    Attributes:
      kernel: how alike two vectors are.
      scale: what results are multiplied by, to be read easily.
      block: rows formed at once; memory grows with its square.
    """

    kernel: Kernel = field(default_factory=Gaussian)
    scale: float = 1000.0
    block: int = 1024

    def init(self) -> Sets:
        """Nothing seen yet."""
        return Sets((), ())

    def update(self, state: Sets, made: Features, real: Others) -> Sets:
        """Add vectors of both sets; either may be empty, [0, F]."""
        made, real = np.asarray(made, np.float32), np.asarray(real, np.float32)
        return Sets((*state.made, made), (*state.real, real))

    def merge(self, a: Sets, b: Sets) -> Sets:
        """The state of both together."""
        return Sets(a.made + b.made, a.real + b.real)

    def result(self, state: Sets) -> dict[str, float]:
        """``mmd`` and ``mmd_unbiased``, times ``scale``; NaN with fewer than 2 vectors of a set."""
        x, y = (np.concatenate(part) if part else np.zeros((0, 1)) for part in state)
        n, m = len(x), len(y)
        if min(n, m) < 2:
            return dict.fromkeys(("mmd", "mmd_unbiased"), float("nan"))
        (xx, x_self), (yy, y_self) = self._within(x), self._within(y)
        across = math.fsum(
            self._sum(a, b) for a, _ in self._blocks(x) for b, _ in self._blocks(y)
        ) / (n * m)
        biased = (xx + x_self) / n**2 + (yy + y_self) / m**2 - 2.0 * across
        unbiased = xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2.0 * across
        return {"mmd": self.scale * biased, "mmd_unbiased": self.scale * unbiased}

    def _blocks(self, x: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        for start in range(0, len(x), self.block):
            yield x[start : start + self.block], start

    def _sum(self, x: np.ndarray, y: np.ndarray) -> float:
        # Rows are summed on the device and added up here, where sums are float64.
        return float(np.asarray(_rows(x, y, kernel=self.kernel), np.float64).sum())

    def _within(self, x: np.ndarray) -> tuple[float, float]:
        """Sums of k(x_i, x_j) over i != j, and over i = j; k is symmetric, so half is formed."""
        apart, own = [], []
        for a, i in self._blocks(x):
            off, diagonal = _square(a, kernel=self.kernel)
            apart.append(float(np.asarray(off, np.float64).sum()))
            own.append(float(np.asarray(diagonal, np.float64).sum()))
            apart += [2.0 * self._sum(a, b) for b, j in self._blocks(x) if j > i]
        return math.fsum(apart), math.fsum(own)


def _products(x: jax.Array, y: jax.Array) -> jax.Array:
    # An accelerator's default of 8 or 10 bits would drown what is measured here.
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="kernel")
def _rows(x: jax.Array, y: jax.Array, *, kernel: Kernel) -> jax.Array:
    return jnp.sum(kernel(x, y), axis=1)


@partial(jax.jit, static_argnames="kernel")
def _square(x: jax.Array, *, kernel: Kernel) -> tuple[jax.Array, jax.Array]:
    k = kernel(x, x)
    own = jnp.diagonal(k)
    return jnp.sum(k * (1.0 - jnp.eye(len(x))), axis=1), own
