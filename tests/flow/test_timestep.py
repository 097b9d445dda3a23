import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cosdiff_jax.flow import timestep

TIMES = [
    timestep.Uniform(),
    timestep.LogitNormal(),
    timestep.LogitNormal(mean=-0.5, std=0.7),
    timestep.LogitNormal(mean=0.8, std=1.6),
]


@pytest.mark.parametrize("times", TIMES, ids=repr)
def test_draws_follow_the_density(times):
    t = np.asarray(times(jax.random.key(1), 20_000))
    grid = np.linspace(0, 1, 20_001)[1:-1]
    density = np.asarray(times.density(jnp.asarray(grid)))
    cumulative = np.concatenate([[0], np.cumsum(density) / 20_000, [1]])
    assert cumulative[-2] == pytest.approx(1, abs=2e-3)
    edges = np.concatenate([[0], grid, [1]])
    assert stats.kstest(t, lambda x: np.interp(x, edges, cumulative)).pvalue > 1e-3


def test_logit_normal_leans_to_noise_where_its_mean_is_above_zero():
    key = jax.random.key(0)
    assert timestep.LogitNormal(mean=1.0)(key, 999).mean() > 0.6
    assert timestep.LogitNormal(mean=-1.0)(key, 999).mean() < 0.4


def test_a_width_of_zero_is_refused():
    with pytest.raises(ValueError, match="std must be above 0"):
        timestep.LogitNormal(std=0.0)
