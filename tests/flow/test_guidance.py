import chex
import jax
import jax.numpy as jnp
import pytest

from cosdiff_jax.flow import guidance
from cosdiff_jax.flow.solver import Euler
from cosdiff_jax.shapes import TextStream


def text(prompts, fill, real):
    kv = jnp.full((2, prompts, 3, 1, 4), fill)
    mask = jnp.arange(3)[None, :] < jnp.full((prompts, 1), real)
    return TextStream(keys=kv, values=kv, hidden=jnp.full((prompts, 3, 5), fill), mask=mask)


def backbone(z, t, stream):
    assert z.shape[0] % stream.mask.shape[0] == 0
    per_row = jnp.repeat(stream.hidden.mean((1, 2)), z.shape[0] // stream.mask.shape[0])
    return z * t[:, None] + per_row[:, None]


Z = jax.random.normal(jax.random.key(0), (6, 4))
T = jnp.linspace(0.1, 0.9, 6)
TEXT, EMPTY = text(2, 3.0, 3), text(1, 1.0, 1)


def test_scale_one_is_the_captions_own_field_and_never_sees_the_empty_one():
    velocity = guidance.ClassifierFree(scale=1.0)(backbone, TEXT, None)
    chex.assert_trees_all_equal(velocity(Z, T), backbone(Z, T, TEXT))


def test_guided_field_is_the_two_branches_combined_in_one_call():
    calls = []

    def counted(z, t, stream):
        calls.append(z.shape[0])
        return backbone(z, t, stream)

    cfg = guidance.ClassifierFree(scale=4.0)
    v = cfg(counted, TEXT, EMPTY)(Z, T)
    v_text, v_empty = backbone(Z, T, TEXT), backbone(Z, T, EMPTY)
    chex.assert_trees_all_close(v, v_empty + 4.0 * (v_text - v_empty), rtol=1e-6)
    assert calls == [12]


def test_outside_the_interval_there_is_no_guidance():
    v_text, v_empty = backbone(Z, T, TEXT), backbone(Z, T, EMPTY)
    v = guidance.ClassifierFree(scale=4.0, interval=(0.3, 0.7)).combine(v_text, v_empty, T)
    outside = (T < 0.3) | (T > 0.7)
    chex.assert_trees_all_close(v[outside], v_text[outside], rtol=1e-6)
    assert not jnp.allclose(v[~outside], v_text[~outside])


@pytest.mark.parametrize("prompts", [1, 3])
def test_one_call_reads_the_captions_and_then_the_empty_one_for_each(prompts):
    seen = []

    def listen(z, t, both):
        seen.append(both)
        return z

    z, t = jnp.zeros((2 * prompts, 4)), jnp.zeros(2 * prompts)
    guidance.ClassifierFree(scale=2.0)(listen, text(prompts, 3.0, 3), EMPTY)(z, t)
    (both,) = seen
    assert both.mask.shape[0] == 2 * prompts
    chex.assert_trees_all_equal(both.mask.sum(1), jnp.array([3] * prompts + [1] * prompts))
    chex.assert_trees_all_equal(both.keys[:, prompts:], jnp.ones((2, prompts, 3, 1, 4)))


def test_without_its_start_guidance_is_off_at_one_and_nowhere_else():
    v_text, v_empty = backbone(Z, T, TEXT), backbone(Z, T, EMPTY)
    t = T.at[2].set(1.0)
    whole = guidance.ClassifierFree(scale=4.0).combine(v_text, v_empty, t)
    late = guidance.ClassifierFree(scale=4.0, start=False).combine(v_text, v_empty, t)
    chex.assert_trees_all_close(late[2], v_text[2], rtol=1e-6)
    assert not jnp.allclose(whole[2], v_text[2])
    others = jnp.arange(6) != 2
    chex.assert_trees_all_equal(late[others], whole[others])


@pytest.mark.parametrize("steps", [1, 7, 25])
def test_the_first_step_of_a_solver_is_the_one_at_one(steps):
    z = jnp.zeros((6, 4))

    def run(start, first, last):
        velocity = guidance.ClassifierFree(scale=4.0, start=start)(backbone, TEXT, EMPTY)
        return jax.jit(lambda z: Euler()(velocity, z, steps, first=first, last=last))(z)

    plain = Euler()(lambda z, t: backbone(z, t, TEXT), z, steps, last=1)
    chex.assert_trees_all_close(run(False, 0, 1), plain, rtol=1e-6)
    assert not jnp.allclose(run(True, 0, 1), plain)
    chex.assert_trees_all_equal(run(False, 1, steps), run(True, 1, steps))
