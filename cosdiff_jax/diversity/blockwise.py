"""The highest cosines of a large group: every pair is visited, block by block, and none is kept.

The mean of the k highest cosines over pairs i < j is a minimum over one number,

    top = min_tau g(tau),    g(tau) = tau + sum_{i<j} max(u_i . u_j - tau, 0) / k

(Rockafellar and Uryasev 2000, "Optimization of conditional value-at-risk", Theorem 1), reached at
tau = the k-th highest cosine. One pass over the pairs counts those above each of 16 cuts and sums
what they have above it, which narrows lo < tau <= hi at least 9-fold; the cuts of the first pass
are quantiles of a random sample of pairs. As g is flat at its minimum, the mean is known to 1e-7
long before tau is, commonly after one pass or two.

A pass takes O(N^2 F) time, half of all N^2 cosines, and O(N F + block^2) memory. Over d devices,
within ``shard_map``, N is N / d: the rows go round a ring, d // 2 + 1 turns a pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cosdiff_jax.diversity.exact import product

CUTS = 16
# Just outside of what rounding makes of -1 and 1; pairs that do not count lie below everything.
LOWEST, HIGHEST, LEFT_OUT = -1.001, 1.001, -2.0


@dataclass(frozen=True, kw_only=True)
class Ring:
    """The devices that hold the samples of one group; the default is one device, no mesh.

    Attributes:
      axes: mesh axes the samples are split over.
      size: number of devices along them.
      others: mesh axes along which groups differ. Their rings finish together, since a device that
        left the loop early would be missed by the collectives of the rest.
    """

    axes: tuple[str, ...] = ()
    size: int = 1
    others: tuple[str, ...] = ()

    def rank(self) -> jax.Array | int:
        """This device's place in the ring."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def total(self, x: jax.Array) -> jax.Array:
        """The sum over the ring."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def gather(self, x: Float[Array, "S *x"] | Bool[Array, "S *x"]) -> jax.Array:
        """The rows of every device."""
        return jax.lax.all_gather(x, self.axes, tiled=True) if self.axes else x

    def agreed(self, x: jax.Array) -> jax.Array:
        """The largest: for what all devices have found alike, but only they know that."""
        return jax.lax.pmax(x, self.axes) if self.axes else x

    def any(self, open: jax.Array) -> jax.Array:
        """Whether the loop of any ring has to go on."""
        return jax.lax.pmax(open.astype(jnp.int32), self.others) > 0 if self.others else open

    def pass_on(self, x: Any, places: int = 1) -> Any:
        """Hand arrays to the device that many places further on."""
        if not self.axes:
            return x
        hops = [(i, (i + places) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, hops), x)

    def varying(self, x: jax.Array) -> jax.Array:
        """A constant as a value that may come to differ between devices, as in a loop's carry."""
        axes = self.axes + self.others
        return jax.lax.pcast(x, axes, to="varying") if axes else x


ALONE = Ring()


def wanted(pairs: Array, percent: float) -> Array:
    """k = ceil(pairs percent / 100), at least one if there is any pair."""
    # The small slack keeps 10 % of 30 pairs at 3, whatever the rounding of 0.1 and of the product.
    k = jnp.ceil(pairs * (percent / 100.0 * (1 - 2e-7)) - 1e-4)
    return jnp.maximum(k, jnp.minimum(pairs, 1.0))


def top_mean(
    u: Float[Array, "... N F"],
    percent: float,
    mask: Bool[Array, "... N"] | None = None,
    *,
    ring: Ring = ALONE,
    block: int = 1024,
) -> Float[Array, "..."]:
    """Mean of the highest ``percent`` % of u_i . u_j over pairs i < j.

    Its gradient takes one more pass,

        d top / d u_i = sum_j w_ij u_j / k,    w_ij = 1 above tau, 0 below,

    and ties share: pairs that lie as close to tau as float32 tells cosines apart (1.2e-7) have
    w_ij = what is left of k once those above are counted, divided by their number.

    Args:
      u: unit or zero vectors; leading axes are groups, one after the other.
      percent: in (0, 100].
      mask: True marks samples that count. A group with fewer than two gives 0.
      ring: the devices that share N; u and mask are then this device's rows.
      block: rows of a block; memory grows with its square.
    """
    top = partial(_top, percent=percent, ring=ring)
    return _each_group(top, u, mask, ring, block)


def percentile(
    u: Float[Array, "... N F"],
    percent: float,
    mask: Bool[Array, "... N"] | None = None,
    *,
    ring: Ring = ALONE,
    block: int = 1024,
) -> Float[Array, "..."]:
    """The lowest cosine among the highest ``percent`` %, to 5e-7; arguments as for ``top_mean``.

    It has no gradient.
    """

    def one(u: jax.Array, live: jax.Array) -> jax.Array:
        k, ends = _bracket(u, live, percent, ring, lambda ends, _: ends[0, 1] - ends[0, 0] > 5e-7)
        return jnp.where(k > 0, jnp.mean(ends[0]), 0.0)

    return _each_group(one, jax.lax.stop_gradient(u), mask, ring, block)


def _each_group(
    measure: Callable[[jax.Array, jax.Array], jax.Array],
    u: jax.Array,
    mask: jax.Array | None,
    ring: Ring,
    block: int,
) -> jax.Array:
    """``measure`` of [A B F] and [A B], rows in A blocks, for each group; B <= block."""
    *groups, n, features = u.shape
    live = ring.varying(jnp.ones(u.shape[:-1], bool)) if mask is None else mask
    blocks = -(-n // block)
    rows = -(-n // blocks)
    pad = blocks * rows - n
    u = jnp.pad(u.reshape(-1, n, features), ((0, 0), (0, pad), (0, 0)))
    live = jnp.broadcast_to(live, (*groups, n)).reshape(-1, n)
    live = jnp.pad(live, ((0, 0), (0, pad)))
    u = u.reshape(-1, blocks, rows, features)
    live = live.reshape(-1, blocks, rows)
    return jax.lax.map(lambda group: measure(*group), (u, live)).reshape(groups)


# A custom JVP rather than a VJP: linear in the tangent, it serves forward and reverse mode.
@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _top(u: jax.Array, live: jax.Array, percent: float, ring: Ring) -> jax.Array:
    def unsure(ends: jax.Array, k: jax.Array) -> jax.Array:
        # g(lo) - top <= (hi - lo) (number above lo - k) / k, and likewise from the other end.
        (lo, hi), (above_lo, above_hi), _ = ends
        return (hi - lo) * jnp.minimum(above_lo - k, k - above_hi) > 1e-7 * k

    return _value(*_bracket(u, live, percent, ring, unsure))


@_top.defjvp
def _top_jvp(
    percent: float, ring: Ring, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    def unsure(ends: jax.Array, k: jax.Array) -> jax.Array:
        (lo, hi), (above_lo, above_hi), _ = ends
        return (jnp.minimum(above_lo - k, k - above_hi) > 0) & (hi - lo > 2.0**-23)

    u, live = jax.lax.stop_gradient(primals)
    k, ends = _bracket(u, live, percent, ring, unsure)
    slope = _slope(u, live, k, ends, ring)
    return _value(k, ends), ring.total(jnp.sum(slope * tangents[0]))


def _value(k: jax.Array, ends: jax.Array) -> jax.Array:
    tau, _, excess = ends
    # Both ends lie above the minimum, so the lower one is the better.
    return jnp.where(k > 0, jnp.min(tau + excess / jnp.maximum(k, 1.0)), 0.0)


def _slope(u: jax.Array, live: jax.Array, k: jax.Array, ends: jax.Array, ring: Ring) -> jax.Array:
    """d top / d u for this device's rows [A B F]."""
    (lo, hi), (above_lo, above_hi), _ = ends
    part = (k - above_hi) / jnp.maximum(above_lo - above_hi, 1.0)

    def visit(stays, travels, a, b, cosines, own, visitor):
        weight = jnp.where(cosines > hi, 1.0, jnp.where(cosines > lo, part, 0.0))
        stays = _add(stays, a, product("ij,jf->if", weight, visitor))
        return stays, _add(travels, b, product("ij,if->jf", weight, own))

    zeros = jnp.zeros_like(u)
    stays, travels = _sweep(u, live, ring, visit, zeros, zeros)
    return (stays + travels) / jnp.maximum(k, 1.0)


def _bracket(
    u: jax.Array,
    live: jax.Array,
    percent: float,
    ring: Ring,
    unsure: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """k, and the ends of lo < tau <= hi: [[lo, hi], pairs above each, what those sum to above it].

    Counts are exact up to 2^24 pairs, and to a relative 1e-7 beyond, less than rounding of the
    cosines moves past a cut.
    """
    count = ring.total(jnp.sum(live, dtype=jnp.float32))
    pairs = count * (count - 1.0) / 2.0
    k = wanted(pairs, percent)

    def narrow(state):
        ends, cuts, _ = state
        inner = jnp.concatenate([cuts.reshape(1, -1), _tally(u, live, cuts, ring)])
        points = jnp.concatenate([ends[:, :1], inner, ends[:, 1:]], axis=1)
        last = jnp.clip(jnp.sum(points[1] >= k) - 1, 0, CUTS)
        ends = jax.lax.dynamic_slice_in_dim(points, last, 2, axis=1)
        (lo, hi), (above_lo, above_hi), _ = ends
        # Half the cuts lie evenly, for a sure 9-fold narrowing; half close in on where a straight
        # line between the two counts meets k, which is near tau once the bracket is short.
        meet = (above_lo - k) / jnp.maximum(above_lo - above_hi, 1.0)
        step = 8.0 ** -jnp.arange(1, CUTS // 4 + 1)
        even = jnp.arange(1, CUTS // 2 + 1) / (CUTS // 2 + 1)
        places = jnp.sort(jnp.concatenate([even, meet * (1 - step), meet + (1 - meet) * step]))
        return ends, lo + (hi - lo) * places, ring.any(unsure(ends, k))

    # What lies above the lower end is not summed yet, but the first cut is that end once more.
    ends = jnp.stack([jnp.array([LOWEST, HIGHEST]), pairs * jnp.array([1.0, 0.0]), jnp.zeros(2)])
    cuts = _quantiles(u, live, k / jnp.maximum(pairs, 1.0), ring)
    ends, _, _ = jax.lax.while_loop(lambda state: state[2], narrow, (ends, cuts, jnp.array(True)))
    return k, ends


def _quantiles(u: jax.Array, live: jax.Array, share: jax.Array, ring: Ring) -> jax.Array:
    """The first cuts: LOWEST, then cosines that around ``share`` of the sampled pairs exceed."""
    rows = np.random.default_rng(0).permutation(live.size)[: -(-live.shape[1] // ring.size)]
    u = ring.gather(u.reshape(-1, u.shape[-1])[rows])
    live = ring.gather(live.reshape(-1)[rows])
    first = jnp.arange(len(u))
    keep = (first[:, None] < first[None, :]) & live[:, None] & live[None, :]
    cosines = jnp.where(keep, product("if,jf->ij", u, u), LEFT_OUT)
    ranked = jnp.sort(cosines.reshape(-1))
    # Ever closer to the share wanted, as nobody knows how good the sample is.
    step = 3.0 ** -jnp.arange(1, CUTS // 2)
    around = 1 + jnp.concatenate([step, jnp.zeros(1), -step[::-1]])
    count = jnp.sum(keep)
    rank = (share * count * around).astype(jnp.int32)
    cuts = ranked[ranked.size - 1 - jnp.clip(rank, 0, count - 1)]
    cuts = jnp.clip(jnp.concatenate([jnp.array([LOWEST]), cuts]), LOWEST, HIGHEST)
    return ring.agreed(cuts)


def _tally(u: jax.Array, live: jax.Array, cuts: jax.Array, ring: Ring) -> jax.Array:
    """For each cut, how many pairs lie above it, and the sum of what they have above it."""

    def visit(stays, travels, a, b, cosines, own, visitor):
        def above(cut):
            # The count as a float sum too: XLA vectorises those on a CPU, and 2^24 is out of reach.
            return jnp.sum((cosines > cut).astype(jnp.float32)), jnp.sum(
                jnp.maximum(cosines - cut, 0.0)
            )

        return _add(stays, a, jnp.stack(jax.lax.map(above, cuts))), travels

    # One sum for each block of rows, then the sum of those: rounding grows with the longer of both.
    sums = ring.varying(jnp.zeros((live.shape[0], 2, CUTS)))
    sums, _ = _sweep(u, live, ring, visit, sums, ())
    return ring.total(jnp.sum(sums, axis=0))


def _sweep(
    u: jax.Array, live: jax.Array, ring: Ring, visit: Callable[..., Any], stays: Any, travels: Any
) -> tuple[Any, Any]:
    """Show ``visit`` every pair i < j of the group once, a block of own rows and a visitor's.

    ``visit(stays, travels, a, b, cosines [B B], own [B F], visitor [B F])`` gives new ``stays``,
    which remain on the device, and ``travels``, which go round with the visitor and come home.
    """
    blocks, rows, _ = u.shape
    row = jnp.arange(rows)
    rank = ring.rank()

    def turn(s, state):
        def own_block(a, state):
            def pair(b, state):
                stays, travels = state
                cosines = product("if,jf->ij", u[a], visitor[b])
                i, j = (a * rows + row)[:, None], (b * rows + row)[None, :]
                keep = ((s > 0) | (i < j)) & live[a][:, None] & visitor_live[b][None, :]
                cosines = jnp.where(keep, cosines, LEFT_OUT)
                return visit(stays, travels, a, b, cosines, u[a], visitor[b])

            # At home, half the blocks are mirror images. So are two devices half a ring apart to
            # each other: the one of lower rank takes the blocks a <= b, the other those a < b.
            across = jnp.where(2 * s == ring.size, a + (rank >= s), 0)
            return jax.lax.fori_loop(jnp.where(s == 0, a, across), blocks, pair, state)

        stays, travels, visitor, visitor_live = state
        stays, travels = jax.lax.fori_loop(0, blocks, own_block, (stays, travels))
        return stays, *ring.pass_on((travels, visitor, visitor_live))

    turns = ring.size // 2 + 1
    stays, travels, *_ = jax.lax.fori_loop(0, turns, turn, (stays, travels, u, live))
    return stays, ring.pass_on(travels, -turns)


def _add(sums: jax.Array, at: jax.Array, x: jax.Array) -> jax.Array:
    """sums[at] += x, by a slice: ``.at[].add`` becomes a scatter."""
    return jax.lax.dynamic_update_index_in_dim(sums, sums[at] + x, at, 0)
