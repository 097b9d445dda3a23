"""A recipe made ready to run: what ``train.py`` needs, checked and assembled."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
import optax
from etils import epath

from cosdiff_jax import build, checks, latents, modules, optimizer, reflow, tables, weights
from cosdiff_jax.data import groups
from cosdiff_jax.data.tokenizer import Tokenizer
from cosdiff_jax.judge import Drawn, HeldOut, InClip, Judge, Measure
from cosdiff_jax.report import card
from cosdiff_jax.shapes import Frozen, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a run needs.

    Attributes:
      objective: what to minimise.
      frozen: weights nobody trains, numpy.
      params: weights to start from, numpy; None starts from scratch.
      rule, rate, ema: the optimizer's parts.
      stream: ``(shard, shards) -> iterator`` over the training data.
      prompts: how many prompts it has.
      epoch: steps in which every group is seen once; what is left over fills no batch.
      judge: pictures and numbers of a set of weights.
      tokenizer: of the captions.
      entry: menu entry of the trained network.
    """

    objective: Any
    frozen: Frozen
    params: Params | None
    rule: optimizer.Rule
    rate: optax.Schedule
    ema: optimizer.Ema
    stream: Callable[[int, int], grain.DatasetIterator]
    prompts: int
    epoch: int
    judge: Judge
    tokenizer: Tokenizer
    entry: tables.Entry


def prepare(config: Any) -> Job:
    """Build a recipe, which ``checks.recipe`` has looked at.

    Raises:
      ValueError: something in it cannot be.
    """
    role = modules.TRAINED[config.objective.name]
    objective, needs = build.objective(config)
    words = build.tokenizer(config.tokenizer)
    text_only = config.objective.name == "next_token"
    encode = groups.Encode(tokenizer=words, context=config.data.context, eos=text_only)
    data = build.source(config.data, "train")
    if config.data.name == "folder":
        checks.captions(words, config.data.context, getattr(data, "captions", ()))
    frozen = modules.frozen(config, needs)
    checks.shapes(config, objective, frozen, data)
    if not config.data.reflow.steps:
        checks.target(objective, data)
    if config.data.encoded:
        data = _encoded(config, frozen.get("vae"))
    params = modules.parameters(config[role])
    if config.data.reflow.steps:
        data = _drawn_pairs(config, data, words, params, frozen)
    knobs = config.optimizer

    def stream(shard: int, shards: int) -> grain.DatasetIterator:
        return iter(
            groups.batches(
                data,
                encode,
                prompts=config.data.prompts,
                seed=config.seed,
                shard=shard,
                shards=shards,
                threads=config.data.threads,
            )
        )

    return Job(
        objective=objective,
        frozen=frozen,
        params=params,
        rule=tables.make(tables.OPTIMIZERS, knobs, "optimizer"),
        rate=optimizer.schedule(
            knobs.rate,
            steps=config.steps,
            warmup=knobs.warmup,
            shape=knobs.shape,
            floor=knobs.floor,
        ),
        ema=optimizer.Ema(**knobs.ema),
        stream=stream,
        prompts=groups.count_prompts(data),
        epoch=max(len(data) // config.data.prompts, 1),
        judge=_judge(config, objective, encode, frozen),
        tokenizer=words,
        entry=modules.resolve(config[role]),
    )


def _encoded(config: Any, vae: Params | None) -> groups.Source:
    """The training groups as latents; all stored pictures of a prompt are used."""
    name = config.data.name
    if name not in ("scenes", "scenes_pairs"):
        raise ValueError(f"data.encoded needs data.name=scenes or scenes_pairs, not {name}")
    if vae is None:
        raise ValueError(f"data.encoded: objective.name={config.objective.name} reads no latents")
    knobs = config.data[name]
    entry = {"name": "scenes", "scenes": knobs}
    data = tables.make(tables.SOURCES, entry, "data", split="train", samples=knobs.stored)
    kept = latents.encode(data, modules.model("vae", config.vae), vae, knobs.folder)
    if name == "scenes_pairs":
        # Pair i is picture i of all that are stored, prompt by prompt.
        pictures = kept.reshape(-1, 1, *kept.shape[2:])
        return groups.Replaced(build.source(config.data, "train"), pictures)
    captions = tuple(data[index]["caption"] for index in range(len(data)))
    return groups.WithLatents(captions, kept, config.data.samples)


def _drawn_pairs(
    config: Any, data: groups.Source, words: Tokenizer, params: Params | None, frozen: Frozen
) -> groups.Source:
    """The training captions with what the starting weights draw of them, and from which noise."""
    captions = getattr(data, "captions", None)  # of a folder each once
    if captions is None:
        captions = tuple(data[index]["caption"] for index in range(len(data)))
    drawing = config.copy_and_resolve_references()
    # Plain Euler steps of the model's own field, whatever else the run draws its grids with.
    drawing.sample.update(
        steps=config.data.reflow.steps,
        matmul_precision=config.matmul_precision,
        unguided=0,
        solver={"name": "euler"},
        grid={"name": "uniform"},
        guidance={"name": "classifier_free"},
        **{part: {"name": "none"} for part in ("descent", "condition", "repulsion", "view")},
        noise={"name": "independent"},
    )
    drawing.sample.guidance.classifier_free.update(
        scale=config.data.reflow.guidance, interval=(0.0, 1.0), start=True
    )
    kept = reflow.pairs(
        build.sampler(drawing, build.picture_shape(config.data)),
        params,
        frozen,
        *words.encode(captions, config.data.context),
        config.data.reflow.folder,
        samples=config.data.samples,
        seed=config.seed,
    )
    return groups.Drawn(captions, kept)


def _judge(config: Any, objective: Any, encode: groups.Encode, frozen: Frozen) -> Judge:
    if config.objective.name != "flow_matching":
        held_out = build.source(config.data, "test")

        def batches():
            return iter(
                groups.batches(
                    held_out,
                    encode,
                    prompts=config.data.prompts,
                    seed=0,
                    shuffle=False,
                    threads=config.data.threads,
                )
            )

        return HeldOut(objective=objective, batches=batches, number=config.sample.batches)
    # As many real pictures of a prompt as will be drawn of it, whatever a training group has.
    held_out = build.source(config.data, "test", config.sample.num)
    return drawn(config, held_out, encode.tokenizer, frozen)


def drawn(config: Any, source: groups.Source, words: Tokenizer, frozen: Frozen) -> Drawn:
    """The judge of a text-to-image model on the first prompts of a source.

    Args:
      config: the recipe; ``config.sample`` says how much is drawn and how.
      source: held-out groups.
      words: the tokenizer.
      frozen: CLIP's weights under "clip", if it is to be asked.
    """
    number = min(config.sample.prompts, len(source))
    items = [source[index] for index in range(number)]
    captions = [item["caption"] for item in items]
    real = np.stack([item["images"][: config.sample.num] for item in items])
    tokens, mask = words.encode(captions, config.data.context)
    measures: list[Measure] = []
    if "clip" in frozen:
        embedded = config.clip.name == "asset"
        measures.append(
            InClip(
                clip=modules.model("clip", config.clip),
                name=epath.Path(config.clip.asset.path).name if embedded else "clip",
                params=frozen["clip"],
                tokens=tokens,
                mask=mask,
                real=real,
            )
        )
    measures += build.measures(config.data.name, items)
    return Drawn(
        sampler=build.sampler(config, real.shape[2:]),
        tokens=tokens,
        mask=mask,
        prompts=captions,
        groups=real,
        measures=measures,
        shown=min(config.sample.shown, number),
        key=jax.random.key(config.seed + 1),
    )


def export(
    config: Any,
    job: Job,
    params: Params,
    folder: epath.Path,
    *,
    seconds: float,
    table: dict[str, float],
) -> None:
    """Leave the weights of a finished run where ``name=asset`` and ``generate`` find them.

    Args:
      config: the recipe.
      job: made of it.
      params: the averaged weights.
      folder: gets model.safetensors, config.json, tokenizer.json, the recipe and a model card.
      seconds: wall time of the run.
      table: held-out measures of the weights.
    """
    entry = json.loads(json.dumps(_plain(job.entry)))
    knobs = dict(entry[entry["name"]])
    calibrate = getattr(job.objective, "calibrate", None)
    if calibrate is not None:
        stream = job.stream(0, 1)
        knobs |= calibrate(params, [next(stream)["images"] for _ in range(16)])
    weights.save(folder, {"name": entry["name"], entry["name"]: knobs}, params, dtype=config.export)
    (folder / "tokenizer.json").write_text(job.tokenizer.fast.backend_tokenizer.to_str())
    (folder / "recipe.json").write_text(config.to_json_best_effort(indent=1) + "\n")
    data = {key: value for key, value in config.data[config.data.name].items() if key != "path"}
    drawn = f", drawn by the starting weights: `{config.data.reflow.to_json()}`"
    card.write(
        folder,
        name=f"{config.data.name}, {config.objective.name}",
        what=f"A `{entry['name']}`: `{json.dumps(knobs)}`.",
        data=f"{config.data.name} `{json.dumps(data)}`, {config.data.prompts} prompts x "
        f"{config.data.samples} samples a step{drawn if config.data.reflow.steps else ''}",
        command=shlex.join(
            ["python", "-m", "cosdiff_jax.train", f"--config={config.recipe}", "--workdir=WORKDIR"]
        ),
        steps=config.steps,
        seed=config.seed,
        seconds=seconds,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        measures=table,
    )


def _plain(entry: tables.Entry) -> dict[str, Any]:
    return entry.to_dict() if hasattr(entry, "to_dict") else dict(entry)
