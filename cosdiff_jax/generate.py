"""Draw pictures of prompts, from a run or from the embedded base model.

    python -m cosdiff_jax.generate --prompt="a red star left of a blue ring" --num=8 --out=grid.png

writes the grid (rows = prompts, columns = samples) and beside it every picture by itself
(grid_p0_k0.png ...). The same seed and prompt give the same pictures, however many are asked for.
"""

import logging
import sys
import time
from pathlib import Path

from absl import app, flags
from PIL import Image

from cosdiff_jax import trained
from cosdiff_jax.report import grid

FLAGS = flags.FLAGS


def generate(
    source: str,
    prompts: list[str],
    *,
    num: int,
    steps: int | None,
    guidance: float | None,
    seed: int,
    out: Path,
) -> list[Path]:
    """Draw and write; return the files written, the grid first.

    Args:
      source: a working directory, a folder with weights, or an embedded model's name.
      prompts: P prompts.
      num: K, pictures of each.
      steps: solver steps; None as the recipe says.
      guidance: scale of classifier-free guidance; None as the recipe says.
      seed: of the noise.
      out: the grid's file; single pictures take its name as their beginning.

    Raises:
      ValueError: something the user can put right, in one line.
    """
    if not any(prompt.strip() for prompt in prompts):
        raise ValueError('nothing to draw: give at least one --prompt="..."')
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out={out} must be a .png file")
    model = trained.load(source)
    sampler = model.sampler(steps=steps, guidance=guidance)
    images = grid.to_bytes(model.draw(sampler, prompts, num=num, seed=seed))
    grid.write_png(out, images, prompts)
    written = [out]
    for p, group in enumerate(images):
        for k, image in enumerate(group):
            path = out.with_name(f"{out.stem}_p{p}_k{k}.png")
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
            written.append(path)
    return written


def define() -> None:
    """Define the flags; not at import, for several entry points share names."""
    flags.DEFINE_string("workdir", None, "A run's folder, or one with its weights")
    flags.DEFINE_string("model", "fusion_base", "Embedded model, where no workdir is given")
    flags.DEFINE_multi_string("prompt", [], "What to draw; give it again for another row")
    flags.DEFINE_integer("num", 4, "Pictures per prompt", lower_bound=1)
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
            steps=FLAGS.steps,
            guidance=FLAGS.guidance,
            seed=FLAGS.seed,
            out=Path(FLAGS.out),
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    seconds = time.monotonic() - began
    print(f"{written[0]} and {len(written) - 1} single pictures beside it, in {seconds:.0f} s")


if __name__ == "__main__":
    define()
    app.run(main)
