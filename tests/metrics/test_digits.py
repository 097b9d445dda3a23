import numpy as np
import pytest

from cosdiff_jax.data import digits as data
from cosdiff_jax.metrics import digits


def test_the_classifier_reads_real_held_out_digits():
    assert digits.held_out_accuracy(digits.fit()) > 0.98


@pytest.mark.parametrize("size", [8, 16])
def test_bytes_floats_and_larger_pictures_read_alike(size):
    images, shown = data.load("test")
    larger = images.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    floats = larger.astype(np.float32) / 127.5 - 1.0
    np.testing.assert_allclose(digits.ink(larger), digits.ink(images), atol=1e-9)
    np.testing.assert_allclose(digits.ink(floats), digits.ink(images), atol=1e-5)
    assert digits.ink(images).max() == 16.0
    classifier = digits.fit()
    np.testing.assert_array_equal(classifier(floats), classifier(images))
    assert (classifier(images) == shown).mean() > 0.98


def test_wrong_pictures_are_said():
    with pytest.raises(ValueError, match="not 12 x 8 x 1"):
        digits.ink(np.zeros((1, 12, 8, 1), np.uint8))
    with pytest.raises(ValueError, match="not 8 x 8 x 3"):
        digits.ink(np.zeros((1, 8, 8, 3), np.uint8))


def test_accuracy_counts_what_was_asked_for_over_updates():
    metric = digits.DigitMetric()
    images, shown = data.load("train")
    pictures = np.stack([images[shown == digit][:4] for digit in range(10)])
    asked = np.arange(10, dtype=np.int32)
    state = metric.update(metric.init(), pictures, asked)
    assert metric.result(state)["classifier_accuracy"] == 1.0
    wrong = metric.update(state, pictures, (asked + 1) % 10)
    assert metric.result(wrong)["classifier_accuracy"] == 0.5
    # update is pure: the first state still says what it said.
    assert metric.result(state)["classifier_accuracy"] == 1.0
    assert np.isnan(metric.result(metric.init())["classifier_accuracy"])


def test_variety_is_zero_for_copies_and_that_of_real_pictures_for_real_pictures():
    metric = digits.DigitMetric()
    images, shown = data.load("train")
    one = np.stack([images[shown == 3][:1].repeat(8, axis=0)])
    asked = np.array([3], np.int32)
    copies = metric.result(metric.update(metric.init(), one, asked))
    assert copies["meaningful_diversity"] == pytest.approx(0.0)
    true = metric.true(samples=8)
    assert 0.6 < true["meaningful_diversity"] < 0.95
    assert true["classifier_accuracy"] > 0.97
    # Two of eight in another hand: the entropy of (3/4, 1/4) over log 6.
    classifier = metric.classifier
    hands = classifier.hand(images[shown == 3], np.full((shown == 3).sum(), 3, np.int32))
    first, second = (images[shown == 3][hands == hand][0] for hand in (0, 1))
    pictures = np.stack([np.stack([first] * 6 + [second] * 2)])
    mixed = metric.result(metric.update(metric.init(), pictures, asked))
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(6)
    assert mixed["meaningful_diversity"] == pytest.approx(expected)
