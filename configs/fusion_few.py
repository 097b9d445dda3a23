"""The straightened base model straightened once more: pictures in four calls of the network.

python -m cosdiff_jax.train --config=configs/fusion_few.py --workdir=runs/fusion_few

Starts from what ``configs/fusion_reflow.py`` left in runs/fusion_reflow. About 5 minutes to draw
pairs and a quarter of an hour for 900 steps on two cores of an AMD EPYC. In 4 steps without
guidance everything a caption says is right in 48 % of pictures (2.2 % are empty), with more
variety than the base has; in 8 steps in 50 % (benchmarks/results/few_steps.json).
"""

from configs import fusion_reflow, presets


def get_config(preset: str = ""):
    """The recipe."""
    config = fusion_reflow.get_config()
    config.seed = 1  # other noise than the first time
    config.steps = 900
    config.backbone.asset.path = "runs/fusion_reflow/model"
    config.data.reflow.update(steps=8, guidance=1.0)  # guidance was learnt the first time
    config.optimizer.rate = 5e-4
    return presets.apply(config, preset)
