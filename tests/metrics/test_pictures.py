"""Pictures spoilt more and more: every measure of a set moves, and in its own direction."""

import numpy as np
import pytest
from scipy import ndimage

from cosdiff_jax import columns
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.metrics import frechet, mmd, vendi
from cosdiff_jax.metrics.manifold import Manifold

PROMPTS, K = 48, 4


def noisy(images, scale):
    rng = np.random.default_rng(0)
    spoilt = images + 255 * scale * rng.normal(size=images.shape)
    return np.clip(np.round(spoilt), 0, 255).astype(np.uint8)


def blurred(images, sigma):
    return ndimage.gaussian_filter(images, (0,) * (images.ndim - 3) + (sigma, sigma, 0))


def dropped(images, share):
    """The last prompts show what the first ones show."""
    kept = round(len(images) * (1 - share))
    return images[np.arange(len(images)) % kept]


def copied(images, number):
    """The last pictures of each prompt are copies of its first ones."""
    return images[:, np.arange(K) % number]


SPOILT = {
    noisy: (0.0, 0.05, 0.1, 0.3),
    blurred: (0.0, 1.0, 2.0, 4.0),
    dropped: (0.0, 0.5, 0.75, 0.9),
    copied: (4, 2, 1),
}


@pytest.fixture(scope="module")
def sets():
    """Vectors "P K F" of the real pictures, and of the spoilt ones by how much they are."""
    eye = columns.clip_eye("scenes_clip")

    def see(images):
        return eye.see(images.reshape(-1, *images.shape[2:])).reshape(PROMPTS, K, -1)

    true = held_out(PROMPTS, K, seed=0)
    images = np.stack([true[i]["images"] for i in range(PROMPTS)])
    other = true.redrawn(K, seed=1)
    real = see(np.stack([other[i]["images"] for i in range(PROMPTS)]))
    return real, {
        how: [see(how(images, much)) for much in levels] for how, levels in SPOILT.items()
    }


def measured(made, real):
    made_rows, real_rows = made.reshape(-1, made.shape[-1]), real.reshape(-1, real.shape[-1])
    moments = [frechet.update(frechet.init(rows.shape[1]), rows) for rows in (made_rows, real_rows)]
    found = {"frechet": frechet.distance(*moments)}
    for metric in (mmd.Discrepancy(kernel=mmd.Gaussian(sigma=0.5)), Manifold()):
        found |= metric.result(metric.update(metric.init(), made_rows, real_rows))
    within, whole = vendi.Vendi(orders=(1.0,)), vendi.Vendi(orders=(1.0,))
    found["within"] = within.result(within.update(within.init(), made))["vendi_q1"]
    found["whole"] = whole.result(whole.update(whole.init(), made_rows[None]))["vendi_q1"]
    return found


@pytest.mark.parametrize(
    ("how", "falls"),
    [
        (noisy, ("density", "whole")),
        (blurred, ("density", "whole")),
        (dropped, ("whole",)),
        (copied, ("within", "whole")),
    ],
)
def test_more_spoilt_is_further_away(sets, how, falls):
    real, spoilt = sets
    found = [measured(made, real) for made in spoilt[how]]
    for name in ("frechet", "mmd", "mmd_unbiased", "recall", "coverage", *falls):
        values = np.array([one[name] for one in found])
        print(f"{how.__name__:8} {name:12}", " ".join(f"{value:8.4f}" for value in values))
        change = np.diff(values) * (1 if name in ("frechet", "mmd", "mmd_unbiased") else -1)
        # Recall has an end, where further modes cannot be missed.
        assert np.all((change > 0) | ((values[1:] == 0) & (name == "recall"))), name


def test_density_sees_spoilt_pictures_and_not_missing_ones(sets):
    real, spoilt = sets
    lost = {
        how: measured(made[0], real)["density"] - measured(made[-1], real)["density"]
        for how, made in spoilt.items()
    }
    assert min(lost[noisy], lost[blurred]) > 0.3
    assert max(abs(lost[dropped]), abs(lost[copied])) < 0.1
