"""What a feature costs in the diversity term, and whether it sees what CLIP sees.

    python benchmarks/features.py [--prompts=128] [--samples=8] [--repeats=9] [--pairs=256]

For each feature of the main job, with the embedded networks:

    milliseconds  of the mean cosine of 8 prompts x ``--samples`` latents, value and gradient:
                  medians of runs that take turns
    like_clip     Pearson correlation with CLIP of the mean cosine of a prompt's true pictures, over
                  held-out prompts; and of the cosine of each pair within a prompt, freed from the
                  prompt's mean
    sees          how far the cosine of two pictures falls where they differ in one attribute
                  alone, against two of which a caption could say the same: ``--pairs`` each, of
                  one thing (the relation: of two), places drawn anew

Prints one JSON object.
"""

import argparse
import dataclasses
import datetime
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax import build, modules, trained
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.data.scenes import grammar, prior, renderer
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.diversity import similarity
from cosdiff_jax.report import facts

# As a report calls it -> its name in the menu and its knobs.
FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("clip", {}),
    "latent_clip": ("latent_clip", {}),
    "hidden": ("hidden", {}),
    "latent": ("latent", {}),
    "latent, not centred": ("latent", {"centre": False}),
}
TIMED = 8  # prompts
ATTRIBUTES = ("shape", "colour", "size", "background", "relation")


def views(model: trained.Trained, samples: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Features of the embedded model's diversity term by name, and the weights that they read."""
    config, made, frozen = model.config, {}, {}
    config.data.samples = samples
    config.latent_clip.update(name="asset", asset={"path": "scenes_clip_latents"})
    config.objective.flow_matching.diversity.name = "cosine"
    for name, (feature, knobs) in FEATURES.items():
        config.objective.flow_matching.feature.name = feature
        config.objective.flow_matching.feature[feature].update(knobs)
        objective, needs = build.objective(config)
        made[name] = objective.feature
        frozen |= modules.frozen(config, tuple(key for key in needs if key not in frozen))
    return made, jax.device_put(frozen)


def timed(programs: dict[str, Any], repeats: int) -> dict[str, float]:
    """Median milliseconds of programs that take turns; the first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(repeats + 1):
        for name, run in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if round_:
                found[name].append(1e3 * (time.perf_counter() - began))
    return {name: round(statistics.median(times), 2) for name, times in found.items()}


def pair(attribute: str, differs: bool, rng: np.random.Generator) -> tuple[str, list[np.ndarray]]:
    """Two pictures alike in all that a caption could say, or in all but an attribute of one thing.

    Returns:
      The caption that says everything of the first, and the two.
    """
    groups = (prior.Group(),) * (2 if attribute == "relation" else 1)
    while True:
        spec = prior.describe(prior.sample_scene(prior.Spec(groups), rng))
        if len(spec.groups) == len(groups):  # two that look the same have no first
            break
    free = spec
    if differs and attribute in ("background", "relation"):
        free = dataclasses.replace(spec, **{attribute: None})
    elif differs:
        free = dataclasses.replace(
            spec, groups=(dataclasses.replace(spec.groups[0], **{attribute: None}),)
        )
    other = prior.sample_scene(free, rng)
    while differs and prior.describe(other) == spec:
        other = prior.sample_scene(free, rng)
    scenes = (prior.sample_scene(spec, rng), other)
    return grammar.caption(spec), [renderer.render(scene) for scene in scenes]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--pairs", type=int, default=256)
    args = parser.parse_args()

    model = trained.load("fusion_base")
    features, frozen = views(model, args.samples)
    vae = modules.model("vae", model.config.vae)
    encode = jax.jit(lambda p, x: vae.apply({"params": p}, x, method="to_latents"))
    true = held_out(args.prompts, args.samples, seed=0)
    items = [true[index] for index in range(args.prompts)]
    tokens, mask, _ = model.read([item["caption"] for item in items])
    read = build.sampler(model.as_asked(None, None, None), (64, 64, 3)).read
    cosines: dict[str, list[np.ndarray]] = {name: [] for name in features}

    def matrix(name: str, samples: int):
        def cosine(frozen, z, text):
            f = features[name](frozen, z, text)
            return similarity.cosine_matrix(f.reshape(-1, samples, f.shape[-1]))

        return jax.jit(cosine)

    matrices = {name: matrix(name, args.samples) for name in features}
    above = np.triu_indices(args.samples, 1)
    for first in range(0, args.prompts, TIMED):
        part = slice(first, first + TIMED)
        images = to_float(np.concatenate([item["images"] for item in items[part]]))
        z, (text, _) = encode(frozen["vae"], images), read(frozen, tokens[part], mask[part])
        for name, look in matrices.items():
            cosines[name] += [m[above] for m in np.asarray(look(frozen, z, text))]

    def cosine_of_pairs(attribute: str, differs: bool) -> dict[str, float]:
        rng = np.random.default_rng(0)
        captions, images = zip(
            *(pair(attribute, differs, rng) for _ in range(args.pairs)), strict=True
        )
        tokens, mask, _ = model.read(list(captions))
        found: dict[str, list[float]] = {name: [] for name in features}
        for first in range(0, args.pairs, TIMED):
            part = slice(first, first + TIMED)
            z = encode(frozen["vae"], to_float(np.concatenate(images[part])))
            text, _ = read(frozen, tokens[part], mask[part])
            for name, look in of_two.items():
                found[name] += np.asarray(look(frozen, z, text))[:, 0, 1].tolist()
        return {name: statistics.fmean(values) for name, values in found.items()}

    of_two = {name: matrix(name, 2) for name in features}
    sees: dict[str, dict[str, float]] = {name: {} for name in features}
    for attribute in ATTRIBUTES:
        alike, unlike = (cosine_of_pairs(attribute, differs) for differs in (False, True))
        for name, values in sees.items():
            values[attribute] = round(alike[name] - unlike[name], 3)

    def step(name: str):
        def alike(z, frozen, text):
            f = features[name](frozen, z, text)
            return jnp.mean(similarity.mean_cosine(f.reshape(-1, args.samples, f.shape[-1])))

        program = jax.jit(jax.value_and_grad(alike))
        return lambda: program(z, frozen, text)

    milliseconds = timed({name: step(name) for name in features}, args.repeats)
    of = {name: np.stack(values) for name, values in cosines.items()}
    rows = {}
    for name, values in of.items():
        inside = [x - x.mean(axis=1, keepdims=True) for x in (values, of["clip"])]
        rows[name] = {
            "milliseconds": milliseconds[name],
            "like_clip_prompts": round(_pearson(values.mean(axis=1), of["clip"].mean(axis=1)), 3),
            "like_clip_pairs": round(_pearson(*inside), 3),
            "mean_cosine": round(float(values.mean()), 3),
            "sees": sees[name],
        }
    record = {
        "features": rows,
        "prompts": args.prompts,
        "samples": args.samples,
        "rows_timed": TIMED * args.samples,
        "pairs": args.pairs,
        "date": datetime.date.today().isoformat(),
        "machine": facts.machine(),
        "versions": facts.versions(),
    }
    print(json.dumps(record, indent=1))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


if __name__ == "__main__":
    main()
