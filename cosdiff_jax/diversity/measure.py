"""How alike the samples of one prompt are: one number a prompt, with a gradient, to be lowered.

The cosine forms lie in [-1, 1]; the spectral ones in [0, 1], where 0 is orthogonal and 1 identical.
All see the unit vectors only.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cosdiff_jax.diversity import similarity

Mask = Bool[Array, "P K"]


@runtime_checkable
class Measure(Protocol):
    """How alike each group is."""

    def __call__(
        self,
        f: Float[Array, "P K F"],
        mask: Mask | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, " P"]:
        """One number per prompt.

        Args:
          f: feature vectors.
          mask: marks the samples that count.
          key: for measures that draw; the others do not read it.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanCosine:
    """Mean over all pairs of one prompt, in O(K F)."""

    def __call__(
        self, f: Float[Array, "P K F"], mask: Mask | None = None, key: jax.Array | None = None
    ) -> Float[Array, " P"]:
        """``similarity.mean_cosine``."""
        return similarity.mean_cosine(f, mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopCosine:
    """Mean over the most similar pairs of one prompt, in O(K^2 F): pushes on near-duplicates only.

    Attributes:
      percent: share of the pairs, in (0, 100]; at least one pair is taken.
    """

    percent: float = 20.0

    def __call__(
        self, f: Float[Array, "P K F"], mask: Mask | None = None, key: jax.Array | None = None
    ) -> Float[Array, " P"]:
        """``similarity.top_cosine``."""
        return similarity.top_cosine(f, self.percent, mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledCosine:
    """Mean over ``pairs`` pairs drawn at random: an unbiased estimate of the mean over all.

    Pairs are drawn uniformly, with replacement, from those i != j that count. ``MeanCosine`` is
    exact and cheaper wherever the vectors of a group are at hand; this is for what a pair costs
    more than a product, and for the estimate's own sake.

    The estimate and its gradient are unbiased, what is convex in it is not: max(0, estimate - b) is
    on average too high, and pushes on groups whose mean lies below b already, by up to
    0.4 std(estimate) at a mean of b. So ``control`` asks ``expected`` on which side of its target a
    group lies, in O(K F), and leaves to the pairs how far and in which direction it moves.

    Attributes:
      pairs: how many.
    """

    pairs: int = 16

    def __call__(
        self, f: Float[Array, "P K F"], mask: Mask | None = None, key: jax.Array | None = None
    ) -> Float[Array, " P"]:
        """The estimate; 0 for a group with fewer than two samples that count.

        Raises:
          ValueError: no key.
        """
        if key is None:
            raise ValueError("sampled pairs need a key")
        u = similarity.unit(f)
        counts = jnp.ones(u.shape[:2], bool) if mask is None else mask

        def one(u: jax.Array, counts: jax.Array, key: jax.Array) -> jax.Array:
            number = jnp.sum(counts)
            # Samples that count come first, so that ranks below their number point at them.
            place = jnp.argsort(~counts, stable=True)
            first, second = jax.random.split(key)
            i = jax.random.randint(first, (self.pairs,), 0, jnp.maximum(number, 1))
            # Any rank but i's own: a shift by 1 .. number - 1.
            shift = jax.random.randint(second, (self.pairs,), 1, jnp.maximum(number, 2))
            j = (i + shift) % jnp.maximum(number, 1)
            cosine = jnp.mean(jnp.sum(u[place[i]] * u[place[j]], axis=-1))
            return jnp.where(number >= 2, cosine, 0.0)

        return jax.vmap(one)(u, counts, jax.random.split(key, u.shape[0]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogDeterminant:
    """How far the group is from orthogonal in volume: the log-likelihood of a k-DPP, negated.

        alike = log det((1 - ridge) C + ridge I) / ((K - 1) log(ridge)),    C_ij = cos(f_i, f_j)

    C has ones on its diagonal, so det <= 1 (Hadamard). Identical samples give nearly 1: without
    the ridge the determinant would be 0 and its logarithm no number. Near-duplicates weigh far
    more than in the mean cosine: one identical pair already costs 1 / (K - 1) of the whole range.
    Source: Kulesza and Taskar, Determinantal point processes, arXiv 1207.6083.

    Attributes:
      ridge: in (0, 1).
    """

    ridge: float = 1e-3

    def __call__(
        self, f: Float[Array, "P K F"], mask: Mask | None = None, key: jax.Array | None = None
    ) -> Float[Array, " P"]:
        """One number per prompt; 0 for a group with fewer than two samples that count."""
        counts = jnp.ones(f.shape[:2], bool) if mask is None else mask
        both = counts[:, :, None] & counts[:, None, :]
        eye = jnp.eye(f.shape[1])[None]
        # A sample that does not count is orthogonal to all: a factor of 1.
        c = jnp.where(both, similarity.cosine_matrix(f), 0.0)
        c = (1 - self.ridge) * c * (1 - eye) + eye
        _, value = jnp.linalg.slogdet(c)
        number = jnp.maximum(jnp.sum(counts, axis=1) - 1, 1)
        return value / (number * jnp.log(self.ridge))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vendi:
    """How far the effective number of samples falls short of their number.

        alike = 1 - log VS / log K,    VS = exp(-sum_i w_i log w_i),    w = eigenvalues of C / K

    Source: Friedman and Dieng, The Vendi score, arXiv 2210.02410, definition 3.1, with the cosine
    as its kernel. The eigenvalues are kept off 0, where the slope of w log w has no bound.

    Attributes:
      ridge: share of the uniform spectrum mixed in, in (0, 1).
    """

    ridge: float = 1e-3

    def __call__(
        self, f: Float[Array, "P K F"], mask: Mask | None = None, key: jax.Array | None = None
    ) -> Float[Array, " P"]:
        """One number per prompt; 0 for a group with fewer than two samples that count."""
        counts = jnp.ones(f.shape[:2], bool) if mask is None else mask
        number = jnp.sum(counts, axis=1).astype(jnp.float32)
        entropy = spectral_entropy(f, counts, self.ridge)
        alike = 1.0 - entropy / jnp.log(jnp.maximum(number, 2.0))
        return jnp.where(number >= 2, alike, 0.0)


def expected(form: Measure) -> Measure:
    """The measure that one which draws is right about on average; any other is its own."""
    return MeanCosine() if isinstance(form, SampledCosine) else form


def spectral_entropy(
    f: Float[Array, "P K F"], mask: Mask | None = None, ridge: float = 0.0
) -> Float[Array, " P"]:
    """-sum_i w_i log w_i over the eigenvalues w of the cosine matrix over its trace.

    ``exp`` of it is the Vendi score: 1 for identical samples, K for orthogonal ones.

    Args:
      f: feature vectors; a zero vector is orthogonal to all others.
      mask: marks the samples that count.
      ridge: share of the uniform spectrum mixed in; above 0 the gradient is bounded.
    """
    counts = jnp.ones(f.shape[:2], bool) if mask is None else mask
    both = counts[:, :, None] & counts[:, None, :]
    eye = jnp.eye(f.shape[1])[None]
    number = jnp.maximum(jnp.sum(counts, axis=1), 1)[:, None, None]
    c = similarity.cosine_matrix(f) * (1 - eye) + eye
    w = jnp.linalg.eigvalsh(jnp.where(both, (1 - ridge) * c + ridge * eye, 0.0) / number)
    # Rounding leaves eigenvalues of -1e-8; samples that do not count leave zeros.
    real = w > 1e-7
    w = jnp.where(real, w, 1.0)
    return -jnp.sum(jnp.where(real, w * jnp.log(w), 0.0), axis=1)
