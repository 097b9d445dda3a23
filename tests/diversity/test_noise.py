import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, stats

from cosdiff_jax.diversity import noise, similarity
from cosdiff_jax.flow.solver import Euler
from cosdiff_jax.sampler import Sampler

SMALL = (2, 3, 1)
"""Six dimensions: few enough that a wrong length or a forgotten coupling shows in each of them."""
LARGE = (64, 64, 16)
"""65,536 dimensions."""
KEYS = 20_000

FAMILIES = {
    "independent": noise.Independent(),
    "orthogonal": noise.Orthogonal(),
    "antithetic": noise.Antithetic(),
    "simplex": noise.Repelled(cosine=-1 / 3),
    "attracted": noise.Repelled(cosine=0.7),
    "low frequency": noise.LowFrequency(cutoff=0.6),
    "one low frequency": noise.LowFrequency(cutoff=0.1),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def draws(family):
    """[KEYS, 4, 6]: four samples under many keys."""
    x = jax.jit(jax.vmap(lambda key: family(key, 4, SMALL)))(keys())
    return np.asarray(x, np.float64).reshape(KEYS, 4, -1)


def keys():
    return jax.random.split(jax.random.key(7), KEYS)


def cosines(x):
    """[K, K] in double precision."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def is_standard_normal(x):
    """Whether [n, d] draws of one sample pass for N(0, I_d).

    Kolmogorov-Smirnov at level 1e-4 on each coordinate, on one oblique direction and on the
    squared length; mean and covariance within 5 standard errors, which are 1 / sqrt(n) off the
    diagonal and sqrt(2 / n) on it.
    """
    n, d = x.shape
    oblique = x @ np.arange(1, d + 1) / np.linalg.norm(np.arange(1, d + 1))
    levels = [stats.kstest(column, "norm").pvalue for column in (*x.T, oblique)]
    levels.append(stats.kstest((x**2).sum(axis=1), stats.chi2(d).cdf).pvalue)
    error = 1 / np.sqrt(n)
    off = np.abs(x.T @ x / n - np.eye(d)) / (error * np.where(np.eye(d), np.sqrt(2), 1))
    return min(levels) > 1e-4 and off.max() < 5 and np.abs(x.mean(axis=0)).max() < 5 * error


@each_family
class TestNoise:
    @pytest.mark.parametrize("sample", [0, 1, 2, 3])
    def test_each_sample_is_standard_normal(self, family, sample):
        assert is_standard_normal(draws(family)[:, sample])

    @pytest.mark.parametrize("number", [1, 3, 4])
    def test_fewer_are_the_first_and_prompts_go_by_vmap(self, family, number):
        assert isinstance(family, noise.Noise)
        for prompt in (0, 5):
            x = family(keys()[prompt], number, SMALL)
            assert x.shape == (number, *SMALL) and x.dtype == jnp.float32
            want = draws(family)[prompt, :number]
            np.testing.assert_allclose(x.reshape(number, -1), want, atol=5e-6)


class TestTheTestOfTheMarginal:
    """Near misses, each of which some check has to catch."""

    def test_direction_and_length_apart_from_the_right_law(self):
        g = draws(FAMILIES["independent"])[:, 0]
        length = np.linalg.norm(g, axis=1, keepdims=True)
        assert is_standard_normal(g)
        assert not is_standard_normal(g / length * np.sqrt(6))
        assert not is_standard_normal(g / length * np.roll(length, 1) * 1.02)
        # Right coordinates, one of them used twice.
        assert not is_standard_normal(np.concatenate([g[:, :5], g[:, :1]], axis=1))

    def test_gram_schmidt_without_the_chi_length(self):
        x = draws(FAMILIES["independent"])
        g, first = x[:, 1], x[:, 0]
        overlap = (g * first).sum(axis=1) / (first**2).sum(axis=1)
        assert not is_standard_normal(g - overlap.reshape(-1, 1) * first)

    def test_an_average_of_samples_is_too_short(self):
        x = draws(FAMILIES["independent"])
        assert not is_standard_normal((x[:, 0] + x[:, 1]) / 2)
        assert is_standard_normal((x[:, 0] + x[:, 1]) / np.sqrt(2))


def test_independent_is_what_the_sampler_draws():
    key, shape = jax.random.key(11), (4, 4, 3)
    x = noise.Independent()(key, 5, shape)
    for k in range(5):
        np.testing.assert_array_equal(x[k], jax.random.normal(jax.random.fold_in(key, k), shape))
    sampler = Sampler(backbone=nn.Dense(1), language_model=nn.Dense(1), vae=None, shape=shape)
    seeds = jnp.asarray([2, 9])
    keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(seeds)
    np.testing.assert_array_equal(
        jax.vmap(lambda key: noise.Independent()(key, 5, shape))(keys),
        sampler.start(key, seeds, 5)[0],
    )


@pytest.mark.parametrize("shape", [(1, 2, 4), LARGE])
class TestCosines:
    """At K = d and at K << d."""

    def test_orthogonal(self, shape):
        x = noise.Orthogonal()(jax.random.key(0), 8, shape)
        np.testing.assert_allclose(cosines(x), np.eye(8), atol=1e-6)

    def test_antithetic(self, shape):
        x = noise.Antithetic()(jax.random.key(0), 8, shape)
        np.testing.assert_array_equal(x[1::2], -x[::2])
        want = np.kron(np.eye(4), [[1, -1], [-1, 1]])
        np.testing.assert_allclose(cosines(x), want, atol=1e-6)
        np.testing.assert_allclose((cosines(x).sum() - 8) / 56, -1 / 7, atol=1e-6)

    @pytest.mark.parametrize("cosine", [-1 / 7, -0.1, 0.0, 0.5, 0.999])
    def test_repelled(self, shape, cosine):
        x = noise.Repelled(cosine=cosine)(jax.random.key(0), 8, shape)
        want = cosine + (1 - cosine) * np.eye(8)
        np.testing.assert_allclose(cosines(x), want, atol=1e-6)


def test_lengths_are_those_of_the_independent_noise():
    want = jnp.linalg.norm(noise.Independent()(jax.random.key(2), 8, LARGE).reshape(8, -1), axis=1)
    for family in (noise.Orthogonal(), noise.Repelled(cosine=-0.1)):
        x = family(jax.random.key(2), 8, LARGE).reshape(8, -1)
        np.testing.assert_allclose(jnp.linalg.norm(x, axis=1), want, rtol=1e-5)


def test_in_many_dimensions_there_is_little_to_make_orthogonal():
    g = noise.Independent()(jax.random.key(4), 8, LARGE)
    pairs = cosines(g)[np.triu_indices(8, 1)]
    assert 0.002 < pairs.std() < 0.006
    moved = noise.Orthogonal()(jax.random.key(4), 8, LARGE) - g
    share = np.linalg.norm(moved.reshape(8, -1), axis=1) / np.linalg.norm(g.reshape(8, -1), axis=1)
    assert 0.003 < share.max() < 0.02


def test_no_cosine_is_orthogonal():
    key = jax.random.key(6)
    np.testing.assert_allclose(
        noise.Repelled(cosine=0.0)(key, 4, SMALL), noise.Orthogonal()(key, 4, SMALL), atol=1e-6
    )


@pytest.mark.parametrize("number", range(1, 12))
def test_the_mixing_is_a_cholesky_factor(number):
    lowest = -1 / max(number - 1, 1)
    for c in (lowest, 0.9 * lowest, 0.3, 0.999):
        factor = noise._equicorrelated(number, c)
        np.testing.assert_array_equal(np.triu(factor, 1), 0)
        np.testing.assert_allclose(factor @ factor.T, c + (1 - c) * np.eye(number), atol=1e-12)


class TestLowFrequency:
    shape = (4, 6, 2)

    def split(self, x, cutoff):
        """The DCT by scipy, low and high coefficients: [K, low], [K, high]."""
        z = fft.dctn(np.asarray(x, np.float64), axes=(1, 2), norm="ortho")
        h, w, _ = self.shape
        low = np.array([[u / h + v / w < cutoff for v in range(w)] for u in range(h)])
        return z[:, low].reshape(len(x), -1), z[:, ~low].reshape(len(x), -1)

    @pytest.mark.parametrize("cutoff", [0.3, 0.8])
    def test_only_the_low_part_is_coupled(self, cutoff):
        x = noise.LowFrequency(cutoff=cutoff)(jax.random.key(0), 4, self.shape)
        low, high = self.split(x, cutoff)
        np.testing.assert_allclose(low[1::2], -low[::2], atol=2e-6)
        pairs = cosines(high)[np.triu_indices(4, 1)]
        assert (np.abs(pairs) < 4 / np.sqrt(high.shape[1])).all()

    def test_the_high_part_is_independent(self):
        family = noise.LowFrequency(cutoff=0.6)
        x = draws(family).reshape(KEYS, 4, *SMALL)
        z = fft.dctn(x, axes=(2, 3), norm="ortho")[..., 0]
        # The products of partners' coefficients: -1 where coupled, 0 where not.
        product = (z[:, 0] * z[:, 1]).mean(axis=0)
        np.testing.assert_allclose(product, [[-1, -1, 0], [-1, 0, 0]], atol=5 * np.sqrt(2 / KEYS))

    def test_base_decides_the_cosine(self):
        family = noise.LowFrequency(cutoff=0.8, base=noise.Repelled(cosine=-0.25))
        low, _ = self.split(family(jax.random.key(0), 4, self.shape), 0.8)
        np.testing.assert_allclose(cosines(low), -0.25 + 1.25 * np.eye(4), atol=1e-6)

    def test_everything_below_two(self):
        x = noise.LowFrequency(cutoff=2.0)(jax.random.key(0), 4, self.shape)
        np.testing.assert_allclose(x[1::2], -x[::2], atol=2e-6)

    @pytest.mark.parametrize("cutoff", [0.0, -1.0, 2.1])
    def test_cutoff_outside_its_range_is_refused(self, cutoff):
        with pytest.raises(ValueError, match="cutoff"):
            noise.LowFrequency(cutoff=cutoff)


def test_equal_angles_of_more_samples_than_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"7 samples .* in 6 dimensions: draw at most 6, or set"):
        noise.Repelled(cosine=0.1)(jax.random.key(0), 7, SMALL)


def test_more_samples_than_dimensions_begin_another_frame():
    few = jax.jit(
        lambda number: noise.Orthogonal()(jax.random.key(0), number, (1, 3, 1)), static_argnums=0
    )
    x = few(8)
    c = cosines(x)
    for first in (0, 3, 6):
        frame = slice(first, first + 3)
        np.testing.assert_allclose(c[frame, frame], np.eye(len(c[frame])), atol=1e-6)
    assert np.abs(c[:3, 3:6]).max() > 0.1
    np.testing.assert_allclose(few(4), x[:4], atol=1e-6)
    pairs = noise.Antithetic()(jax.random.key(0), 13, SMALL)
    np.testing.assert_array_equal(pairs[1:12:2], -pairs[0:12:2])


@pytest.mark.parametrize("cosine", [-1.01, 1.0])
def test_a_cosine_nobody_can_have_is_refused(cosine):
    with pytest.raises(ValueError, match=r"noise\.repelled\.cosine must be in"):
        noise.Repelled(cosine=cosine)


@pytest.mark.parametrize(("number", "cosine"), [(1, -0.1), (2, -1.0), (5, -1.0), (5, -0.3)])
def test_too_many_for_a_cosine_are_as_far_apart_as_can_be(number, cosine):
    x = noise.Repelled(cosine=cosine)(jax.random.key(0), number, SMALL)
    farthest = -1 / max(number - 1, 1)
    want = farthest + (1 - farthest) * np.eye(number)
    np.testing.assert_allclose(cosines(x), want, atol=1e-6)


class TestTheArc:
    def test_equal_angles_from_one_sample_to_another(self):
        key, shape = jax.random.key(5), (4, 4, 2)

        def walk(number, reach=1.0):
            family = noise.Slerp(towards=3, reach=reach)
            return jax.jit(lambda key: family(key, number, shape))(key)

        x, g = walk(5), noise.Independent()(key, 4, shape)
        np.testing.assert_allclose(x[0], g[0], atol=1e-5)
        np.testing.assert_allclose(x[-1], g[3], atol=1e-5)
        whole = np.arccos(cosines(g)[0, 3])
        angles = np.arccos(np.diagonal(cosines(x), 1))
        np.testing.assert_allclose(angles, whole / 4, atol=1e-5)
        np.testing.assert_allclose(walk(3, reach=0.5), x[:3], atol=1e-5)
        np.testing.assert_allclose(walk(1), g[:1], atol=1e-5)

    def test_the_ends_are_standard_normal_and_what_lies_between_is_nearly(self):
        x = draws(noise.Slerp())
        assert is_standard_normal(x[:, 0]) and is_standard_normal(x[:, 3])
        length = np.linalg.norm(x, axis=-1, keepdims=True)
        # Any direction, at a length of the right mean and too little spread.
        chi = length[:, :1][np.random.default_rng(0).permutation(KEYS)]
        assert is_standard_normal((x / length * chi)[:, 1])
        assert not is_standard_normal(x[:, 1])
        mean, spread = length.mean(axis=(0, 2)), length.std(axis=(0, 2))
        np.testing.assert_allclose(mean, mean[0], rtol=0.01)
        np.testing.assert_allclose(spread[1] / spread[0], np.sqrt(5) / 3, rtol=0.03)

    @pytest.mark.parametrize("knobs", [{"towards": 0}, {"reach": 0.0}, {"reach": 1.1}])
    def test_a_walk_to_nowhere_is_refused(self, knobs):
        with pytest.raises(ValueError, match=r"noise\.slerp needs"):
            noise.Slerp(**knobs)


slerp = jax.jit(noise.slerp)


class TestSlerp:
    def angle(self, a, b):
        a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
        u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
        return 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))

    def norm(self, x):
        return float(np.linalg.norm(np.asarray(x, np.float64)))

    @pytest.mark.parametrize("s", [0.0, 0.1, 0.5, 0.8, 1.0])
    def test_formula(self, s):
        a, b = normal(3, 4, 2), 2 * normal(3, 4, 2, seed=1)
        w, one, other = self.angle(a, b), self.norm(a), self.norm(b)
        direction = (np.sin((1 - s) * w) * a / one + np.sin(s * w) * b / other) / np.sin(w)
        want = ((1 - s) * one + s * other) * direction
        np.testing.assert_allclose(slerp(a, b, s), want, atol=1e-5)
        np.testing.assert_allclose(slerp(a, b, jnp.float32(s)), want, atol=1e-5)
        np.testing.assert_allclose(slerp(b, a, 1 - s), want, atol=1e-5)

    @pytest.mark.parametrize("factor", [1.0, 3.7, -1.0, -3.7])
    @pytest.mark.parametrize("shape", [(2,), (7,), LARGE])
    def test_parallel_and_antiparallel(self, shape, factor):
        a = normal(*shape)
        b = factor * a
        for s in (0.0, 0.25, 0.5, 1.0):
            x = slerp(a, b, s)
            length = (1 - s + s * abs(factor)) * self.norm(a)
            np.testing.assert_allclose(self.norm(x), length, rtol=1e-5)
            turned = s * np.pi if factor < 0 else 0
            np.testing.assert_allclose(self.angle(a, x), turned, atol=1e-5)

    def test_half_way_between_opposites_is_a_quarter_turn(self):
        a = normal(6)
        want = jnp.concatenate([a[3:], -a[:3]])
        np.testing.assert_allclose(slerp(a, -a, 0.5), want, atol=1e-6)

    def test_half_way_between_opposites_is_noise(self):
        x = draws(FAMILIES["antithetic"]).astype(np.float32)
        half = jax.vmap(lambda a, b: slerp(a, b, 0.4))(x[:, 0], x[:, 1])
        assert is_standard_normal(np.asarray(half, np.float64))

    def test_close_directions_and_their_ends(self):
        a = normal(50)
        for size in (1e-3, 1e-5, 1e-7):
            for sign in (1.0, -1.0):
                b = sign * a + size * normal(50, seed=2)
                np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-4)
                np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-4)
                half = slerp(a, b, 0.5)
                np.testing.assert_allclose(self.norm(half), self.norm(a), rtol=1e-2)

    def test_gradients_are_finite(self):
        a = normal(6)
        slope = jax.jit(jax.grad(lambda a, b: slerp(a, b, 0.3).sum(), argnums=(0, 1)))
        for factor in (1.0, -1.0, 0.0):
            assert all(np.isfinite(part).all() for part in slope(a, factor * a))

    def test_nothing_is_as_long_as_the_way(self):
        b = normal(6)
        np.testing.assert_allclose(slerp(jnp.zeros(6), b, 0.25), 0.25 * b, atol=1e-6)
        np.testing.assert_array_equal(slerp(jnp.zeros(6), jnp.zeros(6), 0.5), 0)
        np.testing.assert_allclose(
            slerp(jnp.asarray([2.0]), jnp.asarray([-2.0]), 0.5), 0, atol=1e-6
        )


def lengths(z):
    return jnp.linalg.norm(z.reshape(z.shape[0], -1), axis=1)


class TestOptimise:
    matrix = normal(6, 5)
    wish = normal(5, seed=1)

    def draw(self, z):
        return z.reshape(z.shape[0], -1) @ self.matrix

    def cost(self, x):
        return ((x - self.wish.reshape(1, -1)) ** 2).sum(axis=1)

    def by_hand(self, z, steps, rate, pull):
        start = z = np.asarray(z, np.float64).reshape(len(z), -1)
        length, matrix = np.linalg.norm(z, axis=1, keepdims=True), np.asarray(self.matrix)
        history = []
        for _ in range(steps):
            error = z @ matrix - np.asarray(self.wish)
            history.append((error**2).sum(axis=1))
            gradient = 2 * error @ matrix.T
            gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
            z = z - rate * length * gradient
            z = (1 - pull) * z + pull * start
            z *= length / np.linalg.norm(z, axis=1, keepdims=True)
        return z, np.asarray(history)

    @pytest.mark.parametrize("pull", [0.0, 0.2])
    def test_steps_by_hand_on_a_quadratic(self, pull):
        z = normal(3, 2, 3, seed=4)
        found, costs = noise.optimise(self.draw, z, self.cost, steps=6, rate=0.1, pull=pull)
        want, history = self.by_hand(z, 6, 0.1, pull)
        assert found.shape == z.shape and costs.shape == (6, 3)
        np.testing.assert_allclose(found.reshape(3, -1), want, atol=1e-4)
        np.testing.assert_allclose(costs, history, rtol=1e-4)
        np.testing.assert_allclose(lengths(found), lengths(z), rtol=1e-5)
        np.testing.assert_allclose(costs[0], self.cost(self.draw(z)), rtol=1e-5)
        assert (costs[-1] < costs[0]).all()

    def test_a_linear_cost_is_solved(self):
        z, slope = normal(4, 6), normal(6, seed=3)
        found, history = noise.optimise(
            lambda z: z, z, lambda x: (x * slope.reshape(1, -1)).sum(), steps=150, rate=0.1
        )
        assert history.shape == (150,)
        lowest = -(lengths(z) * jnp.linalg.norm(slope)).sum()
        np.testing.assert_allclose(history[-1], lowest, rtol=1e-4)
        want = -lengths(z).reshape(-1, 1) * (slope / jnp.linalg.norm(slope)).reshape(1, -1)
        np.testing.assert_allclose(found, want, atol=1e-2)

    def test_rate_is_an_angle(self):
        z = 5 * jnp.eye(2)
        sideways = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])
        found, _ = noise.optimise(
            lambda z: z, z, lambda x: 1e-6 * (x * sideways).sum(), steps=1, rate=0.1
        )
        cosine = (found * z).sum(axis=1) / 25
        np.testing.assert_allclose(jnp.arccos(cosine), np.arctan(0.1), atol=1e-4)

    def test_pull_keeps_near_the_start(self):
        z = normal(8, 6, seed=5)

        def away(pull):
            found, _ = noise.optimise(self.draw, z, self.cost, steps=100, rate=0.05, pull=pull)
            return lengths(found - z) / lengths(z)

        free, held = away(0.0), away(0.3)
        assert (held < 1.2 * 0.05 * 0.7 / 0.3).all() and (held < free).all()
        assert free.max() > 0.5

    def test_rows_keep_apart_and_a_row_without_gradient_stays(self):
        z = normal(3, 6, seed=6)
        found, _ = noise.optimise(self.draw, z, self.cost, steps=5, rate=0.1)
        alone, _ = noise.optimise(self.draw, z[1:2], self.cost, steps=5, rate=0.1)
        np.testing.assert_allclose(found[1:2], alone, atol=1e-5)
        weight = jnp.asarray([1.0, 0.0, 1.0])
        still, _ = noise.optimise(self.draw, z, lambda x: weight * self.cost(x), steps=5, rate=0.1)
        np.testing.assert_allclose(still[1], z[1], atol=1e-5)
        np.testing.assert_allclose(still[0], found[0], atol=1e-5)
        zero, _ = noise.optimise(self.draw, 0 * z, self.cost, steps=5, rate=0.1)
        np.testing.assert_array_equal(zero, 0)

    @pytest.mark.parametrize("again", [lambda f: f, jax.checkpoint])
    def test_through_a_rollout_to_more_diverse_samples(self, again):
        """dz/dt = z M + tanh(z) drawn by Euler; the cosine within each prompt is to fall."""
        matrix = 0.5 * normal(6, 6, seed=7)

        @again
        def velocity(z, t):
            return z @ matrix * t.reshape(-1, 1) + jnp.tanh(z)

        def draw(z):
            return Euler()(velocity, z, 8)

        def cost(x):
            return similarity.mean_cosine(x.reshape(2, 4, 6))

        z = 1 + normal(8, 6, seed=8)
        found, history = jax.jit(lambda z: noise.optimise(draw, z, cost, steps=40, rate=0.05))(z)
        assert history.shape == (40, 2)
        np.testing.assert_allclose(history[0], cost(draw(z)), atol=1e-5)
        assert (history[0] > 0.1).all() and (cost(draw(found)) < -0.2).all()
        np.testing.assert_allclose(lengths(found), lengths(z), rtol=1e-5)

    @pytest.mark.parametrize("knobs", [{"steps": 0}, {"rate": 0.0}, {"pull": 1.0}, {"pull": -0.1}])
    def test_knobs_outside_their_range_are_refused(self, knobs):
        with pytest.raises(ValueError, match="steps must be at least 1"):
            noise.optimise(
                self.draw, normal(2, 6), self.cost, **({"steps": 1, "rate": 0.1} | knobs)
            )
