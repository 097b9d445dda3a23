"""The same numbers on one device, on eight, and on two processes of four devices each."""

import inspect
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

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

    found = {
        "mean": lambda f: similarity.mean_cosine_sharded(f, mesh, "data"),
        "top": lambda f: similarity.top_cosine_sharded(f, percent, mesh, "data"),
    }
    if mesh is None:
        found = {
            "mean": similarity.mean_cosine,
            "top": lambda f: similarity.top_cosine(f, percent),
        }
    measures = (measure.MeanCosine, measure.TopCosine, measure.LogDeterminant, measure.Vendi)
    found |= {one.__name__: of_groups(one()) for one in measures}
    forms = (alignment.Cosine, alignment.Contrastive)
    return found | {f"alignment_{one.__name__}": fits(one()) for one in forms}


NAMES = list(losses(None, PERCENT))
WORKER = f"""
import sys
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as Spec

{inspect.getsource(losses)}

port, rank, folder, percent = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
jax.distributed.initialize(f"localhost:{{port}}", num_processes=2, process_id=rank)
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
np.savez(f"{{folder}}/{{rank}}.npz", **found)
"""


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(3).normal(size=(N, F)).astype(np.float32) + 0.3


@pytest.fixture(scope="module")
def processes(features, tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    np.save(folder / "features.npy", features)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(port), str(rank), str(folder), str(PERCENT)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, said = worker.communicate(timeout=180)
            assert worker.returncode == 0, said
    finally:
        for worker in workers:
            worker.kill()
    found = [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]
    return sorted(found, key=lambda process: process["first"])


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_eight_devices_are_one(features, processes, name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    alone, spread = losses(None, PERCENT)[name], losses(mesh, PERCENT)[name]
    value, slope = jax.value_and_grad(alone)(jnp.asarray(features))
    assert np.abs(slope).max() > 1e-4
    placed = jax.device_put(features, NamedSharding(mesh, Spec("data")))
    eight = jax.jit(jax.value_and_grad(spread))(placed)
    np.testing.assert_allclose(eight[0], value, atol=1e-6)
    np.testing.assert_allclose(eight[1], slope, atol=1e-6)

    assert [len(process[f"{name}_slope"]) for process in processes] == [N // 2, N // 2]
    for process in processes:
        np.testing.assert_allclose(process[name], value, atol=1e-6)
    two = np.concatenate([process[f"{name}_slope"] for process in processes])
    np.testing.assert_allclose(two, slope, atol=1e-6)
