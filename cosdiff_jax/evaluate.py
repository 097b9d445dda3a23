"""Measure a model on held-out Scenes (or digits), beside the true distribution.

    python -m cosdiff_jax.evaluate --metric=scenes --model=fusion_base --prompts=512 --num=4
    python -m cosdiff_jax.evaluate --metric=scenes --workdir=runs/fusion_div --guidance=3
    python -m cosdiff_jax.evaluate --metric=clip|vae|llm
    python -m cosdiff_jax.evaluate --metric=consistency --model=fusion_base --prompts=512

prints a table and writes it as JSON. The prompts and the true pictures are made on the spot from
``--seed``; none of their meanings occurs in training. The others measure the frozen networks:
retrieval among pairs with distinct captions, PSNR, perplexity, and how well each layer of the
language model foretells CLIP's view of a caption's real pictures.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cosdiff_jax import build, diverse, job, trained, weights
from cosdiff_jax.data import tokenizer as tokenizers
from cosdiff_jax.data.digits import DigitGroups
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.data.scenes import grammar, renderer
from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.metrics import consistency as consistency_lib
from cosdiff_jax.metrics import psnr, retrieval
from cosdiff_jax.models import captions as captions_lib
from cosdiff_jax.objectives.next_token import NextToken
from cosdiff_jax.report import grid
from cosdiff_jax.shapes import Batch

FLAGS = flags.FLAGS
ASSETS = {"clip": "scenes_clip", "vae": "scenes_vae", "llm": "scenes_llm"}


Table = dict[str, float]


def pictures(
    source: str,
    metric: str,
    *,
    prompts: int,
    num: int,
    steps: int,
    guidance: float | None,
    seed: int,
    method: str = "independent",
    candidates: int | None = None,
    sheet: Path | None = None,
) -> tuple[Table, Table]:
    """Measures of a text-to-image model's pictures, and of as many true ones.

    Args:
      source: a working directory, a folder with weights, or an embedded model's name.
      metric: "scenes" or "digits": what kind of prompts.
      prompts: P.
      num: K.
      steps: of the solver.
      guidance: scale of classifier-free guidance; None as the recipe says.
      seed: of prompts, true pictures and noise.
      method: how the pictures of a prompt are kept different (``diverse.METHODS``).
      candidates: how many are drawn to choose from.
      sheet: PNG file for the pictures of the first prompts.

    Raises:
      ValueError: something the user can put right, in one line.
    """
    diverse.overlay(method)
    model = trained.load(source, ("llm", "vae", "clip"))
    config = model.config
    if config.data.name != metric:
        raise ValueError(f"{source} was trained on {config.data.name}, not on {metric}")
    config.sample.update(prompts=prompts, num=num, shown=min(prompts, 8))
    if metric == "scenes":
        items = held_out(prompts, num, seed)
    else:
        items = DigitGroups(split="test", samples=num, number=prompts, seed=seed)
    judge = job.drawn(config, items, model.tokenizer, model.frozen)
    samples = diverse.diverse_samples(
        model,
        judge.prompts,
        num=num,
        method=method,
        candidates=candidates,
        steps=steps,
        guidance=guidance,
        seed=seed,
    )
    if sheet is not None:
        grid.write_png(sheet, samples.images[: judge.shown], judge.captions)
    return judge.measured(samples.images), judge.truth


def consistency(source: str, *, prompts: int, num: int, seed: int) -> tuple[Table, Table]:
    """What each layer of a model's language model knows of the pictures, beside chance.

    Args:
      source: as for ``pictures``.
      prompts: P; a regression is fitted on half of them.
      num: K real pictures of each, whose mean vector stands for the prompt.
      seed: of prompts and pictures.

    Returns:
      Mean cosine of projected caption and picture by layer: own pairs, and shuffled ones.

    Raises:
      ValueError: something the user can put right, in one line.
    """
    model = trained.load(source, ("llm", "clip"))
    if model.config.data.name != "scenes":
        raise ValueError(f"{source} was trained on {model.config.data.name}, not on scenes")
    if "clip" not in model.frozen:
        raise ValueError(f"{source} has no CLIP to look at pictures with")
    items = held_out(prompts, num, seed)
    tokens, mask, _ = model.read([item["caption"] for item in items])
    language_model = build.model("language_model", model.config.language_model)
    view = ClipFeature(clip=build.model("clip", model.config.clip))

    @jax.jit
    def look(frozen, images, tokens, mask):
        text = language_model.apply({"params": frozen["llm"]}, tokens, mask, layers=True)
        states = [captions_lib.pooled(text, layer) for layer in range(len(text.layers))]
        return jnp.stack(states), view(frozen, images)

    state = consistency_lib.init()
    for rows in _chunks(prompts, 64):
        images = to_float(np.concatenate([item["images"] for item in items[rows]]))
        hidden, image = look(model.frozen, images, tokens[rows], mask[rows])
        state = consistency_lib.update(state, hidden, image.reshape(-1, num, image.shape[-1]))
    return consistency_lib.result(state)


def clip(source: str, *, prompts: int, seed: int) -> Table:
    """Retrieval among held-out pairs, each picture said in full, no caption twice."""
    network, params, words = _network("clip", source)
    items = held_out(prompts, 1, seed, described=True)
    tokens, mask = words.encode([item["caption"] for item in items], network.context)
    images = to_float(np.concatenate([item["images"] for item in items]))

    @jax.jit
    def look(params, images, tokens, mask):
        image, text, _ = network.apply({"params": params}, images, tokens, mask)
        return image, text

    state = retrieval.init()
    for rows in _chunks(prompts, 64):
        image, text = look(params, images[rows], tokens[rows], mask[rows])
        state = retrieval.update(state, image, text)
    return retrieval.result(state)


def vae(source: str, *, prompts: int, seed: int) -> Table:
    """PSNR of held-out pictures that were encoded and decoded."""
    network, params, _ = _network("vae", source)
    images = to_float(np.concatenate([i["images"] for i in held_out(prompts, 1, seed)]))
    restore = jax.jit(lambda params, x: network.apply({"params": params}, x)[0])
    state = psnr.init()
    for rows in _chunks(prompts, 64):
        state = psnr.update(state, images[rows], np.asarray(restore(params, images[rows])))
    return psnr.result(state)


def llm(source: str, *, prompts: int, seed: int) -> Table:
    """Loss in nats a token, accuracy and perplexity on held-out captions."""
    network, params, words = _network("language_model", source)
    captions = [item["caption"] for item in held_out(prompts, 0, seed)]
    length = 1 + max(words.count(caption) for caption in captions)
    tokens, mask = words.encode(captions, length, eos=True)
    batch = Batch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))
    look = jax.jit(NextToken(llm=network))
    _, (logs, _) = look(params, {}, batch, jax.random.key(0), jnp.int32(0), {})
    return {name: float(value) for name, value in logs.items()}


def held_out(number: int, samples: int, seed: int, described: bool = False) -> Any:
    """Held-out Scenes prompts, distinct in meaning: a list of groups with "spec" beside the rest.

    Args:
      number: how many prompts.
      samples: pictures of each.
      seed: of everything.
      described: captions that say everything about their one picture, for retrieval.
    """
    # Another stream than the one data sets are built from: theirs begins with the seed.
    rng = np.random.default_rng([0xE7A1, seed])
    seen, items = set(), []
    while len(items) < number:
        spec = grammar.sample_spec(rng, "test")
        scenes = [grammar.sample_scene(spec, rng) for _ in range(samples)]
        if described:
            spec = grammar.describe(scenes[0])
        if spec in seen or grammar.split_of(spec) != "test":
            continue
        seen.add(spec)
        language = grammar.LANGUAGES[len(items) % len(grammar.LANGUAGES)]
        items.append(
            {
                "caption": grammar.caption(spec, language, rng),
                "images": np.array([renderer.render(scene) for scene in scenes]),
                "spec": grammar.spec_to_json(spec),
            }
        )
    return items


def table(found: Table, true: Table | None, names: tuple[str, str] = ("model", "true")) -> str:
    """The measures in columns with these names."""
    width = max(len(name) for name in found)
    head = f"{'':{width}}  {names[0]:>8}" + (f"  {names[1]:>8}" if true is not None else "")
    lines = [head]
    for name, value in found.items():
        line = f"{name:{width}}  {value:8.4f}"
        if true is not None:
            line += f"  {true[name]:8.4f}" if name in true else f"  {'-':>8}"
        lines.append(line)
    return "\n".join(lines)


def _network(role: str, source: str) -> tuple[Any, Any, tokenizers.Tokenizer]:
    entry = {"name": "asset", "asset": {"path": source}}
    network, params = build.model(role, entry), jax.device_put(build.parameters(entry))
    folder = weights.folder(source)
    if not (folder / "tokenizer.json").is_file():
        folder = weights.folder(ASSETS["llm"])
    return network, params, tokenizers.load(folder / "tokenizer.json")


def _chunks(number: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, number, size)]


def define() -> None:
    """Define the flags; not at import, for several entry points share names."""
    metrics = ["scenes", "digits", "consistency", *ASSETS]
    flags.DEFINE_enum("metric", "scenes", metrics, "What to measure")
    flags.DEFINE_string("workdir", None, "A run's folder, or one with its weights")
    flags.DEFINE_string("model", None, "Embedded model, where no workdir is given")
    flags.DEFINE_integer("prompts", 512, "Held-out prompts, or pairs", lower_bound=2)
    flags.DEFINE_integer("num", 4, "Pictures per prompt", lower_bound=2)
    flags.DEFINE_integer("steps", 25, "Solver steps", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Scale s; by default the recipe's")
    flags.DEFINE_integer("seed", 0, "Of prompts, true pictures and noise", lower_bound=0)
    flags.DEFINE_string("method", "independent", f"Joined by +: {', '.join(diverse.METHODS)}")
    flags.DEFINE_integer("candidates", None, "Drawn to choose --num from", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file; by default evaluation_METRIC.json in workdir")


def main(argv: list[str]) -> None:
    """Parse flags, measure, and turn errors a user can mend into one line."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}; options are written --name=value")
    metric, began = FLAGS.metric, time.monotonic()
    out = Path(FLAGS.out or Path(FLAGS.workdir or ".") / f"evaluation_{metric}.json")
    facts: dict[str, Any] = {"metric": metric, "prompts": FLAGS.prompts, "seed": FLAGS.seed}
    columns = ("own", "shuffled") if metric == "consistency" else ("model", "true")
    try:
        if metric in ASSETS:
            run = {"clip": clip, "vae": vae, "llm": llm}[metric]
            model = FLAGS.workdir and str(Path(FLAGS.workdir) / "model")
            source = model or FLAGS.model or ASSETS[metric]
            found, true = run(source, prompts=FLAGS.prompts, seed=FLAGS.seed), None
        elif metric == "consistency":
            source = FLAGS.workdir or FLAGS.model or "fusion_base"
            found, true = consistency(source, prompts=FLAGS.prompts, num=FLAGS.num, seed=FLAGS.seed)
            facts["num"] = FLAGS.num
        else:
            source = FLAGS.workdir or FLAGS.model or "fusion_base"
            options = {
                "num": FLAGS.num,
                "steps": FLAGS.steps,
                "guidance": FLAGS.guidance,
                "method": FLAGS.method,
                "candidates": FLAGS.candidates,
            }
            found, true = pictures(
                source,
                metric,
                prompts=FLAGS.prompts,
                seed=FLAGS.seed,
                sheet=out.with_suffix(".png"),
                **options,
            )
            facts |= options
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    facts |= {"source": source, "seconds": round(time.monotonic() - began, 1)}
    out.parent.mkdir(parents=True, exist_ok=True)
    measured = dict(zip(columns, (found, true), strict=True))
    out.write_text(json.dumps({**facts, **measured}, indent=1) + "\n")
    print(table(found, true, columns))
    print(f"written to {out}")


if __name__ == "__main__":
    define()
    app.run(main)
