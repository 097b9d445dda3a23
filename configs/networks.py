"""The menu's networks: every knob with its default, every alternative side by side."""

from ml_collections.config_dict import placeholder


def language_model() -> dict:
    """The frozen text side."""
    return dict(
        name="asset",
        asset=dict(path="scenes_llm"),  # asset name, or workdir/model of a run
        gemma=dict(
            vocab=1024,
            width=192,
            depth=6,
            heads=4,
            kv_heads=4,
            head_size=64,
            mlp=384,
            rope_base=10000.0,
            post_norms=False,  # Gemma 2
            attention_cap=None,  # Gemma 2 as a language model: 50.0; in deep fusion None
            attention_scale=None,  # Gemma 2: query_pre_attn_scalar ** -0.5
            window=None,  # Gemma 2: 4096 tokens in every other layer
            final_cap=None,  # Gemma 2: 30.0
            eps=1e-6,  # of the norms
            embed_std=0.02,  # of fresh embeddings
            remat=False,
            unroll=1,  # layers per iteration of the scan over depth
            dtype="float32",
        ),
    )


def vae() -> dict:
    """Between pixels and latents; "none" keeps pixels."""
    return dict(
        name="asset",
        asset=dict(path="scenes_vae"),
        none={},
        kl=dict(
            widths=(32, 64, 96),  # channels per level, from the largest resolution
            blocks=1,  # ResBlocks per level of the encoder
            decoder_widths=None,  # None: as the encoder
            decoder_blocks=1,  # None: blocks + 1, as in SD3
            latent=16,  # channels of the latents
            channels=3,  # channels of the pictures
            groups=8,
            patch=2,  # pixels folded into channels first; 1 is the SD3 form
            shift=0.0,
            scale=1.0,
            dtype="float32",
        ),
    )


def towers(size: int, patch: int, channels: int) -> dict:
    """CLIP's knobs; size, patch and channels of what its picture tower reads."""
    return dict(
        vocab=1024,
        context=48,
        size=size,
        patch=patch,
        width=128,
        depth=4,
        heads=4,
        text_width=128,
        text_depth=3,
        text_heads=4,
        features=128,  # F
        stem=0,  # channels of a convolutional stem; 0 is the published form
        channels=channels,
        quick=True,  # OpenAI's quick GELU
        dtype="float32",
    )


def clip() -> dict:
    """Picture and text in one space; "none" where nothing needs it."""
    return dict(
        name="asset",
        asset=dict(path="scenes_clip"),
        none={},
        clip=towers(size=64, patch=8, channels=3),  # pixels
    )


def latent_clip() -> dict:
    """A CLIP that reads the VAE's latents instead of pictures."""
    return dict(
        name="none",
        asset=dict(path="scenes_clip_latents"),
        none={},
        clip=towers(size=8, patch=1, channels=16),  # latents
    )


def vgg() -> dict:
    """The perceptual view; its weights are yours to convert first (cosdiff_jax.convert)."""
    return dict(
        name="none",
        asset=dict(path=""),  # the folder that convert wrote
        none={},
        vgg=dict(
            widths=(64, 128, 256, 512, 512),  # channels per level
            convolutions=(2, 2, 3, 3, 3),  # per level: VGG16
            dtype="float32",
        ),
    )


def backbone() -> dict:
    """What is trained: the velocity field."""
    return dict(
        name="fuse_dit",
        asset=dict(path="fusion_base"),
        fuse_dit=dict(
            width=256,
            depth=6,
            heads=4,
            kv_heads=4,  # deep fusion: the language model's
            head_size=64,  # deep fusion: the language model's
            mlp=768,
            patch=2,  # latents per side of a token
            channels=16,  # of the latents, or of the pictures without a VAE
            position=dict(
                name="rope_2d",
                # side: tokens per side of the square trained on now; None: max_size
                ape=dict(max_size=64, base_size=16, side=placeholder(int)),
                rope_1d=dict(base=10000.0),
                rope_2d=dict(base=10000.0, absolute=False),  # absolute: a table as well
                # side: tokens per side of the square that is numbered as rope_2d does;
                # keep_aspect: one factor for both axes
                rope_2d_scaled=dict(base=10000.0, absolute=False, side=4, keep_aspect=False),
                rope_m=dict(base=10000.0),
            ),
            modulation=dict(
                name="adaln_zero", adaln_zero={}, adaln_single={}, addition={}, none={}
            ),
            attention=dict(
                name="deep_self",
                # text_layers: the language model's layer that each layer reads; () for one by one.
                # echo: captions are said twice with this token in between; null says them once
                deep_self=dict(text_layers=(), initial_layers=0, echo=placeholder(int)),
                deep_cross=dict(text_layers=(), initial_layers=0, echo=placeholder(int)),
                shallow_self=dict(layer=-1, echo=placeholder(int)),
                shallow_cross=dict(layer=-1, echo=placeholder(int)),
            ),
            qk_norm=True,
            sandwich_norm=False,
            remat=False,
            unroll=1,
            dtype="float32",
        ),
    )
