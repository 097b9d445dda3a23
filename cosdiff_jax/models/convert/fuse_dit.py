"""The published fuse-dit layout (FuseDiT and the shallow DiT) <-> our modules and parameters.

A folder holds config.json (``base_config`` is the language model's) and model.safetensors
(``dit.*``, ``llm.*``). The language model is cut at the highest layer that is read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from cosdiff_jax.models import dit, modulation, position
from cosdiff_jax.models import fusion as fusions
from cosdiff_jax.models.convert import gemma, layout
from cosdiff_jax.models.convert.layout import Entry, field
from cosdiff_jax.models.fuse_dit import FuseDiT
from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.shapes import Params, TextStream

Given = Array | np.ndarray
"""What may be handed in from outside; ours inside are jax arrays."""

CONDITIONINGS = {
    "adaln-zero": modulation.AdaLnZero(),
    "adaln-single": modulation.AdaLnSingle(),
    "addition": modulation.Addition(),
    None: modulation.Unconditioned(),
}
ENCODINGS = {
    "ape": position.Ape,
    "1d-rope": position.Rope1D,
    "2d-rope": position.Rope2D,
    "m-rope": position.MRope,
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A converted model: modules, and parameters under "backbone" and "language_model"."""

    backbone: FuseDiT
    language_model: Gemma
    params: dict[str, Params]

    def text(self, tokens: Int[Array, "P T"], mask: Bool[Array, "P T"]) -> TextStream:
        """The stream of P prompts, as this backbone reads it."""
        fusion = self.backbone.attention
        return self.language_model.apply(
            {"params": self.params["language_model"]},
            tokens,
            mask,
            rotate=fusion.rotate,
            layers=fusion.layers,
        )  # pyright: ignore[reportReturnType]

    def velocity(
        self,
        z: Float[Given, "B h w c"],
        t: Float[Given, " B"],
        tokens: Int[Given, "P T"],
        mask: Shaped[Given, "P T"],
        pooled: Float[Given, "P F"] | None = None,
    ) -> Float[Array, "B h w c"]:
        """v(z, t, text) for B = P K rows; ``pooled`` where the model has a pooled text input.

        Args:
          z: latents, NHWC.
          t: times in [0, 1]: the published timestep / 1000.
          tokens: right-padded token numbers.
          mask: true (or 1) at real tokens.
          pooled: pooled text vectors.
        """
        return _velocity(
            self.backbone,
            self.language_model,
            self.params,
            jnp.asarray(z, jnp.float32),
            jnp.asarray(t, jnp.float32),
            jnp.asarray(tokens, jnp.int32),
            jnp.asarray(mask).astype(bool),
            None if pooled is None else jnp.asarray(pooled, jnp.float32),
        )


def _run(backbone, language_model, params, z, t, tokens, mask, pooled):
    model = Published(backbone, language_model, params)
    return backbone.apply(
        {"params": params["backbone"]}, z, t, model.text(tokens, mask), pooled=pooled
    )


_velocity = jax.jit(_run, static_argnums=(0, 1))


def modules(config: Mapping[str, Any]) -> tuple[FuseDiT, Gemma]:
    """The modules that a published configuration describes.

    Raises:
      ValueError: an entry is missing, of a wrong type or unknown.
    """
    kind = _choice(config, "model_type", ("FuseDiT", "DiT"))
    deep = kind == "FuseDiT"
    base = field(config, "base_config", dict)
    llm = gemma.module(base, fused=deep)
    if not deep:
        # The baseline was fed by transformers' fast attention, which leaves the soft cap out.
        llm = llm.clone(attention_cap=None)
    encoding = ENCODINGS[_choice(config, "pos_embed", tuple(ENCODINGS))]
    if encoding is position.Ape:
        patch = field(config, "patch_size", int, 2)
        where = position.Ape(
            max_size=field(config, "pos_embed_max_size", int, 64),
            base_size=field(config, "sample_size", int, 32) // patch,
        )
    else:
        where = encoding(base=llm.rope_base)
    channels = field(config, "in_channels", int, 16)
    if field(config, "out_channels", int, channels) != channels:
        raise ValueError("config.json: out_channels differs from in_channels")
    depth = field(config, "dit_num_hidden_layers", int)
    attention = _choice(config, "attention", ("self", "cross"))
    if deep:
        options = {"text_layers": text_layers(config, depth, llm.depth)}
        fusion = {"self": fusions.SelfAttention, "cross": fusions.CrossAttention}[attention]
    else:
        options = {"layer": field(config, "text_hidden_states_index", int, -1)}
        fusion = {"self": dit.ShallowSelf, "cross": dit.ShallowCross}[attention]
    pooled = field(config, "text_modulation_embeds_dim", (int, type(None)), None)
    conditioning = CONDITIONINGS[_choice(config, "timestep_conditioning", tuple(CONDITIONINGS))]
    return FuseDiT(
        width=field(config, "dit_hidden_size", int, llm.width),
        depth=depth,
        heads=llm.heads,
        kv_heads=llm.kv_heads,
        head_size=llm.head_size,
        mlp=llm.mlp,
        patch=field(config, "patch_size", int, 2),
        channels=channels,
        position=where,
        modulation=conditioning,
        attention=fusion(**options),
        qk_norm=field(config, "qk_norm", bool, False),
        sandwich_norm=field(config, "sandwich_norm", bool, False),
        # The shallow model has weights for a pooled vector but never reads it.
        pooled=pooled if deep and conditioning.timed else None,
        eps=llm.eps,
    ), llm


def _choice(config: Mapping[str, Any], name: str, choices: tuple[Any, ...]) -> Any:
    value = config.get(name, "adaln-zero" if name == "timestep_conditioning" else None)
    if isinstance(value, (dict, list)) or value not in choices:
        listed = ", ".join(str(c) for c in choices)
        raise ValueError(f"config.json: {name} is {value!r}, not one of {listed}")
    return value


def text_layers(config: Mapping[str, Any], depth: int, number: int) -> tuple[int | None, ...]:
    """Which of the language model's ``number`` layers each of ``depth`` layers reads, if any."""
    first = field(config, "initial_layers", int, 0)
    shared = field(config, "shared_attention_layers", (str, list), "all")
    if isinstance(shared, str) and shared != "all":
        raise ValueError(f'config.json: shared_attention_layers is {shared!r}, not "all" or a list')
    return tuple(
        i if i < number and (shared == "all" or i in shared) else None
        for i in range(first, first + depth)
    )


def table(backbone: FuseDiT, text_width: int) -> list[Entry]:
    """Every parameter of the backbone and the published ``dit.*`` tensors it is made of."""
    d, h, g, e = backbone.width, backbone.heads, backbone.kv_heads, backbone.head_size
    p, c, kind = backbone.patch, backbone.channels, type(backbone.modulation)
    shallow = isinstance(backbone.attention, (dit.ShallowSelf, dit.ShallowCross))
    cross = isinstance(backbone.attention, (fusions.CrossAttention, dit.ShallowCross))
    zero, single = kind is modulation.AdaLnZero, kind is modulation.AdaLnSingle
    six = range(6)

    def text(ours: str, theirs: str) -> Entry:
        names = {f"{theirs}text_{n}_proj.weight": g * e for n in "kv"}
        return layout.side_by_side(f"{ours}text/project/kernel", names, d, (2 * g, e))

    def layer(i: int) -> list[Entry]:
        us, them = "blocks/attention/", f"dit.layers.{i}."
        own = us if shallow and not cross else f"{us}image/"
        norms = {"blocks/attention_norm": "input_layernorm" + (".norm" if zero else "")}
        if backbone.sandwich_norm:
            norms |= {
                f"{us}out/post_norm": "post_attention_layernorm",
                "blocks/mlp_norm": "pre_feedforward_layernorm",
                "blocks/mlp_post_norm": "post_feedforward_layernorm",
            }
            if cross:
                norms[f"{us}cross_out/post_norm"] = "post_cross_attention_layernorm"
        else:
            norms["blocks/mlp_norm"] = "post_attention_layernorm"
        entries = [
            layout.vector(f"{ours}/scale", f"{them}{name}.weight", d)
            for ours, name in norms.items()
        ]
        entries += [
            gemma.qkv(f"{own}qkv/project/kernel", them, d, h, g, e),
            layout.heads_out(
                f"{us}out/heads/project/kernel", f"{them}self_attn.o_proj.weight", h, e, d
            ),
            *gemma.mlp("blocks/", them, d, backbone.mlp),
        ]
        normed = {}
        if backbone.qk_norm:
            normed = {f"{own}{n}": f"self_attn.{n}" for n in ("q_norm", "k_norm")}
        if shallow:
            entries.append(text(us, f"{them}{'cross' if cross else 'self'}_attn."))
        if cross:
            entries += [
                layout.side_by_side(
                    f"{us}cross_q/kernel", {f"{them}cross_attn.q_proj.weight": h * e}, d, (h, e)
                ),
                layout.heads_out(
                    f"{us}cross_out/heads/project/kernel",
                    f"{them}cross_attn.o_proj.weight",
                    h,
                    e,
                    d,
                ),
            ]
            if backbone.qk_norm:
                normed[f"{us}cross_q_norm"] = "cross_attn.q_norm"
                if shallow:
                    normed[f"{us}cross_k_norm"] = "cross_attn.k_norm"
        entries += [
            layout.vector(f"{ours}/scale", f"{them}{name}.weight", e)
            for ours, name in normed.items()
        ]
        ours = "blocks/modulation/"
        if zero:
            theirs = f"{them}input_layernorm.linear."
            linear = f"{ours}linear/project/"
            entries += [
                layout.chunks(f"{linear}kernel", f"{theirs}weight", (6 * d, d), six),
                layout.chunks(f"{linear}bias", f"{theirs}bias", (6 * d,), six),
            ]
        elif single:
            name = f"{them}scale_shift_table"
            entries.append(layout.chunks(f"{ours}table", name, (6 * d,), six))
        return entries

    def dense(ours: str, theirs: str, inputs: int, outputs: int) -> list[Entry]:
        return [
            layout.linear(f"{ours}/kernel", f"dit.{theirs}.weight", inputs, outputs),
            layout.vector(f"{ours}/bias", f"dit.{theirs}.bias", outputs),
        ]

    entries = [
        layout.patches("patch_embed/kernel", "dit.patch_embed.proj.weight", p, c, d),
        layout.vector("patch_embed/bias", "dit.patch_embed.proj.bias", d),
        *layout.stack(layer, backbone.depth),
        layout.vector("final_norm/scale", f"dit.norm_out{'.norm' if zero else ''}.weight", d),
        *dense("patch_out", "proj_out", d, p * p * c),
    ]
    if backbone.modulation.timed:
        entries += dense("time/in", "timestep_embedder.0", 256, d)
        entries += dense("time/out", "timestep_embedder.2", d, d)
    if zero:
        # Published order (scale, shift), ours (shift, scale) as everywhere else.
        ours, theirs = "modulation_out/linear/project/", "dit.norm_out.linear."
        entries += [
            layout.chunks(f"{ours}kernel", f"{theirs}weight", (2 * d, d), (1, 0)),
            layout.chunks(f"{ours}bias", f"{theirs}bias", (2 * d,), (1, 0)),
        ]
    elif single:
        ours, theirs = "condition/project/", "dit.t_block.1."
        entries += [
            layout.chunks(f"{ours}kernel", f"{theirs}weight", (6 * d, d), six),
            layout.chunks(f"{ours}bias", f"{theirs}bias", (6 * d,), six),
            layout.chunks("modulation_out/table", "dit.scale_shift_table", (2 * d,), (0, 1)),
        ]
    if backbone.pooled is not None:
        name = "dit.condition_embedder.0.weight"
        entries.append(layout.vector("summary/norm/scale", name, backbone.pooled))
        entries += dense("summary/in", "condition_embedder.1", backbone.pooled, d)
        entries += dense("summary/out", "condition_embedder.3", d, d)
    if shallow:
        name = "dit.context_embedder.0.weight"
        entries.append(layout.vector("context/norm/scale", name, text_width))
        entries += dense("context/project", "context_embedder.1", text_width, d)
    return entries


def load(folder: str | Path) -> Published:
    """Read a folder in the published layout.

    Raises:
      ValueError: a file is missing or broken, or a tensor missing, unknown or of a wrong shape.
    """
    config, tensors = layout.load_folder(folder)
    backbone, llm = modules(config)
    # A fixed table that we compute; the others are weights the published code never reads.
    unread = ["dit.patch_embed.pos_embed"]
    if backbone.pooled is None:
        unread += [name for name in tensors if name.startswith("dit.condition_embedder.")]
    params = {}
    tables = {
        "backbone": ("dit.", table(backbone, llm.width)),
        "language_model": ("llm.", gemma.table(llm, "llm.")),
    }
    for role, (prefix, entries) in tables.items():
        part = {name: x for name, x in tensors.items() if name.startswith(prefix)}
        params[role] = layout.read(entries, part, unread)
    strange = sorted(n for n in tensors if not n.startswith(("dit.", "llm.")))
    if strange:
        raise ValueError(f"tensors unknown: {'; '.join(strange[:3])}")
    return Published(backbone, llm, params)


def export(
    networks: Mapping[str, Any], params: Mapping[str, Params]
) -> tuple[dict[str, Any], layout.Arrays]:
    """Configuration and tensors in the published layout.

    Args:
      networks: "backbone" and "language_model".
      params: theirs.

    Raises:
      ValueError: the published layout has no word for one of the choices.
    """
    backbone, llm = networks["backbone"], networks["language_model"]
    config = configuration(backbone, llm)
    if _essence(*modules(config)) != _essence(backbone, llm):
        raise ValueError("the published fuse-dit layout cannot describe this pair of models")
    tensors = layout.write(table(backbone, llm.width), params["backbone"])
    return config, tensors | layout.write(gemma.table(llm, "llm."), params["language_model"])


def _essence(backbone: FuseDiT, llm: Gemma) -> tuple[FuseDiT, Gemma]:
    """The pair with every choice spelled out, and without those that change no result."""
    how: dict[str, Any] = {"remat": False, "unroll": 1, "dtype": jnp.float32}
    fusion = backbone.attention
    if isinstance(fusion, (fusions.SelfAttention, fusions.CrossAttention)):
        layers = fusions.pair(fusion.text_layers, fusion.initial_layers, backbone.depth, llm.depth)
        fusion = type(fusion)(text_layers=layers, echo=fusion.echo)
    scale = llm.attention_scale or llm.head_size**-0.5
    return (
        backbone.clone(attention=fusion, feature_layer=None, **how),
        llm.clone(final_cap=None, attention_scale=scale, embed_std=0.02, **how),
    )


def configuration(backbone: FuseDiT, llm: Gemma) -> dict[str, Any]:
    """What ``modules`` would read to build this pair."""
    fusion = backbone.attention
    cross = isinstance(fusion, (fusions.CrossAttention, dit.ShallowCross))
    conditioning = next(k for k, v in CONDITIONINGS.items() if v == backbone.modulation)
    encoding = next((k for k, v in ENCODINGS.items() if v is type(backbone.position)), "")
    config: dict[str, Any] = {
        "model_type": "FuseDiT",
        "attention": "cross" if cross else "self",
        "base_config": gemma.configuration(llm),
        "dit_hidden_size": backbone.width,
        "dit_num_hidden_layers": backbone.depth,
        "in_channels": backbone.channels,
        "out_channels": backbone.channels,
        "patch_size": backbone.patch,
        "pos_embed": encoding,
        "qk_norm": backbone.qk_norm,
        "sandwich_norm": backbone.sandwich_norm,
        "text_hidden_size": llm.width,
        "text_modulation_embeds_dim": backbone.pooled,
        "timestep_conditioning": conditioning,
    }
    if isinstance(backbone.position, position.Ape):
        config["pos_embed_max_size"] = backbone.position.max_size
        config["sample_size"] = backbone.position.base_size * backbone.patch
    if isinstance(fusion, (dit.ShallowSelf, dit.ShallowCross)):
        config["model_type"] = "DiT"
        config["text_hidden_states_index"] = fusion.layer
    elif isinstance(fusion, (fusions.SelfAttention, fusions.CrossAttention)):
        pairs = fusions.pair(fusion.text_layers, fusion.initial_layers, backbone.depth, llm.depth)
        read = [i for i in pairs if i is not None]
        config["initial_layers"] = read[0] - pairs.index(read[0]) if read else 0
        config["shared_attention_layers"] = read
    return config
