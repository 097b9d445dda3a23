import numpy as np
import pytest
from PIL import Image

from cosdiff_jax.report import grid


def test_bytes_cover_the_whole_range_and_survive_nan():
    images = np.array([-1.0, 1.0, 0.0, np.nan, 3.0, -np.inf], np.float32).reshape(1, 1, 6, 1, 1)
    assert grid.to_bytes(images).ravel().tolist() == [0, 255, 128, 0, 255, 0]
    bytes_ = np.arange(6, dtype=np.uint8).reshape(1, 1, 6, 1, 1)
    np.testing.assert_array_equal(grid.to_bytes(bytes_), bytes_)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_lands_in_its_row_and_column(channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, channels), np.uint8)
    sheet = np.asarray(grid.grid(images, scale=2, gutter=1))
    assert sheet.shape == (2 * (8 + 1) + 1, 3 * (10 + 1) + 1, 3)
    for row in range(2):
        for column in range(3):
            tile = sheet[1 + row * 9 : 9 + row * 9, 1 + column * 11 : 11 + column * 11]
            expected = np.broadcast_to(images[row, column], (4, 5, 3))
            np.testing.assert_array_equal(tile[::2, ::2], expected)
            np.testing.assert_array_equal(tile[1::2, 1::2], expected)


def test_small_pictures_are_enlarged_and_large_ones_left():
    assert grid.grid(np.zeros((1, 1, 16, 16, 1), np.uint8), gutter=0).size == (128, 128)
    assert grid.grid(np.zeros((1, 1, 300, 300, 1), np.uint8), gutter=0).size == (300, 300)


def test_captions_are_written_in_the_margin():
    images = np.full((2, 1, 64, 64, 3), 255, np.uint8)
    sheet = np.asarray(grid.grid(images, ["a red circle", ""]))
    half = sheet.shape[0] // 2
    margin = sheet[:, : sheet.shape[1] - 140]
    assert (margin[:half] < 100).any()
    assert not (margin[half + 4 :] < 100).any()


def test_a_caption_without_a_font_is_numbered_and_listed(monkeypatch, tmp_path):
    # As on a bare machine: nothing but what matplotlib brings along.
    monkeypatch.setattr(grid, "_faces", tuple)
    grid._covering.cache_clear()
    try:
        labels = ["a dog", "개 한 마리", "一只狗"]
        assert grid.undrawable(labels) == {"#2": "개 한 마리", "#3": "一只狗"}
        images = np.zeros((3, 1, 64, 64, 3), np.uint8)
        numbered = np.asarray(grid.grid(images, labels))
        expected = np.asarray(grid.grid(images, ["a dog", "개", "狗"]))
        np.testing.assert_array_equal(numbered, expected)
        grid.write_png(tmp_path / "new" / "grid.png", images, labels)
        assert Image.open(tmp_path / "new" / "grid.png").size == grid.grid(images, labels).size
        key = (tmp_path / "new" / "captions.txt").read_text("utf-8")
        assert key == "#2 개 한 마리\n#3 一只狗\n"
    finally:
        grid._covering.cache_clear()


def test_the_font_of_last_resort_is_never_used():
    # U+10FFFD has no glyph anywhere except in fonts that draw a box for it.
    assert grid.undrawable(["\U0010fffd"]) == {"#1": "\U0010fffd"}


def test_wrong_number_of_labels_is_said():
    with pytest.raises(ValueError, match="2 rows of pictures but 1 labels"):
        grid.grid(np.zeros((2, 1, 8, 8, 1), np.uint8), ["one"])
