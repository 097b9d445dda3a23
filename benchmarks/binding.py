"""Which colour belongs to which shape: where a model loses it.

    python benchmarks/binding.py [--model=fusion_base] [--prompts=192] [--guidance=5]

Held-out captions of two things that differ in colour and in shape, everything said, in three
languages by turns. Prints one JSON object:

    outcomes      what the pictures show, in shares: both things ``right``; the colours right but
                  ``one_shape`` for both; the shapes ``swapped``; not two objects (``count``);
                  anything else (``other``). From noise, and from true pictures noised up to t: at
                  t = 0.8 one still sees where things are and of which colour, not of which shape
    misled        by language, the flow loss on true pictures, by t, under their own caption
                  (``right``) and under one with the two ``colours`` or the two ``places``
                  exchanged: a model that does not bind is as content with either
    text          share of the attention that goes to the caption at t = 0.8, [layer][head], of
                  models with deep self-attention

What the language model itself tells apart is ``reading.py``'s to say.
"""

import argparse
import dataclasses
import datetime
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax import build, trained
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.data.scenes import grammar, oracle, renderer
from cosdiff_jax.models import fusion
from cosdiff_jax.report import facts, grid
from cosdiff_jax.sampler import Sampler
from cosdiff_jax.shapes import TextStream

STEPS = 20
ROWS = 64


def two_things(number: int, rng: np.random.Generator) -> list[grammar.Spec]:
    """Held-out specs of two things with said shapes and colours, both different."""
    found = []
    while len(found) < number:
        spec = grammar.sample_spec(rng, "test")
        if spec.distinct:
            found.append(spec)
    return found


def outcome(image: np.ndarray, spec: grammar.Spec) -> str:
    """What became of the two things."""
    asked = {group.colour: group.shape for group in spec.groups}
    seen = [(item.colour, item.shape) for item in oracle.read(image).objects]
    if len(seen) != 2:
        return "count"
    shapes = {shape for _, shape in seen}
    if {colour for colour, _ in seen} != set(asked):
        return "other"
    if dict(seen) == asked:
        return "right"
    if len(shapes) == 1:
        return "one_shape"
    return "swapped" if shapes == set(asked.values()) else "other"


def outcomes(
    model: trained.Trained, sampler: Sampler, specs: Sequence[grammar.Spec]
) -> dict[str, dict[str, float]]:
    """Shares of each outcome, by the time that true pictures are noised up to; 1 is noise."""
    rng = np.random.default_rng(1)
    z, tokens, mask = _latents(model, sampler, specs, rng)
    eps = rng.standard_normal(z.shape).astype(np.float32)

    @jax.jit
    def finish(params, frozen, z, eps, text, empty, keys, start):
        velocity = sampler.velocity(params, frozen, text, empty, keys)
        width = start / STEPS

        def step(z, i):
            t = jnp.full(z.shape[:1], start - i * width)
            return z - width * velocity(z, t), None

        z, _ = jax.lax.scan(step, (1 - start) * z + start * eps, jnp.arange(STEPS))
        return sampler.pictures(frozen, z)

    found = {}
    for start in (1.0, 0.9, 0.8, 0.7):
        counted = Counter()
        for first in range(0, len(specs), ROWS):
            part = slice(first, first + ROWS)
            keys = jax.random.split(jax.random.key(first), len(z[part]))
            read = sampler.read(model.frozen, tokens[part], mask[part])
            drawn = finish(model.params, model.frozen, z[part], eps[part], *read, keys, start)
            images = grid.to_bytes(np.asarray(drawn)[:, None])[:, 0]
            counted.update(map(outcome, images, specs[part]))
        found[str(start)] = {
            name: round(count / len(specs), 3) for name, count in counted.most_common()
        }
    return found


def text_share(
    model: trained.Trained, sampler: Sampler, specs: Sequence[grammar.Spec]
) -> list[list[float]]:
    """The caption's share of each head's attention, mean over image tokens, at t = 0.8."""
    rng = np.random.default_rng(2)
    z, tokens, mask = _latents(model, sampler, specs, rng)
    z_t = 0.2 * z + 0.8 * rng.standard_normal(z.shape).astype(np.float32)
    text, _ = sampler.read(model.frozen, tokens, mask)

    def hand_out(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, fusion.ImageHeads) and context.method_name == "__call__":
            # The scan over depth hands out nothing but parameters.
            context.module.put_variable("params", "queries", result[0])
            context.module.put_variable("params", "keys", result[1])
        return result

    @jax.jit
    def shares(params, z_t, text: TextStream):
        with nn.intercept_methods(hand_out):
            _, left = sampler.backbone.apply(
                {"params": params}, z_t, jnp.full(len(z_t), 0.8), text, mutable=["params"]
            )
        heads: Any = left["params"]["blocks"]["attention"]["image"]  # pyright: ignore
        q, own = heads["queries"] * heads["queries"].shape[-1] ** -0.5, heads["keys"]
        own = jnp.einsum("lbnhe,lbmhe->lbhnm", q, own)
        said = jnp.einsum("lbnhe,lbthe->lbhnt", q, text.keys[: len(q)])
        said = jnp.where(text.mask[None, :, None, None], said, -jnp.inf)
        weights = jax.nn.softmax(jnp.concatenate([said, own], axis=-1), axis=-1)
        return weights[..., : said.shape[-1]].sum(axis=-1).mean(axis=(1, 3))

    found = np.asarray(shares(model.params, z_t, text), np.float64)
    return np.round(found, 3).tolist()


def misled(
    model: trained.Trained, sampler: Sampler, specs: Sequence[grammar.Spec]
) -> dict[str, dict[str, dict[str, float]]]:
    """The flow loss by language, caption and time, same noise; specs of things in a relation."""
    z, _, _ = _latents(model, sampler, specs, np.random.default_rng(4))
    eps = np.random.default_rng(5).standard_normal(z.shape).astype(np.float32)
    texts = {}
    for name, change in (("right", None), ("colours", _other_colours), ("places", _other_places)):
        rng = np.random.default_rng(6)  # the same wording for all
        meant = [change(spec) if change else spec for spec in specs]
        texts[name] = model.read([_caption(spec, i, rng) for i, spec in enumerate(meant)])[:2]

    @jax.jit
    def loss(params, z, eps, t, text):
        z_t = (1 - t) * z + t * eps
        v: Any = sampler.backbone.apply({"params": params}, z_t, jnp.full(len(z), t), text)
        return jnp.mean((v - (eps - z)) ** 2, axis=(1, 2, 3))

    found: dict[str, dict[str, dict[str, float]]] = {said: {} for said in grammar.LANGUAGES}
    for name, (tokens, mask) in texts.items():
        rows = {t: [] for t in (0.95, 0.9, 0.8, 0.7, 0.5)}
        for first in range(0, len(specs), ROWS):
            part = slice(first, first + ROWS)
            text, _ = sampler.read(model.frozen, tokens[part], mask[part])
            for t, values in rows.items():
                values.append(np.asarray(loss(model.params, z[part], eps[part], t, text)))
        for i, language in enumerate(grammar.LANGUAGES):  # by turns, as _caption has it
            found[language][name] = {
                str(t): round(float(np.concatenate(values)[i :: len(grammar.LANGUAGES)].mean()), 4)
                for t, values in rows.items()
            }
    return found


def _other_colours(spec: grammar.Spec) -> grammar.Spec:
    first, second = spec.groups
    groups = (
        dataclasses.replace(first, colour=second.colour),
        dataclasses.replace(second, colour=first.colour),
    )
    return dataclasses.replace(spec, groups=groups)


def _other_places(spec: grammar.Spec) -> grammar.Spec:
    return dataclasses.replace(spec, relation=grammar.OPPOSITE[str(spec.relation)])


def _latents(
    model: trained.Trained,
    sampler: Sampler,
    specs: Sequence[grammar.Spec],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents of one true picture of each spec, and the tokens and mask of its caption."""
    said = [_caption(spec, i, rng) for i, spec in enumerate(specs)]
    images = np.stack([renderer.render(grammar.sample_scene(spec, rng)) for spec in specs])
    tokens, mask, _ = model.read(said)
    vae: Any = sampler.vae
    encode = jax.jit(lambda params, x: vae.apply({"params": params}, x, method="to_latents"))
    return np.asarray(encode(model.frozen["vae"], to_float(images))), tokens, mask


def _caption(spec: grammar.Spec, number: int, rng: np.random.Generator) -> str:
    return grammar.caption(spec, grammar.LANGUAGES[number % len(grammar.LANGUAGES)], rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fusion_base")
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--guidance", type=float, default=5.0)
    args = parser.parse_args()
    model = trained.load(args.model)
    config = model.as_asked(STEPS, args.guidance, None)
    sampler = build.sampler(config, model.shape)
    rng = np.random.default_rng(0)
    specs = two_things(args.prompts, rng)
    related = [spec for spec in two_things(2 * args.prompts, rng) if spec.relation][: args.prompts]
    found = {
        "model": args.model,
        "prompts": args.prompts,
        "guidance": args.guidance,
        "date": datetime.date.today().isoformat(),
        **facts.machine(),
        "versions": facts.versions(),
        "outcomes": outcomes(model, sampler, specs),
        "misled": misled(model, sampler, related),
    }
    if isinstance(sampler.backbone.attention, fusion.SelfAttention):
        found["text"] = text_share(model, sampler, specs[:ROWS])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
