import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.diversity import repulsion, similarity
from cosdiff_jax.flow.guidance import ClassifierFree
from cosdiff_jax.flow.solver import Euler, Heun
from cosdiff_jax.shapes import TextStream

P, K = 3, 4
# As --method=svgd takes it: a trace of the scores, and the estimates are kept apart.
ANNEALED = partial(repulsion.Svgd, drive=0.01, clean=True)
ALL = [repulsion.ParticleGuidance, repulsion.Svgd, ANNEALED, repulsion.DiverseFlow]
EVERYWHERE = (0.0, 1.0)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@jax.jit
def field(z, t):
    return jnp.sin(3 * z) + t.reshape(-1, 1, 1)


@functools.cache
def compiled(made, samples=K):
    return jax.jit(made(field, samples))


def times(t, rows=P * K):
    return jnp.full((rows,), t)


def feature(x0):
    x0 = x0.reshape(x0.shape[0], -1)
    return jnp.stack([jnp.sin(x0[:, 0]), x0[:, 1] * x0[:, 2], x0[:, 5] ** 2], axis=1)


def extra_score(made, z, t, samples=K):
    """g, from how much the field changes where no bound acts: dv = -w t / (1 - t) g."""
    made = partial(made, weight=0.5, largest=1e9, interval=EVERYWHERE)()
    dv = compiled(made, samples)(z, times(t, len(z))) - field(z, times(t, len(z)))
    return -dv * (1 - t) / t / 0.5


def distances(f):
    f = np.asarray(f, np.float64).reshape(len(f), -1)
    return np.linalg.norm(f[:, None] - f[None], axis=-1)


def slope(value, x, h=1e-4):
    """Central differences in double precision."""
    x = np.asarray(x, np.float64)
    found = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = h
        found[place] = (value(x + step) - value(x - step)) / (2 * h)
    return found


def estimates(z, t):
    return np.asarray(z - t * field(z, times(t, len(z))), np.float64).reshape(P, K, 2, 3)


def features_of(x0, space):
    """Of one group, by numpy, in the latent or in the feature space."""
    f = x0.reshape(len(x0), -1)
    if space is None:
        return f
    return np.stack([np.sin(f[:, 0]), f[:, 1] * f[:, 2], f[:, 5] ** 2], axis=1)


@pytest.mark.parametrize("space", [None, feature])
def test_particle_guidance_is_the_gradient_of_its_potential(space):
    z, t = draw(P * K, 2, 3), 0.7
    got = extra_score(partial(repulsion.ParticleGuidance, feature=space), z, t)
    for group, found in zip(estimates(z, t), got.reshape(P, K, 2, 3), strict=True):
        f = features_of(group, space)
        for i in range(K):
            others = np.delete(f, i, axis=0)
            h = np.median(np.delete(distances(f)[i], i)) ** 2 / np.log(K)

            def potential(x, others=others, h=h):
                own = features_of(x[None], space)
                return -np.exp(-((own - others) ** 2).sum(-1) / h).sum()

            np.testing.assert_allclose(found[i], slope(potential, group[i]), atol=2e-5)


@pytest.mark.parametrize("space", [None, feature])
def test_diverse_flow_is_the_gradient_of_its_determinants(space):
    z, t = draw(P * K, 2, 3), 0.7
    made = partial(repulsion.DiverseFlow, feature=space, spread=0.7, jitter=1e-2)
    got = extra_score(made, z, t)
    for group, found in zip(estimates(z, t), got.reshape(P, K, 2, 3), strict=True):
        m = np.median(distances(features_of(group, space))[np.triu_indices(K, 1)])

        def potential(x, m=m):
            kernel = np.exp(-0.7 * distances(features_of(x, space)) ** 2 / m**2)
            (_, own), (_, more) = map(
                np.linalg.slogdet, (kernel + 1e-2 * np.eye(K), kernel + np.eye(K))
            )
            return own - more

        np.testing.assert_allclose(found, slope(potential, group), atol=2e-4)


@pytest.mark.parametrize(("drive", "clean"), [(1.0, False), (0.3, False), (0.3, True)])
def test_svgd_sums_the_scores_and_the_slopes_of_the_kernel(drive, clean):
    z, t = draw(P * K, 2, 3), 0.7
    got = extra_score(partial(repulsion.Svgd, drive=drive, clean=clean), z, t).reshape(P, K, -1)
    score = np.asarray(-(z + (1 - t) * field(z, times(t))) / t, np.float64).reshape(P, K, -1)
    points = np.asarray(estimates(z, t) if clean else z, np.float64).reshape(P, K, -1)
    for p in range(P):
        for i in range(K):
            h = np.median(np.delete(distances(points[p])[i], i)) ** 2 / np.log(K)

            def kernel(x, p=p, i=i, h=h):
                return np.exp(-((x - points[p, i]) ** 2).sum() / h)

            pairs = zip(points[p], score[p], strict=True)
            terms = [drive * kernel(x) * s + slope(kernel, x) for x, s in pairs]
            np.testing.assert_allclose(got[p, i], np.mean(terms, axis=0), atol=2e-5)


def test_svgd_leaves_a_group_that_is_spread_as_it_should_be():
    """Stein's identity: for x0 ~ N(0, 1) the plain field already draws from p_t."""
    t, rows = times(0.6, 800), 800
    z = np.sqrt(0.4**2 + 0.6**2) * draw(rows, 1)

    def gaussian(z, t):
        t = t[:, None]
        return z * (2 * t - 1) / ((1 - t) ** 2 + t**2)

    @jax.jit
    def moved(z):
        made = repulsion.Svgd(interval=EVERYWHERE, largest=1e9)
        return jnp.sqrt(jnp.mean((made(gaussian, rows)(z, t) - gaussian(z, t)) ** 2))

    assert moved(z) < 0.2 * min(moved(0.3 * z), moved(z + 1.0))


def test_svgd_without_a_drive_is_particle_guidance_of_the_estimates():
    z, t = draw(P * K, 2, 3), times(0.7)
    undriven = repulsion.Svgd(weight=2.0, drive=0.0, clean=True, interval=EVERYWHERE)
    particles = repulsion.ParticleGuidance(weight=2.0 / K, interval=EVERYWHERE)
    np.testing.assert_allclose(compiled(undriven)(z, t), compiled(particles)(z, t), atol=1e-6)


def test_svgd_refuses_a_drive_uphill():
    with pytest.raises(ValueError, match="drive of svgd must be at least 0, not -1"):
        repulsion.Svgd(drive=-1.0)


@pytest.mark.parametrize("cls", ALL)
class TestRepulsion:
    def test_it_fits_the_protocol(self, cls):
        assert isinstance(cls(), repulsion.Repulsion)

    def test_one_sample_has_the_field_itself(self, cls):
        assert cls()(field, 1) is field

    def test_outside_the_interval_the_field_is_the_plain_one_bit_for_bit(self, cls):
        z, t = draw(P * K, 2, 3), jnp.linspace(0.0, 1.0, P * K)
        inside = (t >= 0.3) & (t <= 0.6)
        v = compiled(cls(interval=(0.3, 0.6)))(z, t)
        plain = field(z, t)
        np.testing.assert_array_equal(v[~inside], plain[~inside])
        assert (jnp.abs(v - plain).max((1, 2))[inside] > 1e-4).all()

    def test_groups_do_not_meet(self, cls):
        made = compiled(cls(interval=EVERYWHERE))
        z, other = draw(P * K, 2, 3), draw(P * K, 2, 3, seed=1)
        swapped = z.at[K : 2 * K].set(other[K : 2 * K])
        before, after = made(z, times(0.7)), made(swapped, times(0.7))
        apart = np.r_[0:K, 2 * K : P * K]
        np.testing.assert_array_equal(before[apart], after[apart])
        # A neighbour in the same group is felt, so the test above could fail.
        nudged = made(z.at[0].add(1.0), times(0.7))
        assert jnp.abs(nudged - before)[1:K].max() > 1e-4

    def test_prompt_by_prompt_under_jit_and_vmap_it_is_the_same(self, cls):
        made = compiled(cls(interval=EVERYWHERE))
        z, t = draw(P * K, 2, 3), times(0.7)
        each = jax.vmap(made)(z.reshape(P, K, 2, 3), t.reshape(P, K))
        np.testing.assert_allclose(each.reshape(z.shape), made(z, t), atol=1e-5)

    def test_the_order_within_a_group_does_not_matter(self, cls):
        made = compiled(cls(interval=EVERYWHERE))
        z, t = draw(P * K, 2, 3), times(0.7)
        order = np.concatenate([K * p + np.random.default_rng(p).permutation(K) for p in range(P)])
        np.testing.assert_allclose(made(z[order], t), made(z, t)[order], atol=1e-5)

    @pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("same", [2, 3, K])
    def test_identical_samples_get_finite_and_identical_velocities(self, cls, t, same):
        z = draw(P, K, 2, 3)
        z = z.at[:, :same].set(z[:, :1]).reshape(P * K, 2, 3)
        v = compiled(cls(interval=EVERYWHERE))(z, times(t))
        assert jnp.isfinite(v).all()
        alike = v.reshape(P, K, 2, 3)[:, :same]
        np.testing.assert_allclose(alike, jnp.broadcast_to(alike[:, :1], alike.shape), atol=1e-4)
        if same == K and cls not in (repulsion.Svgd, ANNEALED):  # scores move them together
            np.testing.assert_array_equal(v, field(z, times(t)))

    @pytest.mark.parametrize("t", [0.6, 1.0])
    def test_the_change_of_a_row_is_a_bounded_share_of_its_velocity(self, cls, t):
        z = draw(P * K, 2, 3)
        plain = field(z, times(t))
        v = compiled(cls(weight=1e4, interval=EVERYWHERE, largest=0.25))(z, times(t))
        share = jnp.linalg.norm((v - plain).reshape(P * K, -1), axis=1)
        share /= jnp.linalg.norm(plain.reshape(P * K, -1), axis=1)
        np.testing.assert_allclose(share, 0.25, rtol=1e-3)

    @pytest.mark.parametrize("t", [0.6, 1.0])
    def test_zeros_are_harmless(self, cls, t):
        still = jax.jit(cls(interval=EVERYWHERE)(lambda z, t: jnp.zeros_like(z), K))
        assert not still(jnp.zeros((P * K, 2, 3)), times(t)).any()
        z = draw(P * K, 2, 3)
        unweighted = compiled(cls(weight=0.0, interval=EVERYWHERE))(z, times(t))
        np.testing.assert_array_equal(unweighted, field(z, times(t)))

    def test_two_samples_part(self, cls):
        """Both at eps = 0, where the score is 0: what is left is the push."""
        z, t = draw(2, 1, 2) + jnp.full((1, 1, 2), 5.0), times(0.7, 2)

        def plain(z, t):
            return -z / (1 - t.reshape(-1, 1, 1))

        made = jax.jit(cls(interval=EVERYWHERE)(plain, 2))
        moved = z - 0.05 * (made(z, t) - plain(z, t))
        assert jnp.linalg.norm(moved[0] - moved[1]) > 1.001 * jnp.linalg.norm(z[0] - z[1])

    def test_rows_that_are_no_groups_are_refused(self, cls):
        with pytest.raises(ValueError, match="12 rows are no groups of 5"):
            cls()(field, 5)(draw(12, 2, 3), times(0.7))

    def test_knobs_below_zero_are_refused(self, cls):
        with pytest.raises(ValueError, match="weight of a repulsion"):
            cls(weight=-1.0)
        with pytest.raises(ValueError, match="largest"):
            cls(largest=-0.1)


def test_no_feature_is_taken_outside_the_interval():
    taken = []

    def seen(x0):
        jax.debug.callback(lambda: taken.append(1))
        return feature(x0)

    made = jax.jit(repulsion.ParticleGuidance(interval=(0.5, 0.9), feature=seen)(field, K))
    for t, times_taken in ((0.95, 0), (0.4, 0), (0.7, 1)):
        made(draw(P * K, 2, 3), times(t))
        jax.effects_barrier()
        assert len(taken) == times_taken


ANGLES = 2 * jnp.pi * jnp.arange(5) / 5
MODES = 2 * jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=1)
WIDTH = 0.1


def mixture(z, t):
    """The exact field of five equal Gaussians: v = (z - E[x0 | z]) / t."""
    t = t[:, None]
    variance = ((1 - t) * WIDTH) ** 2 + t**2
    from_mode = z[:, None] - (1 - t)[..., None] * MODES[None]
    share = jax.nn.softmax(-jnp.sum(from_mode**2, axis=-1) / (2 * variance), axis=-1)
    clean = MODES[None] + ((1 - t) * WIDTH**2 / variance)[..., None] * from_mode
    return (z - jnp.einsum("bm,bmf->bf", share, clean)) / t


@functools.cache
def ends(velocity):
    """Of 64 groups: mean cosine, mean distance in a group, each one's distance to a mode."""

    @jax.jit
    def run(z):
        x = Euler()(velocity, z, 25)
        groups = x.reshape(-1, 5, 2)
        apart = jnp.sqrt(jnp.sum((groups[:, :, None] - groups[:, None]) ** 2, axis=-1))
        nearest = jnp.sqrt(jnp.sum((x[:, None] - MODES[None]) ** 2, axis=-1)).min(1)
        return similarity.mean_cosine(groups).mean(), apart.mean(), nearest

    return run(draw(64 * 5, 2))


@pytest.mark.parametrize(
    "made",
    [
        repulsion.ParticleGuidance(weight=0.3, largest=1.0),
        repulsion.ParticleGuidance(weight=0.3, largest=1.0, feature=jnp.tanh),
        repulsion.Svgd(weight=0.3, largest=1.0),
        ANNEALED(weight=1.5, largest=1.0),  # five samples share it
        repulsion.DiverseFlow(weight=0.3, largest=1.0),
    ],
)
def test_groups_spread_over_the_modes_and_stay_near_them(made):
    cosine, apart, nearest = ends(made(mixture, 5))
    plain_cosine, plain_apart, plain_nearest = ends(mixture)
    assert cosine < plain_cosine - 0.03
    assert apart > 1.03 * plain_apart
    assert nearest.max() < 5.5 * WIDTH and nearest.mean() < 1.3 * plain_nearest.mean()


# Heun's rule also evaluates at t = 0, where the score has its 1 / t.
@pytest.mark.parametrize(
    ("cls", "solver"), list(zip(ALL, (Euler(), Heun(), Heun(), Euler()), strict=True))
)
def test_over_guidance_and_under_a_solver_it_is_one_compiled_field(cls, solver):
    def text(prompts, fill):
        kv = jnp.full((1, prompts, 2, 1, 2), fill)
        mask = jnp.ones((prompts, 2), bool)
        return TextStream(keys=kv, values=kv, hidden=jnp.full((prompts, 2, 2), fill), mask=mask)

    def backbone(z, t, stream):
        told = jnp.repeat(stream.hidden.mean((1, 2)), z.shape[0] // stream.mask.shape[0])
        return field(z, t) * told.reshape(-1, 1, 1)

    guided = ClassifierFree(scale=2.0, start=False)(backbone, text(P, 1.5), text(1, 1.0))
    velocity = jax.jit(cls(interval=EVERYWHERE)(guided, K))
    z = draw(P * K, 2, 3)
    got, plain = (jax.jit(lambda z, v=v: solver(v, z, 4))(z) for v in (velocity, guided))
    assert jnp.isfinite(got).all() and jnp.abs(got - plain).max() > 1e-3
    if isinstance(solver, Euler):
        want = z
        for i in range(4):
            want = want - velocity(want, times(1 - i / 4)) / 4
        np.testing.assert_allclose(got, want, atol=1e-4)
