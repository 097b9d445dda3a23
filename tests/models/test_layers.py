"""Linear layers multiply in the precision that JAX is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.models.layers import GeGLU, Linear


def _with_gradients(module, x):
    params = module.init(jax.random.key(1), x)

    def loss(params, x):
        return jnp.sum(jnp.sin(module.apply(params, x)))

    return module.apply(params, x), *jax.tree.leaves(jax.grad(loss, (0, 1))(params, x))


@pytest.mark.parametrize("module", [Linear((3, 5), use_bias=True), GeGLU(24)])
def test_bfloat16_factors_are_near_float32_and_not_equal(module):
    x = jax.random.normal(jax.random.key(0), (4, 7, 16))
    exact = _with_gradients(module, x)
    with jax.default_matmul_precision("bfloat16"):
        near = _with_gradients(module, x)
    for a, b in zip(exact, near, strict=True):
        assert a.dtype == b.dtype
        error = np.linalg.norm(a - b) / np.linalg.norm(a)
        # bfloat16 keeps 8 bits: each factor is off by up to 2^-9.
        assert error < 2e-2
        if a.ndim > 1:
            assert error > 1e-5


def test_sums_of_bfloat16_factors_are_float32():
    # In a bfloat16 sum, 256 + 1 is 256: 2048 ones would end there.
    layer = Linear((1,), kernel_init=jax.nn.initializers.ones)
    x = jnp.ones((1, 2048))
    with jax.default_matmul_precision("bfloat16"):
        assert layer.apply(layer.init(jax.random.key(0), x), x).item() == 2048


def test_gradients_keep_the_dtype_of_the_weights():
    x = jnp.ones((2, 8), jnp.bfloat16)
    layer = Linear((4,), dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)

    def loss(params, x):
        return layer.apply(params, x).astype(jnp.float32).sum()

    with jax.default_matmul_precision("bfloat16"):
        to_params, to_x = jax.grad(loss, (0, 1))(params, x)
    assert to_params["params"]["kernel"].dtype == jnp.float32
    assert to_x.dtype == jnp.bfloat16
