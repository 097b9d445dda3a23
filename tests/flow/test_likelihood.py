import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cosdiff_jax.flow import likelihood
from cosdiff_jax.flow.trajectory import Cosine, DdpmLinear, Edm, LdmLinear, RectifiedFlow

KEY = jax.random.key(2)


def pushed(problem):
    """The density of N(0, I) at t = 1, carried to t = 0 by the exact flow, which is affine."""
    mean = problem.flow(np.zeros(3), 1.0, 0.0)
    turned = problem.flow(np.eye(3), 1.0, 0.0) - mean
    return stats.multivariate_normal(mean, turned.T @ turned)


@pytest.mark.parametrize(
    ("path", "tolerance"),
    [
        (RectifiedFlow(), 5e-5),
        (Cosine(), 5e-5),
        (Edm(), 5e-5),
        # Velocities of a chain stand still for the last hundredth of its first step.
        (DdpmLinear(), 4e-3),
        (LdmLinear(), 4e-3),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_likelihood_of_a_gaussian_is_that_of_noise_carried_along_its_flow(
    path, tolerance, gaussian
):
    problem = gaussian(trajectory=path)
    x0 = jax.random.normal(KEY, (4, 3))
    found = jax.jit(lambda x: likelihood.log_likelihood(problem.velocity, x))(x0)
    np.testing.assert_allclose(found, pushed(problem).logpdf(np.asarray(x0)), atol=tolerance)


@pytest.mark.parametrize(("path", "apart"), [(DdpmLinear(), 0.03), (LdmLinear(), 0.3)])
def test_where_a_path_keeps_some_data_this_is_not_the_datas_own_density(path, apart, gaussian):
    # So that the test above can tell one from the other.
    problem, x0 = gaussian(trajectory=path), np.asarray(jax.random.normal(KEY, (4, 3)))
    own = stats.multivariate_normal(problem.mean, problem.covariance).logpdf(x0)
    assert np.abs(pushed(problem).logpdf(x0) - own).max() > apart


def test_a_field_that_is_derived_backwards_alone_has_a_likelihood(gaussian):
    """As networks with products in bfloat16 are."""
    problem, x0 = gaussian(), jax.random.normal(KEY, (2, 3))

    @jax.custom_vjp
    def velocity(z, t):
        return problem.velocity(z, t)

    velocity.defvjp(lambda z, t: jax.vjp(problem.velocity, z, t), lambda pull, slope: pull(slope))
    found = likelihood.log_likelihood(velocity, x0)
    wanted = likelihood.log_likelihood(problem.velocity, x0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


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
