"""The base model straightened by reflow: trained on what it draws with guidance from its own noise.

python -m cosdiff_jax.train --config=configs/fusion_reflow.py --workdir=runs/fusion_reflow

Alone on two cores of an AMD EPYC about 14 minutes to draw 10,240 pairs and half an hour for 1,600
steps, by its rates; the run that was kept had tests beside it. Drawn in 4 steps without guidance
everything a caption says is right in 46 % of pictures, where the base has 36 % in 4 steps at
guidance 5 and 62 % in 25 (64 prompts of 8, seed 0; benchmarks/results/few_steps.json).
``configs/fusion_few.py`` does it once more.
"""

from configs import base, presets


def get_config(preset: str = ""):
    """The recipe."""
    config = base.menu()
    config.steps = 1600
    config.log_every = 20
    config.data.prompts = 64
    config.data.samples = 1
    config.data.context = 32
    config.data.scenes.update(folder="datasets/scenes_reflow", train=10_240, stored=4, focus=0.6)
    config.data.reflow.update(steps=12, guidance=5.0)
    config.backbone.name = "asset"
    flow = config.objective.flow_matching
    flow.caption_dropout = 0.0  # guidance is in what was drawn
    # The first step decides what the picture will be, and the few times of a drawing are high.
    flow.times.logit_normal.update(mean=2.0, std=2.0)
    config.optimizer.name = "muon"
    config.optimizer.rate = 1e-3
    config.optimizer.warmup = 50
    config.optimizer.shape = "linear"
    config.optimizer.floor = 0.02
    config.optimizer.ema.update(decay=0.99, every=1)
    config.checkpoint.every = 200
    config.matmul_precision = "bfloat16"
    config.export = "float16"
    config.sample.update(every=500, prompts=64, num=4, steps=4, rows=128)
    config.sample.guidance.classifier_free.scale = 1.0
    return presets.apply(config, preset)
