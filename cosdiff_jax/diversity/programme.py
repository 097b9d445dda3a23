"""Keep k of M by the quadratic integer programme of group inference (arXiv 2508.15773).

    maximise  sum_i u_i x_i + weight sum_{i<j} D_ij x_i x_j    over x in {0, 1}^M, sum_i x_i = k

with u the scores and D the cosine distances. The paper hands it to a commercial solver. Here a
local search from several starts finds a set that no single exchange betters and, for small M,
branch and bound then proves or improves it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cosdiff_jax.diversity.selection import distance_matrix, enough, first


@dataclass(frozen=True, kw_only=True)
class QuadraticProgram:
    """The set with the greatest sum of scores plus ``weight`` times its summed distances.

    Attributes:
      weight: score per unit of distance, the paper's lambda; published: 1.0 and 1.5, with CLIP
        cosines as scores. The pairs grow as k^2, the scores as k.
      restarts: random starts of the local search beside the greedy one.
      exact_below: with fewer candidates than this the optimum is certain; the time for that grows
        like the number of sets.
    """

    weight: float = 1.5
    restarts: int = 32
    exact_below: int = 20

    def __post_init__(self):
        if self.restarts < 0:
            raise ValueError(f"restarts must be 0 or more, not {self.restarts}")

    def __call__(
        self, f: Float[Array, "M F"], score: Float[Array, " M"] | None, k: int
    ) -> Int[Array, " k"]:
        """Indices of the best set found, ascending; O(M^2 F), and k M per start and exchange.

        Sets whose objectives differ by less than float32 can tell, 1e-6 k (max u - min u + weight),
        are equally good; the exact solver keeps the lexicographically first of them.

        Args:
          f: feature vectors.
          score: u; None counts as 0.
          k: how many to keep.

        Raises:
          ValueError: k outside 1 to M.
        """
        enough(f, k)
        m = len(f)
        u = jnp.zeros(m) if score is None else score.astype(jnp.float32)
        # What all have in common decides nothing and would only cost digits. The maximum, unlike a
        # mean, is the same number wherever the compiler computes it again.
        u = u - jnp.max(u)
        w = self.weight * distance_matrix(f)
        slack = 1e-6 * k * (abs(self.weight) - jnp.min(u))
        sets, values = jax.vmap(lambda start: _exchange(u, w, start, slack))(
            _starts(u, w, k, self.restarts)
        )
        # The greedy start comes first, so it wins where nothing is truly better.
        best = jnp.argmax(values >= jnp.max(values) - slack)
        found = jnp.sort(sets[best])
        if m < self.exact_below:
            return _branch_and_bound(u, w, found, values[best], slack)
        return found

    def objective(
        self, f: Float[Array, "M F"], score: Float[Array, " M"] | None, indices: Int[Array, " k"]
    ) -> Float[Array, ""]:
        """What is maximised, for any set of different indices."""
        pairs = 0.5 * self.weight * jnp.sum(distance_matrix(f[indices]))
        return pairs if score is None else pairs + jnp.sum(score[indices].astype(jnp.float32))


def _starts(u: Array, w: Array, k: int, restarts: int) -> Array:
    """The greedy set, then random ones, "R k"."""
    m = len(u)
    # What a candidate brings to a set whose others are drawn at random.
    alone = u + jnp.sum(w, axis=1) * ((k - 1) / max(m - 1, 1))

    def pick(n, state):
        chosen, free, gain = state
        best = first(gain, free)
        return chosen.at[n].set(best), free.at[best].set(False), gain + w[best]

    start = first(alone)
    chosen, free = jnp.zeros(k, jnp.int32).at[0].set(start), jnp.ones(m, bool).at[start].set(False)
    greedy = jax.lax.fori_loop(1, k, pick, (chosen, free, u + w[start]))[0]
    # Drawn by rank, not by index: the order in which candidates arrive does not matter.
    ranks = np.argsort(np.random.default_rng(0).random((restarts, m)), axis=1)[:, :k]
    return jnp.concatenate([greedy[None, :], jax.lax.top_k(alone, m)[1][ranks]])


def _exchange(u: Array, w: Array, start: Array, slack: Array) -> tuple[Array, Array]:
    """Swap a kept candidate for another one, the best pair each time, until no swap gains."""

    def gains(kept):
        return u + jnp.sum(w[kept], axis=0)

    def swap(state):
        kept, _ = state
        gain = gains(kept)
        # b wins its terms with the whole set, less w_ab as a leaves with its own (w_aa is 0).
        loss = gain[kept][:, None] + w[kept]
        change = (gain - jnp.min(loss, axis=0)).at[kept].set(-jnp.inf)
        incoming = jnp.argmax(change)
        better = change[incoming] > slack
        swapped = kept.at[jnp.argmin(loss[:, incoming])].set(incoming)
        return jnp.where(better, swapped, kept), better

    kept, _ = jax.lax.while_loop(lambda state: state[1], swap, (start, True))
    return kept, 0.5 * jnp.sum(gains(kept)[kept] + u[kept])


class _Search(NamedTuple):
    """Depth-first walk over ascending index sets; level d holds the first d picks taken."""

    depth: Array
    pick: Array
    """Candidate under trial at each level, "k"."""
    value: Array
    """Objective of the picks above each level, "k"."""
    gain: Array
    """What each candidate would add to them, "k M"."""
    best: Array
    bar: Array
    """What a set must exceed."""


def _branch_and_bound(u: Array, w: Array, found: Array, value: Array, slack: Array) -> Array:
    """The first set, in lexicographic order, whose value is the optimum or within slack of it.

    After picks S, the last being j, at most r more come from i > j. Their terms are bounded by the
    r greatest of

        u_i + sum_{s in S} w_is + 1/2 (the r - 1 greatest w_il, l > j, l != i)

    because each pair among them is shared by its two ends.

    Args:
      u: scores.
      w: weighted distances, zero on the diagonal.
      found: some set.
      value: its objective.
      slack: differences below it do not count.
    """
    m, k = len(u), len(found)
    index = jnp.arange(m)
    # share[j, r, i]: half of the r greatest w_il with l > j. The diagonal's zeros, and those in
    # place of missing candidates, can only raise the bound.
    later = jnp.where(index[None, :] > index[:, None], 1.0, 0.0)
    ranked = jax.lax.top_k(later[:, None, :] * w[None, :, :], m)[0]
    share = 0.5 * jnp.moveaxis(jnp.cumsum(ranked, axis=-1), -1, 1)
    share = jnp.concatenate([jnp.zeros((m, 1, m)), share], axis=1)

    def visit(s: _Search) -> _Search:
        j, left = s.pick[s.depth], k - 1 - s.depth
        value, gain = s.value[s.depth] + s.gain[s.depth, j], s.gain[s.depth] + w[j]
        room = j + left < m
        most = jnp.where(index > j, gain + share[j, jnp.maximum(left - 1, 0)], -jnp.inf)
        most = jnp.where(index[:k] < left, jax.lax.top_k(most, k)[0], 0.0)
        worth = room & (value + jnp.sum(most) > s.bar)
        complete, deeper = worth & (left == 0), worth & (left > 0)
        # Onward: down a level, along it, or back up when too few candidates are left on it.
        depth = s.depth + deeper - ~room
        pick = s.pick.at[depth].set(jnp.where(deeper, j, s.pick[depth]) + 1)
        return _Search(
            depth=depth,
            pick=pick,
            value=s.value.at[depth].set(jnp.where(deeper, value, s.value[depth])),
            gain=s.gain.at[depth].set(jnp.where(deeper, gain, s.gain[depth])),
            best=jnp.where(complete, s.pick, s.best),
            # From here on only what is truly better counts, so the first of equals stays.
            bar=jnp.where(complete, value + slack, s.bar),
        )

    search = _Search(
        depth=jnp.int32(0),
        pick=jnp.zeros(k, jnp.int32),
        value=jnp.zeros(k),
        gain=jnp.zeros((k, m)).at[0].set(u),
        best=found,
        # Below the value already found: the walk then meets that set, or one as good, itself.
        bar=value - slack,
    )
    return jax.lax.while_loop(lambda s: s.depth >= 0, visit, search).best
