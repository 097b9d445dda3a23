import numpy as np
import pytest
from PIL import Image

from cosdiff_jax.data import preprocess
from cosdiff_jax.data.buckets import Bucket, cover


def halves(left, right, size=(40, 20)):
    """A picture, its left and right half of one colour each."""
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def saved(folder, image, name, **options):
    image.save(folder / name, **options)
    return folder / name


def test_the_middle_square_is_cut_and_resized():
    pixels = cover(halves("red", "blue"), Bucket(8, 8))
    assert pixels.shape == (8, 8, 3)
    assert pixels[:, :3].tolist() == [[[255, 0, 0]] * 3] * 8
    assert pixels[:, 5:].tolist() == [[[0, 0, 255]] * 3] * 8
    tall = cover(halves("red", "blue").rotate(90, expand=True), Bucket(8, 8))
    np.testing.assert_array_equal(tall, pixels.transpose(1, 0, 2)[::-1])


def test_shrinking_averages_and_enlarging_keeps_a_constant():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    grey = cover(preprocess.to_rgb(Image.fromarray(board.astype(np.uint8))), Bucket(4, 4))
    np.testing.assert_allclose(grey, 127.5, atol=2)
    assert (cover(Image.new("RGB", (1, 3), (7, 8, 9)), Bucket(16, 16)) == [7, 8, 9]).all()
    # A thread of a picture is not enlarged before it is cut.
    assert cover(Image.new("RGB", (60_000, 1)), Bucket(64, 64)).shape == (64, 64, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_colour_modes_become_rgb(mode):
    image = preprocess.to_rgb(Image.new("RGB", (4, 4), "white").convert(mode))
    assert image.mode == "RGB"
    assert (np.asarray(image) >= 253).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_lies_on_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    pixels = np.asarray(preprocess.to_rgb(image.convert(mode)))
    assert (pixels[:, :2] == 0).all()
    assert (pixels[:, 2:] == 255).all()


def test_a_transparent_palette_colour_lies_on_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    path = saved(tmp_path, image, "a.png", transparency=1)
    assert (preprocess.read(path, 4) == 255).all()


@pytest.mark.parametrize(
    ("pixels", "grey"),
    [
        (np.full((4, 4), 32_768, np.uint16), 128),
        (np.full((4, 4), 200, np.uint16), 1),
        (np.full((4, 4), 200, np.int32), 200),
        (np.full((4, 4), 0.5, np.float32), 128),
        (np.array([[-10, 10]] * 2, np.float32), [0, 255]),
    ],
)
def test_more_than_eight_bits(pixels, grey, tmp_path):
    path = saved(tmp_path, Image.fromarray(pixels), "a.tif")
    read = preprocess.read(path, len(pixels))
    np.testing.assert_array_equal(read, np.broadcast_to(np.array(grey)[..., None], read.shape))


def test_exif_turns_the_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # was taken with the camera turned: rotate by 90 degrees clockwise
    path = saved(tmp_path, halves("red", "blue", (16, 16)), "a.png", exif=exif)
    pixels = preprocess.read(path, 16)
    assert pixels[0, 8].tolist() == [255, 0, 0]
    assert pixels[15, 8].tolist() == [0, 0, 255]


def test_a_jpeg_decoded_small_looks_as_decoded_whole(tmp_path):
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    image = Image.fromarray(np.stack([np.broadcast_to(ramp, (512, 512))] * 3, -1))
    small = preprocess.read(saved(tmp_path, image, "a.jpg", quality=95), 32)
    np.testing.assert_allclose(small.astype(int), cover(image, Bucket(32, 32)), atol=4)
    # Stripes 8 pixels wide survive only in a picture decoded no smaller than what is asked for.
    stripes = Image.fromarray((np.indices((512, 512))[1] // 8 % 2 * 255).astype(np.uint8))
    sharp = preprocess.read(saved(tmp_path, stripes, "b.jpg", quality=95), 200)
    expected = cover(preprocess.to_rgb(stripes), Bucket(200, 200))
    np.testing.assert_allclose(sharp.astype(int), expected, atol=8)


def test_reasons(tmp_path, monkeypatch):
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    whole = saved(tmp_path, halves("red", "blue"), "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "link.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "huge.png").write_bytes(whole)
    for name, reason in {
        "zero": "zero bytes",
        "text": "broken image",
        "half": "broken image",
        "link": "broken link",
        "loop": "broken link",
        "huge": "too many pixels",
        "absent": "no such file",
        "folder": "broken image",
    }.items():
        if name == "half":
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
        with pytest.raises(preprocess.Unusable, match=f"^{reason}$"):
            preprocess.read(tmp_path / f"{name}.png", 8)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
