import numpy as np
import pytest

from cosdiff_jax.metrics import consistency


def test_a_layer_that_knows_stands_above_chance_and_one_of_noise_does_not():
    rng = np.random.default_rng(0)
    known = rng.normal(size=(120, 4)).astype(np.float32)
    f = known @ rng.normal(size=(4, 6)) + 2
    image = f[:, None] + 0.1 * rng.normal(size=(120, 3, 6))
    image = (image / np.linalg.norm(image, axis=-1, keepdims=True)).astype(np.float32)
    hidden = np.stack([rng.normal(size=(120, 4)).astype(np.float32), known])
    state = consistency.init()
    for rows in (slice(0, 50), slice(50, 120)):
        state = consistency.update(state, hidden[:, rows], image[rows])
    own, shuffled = consistency.result(state)
    assert list(own) == list(shuffled) == ["layer 0", "layer 1"]
    assert own["layer 1"] > 0.95
    assert own["layer 1"] - shuffled["layer 1"] > 0.2
    assert abs(own["layer 0"] - shuffled["layer 0"]) < 0.05
    # The common part of all pictures is no consistency, but it is there.
    assert shuffled["layer 0"] > 0.3


def test_too_few_prompts_are_refused():
    hidden, image = np.zeros((1, 3, 4), np.float32), np.ones((3, 2, 5), np.float32)
    state = consistency.update(consistency.init(), hidden, image)
    with pytest.raises(ValueError, match="at least 4, not 3"):
        consistency.result(state)
