import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.models import attention

B, N, T, H, G, E = 4, 5, 3, 6, 2, 8


def brute(q, k, v, mask, scale):
    """One query, one head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            for h in range(q.shape[2]):
                g = h // (q.shape[2] // k.shape[2])
                logits = k[b, :, g] @ q[b, n, h] * scale
                weights = np.where(mask[b, n], np.exp(logits - logits.max()), 0)
                out[b, n, h] = weights @ v[b, :, g] / weights.sum()
    return out


def arrays(*shapes):
    return [jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes)]


def test_attend_is_softmax_attention_with_grouped_heads():
    q, k, v = arrays((B, N, H, E), (B, T, G, E), (B, T, G, E))
    mask = np.ones((B, N, T), bool)
    mask[1, :, 2] = mask[2, 3, 0] = False
    got = attention.attend(q, k, v, jnp.asarray(mask))
    np.testing.assert_allclose(got, brute(q, k, v, mask, E**-0.5), atol=1e-6)


def test_scale_and_soft_cap():
    q, k, v = arrays((B, N, H, E), (B, T, G, E), (B, T, G, E))
    got = attention.attend(q, k, v, scale=0.3)
    np.testing.assert_allclose(got, brute(q, k, v, np.ones((B, N, T), bool), 0.3), atol=1e-6)
    # A cap far above every logit changes nothing; a tiny one makes all weights equal.
    np.testing.assert_allclose(attention.attend(q, k, v, scale=0.3, cap=1e4), got, atol=1e-4)
    flat = attention.attend(q, k, v, cap=1e-6)
    mean = jnp.repeat(v.mean(axis=1, keepdims=True), H // G, axis=2)
    np.testing.assert_allclose(flat, jnp.broadcast_to(mean, flat.shape), atol=1e-5)


@pytest.mark.parametrize("prompts", [4, 2, 1])
@pytest.mark.parametrize("heads", [(6, 2), (3, 3)])
def test_prefix_equals_one_softmax_over_repeated_text(prompts, heads):
    h, g = heads
    q, k, v, text_k, text_v = arrays(
        (B, N, h, E), (B, N, g, E), (B, N, g, E), (prompts, T, g, E), (prompts, T, g, E)
    )
    text_mask = jnp.arange(T)[None, :] < jnp.arange(1, prompts + 1)[:, None]

    def repeated(q, k, v, text_k, text_v):
        every = [jnp.repeat(x, B // prompts, axis=0) for x in (text_k, text_v)]
        mask = jnp.repeat(text_mask, B // prompts, axis=0)
        mask = jnp.concatenate([mask, jnp.ones((B, N), bool)], axis=1)[:, None, :]
        return attention.attend(
            q, jnp.concatenate([every[0], k], 1), jnp.concatenate([every[1], v], 1), mask
        )

    def shared(*args):
        return attention.attend_prefix(*args, text_mask)

    args = (q, k, v, text_k, text_v)

    def value_and_gradients(args):
        return [(f(*args), jax.grad(lambda a, f=f: jnp.sin(3 * f(*a)).sum())(args)) for f in both]

    both = (shared, repeated)
    got, want = jax.jit(value_and_gradients)(args)
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


def test_cross_attention_shares_text():
    q, k, v = arrays((B, N, H, E), (2, T, G, E), (2, T, G, E))
    mask = jnp.array([[True, False, False], [True, True, True]])
    want = attention.attend(
        q, *(jnp.repeat(x, 2, axis=0) for x in (k, v)), jnp.repeat(mask, 2, axis=0)[:, None, :]
    )
    np.testing.assert_allclose(attention.attend_shared(q, k, v, mask), want, atol=1e-6)


def test_rows_that_do_not_fit_are_refused():
    q, k, text = arrays((B, N, H, E), (B, N, G, E), (3, T, G, E))
    with pytest.raises(ValueError, match="4 image rows cannot be shared among 3 prompts"):
        attention.attend_prefix(q, k, k, text, text, jnp.ones((3, T), bool))


@pytest.mark.parametrize("prompts", [B, B // 2])
def test_alone_is_one_softmax_over_the_text_and_the_place_itself(prompts):
    q, k, v, text_k, text_v = arrays(
        (B, N, H, E), (B, N, G, E), (B, N, G, E), (prompts, T, G, E), (prompts, T, G, E)
    )
    mask = np.ones((prompts, T), bool)
    mask[1, 1:] = False
    got = attention.attend_alone(q, k, v, text_k, text_v, jnp.asarray(mask))
    times = B // prompts
    seen = np.repeat(mask, times, axis=0)[:, None].repeat(N, axis=1)
    seen = np.concatenate([seen, np.broadcast_to(np.eye(N, dtype=bool), (B, N, N))], axis=2)
    keys, values = (
        np.concatenate([np.repeat(x, times, axis=0), y], axis=1)
        for x, y in ((text_k, k), (text_v, v))
    )
    np.testing.assert_allclose(got, brute(q, keys, values, seen, E**-0.5), atol=1e-6)
