"""Attention as batched matmuls: softmax in float32, key/value heads shared by groups of heads.

    out = softmax(q k^T / sqrt(E) + mask) v

A masked logit is the lowest finite float32, not -inf: a row that may see nothing stays finite.
The softmax is divided out after the second matmul, on N x E numbers instead of N x T.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LOWEST = float(jnp.finfo(jnp.float32).min)


def _grouped(q: Float[Array, "B N H E"], groups: int) -> Float[Array, "B G RN E"]:
    """Bring the R = H / G query heads that share a key head into one matmul with it."""
    b, n, h, e = q.shape
    q = q.reshape(b, n, groups, h // groups, e).transpose(0, 2, 3, 1, 4)
    return q.reshape(b, groups, h // groups * n, e)


def _ungrouped(o: Float[Array, "B G RN E"], heads: int) -> Float[Array, "B N H E"]:
    b, g, rn, e = o.shape
    n = rn * g // heads
    return o.reshape(b, g, heads // g, n, e).transpose(0, 3, 1, 2, 4).reshape(b, n, heads, e)


def _logits(q: Float[Array, "B G Q E"], k: Float[Array, "B T G E"]) -> Float[Array, "B G Q T"]:
    return jnp.einsum("bgqe,btge->bgqt", q, k, preferred_element_type=jnp.float32)


def _weighted(p: Float[Array, "B G Q T"], v: Float[Array, "B T G E"]) -> Float[Array, "B G Q E"]:
    return jnp.einsum("bgqt,btge->bgqe", p.astype(v.dtype), v, preferred_element_type=jnp.float32)


def attend(
    q: Float[Array, "B N H E"],
    k: Float[Array, "B T G E"],
    v: Float[Array, "B T G E"],
    mask: Bool[Array, "B #N T"] | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "B N H E"]:
    """Attention of N queries to T keys.

    Args:
      q: queries.
      k: keys; H must be a multiple of G.
      v: values.
      mask: True where a query may see a key.
      scale: factor on the logits; 1 / sqrt(E) unless given.
      cap: Gemma 2's soft cap, logits -> cap tanh(logits / cap); none unless given.

    Returns:
      The mixed values, in the dtype of ``q``.
    """
    b, n, h, e = q.shape
    g = k.shape[2]
    scaled = _grouped(q * (e**-0.5 if scale is None else scale), g)
    logits = _logits(scaled, k)
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    if mask is not None:
        shape = logits.shape
        logits = logits.reshape(b, g, h // g, n, -1)
        logits = jnp.where(mask[:, None, None, :, :], logits, LOWEST).reshape(shape)
    p = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    out = _weighted(p, v) / p.sum(axis=-1, keepdims=True)
    return _ungrouped(out, h).astype(q.dtype)


def attend_prefix(
    q: Float[Array, "B N H E"],
    k: Float[Array, "B M G E"],
    v: Float[Array, "B M G E"],
    text_k: Float[Array, "P T G E"],
    text_v: Float[Array, "P T G E"],
    text_mask: Bool[Array, "P T"],
) -> Float[Array, "B N H E"]:
    """One softmax over [text keys ; own keys], the text of P prompts shared by B = P K rows.

    The K rows of a prompt are queries of the same matmul, so text keys are never repeated: with
    m the larger of both row maxima,

        out = (exp(q k_text - m) v_text + exp(q k_own - m) v_own) / (sum exp + sum exp)

    Raises:
      ValueError: if B is not a multiple of P.
    """
    b, n, h, e = q.shape
    p, _, g, _ = text_k.shape
    if b % p:
        raise ValueError(f"{b} image rows cannot be shared among {p} prompts")
    if b == p:
        # One picture a prompt: nothing to share, and one larger matmul is faster than two.
        own = jnp.ones((b, k.shape[1]), bool)
        return attend(
            q,
            jnp.concatenate([text_k, k], axis=1),
            jnp.concatenate([text_v, v], axis=1),
            jnp.concatenate([text_mask, own], axis=1)[:, None, :],
        )
    samples, r = b // p, h // g
    q = q * e**-0.5
    own = _logits(_grouped(q, g), k)
    text = _logits(_grouped(q.reshape(p, samples * n, h, e), g), text_k)
    text = jnp.where(text_mask[:, None, None, :], text, LOWEST)

    def to_rows(x: jax.Array) -> jax.Array:  # P G (R K N) x -> B G (R N) x
        x = x.reshape(p, g, r, samples, n, -1).transpose(0, 3, 1, 2, 4, 5)
        return x.reshape(b, g, r * n, -1)

    def to_prompts(x: jax.Array) -> jax.Array:  # and back
        x = x.reshape(p, samples, g, r, n, -1).transpose(0, 2, 3, 1, 4, 5)
        return x.reshape(p, g, r * samples * n, -1)

    top = jnp.maximum(own.max(axis=-1, keepdims=True), to_rows(text.max(axis=-1, keepdims=True)))
    top = jax.lax.stop_gradient(top)
    own = jnp.exp(own - top)
    text = jnp.exp(text - to_prompts(top))
    total = own.sum(axis=-1, keepdims=True) + to_rows(text.sum(axis=-1, keepdims=True))
    out = (_weighted(own, v) + to_rows(_weighted(text, text_v))) / total
    return _ungrouped(out, h).astype(q.dtype)


def attend_alone(
    q: Float[Array, "B N H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    text_k: Float[Array, "P T G E"],
    text_v: Float[Array, "P T G E"],
    text_mask: Bool[Array, "P T"],
) -> Float[Array, "B N H E"]:
    """``attend_prefix`` in which a query sees, of all own keys, that of its place alone."""
    b, n, h, e = q.shape
    p, t, g, _ = text_k.shape
    q = (q * e**-0.5).reshape(p, -1, h, e)
    text = jnp.where(text_mask[:, None, None, :], _logits(_grouped(q, g), text_k), LOWEST)
    k, v = (jnp.repeat(x, h // g, axis=2).reshape(p, -1, h, e) for x in (k, v))
    exact = jnp.einsum("pnhe,pnhe->pnh", q, k, preferred_element_type=jnp.float32)
    own = _grouped(exact[..., None], g)
    share = jax.nn.softmax(jnp.concatenate([text, own], axis=-1))
    out = _weighted(share[..., :t], text_v) + share[..., t:] * _grouped(v, g)
    return _ungrouped(out, h).reshape(b, n, h, e).astype(q.dtype)


def attend_shared(
    q: Float[Array, "B N H E"],
    k: Float[Array, "P T G E"],
    v: Float[Array, "P T G E"],
    mask: Bool[Array, "P T"],
) -> Float[Array, "B N H E"]:
    """Cross attention of B = P K rows to the text of P prompts, without repeating it."""
    b, n, h, e = q.shape
    p = k.shape[0]
    out = attend(q.reshape(p, b // p * n, h, e), k, v, mask[:, None, :])
    return out.reshape(b, n, h, e)
