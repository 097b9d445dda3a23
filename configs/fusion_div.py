"""The main job: fine-tune the embedded base model so that samples of one prompt differ.

python -m cosdiff_jax.train --config=configs/fusion_div.py --workdir=runs/fusion_div

60 steps, 10 min on two cores of an AMD EPYC from command to report; the numbers are in
benchmarks/results/fusion_div.json.
"""

from configs import base, presets


def get_config(preset: str = ""):
    """The recipe."""
    config = base.menu()
    config.steps = 60
    config.data.prompts = 4
    config.data.samples = 8
    config.backbone.name = "asset"
    flow = config.objective.flow_matching
    flow.times.logit_normal.update(mean=1.0, std=1.2)  # those the base was trained at
    flow.alignment.name = "clip"
    flow.alignment.clip.schedule.constant.value = 0.1
    flow.anchor = 0.5
    flow.diversity.name = "cosine"
    # Backgrounds that a caption leaves open hardly move CLIP's cosine; they do move that of the
    # latents, as long as each channel keeps its mean.
    flow.feature.name = "mix"
    flow.feature.mix.update(clip=0.5, latent=0.5)
    flow.feature.latent.centre = False
    # The proposal begins at 0.01 to 0.05, for long runs. In 60 steps this brings the cosine to the
    # real pictures' own; 1.0 in 80 steps went beyond (benchmarks/results/fusion_div.json, earlier).
    flow.diversity.cosine.schedule.linear.update(end=0.4, warmup=10, ramp=15)
    flow.prediction.name = "rollout"
    flow.prediction.rollout.guidance.classifier_free.scale = 5.0
    config.optimizer.rate = 5e-4
    config.optimizer.warmup = 10
    config.optimizer.ema.update(decay=0.95, every=1)
    config.checkpoint.every = 30
    config.sample.every = 30
    return presets.apply(config, preset)
