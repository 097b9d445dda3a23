import numpy as np
import pytest

from cosdiff_jax.data import digits
from cosdiff_jax.data.scenes.grammar import LANGUAGES, digit_caption


def rows(images):
    return {image.tobytes() for image in images}


def test_the_split_is_fixed_stratified_and_disjoint():
    train, train_digits = digits.load("train")
    test, test_digits = digits.load("test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.max() == 255
    assert train.min() == 0
    share = np.bincount(test_digits) / (np.bincount(train_digits) + np.bincount(test_digits))
    np.testing.assert_allclose(share, 0.2, atol=0.006)
    assert not rows(train) & rows(test)
    # A change of the split changes every published number.
    assert int(test.astype(np.int64).sum()) == 1_765_287
    with pytest.raises(ValueError, match="neither train nor test"):
        digits.load("all")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_group_is_k_different_real_pictures_of_the_digit(split):
    source = digits.DigitGroups(split=split, samples=8, number=60)
    images, shown = digits.load(split)
    real = {image.tobytes(): digit for image, digit in zip(images, shown, strict=True)}
    for index in range(len(source)):
        group = source[index]
        assert group["images"].shape == (8, 8, 8, 1)
        assert group["images"].dtype == np.uint8
        assert len(rows(group["images"])) == 8
        assert {real[image.tobytes()] for image in group["images"]} == {group["digit"]}
        assert group["caption"] == source.caption(index)
        assert digits.digit_of(group["caption"]) == group["digit"]


def test_every_digit_in_every_language_comes_round():
    source = digits.DigitGroups(number=30, split="test")
    assert {source.caption(i) for i in range(30)} == {
        digit_caption(digit, language) for digit in range(10) for language in LANGUAGES
    }


def test_groups_are_functions_of_seed_and_index():
    source = digits.DigitGroups(number=50)
    again = digits.DigitGroups(number=50)
    np.testing.assert_array_equal(source[7]["images"], again[7]["images"])
    assert source[7]["caption"] == again[7]["caption"]
    assert (source[7]["images"] != source[17]["images"]).any()
    other = digits.DigitGroups(number=50, seed=1)
    assert (source[7]["images"] != other[7]["images"]).any()
    with pytest.raises(IndexError):
        source[50]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"languages": ("en", "fr")}, "must be some of en, zh, ko"),
        ({"languages": ()}, "must be some of"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": 36, "split": "test"}, "samples is 36"),
        ({"number": 0}, "number is 0"),
        ({"split": "val"}, "neither train nor test"),
    ],
)
def test_wrong_knobs_are_said(knobs, message):
    with pytest.raises(ValueError, match=message):
        digits.DigitGroups(**knobs)


def test_every_wording_is_understood():
    rng = np.random.default_rng(0)
    for language in LANGUAGES:
        for digit in range(10):
            for _ in range(20):
                assert digits.digit_of(digit_caption(digit, language, rng)) == digit
    assert digits.digit_of("a red circle") is None
    assert digits.digit_of("a three and a four") is None
    assert digits.digit_of("seventeen 17") is None
    assert digits.digit_of("고양이") is None  # a cat, not a two
