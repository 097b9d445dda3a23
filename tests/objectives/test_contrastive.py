import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import scenes_clip_latents
from cosdiff_jax import build, modules
from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.objectives import contrastive
from cosdiff_jax.shapes import Batch

CAPTIONS = jnp.asarray([[2, 5, 6], [2, 7, 0], [2, 7, 9], [2, 8, 3]])
MASK = jnp.asarray([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)
DIFFERENT = jnp.eye(4, dtype=bool)


def vectors(seed):
    f = np.random.default_rng(seed).normal(size=(4, 5)).astype(np.float32)
    return f / np.linalg.norm(f, axis=1, keepdims=True)


def by_hand(image, text, scale, same):
    loss = np.zeros(4)
    s = scale * np.asarray(image, np.float64) @ np.asarray(text, np.float64).T
    for p in range(4):
        rivals = [q for q in range(4) if q == p or not same[p, q]]
        loss[p] -= 0.5 * np.log(np.exp(s[p, p]) / np.exp(s[p, rivals]).sum())
        loss[p] -= 0.5 * np.log(np.exp(s[p, p]) / np.exp(s[rivals, p]).sum())
    return loss


@pytest.mark.parametrize("same", [DIFFERENT, DIFFERENT.at[0, 2].set(True).at[2, 0].set(True)])
def test_loss_by_hand(same):
    image, text = jnp.asarray(vectors(0)), jnp.asarray(vectors(1))
    got = contrastive.info_nce(image, text, jnp.float32(7), same)
    np.testing.assert_allclose(got, by_hand(image, text, 7, np.asarray(same)), rtol=1e-5)


def test_a_twin_caption_is_no_negative():
    same = jnp.ones((2, 2), bool)
    image, text = jnp.asarray(vectors(0)[:2]), jnp.asarray(vectors(1)[:2])
    np.testing.assert_allclose(contrastive.info_nce(image, text, jnp.float32(7), same), 0)
    slope = jax.grad(lambda f: contrastive.info_nce(f, text, jnp.float32(7), same).sum())(image)
    np.testing.assert_array_equal(slope, 0)


def test_retrieval_counts_twins_as_found():
    image = jnp.eye(3)
    text = image[jnp.asarray([1, 0, 2])]
    for same, want in [(jnp.eye(3, dtype=bool), [0, 0, 1]), (jnp.ones((3, 3), bool), [1] * 3)]:
        np.testing.assert_array_equal(contrastive.retrieval(image, text, same), [want, want])


def test_training_finds_the_pairs_and_reads_the_first_of_each_group():
    clip = CLIP(
        vocab=10, context=3, size=8, patch=8, width=16, depth=1, heads=2,
        text_width=16, text_depth=1, text_heads=2, features=8,
    )  # fmt: skip
    objective = contrastive.Contrastive(clip=clip)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 3)), jnp.float32)
    batch = Batch(tokens=CAPTIONS, mask=MASK, images=images)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    rule = optax.adam(1e-2)

    @jax.jit
    def step(params, moments, batch):
        run = jax.value_and_grad(objective, has_aux=True)
        (_, (logs, _)), slope = run(params, {}, batch, jax.random.key(0), jnp.int32(0), {})
        change, moments = rule.update(slope, moments)
        return optax.apply_updates(params, change), moments, logs

    moments = rule.init(params)
    first = step(params, moments, batch)[2]["loss"]
    others_black = batch.replace(images=images.at[1::2].set(0))
    np.testing.assert_array_equal(first, step(params, moments, others_black)[2]["loss"])
    for _ in range(60):
        params, moments, logs = step(params, moments, batch)
    assert logs["loss"] < 0.5 * first
    assert logs["retrieval@1"] == 1


def test_a_batch_without_pictures_is_refused():
    objective = contrastive.Contrastive(clip=CLIP(vocab=10))
    with pytest.raises(ValueError, match="images"):
        objective.init(jax.random.key(0), Batch(tokens=CAPTIONS, mask=MASK))


@pytest.fixture(scope="module")
def latent():
    """The tiny recipe of the CLIP on latents, its frozen encoder, and pictures with captions."""
    config = scenes_clip_latents.get_config("tiny")
    objective, needs = build.objective(config)
    assert needs == ("vae",)
    images = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    batch = Batch(tokens=CAPTIONS, mask=MASK, images=jnp.asarray(images))
    return objective, modules.frozen(config, needs), batch


def test_the_recipe_on_latents_learns_the_pairs(latent):
    objective, frozen, batch = latent
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    assert params["image_tower"]["patches"]["kernel"].shape == (2, 2, 16, 32)
    rule = optax.adam(3e-3)

    @jax.jit
    def step(params, moments):
        run = jax.value_and_grad(objective, has_aux=True)
        (loss, _), slope = run(params, frozen, batch, jax.random.key(0), jnp.int32(0), {})
        change, moments = rule.update(slope, moments)
        return optax.apply_updates(params, change), moments, loss

    moments, losses = rule.init(params), []
    for _ in range(40):
        params, moments, loss = step(params, moments)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_latents_encoded_beforehand_or_on_the_spot_are_the_same(latent):
    objective, frozen, batch = latent
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    encode = jax.jit(lambda p, x: objective.vae.apply({"params": p}, x, method="to_latents"))
    kept = Batch(tokens=CAPTIONS, mask=MASK, latents=encode(frozen["vae"], batch.images))

    @jax.jit
    def loss(frozen, batch):
        return objective(params, frozen, batch, jax.random.key(0), jnp.int32(0), {})[0]

    np.testing.assert_allclose(loss(frozen, batch), loss({}, kept), rtol=1e-5)
    shapes = jax.tree.map(jnp.shape, jax.jit(objective.init)(jax.random.key(0), kept))
    assert shapes == jax.tree.map(jnp.shape, params)
    slope = jax.grad(loss)(frozen, batch)
    assert not any(leaf.any() for leaf in jax.tree.leaves(slope))
