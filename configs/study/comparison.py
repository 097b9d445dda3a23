"""Every way to different pictures, at one price: which one is worth it?

python -m cosdiff_jax.study --config=configs/study/comparison.py --workdir=studies/comparison
python -m cosdiff_jax.evaluate --study=studies/comparison

The embedded base model and the one that ``configs/fusion_div_long.py`` makes of it, 8 pictures of
each of 256 held-out prompts in three languages, guidance 5, three seeds. Whatever the method, a
prompt costs at most 400 calls of the network and no less than 380: what chooses among more
candidates takes fewer steps, what looks ahead or asks a weaker network as well has fewer left. (A
gradient through a rollout is not counted as a call.) The base model without guidance, at half the
price, says what guidance took away.

On two CPU cores a drawing of 256 prompts should take about 8 minutes and a training 19: 111
drawings and 6 trainings are 17 hours, an estimate. ``:small`` is all of it with 64 prompts and one
seed, two hours; its numbers are not part of the whole.
"""

from typing import Any

from ml_collections import ConfigDict

NUM, GUIDANCE = 8, 5.0
CALLS = 400  # of the network, for one prompt; guidance takes two

_AT_ONCE = (
    *("independent", "orthogonal", "antithetic", "repelled", "low_frequency", "slerp"),
    *("particle", "particle_clip", "svgd", "diverse_flow", "cads", "interval", "free_start"),
)
_SELECTIONS = ("max_min", "min_sum", "relevance", "volume", "medoids", "programme")
_BEST = ("relevance", "free_start+relevance", "interval+relevance")
_TOGETHER = ("free_start", "interval", "cads", "particle")


def _draw(method: str, **own: Any) -> dict[str, Any]:
    return dict(method=method, num=NUM, **{"guidance": GUIDANCE, **own})


def _chosen(method: str) -> dict[str, Any]:
    return _draw(method, candidates=16, steps=12)


def get_config(preset: str = ""):
    """The grid."""
    draws = [
        _draw("independent", guidance=1.0),
        *map(_draw, _AT_ONCE),
        *map(_chosen, _SELECTIONS),
        *(_chosen(f"{name}+relevance") for name in _TOGETHER),
        # 4 moves, each after a rollout of 4.
        _draw("descent", steps=9, sample=("descent.cosine.moves=4",)),
        # A third network beside the two of guidance.
        *(_draw(name, steps=16) for name in ("skip_layer", "perturbed_attention")),
        _draw("pruning", candidates=32, steps=21),
        _draw("late_pruning", candidates=16, steps=16),
    ]
    # The last joined when the first 32 points of :small were there.
    best = [_draw("independent"), *map(_chosen, _BEST)]
    off = "objective.flow_matching.diversity.name=none"
    config = ConfigDict(
        dict(
            recipe="configs/fusion_div_long.py",
            trainings=[
                dict(name="base", labels={}, flags=(), model="fusion_base", draws=draws),
                dict(name="trained", labels={}, flags=()),
                dict(name="aligned", labels={}, flags=(off,)),
            ],
            draws=best,
            seeds=(0, 1, 2),
            prompts=256,
            steps=25,  # where a drawing does not say
        )
    )
    if preset == "small":
        config.update(prompts=64, seeds=(0,))
    elif preset:
        raise ValueError(f"configs/study/comparison.py has no preset {preset!r}; there is small")
    return config
