import numpy as np
import pytest

from cosdiff_jax.metrics import retrieval


def score(image, text):
    state = retrieval.update(retrieval.init(), image[:2], text[:2])
    return retrieval.result(retrieval.update(state, image[2:], text[2:]))


def test_own_captions_are_found_and_swapped_ones_are_not():
    same = np.eye(4, 6, dtype=np.float32)
    assert score(same, same)["retrieval@1"] == 1
    found = score(same, same[[1, 0, 2, 3]])
    assert found["image_to_text@1"] == found["text_to_image@1"] == 0.5


def test_the_two_directions_differ():
    image = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    text = np.array([[0.9, 0.1], [1.0, 0.2], [0.1, 1.0]], np.float32)
    found = score(image, text)
    assert found["image_to_text@1"] == pytest.approx(2 / 3)
    assert found["text_to_image@1"] == pytest.approx(2 / 3)
    assert score(image, text[[0, 1, 1]])["text_to_image@1"] == pytest.approx(1 / 3)


def test_vectors_that_are_all_alike_find_nothing():
    alike = np.ones((4, 3), np.float32)
    assert score(alike, alike)["retrieval@1"] == 0
