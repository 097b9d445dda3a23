"""What a folder of checkpoints says when none of them can be used."""

import jax
import jax.numpy as jnp
import pytest

from cosdiff_jax import checkpoint
from cosdiff_jax.shapes import TrainState


def state(remembered):
    zeros = jnp.zeros((2,))
    return TrainState(
        step=jnp.int32(3),
        params={"x": zeros},
        opt_state={"m": zeros},
        ema={"x": zeros},
        memory={"bank": jnp.ones((remembered, 4))},
    )


@pytest.mark.usefixtures("unchecked")
def test_a_state_of_another_shape_is_not_called_damaged_alone(tmp_path):
    with checkpoint.Checkpoints(str(tmp_path), keep=2) as kept:
        kept.save(state(5), {"stream": {}, "seconds": 1.0}, {"steps": 9})
        fits = kept.restore(checkpoint.abstract(state(5)))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, fits.state, state(5)))
        with pytest.raises(ValueError, match=r"or of another state \(.*\(3, 4\).*\(5, 4\)\); move"):
            kept.restore(checkpoint.abstract(state(3)))
