import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.objectives import next_token
from cosdiff_jax.shapes import Batch

TOKENS = jnp.asarray([[2, 5, 6, 7, 1], [2, 8, 1, 0, 0], [2, 9, 4, 1, 0]])
MASK = TOKENS != 0


def test_cross_entropy_by_hand():
    logits = np.random.default_rng(0).normal(size=(3, 5, 11)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    want = -np.log(np.take_along_axis(p, np.asarray(TOKENS)[..., None], -1))[..., 0]
    got = next_token.cross_entropy(jnp.asarray(logits), TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_mean_counts_real_positions_only():
    values = jnp.where(MASK, 2.0, jnp.nan)
    assert next_token.masked_mean(values, MASK) == 2
    assert next_token.masked_mean(values, jnp.zeros_like(MASK)) == 0


def test_training_learns_the_sentences_and_padding_has_no_say():
    llm = Gemma(vocab=11, width=16, depth=1, heads=2, kv_heads=1, head_size=8, mlp=32)
    objective = next_token.NextToken(llm=llm)
    batch = Batch(tokens=TOKENS, mask=MASK)
    params = jax.jit(objective.init)(jax.random.key(0), batch)

    @jax.jit
    def step(params, batch):
        run = jax.value_and_grad(objective, has_aux=True)
        (_, (logs, _)), slope = run(params, {}, batch, jax.random.key(0), jnp.int32(0), {})
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, slope), logs

    first = step(params, batch)[1]
    padded = step(params, batch.replace(tokens=jnp.where(MASK, TOKENS, 10)))[1]
    np.testing.assert_allclose(padded["loss"], first["loss"], rtol=1e-6)
    for _ in range(30):
        params, logs = step(params, batch)
    assert logs["loss"] < 0.5 * first["loss"]
    assert logs["accuracy"] > first["accuracy"]
    np.testing.assert_allclose(logs["perplexity"], np.exp(logs["loss"]), rtol=1e-5)
