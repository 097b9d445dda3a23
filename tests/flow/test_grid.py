import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import grid, solver
from cosdiff_jax.flow.trajectory import Cosine, Edm, LdmLinear, RectifiedFlow

GRIDS = [
    grid.Uniform(),
    grid.Shifted(alpha=3.0),
    grid.Shifted(alpha=0.1),
    grid.Shifted(alpha=3.0, double=True),
    grid.Shifted(alpha=3.0, trajectory=Cosine()),
    grid.Karras(),
    grid.Karras(trajectory=LdmLinear(), largest=14.0, smallest=0.05),
    grid.Reversed(grid=grid.Karras()),
]


@pytest.mark.parametrize("spread", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_times_fall_from_one_to_zero_exactly(spread, steps):
    times = spread(steps)
    assert times.shape == (steps + 1,) and times[0] == 1 and times[-1] == 0
    assert np.all(np.diff(times) < 0)


def test_a_shift_moves_the_log_snr_by_twice_its_logarithm():
    alpha, inner = 3.0, slice(1, -1)
    plain, shifted = grid.Uniform()(20)[inner], grid.Shifted(alpha=alpha)(20)[inner]
    log_snr = [2 * np.log((1 - t) / t) for t in (plain, shifted)]
    np.testing.assert_allclose(log_snr[1], log_snr[0] - 2 * np.log(alpha), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(grid.Shifted(alpha=1.0)(20), grid.Uniform()(20), rtol=1e-15)


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine(), Edm()])
def test_karras_is_even_in_a_power_of_sigma(path):
    spread = grid.Karras(rho=5.0, smallest=0.01, largest=20.0, trajectory=path)
    a, b = path.coefficients(jnp.asarray(spread(12)[1:-1], float))
    powers = np.asarray(b / a, np.float64) ** (1 / 5.0)
    np.testing.assert_allclose(powers[-1] ** 5, 0.01, rtol=1e-3)
    np.testing.assert_allclose(np.diff(powers), (0.01**0.2 - 20.0**0.2) / 11, rtol=1e-3)


def test_a_grid_is_a_constant_of_a_traced_program():
    run = jax.jit(lambda z: solver.Euler(grid=grid.Karras())(lambda z, t: z, z, 4))
    times = grid.Karras()(4)
    np.testing.assert_allclose(run(jnp.ones((2, 1))), np.prod(1 + np.diff(times)), rtol=1e-6)


def test_what_is_no_grid_is_refused():
    for times in ((1.0, 0.5), (1.0, 0.3, 0.4, 0.0), (0.9, 0.0), (1.0,), (1.0, 0.5, 0.5, 0.0)):
        with pytest.raises(ValueError, match="must fall from 1 to 0"):
            grid.Given(times=times)
    with pytest.raises(ValueError, match=r"grid\.given\.times make 2 steps, not 3"):
        grid.Given(times=(1.0, 0.5, 0.0))(3)
    with pytest.raises(ValueError, match=r"sample\.grid\.shifted\.alpha must be above 0"):
        grid.Shifted(alpha=-1.0)
    with pytest.raises(ValueError, match="0 < smallest < largest"):
        grid.Karras(smallest=3.0, largest=2.0)
    for rho in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=r"grid\.karras\.rho must be above 0"):
            grid.Karras(rho=rho)
    with pytest.raises(ValueError, match=r"largest=1000000\.0 lies beyond the end"):
        grid.Karras(largest=1e6, trajectory=LdmLinear())(10)
