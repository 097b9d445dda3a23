import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from cosdiff_jax.diversity import similarity


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def brute(f):
    """Mean over pairs, in double precision, one pair at a time."""
    f = np.asarray(f, np.float64)
    n = len(f)
    cosines = [
        f[i] @ f[j] / (np.linalg.norm(f[i]) * np.linalg.norm(f[j]))
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    return np.mean(cosines), np.sort(cosines)[::-2]


@pytest.mark.parametrize("n", [2, 3, 8])
def test_mean_is_the_mean_over_all_pairs(n):
    f = draw(3, n, 5)
    want = [brute(group)[0] for group in f]
    np.testing.assert_allclose(similarity.mean_cosine(f), want, atol=1e-6)
    matrix = similarity.cosine_matrix(f)
    np.testing.assert_allclose(jnp.diagonal(matrix, axis1=1, axis2=2), 1.0, atol=1e-6)
    off = (matrix.sum((1, 2)) - n) / (n * (n - 1))
    np.testing.assert_allclose(similarity.mean_cosine(f), off, atol=1e-6)


@pytest.mark.parametrize(
    ("percent", "pairs"), [(1.0, 1), (10.0, 3), (20.0, 6), (50.0, 14), (100.0, 28)]
)
def test_top_takes_the_highest_pairs(percent, pairs):
    f = draw(2, 8, 5)
    want = [brute(group)[1][:pairs].mean() for group in f]
    np.testing.assert_allclose(similarity.top_cosine(f, percent), want, atol=1e-6)


def test_all_pairs_on_top_are_the_mean():
    f = draw(4, 6, 3)
    np.testing.assert_allclose(
        similarity.top_cosine(f, 100.0), similarity.mean_cosine(f), atol=1e-6
    )


@pytest.mark.parametrize(
    "measure", [similarity.mean_cosine, lambda f: similarity.top_cosine(f, 30.0)]
)
class TestMeasure:
    def test_gradient_by_finite_differences(self, measure):
        f, direction = draw(2, 5, 4), draw(2, 5, 4, seed=1)
        h = 1e-2
        slope = (measure(f + h * direction) - measure(f - h * direction)) / (2 * h)
        _, tangent = jax.jvp(measure, (f,), (direction,))
        np.testing.assert_allclose(tangent, slope, atol=2e-3)

    def test_order_and_length_do_not_matter(self, measure):
        f = draw(2, 6, 4)
        length = jnp.exp(3 * draw(2, 6, 1, seed=1))
        moved = f[:, ::-1] * length
        np.testing.assert_allclose(measure(f), measure(moved), atol=1e-6)
        slope = jax.grad(lambda f: jnp.array([1.0, -2.0]) @ measure(f))
        np.testing.assert_allclose(slope(moved) * length, slope(f)[:, ::-1], atol=1e-6)

    def test_groups_do_not_meet(self, measure):
        f = draw(3, 4, 5)
        gradient = jax.grad(lambda f: measure(f)[1])(f)
        assert not gradient[0].any() and not gradient[2].any() and gradient[1].any()
        alone = jax.vmap(measure)(f)
        np.testing.assert_allclose(measure(f), alone, atol=1e-6)

    @pytest.mark.parametrize("zeros", [1, 4])
    def test_zero_vectors_are_harmless(self, measure, zeros):
        f = draw(2, 4, 5).at[:, :zeros].set(0)
        value, gradient = jax.value_and_grad(lambda f: measure(f).sum())(f)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        assert not gradient[:, :zeros].any()
        if zeros == 4:
            np.testing.assert_array_equal(measure(f), 0)

    def test_identical_samples_have_cosine_one(self, measure):
        f = jnp.repeat(draw(2, 1, 5), 4, axis=1)
        np.testing.assert_allclose(measure(f), 1, atol=1e-6)
        assert np.isfinite(jax.grad(lambda f: measure(f).sum())(f)).all()

    @pytest.mark.parametrize("size", [1e-30, 1e-8, 1e25, 1e30])
    def test_size_of_the_features_does_not_matter(self, measure, size):
        f = draw(2, 4, 5)
        np.testing.assert_allclose(measure(f * size), measure(f), atol=1e-6)
        assert np.isfinite(jax.grad(lambda f: measure(f).sum())(f * size)).all()

    def test_the_slope_is_that_over_the_size(self, measure, size=2.0**99):
        f = draw(2, 4, 5)
        slope = jax.grad(lambda f: measure(f).sum())
        for scale in (size, 1 / size):
            np.testing.assert_allclose(slope(f * scale) * scale, slope(f), atol=1e-6)

    def test_a_descent_step_opens_the_angles(self, measure):
        f = draw(2, 6, 8) + 2
        gradient = jax.grad(lambda f: measure(f).sum())(f)
        assert (measure(f - 0.1 * gradient) < measure(f)).all()

    def test_one_sample_is_refused(self, measure):
        with pytest.raises(ValueError, match="at least 2 samples"):
            measure(draw(3, 1, 4))


@pytest.mark.parametrize("n", [2, 4, 8])
def test_lowest_mean_is_reached_by_a_simplex(n):
    simplex = jnp.eye(n) - 1 / n
    np.testing.assert_allclose(similarity.mean_cosine(simplex), -1 / (n - 1), atol=1e-6)
    many = similarity.mean_cosine(draw(500, n, 3))
    assert (many >= -1 / (n - 1) - 1e-6).all() and (many <= 1 + 1e-6).all()


def test_masked_samples_do_not_count():
    f = draw(3, 6, 4)
    mask = jnp.asarray([[1, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0], [1] * 6], bool)
    mean = similarity.mean_cosine(f, mask)
    top = similarity.top_cosine(f, 50.0, mask)
    kept = f[0][mask[0]]
    np.testing.assert_allclose(mean[0], brute(kept)[0], atol=1e-6)
    np.testing.assert_allclose(top[0], brute(kept)[1][:3].mean(), atol=1e-6)
    assert mean[1] == 0 and top[1] == 0
    np.testing.assert_allclose(mean[2], brute(f[2])[0], atol=1e-6)
    for measure in (similarity.mean_cosine, lambda f, m: similarity.top_cosine(f, 50.0, m)):
        gradient = jax.grad(lambda f, m=measure: m(f, mask).sum())(f)
        assert np.isfinite(gradient).all() and not gradient[~mask].any()


@pytest.mark.parametrize("percent", [0.0, -1.0, 101.0])
def test_percent_outside_its_range_is_refused(percent):
    with pytest.raises(ValueError, match="top percent"):
        similarity.top_cosine(draw(4, 3), percent)


def test_units_reach_down_to_what_float32_can_hold():
    tiny, huge = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    f = jnp.array([[tiny, 0.0], [0.0, -tiny], [huge, huge], [tiny / 2, 0.0], [0.0, 0.0]])
    half = 0.5**0.5
    want = [[1, 0], [0, -1], [half, half], [0, 0], [0, 0]]
    np.testing.assert_allclose(similarity.unit(f), want, atol=1e-6)
    slope = jax.jacobian(similarity.unit)(f)
    assert np.isfinite(slope).all() and not slope[3:].any()
    np.testing.assert_allclose(slope[0, 1, 0, 1] * tiny, 1, rtol=1e-5)


def mesh_of(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


@pytest.mark.parametrize(
    ("axes", "samples", "prompts"),
    [
        ({"data": 8}, "data", None),
        ({"data": 4, "fsdp": 2}, "fsdp", "data"),
        ({"data": 2, "fsdp": 4}, ("data", "fsdp"), None),
    ],
)
def test_samples_on_different_devices(axes, samples, prompts):
    mesh = mesh_of(**axes)
    f, weight = draw(4, 8, 16), draw(4, seed=1)

    def one(f):
        return similarity.mean_cosine(f)

    def many(f):
        return similarity.mean_cosine_sharded(f, mesh, samples, prompts)

    placed = jax.device_put(f, NamedSharding(mesh, Spec(prompts, samples)))
    assert len(placed.sharding.device_set) == 8
    np.testing.assert_allclose(jax.jit(many)(placed), one(f), atol=1e-6)
    slope = jax.jit(jax.grad(lambda f: weight @ many(f)))(placed)
    np.testing.assert_allclose(slope, jax.grad(lambda f: weight @ one(f))(f), atol=1e-6)


@pytest.mark.parametrize("spec", [Spec("data"), Spec(None, "data"), Spec(None, None, "data")])
def test_the_plain_form_under_jit_on_a_mesh(spec):
    mesh = mesh_of(data=8)
    f = draw(8, 8, 16)
    placed = jax.device_put(f, NamedSharding(mesh, spec))

    def loss(f):
        return similarity.mean_cosine(f).sum()

    value, slope = jax.jit(jax.value_and_grad(loss))(placed)
    want, gradient = jax.value_and_grad(loss)(f)
    np.testing.assert_allclose(value, want, atol=1e-6)
    np.testing.assert_allclose(slope, gradient, atol=1e-6)


def test_uneven_or_unknown_axes_are_refused():
    mesh = mesh_of(data=8)
    with pytest.raises(ValueError, match="6 samples of a prompt cannot be split"):
        similarity.mean_cosine_sharded(draw(4, 6, 3), mesh, "data")
    with pytest.raises(ValueError, match="no axis 'model'"):
        similarity.mean_cosine_sharded(draw(4, 8, 3), mesh, "model")
