"""Keep k of M candidates of one prompt, by how alike they are and how good each is.

A selection reads feature vectors f "M F" through their cosines, cos_ij, or the distances

    D_ij = 1 - cos_ij        in [0, 2], D_ii = 0,

and, where it weighs quality, one finite score per candidate, higher being better. k is a Python
number. All of them run under ``jax.jit`` and ``jax.vmap`` over prompts. A zero vector has cosine 0
with every other; among candidates that are equally good the lowest index is kept.

The selection that maximises a sum over all pairs is in ``programme``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.diversity import similarity
from cosdiff_jax.diversity.exact import product

_TIE = 1e-6
# The smallest squared distance from the span of the chosen that float32 can tell from none.
_SPENT = 1e-5


@runtime_checkable
class Selection(Protocol):
    """A way to keep k of M candidates."""

    def __call__(
        self, f: Float[Array, "M F"], score: Float[Array, " M"] | None, k: int
    ) -> Int[Array, " k"]:
        """Indices of the kept candidates, all different, for 1 <= k <= M."""
        ...


@dataclass(frozen=True, kw_only=True)
class MaxMin:
    """Farthest point first: the next is argmax_i min_{j chosen} D_ij (Gonzalez 1985).

    Starts at the highest score or, without scores, at the lowest mean cosine. In the metric
    sqrt(D) the closest kept pair is at least half as far apart as that of the best k.
    """

    def __call__(
        self, f: Float[Array, "M F"], score: Float[Array, " M"] | None, k: int
    ) -> Int[Array, " k"]:
        """Indices in the order they were picked; O(k M F).

        Args:
          f: feature vectors.
          score: only its maximum is read.
          k: how many to keep.

        Raises:
          ValueError: k outside 1 to M.
        """
        enough(f, k)
        u = similarity.unit(f)
        if score is None:
            alike = product("if,f->i", u, jnp.sum(u, axis=0)) - jnp.sum(u**2, axis=1)
            start = first(-alike / len(u))
        else:
            start = jnp.argmax(score)
        return _greedy(u, start, k, jnp.maximum, lambda seen: -seen)


@dataclass(frozen=True, kw_only=True)
class MinSum:
    """The next is argmin_i sum_{j chosen} cos_ij, from the least similar pair on."""

    def __call__(
        self, f: Float[Array, "M F"], score: Float[Array, " M"] | None, k: int
    ) -> Int[Array, " k"]:
        """Indices in the order they were picked; O(M^2 F) for the first pair.

        Args:
          f: feature vectors.
          score: not read.
          k: how many to keep; 1 keeps the first of the least similar pair.

        Raises:
          ValueError: k outside 1 to M.
        """
        enough(f, k)
        u = similarity.unit(f)
        others = jnp.where(jnp.eye(len(u), dtype=bool), jnp.inf, similarity.cosine_matrix(f))
        # From one of the pair the rule itself picks the other.
        return _greedy(u, first(-jnp.min(others, axis=1)), k, jnp.add, lambda seen: -seen)


@dataclass(frozen=True, kw_only=True)
class MaximalMarginalRelevance:
    """argmax_i balance score_i - (1 - balance) max_{j chosen} cos_ij (Carbonell, Goldstein 1998).

    Starts at the highest score.

    Attributes:
      balance: in [0, 1]; 1 keeps the k highest scores, 0 is ``MaxMin``. It weighs a score against
        a cosine, so the scores' scale matters.
    """

    balance: float = 0.5

    def __post_init__(self):
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance must be in [0, 1], not {self.balance}")

    def __call__(
        self, f: Float[Array, "M F"], score: Float[Array, " M"] | None, k: int
    ) -> Int[Array, " k"]:
        """Indices in the order they were picked; O(k M F).

        Args:
          f: feature vectors.
          score: the relevance of each candidate.
          k: how many to keep.

        Raises:
          ValueError: no scores, or k outside 1 to M.
        """
        enough(f, k)
        if score is None:
            raise ValueError("maximal marginal relevance needs a score for each candidate")
        relevance = self.balance * score.astype(jnp.float32)
        return _greedy(
            similarity.unit(f),
            jnp.argmax(score),
            k,
            jnp.maximum,
            lambda seen: relevance - (1.0 - self.balance) * seen,
        )


@dataclass(frozen=True, kw_only=True)
class DeterminantalPointProcess:
    """Greedy argmax of det L_S, L_ij = q_i cos_ij q_j with q_i = exp(quality score_i).

    Taking i multiplies the determinant by q_i^2 d_i^2, d_i being the distance of f_i / |f_i| from
    the span of the chosen. One row of the Cholesky factor of cos per pick keeps d up to date
    (Chen, Zhang and Zhou 2018, arXiv 1709.05135, algorithm 1).

    Attributes:
      quality: log q per unit of score; 0, or no scores, looks at diversity alone.
    """

    quality: float = 1.0

    def __call__(
        self, f: Float[Array, "M F"], score: Float[Array, " M"] | None, k: int
    ) -> Int[Array, " k"]:
        """Indices in the order they were picked; O(k M F + k^2 M).

        Candidates in the span of the chosen (duplicates, zero vectors, all of them once k passes
        the rank of f) have determinant 0: they come after all others, lowest index first.

        Args:
          f: feature vectors.
          score: quality of each candidate.
          k: how many to keep.

        Raises:
          ValueError: k outside 1 to M.
        """
        enough(f, k)
        u = similarity.unit(f)
        # q stays a logarithm and outside the factor, so no score can overflow it.
        log_q = jnp.zeros(len(u)) if score is None else self.quality * score.astype(jnp.float32)

        def pick(n, state):
            chosen, free, rows, d2 = state
            gain = 2.0 * log_q + jnp.log(jnp.maximum(d2, _SPENT))
            best = first(jnp.where(d2 > _SPENT, gain, -jnp.inf), free)
            left = product("if,f->i", u, u[best])
            left = left - product("n,ni->i", rows[:, best], rows)
            row = jnp.where(d2[best] > _SPENT, left * jax.lax.rsqrt(d2[best]), 0.0)
            chosen, free = chosen.at[n].set(best), free.at[best].set(False)
            return chosen, free, rows.at[n].set(row), d2 - row**2

        chosen, free = jnp.zeros(k, jnp.int32), jnp.ones(len(u), bool)
        rows, d2 = jnp.zeros((k, len(u))), jnp.sum(u**2, axis=1)
        return jax.lax.fori_loop(0, k, pick, (chosen, free, rows, d2))[0]


@dataclass(frozen=True, kw_only=True)
class KMedoids:
    """min over k medoids of sum_i min_{j medoid} D_ij: one candidate stands for each cluster.

    The medoids grow greedily (BUILD of Kaufman and Rousseeuw 1990); then every candidate joins
    its nearest medoid and each cluster takes the member with the least distance to the others, in
    turns (Park and Jun 2009), which never raises the sum.

    Attributes:
      iterations: turns.
    """

    iterations: int = 10

    def __call__(
        self, f: Float[Array, "M F"], score: Float[Array, " M"] | None, k: int
    ) -> Int[Array, " k"]:
        """The medoids, ascending; O(M^2 (F + k iterations)).

        Args:
          f: feature vectors.
          score: not read.
          k: how many to keep.

        Raises:
          ValueError: k outside 1 to M.
        """
        enough(f, k)
        distance = distance_matrix(f)
        m, overall = len(distance), jnp.mean(distance, axis=1)

        def least(cost, allowed):
            # Two that stand for each other alone cost the same: take the more central of equals.
            cost = jnp.where(allowed, cost, jnp.inf)
            return first(-overall, allowed & (cost <= jnp.min(cost) + _TIE))

        def grow(n, state):
            medoids, free, near = state
            cost = jnp.mean(jnp.minimum(distance, near[None, :]), axis=1)
            best = least(cost, free)
            medoids, free = medoids.at[n].set(best), free.at[best].set(False)
            return medoids, free, jnp.minimum(near, distance[best])

        def turn(_, medoids):
            # -1 keeps a medoid in its own cluster even beside an identical one: none is empty.
            near = distance[medoids].at[jnp.arange(k), medoids].set(-1.0)
            member = jnp.argmin(near, axis=0)[None, :] == jnp.arange(k)[:, None]
            cost = product("ki,ij->kj", member.astype(jnp.float32), distance)
            cost = cost / jnp.sum(member, axis=1, keepdims=True)
            return jax.vmap(least)(cost, member)

        # No distance exceeds 2, so before the first medoid everything is that far.
        state = jnp.zeros(k, jnp.int32), jnp.ones(m, bool), jnp.full(m, 2.0)
        medoids = jax.lax.fori_loop(0, k, grow, state)[0]
        return jnp.sort(jax.lax.fori_loop(0, self.iterations, turn, medoids))


def distance_matrix(f: Float[Array, "M F"]) -> Float[Array, "M M"]:
    """D_ij = 1 - cos_ij, with a diagonal of exactly 0 for zero vectors too."""
    return jnp.where(jnp.eye(len(f), dtype=bool), 0.0, 1.0 - similarity.cosine_matrix(f))


def first(value: Float[Array, " N"], allowed: Bool[Array, " N"] | None = None) -> Int[Array, ""]:
    """The lowest index, among those allowed, whose value is the greatest or within 1e-6 of it.

    A matrix product may round the cosines of two identical vectors differently; the slack keeps
    them tied.
    """
    allowed = jnp.ones(value.shape, bool) if allowed is None else allowed
    greatest = jnp.max(jnp.where(allowed, value, -jnp.inf))
    return jnp.argmax(allowed & (value >= greatest - _TIE))


def enough(f: Float[Array, "M F"], k: int) -> None:
    """Refuse to keep none, or more than there are.

    Raises:
      ValueError: k outside 1 to M.
    """
    if not 1 <= k <= len(f):
        raise ValueError(f"cannot keep k = {k} of {len(f)} candidates")


def _greedy(
    u: Array,
    start: Array,
    k: int,
    fold: Callable[[Array, Array], Array],
    gain: Callable[[Array], Array],
) -> Array:
    """Grow from ``start`` to k indices; ``seen`` folds the cosines to those chosen so far."""

    def pick(n, state):
        chosen, free, seen = state
        best = first(gain(seen), free)
        chosen, free = chosen.at[n].set(best), free.at[best].set(False)
        return chosen, free, fold(seen, product("if,f->i", u, u[best]))

    chosen = jnp.zeros(k, jnp.int32).at[0].set(start)
    free = jnp.ones(len(u), bool).at[start].set(False)
    return jax.lax.fori_loop(1, k, pick, (chosen, free, product("if,f->i", u, u[start])))[0]
