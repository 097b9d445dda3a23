"""Where arrays land on eight emulated devices, and that it changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import sharding
from cosdiff_jax.diversity import control, schedule
from cosdiff_jax.diversity.alignment import Projection
from cosdiff_jax.diversity.bank import Bank
from cosdiff_jax.features.latent import LatentFeature
from cosdiff_jax.models.fuse_dit import FuseDiT
from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.objectives.flow_matching import FlowMatching
from cosdiff_jax.shapes import Batch


def test_mesh_takes_what_is_left_and_refuses_what_does_not_fit():
    assert sharding.make_mesh(data=-1, fsdp=2, tensor=2).shape == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }
    with pytest.raises(ValueError, match="does not fit 8 device"):
        sharding.make_mesh(data=3)


def test_unknown_parameter_is_an_error_that_names_it():
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match="head/mystery"):
        sharding.spec("head/mystery", (8, 8), mesh)


def test_indivisible_batch_is_an_error_that_names_the_field():
    rows = {"tokens": np.zeros((6, 4), np.int32), "mask": np.ones((6, 4), bool)}
    with pytest.raises(ValueError, match=r"data\.prompts.* = 6 rows .* 8 devices"):
        sharding.to_device(rows, sharding.make_mesh())


def test_step_on_a_mesh_equals_one_device():
    """P = 2 prompts of K = 8 over 8 devices: one prompt's samples lie on four of them.

    The second step, for the bank that the first one filled is split over the mesh as well.
    """
    llm = Gemma(vocab=16, width=16, depth=2, heads=2, kv_heads=2, head_size=8, mlp=16)
    backbone = FuseDiT(width=16, depth=2, heads=2, kv_heads=2, head_size=8, mlp=16, channels=4)
    objective = FlowMatching(
        backbone=backbone,
        language_model=llm,
        samples=8,
        caption_dropout=0.5,
        feature=LatentFeature(),
        diversity=control.CosineDiversity(
            schedule=schedule.Constant(value=1.0),
            # Low enough for a model that knows nothing to be pushed.
            target=control.RealPictures(margin=-0.5),
            bank=Bank(slots=6),
        ),
    )
    rows = {
        "tokens": np.arange(8, dtype=np.int32).reshape(2, 4),
        "mask": np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool),
        "latents": np.random.default_rng(0).normal(size=(16, 4, 4, 4)).astype(np.float32),
        "prompt": np.array([2, 0], np.int32),
        "distinct": np.arange(8)[None, :] < np.array([[8], [5]]),
    }
    key = jax.random.key(0)
    one = Batch(**jax.tree.map(jnp.asarray, rows))
    frozen = {"llm": jax.jit(llm.init)(key, one.tokens, one.mask)["params"]}
    params = jax.jit(objective.init)(key, one)
    # The zero-initialised last layer would hide every gradient behind it.
    params = jax.tree.map(
        lambda x: x + 0.02 * np.random.default_rng(1).normal(size=x.shape), params
    )
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    memory = objective.start(frozen, one, 4)
    (_, (_, memory)), _ = step(params, frozen, one, key, 0, memory)
    (loss, (logs, after)), grads = step(params, frozen, one, key, 1, memory)
    assert float(logs["diversity"]) > 0.01
    mesh = sharding.make_mesh(data=-1, fsdp=2, tensor=2)
    whole, split = sharding.replicated(mesh), jax.sharding.NamedSharding(mesh, sharding.ROWS)
    with jax.set_mesh(mesh):
        places = {name: split if name == "latents" else whole for name in rows}
        batch = Batch(**jax.device_put(rows, places))
        placed = sharding.put(memory, mesh)
        assert placed["diversity"]["bank"]["bank"].sharding.spec[0] == "data"
        (loss8, (logs8, after8)), grads8 = step(
            sharding.put(params, mesh), sharding.put(frozen, mesh), batch, key, 1, placed
        )
    assert float(loss) == pytest.approx(float(loss8), rel=1e-6)
    for name in logs:
        assert float(logs[name]) == pytest.approx(float(logs8[name]), rel=1e-5, abs=1e-6), name
    alone, spread = (jax.tree.leaves(tree) for tree in ((grads, after), (grads8, after8)))
    for a, b in zip(alone, spread, strict=True):
        scale = np.abs(a).max() + 1e-8
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=2e-5)


def test_statistics_of_the_alignment_are_split_by_hidden_coordinate():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    memory = {"memory": {"alignment": Projection().start(8, 6)}}
    placed = sharding.place(memory, mesh)["memory"]["alignment"]
    assert placed["covariance"].spec == jax.sharding.PartitionSpec("fsdp", None)
    assert placed["mean"].spec == jax.sharding.PartitionSpec(None)


def test_moments_land_beside_their_parameter():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    tree = {
        "params": {"blocks": {"qkv": {"kernel": jnp.zeros((2, 16, 6, 8))}}},
        "opt_state": ({"mu": {"blocks": {"qkv": {"kernel": jnp.zeros((2, 16, 6, 8))}}}},),
    }
    placed = [leaf.spec for leaf in jax.tree.leaves(sharding.place(tree, mesh))]
    assert placed[0] == placed[1] == jax.sharding.PartitionSpec(None, "fsdp", "tensor", None)
