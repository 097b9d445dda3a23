"""The same numbers on one device, on eight, and on two processes of four devices each."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from cosdiff_jax.diversity import similarity
from cosdiff_jax.shapes import Batch

N, F, PERCENT = 48, 6, 10.0


def losses(mesh, percent):
    """Scalars of N vectors: of all together around the mesh, and of 2 groups that lie across it."""
    import jax.numpy as jnp

    from cosdiff_jax.diversity import alignment, measure, similarity

    text = jnp.cos(jnp.arange(12.0)).reshape(2, 6)
    same = jnp.eye(2, dtype=bool)

    def of_groups(form):
        return lambda f: jnp.mean(form(f.reshape(2, -1, f.shape[-1])))

    def fits(form):
        return of_groups(lambda f: form(f, text, same))

    def some(f):
        return jnp.arange(len(f)) % 5 != 2

    s = similarity
    found = {
        "mean": lambda f: s.mean_cosine_sharded(f, mesh, "data"),
        "top": lambda f: s.top_cosine_sharded(f, percent, mesh, "data"),
        "percentile": lambda f: s.percentile_cosine_sharded(f, percent, mesh, "data"),
        "some_mean": lambda f: s.mean_cosine_sharded(f, mesh, "data", mask=some(f)),
        "some_top": lambda f: s.top_cosine_sharded(f, percent, mesh, "data", mask=some(f)),
        "some_percentile": lambda f: s.percentile_cosine_sharded(
            f, percent, mesh, "data", mask=some(f)
        ),
    }
    if mesh is None:
        found = {
            "mean": s.mean_cosine,
            "top": lambda f: s.top_cosine(f, percent),
            "percentile": lambda f: s.percentile_cosine(f, percent),
            "some_mean": lambda f: s.mean_cosine(f, some(f)),
            "some_top": lambda f: s.top_cosine(f, percent, some(f)),
            "some_percentile": lambda f: s.percentile_cosine(f, percent, some(f)),
        }
    measures = (measure.MeanCosine, measure.TopCosine, measure.LogDeterminant, measure.Vendi)
    found |= {one.__name__: of_groups(one()) for one in measures}
    forms = (alignment.Cosine, alignment.Contrastive)
    return found | {f"alignment_{one.__name__}": fits(one()) for one in forms}


def batch_rows():
    """P = 4 prompts of K = 8: fewer prompts than devices, and some groups filled up."""
    import numpy as np

    draw = np.random.default_rng(0)
    return {
        "tokens": draw.integers(2, 16, (4, 6), dtype=np.int32),
        "mask": np.arange(6)[None, :] < np.array([[6], [3], [5], [4]]),
        "latents": draw.normal(size=(32, 4, 4, 4)).astype(np.float32),
        "prompt": np.array([2, 0, 5, 3], np.int32),
        "distinct": np.arange(8)[None, :] < np.array([[8], [5], [8], [1]]),
    }


def second_step(rows, batch, mesh=None):
    """What a small training finds at its second step: the hinge, a bank, a rollout.

    Args:
      rows: all of the batch, for its shapes.
      batch: the same on devices.
      mesh: those, None for one.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cosdiff_jax import sharding
    from cosdiff_jax.diversity import control, schedule
    from cosdiff_jax.diversity.bank import Bank
    from cosdiff_jax.features.latent import LatentFeature
    from cosdiff_jax.flow.prediction import Rollout
    from cosdiff_jax.models.fuse_dit import FuseDiT
    from cosdiff_jax.models.gemma import Gemma
    from cosdiff_jax.objectives.flow_matching import FlowMatching
    from cosdiff_jax.shapes import Batch

    sizes = dict(width=16, depth=2, heads=2, kv_heads=2, head_size=8, mlp=16)
    objective = FlowMatching(
        backbone=FuseDiT(**sizes, channels=4),
        language_model=Gemma(vocab=16, **sizes),
        samples=8,
        prediction=Rollout(steps=2, gradient_steps=2),
        feature=LatentFeature(),
        diversity=control.CosineDiversity(
            schedule=schedule.Constant(value=1.0),
            # Low enough for a model that knows nothing to be pushed.
            target=control.RealPictures(margin=-1.0),
            bank=Bank(slots=6),
        ),
    )
    key, one = jax.random.key(0), Batch(**jax.tree.map(jnp.asarray, rows))
    frozen = {"llm": jax.jit(objective.language_model.init)(key, one.tokens, one.mask)["params"]}
    params, noise = jax.jit(objective.init)(key, one), np.random.default_rng(1)
    # The zero-initialised last layer would hide every gradient behind it.
    params = jax.tree.map(lambda x: x + 0.02 * noise.normal(size=x.shape), params)
    memory, whole = objective.start(frozen, one, 8), None
    if mesh is not None:
        params, frozen, memory = (sharding.put(tree, mesh) for tree in (params, frozen, memory))
        whole = sharding.replicated(mesh)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True), out_shardings=whole)
    (_, (_, memory)), _ = step(params, frozen, batch, key, 0, memory)
    if mesh is not None:
        memory = jax.device_put(memory, sharding.place(memory, mesh))
    found = jax.tree_util.tree_leaves_with_path(step(params, frozen, batch, key, 1, memory))
    return {f"step{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in found}


NAMES = list(losses(None, PERCENT))
WORKER = f"""
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as Spec
from cosdiff_jax import sharding

{inspect.getsource(losses)}
{inspect.getsource(batch_rows)}
{inspect.getsource(second_step)}

folder, percent, rank = sys.argv[1], float(sys.argv[2]), jax.process_index()
assert len(jax.devices()) == 8 and len(jax.local_devices()) == 4
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
whole = np.load(f"{{folder}}/features.npy")
split = NamedSharding(mesh, Spec("data"))
f = jax.make_array_from_callback(whole.shape, split, lambda index: whole[index])
found = {{}}
for name, form in losses(mesh, percent).items():
    value, slope = jax.jit(jax.value_and_grad(form), out_shardings=(None, split))(f)
    found[name] = np.asarray(value.addressable_data(0))
    rows = sorted(slope.addressable_shards, key=lambda shard: shard.index[0].start)
    found[f"{{name}}_slope"] = np.concatenate([np.asarray(shard.data) for shard in rows])
    found["first"] = rows[0].index[0].start

rows = batch_rows()
parts = {{name: np.split(value, 2)[rank] for name, value in rows.items()}}
mixed = np.array(jax.devices()).reshape(2, 4).T
for name, mesh in {{
    "in_order": sharding.make_mesh(data=4, fsdp=2),
    "captions_divide": sharding.make_mesh(data=4, tensor=2),
    "tensor_across": sharding.make_mesh(data=1, tensor=8),
    "mixed": Mesh(mixed.reshape(4, 2, 1), sharding.AXES),
    "mixed_tensor": Mesh(mixed.reshape(2, 2, 2), sharding.AXES),
}}.items():
    batch = sharding.to_device(parts, mesh)
    found[f"rows_{{name}}"] = all(
        placed.shape == value.shape and np.array_equal(shard.data, value[shard.index])
        for value, placed in ((value, getattr(batch, field)) for field, value in rows.items())
        for shard in placed.addressable_shards
    )
try:
    sharding.to_device({{name: value[:1] for name, value in parts.items()}}, mesh)
except ValueError as error:
    found["said"] = str(error)
tree = {{"out": {{"kernel": np.arange(32.0).reshape(4, 8)}}}}
for name, sizes in {{"spread": dict(data=1, fsdp=8), "copied": dict(data=2, fsdp=4)}}.items():
    placed = sharding.put(tree, sharding.make_mesh(**sizes))
    found[f"host_{{name}}"] = sharding.to_host(placed)["out"]["kernel"]
mesh = sharding.make_mesh(data=4, fsdp=2)
with jax.set_mesh(mesh):
    found |= second_step(rows, sharding.to_device(parts, mesh), mesh)
np.savez(f"{{folder}}/{{rank}}.npz", **found)
"""


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(3).normal(size=(N, F)).astype(np.float32) + 0.3


@pytest.fixture(scope="module")
def processes(features, two_processes, tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    np.save(folder / "features.npy", features)
    two_processes(WORKER, folder, PERCENT, devices=4)
    found = [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]
    return sorted(found, key=lambda process: process["first"])


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_eight_devices_are_one(features, processes, name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    alone, spread = losses(None, PERCENT)[name], losses(mesh, PERCENT)[name]
    value, slope = jax.value_and_grad(alone)(jnp.asarray(features))
    # No gradient flows through a percentile.
    assert (np.abs(slope).max() > 1e-4) == ("percentile" not in name)
    placed = jax.device_put(features, NamedSharding(mesh, Spec("data")))
    eight = jax.jit(jax.value_and_grad(spread))(placed)
    np.testing.assert_allclose(eight[0], value, atol=1e-6)
    np.testing.assert_allclose(eight[1], slope, atol=1e-6)

    assert [len(process[f"{name}_slope"]) for process in processes] == [N // 2, N // 2]
    for process in processes:
        np.testing.assert_allclose(process[name], value, atol=1e-6)
    two = np.concatenate([process[f"{name}_slope"] for process in processes])
    np.testing.assert_allclose(two, slope, atol=1e-6)


def test_masks_on_a_mesh_by_brute_force():
    """Four groups over data, their samples over fsdp; one has a single sample left, one has two."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    f = np.random.default_rng(5).normal(size=(4, 8, 5)).astype(np.float32)
    mask = np.random.default_rng(6).random((4, 8)) < 0.6
    mask[1], mask[2] = np.arange(8) == 3, np.arange(8) % 5 == 1
    want = {"mean": [], "top": [], "percentile": []}
    for group, real in zip(f.astype(np.float64), mask, strict=True):
        u = group[real] / np.linalg.norm(group[real], axis=1, keepdims=True)
        pairs = np.sort([u[i] @ u[j] for i in range(len(u)) for j in range(i)])[::-1]
        top = pairs[: int(np.ceil(0.3 * len(pairs)))]
        for name, values in (("mean", pairs), ("top", top), ("percentile", top[-1:])):
            want[name].append(values.mean() if len(values) else 0.0)
    marked = jnp.asarray(mask)
    forms = {
        "mean": lambda f: similarity.mean_cosine_sharded(f, mesh, "fsdp", "data", marked),
        "top": lambda f: similarity.top_cosine_sharded(f, 30.0, mesh, "fsdp", "data", marked),
        "percentile": lambda f: similarity.percentile_cosine_sharded(
            f, 30.0, mesh, "fsdp", "data", marked
        ),
    }
    for name, form in forms.items():
        placed = jax.device_put(f, NamedSharding(mesh, Spec("data", "fsdp")))
        np.testing.assert_allclose(jax.jit(form)(placed), want[name], atol=1e-6)
        slope = jax.jit(jax.grad(lambda f, form=form: form(f).sum()))(placed)
        assert np.isfinite(slope).all() and not np.asarray(slope)[~mask].any()


@pytest.mark.parametrize(
    "name", ["in_order", "captions_divide", "tensor_across", "mixed", "mixed_tensor"]
)
def test_rows_of_two_processes_find_their_place(processes, name):
    """Also where the prompts are fewer than the devices, and where the mesh mixes the processes."""
    assert all(process[f"rows_{name}"] for process in processes)


@pytest.mark.parametrize("name", ["spread", "copied"])
def test_each_of_two_processes_gets_the_whole_of_an_array(processes, name):
    for process in processes:
        np.testing.assert_array_equal(process[f"host_{name}"], np.arange(32.0).reshape(4, 8))


def test_rows_of_two_processes_that_cannot_be_split_are_one_line(processes):
    for process in processes:
        assert "mesh data=2 fsdp=2" in str(process["said"])


def test_a_step_on_two_processes_is_one_on_one_device(processes):
    """Hinge on real pictures, bank and rollout, with the samples of a prompt on two devices."""
    rows = batch_rows()
    alone = second_step(rows, Batch(**jax.tree.map(jnp.asarray, rows)))
    for process in processes:
        assert alone.keys() == {name for name in process if name.startswith("step")}
        for name, value in alone.items():
            # Measured: 1e-7 for value, logs and bank, 5e-7 of the largest number of each gradient.
            scale = np.abs(value).max() if name.startswith("step[1]") else 1.0
            np.testing.assert_allclose(
                process[name], value, rtol=0, atol=1e-6 * scale, err_msg=name
            )
