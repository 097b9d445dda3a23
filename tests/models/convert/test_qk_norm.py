"""QK-norm in a network trained without it: what stays, what changes, and that it trains on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cosdiff_jax.models import modulation
from cosdiff_jax.models.convert import qk_norm
from cosdiff_jax.models.dit import ShallowCross, ShallowSelf
from cosdiff_jax.models.fuse_dit import FuseDiT
from cosdiff_jax.models.fusion import CrossAttention, SelfAttention
from cosdiff_jax.shapes import TextStream

P, K, DEPTH, H, G, E, T = 2, 2, 2, 4, 2, 32, 5
SIZES = {
    "width": 24,
    "depth": DEPTH,
    "heads": H,
    "kv_heads": G,
    "head_size": E,
    "mlp": 20,
    "channels": 4,
    "qk_norm": False,
}
FUSIONS = [SelfAttention(), CrossAttention(), ShallowSelf(), ShallowCross()]
MASK = jnp.array([[True] * T, [True, True, False, False, False]])


def batch(seed, padding=0.0):
    """Noise in place of noised latents, and a text stream; ``padding`` is added beyond its end."""
    keys = jax.random.split(jax.random.key(seed), 5)
    hidden = jax.random.normal(keys[2], (P, T, 12))
    stream = TextStream(
        keys=jax.random.normal(keys[0], (DEPTH, P, T, G, E)),
        values=jax.random.normal(keys[1], (DEPTH, P, T, G, E)),
        hidden=jnp.where(MASK[:, :, None], hidden, hidden + padding),
        mask=MASK,
    )
    z_t = jax.random.normal(keys[3], (P * K, 8, 8, 4))
    return {"z_t": z_t, "t": jax.random.uniform(keys[4], (P * K,)), "text": stream}


@functools.cache
def trained(fusion):
    """A model whose weights look trained, with queries and keys a third as long as normed ones."""
    model = FuseDiT(**SIZES, attention=fusion)

    @jax.jit
    def made(inputs):
        params = model.init(jax.random.key(1), **inputs)["params"]
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(2), len(leaves))
        noisy = [
            x + 0.15 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree_util.tree_map_with_path(shorter, tree.unflatten(noisy))

    return model, made(batch(0))


def shorter(path, x):
    names = [part.key for part in path]
    if names[-1] != "kernel" or "attention" not in names or "out" in names:
        return x
    if "qkv" in names:
        return x.at[:, :, : H + G].multiply(0.3)
    return x * 0.3 if "cross_q" in names else x


@functools.partial(jax.jit, static_argnums=0)
def velocity(model, params, inputs):
    return model.apply({"params": params}, **inputs)


def far(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def without_gains(params):
    """As fresh norms are."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: np.zeros_like(x) if path[-2].key in qk_norm.NORMS else x, params
    )


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda fusion: type(fusion).__name__)
def test_measured_gains_change_the_velocity_little(fusion):
    model, params = trained(fusion)
    normed, inserted = qk_norm.insert(model, params, [batch(3), batch(4)])
    like = jax.eval_shape(lambda key: normed.init(key, **batch(0))["params"], jax.random.key(0))
    assert jax.tree.map(jnp.shape, inserted) == jax.tree.map(jnp.shape, like)
    # On a batch that nothing was measured on.
    before = velocity(model, params, batch(9))
    measured = far(velocity(normed, inserted, batch(9)), before)
    fresh = far(velocity(normed, without_gains(inserted), batch(9)), before)
    assert measured < 0.1
    assert measured < fresh / 3


def test_queries_and_keys_of_one_length_are_kept_exactly():
    model = FuseDiT(**{**SIZES, "width": E}, modulation=modulation.Unconditioned())
    params = jax.jit(model.init)(jax.random.key(1), **batch(0))["params"]
    params["patch_out"]["kernel"] = jax.random.normal(jax.random.key(5), (E, 16))
    # A rotation keeps the length of what the norm before it left: 1, then these, by layer.
    turns = np.linalg.qr(np.random.default_rng(2).normal(size=(DEPTH, H + G, E, E)))[0]
    turns = turns.transpose(0, 2, 1, 3)
    length = np.repeat([[3.0, 0.5], [0.25, 2.0]], [H, G], axis=1)
    kernel = params["blocks"]["attention"]["image"]["qkv"]["project"]["kernel"]
    kernel = kernel.at[:, :, : H + G].set(turns * length[:, None, :, None])
    params["blocks"]["attention"]["image"]["qkv"]["project"]["kernel"] = kernel
    normed, inserted = qk_norm.insert(model, params, [batch(3)])
    norms = inserted["blocks"]["attention"]["image"]
    for name, found in (("q_norm", [3.0, 0.25]), ("k_norm", [0.5, 2.0])):
        wanted = np.repeat(np.array(found)[:, None] - 1, E, axis=1)
        np.testing.assert_allclose(norms[name]["scale"], wanted, atol=1e-3)
    before = velocity(model, params, batch(9))
    assert far(velocity(normed, inserted, batch(9)), before) < 1e-3
    assert far(velocity(normed, without_gains(inserted), batch(9)), before) > 0.05


@pytest.mark.parametrize("fusion", [ShallowSelf(), ShallowCross()])
def test_what_stands_beyond_the_end_of_a_prompt_counts_nothing(fusion):
    model, params = trained(fusion)
    found = [qk_norm.insert(model, params, [batch(3, padding)])[1] for padding in (0.0, 50.0)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *found)


def test_gains_are_those_of_least_squares():
    x = np.random.default_rng(0).normal(size=(2, 200, 6)) * [1, 2, 3, 0.1, 1, 0]
    r = np.sqrt((x**2).mean(-1, keepdims=True))
    g = qk_norm.gains(jnp.array((x**2 / r).sum(1)), jnp.array((x**2 / r**2).sum(1)))

    def error(g):
        return ((x * g[:, None] / r - x) ** 2).sum(axis=(1, 2))

    for e in range(5):
        for step in (-0.01, 0.01):
            assert (error(g + step * np.eye(6)[e]) > error(g)).all()
    # Nothing is known of a channel that is always 0: it goes with the others.
    assert (g[:, 5] > g[:, :5].min(axis=1)).all() and (g[:, 5] < g[:, :5].max(axis=1)).all()
    np.testing.assert_array_equal(qk_norm.gains(jnp.zeros((1, 2)), jnp.zeros((1, 2))), 1)


def test_training_goes_on_from_it():
    model, params = trained(FUSIONS[0])
    normed, params = qk_norm.insert(model, params, [batch(3)])
    rule = optax.adam(3e-3)
    inputs = batch(4)
    wanted = jax.random.normal(jax.random.key(6), inputs["z_t"].shape) - inputs["z_t"]

    @jax.jit
    def step(params, state):
        def loss(params):
            return jnp.mean((normed.apply({"params": params}, **inputs) - wanted) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = rule.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, start, losses = rule.init(params), params, []
    for _ in range(12):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]
    # The gains learn as well.
    scale = [p["blocks"]["attention"]["image"]["q_norm"]["scale"] for p in (start, params)]
    assert np.abs(scale[0] - scale[1]).max() > 1e-4


def test_a_second_insertion_and_one_without_data_are_refused():
    model, params = trained(FUSIONS[0])
    with pytest.raises(ValueError, match="has QK-norm already"):
        qk_norm.insert(model.clone(qk_norm=True), params, [batch(0)])
    with pytest.raises(ValueError, match="at least one batch"):
        qk_norm.insert(model, params, [])


def test_the_entry_differs_in_the_norm_alone():
    plain = {"name": "fuse_dit", "fuse_dit": {"qk_norm": False, "width": 8}}
    assert qk_norm.entry(plain) == {"name": "fuse_dit", "fuse_dit": {"qk_norm": True, "width": 8}}
    assert plain["fuse_dit"]["qk_norm"] is False
