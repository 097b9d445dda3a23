"""How CLIP is trained: find the caption of a picture and the picture of a caption."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cosdiff_jax.diversity.alignment import same_captions
from cosdiff_jax.diversity.exact import product
from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.shapes import Batch, Frozen, Logs, Memory, Params


def info_nce(
    image: Float[Array, "P F"],
    text: Float[Array, "P F"],
    scale: Float[Array, ""],
    same: Bool[Array, "P P"],
) -> Float[Array, " P"]:
    """The symmetric contrastive loss of CLIP, one value in nats per pair.

    s_pq = scale image_p . text_q
    loss_p = -(log softmax_q(s_pq)[p] + log softmax_q(s_qp)[p]) / 2

    (https://arxiv.org/abs/2103.00020, figure 3.) Off-diagonal pairs whose captions are ``same``
    are left out of both softmaxes: a right answer is no negative.
    """
    similarity = scale * product("pf,qf->pq", image, text)
    pairs = jnp.eye(same.shape[0], dtype=bool)
    similarity = jnp.where(same & ~pairs, jnp.finfo(similarity.dtype).min, similarity)
    right = jnp.diagonal(similarity)
    to_text = jax.nn.logsumexp(similarity, axis=1) - right
    to_image = jax.nn.logsumexp(similarity, axis=0) - right
    return 0.5 * (to_text + to_image)


def retrieval(
    image: Float[Array, "P F"], text: Float[Array, "P F"], same: Bool[Array, "P P"]
) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """1 where the nearest caption of picture p is caption p (or the same one), and the reverse."""
    similarity = product("pf,qf->pq", image, text)
    rows = jnp.arange(same.shape[0])
    caption = same[rows, jnp.argmax(similarity, axis=1)]
    picture = same[rows, jnp.argmax(similarity, axis=0)]
    return caption.astype(jnp.float32), picture.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive:
    """loss = mean over P of ``info_nce``, on the first picture of each prompt's K.

    Attributes:
      clip: the network.
      vae: the network reads its latents, with the weights ``frozen["vae"]`` unless the batch has
        latents already; None where it reads pictures.
    """

    clip: CLIP
    vae: AutoencoderKL | None = None

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Fresh parameters, for pictures or latents of this batch's shape."""
        frozen: Frozen = {}
        if self.vae is not None and batch.latents is None:
            # Only the latents' shape reaches the parameters, so this encoder may be random.
            images = _first_of_group(batch.images, batch)
            frozen = {"vae": self.vae.init(key, images[:1])["params"]}
        seen = self._seen(frozen, batch)
        return self.clip.init(key, seen[:1], batch.tokens[:1], batch.mask[:1])["params"]

    def start(self, frozen: Frozen, batch: Batch, prompts: int) -> Memory:
        """Nothing is remembered."""
        return {}

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
        memory: Memory,
    ) -> tuple[Float[Array, ""], tuple[Logs, Memory]]:
        """The loss on the batch's pairs; ``key`` and ``step`` are not read."""
        seen = self._seen(frozen, batch)
        out = self.clip.apply({"params": params}, seen, batch.tokens, batch.mask)
        image, text, scale = cast(tuple[jax.Array, jax.Array, jax.Array], out)
        same = same_captions(batch.tokens, batch.mask)
        loss = jnp.mean(info_nce(image, text, scale, same))
        to_caption, to_picture = retrieval(image, text, same)
        logs = {
            "loss": loss,
            "retrieval@1": 0.5 * (jnp.mean(to_caption) + jnp.mean(to_picture)),
            "scale": scale,
        }
        return loss, (logs, memory)

    def _seen(self, frozen: Frozen, batch: Batch) -> Float[Array, "P h w c"]:
        if self.vae is None:
            return _first_of_group(batch.images, batch)
        if batch.latents is not None:
            return _first_of_group(batch.latents, batch)
        images = _first_of_group(batch.images, batch)
        latents: Any = self.vae.apply({"params": frozen["vae"]}, images, method="to_latents")
        return jax.lax.stop_gradient(latents)


def _first_of_group(rows: jax.Array | None, batch: Batch) -> jax.Array:
    if rows is None:
        raise ValueError("training CLIP needs a batch with images")
    return rows[:: rows.shape[0] // batch.tokens.shape[0]]
