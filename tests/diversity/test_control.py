import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.diversity import control, similarity


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("ramp", [control.LinearRamp, control.CosineRamp])
def test_ramps_wait_rise_and_stay(ramp):
    weight = jax.jit(ramp(end=0.04, warmup=10, ramp=20))
    values = np.asarray([weight(step) for step in range(40)])
    assert not values[:11].any()
    np.testing.assert_allclose(values[20], 0.02, rtol=1e-5)
    np.testing.assert_allclose(values[30:], 0.04, rtol=1e-6)
    assert (np.diff(values[10:31]) > 0).all()


def test_a_ramp_of_no_steps_jumps():
    weight = control.LinearRamp(end=0.04, warmup=3)
    np.testing.assert_allclose([weight(s) for s in (0, 2, 3, 4)], [0, 0, 0.04, 0.04])


def test_cosine_ramp_is_level_at_its_ends():
    weight = control.CosineRamp(end=1.0, warmup=0, ramp=100)
    np.testing.assert_allclose([weight(s) for s in (1, 99)], [0, 1], atol=1e-3)


def test_constant():
    assert control.Constant(value=0.5)(7) == 0.5


def test_hinge_pulls_only_above_its_target():
    cosine = jnp.asarray([0.9, 0.5, -0.1])
    target = jnp.asarray([0.7, 0.7, -0.2])
    np.testing.assert_allclose(control.hinge(cosine, target), [0.2, 0, 0.1], atol=1e-6)
    np.testing.assert_allclose(control.hinge(cosine, 0.6), [0.3, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(control.hinge(cosine, None), cosine)
    pull, push = jax.grad(lambda c, t: control.hinge(c, t).sum(), (0, 1))(cosine, target)
    np.testing.assert_array_equal(pull, [1, 0, 1])
    np.testing.assert_array_equal(push, 0)


def test_the_real_pictures_own_cosine_is_free():
    f, real = draw(4, 6, 5) + 1, draw(4, 6, 5, seed=1) + 1
    term = control.CosineDiversity()
    assert term.reads_real
    np.testing.assert_array_equal(term(real, real), 0)
    excess = similarity.mean_cosine(f) - similarity.mean_cosine(real)
    np.testing.assert_allclose(term(f, real), jnp.maximum(excess, 0), atol=1e-6)
    slack = control.CosineDiversity(target=control.RealPictures(margin=0.3))
    np.testing.assert_allclose(slack(f, real), jnp.maximum(excess - 0.3, 0), atol=1e-6)
    with pytest.raises(ValueError, match="real pictures"):
        term(f)


def test_fixed_target_and_top_measure():
    f = draw(4, 6, 5)
    term = control.CosineDiversity(
        measure=control.TopCosine(percent=20.0), target=control.Fixed(cosine=0.1)
    )
    assert not term.reads_real
    want = jnp.maximum(similarity.top_cosine(f, 20.0) - 0.1, 0)
    np.testing.assert_allclose(term(f), want, atol=1e-6)
    bare = control.CosineDiversity(target=control.Fixed())
    np.testing.assert_allclose(bare(f), similarity.mean_cosine(f) + 1, atol=1e-6)


def test_alignment_is_one_minus_the_cosine_with_the_own_prompt():
    images, text = draw(3, 4, 5), draw(3, 5, seed=1)
    got = control.alignment(images, text)
    for p in range(3):
        for k in range(4):
            a, b = np.asarray(images[p, k]), np.asarray(text[p])
            want = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            np.testing.assert_allclose(got[p, k], want, atol=1e-6)
    np.testing.assert_array_equal(control.alignment(jnp.zeros((3, 4, 5)), text), 1)


@pytest.mark.parametrize(
    ("part", "protocol"),
    [
        (control.Constant(), control.Schedule),
        (control.LinearRamp(), control.Schedule),
        (control.CosineRamp(), control.Schedule),
        (control.MeanCosine(), control.Measure),
        (control.TopCosine(), control.Measure),
        (control.Fixed(), control.Target),
        (control.RealPictures(), control.Target),
    ],
)
def test_parts_fit_their_protocols(part, protocol):
    assert isinstance(part, protocol)
