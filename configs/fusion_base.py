"""The base model: deep fusion trained by rectified flow on Scenes, no diversity term.

python -m cosdiff_jax.train --config=configs/fusion_base.py --workdir=runs/fusion_base
"""

from configs import base, presets


def get_config(preset: str = ""):
    """The recipe."""
    config = base.menu()
    config.steps = 6000
    config.log_every = 20
    config.data.prompts = 32
    config.data.samples = 2
    config.data.encoded = True
    config.data.scenes.folder = "datasets/scenes_base"
    config.data.scenes.train = 12_000
    # One latent a token: with patches of two, colours come as fast and shapes much later.
    config.backbone.fuse_dit.update(width=192, mlp=576, patch=1)
    # What the text decides is decided early, in strong noise: a flat background shows through
    # almost any. The usual logit-normal(0, 1) has 1.4 % of its mass above t = 0.9, this one 10 %.
    config.objective.flow_matching.times.logit_normal.update(mean=0.5, std=1.3)
    config.optimizer.name = "muon"
    config.optimizer.rate = 2e-3
    config.optimizer.warmup = 100
    config.optimizer.shape = "linear"
    config.optimizer.floor = 0.02
    config.optimizer.ema.decay = 0.998
    config.optimizer.ema.every = 1
    config.checkpoint.every = 500
    config.sample.every = 500
    config.sample.prompts = 64
    config.sample.num = 4
    config.sample.guidance.classifier_free.scale = 3.0
    config.export = "float16"
    return presets.apply(config, preset)
