"""Different pictures of one prompt: every way to keep them apart, by name, behind one function.

A method changes a part of the menu's ``sample``: where samples start, what happens on the way, or
which of more candidates are kept. Methods of different parts act together.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from cosdiff_jax import build, trained
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.diversity import measure, similarity
from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.pruning import Pruning, sizes
from cosdiff_jax.report import grid

_PARTICLE = {"name": "particle", "particle": {"weight": 100.0}}
# What each method changes in the menu's ``sample``.
METHODS: dict[str, Mapping[str, Any]] = {
    "independent": {},
    # where samples start
    "orthogonal": {"noise": {"name": "orthogonal"}},
    "antithetic": {"noise": {"name": "antithetic"}},
    "repelled": {"noise": {"name": "repelled", "repelled": {"cosine": -0.1}}},
    "low_frequency": {"noise": {"name": "low_frequency"}},
    "descent": {"descent": {"name": "cosine"}, "view": {"name": "clip"}},
    # on the way
    "particle": {"repulsion": _PARTICLE},
    "particle_clip": {"repulsion": _PARTICLE, "view": {"name": "clip"}},
    "svgd": {"repulsion": {"name": "svgd"}},
    "diverse_flow": {"repulsion": {"name": "diverse_flow", "diverse_flow": {"weight": 100.0}}},
    "cads": {"condition": {"name": "cads"}},
    "interval": {"guidance": {"classifier_free": {"interval": (0.1, 0.8)}}},
    "free_start": {"guidance": {"classifier_free": {"start": False}}},
    # which of the candidates are kept
    **{name: {"selection": {"name": name}} for name in build.SELECTIONS},
    "pruning": {"pruning": 0.5},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures of P prompts, k of each, and what can be said of them.

    Attributes:
      images: the pictures kept.
      kept: their numbers among the candidates.
      score: cosine of each picture with its prompt, by CLIP; None where there is no CLIP.
      table: of each prompt, the group's ``mean_cosine``, ``top_cosine`` and ``vendi`` score and
        its mean ``clip_score``; empty where there is no CLIP.
      evaluations: model evaluations a prompt, in candidates times steps.
    """

    images: UInt8[np.ndarray, "P k X Y C"]
    kept: Int[np.ndarray, "P k"]
    score: Float[np.ndarray, "P k"] | None
    table: list[dict[str, float]]
    evaluations: int


def overlay(method: str) -> dict[str, Any]:
    """The changes to the menu's ``sample`` of methods joined by +.

    Raises:
      ValueError: an unknown name, or two names that change the same field.
    """
    changes: dict[str, Any] = {}
    for name in method.split("+"):
        if name not in METHODS:
            raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
        for field, value in METHODS[name].items():
            if changes.get(field, value) != value:
                raise ValueError(f"--method={method}: two of these set the {field}")
            changes[field] = value
    return changes


def diverse_samples(
    model: trained.Trained,
    prompts: Sequence[str],
    *,
    num: int = 4,
    method: str = "independent",
    candidates: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> Samples:
    """k pictures of each prompt, kept different by a method.

    Args:
      model: with the role "clip" loaded where there is a CLIP: selection and the numbers need it.
      prompts: P prompts.
      num: k.
      method: names from ``METHODS``, joined by +.
      candidates: M, drawn to choose k from; 4 k where a selection is named and None given.
      steps: solver steps; None as the recipe says.
      guidance: scale of classifier-free guidance; None as the recipe says.
      seed: of the noise.

    Raises:
      ValueError: an unknown method, fewer candidates than pictures, or no CLIP to choose by.
    """
    changes = overlay(method)
    share = changes.pop("pruning", None)
    chooses = share is not None or "selection" in changes or (candidates or num) > num
    total = candidates or (4 * num if chooses else num)
    if total < num:
        raise ValueError(f"--candidates={total} are fewer than the --num={num} to keep")
    config = model.as_asked(steps, guidance, changes)
    clip = build.model("clip", config.clip) if "clip" in model.frozen else None
    # Grey digits and pictures of other sizes are not what the CLIP at hand has learnt to see.
    sees = clip is not None and model.shape == (clip.size, clip.size, 3)
    looks = chooses or changes.get("view", {}).get("name") == "clip"
    if looks and not sees:
        raise ValueError(f"{model.name} has no CLIP for its pictures, which {method} looks through")
    sampler = build.sampler(config, model.shape)
    view = ClipFeature(clip=clip) if clip is not None and sees else None
    tokens, mask, seeds = model.read(prompts)
    key = jax.random.key(seed)
    if share is None or view is None:
        drawn = sampler(model.params, model.frozen, tokens, mask, key, num=total, seeds=seeds)
        kept = np.tile(np.arange(num), (len(prompts), 1))
        evaluations = total * sampler.steps
    else:
        pruning = Pruning(
            sampler=sampler,
            view=dataclasses.replace(view, vae=sampler.vae),
            share=share,
            selection=_selection(config),
        )
        drawn, kept = pruning(
            model.params, model.frozen, tokens, mask, key, candidates=total, num=num, seeds=seeds
        )
        evaluations = sum(sizes(total, num, sampler.steps, share)[:-1])
    images = grid.to_bytes(drawn)
    if view is None:
        return Samples(images=images, kept=kept, score=None, table=[], evaluations=evaluations)
    f, score = _seen(view, model.frozen, images, tokens, mask)
    if chooses and share is None:
        choose = jax.jit(lambda f, s: jax.vmap(lambda f, s: _selection(config)(f, s, num))(f, s))
        kept = np.sort(np.asarray(choose(f, score)), axis=1)
        images, f, score = (
            np.take_along_axis(x, kept.reshape(*kept.shape, *[1] * (x.ndim - 2)), axis=1)
            for x in (images, f, score)
        )
    table = [_measures(group, s) for group, s in zip(f, score, strict=True)]
    return Samples(images=images, kept=kept, score=score, table=table, evaluations=evaluations)


def _selection(config: Any) -> Any:
    return build.make(build.SELECTIONS, config.sample.get("selection", {"name": "programme"}))


def _seen(
    view: ClipFeature, frozen: Any, images: np.ndarray, tokens: np.ndarray, mask: np.ndarray
) -> tuple[Float[np.ndarray, "P M F"], Float[np.ndarray, "P M"]]:
    """CLIP's vectors of the pictures, and their cosines with their prompts."""
    look, said = jax.jit(view), jax.jit(view.text)(frozen, tokens, mask)
    f = np.stack([np.asarray(look(frozen, to_float(group))) for group in images])
    return f, np.einsum("pmf,pf->pm", f, np.asarray(said))


def _measures(f: Float[np.ndarray, "k F"], score: Float[np.ndarray, " k"]) -> dict[str, float]:
    table = {"clip_score": float(score.mean())}
    if len(f) > 1:
        group = jnp.asarray(f)
        table["mean_cosine"] = float(similarity.mean_cosine(group))
        table["top_cosine"] = float(similarity.top_cosine(group, 20.0))
        table["vendi"] = float(jnp.exp(measure.spectral_entropy(group[None])[0]))
    return table
