import numpy as np
import pytest

from cosdiff_jax.metrics import cosine


def test_means_over_prompts_agree_with_all_pairs_written_out():
    f = np.random.default_rng(0).normal(size=(5, 4, 8)).astype(np.float32)
    hat = f / np.linalg.norm(f, axis=-1, keepdims=True)
    pairs = [np.sort([hat[p, i] @ hat[p, j] for i in range(4) for j in range(i)]) for p in range(5)]
    state = cosine.update(cosine.init(), f[:3], percent=50.0)
    found = cosine.result(cosine.update(state, f[3:], percent=50.0))
    assert found["mean_cosine"] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert found["top_cosine"] == pytest.approx(np.mean([p[3:] for p in pairs]), abs=1e-6)
    spectra = [np.linalg.eigvalsh(hat[p] @ hat[p].T) / 4 for p in range(5)]
    vendi = [np.exp(-np.sum(w * np.log(w))) for w in spectra]
    assert found["vendi"] == pytest.approx(np.mean(vendi), rel=1e-5)


def test_the_vendi_score_counts_different_samples():
    a, b = np.eye(2, 3, dtype=np.float32)
    two = cosine.update(cosine.init(), np.stack([a, a, b, b])[None])
    assert cosine.result(two)["vendi"] == pytest.approx(2, rel=1e-5)


def test_one_sample_has_no_pairs():
    with pytest.raises(ValueError, match="at least 2"):
        cosine.update(cosine.init(), np.ones((2, 1, 3), np.float32))
