"""Where arrays land on eight emulated devices, and that it changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fusion_div
from cosdiff_jax import build, modules, sharding
from cosdiff_jax.diversity.alignment import Projection
from cosdiff_jax.shapes import Batch


def test_mesh_takes_what_is_left_and_refuses_what_does_not_fit():
    assert sharding.make_mesh(data=-1, fsdp=2, tensor=2).shape == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }
    with pytest.raises(ValueError, match="does not fit 8 device"):
        sharding.make_mesh(data=3)
    for sizes in ({"data": -1, "fsdp": 0}, {"data": 0}, {"data": -1, "fsdp": -1}, {"fsdp": -2}):
        with pytest.raises(ValueError, match="does not fit 8 device"):
            sharding.make_mesh(**sizes)


def test_unknown_parameter_is_an_error_that_names_it():
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match="head/mystery"):
        sharding.spec("head/mystery", (8, 8), mesh)


@pytest.mark.parametrize(
    ("prompts", "samples", "said"),
    [
        (6, None, r"data\.prompts = 6 rows .* 8 devices \(mesh data=4 fsdp=2\)"),
        (4, 3, r"data\.prompts x data\.samples = 12 rows .* 8 devices \(mesh data=4 fsdp=2\)"),
    ],
)
def test_indivisible_batch_is_an_error_that_names_the_field(prompts, samples, said):
    rows = {"tokens": np.zeros((prompts, 4), np.int32), "mask": np.ones((prompts, 4), bool)}
    if samples:
        rows["latents"] = np.zeros((prompts * samples, 2, 2, 1), np.float32)
    with pytest.raises(ValueError, match=said):
        sharding.to_device(rows, sharding.make_mesh(data=4, fsdp=2))


@pytest.mark.parametrize("prompts", [4, 8])
def test_pictures_are_split_and_captions_where_they_divide(prompts):
    mesh = sharding.make_mesh(data=4, fsdp=2)
    rows = {
        "tokens": np.arange(prompts * 3, dtype=np.int32).reshape(prompts, 3),
        "mask": np.ones((prompts, 3), bool),
        "latents": np.arange(prompts * 4, dtype=np.float32).reshape(-1, 1, 1, 1),
        "prompt": np.arange(prompts, dtype=np.int32),
        "distinct": np.ones((prompts, 4), bool),
    }
    batch = sharding.to_device(rows, mesh)
    assert batch.latents.sharding.spec == sharding.ROWS
    for name, value in rows.items():
        placed = getattr(batch, name)
        np.testing.assert_array_equal(placed, value)
        assert placed.sharding.is_fully_replicated == (prompts == 4 and name != "latents"), name


MESHES = ({"data": 8}, {"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 2, "tensor": 2})


@pytest.fixture(scope="module")
def main_job():
    """The main job at tiny size, P = 4 and K = 8: its step, and what goes in and comes out.

    With a bank of what the first step saw, captions dropped, and a prompt of too few pictures.
    """
    config = fusion_div.get_config("tiny")
    config.data.samples, config.clip.clip.size = 8, 32
    flow = config.objective.flow_matching
    flow.anchor, flow.caption_dropout = 30.0, 0.3
    flow.prediction.rollout.gradient_steps = 2
    flow.diversity.cosine.bank.name = "fifo"
    # Low enough for a model that knows nothing to be pushed.
    flow.diversity.cosine.target.real.margin = -1.0
    objective, needs = build.objective(config)
    draw = np.random.default_rng(0)
    rows = {
        "tokens": draw.integers(2, 400, (4, 12), dtype=np.int32),
        "mask": np.arange(12)[None, :] < np.array([[12], [5], [9], [7]]),
        "images": draw.uniform(-1, 1, (32, 32, 32, 3)).astype(np.float32),
        "prompt": np.array([6, 0, 3, 1], np.int32),
        "distinct": np.arange(8)[None, :] < np.array([[8], [5], [8], [1]]),
    }
    batch, key = Batch(**jax.tree.map(jnp.asarray, rows)), jax.random.key(0)
    fresh = jax.jit(objective.init)(key, batch)

    def stirred(seed):
        # The zero-initialised last layer would hide every gradient behind it.
        noise = np.random.default_rng(seed)
        return jax.tree.map(lambda x: x + 0.02 * noise.normal(size=x.shape), fresh)

    params = stirred(1)
    frozen = modules.frozen(config, tuple(name for name in needs if name != "anchor"))
    frozen["anchor"] = stirred(2)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (_, (_, memory)), _ = step(params, frozen, batch, key, 1, objective.start(frozen, batch, 8))
    given = (params, frozen, rows, key, memory)
    return step, given, step(params, frozen, batch, key, 2, memory)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_the_main_job_on_a_mesh_equals_one_device(main_job, sizes):
    step, (params, frozen, rows, key, memory), want = main_job
    (_, (logs, _)), _ = want
    assert float(logs["lambda"]) == 30 and float(logs["diversity"]) > 0.01
    assert float(logs["alignment"]) > 0.01 and float(logs["anchor"]) > 1e-4
    mesh = sharding.make_mesh(**sizes)
    with jax.set_mesh(mesh):
        batch = sharding.to_device(rows, mesh)
        holders = [set() for _ in range(4)]
        for shard in batch.images.addressable_shards:
            for row in range(32)[shard.index[0]]:
                holders[row // 8].add(shard.device)
        found = step(
            sharding.put(params, mesh),
            sharding.put(frozen, mesh),
            batch,
            key,
            2,
            sharding.put(memory, mesh),
        )
    # The samples of one prompt lie on two devices, or on one and a copy of it.
    assert [len(devices) for devices in holders] == [2] * 4
    want, found = jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(found)
    for (path, a), b in zip(want, found, strict=True):
        # What is left is the order of float32 sums. Measured on these meshes: 3.7e-7 for loss, logs
        # and the bank of unit vectors, 3.7e-6 of the largest number of each gradient, behind which
        # lie two steps of the rollout.
        gradient = path[0].idx == 1
        scale = np.abs(a).max() if gradient else max(np.abs(a).max(), 1.0)
        limit = (6e-6 if gradient else 1e-6) * scale
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(b, a, rtol=0, atol=limit, err_msg=name)
        assert np.abs(a).max() > 1e-5 or not gradient, name


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
