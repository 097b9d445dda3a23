import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cosdiff_jax.flow import likelihood
from cosdiff_jax.flow.trajectory import Cosine, RectifiedFlow

KEY = jax.random.key(2)


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()])
def test_the_likelihood_of_a_gaussian_is_its_density(path, gaussian):
    problem = gaussian(trajectory=path)
    x0 = jax.random.normal(KEY, (4, 3))
    found = jax.jit(lambda x: likelihood.log_likelihood(problem.velocity, x))(x0)
    density = stats.multivariate_normal(problem.mean, problem.covariance)
    np.testing.assert_allclose(found, density.logpdf(np.asarray(x0)), rtol=1e-4, atol=1e-4)


def test_random_probes_are_unbiased(gaussian):
    problem, x0 = gaussian(), jax.random.normal(KEY, (2, 3))

    def estimate(key):
        return likelihood.log_likelihood(problem.velocity, x0, key=key, probes=1, tolerance=1e-4)

    drawn = np.asarray(jax.lax.map(estimate, jax.random.split(KEY, 200)))
    exact = stats.multivariate_normal(problem.mean, problem.covariance).logpdf(np.asarray(x0))
    assert np.all(drawn.std(axis=0) > 1e-3)
    assert np.all(np.abs(drawn.mean(axis=0) - exact) < 4 * drawn.std(axis=0) / np.sqrt(200))
    with pytest.raises(ValueError, match="needs a key"):
        likelihood.log_likelihood(problem.velocity, x0, probes=1)


def test_the_reference_solution_is_the_flow_both_ways(gaussian):
    problem, z = gaussian(), jax.random.normal(KEY, (4, 3))
    x0 = likelihood.solution(problem.velocity, z)
    np.testing.assert_allclose(x0, problem.flow(z, 1.0, 0.0), atol=1e-4)
    back = likelihood.solution(problem.velocity, jnp.asarray(x0), start=0.0, end=1.0)
    np.testing.assert_allclose(back, z, atol=1e-4)
