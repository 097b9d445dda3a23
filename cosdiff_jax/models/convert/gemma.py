"""Gemma and Gemma 2 in the layout of Hugging Face transformers <-> ``models.gemma.Gemma``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosdiff_jax.models.convert import layout
from cosdiff_jax.models.convert.layout import (
    Entry,
    field,
    heads_out,
    linear,
    side_by_side,
    stack,
    vector,
)
from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.shapes import Params


def module(config: Mapping[str, Any], *, fused: bool = False) -> Gemma:
    """The module that a published configuration describes.

    Args:
      config: a GemmaConfig or Gemma2Config as JSON.
      fused: as fuse-dit runs it: Gemma 2 without soft caps, sliding window and query scalar.

    Raises:
      ValueError: an entry is missing, of a wrong type or asks for what we do not have.
    """
    kind = field(config, "model_type", str)
    if kind not in ("gemma", "gemma2"):
        raise ValueError(f"config.json: model_type should be gemma or gemma2, is {kind!r}")
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation not in ("gelu_pytorch_tanh", "gelu", None):
        raise ValueError(f"config.json: activation {activation!r} is not Gemma's")
    if field(config, "attention_bias", bool, False):
        raise ValueError("config.json: attention_bias is not supported, Gemma has none")
    width = field(config, "hidden_size", int)
    heads = field(config, "num_attention_heads", int)
    second: dict[str, Any] = {}
    if kind == "gemma2" and not fused:
        second = {
            "attention_cap": config.get("attn_logit_softcapping", 50.0),
            "attention_scale": field(config, "query_pre_attn_scalar", (int, float), 256) ** -0.5,
            "window": config.get("sliding_window", 4096),
            "final_cap": config.get("final_logit_softcapping", 30.0),
        }
    return Gemma(
        vocab=field(config, "vocab_size", int),
        width=width,
        depth=field(config, "num_hidden_layers", int),
        heads=heads,
        kv_heads=field(config, "num_key_value_heads", int, heads),
        head_size=field(config, "head_dim", int, width // heads),
        mlp=field(config, "intermediate_size", int),
        rope_base=float(rope_base(config)),
        eps=field(config, "rms_norm_eps", float, 1e-6),
        post_norms=kind == "gemma2",
        **second,
    )


def rope_base(config: Mapping[str, Any]) -> float:
    """The rotary base, where transformers before or since version 5 keeps it."""
    inner = config.get("rope_parameters") or {}
    return field({"rope_theta": 10000.0, **inner, **config}, "rope_theta", (int, float))


def configuration(model: Gemma) -> dict[str, Any]:
    """What ``module`` would read to build this model."""
    config = {
        "model_type": "gemma2" if model.post_norms else "gemma",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "intermediate_size": model.mlp,
        "rope_theta": model.rope_base,
        "rms_norm_eps": model.eps,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
    }
    if model.post_norms:
        scale = model.attention_scale or model.head_size**-0.5
        config |= {
            "attn_logit_softcapping": model.attention_cap,
            "query_pre_attn_scalar": round(scale**-2),
            "sliding_window": model.window or 4096,
            "final_logit_softcapping": model.final_cap,
        }
    return config


def mlp(ours: str, theirs: str, width: int, hidden: int) -> list[Entry]:
    """gate_proj and up_proj in one kernel, and down_proj."""
    return [
        side_by_side(
            f"{ours}mlp/gate_up/kernel",
            {f"{theirs}mlp.gate_proj.weight": hidden, f"{theirs}mlp.up_proj.weight": hidden},
            width,
            (2, hidden),
        ),
        linear(f"{ours}mlp/down/kernel", f"{theirs}mlp.down_proj.weight", hidden, width),
    ]


def qkv(path: str, theirs: str, width: int, heads: int, kv_heads: int, head_size: int) -> Entry:
    """q_proj, k_proj and v_proj in one kernel."""
    sizes = {"q": heads, "k": kv_heads, "v": kv_heads}
    names = {f"{theirs}self_attn.{n}_proj.weight": size * head_size for n, size in sizes.items()}
    return side_by_side(path, names, width, (heads + 2 * kv_heads, head_size))


def table(model: Gemma, prefix: str = "model.") -> list[Entry]:
    """Every parameter of the model and the published tensors it is made of."""
    d, h, e = model.width, model.heads, model.head_size

    def layer(i: int) -> list[Entry]:
        p = f"{prefix}layers.{i}."
        norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        if model.post_norms:
            norms |= {
                "attention_post_norm": "post_attention_layernorm",
                "mlp_norm": "pre_feedforward_layernorm",
                "mlp_post_norm": "post_feedforward_layernorm",
            }
        return [
            qkv("blocks/qkv/project/kernel", p, d, h, model.kv_heads, e),
            heads_out(
                "blocks/attention_out/project/kernel", f"{p}self_attn.o_proj.weight", h, e, d
            ),
            *mlp("blocks/", p, d, model.mlp),
            *(vector(f"blocks/{us}/scale", f"{p}{them}.weight", d) for us, them in norms.items()),
        ]

    return [
        Entry(
            "embed/embedding",
            {f"{prefix}embed_tokens.weight": (model.vocab, d)},
            lambda a: a[0],
            lambda x: [x],
        ),
        vector("final_norm/scale", f"{prefix}norm.weight", d),
        *stack(layer, model.depth),
    ]


@dataclasses.dataclass(frozen=True)
class Published:
    """A converted language model: the module, and parameters under "language_model"."""

    language_model: Gemma
    params: dict[str, Params]


def load(folder: str | Path) -> Published:
    """Read a folder of transformers' Gemma or Gemma 2.

    Raises:
      ValueError: a file is missing or broken, or a tensor missing, unknown or of a wrong shape.
    """
    config, tensors = layout.load_folder(folder)
    model = module(config)
    # A bare model has no prefix; the output embedding is the input's.
    prefix = "model." if any(name.startswith("model.") for name in tensors) else ""
    params = layout.read(table(model, prefix), tensors, ["lm_head.weight"])
    return Published(model, {"language_model": params})


def export(
    networks: Mapping[str, Gemma], params: Mapping[str, Params]
) -> tuple[dict[str, Any], layout.Arrays]:
    """Configuration and tensors of ``networks["language_model"]`` in the published layout."""
    model = networks["language_model"]
    name = "Gemma2ForCausalLM" if model.post_norms else "GemmaForCausalLM"
    config = configuration(model) | {"architectures": [name]}
    return config, layout.write(table(model), params["language_model"])
