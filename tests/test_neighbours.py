"""A copied picture is found, whatever block it stands in."""

import numpy as np
import pytest

from cosdiff_jax import neighbours


class Pixels:
    """Sees a picture as its pixels, scaled to length 1."""

    rows = 4

    def see(self, images):
        flat = images.reshape(len(images), -1).astype(np.float32) - 127.5
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@pytest.fixture
def source():
    rng = np.random.default_rng(0)
    return [{"images": rng.integers(0, 256, (1 + n % 3, 4, 4, 3), np.uint8)} for n in range(12)]


@pytest.mark.parametrize("block", [1, 5, 4096])
def test_the_nearest_is_found_in_any_block(source, monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    found = neighbours.of_training(source, Pixels(), 1000)
    every = np.concatenate([group["images"] for group in source])
    np.testing.assert_array_equal(found.pictures(np.arange(len(every))), every)
    rng = np.random.default_rng(1)
    asked = np.concatenate([every[[7, 20]], rng.integers(0, 256, (3, 4, 4, 3), np.uint8)])
    f = Pixels().see(asked)
    cosine, number = found.nearest(f)
    table = f @ Pixels().see(every).T
    np.testing.assert_array_equal(number, table.argmax(axis=1))
    np.testing.assert_allclose(cosine, table.max(axis=1), rtol=1e-6)
    assert number[:2].tolist() == [7, 20] and cosine[:2] == pytest.approx([1, 1])


def test_whole_groups_until_enough(source):
    found = neighbours.of_training(source, Pixels(), 5)
    # 1 + 2 + 3 pictures: the group that reaches the number is taken whole.
    assert len(found.f) == len(found.place) == 6
    with pytest.raises(ValueError, match="nothing to compare"):
        neighbours.of_training(source, Pixels(), 0)
