import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.diversity import control, measure, schedule, similarity
from cosdiff_jax.diversity.bank import Bank


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def fresh(term, f, real=None, mask=None):
    """The penalty at the first step."""
    mask = jnp.ones(f.shape[:2], bool) if mask is None else mask
    memory = term.start(9, f.shape[-1])
    return term(f, real, mask, memory=memory, prompt=jnp.arange(f.shape[0]))


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
    np.testing.assert_array_equal(fresh(term, real, real), 0)
    excess = similarity.mean_cosine(f) - similarity.mean_cosine(real)
    np.testing.assert_allclose(fresh(term, f, real), jnp.maximum(excess, 0), atol=1e-6)
    slack = control.CosineDiversity(target=control.RealPictures(margin=0.3))
    np.testing.assert_allclose(fresh(slack, f, real), jnp.maximum(excess - 0.3, 0), atol=1e-6)
    with pytest.raises(ValueError, match="real pictures"):
        fresh(term, f)


@pytest.mark.parametrize("form", [measure.MeanCosine(), measure.Vendi()], ids=repr)
def test_repeated_pictures_do_not_raise_the_target(form):
    """Of the first prompt three differ, of the second two; of the third there is one alone."""
    f, real = draw(3, 4, 5), draw(3, 4, 5, seed=1) + 1
    number = np.array([3, 2, 1])
    real = jnp.stack(
        [jnp.take(r, jnp.arange(4) % n, axis=0) for r, n in zip(real, number, strict=True)]
    )
    distinct = jnp.arange(4)[None, :] < number[:, None]
    term = control.CosineDiversity(measure=form, target=control.RealPictures(margin=-1.0))
    mask, memory = jnp.ones((3, 4), bool), term.start(9, 5)
    got = term(f, real, mask, memory=memory, distinct=distinct)
    want = [float(form(f)[p] - form(real[p : p + 1, : number[p]])[0] + 1) for p in range(2)]
    assert min(want) > 0.01
    np.testing.assert_allclose(got, [*want, 0], atol=1e-5)
    np.testing.assert_array_equal(term.asked(mask, distinct), [True, True, False])
    # A number of one's own holds for all.
    bare = control.CosineDiversity(measure=form, target=control.Fixed())
    np.testing.assert_array_equal(bare.asked(mask, distinct), True)
    np.testing.assert_allclose(
        bare(f, None, mask, memory=memory, distinct=distinct), form(f) + 1, atol=1e-5
    )


def test_fixed_target_and_top_measure():
    f = draw(4, 6, 5)
    term = control.CosineDiversity(
        measure=measure.TopCosine(percent=20.0), target=control.Fixed(cosine=0.1)
    )
    assert not term.reads_real
    want = jnp.maximum(similarity.top_cosine(f, 20.0) - 0.1, 0)
    np.testing.assert_allclose(fresh(term, f), want, atol=1e-6)
    bare = control.CosineDiversity(target=control.Fixed())
    np.testing.assert_allclose(fresh(bare, f), similarity.mean_cosine(f) + 1, atol=1e-6)


@pytest.mark.parametrize("excess", [0.02, -0.02])
@pytest.mark.parametrize("read", [False, True], ids=["fixed", "real"])
def test_a_measure_that_draws_costs_on_average_what_its_expectation_does(excess, read):
    """Two pairs are off by 0.5: a hinge of each draw would pull below the target as well."""
    f, real, mean = draw(1, 6, 3) + 0.3, draw(1, 6, 3, seed=1), measure.MeanCosine()
    target = float(mean(f)[0]) - excess
    margin = control.RealPictures(margin=target - float(mean(real)[0]))
    term = control.CosineDiversity(
        measure=measure.SampledCosine(pairs=2),
        target=margin if read else control.Fixed(cosine=target),
    )
    mask, memory = jnp.ones((1, 6), bool), term.start(9, 3)

    def cost(f, key):
        return term(f, real, mask, memory=memory, key=key)[0]

    keys = jax.random.split(jax.random.key(0), 4000)
    got = jax.jit(jax.vmap(jax.value_and_grad(cost), (None, 0)))(f, keys)
    want = jax.value_and_grad(lambda f: jnp.maximum(mean(f)[0] - target, 0.0))(f)
    for one, wanted in zip(got, want, strict=True):
        error = np.std(one, axis=0) / np.sqrt(len(keys))
        assert (np.abs(np.mean(one, axis=0) - wanted) <= 4 * error + 1e-7).all()
    assert (np.std(got[0]) > 0.1) == (excess > 0)


def test_a_prompt_with_one_sample_that_counts_costs_nothing():
    f = jnp.ones((2, 3, 4))
    mask = jnp.array([[True, False, False], [True, True, False]])
    term = control.CosineDiversity(target=control.Fixed())
    np.testing.assert_allclose(fresh(term, f, mask=mask), [0, 2], atol=1e-6)


def test_the_bank_adds_partners_but_no_gradient_of_its_own():
    """Two samples today, two of yesterday: the measure sees four and moves two."""
    term = control.CosineDiversity(
        target=control.Fixed(), schedule=schedule.Controller(wanted=0.0), bank=Bank(slots=2)
    )
    yesterday, today = draw(3, 2, 5), draw(3, 2, 5, seed=1)
    prompt, mask = jnp.array([7, 0, 4]), jnp.ones((3, 2), bool)
    memory = term.start(9, 5)
    memory = term.after(memory, yesterday, mask, jnp.float32(0.5), 0, prompt)
    np.testing.assert_allclose(term.weight(1, memory), 15.0, rtol=1e-6)

    def cost(today, yesterday):
        kept = term.after(term.start(9, 5), yesterday, mask, jnp.float32(0.5), 0, prompt)
        return term(today, None, mask, memory=kept, prompt=prompt).sum()

    every = jnp.concatenate([today, yesterday], axis=1)
    value = term(today, None, mask, memory=memory, prompt=prompt)
    np.testing.assert_allclose(value, similarity.mean_cosine(every) + 1, atol=1e-6)
    new, old = jax.grad(cost, (0, 1))(today, yesterday)
    want = jax.grad(lambda f: similarity.mean_cosine(f).sum())(every)[:, :2]
    np.testing.assert_allclose(new, want, atol=1e-6)
    assert not np.any(old)
    with pytest.raises(ValueError, match="number of each prompt"):
        term(today, None, mask, memory=memory)


@pytest.mark.parametrize(
    ("part", "protocol"),
    [
        (control.Fixed(), control.Target),
        (control.RealPictures(), control.Target),
    ],
)
def test_parts_fit_their_protocols(part, protocol):
    assert isinstance(part, protocol)
