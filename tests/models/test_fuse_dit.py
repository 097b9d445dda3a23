import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cosdiff_jax import text_stream
from cosdiff_jax.models import attention, modulation, position
from cosdiff_jax.models.dit import ShallowCross, ShallowSelf
from cosdiff_jax.models.fuse_dit import FuseDiT
from cosdiff_jax.models.fusion import (
    CrossAttention,
    Heads,
    ImageHeads,
    Out,
    SelfAttention,
    pair,
)
from cosdiff_jax.models.gemma import Gemma

P, K = 2, 2
LLM = Gemma(vocab=32, width=24, depth=3, heads=4, kv_heads=2, head_size=8, mlp=20)
SIZES = {
    "width": 16,
    "depth": 3,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 8,
    "mlp": 20,
    "channels": 4,
}
TOKENS = jnp.array([[2, 7, 9, 4, 11, 30], [2, 5, 0, 0, 0, 0]])
MASK = jnp.array([[True] * 6, [True, True] + [False] * 4])
Z = jax.random.normal(jax.random.key(3), (P * K, 4, 6, 4))
TIMES = jnp.array([0.0, 0.3, 0.9, 1.0])

POSITIONS = [position.Ape(), position.Rope1D(), position.Rope2D(), position.MRope()]
POSITIONS += [position.Rope2D(absolute=True)]
MODULATIONS = [
    modulation.AdaLnZero(),
    modulation.AdaLnSingle(),
    modulation.Addition(),
    modulation.Unconditioned(),
]
FUSIONS = [
    SelfAttention(),
    SelfAttention(text_layers=(2, None, 0)),
    CrossAttention(),
    CrossAttention(text_layers=(None, 1, 1)),
    ShallowSelf(),
    ShallowCross(layer=-2),
]


@functools.cache
def llm_weights():
    return jax.tree.map(lambda x: x * 5, jax.jit(LLM.init)(jax.random.key(0), TOKENS, MASK))


streams = jax.jit(LLM.apply, static_argnames=("rotate", "layers"))


def read(fusion, tokens=TOKENS, mask=MASK):
    return streams(llm_weights(), tokens, mask, rotate=fusion.rotate, layers=fusion.layers)


@functools.cache
def weights(model):
    """Trained-looking weights: nothing stays at its zero start."""

    @jax.jit
    def made(text):
        leaves, tree = jax.tree.flatten(model.init(jax.random.key(1), Z, TIMES, text))
        keys = jax.random.split(jax.random.key(2), len(leaves))
        noisy = [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        return tree.unflatten(noisy)

    return made(read(model.attention))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("features", "skip", "perturb"))
def apply(model, params, z, t, text, **options):
    return model.apply(params, z, t, text, **options)


def run(model, z=Z, t=TIMES, text=None, **options):
    text = read(model.attention) if text is None else text
    return apply(model, weights(model), z, t, text, **options)


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda fusion: type(fusion).__name__)
def test_every_choice_combines_with_every_other(fusion):
    text = read(fusion)
    for i, (where, how) in enumerate(itertools.product(POSITIONS, MODULATIONS)):
        model = FuseDiT(
            **SIZES, position=where, modulation=how, attention=fusion, sandwich_norm=i % 2 == 0
        )

        def born(key, model=model):
            return model.init_with_output(key, Z, TIMES, text, features=True)

        (v, features), _ = jax.eval_shape(born, jax.random.key(0))
        assert v.shape == Z.shape and features.shape == (P * K, 16)


MODELS = [
    FuseDiT(**SIZES, position=where, modulation=how, attention=fusion)
    for where, how, fusion in zip(
        [*POSITIONS, position.Ape()],
        [*MODULATIONS, modulation.AdaLnZero(), modulation.AdaLnSingle()],
        [FUSIONS[0], FUSIONS[2], FUSIONS[1], FUSIONS[3], FUSIONS[4], FUSIONS[5]],
        strict=True,
    )
]
NAMES = [f"{type(m.position).__name__}-{type(m.attention).__name__}" for m in MODELS]
each_model = pytest.mark.parametrize("model", MODELS, ids=NAMES)


@each_model
def test_padding_has_no_influence(model):
    other = read(model.attention, jnp.where(MASK, TOKENS, 17))
    np.testing.assert_array_equal(run(model), run(model, text=other))
    # And every real token has one.
    changed = read(model.attention, TOKENS.at[1, 1].set(6))
    got, before = run(model, text=changed), run(model)
    np.testing.assert_array_equal(got[:K], before[:K])
    assert not np.allclose(got[K:], before[K:], atol=1e-3)


@each_model
def test_k_samples_of_a_prompt_are_k_calls(model):
    together = run(model)
    for k in range(K):
        rows = jnp.arange(P) * K + k
        alone = run(model, Z[rows], TIMES[rows])
        np.testing.assert_allclose(together[rows], alone, atol=2e-5)
    repeated = run(model, text=text_stream.repeat(read(model.attention), K))
    np.testing.assert_allclose(together, repeated, atol=2e-5)


@pytest.mark.parametrize("options", [{"remat": True}, {"unroll": 3}])
def test_memory_and_loop_choices_change_nothing(options):
    model, text = MODELS[0], read(MODELS[0].attention)

    def loss(params, model):
        return jnp.sum(jnp.sin(model.apply(params, Z, TIMES, text)))

    values = [
        jax.jit(jax.value_and_grad(functools.partial(loss, model=m)))(weights(model))
        for m in (model, model.clone(**options))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *values)


@pytest.mark.parametrize("how", [MODULATIONS[0], MODULATIONS[3]])
def test_a_fresh_model_predicts_nothing_and_can_learn(how):
    model = FuseDiT(**SIZES, modulation=how)
    text = read(model.attention)
    params = jax.jit(model.init)(jax.random.key(1), Z, TIMES, text)

    def loss(params):
        return jnp.mean((model.apply(params, Z, TIMES, text) - 1) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == 1.0
    assert float(jnp.abs(gradient["params"]["patch_out"]["kernel"]).max()) > 0


def test_layers_without_text_are_plain_image_layers():
    deep = FuseDiT(**{**SIZES, "depth": 4}, attention=SelfAttention())
    assert pair(None, 0, 4, 3) == (0, 1, 2, None)
    assert pair((), 1, 3, 3) == (1, 2, None)
    weights_of = functools.partial(deep.init_with_output, text=read(deep.attention))
    v, _ = jax.eval_shape(lambda key: weights_of(key, Z, TIMES), jax.random.key(0))
    assert v.shape == Z.shape
    for fusion in (SelfAttention, CrossAttention):
        blind = FuseDiT(**SIZES, attention=fusion(text_layers=(None,) * 3))
        changed = read(blind.attention, TOKENS.at[:, 1].set(6))
        # Positions still start behind the text; only differences of them matter.
        np.testing.assert_allclose(run(blind), run(blind, text=changed), atol=1e-5)


class _ByHand(nn.Module):
    """Both softmaxes of a layer, over [text ; image] and over the image alone, and a choice."""

    shape: Heads

    @nn.compact
    def __call__(self, x, normed, gate, text, shared, angles, alone):
        q, k, v = ImageHeads(self.shape, name="image")(normed, angles)
        text_k, text_v, plain = text
        mixed = attention.attend_prefix(q, k, v, text_k, text_v, shared)
        mixed = jnp.where(plain, attention.attend(q, k, v), mixed)
        return x + gate * Out(self.shape, x.shape[-1], name="out")(mixed)


class _Listed(nn.Module):
    @nn.compact
    def __call__(self, text):
        index, plain = jnp.array([0, 1, 2, 0]), jnp.array([False] * 3 + [True])
        return (text.keys[index], text.values[index], plain), text.mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByHand(SelfAttention):
    """Three layers read the three of the language model; a fourth is one of the image."""

    def prepare(self, depth, width, heads):
        return _Listed()

    def mix(self, heads):
        return _ByHand(heads, name="attention")


def test_layers_beyond_the_language_models_are_computed_as_plain_image_layers():
    again = (0, 1, 2, 2)  # what a last layer that reads would see
    deep = FuseDiT(**{**SIZES, "depth": 4})
    v = run(deep)
    by_hand, reading = (
        apply(deep.clone(attention=how), weights(deep), Z, TIMES, read(how))
        for how in (ByHand(), SelfAttention(text_layers=again))
    )
    np.testing.assert_allclose(v, by_hand, rtol=1e-5, atol=1e-5)
    assert np.abs(v - reading).max() > 0.01

    # Deep cross attention has a branch for the text: there it adds nothing.
    deep = deep.clone(attention=CrossAttention())
    silent = CrossAttention(text_layers=again)
    params = jax.tree.map(jnp.array, weights(deep))
    out = params["params"]["blocks"]["attention"]["cross_out"]["heads"]["project"]
    out["kernel"] = out["kernel"].at[3].set(0)
    v = run(deep)
    by_hand = apply(deep.clone(attention=silent), params, Z, TIMES, read(silent))
    np.testing.assert_allclose(v, by_hand, rtol=1e-5, atol=1e-5)
    reading = apply(deep.clone(attention=silent), weights(deep), Z, TIMES, read(silent))
    assert np.abs(v - reading).max() > 0.01


def narrow(text):
    """A stream as a language model that computes in bfloat16 gives it."""
    wide = jnp.float32
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == wide else x, text)


def primitives(jaxpr):
    """Every operation of a program, those inside its loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from primitives(inner)


@pytest.mark.parametrize(
    "model", [MODELS[0], MODELS[1], MODELS[4]], ids=lambda m: type(m.attention).__name__
)
def test_in_bfloat16_norms_softmax_and_velocity_stay_float32(model):
    half, text = model.clone(dtype=jnp.bfloat16), narrow(read(model.attention))
    shapes = jax.eval_shape(lambda key: half.init(key, Z, TIMES, text), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    v, exact = apply(half, weights(model), Z, TIMES, text), run(model)
    error = float(jnp.linalg.norm(v - exact) / jnp.linalg.norm(exact))
    # Seen: 1.1e-2 to 3.2e-2, bfloat16 keeping 8 bits.
    assert v.dtype == jnp.float32 and 1e-4 < error < 5e-2

    program = jax.make_jaxpr(lambda params: half.apply(params, Z, TIMES, text))(weights(model))
    found = {}
    for equation in primitives(program.jaxpr):
        kinds = {str(x.aval.dtype) for x in equation.invars}
        found.setdefault(equation.primitive.name, set()).update(kinds)
    assert found["exp"] == found["rsqrt"] == {"float32"}
    # Sums are those of norms and softmaxes, and of the mask.
    assert found["reduce_sum"] - {"int32"} == {"float32"}
    assert found["dot_general"] == {"bfloat16"}


def test_a_step_in_bfloat16_has_finite_gradients_and_float32_weights():
    model = MODELS[0].clone(dtype=jnp.bfloat16, remat=True)
    text, rule = narrow(read(model.attention)), optax.adam(1e-2)
    target = jax.random.normal(jax.random.key(6), Z.shape)

    @jax.jit
    def step(params, state):
        def loss(params):
            return jnp.mean((model.apply(params, Z, TIMES, text) - target) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = rule.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, gradient

    params = weights(MODELS[0])
    state, losses = rule.init(params), []
    for _ in range(5):
        params, state, value, gradient = step(params, state)
        losses.append(float(value))
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    assert {x.dtype for x in jax.tree.leaves((params, gradient))} == {jnp.dtype("float32")}
    assert losses[-1] < losses[0]


def test_features_pool_the_chosen_layer():
    model = MODELS[0]
    v, middle = run(model, features=True)
    np.testing.assert_array_equal(v, run(model))
    assert middle.shape == (P * K, 16) and middle.dtype == jnp.float32
    last = apply(
        model.clone(feature_layer=2), weights(model), Z, TIMES, read(model.attention), features=True
    )[1]
    assert not np.allclose(middle, last, atol=1e-3)


def test_a_pooled_text_vector_joins_the_time():
    model = FuseDiT(**SIZES, pooled=5)
    text = read(model.attention)
    pooled = jax.random.normal(jax.random.key(5), (P, 5))
    params = jax.jit(lambda k: model.init(k, Z, TIMES, text, pooled=pooled))(jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1, params)
    a, b = (apply(model, params, Z, TIMES, text, pooled=p) for p in (pooled, pooled.at[1].add(1)))
    np.testing.assert_array_equal(a[:K], b[:K])
    assert not np.allclose(a[K:], b[K:])


@pytest.mark.parametrize(
    ("change", "z", "message"),
    [
        ({}, Z[:3], "3 image rows cannot be shared among 2 prompts"),
        ({}, Z[:, :3], "latents of 3 x 6 x 4 do not divide"),
        ({"channels": 3}, Z, "do not divide"),
        ({"kv_heads": 1}, Z, "deep fusion needs the language model's key heads"),
        ({"head_size": 16}, Z, "deep fusion needs the language model's key heads"),
        ({"attention": SelfAttention(text_layers=(0, 1))}, Z, "does not pair 3 layers"),
        ({"attention": SelfAttention(text_layers=(0, 1, 3))}, Z, "does not pair 3 layers"),
        ({"attention": ShallowSelf(layer=-2)}, Z, "no hidden state number -2"),
        ({"pooled": 5}, Z, "pooled text vector is needed"),
    ],
)
def test_what_does_not_fit_is_refused(change, z, message):
    model = FuseDiT(**{**SIZES, **change})
    text = read(SelfAttention())
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), z, TIMES[: len(z)], text))


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_a_skipped_layer_is_one_that_adds_nothing(fusion):
    model = FuseDiT(**SIZES, attention=fusion, modulation=modulation.Addition())
    params = jax.tree.map(jnp.array, weights(model))
    out, blocks = run(model, skip=(1,)), params["params"]["blocks"]
    np.testing.assert_array_equal(run(model, skip=()), out)  # the middle one

    def silence(path, leaf):
        last = jax.tree_util.keystr(path, simple=True, separator="/")
        # What each branch ends with; on the middle one of the stacked layers.
        ends = any(part in last for part in ("out/heads", "cross_out/heads", "mlp/down"))
        return leaf.at[1].set(0) if ends else leaf

    params["params"]["blocks"] = jax.tree_util.tree_map_with_path(silence, blocks)
    silent = apply(model, params, Z, TIMES, read(fusion))
    np.testing.assert_allclose(out, silent, rtol=1e-5, atol=1e-5)
    assert np.abs(out - run(model)).max() > 0.01


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_with_perturbed_attention_everywhere_an_image_token_sees_itself_alone(fusion):
    model = FuseDiT(**SIZES, attention=fusion)
    moved = Z.at[:, 2:, 4:].add(1.0)  # the last of the 2 x 3 tokens

    def others(**options):
        change = np.abs(run(model, moved, **options) - run(model, **options))
        assert change[:, 2:, 4:].max() > 0.01
        return max(change[:, :2].max(), change[:, 2:, :4].max())

    assert others(perturb=(0, 1, 2)) == 0
    # The caption is read as before.
    said = read(fusion, TOKENS.at[:, 1].set(13))
    assert (
        np.abs(run(model, text=said, perturb=(0, 1, 2)) - run(model, perturb=(0, 1, 2))).max()
        > 0.01
    )
    assert others() > 1e-3 and others(perturb=(0, 2)) > 1e-3


@pytest.mark.parametrize("change", [{"skip": (3,)}, {"perturb": (-1,)}])
def test_a_layer_that_is_not_there_cannot_be_weakened(change):
    with pytest.raises(ValueError, match="this network has those from 0 to 2"):
        run(FuseDiT(**SIZES), **change)
