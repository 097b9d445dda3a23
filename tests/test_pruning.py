import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import pruning
from cosdiff_jax.diversity.repulsion import ParticleGuidance
from cosdiff_jax.diversity.selection import MaxMin
from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.flow.guidance import ClassifierFree
from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.sampler import Descent, Sampler
from cosdiff_jax.shapes import TextStream


class Reads:
    rotate, layers, echo = True, False, None


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask, *, rotate=True, layers=False):
        hidden = (tokens * mask).astype(jnp.float32)[..., None]
        kv = hidden[None, ..., None]
        return TextStream(keys=kv, values=kv, hidden=hidden, mask=mask)


CALLS = []


class Backbone(nn.Module):
    """The exact field of a flow whose data is sign(z) for every number: x0 = sign(z)."""

    attention = Reads()

    @nn.compact
    def __call__(self, z, t, text):
        jax.debug.callback(lambda z: CALLS.append(len(z)), z)
        return (z - jnp.sign(z)) / t[:, None, None, None]


class Smooth(nn.Module):
    """x0 = tanh(z): unlike a sign it has a gradient to descend."""

    attention = Reads()

    @nn.compact
    def __call__(self, z, t, text):
        jax.debug.callback(lambda z: CALLS.append(len(z)), z)
        return z - jnp.tanh(2 * z)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View(ClipFeature):
    """Stands in for CLIP: a preview's own direction; the caption likes the first number high."""

    clip: CLIP = dataclasses.field(default_factory=lambda: CLIP(vocab=9))
    seen: list = dataclasses.field(default_factory=list)

    # What was seen is each one's own: no program of another is taken.
    __eq__, __hash__ = object.__eq__, object.__hash__

    def __call__(self, frozen, x, text=None):
        jax.debug.callback(lambda x: self.seen.append(np.asarray(x)), x)
        flat = x.reshape(x.shape[0], -1)
        return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)

    def text(self, frozen, tokens, mask):
        return jnp.zeros((tokens.shape[0], 4)).at[:, 0].set(1.0)


def test_sizes_of_the_published_settings():
    schnell = pruning.sizes(64, 4, 4, 0.9)
    assert schnell[:-1] == (64, 7, 4, 4) and sum(schnell[:-1]) == 79
    dev = pruning.sizes(128, 4, 20, 0.5)
    assert dev[:6] == (128, 64, 32, 16, 8, 4) and sum(dev[:-1]) == 308
    assert pruning.sizes(8, 3, 2, 0.0) == (8, 8, 3)
    assert pruning.sizes(10, 1, 2, 0.9) == (10, 1, 1)
    assert pruning.sizes(64, 4, 4, 0.9, 2) == (64, 64, 64, 7, 4)
    for wrong in ((2, 3, 4, 0.5), (4, 0, 4, 0.5), (4, 2, 4, 1.0)):
        with pytest.raises(ValueError, match="cannot prune"):
            pruning.sizes(*wrong)
    for unpruned in (4, -1):
        with pytest.raises(ValueError, match=f"after {unpruned} of 4 steps"):
            pruning.sizes(8, 2, 4, 0.5, unpruned)


def prune(view, *, candidates, num, steps=4, share=0.5, fields=None, **options):
    CALLS.clear()
    made = {"backbone": Backbone(), "steps": steps, "guidance": ClassifierFree(scale=1.0)}
    made |= fields or {}
    sampler = Sampler(language_model=LanguageModel(), vae=None, shape=(2, 2, 1), **made)
    run = pruning.Pruning(sampler=sampler, view=view, share=share, selection=MaxMin(), **options)
    tokens = np.array([[2, 5], [2, 1]], np.int32)
    inputs = ({}, {"llm": {}}, tokens, tokens > 0, jax.random.key(3))
    images, kept = run(*inputs, candidates=candidates, num=num, seeds=np.array([0, 1]))
    jax.effects_barrier()
    every = sampler(*inputs, num=candidates, seeds=np.array([0, 1]))
    return images, kept, every


def test_what_is_left_is_what_the_sampler_would_have_drawn():
    images, kept, every = prune(View(), candidates=8, num=2)
    assert images.shape == (2, 2, 2, 2, 1)
    for p in range(2):
        assert sorted(set(kept[p])) == list(kept[p])
        np.testing.assert_allclose(images[p], every[p, kept[p]], atol=1e-5)


def test_evaluations_are_those_counted_and_previews_are_the_clean_pictures():
    view = View()
    _, _, _every = prune(view, candidates=8, num=2)
    # Two prompts, 8 + 4 + 2 + 2 evaluations each; the sampler drew all of them afterwards.
    assert sum(CALLS[: 2 * 4]) == 2 * sum(pruning.sizes(8, 2, 4, 0.5)[:-1]) == 32
    # The field is exact, so every preview is the finished picture; a state stepped too far is not.
    for preview in view.seen:
        assert np.isin(np.abs(np.round(preview, 4)), 1.0).all()
    assert [len(preview) for preview in view.seen] == [8, 4] * 2


def test_before_the_start_none_are_dropped():
    view = View()
    prune(view, candidates=8, num=2, start=0.5)
    # Nobody looks at previews that decide nothing.
    assert CALLS[:8] == [8, 8, 8, 4] * 2
    assert [len(preview) for preview in view.seen] == [8, 4] * 2


def test_with_exact_previews_pruning_chooses_as_if_all_were_finished():
    """Farthest points are nested: whoever is kept of 8 is kept of 16 first."""
    images, kept, every = prune(View(), candidates=16, num=2)
    for p in range(2):
        f = every[p].reshape(16, 4) / 2
        chosen = MaxMin()(jnp.asarray(f), jnp.asarray(f[:, 0]), 2)
        assert sorted(np.asarray(chosen).tolist()) == kept[p].tolist()
        np.testing.assert_allclose(images[p], every[p, kept[p]], atol=1e-5)


def test_scores_and_choices_are_exact_where_the_network_may_round():
    """None of the stand-ins multiplies matrices: what does is the choice."""
    sampler = Sampler(
        backbone=Backbone(), language_model=LanguageModel(), vae=None, shape=(2, 2, 1)
    )
    run = pruning.Pruning(sampler=sampler, view=View(), selection=MaxMin())
    tokens = jnp.array([[2, 5]], jnp.int32)

    def step(z, said):
        text, empty = sampler.read({"llm": {}}, tokens, tokens > 0)
        moved, keys = (jnp.float32(0.5), jnp.float32(0.25)), jax.random.split(jax.random.key(0), 6)
        return run._step({}, {"llm": {}}, text, empty, said, z, moved, keys, 3)

    with jax.default_matmul_precision("bfloat16"):
        said = str(jax.make_jaxpr(step)(jnp.ones((6, 2, 2, 1)), jnp.ones((1, 4))))
    products = said.count("dot_general[")
    # One for the scores, two for the choice.
    assert (
        products >= 3 and said.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products
    )


def test_a_descent_moves_the_noise_of_all_candidates_and_is_counted():
    descent = Descent(moves=2, rate=0.3, rollout=3)
    fields = {"backbone": Smooth(), "descent": descent}
    images, kept, every = prune(View(), candidates=4, num=2, steps=2, fields=fields)
    for p in range(2):
        np.testing.assert_allclose(images[p], every[p, kept[p]], atol=1e-5)
    sampler = Sampler(language_model=LanguageModel(), vae=None, shape=(2, 2, 1), steps=2, **fields)
    run = pruning.Pruning(sampler=sampler, view=View())
    # 4 + 2 on the way down, 4 candidates' rollouts before.
    assert run.evaluations(4, 2) == 4 + 2 + 4 * 2 * 3
    assert sampler.evaluations == 2 + 2 * 3


def test_no_more_rows_at_once_than_the_sampler_draws_and_chunks_change_nothing():
    whole, kept, _ = prune(View(), candidates=8, num=4, steps=2)
    view = View()
    images, same, _ = prune(view, candidates=8, num=4, steps=2, fields={"rows": 3})
    np.testing.assert_array_equal(same, kept)
    np.testing.assert_allclose(images, whole, atol=1e-6)
    assert max(CALLS) <= 3
    assert [len(preview) for preview in view.seen] == [3, 3, 3] * 2


def test_those_that_repel_are_asked_together_and_seen_in_chunks():
    view = View()
    fields = {"rows": 3, "repulsion": ParticleGuidance(interval=(0.0, 1.0))}
    prune(view, candidates=4, num=2, steps=1, fields=fields)
    assert set(CALLS) == {4}
    assert [len(preview) for preview in view.seen] == [2, 2] * 2


@pytest.mark.parametrize("descent", [None, Descent(moves=1, rate=0.3, rollout=2)])
def test_another_scale_is_not_compiled_again(descent):
    traced = []  # whatever is lowered: the networks, what sees, decodes and chooses
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: traced.append(name) if "mlir_module" in name else None
    )

    class Guided(nn.Module):
        attention = Reads()

        @nn.compact
        def __call__(self, z, t, text):
            said = jnp.repeat(text.hidden.sum((1, 2)), z.shape[0] // text.mask.shape[0])
            return z - jnp.tanh(2 * z) - 0.01 * said[:, None, None, None]

    view = View()

    def at(scale):
        guidance = ClassifierFree(scale=scale)
        fields = {"backbone": Guided(), "guidance": guidance, "descent": descent, "steps": 2}
        sampler = Sampler(language_model=LanguageModel(), vae=None, shape=(2, 2, 1), **fields)
        run = pruning.Pruning(sampler=sampler, view=view, selection=MaxMin())
        tokens = np.array([[2, 5]], np.int32)
        inputs = ({}, {"llm": {}}, tokens, tokens > 0, jax.random.key(3))
        return run(*inputs, candidates=4, num=2, seeds=np.array([0]))[0]

    first = at(3.0)
    programs = len(traced)
    assert not np.array_equal(at(5.0), first)
    assert len(traced) == programs > 0
    np.testing.assert_array_equal(at(3.0), first)
