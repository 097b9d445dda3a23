"""Array types, the dimension alphabet and the records that cross module borders.

Dimension letters, the same in annotations and in einsum strings everywhere:

    P prompts        K samples of one prompt    B = P K (row p K + k is sample k of prompt p)
    M candidates     T text tokens              N image tokens
    D width          L layers                   H heads       G key/value heads   E head size
    F features       h w c latent               X Y pixels    C image channels

Time runs from t = 0 (data) to t = 1 (noise). Images are float32 in [-1, 1], NHWC. Tokens are
int32, right-padded; in masks True marks a real token.
"""

from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Bool, Float, Int

Params = Any
"""A pytree of arrays: what ``flax.linen.Module.init(...)["params"]`` returns."""

Frozen = dict[str, Params]
"""Parameters nobody trains, by role: "llm", "vae", "clip", "latent_clip", "vgg", "anchor",
"average", "weaker"."""

Logs = dict[str, jax.Array]
"""Scalars to write down, by name."""


Memory = Any
"""What an objective remembers from step to step: a pytree of arrays, empty where it forgets."""


@flax.struct.dataclass
class Batch:
    """What one training step sees. The text side has P rows, the image side B = P K.

    ``latents``, where present, are the encoded and normalised form of the same pictures, and then
    ``images`` may be absent. Language-model training has neither. ``prompt`` numbers the training
    prompts, for what is remembered of each. ``distinct``, from a source that fills short groups
    up, marks the pictures that repeat no other of their group; without it all are different.
    ``noise`` is what the latents were drawn from, where a model drew them.
    """

    tokens: Int[Array, "P T"]
    mask: Bool[Array, "P T"]
    images: Float[Array, "B X Y C"] | None = None
    latents: Float[Array, "B h w c"] | None = None
    prompt: Int[Array, " P"] | None = None
    distinct: Bool[Array, "P K"] | None = None
    noise: Float[Array, "B h w c"] | None = None


@flax.struct.dataclass
class TextStream:
    """What a frozen causal language model says of P prompts: computed once, read by every layer.

    ``keys`` carry the rotary embedding where the variant rotates them. ``layers`` (the hidden
    state before each layer, then the last one) is there only for variants that mix layers.
    """

    keys: Float[Array, "L P T G E"]
    values: Float[Array, "L P T G E"]
    hidden: Float[Array, "P T D"]
    mask: Bool[Array, "P T"]
    layers: Float[Array, "S P T D"] | None = None


@flax.struct.dataclass
class TrainState:
    """Everything a run needs to go on: counted in optimizer steps."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    ema: Params
    memory: Memory
