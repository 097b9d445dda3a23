import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import parameterization, trajectory

PATHS = [
    trajectory.RectifiedFlow(),
    trajectory.Cosine(),
    trajectory.Edm(),
    trajectory.DdpmLinear(),
    trajectory.LdmLinear(),
]
MEANINGS = [
    parameterization.Velocity(),
    parameterization.Noise(),
    parameterization.V(),
    parameterization.Clean(),
    parameterization.Score(),
    parameterization.Edm(),
    parameterization.Edm(sigma_data=1.3),
]
ROTATIONS = [m for m in MEANINGS if not hasattr(m, "smallest")]
each_path = pytest.mark.parametrize("path", PATHS, ids=repr)
each_meaning = pytest.mark.parametrize("meaning", MEANINGS, ids=repr)


@pytest.fixture
def rows():
    keys = jax.random.split(jax.random.key(0), 4)
    x0, eps, output = (jax.random.normal(k, (6, 3, 2)) for k in keys[:3])
    return x0, eps, output, jax.random.uniform(keys[3], (6,), minval=0.03, maxval=0.97)


@each_path
@each_meaning
def test_the_target_stands_for_the_paths_velocity(path, meaning, rows):
    x0, eps, _, t = rows
    z_t, v = path.corrupt(x0, eps, t)
    target = meaning.target(x0, eps, z_t, t, path)
    got = meaning.velocity(target, z_t, t, path)
    chex.assert_trees_all_close(got, v, rtol=1e-3, atol=1e-3)


@each_path
@each_meaning
def test_the_velocity_of_an_output_has_that_output_as_its_target(path, meaning, rows):
    z_t, _, output, t = rows
    v = meaning.velocity(output, z_t, t, path)
    x0, eps = path.clean(z_t, v, t), path.noise(z_t, v, t)
    chex.assert_trees_all_close(meaning.target(x0, eps, z_t, t, path), output, rtol=1e-3, atol=1e-3)


@each_path
@each_meaning
def test_the_target_is_the_mixture(path, meaning, rows):
    x0, eps, _, t = rows
    z_t, _ = path.corrupt(x0, eps, t)
    p, q = (x[:, None, None] for x in meaning.mixture(t, path))
    target = meaning.target(x0, eps, z_t, t, path)
    chex.assert_trees_all_close(target, p * x0 + q * eps, rtol=1e-5, atol=1e-5)


@each_path
@each_meaning
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nothing_is_nan_or_infinite_at_the_ends(path, meaning, dtype, rows):
    x0, eps, output = (x.astype(dtype) for x in rows[:3])
    t = jnp.array([0.0, 1e-30, 1e-6, 1 - 1e-6, 1.0, 0.5], dtype)
    z_t, _ = path.corrupt(x0, eps, t)
    made = (
        meaning.mixture(t, path),
        meaning.target(x0, eps, z_t, t, path),
        meaning.velocity(output, z_t, t, path),
        meaning.network_input(z_t, t, path),
    )
    chex.assert_tree_all_finite(made)
    assert made[1].dtype == made[2].dtype == made[3].dtype == dtype


@each_path
@pytest.mark.parametrize("meaning", ROTATIONS, ids=repr)
def test_some_outputs_say_everything_at_both_ends(path, meaning, rows):
    x0, eps, *_ = rows
    t = jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    z_t, v = path.corrupt(x0, eps, t)
    got = meaning.velocity(meaning.target(x0, eps, z_t, t, path), z_t, t, path)
    chex.assert_trees_all_close(got, v, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("path", PATHS[:3], ids=repr)
def test_where_an_output_says_nothing_the_unknown_part_is_zero(path, rows):
    x0, eps, output, _ = rows
    noise, data = jnp.ones(6), jnp.zeros(6)
    v = parameterization.Noise().velocity(output, eps, noise, path)
    chex.assert_trees_all_close(v, path.rates(noise)[1][:, None, None] * output, atol=1e-6)
    v = parameterization.Clean().velocity(output, x0, data, path)
    chex.assert_trees_all_close(v, path.rates(data)[0][:, None, None] * output, atol=1e-6)


@each_path
def test_the_score_is_the_gradient_of_the_log_density(path, rows):
    x0, eps, _, t = rows
    z_t, _ = path.corrupt(x0, eps, t)
    a, b = (x[:, None, None] for x in path.coefficients(t))
    slope = jax.grad(lambda z: jax.scipy.stats.norm.logpdf(z, a * x0, b).sum())(z_t)
    score = parameterization.Score().target(x0, eps, z_t, t, path)
    chex.assert_trees_all_close(score, slope, rtol=1e-3, atol=1e-3)


def test_v_is_the_derivative_in_the_angle_of_the_cosine_path(rows):
    x0, eps, _, t = rows
    path = trajectory.Cosine()
    z_t, v = path.corrupt(x0, eps, t)
    target = parameterization.V().target(x0, eps, z_t, t, path)
    chex.assert_trees_all_close(target * jnp.pi / 2, v, atol=1e-5)


@each_path
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_edm_is_the_published_preconditioning(path, sigma_data, rows):
    x0, _, output, _ = (np.asarray(x, np.float64) for x in rows)
    edm = parameterization.Edm(sigma_data=sigma_data)
    z_t, _ = path.corrupt(*rows[:2], rows[3])
    a, b = (np.asarray(x, np.float64)[:, None, None] for x in path.coefficients(rows[3]))
    sigma, x = b / a, np.asarray(z_t) / a
    whole = np.sqrt(sigma**2 + sigma_data**2)
    c_skip, c_out, c_in = sigma_data**2 / whole**2, sigma * sigma_data / whole, 1 / whole

    seen = edm.network_input(z_t, rows[3], path)
    np.testing.assert_allclose(seen, c_in * x, rtol=1e-4, atol=1e-5)
    clean = path.clean(z_t, edm.velocity(rows[2], z_t, rows[3], path), rows[3])
    np.testing.assert_allclose(clean, c_skip * x + c_out * output, rtol=1e-3, atol=1e-4)
    target = edm.target(rows[0], rows[1], z_t, rows[3], path)
    np.testing.assert_allclose(target, (x0 - c_skip * x) / c_out, rtol=2e-3, atol=2e-3)


@each_path
def test_edm_sees_and_says_numbers_of_unit_variance(path):
    edm, t = parameterization.Edm(sigma_data=0.3), jnp.linspace(0, 1, 51)
    p, q = edm.mixture(t, path)
    chex.assert_trees_all_close((0.3 * p) ** 2 + q**2, jnp.ones(51), atol=1e-5)
    a, b = (edm.network_input(x, t, path) for x in path.coefficients(t))
    chex.assert_trees_all_close((0.3 * a) ** 2 + b**2, jnp.ones(51), atol=1e-5)


def test_edm_of_unit_data_is_v_turned_round(rows):
    x0, eps, _, t = rows
    path = trajectory.Edm()
    z_t, _ = path.corrupt(x0, eps, t)
    f = parameterization.Edm(sigma_data=1.0).target(x0, eps, z_t, t, path)
    v = parameterization.V().target(x0, eps, z_t, t, path)
    chex.assert_trees_all_close(f, -v, atol=1e-5)


def test_data_without_spread_is_refused():
    for sigma_data in (0.0, float("nan")):
        with pytest.raises(ValueError, match=r"edm\.sigma_data must be above 0"):
            parameterization.Edm(sigma_data=sigma_data)


@pytest.mark.parametrize("smallest", [0.0, -1.0, float("nan")])
def test_a_part_that_never_fades_is_refused(smallest):
    meanings = parameterization.Noise, parameterization.Clean, parameterization.Score
    for meaning, name in zip(meanings, ("eps", "x0", "score"), strict=True):
        with pytest.raises(ValueError, match=rf"^parameterization\.{name}\.smallest must be above"):
            meaning(smallest=smallest)
