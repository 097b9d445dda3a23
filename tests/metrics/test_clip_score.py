import numpy as np

from cosdiff_jax.metrics import clip_score


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_it_is_the_mean_cosine_over_pictures_and_updates_add_up():
    image, text = unit(5, 3, 8), unit(5, 8, seed=1)
    wanted = np.mean([image[p, k] @ text[p] for p in range(5) for k in range(3)])
    whole = clip_score.result(clip_score.update(clip_score.init(), image, text))
    parts = clip_score.update(clip_score.init(), image[:2], text[:2])
    parts = clip_score.result(clip_score.update(parts, image[2:], text[2:]))
    np.testing.assert_allclose([whole["clip_score"], parts["clip_score"]], wanted, rtol=1e-5)
    assert np.isnan(clip_score.result(clip_score.init())["clip_score"])
