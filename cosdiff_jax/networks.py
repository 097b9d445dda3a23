"""What the frozen networks know, on held-out Scenes: CLIP, autoencoder, language model.

Each function takes an asset's name or a folder with weights and returns measures by name.
"""

import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax import modules, trained, weights
from cosdiff_jax.data import tokenizer as tokenizers
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.metrics import consistency as consistency_lib
from cosdiff_jax.metrics import psnr, retrieval, ssim
from cosdiff_jax.models import captions as captions_lib
from cosdiff_jax.objectives.next_token import NextToken
from cosdiff_jax.shapes import Batch

ASSETS = {
    "clip": "scenes_clip",
    "latent_clip": "scenes_clip_latents",
    "vae": "scenes_vae",
    "llm": "scenes_llm",
}

Table = dict[str, float]


def measured(
    metric: str, sources: Sequence[str], out: Path, *, prompts: str, num: int, seed: int
) -> str:
    """Measure one network, keep the numbers in ``out/metrics.json``, and give them as a table.

    Raises:
      ValueError: something the user can put right, in one line.
    """
    if not prompts.isdigit() or len(sources) > 1:
        raise ValueError(f"--metric={metric} measures one network on a number of --prompts")
    began, number = time.monotonic(), int(prompts)
    if metric == "consistency":
        source, columns = (*sources, "fusion_base")[0], ("own", "shuffled")
        found = consistency(source, prompts=number, num=num, seed=seed)
    else:
        source, columns = (*sources, ASSETS[metric])[0], ("value",)
        source = str(Path(source) / "model") if (Path(source) / "model").is_dir() else source
        run = {
            "clip": retrieved,
            "latent_clip": functools.partial(retrieved, role="latent_clip"),
            "vae": restored,
            "llm": foretold,
        }[metric]
        found = (run(source, prompts=number, seed=seed),)
    facts = {"metric": metric, "source": source, "prompts": number, "seed": seed}
    facts["seconds"] = round(time.monotonic() - began, 1)
    out.mkdir(parents=True, exist_ok=True)
    kept = {**facts, **dict(zip(columns, found, strict=True))}
    (out / "metrics.json").write_text(json.dumps(kept, indent=1) + "\n")
    width = max(map(len, found[0]))
    lines = [" " * width + "".join(f"  {column:>8}" for column in columns)]
    for name in found[0]:
        lines.append(f"{name:{width}}" + "".join(f"  {column[name]:8.4f}" for column in found))
    return "\n".join(lines)


def consistency(source: str, *, prompts: int, num: int, seed: int) -> tuple[Table, Table]:
    """What each layer of a model's language model knows of the pictures, beside chance.

    Args:
      source: a working directory, a folder with weights, or an embedded model's name.
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
    true = held_out(prompts, num, seed)
    items = [true[index] for index in range(prompts)]
    tokens, mask, _ = model.read([item["caption"] for item in items])
    language_model = modules.model("language_model", model.config.language_model)
    view = ClipFeature(clip=modules.model("clip", model.config.clip))

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


def retrieved(source: str, *, prompts: int, seed: int, role: str = "clip") -> Table:
    """Retrieval among held-out pairs, each picture said in full, no caption twice.

    The role "latent_clip" sees them as latents of the embedded autoencoder.
    """
    clip, params, words = network(role, source)
    vae, encoder, _ = network("vae", ASSETS["vae"]) if role == "latent_clip" else (None, {}, None)
    true = held_out(prompts, 1, seed, described=True)
    items = [true[index] for index in range(prompts)]
    tokens, mask = words.encode([item["caption"] for item in items], clip.context)
    images = to_float(np.concatenate([item["images"] for item in items]))

    @jax.jit
    def look(params, encoder, images, tokens, mask):
        if vae is not None:
            images = vae.apply({"params": encoder}, images, method="to_latents")
        image, text, _ = clip.apply({"params": params}, images, tokens, mask)
        return image, text

    state = retrieval.init()
    for rows in _chunks(prompts, 64):
        image, text = look(params, encoder, images[rows], tokens[rows], mask[rows])
        state = retrieval.update(state, image, text)
    return retrieval.result(state)


def restored(source: str, *, prompts: int, seed: int) -> Table:
    """PSNR and SSIM of held-out pictures that were encoded and decoded."""
    vae, params, _ = network("vae", source)
    images = to_float(np.concatenate([i["images"] for i in held_out(prompts, 1, seed)]))
    restore = jax.jit(lambda params, x: vae.apply({"params": params}, x)[0])
    close, alike = psnr.init(), ssim.init()
    for rows in _chunks(prompts, 64):
        restored = np.asarray(restore(params, images[rows]))
        close = psnr.update(close, images[rows], restored)
        alike = ssim.update(alike, images[rows], restored)
    return {**psnr.result(close), **ssim.result(alike)}


def foretold(source: str, *, prompts: int, seed: int) -> Table:
    """Loss in nats a token, accuracy and perplexity on held-out captions."""
    llm, params, words = network("language_model", source)
    captions = [item["caption"] for item in held_out(prompts, 0, seed)]
    length = 1 + max(words.count(caption) for caption in captions)
    tokens, mask = words.encode(captions, length, eos=True)
    batch = Batch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))
    look = jax.jit(NextToken(llm=llm))
    _, (logs, _) = look(params, {}, batch, jax.random.key(0), jnp.int32(0), {})
    return {name: float(value) for name, value in logs.items()}


def network(role: str, source: str) -> tuple[Any, Any, tokenizers.Tokenizer]:
    """The module of a role, its weights, and the tokenizer of its captions."""
    entry = {"name": "asset", "asset": {"path": source}}
    made, params = modules.model(role, entry), jax.device_put(modules.parameters(entry))
    folder = weights.folder(source)
    if not (folder / "tokenizer.json").is_file():
        folder = weights.folder(ASSETS["llm"])
    return made, params, tokenizers.load(folder / "tokenizer.json")


def _chunks(number: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, number, size)]
