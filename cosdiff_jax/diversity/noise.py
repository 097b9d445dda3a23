"""The noise space: where the K samples of one prompt start, and how to move them.

    independent   cosine of two samples 0 +- 1 / sqrt(d), with d = h w c
    coupled       the cosine a family promises, each sample still N(0, I) on its own

In d = 65,536 dimensions independent noise already has cosine 0 +- 0.004, so there is next to
nothing to gain by repelling it: making eight samples exactly orthogonal moves none by more than
1 % or so of its length. What can change the pictures is a negated partner (``Antithetic``), a
positive cosine, or control of the few low frequencies alone (``LowFrequency``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosdiff_jax.diversity import similarity
from cosdiff_jax.diversity.exact import product

Draw = Callable[[Array], Array]
"""z "B *x" -> samples: a rollout, through which gradients flow."""

Cost = Callable[[Array], Array]
"""samples -> a scalar, or one value per row."""


@runtime_checkable
class Noise(Protocol):
    """A joint law of the starting points of one prompt, every one of which is N(0, I).

    A family is a prefix, unless it says otherwise: the first four of eight samples are the four
    drawn alone, up to the rounding of float32.
    """

    def __call__(
        self, key: jax.Array, number: int, shape: tuple[int, int, int]
    ) -> Float[Array, "K h w c"]:
        """``number`` = K starting points of ``shape`` = (h, w, c); one key for each prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class Independent:
    """x_k = normal(fold_in(key, k)), to the bit: what ``Sampler`` draws.

    Marginal: N(0, I). Cosine: 0 +- 1 / sqrt(d). Prefix: to the bit.
    """

    def __call__(
        self, key: jax.Array, number: int, shape: tuple[int, int, int]
    ) -> Float[Array, "K h w c"]:
        """``number`` independent samples."""

        def one(k: jax.Array) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(key, k), shape)

        return jax.vmap(one)(jnp.arange(number))


@dataclass(frozen=True, kw_only=True)
class Orthogonal:
    """x_k = |g_k| q_k, with q the Gram-Schmidt directions of independent noise g.

    The rows q_k are orthonormal and Haar distributed, so each is uniform on the sphere. They
    depend on the directions of g alone and thus not on the lengths |g_k|, which are chi with d
    degrees of freedom: each x_k is N(0, I) (orthogonal random features, Yu et al. 2016,
    arXiv 1610.09072, section 3; there the lengths are drawn anew). No more than d directions are
    orthogonal: after each d samples another frame begins, independent of those before.

    Marginal: N(0, I). Cosine: 0 within a frame, that of independent noise across. Prefix: yes.
    x_k has cosine about sqrt(1 - k / d) with sample k of ``Independent``, so for K << d the
    pictures are nearly the same.
    """

    def __call__(
        self, key: jax.Array, number: int, shape: tuple[int, int, int]
    ) -> Float[Array, "K h w c"]:
        """``number`` orthogonal samples."""
        q, length = _frame(key, number, shape)
        return (length * q).reshape(number, *shape)


@dataclass(frozen=True, kw_only=True)
class Antithetic:
    """Pairs x, -x, with the pairs orthogonal to each other: x_2j = y_j, x_2j+1 = -y_j.

    y is ``Orthogonal``. An odd number leaves the last sample without its partner. Models answer
    a negated start with a negatively correlated picture (Jia et al. 2025, arXiv 2506.06185).

    Marginal: N(0, I). Cosine: -1 within a pair, 0 across pairs (of one frame of ``Orthogonal``,
    which has d of them), so for even K the mean over pairs is -1 / (K - 1). No K vectors have a
    lower mean: all pairs at -1 is for K = 2 only. Prefix: yes.
    """

    def __call__(
        self, key: jax.Array, number: int, shape: tuple[int, int, int]
    ) -> Float[Array, "K h w c"]:
        """``number`` samples, partners side by side."""
        y = Orthogonal()(key, (number + 1) // 2, shape)
        return jnp.stack([y, -y], axis=1).reshape(-1, *shape)[:number]


@dataclass(frozen=True, kw_only=True)
class Repelled:
    """Every pair at the same cosine c: x_k = |g_k| sum_j L_kj q_j, L L^T = (1 - c) I + c 11^T.

    q and |g| are those of ``Orthogonal`` (K <= d). Turning q by any rotation leaves its law as
    it is and turns the rows of L q alike, so each of these unit vectors is uniform on the sphere,
    and the chi length makes it N(0, I). Every L with this product gives the same joint law; the
    triangular one (Cholesky) makes sample k the same whatever K is.

    Marginal: N(0, I). Cosine: c. c = -1 / (K - 1) is the simplex, the farthest K vectors can be
    apart: for K = 8 no more than -0.14. Where K is too large for c it is taken instead; -1 asks
    for it at every K. Prefix: yes where K allows c. A positive c draws samples together.

    Attributes:
      cosine: c, in [-1, 1).
    """

    cosine: float

    def __post_init__(self):
        if not -1 <= self.cosine < 1:
            raise ValueError(f"noise.repelled.cosine must be in [-1, 1), not {self.cosine}")

    def __call__(
        self, key: jax.Array, number: int, shape: tuple[int, int, int]
    ) -> Float[Array, "K h w c"]:
        """``number`` samples at equal angles.

        Raises:
          ValueError: more samples than dimensions.
        """
        d = int(np.prod(shape))
        if number > d:
            raise ValueError(
                f"{number} samples cannot be at equal angles in {d} dimensions: draw at most {d}, "
                "or set sample.noise.name=orthogonal"
            )
        q, length = _frame(key, number, shape)
        cosine = max(self.cosine, -1 / max(number - 1, 1))
        mixing = jnp.asarray(_equicorrelated(number, cosine), jnp.float32)
        directions = product("kj,jd->kd", mixing, q)
        return (length * directions).reshape(number, *shape)


@dataclass(frozen=True, kw_only=True)
class LowFrequency:
    """Couples the components below a spatial frequency by ``base``; the rest is independent.

        x = C_h^T Z C_w for each channel,  Z_uv coupled where u / h + v / w < cutoff

    C_n is the orthonormal DCT-II of n points, so x is N(0, I) exactly where Z is. The low
    frequencies decide much of what is drawn (shown for video, Wu et al. 2023, arXiv 2312.07537)
    and are few: about cutoff^2 h w c / 2 numbers for cutoff <= 1, where independent noise is
    further from cosine 0 and ``base`` has more to say.

    Marginal: N(0, I). Cosine: that of ``base`` between the low parts; between whole samples about
    that times their share of all numbers. Prefix: yes where ``base`` has it.

    Attributes:
      cutoff: in (0, 2], as a share of the Nyquist frequency summed over both axes: index u is a
        wave of u / 2 periods over h pixels. u = v = 0, the mean, is always below it; 2 couples
        everything.
      base: the coupling; it sees the low coefficients as a list, (number of them, 1, c).
    """

    cutoff: float = 0.25
    base: Noise = field(default_factory=Antithetic)

    def __post_init__(self):
        if not 0 < self.cutoff <= 2:
            raise ValueError(f"cutoff must be in (0, 2], not {self.cutoff}")

    def __call__(
        self, key: jax.Array, number: int, shape: tuple[int, int, int]
    ) -> Float[Array, "K h w c"]:
        """``number`` samples coupled below the cut-off.

        Raises:
          ValueError: what ``base`` raises, for the low coefficients.
        """
        h, w, c = shape
        u, v = np.nonzero(
            np.arange(h).reshape(-1, 1) / h + np.arange(w).reshape(1, -1) / w < self.cutoff
        )
        below, above = jax.random.split(key)
        low = self.base(below, number, (len(u), 1, c))
        z = Independent()(above, number, shape).at[:, u, v].set(low[:, :, 0])
        z = product("uy,kuvc->kyvc", _dct(h), z)
        return product("vx,kyvc->kyxc", _dct(w), z)


@dataclass(frozen=True, kw_only=True)
class Slerp:
    """Places on the arc from one sample of ``Independent`` to another: a walk between pictures.

        x_k = slerp(a, b, reach k / (K - 1)),  a sample 0, b sample ``towards``

    Neighbours are alike, the more so the more there are: this shows what lies between two
    pictures, and keeps none apart.

    Marginal: N(0, I) at a and b; between them only nearly, the direction uniform and the length a
    little narrower than chi (``slerp``). Cosine: cos(reach w / (K - 1)) of neighbours, w the angle
    from a to b, a right one but for about 1 / sqrt(d). Prefix: no, K decides all places but a.

    Attributes:
      towards: the number of the sample at the other end, from 1 on.
      reach: share of the way to it that the last sample has gone, in (0, 1].
    """

    towards: int = 1
    reach: float = 1.0

    def __post_init__(self):
        if self.towards < 1 or not 0 < self.reach <= 1:
            raise ValueError(
                "noise.slerp needs towards from 1 on and reach in (0, 1], not "
                f"{self.towards} and {self.reach}"
            )

    def __call__(
        self, key: jax.Array, number: int, shape: tuple[int, int, int]
    ) -> Float[Array, "K h w c"]:
        """``number`` places, a first; one sample is a."""
        a, b = (jax.random.normal(jax.random.fold_in(key, k), shape) for k in (0, self.towards))
        return jax.vmap(lambda s: slerp(a, b, s))(jnp.linspace(0.0, self.reach, number))


def slerp(
    a: Float[Array, "*x"], b: Float[Array, "*x"], s: Float[Array, ""] | float
) -> Float[Array, "*x"]:
    """Along the great circle from a to b at constant angular speed (Shoemake 1985).

        direction = (sin((1 - s) w) a / |a| + sin(s w) b / |b|) / sin w,  w the angle from a to b
        length    = (1 - s) |a| + s |b|

    A straight line would pass through lengths that noise of d dimensions never has. Between
    independent noise the direction is uniform and the length a little narrower than chi, so the
    result is N(0, I) nearly, not exactly.

    Parallel a and b keep their direction. Antiparallel ones (within 1e-5 rad) are joined by no
    one great circle; taken is the one through the quarter turn of b, (p, q) -> (-q, p) for p and q
    the first and second half of its numbers, because that is perpendicular to a and as much noise
    as b is. (A last odd number is left out of the turn.)

    Args:
      a: the start, s = 0.
      b: the end, s = 1.
      s: the place between them.
    """
    shape, a, b = a.shape, a.reshape(-1), b.reshape(-1)
    u, v = similarity.unit(a), similarity.unit(b)
    # The formula above is 0 / 0 at both ends of w. v - u and u + v are perpendicular, and only
    # one of them vanishes at a time.
    across, along = similarity.unit(v - u), similarity.unit(u + v)
    half = jnp.arctan2(jnp.sum((v - u) * across), jnp.sum((u + v) * along))
    along = jnp.where(half > jnp.pi / 2 - 5e-6, _quarter_turn(across), along)
    angle = (2.0 * s - 1.0) * half
    direction = similarity.unit(jnp.cos(angle) * along + jnp.sin(angle) * across)
    length = (1.0 - s) * jnp.sum(a * u) + s * jnp.sum(b * v)
    return (length * direction).reshape(shape)


def optimise(
    draw: Draw,
    z: Float[Array, "B *x"],
    cost: Cost,
    *,
    steps: int,
    rate: float,
    pull: float = 0.0,
) -> tuple[Float[Array, "B *x"], Float[Array, "steps *cost"]]:
    """Descends a cost of the samples on their initial noise, through the whole rollout.

        z' = z - rate |z_0| g / |g|,  g = d cost(draw(z)) / dz
        z  = |z_0| unit(z' + pull (z_0 - z'))

    row by row, from the start z_0. Kept to its own length the noise stays where the model has
    seen noise (as in Wallace et al. 2023, arXiv 2303.13703), but it is no longer N(0, I): a
    direction has been chosen.

    One draw and its gradient a step, so the memory is the rollout's: put ``jax.checkpoint``
    around its velocity. A row with no gradient stays where it is.

    Args:
      draw: z -> samples.
      z: the start.
      cost: samples -> a scalar, or values whose sum is descended. One value per row keeps rows
        apart if ``draw`` does; a scalar can couple them, as the cosine within a prompt.
      steps: how many times z moves.
      rate: the move, in lengths of the sample: about the angle in radians. It does not shrink, so
        z may end up circling a minimum at this distance.
      pull: share of the way back to z_0 after each move, in [0, 1); keeps z within about
        rate (1 - pull) / pull lengths of it.

    Returns:
      The noise after the last move, and the cost before each.

    Raises:
      ValueError: steps, rate or pull out of range.
    """
    if steps < 1 or rate <= 0 or not 0 <= pull < 1:
        raise ValueError(
            "steps must be at least 1, rate above 0 and pull in [0, 1), "
            f"not {steps}, {rate} and {pull}"
        )
    start = z.reshape(z.shape[0], -1)
    length = jnp.sum(start * similarity.unit(start), axis=-1, keepdims=True)

    def total(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = cost(draw(rows.reshape(z.shape)))
        return jnp.sum(value), value

    def step(rows: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        gradient, value = jax.grad(total, has_aux=True)(rows)
        moved = rows - rate * length * similarity.unit(gradient)
        return length * similarity.unit(moved + pull * (start - moved)), value

    rows, history = jax.lax.scan(step, start, length=steps)
    return rows.reshape(z.shape), history


def _frame(
    key: jax.Array, number: int, shape: tuple[int, int, int]
) -> tuple[Float[Array, "K d"], Float[Array, "K 1"]]:
    """Independent noise as orthonormal rows, d in a frame, in Gram-Schmidt order; its lengths."""
    d = int(np.prod(shape))
    frames = -(-number // d)
    g = Independent()(key, number if frames == 1 else frames * d, shape).reshape(frames, -1, d)
    q, r = jnp.linalg.qr(jnp.swapaxes(g, 1, 2))
    # QR leaves the signs to the library; Gram-Schmidt, and with it the Haar law, has r_kk > 0.
    signs = jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))
    q = (jnp.swapaxes(q, 1, 2) * signs[..., None]).reshape(-1, d)
    return q[:number], jnp.linalg.norm(g.reshape(-1, d), axis=1, keepdims=True)[:number]


def _equicorrelated(number: int, c: float) -> np.ndarray:
    """The Cholesky factor of (1 - c) I + c 11^T, also where that is singular (the simplex).

    L_kk = sqrt((1 - c) r_k / r_{k-1}),  L_jk = L_kk c / r_k for j > k,  r_k = 1 + k c
    """
    # The last r of the simplex is 0 and divides nothing that is used.
    r = np.maximum(1 + c * np.arange(number), 1e-30)
    diagonal = np.sqrt((1 - c) * r / (r - c))
    return np.diag(diagonal) + np.tril(np.ones((number, number)), -1) * (diagonal * c / r)


def _dct(n: int) -> Float[Array, "n n"]:
    """Orthonormal DCT-II: row u is sqrt(2 / n) cos(pi u (2 y + 1) / (2 n)), over sqrt(2) at 0."""
    u, y = np.arange(n).reshape(-1, 1), np.arange(n).reshape(1, -1)
    matrix = np.sqrt(2 / n) * np.cos(np.pi * u * (2 * y + 1) / (2 * n))
    matrix[0] /= np.sqrt(2)
    return jnp.asarray(matrix, jnp.float32)


def _quarter_turn(u: Float[Array, " d"]) -> Float[Array, " d"]:
    """The unit vector along (p, q) -> (-q, p); a last odd number becomes 0."""
    half = u.shape[0] // 2
    p, q, rest = jnp.split(u, [half, 2 * half])
    return similarity.unit(jnp.concatenate([-q, p, jnp.zeros_like(rest)]))
