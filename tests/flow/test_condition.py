import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import text_stream
from cosdiff_jax.flow import condition, guidance
from cosdiff_jax.flow.composed import Composed
from cosdiff_jax.flow.solver import Euler
from cosdiff_jax.shapes import TextStream

P, K, T = 2, 3, 5
REAL = jnp.array([5, 3])


def draw(*shape, seed=0, size=1.0):
    return jnp.asarray(size * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def stream(prompts=P, layers=True):
    mask = jnp.arange(T)[None, :] < REAL[:prompts, None]
    return TextStream(
        keys=draw(4, prompts, T, 2, 8, seed=1),
        values=draw(4, prompts, T, 2, 8, seed=2, size=7.0) + 1,
        hidden=draw(prompts, T, 24, seed=3, size=0.2),
        mask=mask,
        layers=draw(5, prompts, T, 24, seed=4) if layers else None,
    )


def keys(rows=P * K, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


def rows(text):
    return text_stream.repeat(text, K)


def turned(text):
    """The prompts in reverse."""
    return TextStream(
        keys=text.keys[:, ::-1],
        values=text.values[:, ::-1],
        hidden=text.hidden[::-1],
        mask=text.mask[::-1],
        layers=text.layers[:, ::-1],
    )


def said(text):
    """What is annealed: "B S T F" each, features last."""
    fields = {
        "values": text.values.reshape(*text.values.shape[:3], -1).swapaxes(0, 1),
        "hidden": text.hidden[:, None],
    }
    return fields | {"layers": text.layers.swapaxes(0, 1)}


@functools.cache
def compiled(**knobs):
    return jax.jit(condition.Cads(**knobs))


def anneal(text, t, **knobs):
    return compiled(**knobs)(text, jnp.full(text.mask.shape[:1], t), keys())


def test_gamma_falls_in_a_straight_line_between_its_ends():
    gamma = jax.jit(condition.Cads(tau1=0.5, tau2=0.75).gamma)
    got = gamma(jnp.array([0.0, 0.4, 0.5, 0.5625, 0.625, 0.75, 0.9, 1.0]))
    np.testing.assert_array_equal(got, [1, 1, 1, 0.75, 0.5, 0, 0, 0])


@pytest.mark.parametrize("t", [0.0, 0.6])
def test_a_clear_caption_is_the_stream_itself(t):
    text = rows(stream())
    chex.assert_trees_all_equal(anneal(text, t), text)


@pytest.mark.parametrize("t", [0.7, 0.95])
def test_keys_mask_and_padding_stay_and_everything_said_changes(t):
    text = rows(stream())
    got = anneal(text, t)
    chex.assert_trees_all_equal((got.keys, got.mask), (text.keys, text.mask))
    chex.assert_trees_all_equal_shapes_and_dtypes(got, text)
    for name, before in said(text).items():
        changed = (said(got)[name] != before).any(-1)
        np.testing.assert_array_equal(
            changed, jnp.broadcast_to(text.mask[:, None], changed.shape), err_msg=name
        )


@pytest.mark.parametrize("t", [0.7, 0.95])
def test_rescaling_keeps_the_mean_and_the_std_of_every_token(t):
    text = rows(stream())
    for name, got in said(anneal(text, t)).items():
        before = said(text)[name]
        np.testing.assert_allclose(got.mean(-1), before.mean(-1), atol=1e-5, err_msg=name)
        np.testing.assert_allclose(got.std(-1), before.std(-1), rtol=1e-4, err_msg=name)


def test_without_rescaling_it_is_the_sum_of_caption_and_noise():
    """sqrt(gamma) y + 0.25 sqrt(1 - gamma) std(y) n: n is what is left, and it is standard."""
    text, gamma = rows(stream()), 0.25
    got = anneal(text, 0.9 - 0.3 * gamma, rescale=0.0)
    for name, y_hat in said(got).items():
        y, mask = said(text)[name], text.mask
        noise = (y_hat - 0.5 * y) / (0.25 * np.sqrt(0.75) * y.std(-1, keepdims=True))
        noise = noise.swapaxes(1, 2)[mask]
        count = noise.size
        assert abs(noise.mean()) < 4 / np.sqrt(count), name
        assert abs(noise.var() - 1) < 6 / np.sqrt(count), name


def test_rescaling_mixes_the_two_forms():
    text = rows(stream())
    bare, whole, half = (anneal(text, 0.8, rescale=psi) for psi in (0.0, 1.0, 0.5))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, bare.hidden, whole.hidden)
    np.testing.assert_allclose(half.hidden, mean, atol=1e-6)
    assert jnp.abs(bare.hidden - whole.hidden).max() > 1e-3


def test_the_noise_is_the_rows_own_the_fields_own_and_the_same_at_every_time():
    text, late = rows(stream()), jnp.full((P * K,), 1.0)
    cads = compiled(rescale=0.0)
    whole = cads(text, late, keys())
    swapped = cads(rows(turned(stream())), late, keys()[::-1])
    np.testing.assert_allclose(swapped.hidden, whole.hidden[::-1], atol=1e-6)
    np.testing.assert_allclose(swapped.values, whole.values[:, ::-1], atol=1e-5)
    # At t = 1 the stream is noise alone, in units of the token's std.
    noise = np.asarray(whole.hidden / (0.25 * text.hidden.std(-1, keepdims=True)))
    for a in range(K):
        for b in range(a):
            assert np.abs(noise[a] - noise[b]).max() > 0.5
    layer = whole.layers[0] / (0.25 * text.layers[0].std(-1, keepdims=True))
    assert jnp.abs(layer - noise)[0].max() > 0.5
    earlier = cads(text, jnp.full((P * K,), 0.75), keys())
    left = earlier.hidden - np.sqrt(0.5) * text.hidden
    want = np.sqrt(0.5) * whole.hidden
    np.testing.assert_allclose(left[:K], want[:K], atol=1e-5)


def test_rows_may_differ_in_time():
    text = rows(stream())
    t = jnp.array([0.1, 0.8, 1.0, 0.1, 0.8, 1.0])
    got = compiled()(text, t, keys())
    for row, time in enumerate(t):
        want = anneal(text, time)
        np.testing.assert_allclose(got.values[:, row], want.values[:, row], atol=1e-5)


def test_a_constant_token_is_harmless():
    text = rows(stream())
    flat = dataclasses.replace(text, hidden=jnp.zeros_like(text.hidden), values=text.values * 0 + 3)
    for t in (0.7, 1.0):
        got = anneal(flat, t)
        np.testing.assert_allclose(got.hidden, 0, atol=1e-6)
        np.testing.assert_allclose(got.values, 3, atol=1e-5)


def test_small_floats_stay_small_floats():
    text = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, stream())
    text, t = rows(text), jnp.ones(P * K)
    for end in (0.0, 1.0):
        got = jax.tree.leaves(compiled()(text, end * t, keys()))
        assert [x.dtype for x in got] == [x.dtype for x in jax.tree.leaves(text)]
        assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in got)


def test_ends_in_the_wrong_order_are_refused():
    for tau2 in (0.9, float("nan")):
        with pytest.raises(ValueError, match=r"condition\.cads: tau1 must be below tau2"):
            condition.Cads(tau1=0.9, tau2=tau2)


@pytest.mark.parametrize("knob", [{"scale": -1.0}, {"scale": float("nan")}, {"rescale": 5.0}])
def test_noise_of_no_size_is_refused(knob):
    (name,) = knob
    with pytest.raises(ValueError, match=f"condition.cads.{name} must"):
        condition.Cads(**knob)


def backbone(z, t, text):
    """Told by values and hidden; as many text rows as there are captions."""
    told = text.values.mean((0, 2, 3, 4)) + text.hidden[:, 0].max(-1)
    return z * t[:, None] + jnp.repeat(told, len(z) // len(told))[:, None]


CAPTIONS, EMPTY, KEYS = stream(layers=False), stream(1, layers=False), keys()


def guided(scale):
    return guidance.ClassifierFree(scale=scale)(backbone, CAPTIONS, EMPTY)


def annealed(scale, heard=backbone, keys=KEYS):
    guide = guidance.ClassifierFree(scale=scale)
    made = condition.Annealed(guidance=guide, condition=condition.Cads(), keys=keys)
    assert isinstance(made, guidance.Guidance)
    return made(heard, CAPTIONS, EMPTY)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_with_a_clear_caption_it_is_the_guidance_itself(scale):
    z, velocity = draw(P * K, 4), jax.jit(annealed(scale))
    for t, same in ((0.5, True), (0.8, False)):
        t = jnp.full((P * K,), t)
        assert jnp.allclose(velocity(z, t), guided(scale)(z, t), atol=1e-5) == same


def test_every_sample_hears_its_own_noise_and_the_empty_caption_none():
    @jax.jit
    def hear(z, t):
        heard = []

        def listen(z, t, text):
            heard.append(text)
            return z

        annealed(3.0, listen)(z, t)
        return heard

    (text,) = hear(draw(P * K, 4), jnp.full((P * K,), 0.95))
    assert text.mask.shape[0] == 2 * P * K and text.layers is None
    captions, empty = np.split(np.asarray(text.values), 2, axis=1)
    np.testing.assert_array_equal(text.mask[: P * K], np.repeat(CAPTIONS.mask, K, axis=0))
    np.testing.assert_array_equal(empty, np.repeat(EMPTY.values, P * K, axis=1))
    for a in range(P * K):
        for b in range(a):
            assert np.abs(captions[:, a] - captions[:, b]).max() > 0.5


def test_under_a_solver_it_is_one_compiled_field():
    z = draw(P * K, 4)
    got = jax.jit(lambda z, keys: Euler()(annealed(3.0, keys=keys), z, 5))(z, keys())
    velocity, want = jax.jit(annealed(3.0)), z
    for i in range(5):
        want = want - velocity(want, jnp.full((P * K,), 1 - i / 5)) / 5
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert jnp.abs(got - Euler()(guided(3.0), z, 5)).max() > 1e-3


def test_guidance_that_remembers_does_so_of_an_annealed_caption():
    z, guide = draw(P * K, 4), Composed(scale=3.0, momentum=-0.5)
    made = condition.Annealed(guidance=guide, condition=condition.Cads(), keys=keys())
    got = jax.jit(lambda z: Euler()(made(backbone, CAPTIONS, EMPTY), z, 5))(z)

    @jax.jit
    def ask(z, t, remembered):
        heard = condition.Cads()(rows(CAPTIONS), t, keys())
        return guide(backbone, heard, EMPTY).ask(z, t, remembered)

    want, remembered = z, jnp.zeros_like(z)
    for i in range(5):
        v, remembered = ask(want, jnp.full((P * K,), 1 - i / 5), remembered)
        want = want - v / 5
    np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(ValueError, match="momentum to 0"):
        made(backbone, CAPTIONS, EMPTY)(z, jnp.ones(P * K))
