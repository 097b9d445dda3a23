import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from cosdiff_jax.metrics import psnr


def test_it_is_the_mean_over_pictures_of_scikit_images_own():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    others = np.clip(images + rng.normal(0, 0.1, images.shape), -1, 1).astype(np.float32)
    wanted = np.mean(
        [peak_signal_noise_ratio(a, b, data_range=2) for a, b in zip(images, others, strict=True)]
    )
    state = psnr.update(psnr.init(), images[:1], others[:1])
    found = psnr.result(psnr.update(state, images[1:], others[1:]))
    assert found["psnr"] == pytest.approx(wanted, rel=1e-5)


def test_a_perfect_picture_is_finite_and_what_leaves_the_range_is_clipped():
    image = np.ones((1, 4, 4, 1), np.float32)
    assert psnr.result(psnr.update(psnr.init(), image, 1.5 * image))["psnr"] == pytest.approx(100)
