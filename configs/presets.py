"""Named overlays: a word after the recipe's name changes its size, or how its flow is trained.

    --config=configs/fusion_div.py:tiny
    --config="configs/fusion_base.py:rf/mode(1.29)+tiny"

They are laid over the finished recipe, since a size has to hold whatever the recipe chose; the
command line still comes last.
"""

from typing import Any

from configs import formulations


def apply(config: Any, preset: str) -> Any:
    """Lay presets, joined by +, over a recipe; an empty name changes nothing.

    Raises:
      ValueError: no such preset or published formulation; the choices are listed.
    """
    for name in preset.split("+") if preset else ():
        if name in PRESETS:
            PRESETS[name](config)
        elif not formulations.apply(config, name):
            known = ", ".join((*sorted(PRESETS), *formulations.KNOWN))
            raise ValueError(f"preset {name!r} is not one of {known}")
    return config


def tiny(config: Any) -> None:
    """Seconds, on anything: random small frozen networks, a handful of pictures. For tests."""
    config.steps = 4
    config.log_every = 1
    config.data.prompts = 2
    config.data.samples = min(config.data.samples, 2)
    # A small vocabulary cuts finer, and a language model's lines say things twice.
    config.data.context = 112 if config.data.name == "captions" else 48
    config.data.encoded = False
    for name in ("scenes", "scenes_pairs"):
        config.data[name].folder = "datasets/scenes_tiny"
        config.data[name].train, config.data[name].test, config.data[name].stored = 16, 8, 2
    config.data.scenes.focus = 0.0  # all recipes share the folder
    config.data.captions.number = 200
    config.data.digits.number = 32
    config.tokenizer.name = "bpe"
    config.tokenizer.bpe.update(vocab=400, captions=500)
    config.language_model.name = "gemma"
    config.language_model.gemma.update(
        vocab=400, width=32, depth=2, heads=2, kv_heads=2, head_size=16, mlp=32
    )
    if config.vae.name != "none":
        config.vae.name = "kl"
        config.vae.kl.update(widths=(8, 8, 8), groups=2)
    for role, patch in (("clip", 16), ("latent_clip", 2)):
        if config[role].name != "none":
            config[role].name = "clip"
        config[role].clip.update(vocab=400, patch=patch, width=32, depth=1, heads=2, features=16)
        config[role].clip.update(text_width=32, text_depth=1, text_heads=2)
    config.vgg.vgg.update(widths=(8,) * 5)
    config.backbone.name = "fuse_dit"
    config.backbone.fuse_dit.update(width=32, depth=2, heads=2, kv_heads=2, head_size=16, mlp=32)
    config.backbone.fuse_dit.attention.deep_cross.text_layers = ()  # of two layers
    flow = config.objective.flow_matching
    # There is no base model of this size, to stay close to or to draw with.
    flow.anchor, config.data.reflow.steps = 0.0, 0
    flow.prediction.rollout.update(steps=2, gradient_steps=1)
    flow.diversity.cosine.schedule.linear.update(warmup=0, ramp=2)
    config.optimizer.warmup = 0
    config.checkpoint.every = 2
    config.sample.update(every=2, prompts=2, shown=2, num=2, steps=2, rows=4, batches=1)


def fusion_2b(config: Any) -> None:
    """The published large model: Gemma-2-2B read by a transformer of its shape, 512 pixels.

    26 layers of width 2304, 8 heads over 4 key heads of 256; no timestep conditioning, 1-D + 2-D
    RoPE, sandwich norm (arXiv 2505.10046). The language model's and the VAE's weights are yours to
    convert first.
    """
    config.data.context = 256
    config.data.folder.size = 512
    config.clip.clip.context = 256
    config.latent_clip.clip.context = 256
    config.language_model.name = "gemma"
    config.language_model.gemma.update(
        vocab=256_000,
        width=2304,
        depth=26,
        heads=8,
        kv_heads=4,
        head_size=256,
        mlp=9216,
        post_norms=True,
        final_cap=30.0,
        remat=True,
        dtype="bfloat16",
    )
    config.data.reflow.steps = 0  # nothing of this size is there to draw with
    config.backbone.name = "fuse_dit"
    config.backbone.fuse_dit.update(
        width=2304,
        depth=26,
        heads=8,
        kv_heads=4,
        head_size=256,
        mlp=9216,
        sandwich_norm=True,
        remat=True,
        dtype="bfloat16",
    )
    config.backbone.fuse_dit.modulation.name = "none"
    config.backbone.fuse_dit.attention.name = "deep_self"
    config.backbone.fuse_dit.attention.deep_cross.text_layers = ()
    config.optimizer.rate = 1e-4
    config.optimizer.ema.update(decay=0.99, every=100)


def pod_256(config: Any) -> None:
    """256 accelerators: parameters over 32, rows over all, 2,048 pictures a step."""
    config.mesh.update(data=8, fsdp=32, tensor=1)
    config.data.prompts = 256
    config.data.samples = 8


PRESETS = {"tiny": tiny, "fusion_2b": fusion_2b, "pod_256": pod_256}
