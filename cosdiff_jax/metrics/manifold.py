"""Do made pictures lie where real ones do, and do they reach everywhere real ones are?

A set's manifold is the union of balls about its vectors, each reaching to the vector's k-th nearest
neighbour within the set. With x real (n of them), y made (m of them), r and s their radii:

    precision  share of y_j inside some real ball    any_i |x_i - y_j| <= r_i
    recall     share of x_i inside some made ball    any_j |x_i - y_j| <= s_j
    density    sum_ij [|x_i - y_j| <= r_i] / (k m)   not bounded by 1
    coverage   share of real balls that a y_j is in  min_j |x_i - y_j| <= r_i

Sources: Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991, eq. 1 and 2 (k = 3), for the
first two; Naeem et al. 2020, https://arxiv.org/abs/2002.09797, eq. 3 and 4 (k = 5), for the others.
The package ``prdc`` gives the same four, with < for <=, which only distances that are equal to the
last bit tell apart; ``torch_fidelity`` calls the *made* set features_1, so handed the two sets in
the order real, made it shows our precision as its recall. No pair is kept.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Features = Float[Array, "n F"] | Float[np.ndarray, "n F"]
Others = Float[Array, "m F"] | Float[np.ndarray, "m F"]

NAMES = ("precision", "recall", "density", "coverage")


class Sets(NamedTuple):
    """State: the vectors of both sets so far, in the parts they came in."""

    made: tuple[np.ndarray, ...]
    real: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """Precision, recall, density and coverage.

    Attributes:
      neighbours: k, how far a ball reaches.
      block: rows formed at once; memory grows with its square.
    """

    neighbours: int = 3
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
        """NAMES; NaN of nothing.

        Raises:
          ValueError: a set with no more vectors than neighbours.
        """
        if not state.made or not state.real:
            return dict.fromkeys(NAMES, float("nan"))
        made, real = (np.concatenate(part) for part in state)
        # Distances do not change, but float32 keeps more of them near the origin.
        centre = real.mean(axis=0, dtype=np.float64).astype(np.float32)
        made, real = made - centre, real - centre
        r, s = self.radii(real), self.radii(made)
        inside, _ = self._meet(made, real, r)
        reached, nearest = self._meet(real, made, s)
        return {
            "precision": float(np.mean(inside > 0)),
            "recall": float(np.mean(reached > 0)),
            "density": float(np.mean(inside) / self.neighbours),
            "coverage": float(np.mean(nearest <= r)),
        }

    def radii(self, f: Features) -> Float[np.ndarray, " n"]:
        """Squared distance of each vector to its k-th nearest neighbour, itself not counted.

        Raises:
          ValueError: no more vectors than neighbours.
        """
        if len(f) <= self.neighbours:
            raise ValueError(
                f"manifold.neighbours is {self.neighbours}: it needs more feature vectors than "
                f"that in each set, got {len(f)}"
            )
        blocks, index = self._blocks(np.asarray(f, np.float32))
        near = [
            _nearest(x, i, blocks, index, k=self.neighbours)
            for x, i in zip(blocks, index, strict=True)
        ]
        return np.concatenate([np.asarray(a) for a in near])[: len(f)]

    def _meet(
        self, x: np.ndarray, centres: np.ndarray, radii: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many balls each x is in, and its squared distance to the nearest centre."""
        blocks, index = self._blocks(centres)
        reach = np.full(index.shape, -1.0, np.float32)
        reach.reshape(-1)[: len(radii)] = radii
        rows, _ = self._blocks(x)
        met = [_balls(part, blocks, index, reach) for part in rows]
        count = np.concatenate([np.asarray(number) for number, _ in met])
        nearest = np.concatenate([np.asarray(apart) for _, apart in met])
        return count[: len(x)], nearest[: len(x)]

    def _blocks(self, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[A b F] with zeros at the end, and each row's number [A b], -1 for those."""
        size = min(self.block, len(f))
        number = -(-len(f) // size)
        rows = np.zeros((number * size, f.shape[1]), np.float32)
        rows[: len(f)] = f
        index = np.full(number * size, -1)
        index[: len(f)] = np.arange(len(f))
        return rows.reshape(number, size, -1), index.reshape(number, size)


def _apart(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared distances [n m]."""
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
    products = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(squares - 2.0 * products, 0.0)


@partial(jax.jit, static_argnames="k")
def _nearest(
    x: jax.Array, own: jax.Array, blocks: jax.Array, index: jax.Array, *, k: int
) -> jax.Array:
    """The k-th smallest squared distance of each row to all others."""

    def visit(best: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        y, i = block
        skip = (i < 0)[None, :] | (own[:, None] == i[None, :])
        near = jnp.concatenate([best, jnp.where(skip, jnp.inf, _apart(x, y))], axis=1)
        return -jax.lax.top_k(-near, k)[0], None

    best, _ = jax.lax.scan(visit, jnp.full((len(x), k), jnp.inf), (blocks, index))
    return best[:, -1]


@jax.jit
def _balls(
    x: jax.Array, blocks: jax.Array, index: jax.Array, reach: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How many balls each row is in, and its squared distance to the nearest centre."""

    def visit(
        found: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        y, i, radius = block
        apart = jnp.where((i < 0)[None, :], jnp.inf, _apart(x, y))
        count, nearest = found
        count = count + jnp.sum(apart <= radius[None, :], axis=1)
        return (count, jnp.minimum(nearest, jnp.min(apart, axis=1))), None

    start = (jnp.zeros(len(x), jnp.int32), jnp.full(len(x), jnp.inf))
    found, _ = jax.lax.scan(visit, start, (blocks, index, reach))
    return found
