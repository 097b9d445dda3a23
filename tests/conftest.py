"""Every test runs on eight emulated devices, with shapes checked and compiled programs kept."""

import gc
import json
import os
import pathlib
import socket
import subprocess
import sys

# As in the Makefile, for pytest called by itself.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Said in the environment, for the commands that tests start compile the same programs.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parent.parent / ".jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Most programs here run once, and compiling them is most of the time: XLA's newer emitters of fused
# loops take twice as long at it as the older ones.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes objects by the million, nearly none of them in a circle: at the usual threshold
# looking for circles is a tenth of the time.
gc.set_threshold(200_000, 20, 50)

# Shapes and dtypes of every annotated function are checked while the tests run, and only then.
_hook = jaxtyping.install_import_hook("cosdiff_jax", "beartype.beartype")


# The files that last longest, each on one worker: started last, they would run on alone.
LONG = ("test_train.py", "test_evaluate.py", "test_generate.py", "test_job.py", "test_fuse_dit.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


# What a pod tells its hosts by itself has to be said here.
JOIN = """
import sys
import jax
jax.distributed.initialize(sys.argv.pop(1), num_processes=2, process_id=int(sys.argv.pop(1)))
"""


@pytest.fixture(scope="session")
def two_processes():
    """A function that runs a program as two processes of some devices each.

    It takes the program, which finds its own arguments in ``sys.argv``, and gives what the two
    wrote to stdout and to stderr.
    """

    def run(program, *arguments, devices):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
        # Devices that wait for the other process hold a thread each. Where XLA has no more, as on
        # two cores, nobody is left to go on, and a step of many collectives hangs one time in
        # three.
        environment["PJRT_NPROC"] = "32"
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", JOIN + program, address, str(rank), *map(str, arguments)],
                cwd=pathlib.Path(__file__).parent.parent,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            said = [worker.communicate(timeout=600) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        for worker, (_, complaint) in zip(workers, said, strict=True):
            assert worker.returncode == 0, complaint[-3000:]
        return said

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """What a finished run leaves: an untrained tiny model in pixel space."""
    # Imported late: the hook above has to come first.
    import jax.numpy as jnp
    import numpy as np

    from configs import fusion_base
    from cosdiff_jax import build, weights
    from cosdiff_jax.shapes import Batch

    path = tmp_path_factory.mktemp("run")
    config = fusion_base.get_config("tiny")
    config.data.context = 48
    config.vae.name = "none"
    config.backbone.fuse_dit.update(depth=1, patch=16, channels=3)
    config.language_model.gemma.depth = 1
    config.clip.name = "clip"
    config.clip.clip.update(patch=16, width=16, depth=1, heads=2, text_width=16, text_depth=1)
    config.clip.clip.update(text_heads=2, features=8)
    objective, _ = build.objective(config)
    tokens = jnp.ones((1, 48), jnp.int32)
    images = jnp.zeros((objective.samples, 64, 64, 3))
    batch = Batch(tokens=tokens, mask=tokens > 0, images=images)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    # Last layers begin at zero, which draws the noise whatever the caption says.
    params = jax.tree.map(
        lambda x: x + 0.05 * np.random.default_rng(0).normal(size=x.shape), params
    )
    entry = json.loads(config.backbone.to_json())
    weights.save(path / "model", entry, params, dtype="float32")
    build.tokenizer(config.tokenizer).fast.backend_tokenizer.save(
        str(path / "model" / "tokenizer.json")
    )
    (path / "model" / "recipe.json").write_text(config.to_json())
    return str(path)


@pytest.fixture
def unchecked():
    """Orbax rebuilds states with placeholders for leaves, which no shape fits."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
