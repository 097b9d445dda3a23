"""How alike the samples of one prompt are: cosines over all pairs i != j within a group.

Every function takes feature vectors of any length, "... N F", and gives one value per group;
leading axes are groups (prompts) that never meet. A sample whose vector is zero has cosine 0 with
every other, and a zero gradient. They are compiled as wholes: op by op, a first call would take
seconds.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec
from jaxtyping import Array, Bool, Float

from cosdiff_jax.diversity import blockwise
from cosdiff_jax.diversity.exact import product

RANKED = 1024
"""The largest group whose pairs are all formed and ranked: half a million cosines."""


@jax.jit
def unit(f: Float[Array, "... F"]) -> Float[Array, "... F"]:
    """Scale vectors to length 1, in float32; below its normal range (1.2e-38) becomes zero."""
    f = f.astype(jnp.float32)
    # Dividing by the largest entry first keeps the squares of tiny and huge vectors finite.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(f), axis=-1, keepdims=True))
    # Smaller ones are flushed to zero, and so are the reciprocals of those above 2^126.
    real = largest >= 2.0**-126
    # A where around the division alone would still give 0 * inf = NaN in the gradient.
    f = jnp.where(real, f, 1.0) / jnp.where(real, jnp.minimum(largest, 2.0**126), 1.0)
    return jnp.where(real, f * jax.lax.rsqrt(jnp.sum(f**2, axis=-1, keepdims=True)), 0.0)


@jax.jit
def cosine_matrix(f: Float[Array, "... N F"]) -> Float[Array, "... N N"]:
    """C_ij = f_i . f_j / (|f_i| |f_j|): O(N^2 F); the diagonal is 1 except for zero vectors."""
    f = unit(f)
    return product("...nf,...mf->...nm", f, f)


@jax.jit
def mean_cosine(
    f: Float[Array, "... N F"], mask: Bool[Array, "... N"] | None = None
) -> Float[Array, "..."]:
    """Mean of the cosine over all pairs i != j, exact in O(N F).

    With u_i = f_i / |f_i|,  sum_{i != j} u_i . u_j = |sum_i u_i|^2 - sum_i |u_i|^2, so

        mean = (|sum_i u_i|^2 - N) / (N (N - 1))        in [-1 / (N - 1), 1].

    Args:
      f: feature vectors; each group needs N >= 2.
      mask: True marks samples that count. A group with fewer than two of them gives 0.

    Raises:
      ValueError: N < 2.
    """
    _two(f.shape[-2])
    total, squares, count = _sums(f, mask)
    return _mean_from_sums(total, squares, count)


def mean_cosine_sharded(
    f: Float[Array, "... N F"],
    mesh: Mesh,
    samples: str | Sequence[str],
    prompts: str | Sequence[str] | None = None,
    mask: Bool[Array, "... N"] | None = None,
) -> Float[Array, "..."]:
    """``mean_cosine`` where the samples of one group lie on different devices.

    Each device sums its own unit vectors; one ``psum`` of [..., F + 2] numbers over ``samples``
    does the rest, so no pair is ever formed and no feature is gathered.

    Args:
      f: feature vectors.
      mesh: the devices.
      samples: mesh axis (or axes) the N axis is split over; their size must divide N.
      prompts: mesh axis (or axes) the first axis is split over, None for none; f then needs a
        leading axis.
      mask: True marks samples that count, split like ``f``; as for ``mean_cosine``.

    Raises:
      ValueError: N < 2, or a mesh axis that does not divide its array axis.
    """

    def local(f: jax.Array, mask: jax.Array | None) -> jax.Array:
        total, squares, count = _sums(f, mask)
        # One collective: the sum of squares and the count ride along as two more features.
        packed = jnp.concatenate([total, squares[..., None], count[..., None]], axis=-1)
        packed = jax.lax.psum(packed, samples)
        return _mean_from_sums(packed[..., :-2], packed[..., -2], packed[..., -1])

    return _on_mesh(local, f, mask, mesh, samples, prompts)


@functools.partial(jax.jit, static_argnames="percent")
def top_cosine(
    f: Float[Array, "... N F"], percent: float, mask: Bool[Array, "... N"] | None = None
) -> Float[Array, "..."]:
    """Mean of the highest ``percent`` % of the cosines over pairs i < j, at least one pair.

    O(N^2 F) time. 100 % gives ``mean_cosine``. Up to 1,024 samples all pairs are ranked, and of
    equal cosines the first are taken; larger groups go through ``blockwise.top_mean``, which keeps
    no pair and lets ties share.

    Args:
      f: feature vectors; each group needs N >= 2.
      percent: in (0, 100].
      mask: True marks samples that count; the percentage is of the pairs that are left. A group
        with fewer than two of them gives 0.

    Raises:
      ValueError: N < 2, or ``percent`` outside (0, 100].
    """
    _two(f.shape[-2])
    _percentage(percent)
    if f.shape[-2] > RANKED:
        return blockwise.top_mean(unit(f), percent, mask)
    ranked, k = _ranked(f, percent, mask)
    rank = jnp.arange(ranked.shape[-1]).reshape((1,) * (ranked.ndim - 1) + (-1,))
    total = jnp.sum(jnp.where(rank < k[..., None], ranked, 0.0), axis=-1)
    return total / jnp.maximum(k, 1.0)


@functools.partial(jax.jit, static_argnames="percent")
def percentile_cosine(
    f: Float[Array, "... N F"], percent: float, mask: Bool[Array, "... N"] | None = None
) -> Float[Array, "..."]:
    """The cosine that ``percent`` % of the pairs i < j reach: the lowest ``top_cosine`` averages.

    It is the k-th highest, k = ceil(percent / 100 pairs), exact up to 1,024 samples and to 1e-6
    beyond. No gradient flows through it: that of one pair would say nothing about the group.

    Args:
      f: feature vectors; each group needs N >= 2.
      percent: in (0, 100].
      mask: True marks samples that count. A group with fewer than two of them gives 0.

    Raises:
      ValueError: N < 2, or ``percent`` outside (0, 100].
    """
    _two(f.shape[-2])
    _percentage(percent)
    f = jax.lax.stop_gradient(f)
    if f.shape[-2] > RANKED:
        return blockwise.percentile(unit(f), percent, mask)
    ranked, k = _ranked(f, percent, mask)
    last = jnp.maximum(k - 1, 0).astype(jnp.int32)[..., None]
    return jnp.where(k > 0, jnp.take_along_axis(ranked, last, axis=-1)[..., 0], 0.0)


def top_cosine_sharded(
    f: Float[Array, "... N F"],
    percent: float,
    mesh: Mesh,
    samples: str | Sequence[str],
    prompts: str | Sequence[str] | None = None,
    mask: Bool[Array, "... N"] | None = None,
) -> Float[Array, "..."]:
    """``top_cosine`` where the samples of one group lie on different devices.

    Each device keeps its own rows and one visitor's; see ``blockwise``. Arguments as for
    ``mean_cosine_sharded``, for groups of any size.

    Raises:
      ValueError: as ``top_cosine``, or a mesh axis that does not divide its array axis.
    """
    _percentage(percent)
    ring = _ring(mesh, samples, prompts)

    def local(f: jax.Array, mask: jax.Array | None) -> jax.Array:
        return blockwise.top_mean(unit(f), percent, mask, ring=ring)

    return _on_mesh(local, f, mask, mesh, samples, prompts)


def percentile_cosine_sharded(
    f: Float[Array, "... N F"],
    percent: float,
    mesh: Mesh,
    samples: str | Sequence[str],
    prompts: str | Sequence[str] | None = None,
    mask: Bool[Array, "... N"] | None = None,
) -> Float[Array, "..."]:
    """``percentile_cosine`` where the samples of one group lie on different devices, to 1e-6.

    Arguments as for ``top_cosine_sharded``.

    Raises:
      ValueError: as ``percentile_cosine``, or a mesh axis that does not divide its array axis.
    """
    _percentage(percent)
    ring = _ring(mesh, samples, prompts)

    def local(f: jax.Array, mask: jax.Array | None) -> jax.Array:
        return blockwise.percentile(unit(f), percent, mask, ring=ring)

    return _on_mesh(local, f, mask, mesh, samples, prompts)


def _ranked(f: jax.Array, percent: float, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The cosines of all pairs i < j from the highest down, and k: how many ``percent`` % are."""
    first, second = jnp.triu_indices(f.shape[-2], 1)
    pairs = cosine_matrix(f)[..., first, second]
    if mask is None:
        real = jnp.ones(pairs.shape, bool)
    else:
        real = jnp.broadcast_to(mask[..., first] & mask[..., second], pairs.shape)
    # Left-out pairs sort behind every real one, and k keeps them out.
    order = jnp.argsort(jnp.where(real, -pairs, jnp.inf), axis=-1)
    ranked = jnp.take_along_axis(pairs, order, axis=-1)
    return ranked, blockwise.wanted(jnp.sum(real, axis=-1), percent)


def _on_mesh(
    local: Callable[[jax.Array, jax.Array | None], jax.Array],
    f: jax.Array,
    mask: jax.Array | None,
    mesh: Mesh,
    samples: str | Sequence[str],
    prompts: str | Sequence[str] | None,
) -> jax.Array:
    """``local`` on each device's rows; it gives one value per group, alike along ``samples``."""
    _two(f.shape[-2])
    if prompts is not None and f.ndim < 3:
        raise ValueError("to split prompts over a mesh, features need a leading axis")
    _divides(mesh, samples, f.shape[-2], "samples of a prompt")
    _divides(mesh, prompts, f.shape[0], "prompts")
    rest = [prompts] + [None] * (f.ndim - 3) if f.ndim > 2 else []
    outside, rows = Spec(*rest), Spec(*rest, samples)
    if mask is not None:
        mask = jnp.broadcast_to(mask, f.shape[:-1])
    # Vectors are whole, so that the same specification splits both.
    return jax.shard_map(local, mesh=mesh, in_specs=(rows, rows), out_specs=outside)(f, mask)


def _ring(
    mesh: Mesh, samples: str | Sequence[str], prompts: str | Sequence[str] | None
) -> blockwise.Ring:
    axes, others = _names(samples), _names(prompts)
    return blockwise.Ring(axes=axes, size=_parts(mesh, axes), others=others)


def _sums(f: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sum of unit vectors [..., F], sum of their squares [...], number of samples [...]."""
    u = unit(f)
    if mask is None:
        count = jnp.full(u.shape[:-2], u.shape[-2], jnp.float32)
    else:
        u = jnp.where(mask[..., None], u, 0.0)
        count = jnp.broadcast_to(jnp.sum(mask, axis=-1, dtype=jnp.float32), u.shape[:-2])
    # Not simply the count: a zero vector has no length to take away.
    return jnp.sum(u, axis=-2), jnp.sum(u**2, axis=(-2, -1)), count


def _mean_from_sums(total: jax.Array, squares: jax.Array, count: jax.Array) -> jax.Array:
    pairs = count * (count - 1.0)
    return (jnp.sum(total**2, axis=-1) - squares) / jnp.maximum(pairs, 1.0)


def _two(n: int) -> None:
    if n < 2:
        raise ValueError(f"diversity needs at least 2 samples of each prompt, got {n}")


def _percentage(percent: float) -> None:
    if not 0 < percent <= 100:
        raise ValueError(f"top percent must be in (0, 100], got {percent}")


def _names(axes: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def _parts(mesh: Mesh, names: tuple[str, ...]) -> int:
    """Number of devices along mesh axes."""
    for name in names:
        if name not in mesh.shape:
            raise ValueError(f"the mesh has no axis {name!r}, only {', '.join(mesh.shape)}")
    return math.prod(mesh.shape[name] for name in names)


def _divides(mesh: Mesh, axes: str | Sequence[str] | None, size: int, what: str) -> None:
    parts = _parts(mesh, _names(axes))
    if size % parts:
        raise ValueError(f"{size} {what} cannot be split evenly over {parts} devices")
