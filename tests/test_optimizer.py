"""Updates, schedules, averaging and accumulation, each against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cosdiff_jax import optimizer
from cosdiff_jax.shapes import Batch


def test_weight_decay_touches_matrices_only():
    params = {
        "a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "n": {"scale": jnp.ones((2, 3))},
    }
    zero = jax.tree.map(jnp.zeros_like, params)
    chain = optimizer.chain(optimizer.AdamW(decay=0.5), lambda step: 0.1)
    updates, _ = chain.update(zero, chain.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.05, rtol=1e-6)
    assert not updates["a"]["bias"].any() and not updates["n"]["scale"].any()


def test_muon_update_is_orthogonal_per_head():
    key = jax.random.key(0)
    shapes = {"qkv": (2, 16, 3, 8), "gate_up": (2, 16, 2, 32), "down": (2, 32, 16)}
    params = {"blocks": {n: {"kernel": jax.random.normal(key, s)} for n, s in shapes.items()}}
    chain = optimizer.Muon(decay=0.0)(lambda step: 1.0)
    updates, _ = chain.update(params, chain.init(params), params)
    for name, matrix in (
        ("qkv", updates["blocks"]["qkv"]["kernel"][1, :, 2]),
        ("gate_up", updates["blocks"]["gate_up"]["kernel"][0, :, 1]),
        ("down", updates["blocks"]["down"]["kernel"][1]),
    ):
        values = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        # Newton-Schulz in five steps brings singular values near a common size, not exactly to it.
        assert values.max() / values.min() < 2.0, name


def test_first_and_last_layers_are_not_muons():
    params = {
        "patch_embed": {"kernel": jnp.ones((4, 8))},
        "blocks": {
            "modulation": {"kernel": jnp.ones((2, 8, 6, 8))},
            "mlp": {"down": {"kernel": jnp.ones((2, 8, 8))}},
        },
    }
    chosen = optimizer._muon_dimensions(params)
    assert chosen["patch_embed"]["kernel"] is None
    assert chosen["blocks"]["modulation"]["kernel"] is None
    assert chosen["blocks"]["mlp"]["down"]["kernel"] is not None


@pytest.mark.parametrize(("shape", "last"), [("constant", 1.0), ("linear", 0.1), ("cosine", 0.1)])
def test_schedule(shape, last):
    rate = optimizer.schedule(1.0, steps=110, warmup=10, shape=shape, floor=0.1)
    assert float(rate(0)) == 0.0 and float(rate(5)) == pytest.approx(0.5)
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(110)) == pytest.approx(last)


def test_unknown_schedule_lists_the_choices():
    with pytest.raises(ValueError, match="constant, linear, cosine"):
        optimizer.schedule(1.0, steps=1, shape="step")


def test_ema_keeps_its_interval_and_reaches_its_decay():
    ema = optimizer.Ema(decay=0.5, every=2)
    value = {"w": jnp.zeros(())}
    one = {"w": jnp.ones(())}
    assert float(ema(value, one, jnp.int32(1))["w"]) == 0.0
    # Early the memory is short: (1 + 1) / (10 + 1) of the old stays.
    assert float(ema(value, one, jnp.int32(2))["w"]) == pytest.approx(1 - 2 / 11)
    assert float(ema(value, one, jnp.int32(2000))["w"]) == pytest.approx(0.5)


def test_accumulation_equals_the_whole_batch():
    def loss(params, frozen, batch, key, step, memory):
        rows = batch.images.reshape(batch.tokens.shape[0], -1)
        value = jnp.mean((rows @ params) ** 2) + jnp.mean(batch.tokens * params[0])
        return value, ({"loss": value}, memory + batch.tokens.sum())

    grad = jax.value_and_grad(loss, has_aux=True)
    key = jax.random.key(1)
    batch = Batch(
        tokens=jnp.arange(12, dtype=jnp.int32).reshape(6, 2),
        mask=jnp.ones((6, 2), bool),
        images=jax.random.normal(key, (12, 2, 2, 1)),
    )
    params = jax.random.normal(key, (8,))
    whole = grad(params, {}, batch, key, 0, jnp.int32(5))
    parts = optimizer.accumulated(grad, 3)(params, {}, batch, key, 0, jnp.int32(5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, parts)
    with pytest.raises(ValueError, match=r"data\.prompts = 6"):
        optimizer.accumulated(grad, 4)(params, {}, batch, key, 0, jnp.int32(5))


def test_clipping_bounds_the_gradient():
    chain = optimizer.chain(lambda rate: optax.sgd(rate), lambda step: 1.0, clip=1.0)
    params = {"w": jnp.zeros(4)}
    updates, _ = chain.update({"w": jnp.full(4, 100.0)}, chain.init(params), params)
    assert float(optax.global_norm(updates)) == pytest.approx(1.0, rel=1e-5)
