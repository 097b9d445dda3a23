"""QK-norm put into a FuseDiT that was trained without it.

    model, params = qk_norm.insert(model, params, batches)
    weights.save(folder, qk_norm.entry(plain), params, dtype="float32")

The norm keeps the logits of attention bounded, without which training at high resolution in
bfloat16 becomes unstable; put in at the start of fine-tuning, a network pre-trained without it
adapts quickly (Esser et al. 2024, section 5.3.2).

What can be kept. A norm is x g / r with r = sqrt(mean(x^2) + eps), the root-mean-square of one
head of one token, and a learned gain g per channel that all heads and tokens of a layer share.
It takes the length of each query and key away, so no g makes it the identity: heads that were
sharper than others, tokens that drew or paid more attention, become alike. What g can give back
is the size, and here it is the one that changes the measured queries (or keys) least:

    g_e = argmin sum_n (x_ne g_e / r_n - x_ne)^2 = sum_n x_ne^2 / r_n  /  sum_n x_ne^2 / r_n^2

the mean of r over heads, tokens and pictures, weighted by how much of each channel e carries.
Directions, and in every layer the mean size of logits and the balance of image against text, stay
as they were; where r is the same for all, the network computes exactly what it did. With g = 1,
as fresh norms have it, all logits would start near the same small size. The sharper the attention
was, the more is lost: where queries and keys are twice as long as normed ones, nearly as much as
with g = 1.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from cosdiff_jax.models.fuse_dit import FuseDiT
from cosdiff_jax.shapes import Params

# Every norm that the field qk_norm adds, in the deep forms and in the shallow ones.
NORMS = ("q_norm", "k_norm", "cross_q_norm", "cross_k_norm")


def insert(
    model: FuseDiT, params: Params, batches: Iterable[Mapping[str, Any]]
) -> tuple[FuseDiT, Params]:
    """The network with QK-norm that computes most nearly what this one without it does.

    Args:
      model: without QK-norm.
      params: its parameters.
      batches: inputs as the model is called with, each ``{"z_t": .., "t": .., "text": ..}`` (and
        ``"pooled"``), all of the same shapes: noised pictures at the times of training. A few
        hundred rows are plenty, for a norm has only E gains.

    Returns:
      The model with ``qk_norm=True``, and its parameters: those given, and the measured gains.

    Raises:
      ValueError: the model has QK-norm already, or there is no batch.
    """
    if model.qk_norm:
        raise ValueError("this network has QK-norm already: backbone.fuse_dit.qk_norm is True")
    normed = model.clone(qk_norm=True)
    measured = jax.jit(lambda params, inputs: _sums(normed, params, inputs))
    total: Any = None
    for inputs in batches:
        found = measured(params, dict(inputs))
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if total is None:
        raise ValueError("QK-norm is set from queries and keys of data: at least one batch")
    flat = dict(flatten_dict(params))
    for path in {path[:-1] for path in total}:
        # RMSNorm keeps g - 1.
        g = gains(total[(*path, "lengths")], total[(*path, "squares")])
        flat[(*path, "scale")] = g - 1
    return normed, unflatten_dict(flat)


def entry(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The menu entry of the network with QK-norm, from that of the one without."""
    name = plain["name"]
    return {**plain, name: {**plain[name], "qk_norm": True}}


def gains(lengths: Float[Array, "L E"], squares: Float[Array, "L E"]) -> Float[np.ndarray, "L E"]:
    """g = lengths / squares; a channel that is always 0 takes the layer's, an empty layer 1."""
    above, below = (np.asarray(x, np.float64) for x in (lengths, squares))

    def ratio(above: np.ndarray, below: np.ndarray, otherwise: Any) -> np.ndarray:
        return np.where(below > 0, above / np.where(below > 0, below, 1), otherwise)

    layer = ratio(above.sum(axis=1, keepdims=True), below.sum(axis=1, keepdims=True), 1)
    return ratio(above, below, layer).astype(np.float32)


def _sums(normed: FuseDiT, params: Params, inputs: Mapping[str, Any]) -> dict[tuple, Any]:
    """Of each norm "lengths" and "squares", the sums above and below the line, [L E], by path.

    The network runs with norms that let everything pass, which makes it the one without, whichever
    way it reads its text. The scan over depth hands out nothing but parameters: each norm leaves
    its sums where its scale would be.
    """
    mask = inputs["text"].mask

    def norm(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if module.name not in NORMS or context.method_name != "__call__":
            return call(*args, **kwargs)
        again = module.has_variable("params", "lengths")
        x = args[0].astype(jnp.float32)
        # Text keys have a norm of their own, or are the second to use the image's. What stands
        # beyond a prompt's end is never attended to.
        if module.name == "cross_k_norm" or again:
            x = x * mask[:, :, None, None]
        r = jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + module.eps)
        for name, value in (("lengths", x * x / r), ("squares", x * x / (r * r))):
            value = value.sum(axis=tuple(range(x.ndim - 1)))
            before = module.get_variable("params", name) if again else 0
            module.put_variable("params", name, before + value)
        return args[0]

    with nn.intercept_methods(norm):
        _, left = normed.apply({"params": params}, **inputs, mutable=["params"])
    flat = flatten_dict(left["params"])
    return {path: x for path, x in flat.items() if path[-1] in ("lengths", "squares")}
