import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.diversity import similarity
from cosdiff_jax.diversity.noise import Independent, Repelled
from cosdiff_jax.diversity.repulsion import ParticleGuidance, Svgd
from cosdiff_jax.features.latent import LatentFeature
from cosdiff_jax.flow.composed import Composed
from cosdiff_jax.flow.condition import Cads
from cosdiff_jax.flow.guidance import ClassifierFree
from cosdiff_jax.flow.stochastic import FlowSde
from cosdiff_jax.flow.trajectory import Cosine
from cosdiff_jax.flow.weaker import Autoguidance, SkipLayer
from cosdiff_jax.sampler import Descent, Sampler
from cosdiff_jax.shapes import TextStream

READ, CALLED = [], []


class Reads(NamedTuple):
    rotate: bool = True
    layers: bool = False
    echo: int | None = None


class LanguageModel(nn.Module):
    """Hidden states are the token numbers; every row read at run time is counted."""

    @nn.compact
    def __call__(self, tokens, mask, *, rotate=True, layers=False):
        jax.debug.callback(lambda tokens: READ.append(len(tokens)), tokens)
        hidden = (tokens * mask).astype(jnp.float32)[..., None]
        kv = hidden[None, ..., None]
        return TextStream(keys=kv, values=kv, hidden=hidden, mask=mask)


class Backbone(nn.Module):
    """v pulls to the sum of a prompt's tokens over ten."""

    attention: Reads = Reads()

    @nn.compact
    def __call__(self, z, t, text):
        jax.debug.callback(lambda z: CALLED.append(len(z)), z)
        goal = self.param("gain", nn.initializers.ones, ()) * text.hidden.sum((1, 2)) / 10
        goal = jnp.repeat(goal, z.shape[0] // text.mask.shape[0])
        return z - goal[:, None, None, None]


TOKENS = np.array([[2, 5, 0], [2, 1, 0], [2, 0, 0], [2, 3, 3], [2, 4, 0]], np.int32)
MASK = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], bool)
PARAMS, FROZEN, KEY = {"gain": jnp.ones(())}, {"llm": {}}, jax.random.key(3)


def draw(num, rows=64, prompts=slice(None), seeds=None, key=KEY, **fields):
    sampler = Sampler(
        vae=None,
        shape=(2, 2, 1),
        rows=rows,
        **({"backbone": Backbone(), "language_model": LanguageModel(), "steps": 4} | fields),
    )
    seeds = np.arange(5)[prompts] if seeds is None else seeds
    return sampler(PARAMS, FROZEN, TOKENS[prompts], MASK[prompts], key, num=num, seeds=seeds)


def test_fewer_samples_are_the_first_of_more():
    eight = draw(8)
    assert eight.shape == (5, 8, 2, 2, 1)
    np.testing.assert_allclose(draw(3), eight[:, :3], atol=1e-6)
    assert np.std(eight[2], axis=0).min() > 1e-3


@pytest.mark.parametrize("rows", [4, 7])
def test_chunks_change_nothing(rows):
    np.testing.assert_allclose(draw(6, rows=rows), draw(6), atol=1e-6)


def test_a_prompt_draws_the_same_among_others_and_alone():
    np.testing.assert_allclose(draw(2, prompts=slice(3, 4)), draw(2)[3:4], atol=1e-6)


def test_prompts_of_different_seeds_start_from_different_noise():
    images = draw(2, prompts=[0, 0], seeds=np.array([7, 8]))
    assert np.abs(images[0] - images[1]).max() > 1e-3


@pytest.mark.parametrize(("num", "steps"), [(1, 2), (6, 5)])
def test_text_is_read_once_per_prompt_and_both_branches_in_one_call(num, steps):
    READ.clear(), CALLED.clear()
    draw(num, steps=steps, guidance=ClassifierFree(scale=3.0))
    jax.effects_barrier()
    assert sorted(READ) == [1, 5]
    assert [2 * 5 * num] * steps == CALLED


def test_guidance_moves_away_from_the_empty_caption():
    plain, guided = (draw(4, guidance=ClassifierFree(scale=s)) for s in (1.0, 2.0))
    assert guided[0].mean() > plain[0].mean()
    np.testing.assert_allclose(guided[2], plain[2], atol=1e-5)


class Asked(Backbone):
    """Notes the precision that its matrix products are asked for."""

    def __call__(self, z, t, text):
        SEEN.append(jax.config.jax_default_matmul_precision)
        return super().__call__(z, t, text)


SEEN = []


@pytest.mark.parametrize(
    ("own", "around", "seen"),
    [
        ("bfloat16", None, "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("", "bfloat16", "bfloat16"),
        ("", None, None),
    ],
)
def test_the_backbone_alone_multiplies_in_a_precision_of_its_own(own, around, seen):
    SEEN.clear()
    # No program of another case is taken: the context is part of what is compiled.
    with jax.default_matmul_precision(around):
        draw(1, backbone=Asked(), precision=own, steps=2)
        assert jax.config.jax_default_matmul_precision == around
    assert set(SEEN) == {seen}


def test_an_unknown_precision_is_told_before_anything_is_drawn():
    with pytest.raises(ValueError, match=r"^matmul_precision: .*bfloat17"):
        Sampler(
            backbone=Backbone(),
            language_model=LanguageModel(),
            vae=None,
            shape=(2, 2, 1),
            precision="bfloat17",
        )


def test_a_weaker_network_is_moved_away_from_with_its_own_weights():
    weights = {"llm": {}, "weaker": {"gain": jnp.full((), 0.5)}}

    def ask(**fields):
        sampler = Sampler(
            backbone=Backbone(), language_model=LanguageModel(), vae=None, shape=(2, 2, 1), **fields
        )
        text, empty = sampler.read(weights, TOKENS, MASK)
        keys = jax.random.split(KEY, 5)
        return sampler.velocity(PARAMS, weights, text, empty, keys)(jnp.ones((5, 2, 2, 1)), T)

    T = jnp.full((5,), 0.5)
    goal = (TOKENS * MASK).sum(1)[:, None, None, None] / 10
    np.testing.assert_allclose(ask(), np.broadcast_to(1 - goal, (5, 2, 2, 1)), rtol=1e-6)
    away = ask(weaker=Backbone(), guidance=Composed(weaker=(Autoguidance(scale=3.0),)))
    # v + (s - 1) (v - v_weak), the weak one pulling half as far.
    wanted = (1 - goal) + 2 * ((1 - goal) - (1 - goal / 2))
    np.testing.assert_allclose(away, np.broadcast_to(wanted, away.shape), rtol=1e-6)


def test_what_is_skipped_is_asked_of_the_same_network():
    asked = []

    class Watched(Backbone):
        @nn.compact
        def __call__(self, z, t, text, *, skip=()):
            asked.append(skip)
            return super().__call__(z, t, text) * (0.5 if skip else 1.0)

    guidance = Composed(scale=2.0, weaker=(SkipLayer(layers=(1, 2), scale=2.0),))
    plain = draw(2, backbone=Watched(), guidance=Composed(scale=2.0))
    assert set(asked) == {()}
    assert not np.allclose(draw(2, backbone=Watched(), guidance=guidance), plain)
    assert set(asked) == {(), (1, 2)}


@pytest.mark.parametrize(
    "form",
    [
        lambda s: ClassifierFree(scale=s),
        lambda s: Composed(scale=s),
        lambda s: Composed(scale=s, weaker=(SkipLayer(scale=2.0),)),
        lambda s: Composed(weaker=(SkipLayer(scale=s),)),
        lambda s: Composed(scale=2.0, weaker=(Autoguidance(), SkipLayer(scale=s))),
    ],
)
def test_another_scale_or_seed_is_not_compiled_again(form):
    seen, traced_parts = [], []

    class Watched(Backbone):
        @nn.compact
        def __call__(self, z, t, text, *, skip=None):
            seen.append(z.shape[0])
            return super().__call__(z, t, text) * (1.0 if skip is None else 0.5)

    class Reader(LanguageModel):
        @nn.compact
        def __call__(self, tokens, mask, *, rotate=True, layers=False):
            traced_parts.append("text")
            return super().__call__(tokens, mask, rotate=rotate, layers=layers)

    @dataclasses.dataclass(frozen=True)
    class Start:
        def __call__(self, key, number, shape):
            traced_parts.append("noise")
            return Independent()(key, number, shape)

    def at(scale, seed):
        guidance, key = form(scale), jax.random.key(seed)
        own = {"backbone": Watched(), "language_model": Reader(), "noise": Start()}
        return draw(2, guidance=guidance, key=key, **own)

    first = at(3.0, 0)
    traced = len(seen)
    assert traced > 0
    assert not np.array_equal(at(3.0, 1), first)
    parts = list(traced_parts)
    assert set(parts) == {"text", "noise"}
    second = at(5.0, 0)
    assert len(seen) == traced and traced_parts == parts
    # The answer is that of the scale asked for, not of the one compiled first.
    assert not np.array_equal(second, first)
    np.testing.assert_array_equal(at(3.0, 0), first)
    # Without this guidance fewer rows suffice: a program of its own.
    at(1.0, 0)
    assert 0 < sum(seen[traced:]) < sum(seen[:traced])


def test_a_group_that_repels_is_never_split():
    CALLED.clear()
    together = draw(6, rows=4, repulsion=ParticleGuidance(interval=(0.0, 1.0), weight=50.0))
    jax.effects_barrier()
    assert CALLED == [6] * 5 * 4  # five prompts, four steps
    alone = draw(6, rows=4)
    spread = [np.std(images, axis=1).mean() for images in (alone, together)]
    assert spread[1] > 1.1 * spread[0]


def test_noise_may_be_coupled_and_chunks_still_change_nothing():
    fields = {"noise": Repelled(cosine=-0.4), "steps": 1}
    np.testing.assert_allclose(draw(3, rows=2, **fields), draw(3, **fields), atol=1e-6)
    sampler = Sampler(
        backbone=Backbone(), language_model=LanguageModel(), vae=None, shape=(2, 4, 1), **fields
    )
    noise, keys = sampler.start(KEY, jnp.arange(2), 3)
    assert keys.shape == (2, 3)
    np.testing.assert_allclose(similarity.mean_cosine(noise.reshape(2, 3, -1)), -0.4, atol=1e-5)


def test_an_annealed_caption_is_read_once_and_differs_between_samples():
    """Above tau2 nothing of the caption is left but noise, each sample's own."""
    READ.clear()
    hidden = Cads(tau1=0.0, tau2=1e-3, scale=1.0, rescale=0.0)
    annealed = draw(3, condition=hidden)
    jax.effects_barrier()
    assert sorted(READ) == [1, 5]
    clear = draw(3, condition=Cads(tau1=1.0, tau2=2.0))
    np.testing.assert_allclose(clear, draw(3), atol=1e-6)
    # The stand-in's one feature has no spread, so there is no noise in it: nothing is left at all.
    goal = TOKENS.sum(1) / 10
    np.testing.assert_allclose((clear - annealed)[0].mean() / goal[0], 1 - 0.75**4, rtol=0.05)


def test_descent_makes_a_group_less_alike():
    moved = draw(4, descent=Descent(moves=5, rate=0.2), prompts=slice(0, 2))
    plain = draw(4, prompts=slice(0, 2))
    alike = [similarity.mean_cosine(jnp.asarray(x).reshape(2, 4, -1)) for x in (plain, moved)]
    assert (alike[1] < alike[0] - 0.05).all()


def test_a_descent_looks_through_a_feature_of_its_own_and_its_solver_may_draw_noise():
    fields = {"repulsion": Svgd(), "solver": FlowSde(), "prompts": slice(0, 1)}
    apart, plain = (
        draw(2, descent=Descent(moves=1, rate=0.3, rollout=2, feature=feature), **fields)
        for feature in (LatentFeature(), None)
    )
    # Without their own mean the latents differ in other directions.
    assert np.abs(apart - plain).max() > 1e-3


def test_a_repulsion_is_refused_on_another_path_than_its_own():
    with pytest.raises(ValueError, match=r"follows Cosine: set sample\.repulsion\.name=none"):
        draw(2, repulsion=ParticleGuidance(), trajectory=Cosine())


def test_a_field_that_sees_no_features_cannot_be_given_a_view():
    with pytest.raises(ValueError, match="Svgd compares noisy latents"):
        draw(2, repulsion=Svgd(), view=LatentFeature())


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(0)
