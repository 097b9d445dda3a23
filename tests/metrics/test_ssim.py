import json
import pathlib

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from cosdiff_jax.metrics import ssim

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "metrics"
PUBLISHED = json.loads((FIXTURES / "packages.json").read_text())


def draw(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def measure(a, b, edges=False):
    return ssim.result(ssim.update(ssim.init(), a, b, edges))["ssim"]


def test_it_is_torchmetrics_own():
    # As record.py draws them beside the values.
    images = np.random.RandomState(1).uniform(-1, 1, (4, 3, 32, 40)).astype(np.float32)
    others = np.clip(images[::-1] * 0.6 + 0.4 * images, -1, 1).astype(np.float32)
    found = measure(images.transpose(0, 2, 3, 1), others.transpose(0, 2, 3, 1), edges=True)
    print(f"relative error {abs(found / PUBLISHED['ssim'] - 1):.1e}")
    assert found == pytest.approx(PUBLISHED["ssim"], rel=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_mean_over_pictures_of_scikit_images_own(channels):
    images = draw(3, 17, 24, channels)
    others = np.clip(images + 0.3 * draw(3, 17, 24, channels, seed=1), -1, 1)
    knobs = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    wanted = [
        structural_similarity(0.5 + 0.5 * a, 0.5 + 0.5 * b, data_range=1, channel_axis=-1, **knobs)
        for a, b in zip(images.astype(np.float64), others.astype(np.float64), strict=True)
    ]
    assert measure(images, others) == pytest.approx(np.mean(wanted), rel=1e-9)


def test_equal_pictures_are_1_and_opposite_ones_below_0():
    image = draw(2, 16, 16, 3)
    assert measure(image, image) == pytest.approx(1, abs=1e-12)
    assert measure(image, -image) < 0


def test_it_falls_with_noise_and_sees_structure_rather_than_brightness():
    image, noise = 0.5 * draw(1, 32, 32, 1), draw(1, 32, 32, 1, seed=1)
    found = [measure(image, image + s * noise) for s in (0, 0.1, 0.3, 0.5)]
    assert np.all(np.diff(found) < 0)
    # The same squared error as a shift of brightness costs less than as noise.
    lifted = image + np.float32(np.sqrt(np.mean((0.3 * noise) ** 2)))
    assert measure(image, lifted) > found[2]


def test_parts_and_hosts_give_what_all_at_once_gives_and_values_are_clipped():
    a, b = draw(5, 12, 12, 1), draw(5, 12, 12, 1, seed=1)
    whole = measure(a, b)
    here = ssim.update(ssim.update(ssim.init(), a[:1], b[:1]), a[1:2], b[1:2])
    merged = ssim.merge(here, ssim.update(ssim.init(), a[2:], b[2:]))
    assert ssim.result(merged)["ssim"] == pytest.approx(whole, rel=1e-9)
    ones = np.ones((1, 12, 12, 1), np.float32)
    assert measure(ones, 1.5 * ones) == pytest.approx(1)


def test_small_pictures_are_refused_and_nothing_is_nan():
    assert np.isnan(ssim.result(ssim.init())["ssim"])
    with pytest.raises(ValueError, match="11 x 11"):
        measure(draw(1, 10, 20, 1), draw(1, 10, 20, 1))
