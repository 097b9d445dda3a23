import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.diversity import schedule
from cosdiff_jax.diversity.alignment import (
    Alignment,
    Contrastive,
    Cosine,
    Form,
    Projection,
    same_captions,
)

FORMS = [Cosine(), Contrastive(temperature=0.3)]
DIFFERENT = jnp.eye(3, dtype=bool)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_cosine_form_is_one_minus_the_cosine_with_the_own_caption():
    images, text = draw(3, 4, 5), draw(3, 5, seed=1)
    got = Cosine()(images, text, DIFFERENT)
    for p in range(3):
        for k in range(4):
            want = 1 - unit(images[p, k]) @ unit(text[p])
            np.testing.assert_allclose(got[p, k], want, atol=1e-6)
    np.testing.assert_array_equal(Cosine()(jnp.zeros((3, 4, 5)), text, DIFFERENT), 1)


def test_the_contrastive_form_is_the_cross_entropy_over_captions_that_differ():
    images, text = draw(4, 2, 5), draw(4, 5, seed=1)
    same = np.eye(4, dtype=bool)
    same[0, 2] = same[2, 0] = True
    got = Contrastive(temperature=0.2)(images, text, jnp.asarray(same))
    for p in range(4):
        others = [q for q in range(4) if q == p or {p, q} != {0, 2}]
        for k in range(2):
            e = {q: np.exp(unit(images[p, k]) @ unit(text[q]) / 0.2) for q in others}
            np.testing.assert_allclose(got[p, k], -np.log(e[p] / sum(e.values())), rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(form):
    images, text, along = draw(3, 2, 5), draw(3, 5, seed=1), draw(3, 2, 5, seed=2)

    def cost(images):
        return form(images, text, DIFFERENT).sum()

    slope = jnp.sum(jax.grad(cost)(images) * along)
    difference = (cost(images + 0.01 * along) - cost(images - 0.01 * along)) / 0.02
    assert abs(float(slope)) > 0.1
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_a_contrastive_step_draws_to_the_own_caption_and_away_from_the_others():
    text = jnp.eye(3, 5)
    images = jnp.ones((3, 4, 5)) + 0.1 * draw(3, 4, 5)

    def cosines(images):
        return np.einsum("pkf,qf->pqk", unit(images), unit(text))

    slope = jax.grad(lambda x: Contrastive()(x, text, DIFFERENT).sum())(images)
    moved = cosines(images - 0.01 * slope) - cosines(images)
    own = np.eye(3, dtype=bool)
    assert (moved[own] > 0).all() and (moved[~own] < 0).all()


def test_identical_captions_are_no_negatives():
    tokens = jnp.array([[2, 5, 0], [2, 5, 7], [2, 5, 0], [2, 5, 0]])
    mask = jnp.array([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]], bool)
    same = same_captions(tokens, mask)
    np.testing.assert_array_equal(same[0], [True, False, True, False])
    np.testing.assert_array_equal(same, same.T)
    images, text = draw(4, 2, 5), draw(4, 5, seed=1)
    every = jnp.ones((4, 4), bool)
    cost = lambda x: Contrastive()(x, text, every).sum()  # noqa: E731
    assert float(cost(images)) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(jax.grad(cost)(images), 0, atol=1e-6)


def test_the_projection_is_the_least_squares_one():
    """Ridge as rows of an ordinary least-squares problem; scales of h that differ a lot."""
    scale, offset = jnp.array([[1, 1e3, 0.1, 1, 5, 1]]), jnp.array([[0, 30, 2, -4, 0, 1.0]])
    known = draw(40, 6)
    h, new = known * scale + offset, draw(7, 6, seed=2) * scale + offset
    f = draw(40, 4, seed=1) + known[:, :4]
    fit = Projection(ridge=0.1)
    got = fit.text(fit.after(fit.start(6, 4), h, f), new)
    x, y = np.asarray(h, np.float64), np.asarray(f, np.float64)
    rows = (x - x.mean(0)) / np.sqrt(40)
    shrink = np.sqrt(0.1) * np.diag(x.std(0))
    wanted = np.concatenate([(y - y.mean(0)) / np.sqrt(40), np.zeros((6, 4))])
    w = np.linalg.lstsq(np.concatenate([rows, shrink]), wanted, rcond=None)[0]
    want = unit(y.mean(0) + (np.asarray(new, np.float64) - x.mean(0)) @ w)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_past_steps_count_less_by_the_decay_and_a_large_mean_costs_no_digits():
    fit, memory = Projection(decay=0.7), Projection().start(3, 2)
    steps = [(100 + draw(5, 3, seed=s), draw(5, 2, seed=10 + s)) for s in range(4)]
    for h, f in steps:
        memory = fit.after(memory, h, f)
    x = np.concatenate([np.concatenate(step, axis=1) for step in steps]).astype(np.float64)
    weight = np.repeat([0.3 * 0.7**n / 5 for n in (3, 2, 1, 0)], 5)
    mean = weight @ x / weight.sum()
    covariance = np.einsum("n,nd,nx->dx", weight, (x - mean)[:, :3], x - mean)
    np.testing.assert_allclose(memory["weight"], weight.sum(), rtol=1e-6)
    np.testing.assert_allclose(memory["mean"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(memory["covariance"], covariance, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_of_nothing_nothing_is_asked(form):
    fit = Projection()
    text = fit.text(fit.start(6, 5), draw(3, 6))
    np.testing.assert_array_equal(text, 0)
    value, slope = jax.value_and_grad(lambda x: form(x, text, DIFFERENT).sum())(draw(3, 2, 5))
    assert np.isfinite(value)
    np.testing.assert_array_equal(slope, 0)


def test_a_coordinate_that_never_changes_says_nothing():
    """One caption twice, then states of which one stands still: finite, and the mean picture."""
    fit, f = Projection(), draw(2, 5, seed=1)
    h = jnp.broadcast_to(0.1 * draw(1, 6), (2, 6))
    seen = fit.after(fit.start(6, 5), h, f)
    np.testing.assert_allclose(fit.text(seen, h + 1), np.tile(unit(f.mean(0)), (2, 1)), atol=1e-5)
    still = draw(20, 6, seed=2).at[:, 3].set(0.1)
    seen = fit.after(fit.start(6, 5), still, draw(20, 5, seed=3))
    there = fit.text(seen, still)
    np.testing.assert_allclose(fit.text(seen, still.at[:, 3].add(1e3)), there, atol=1e-5)


def test_no_gradient_reaches_the_captions_or_the_statistics():
    fit = Projection()

    def text(h, f):
        return fit.text(fit.after(fit.start(6, 5), h, f), h)[:, 0].sum()

    for slope in jax.grad(text, (0, 1))(draw(9, 6), draw(9, 5, seed=1)):
        np.testing.assert_array_equal(slope, 0)


def test_mu_has_a_schedule_of_its_own():
    term = Alignment(schedule=schedule.LinearRamp(end=0.5, warmup=2, ramp=4))
    assert [float(term.weight(step)) for step in (0, 2, 4, 9)] == [0, 0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Contrastive(temperature=0.0), "temperature must be above 0"),
        (lambda: Projection(ridge=0.0), "ridge must be above 0"),
        (lambda: Projection(decay=1.0), "decay must lie in"),
    ],
)
def test_impossible_knobs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("form", FORMS)
def test_forms_fit_their_protocol(form):
    assert isinstance(form, Form)
