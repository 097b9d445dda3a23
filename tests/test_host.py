"""On a CPU sums may be taken in any order."""

import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax import host


def test_a_step_that_diverges_is_seen():
    def step(x):
        p = jnp.exp(x - x.max(axis=-1, keepdims=True))
        return jnp.log(p / p.sum(axis=-1, keepdims=True)).mean(), jnp.isfinite(x).all()

    fast = jax.jit(step, compiler_options=host.compiler_options())
    x = np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)
    np.testing.assert_allclose(fast(x)[0], step(x)[0], rtol=1e-5)
    for broken in (np.nan, np.inf):
        x[3, 7] = broken
        loss, finite = fast(x)
        assert np.isnan(loss) and not finite
