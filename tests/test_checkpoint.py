"""What a folder of checkpoints says when some or all of them cannot be used, and what it keeps."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import checkpoint, sharding
from cosdiff_jax.diversity import control, schedule
from cosdiff_jax.diversity.alignment import Projection
from cosdiff_jax.diversity.bank import Bank
from cosdiff_jax.shapes import TrainState

PLACE = {"stream": {}, "seconds": 1.0}


def state(remembered, step=3):
    zeros = jnp.zeros((2,))
    return TrainState(
        step=jnp.int32(step),
        params={"x": zeros},
        opt_state={"m": zeros},
        ema={"x": zeros},
        memory={"bank": jnp.ones((remembered, 4))},
    )


@pytest.mark.usefixtures("unchecked")
def test_a_state_of_another_shape_is_not_called_damaged_alone(tmp_path):
    with checkpoint.Checkpoints(str(tmp_path), keep=2) as kept:
        kept.save(state(5), PLACE, {"steps": 9})
        fits = kept.restore(checkpoint.abstract(state(5)))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, fits.state, state(5)))
        with pytest.raises(ValueError, match=r"or of another state \(.*\(3, 4\).*\(5, 4\)\); move"):
            kept.restore(checkpoint.abstract(state(3)))


@pytest.mark.usefixtures("unchecked")
def test_what_is_passed_over_is_named_with_what_is_used_instead(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with checkpoint.Checkpoints(str(tmp_path), keep=2) as kept:
        for step in (3, 4):
            kept.save(state(5, step), PLACE, {"steps": 9})
    (tmp_path / "checkpoints" / "4" / "seal.json").write_text('{"state/x": [')
    half = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    half.mkdir()
    unfinished = "checkpoint 6 is unfinished (its save did not come to its end); using step 4"
    damaged = "checkpoint 4 is damaged (it was never sealed: the save did not finish); using step 3"

    def said():
        lines = [line.getMessage() for line in caplog.records if line.name == checkpoint.__name__]
        caplog.clear()
        return lines

    # To a reader, who leaves it there, its save may be going on.
    for write in (False, True):
        with checkpoint.Checkpoints(str(tmp_path), write=write) as kept:
            assert half.exists() != write
            assert kept.weights("ema")[0] == 3
            assert said() == [f"{unfinished} instead", f"{damaged} instead"]
            assert kept.restore(checkpoint.abstract(state(5))).step == 3
            assert said() == [f"{unfinished} instead", f"{damaged} instead"]


@pytest.mark.usefixtures("unchecked")
def test_whose_folder_it_is_stands_there_before_the_first_step(tmp_path, caplog):
    with checkpoint.Checkpoints(str(tmp_path)) as kept:
        assert kept.begun() is None
        kept.begin({"seed": 1, "languages": ["en", "한국어"]})
        assert kept.begun() == {"seed": 1, "languages": ["en", "한국어"]}
        assert not list(tmp_path.glob("*.part")) and kept.config() is None
        # Of a run begun before it was kept, or lost: what the newest checkpoint says.
        kept.save(state(5), PLACE, {"seed": 2})
        assert kept.begun()["seed"] == 1
        (tmp_path / "recipe.json").write_text('{"seed": ')
        assert kept.begun() == {"seed": 2} and "recipe.json cannot be read" in caplog.text
        (tmp_path / "recipe.json").unlink()
        assert kept.begun() == {"seed": 2}


@pytest.mark.usefixtures("unchecked")
def test_memory_spread_over_a_mesh_comes_back_bit_for_bit(tmp_path):
    """All that an objective can remember: on the mesh it was saved from, and on another one."""
    rng = np.random.default_rng(0)
    term = control.CosineDiversity(schedule=schedule.Controller(), bank=Bank(slots=3))
    memory = {"diversity": term.start(16, 8), "alignment": Projection().start(8, 8)}

    def drawn(x):
        return rng.integers(0, 9, x.shape) if x.dtype == int else rng.normal(size=x.shape)

    memory = jax.tree.map(lambda x: np.asarray(drawn(x), x.dtype), memory)
    tree = {"step": np.int32(3), "params": {"x": {"kernel": rng.normal(size=(8, 8))}}}

    def on(mesh):
        kernel = jax.tree.map(lambda x: x.astype(np.float32), tree["params"])
        whole = {**tree, "params": kernel, "opt_state": kernel, "ema": kernel, "memory": memory}
        return TrainState(**sharding.put(whole, mesh))

    split, other = sharding.make_mesh(data=4, fsdp=2), sharding.make_mesh(data=2, fsdp=1, tensor=4)
    before = on(split)
    bank = before.memory["diversity"]["bank"]["bank"]
    assert bank.sharding.spec[0] == "data" and bank.addressable_shards[0].data.shape[0] == 4
    covariance = before.memory["alignment"]["covariance"]
    assert covariance.addressable_shards[0].data.shape[0] == 4
    with checkpoint.Checkpoints(str(tmp_path)) as kept:
        kept.save(before, PLACE, {})
        for mesh in (split, other):
            like = on(mesh)
            after = kept.restore(checkpoint.abstract(like)).state
            for there, wanted in zip(jax.tree.leaves(after), jax.tree.leaves(like), strict=True):
                assert there.sharding == wanted.sharding
                assert np.asarray(there).tobytes() == np.asarray(wanted).tobytes()
