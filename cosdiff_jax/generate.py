"""Draw pictures of prompts, from a run or from the embedded base model.

    python -m cosdiff_jax.generate --prompt="a red star left of a blue ring" --num=8 --out=grid.png
    python -m cosdiff_jax.generate --prompt="two rings" --method=particle+max_min --candidates=16

writes the grid (rows = prompts, columns = samples), beside it every picture by itself
(grid_p0_k0.png ...) and grid.json with how alike and how faithful they are. The same seed and
prompt give the same pictures, however many are asked for. ``--method`` names how the pictures of
a prompt are kept different (``METHODS``); names joined by + act together.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from cosdiff_jax import trained
from cosdiff_jax.diverse import METHODS, Samples, diverse_samples, overlay
from cosdiff_jax.report import grid

FLAGS = flags.FLAGS


def write(
    out: Path, prompts: Sequence[str], samples: Samples, facts: Mapping[str, Any]
) -> list[Path]:
    """The grid, every picture by itself, and the numbers; returns the files in this order."""
    grid.write_png(out, samples.images, list(prompts))
    written = [out]
    for p, group in enumerate(samples.images):
        for k, image in enumerate(group):
            flat = image[..., 0] if image.shape[-1] == 1 else image
            written.append(out.with_name(f"{out.stem}_p{p}_k{k}.png"))
            Image.fromarray(flat).save(written[-1])
    rows = [
        {
            "prompt": prompt,
            "kept": samples.kept[p].tolist(),
            "score": None if samples.score is None else np.round(samples.score[p], 4).tolist(),
            **(samples.table[p] if samples.table else {}),
        }
        for p, prompt in enumerate(prompts)
    ]
    record = {**facts, "evaluations": samples.evaluations, "prompts": rows}
    written.append(out.with_suffix(".json"))
    written[-1].write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return written


def generate(
    source: str,
    prompts: list[str],
    *,
    num: int,
    method: str,
    candidates: int | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    out: Path,
) -> list[Path]:
    """Draw and write; return the files written, the grid first, the numbers last.

    Args:
      source: a working directory, a folder with weights, or an embedded model's name.
      prompts: P prompts.
      num: k, pictures of each.
      method: how they are kept different.
      candidates: M, drawn to choose k from.
      steps: solver steps.
      guidance: scale of classifier-free guidance.
      seed: of the noise.
      out: the grid's file; single pictures and the numbers take its name as their beginning.

    Raises:
      ValueError: something the user can put right, in one line.
    """
    if not any(prompt.strip() for prompt in prompts):
        raise ValueError('nothing to draw: give at least one --prompt="..."')
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out={out} must be a .png file")
    overlay(method)
    model = trained.load(source, ("llm", "vae", "clip"))
    began = time.monotonic()
    samples = diverse_samples(
        model,
        prompts,
        num=num,
        method=method,
        candidates=candidates,
        steps=steps,
        guidance=guidance,
        seed=seed,
    )
    facts = {
        "model": model.name,
        "method": method,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 2),
    }
    return write(out, prompts, samples, facts)


def define() -> None:
    """Define the flags; not at import, for several entry points share names."""
    flags.DEFINE_string("workdir", None, "A run's folder, or one with its weights")
    flags.DEFINE_string("model", "fusion_base", "Embedded model, where no workdir is given")
    flags.DEFINE_multi_string("prompt", [], "What to draw; give it again for another row")
    flags.DEFINE_integer("num", 4, "Pictures per prompt", lower_bound=1)
    flags.DEFINE_string("method", "independent", f"Names joined by +: {', '.join(METHODS)}")
    flags.DEFINE_integer("candidates", None, "Drawn to choose --num from", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Solver steps; by default the recipe's", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Scale s; 1 is none; by default the recipe's")
    flags.DEFINE_integer("seed", 0, "Of the noise", lower_bound=0)
    flags.DEFINE_string("out", "grid.png", "PNG file for the grid")


def main(argv: list[str]) -> None:
    """Parse flags, draw, and turn errors a user can mend into one line."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}; options are written --name=value")
    began = time.monotonic()
    try:
        written = generate(
            FLAGS.workdir or FLAGS.model,
            FLAGS.prompt,
            num=FLAGS.num,
            method=FLAGS.method,
            candidates=FLAGS.candidates,
            steps=FLAGS.steps,
            guidance=FLAGS.guidance,
            seed=FLAGS.seed,
            out=Path(FLAGS.out),
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    seconds = time.monotonic() - began
    beside = f"{len(written) - 2} single pictures and {written[-1].name} beside it"
    print(f"{written[0]}, {beside}, in {seconds:.0f} s")


if __name__ == "__main__":
    define()
    app.run(main)
