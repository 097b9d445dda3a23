import numpy as np
import pytest
from vendi_score import vendi

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


@pytest.mark.parametrize(("number", "features"), [(7, 5), (6, 40)])
def test_the_vendi_score_is_the_published_packages(number, features):
    rng = np.random.default_rng(number)
    f = rng.normal(size=(3, number, features)) + 0.4
    # Of its forms, the one that starts from features; zero eigenvalues add nothing to either.
    published = np.mean([vendi.score_dual(group) for group in f])
    found = cosine.result(cosine.update(cosine.init(), f.astype(np.float32)))["vendi"]
    print(f"relative error {abs(found / published - 1):.1e}")
    assert found == pytest.approx(published, rel=1e-5)


def test_the_in_batch_cosine_is_the_published_definition():
    """1 - IntDiv of the same package counts each sample with itself; without those, our mean."""
    f = np.random.default_rng(0).normal(size=(2, 6, 4)) + 0.4
    k = f.shape[1]
    u = f / np.linalg.norm(f, axis=-1, keepdims=True)
    with_itself = [1 - vendi.intdiv_K(group @ group.T) for group in u]
    expected = np.mean([(k * c - 1) / (k - 1) for c in with_itself])
    found = cosine.result(cosine.update(cosine.init(), f.astype(np.float32)))["mean_cosine"]
    assert found == pytest.approx(expected, abs=1e-6)
