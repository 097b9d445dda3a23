"""Weights in a folder: what is saved is found, and what is broken is said in one line."""

import numpy as np
import pytest

from cosdiff_jax import weights

TREE = {"a": {"kernel": np.array([[0.5, -2.0]], np.float32)}, "count": np.array(3, np.int32)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path, dtype):
    weights.save(tmp_path, {"name": "x", "x": {"width": 2}}, TREE, dtype=dtype)
    assert weights.entry(str(tmp_path)) == {"name": "x", "x": {"width": 2}}
    found = weights.load(str(tmp_path))
    assert found["a"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(found["a"]["kernel"], TREE["a"]["kernel"])
    assert found["count"] == 3 and found["count"].dtype == np.int32


def test_missing_and_broken_files_are_said(tmp_path):
    with pytest.raises(ValueError, match="no model in 'nowhere'"):
        weights.load("nowhere")
    weights.save(tmp_path, {"name": "x", "x": {}}, TREE, dtype="float32")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="cannot be read"):
        weights.load(str(tmp_path))


def test_embedded_weights_fit_the_size_they_were_given():
    files = list(weights.EMBEDDED.glob("*/model.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 40e6
    for file in files:
        assert (file.parent / "MODEL_CARD.md").is_file(), file
