"""The menu: every knob with its default and unit, every alternative side by side.

Where there is a choice, ``name`` picks one of the entries beside it; the others keep their knobs
and are not read. A recipe starts from ``menu()``, lays a preset over it, then its own changes;
the command line comes last:

    python -m cosdiff_jax.train --config=configs/fusion_div.py:tiny --config.steps=50 ...

A ``placeholder`` is None until the command line gives it a value of its type.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def menu() -> Any:
    """Everything that can be chosen."""
    return ConfigDict(
        dict(
            recipe="",  # filled in by the command line: the file this came from
            seed=0,
            steps=1000,  # optimizer steps
            log_every=1,  # steps between two lines of metrics.jsonl
            data=data(),
            tokenizer=dict(
                name="asset",
                asset=dict(path="scenes_llm"),  # asset name, or a folder with tokenizer.json
                bpe=dict(vocab=1024, captions=20_000),  # trained on captions at the start
            ),
            language_model=language_model(),
            vae=vae(),
            clip=clip(),
            latent_clip=latent_clip(),
            vgg=vgg(),
            backbone=backbone(),
            objective=objective(),
            optimizer=optimizer(),
            checkpoint=dict(every=200, keep=2),  # every: steps; keep: how many of the newest
            sample=sample(),
            mesh=dict(data=-1, fsdp=1, tensor=1),  # devices per axis; -1 takes what is left
            export="float32",  # dtype of the weights left in workdir/model: float32, float16
        )
    )


def data() -> dict:
    """Where prompts and pictures come from."""
    return dict(
        name="scenes",
        prompts=8,  # P: prompts per step, over all devices
        samples=8,  # K: pictures per prompt
        context=40,  # T: tokens a caption is padded to
        threads=2,  # reading threads per host
        encoded=False,  # encode every picture once with the VAE and train on the kept latents
        scenes=dict(
            folder="datasets/scenes",
            train=2000,  # prompts rendered for training
            test=512,  # prompts with captions that training never sees
            stored=8,  # pictures rendered per prompt, at least `samples`
            languages=("en", "zh", "ko"),
        ),
        scenes_pairs=dict(  # one picture and one caption at a time, half of them said in full
            folder="datasets/scenes",
            train=2000,
            test=512,
            stored=8,
            languages=("en", "zh", "ko"),
        ),
        captions=dict(number=60_000, digits=True),  # text alone, for the language model
        digits=dict(number=2000, languages=("en", "zh", "ko")),  # number: groups per epoch
        folder=dict(
            path="",  # your pictures
            size=64,  # side in pixels after the crop
            test=0.0,  # share of the captions held out; at 0 the held-out ones are the same
            seed=0,  # of the draw
        ),
    )


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
                ape=dict(max_size=64, base_size=16),
                rope_1d=dict(base=10000.0),
                rope_2d=dict(base=10000.0, absolute=False),  # absolute: a table as well
                rope_m=dict(base=10000.0),
            ),
            modulation=dict(
                name="adaln_zero", adaln_zero={}, adaln_single={}, addition={}, none={}
            ),
            attention=dict(
                name="deep_self",
                deep_self=dict(text_layers=None, initial_layers=0),
                deep_cross=dict(text_layers=None, initial_layers=0),
                shallow_self=dict(layer=-1),
                shallow_cross=dict(layer=-1),
            ),
            qk_norm=True,
            sandwich_norm=False,
            remat=False,
            unroll=1,
            dtype="float32",
        ),
    )


def objective() -> dict:
    """What is minimised."""
    return dict(
        name="flow_matching",
        next_token={},
        autoencoder=dict(l2=1.0, l1=0.1, edges=0.0, kl=1e-4),
        contrastive={},
        contrastive_latents={},  # the same, of latent_clip on the latents of vae
        flow_matching=dict(
            trajectory=dict(name="rectified_flow", rectified_flow={}),
            times=dict(name="logit_normal", logit_normal=dict(mean=0.0, std=1.0), uniform={}),
            weighting=dict(name="constant", constant={}),
            caption_dropout=0.1,  # share of prompts shown as the empty caption
            alignment=alignment(),
            anchor=0.0,  # nu: weight of |v - v of the weights the run started from|^2
            diversity=dict(name="none", none={}, cosine=cosine()),
            prediction=dict(
                name="one_step",
                one_step=dict(window=(0.0, 1.0), shared_time=True),  # window: times that count
                rollout=dict(
                    steps=6,
                    gradient_steps=2,  # the gradient passes through the last ones
                    guidance=guidance(scale=1.0),
                ),
            ),
            feature=dict(
                name="clip",
                clip={},
                latent_clip={},
                vgg=perceptual(),
                hidden=dict(time=0.1, centre=False),
                latent=dict(centre=True),
                # weights of the cosines
                mix=dict(clip=0.5, latent_clip=0.0, vgg=0.0, hidden=0.0, latent=0.5),
            ),
        ),
    )


def alignment() -> dict:
    """How pictures are held to their captions."""

    def term(**knobs: Any) -> dict:
        form = dict(
            name="cosine",
            cosine={},  # 1 - cos(caption, picture)
            contrastive=dict(temperature=0.07),  # the right one among the captions of the batch
        )
        return dict(schedule=dict(name="constant", **by_step()), form=form, **knobs)  # mu(step)

    return dict(
        name="none",
        none={},
        clip=term(),  # CLIP's text and picture vectors
        # the frozen language model's states, projected to `feature` by a running regression
        llm=term(
            layer=placeholder(int),  # 0: the embeddings, ... L: the last state; None: the middle
            ridge=0.01,  # share of the states' variance
            decay=0.99,  # share of the statistics that stays after a step
        ),
    )


def by_step() -> dict:
    """Weights of a loss term that depend on the step alone; warmup, ramp and until in steps."""
    return dict(
        constant=dict(value=0.02),
        linear=dict(end=0.02, warmup=0, ramp=0, until=placeholder(int)),
        cosine=dict(end=0.02, warmup=0, ramp=0, until=placeholder(int)),
    )


def cosine() -> dict:
    """The diversity term."""
    return dict(
        schedule=dict(  # lambda(step)
            name="linear",
            **by_step(),
            # finds the weight that holds the mean cosine at the one wanted
            controller=dict(wanted=0.8, gain=0.01, largest=0.2, warmup=0),
        ),
        measure=dict(
            name="mean",
            mean={},
            top=dict(percent=20.0),
            sampled=dict(pairs=16),
            log_determinant=dict(ridge=1e-3),
            vendi=dict(ridge=1e-3),
        ),
        bank=dict(name="none", none={}, fifo=dict(slots=8)),  # slots: kept of each prompt
        target=dict(
            name="real", real=dict(margin=0.0), fixed=dict(cosine=-1.0)
        ),  # real: what the real pictures of the same prompt have
    )


def perceptual() -> dict:
    """What of VGG is compared."""
    return dict(
        layers=("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
        pooled=False,  # average over places: shorter vectors, for a bank or large pictures
    )


def guidance(scale: float) -> dict:
    """How captions are followed while sampling."""
    return dict(
        name="classifier_free", classifier_free=dict(scale=scale, interval=(0.0, 1.0), start=True)
    )


def optimizer() -> dict:
    """How the weights move."""
    return dict(
        name="adamw",
        adamw=dict(decay=1e-4, b1=0.9, b2=0.999, eps=1e-8),
        muon=dict(decay=1e-4, momentum=0.95, b2=0.99),
        rate=1e-4,  # peak learning rate
        warmup=0,  # steps of linear growth
        shape="constant",  # afterwards: constant, linear, cosine
        floor=0.0,  # where linear and cosine end, as a share of the peak
        clip=1.0,  # largest global gradient norm; 0 is off
        accumulate=1,  # parts that a batch is worked through in
        ema=dict(decay=0.99, every=100),  # every: steps
    )


def diversity() -> dict:
    """How samples of one prompt are kept apart while sampling; nothing by default."""
    low = dict(cutoff=0.25, base=dict(name="antithetic", orthogonal={}, antithetic={}))
    return dict(
        noise=dict(
            name="independent",
            independent={},
            orthogonal={},
            antithetic={},
            repelled=dict(cosine=-0.1),  # of every pair
            low_frequency=low,  # cutoff: share of the Nyquist frequency
        ),
        # moves: of the noise, each through a rollout of so many steps; rate: in lengths of it
        descent=dict(name="none", none={}, cosine=dict(moves=8, rate=0.05, pull=0.0, rollout=4)),
        condition=dict(  # captions hidden in noise above t = tau2, clear below tau1
            name="none", none={}, cads=dict(tau1=0.6, tau2=0.9, scale=0.25, rescale=1.0)
        ),
        repulsion=dict(  # interval: of t; largest: bound on |change of v| / |v|
            name="none",
            none={},
            # weight: grows with the root of the number of latent values; 1,024 here
            particle=dict(weight=100.0, interval=(0.5, 0.99), largest=0.5),
            svgd=dict(weight=1.0, interval=(0.5, 0.99), largest=0.5),
            diverse_flow=dict(
                weight=100.0, interval=(0.5, 0.99), largest=0.5, spread=1.0, jitter=1e-3
            ),
        ),
        view=dict(  # of the two above
            name="none",
            none={},
            clip={},
            latent_clip={},
            vgg=perceptual(),
            latent=dict(centre=True),
        ),
        pruning=0.0,  # share of the candidates dropped after every step; 0: none
        selection=dict(  # which candidates are kept, by CLIP's features and scores
            name="programme",
            max_min={},
            min_sum={},
            relevance=dict(balance=0.5),
            volume=dict(quality=1.0),
            medoids=dict(iterations=10),
            programme=dict(weight=1.5, restarts=32, exact_below=20),
        ),
    )


def sample() -> dict:
    """How a run is looked at: a grid every so often, numbers at the first and the last step."""
    return dict(
        every=100,  # steps between two grids
        prompts=32,  # held-out prompts measured at the first and last step
        shown=8,  # of these, how many are rows of the grids
        num=8,  # K: samples of each
        steps=25,  # solver steps
        solver=dict(name="euler", euler={}, heun={}),
        guidance=guidance(scale=5.0),
        rows=64,  # pictures drawn at once
        **diversity(),
        batches=8,  # held-out batches, for objectives that draw nothing
    )
