import chex
import jax
import jax.numpy as jnp
import pytest

from cosdiff_jax.flow import trajectory


@pytest.fixture
def rows():
    keys = jax.random.split(jax.random.key(0), 3)
    x0, eps = (jax.random.normal(k, (5, 4, 4, 3)) for k in keys[:2])
    return x0, eps, jax.random.uniform(keys[2], (5,))


def test_velocity_is_the_derivative_of_the_path(rows):
    x0, eps, t = rows
    flow = trajectory.RectifiedFlow()
    h = 1e-2
    ahead, behind = flow.corrupt(x0, eps, t + h)[0], flow.corrupt(x0, eps, t - h)[0]
    chex.assert_trees_all_close((ahead - behind) / (2 * h), flow.corrupt(x0, eps, t)[1], atol=1e-4)


def test_the_ends_are_data_and_noise(rows):
    x0, eps, _ = rows
    flow = trajectory.RectifiedFlow()
    chex.assert_trees_all_equal(flow.corrupt(x0, eps, jnp.zeros(5))[0], x0)
    chex.assert_trees_all_equal(flow.corrupt(x0, eps, jnp.ones(5))[0], eps)


def test_clean_undoes_corrupt(rows):
    x0, eps, t = rows
    flow = trajectory.RectifiedFlow()
    z_t, v = flow.corrupt(x0, eps, t)
    chex.assert_trees_all_close(flow.clean(z_t, v, t), x0, atol=1e-5)
