"""Draw pictures of prompts, from a run or from the embedded base model.

    python -m cosdiff_jax.generate --prompt="a red star left of a blue ring" --num=8 --out=grid.png
    python -m cosdiff_jax.generate --prompt="two rings" --method=particle+max_min --candidates=16
    python -m cosdiff_jax.generate --prompts_file=prompts.tsv --layout=geneval --out=DIR

writes the grid (rows = prompts, columns = samples), beside it every picture by itself
(grid_p0_k0.png ...) and grid.json with all it takes to draw them again, and how alike and how
faithful they are. The same seed and prompt give the same pictures, whatever other prompts stand
beside it. ``--method`` names how the pictures of a prompt are kept different (``METHODS``); names
joined by + act together. Where samples act on one another or are chosen among candidates,
``--num`` and ``--candidates`` matter too.
``--sample=solver.name=heun`` changes a field of the recipe's ``sample`` (``configs/base.py``).

``--layout=geneval`` writes a folder a prompt instead, as GenEval's scorer reads them (Ghosh et
al., arXiv:2310.11513): DIR/00000/metadata.jsonl, samples/0000.png ..., grid.png. Any number of
prompts; one that was stopped goes on where it was.
"""

import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from cosdiff_jax import trained
from cosdiff_jax.data import prompts as prompt_sets
from cosdiff_jax.data.prompts import Prompt
from cosdiff_jax.diverse import METHODS, DiverseSampler, Samples, overlay
from cosdiff_jax.report import grid

FLAGS = flags.FLAGS

# Rows that one picture can show; more are drawn into folders.
LARGEST_GRID = 256


def asked(prompts: Sequence[str], file: str | None, form: str | None) -> list[Prompt]:
    """The prompts of a file, then those said one by one.

    Raises:
      ValueError: the file is not one of prompts, or there is nothing to draw.
    """
    if form and not file:
        raise ValueError(f"--prompts_form={form} says how to read a file: give --prompts_file")
    found = prompt_sets.read(file, form) if file else []
    found = prompt_sets.keyed([*found, *(Prompt(text=prompt) for prompt in prompts)])
    _something(prompt.text for prompt in found)
    return found


def write(
    out: Path, prompts: Sequence[str], samples: Samples, facts: Mapping[str, Any]
) -> list[Path]:
    """The grid, every picture by itself, and the numbers; returns the files in this order."""
    grid.write_png(out, samples.images, list(prompts))
    written = [out]
    for p, group in enumerate(samples.images):
        for k, image in enumerate(group):
            written.append(out.with_name(f"{out.stem}_p{p}_k{k}.png"))
            _picture(image).save(written[-1])
    rows = [_row(prompt, samples, p) for p, prompt in enumerate(prompts)]
    record = {**facts, "evaluations": samples.evaluations, "prompts": rows}
    written.append(out.with_suffix(".json"))
    written[-1].write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return written


def write_folder(
    place: Path, prompt: Prompt, images: UInt8[np.ndarray, "k X Y C"], numbers: Mapping[str, Any]
) -> None:
    """One prompt's folder as GenEval reads it, whole or not at all; ``numbers.json`` is ours.

    Args:
      place: the folder.
      prompt: whose line of JSON is written as it stands where it comes from GenEval.
      images: its pictures.
      numbers: how alike and how faithful they are.
    """
    partial, old = (place.with_name(f".{place.name}.{kind}") for kind in ("partial", "old"))
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        (partial / "samples").mkdir(parents=True)
        for k, image in enumerate(images):
            _picture(image).save(partial / "samples" / f"{k:04}.png")
        grid.write_png(partial / "grid.png", images[None], scale=1)
        (partial / "metadata.jsonl").write_text(metadata(prompt) + "\n", encoding="utf-8")
        said = json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"
        (partial / "numbers.json").write_text(said, encoding="utf-8")
        if place.exists():
            place.rename(old)
        partial.rename(place)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def metadata(prompt: Prompt) -> str:
    """A prompt's line of JSON: GenEval's own, or all that is known of another.

    Another has neither "tag" nor "include" unless its author gave them: with empty ones GenEval's
    scorer would count every picture as correct.
    """
    said = {"prompt": prompt.text, "key": prompt.key, "group": prompt.group, **prompt.extra}
    return prompt.line or json.dumps(said, ensure_ascii=False)


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
    size: str | None = None,
    sample: Sequence[str] = (),
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
      size: "HEIGHTxWIDTH" in pixels; by default as the model was trained.
      sample: changes to the recipe's ``sample``, as "solver.name=heun".
      out: the grid's file; single pictures and the numbers take its name as their beginning.

    Raises:
      ValueError: something the user can put right, in one line.
    """
    _something(prompts)
    if len(prompts) > LARGEST_GRID:
        raise ValueError(
            f"{len(prompts)} prompts are more than the {LARGEST_GRID} rows of a grid: "
            "give --layout=geneval, which writes a folder each"
        )
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out={out} must be a .png file")
    overlay(method)
    model = trained.load(source, ("llm", "vae", "clip"), sample=sample)
    draw = DiverseSampler(
        model=model,
        num=num,
        method=method,
        candidates=candidates,
        steps=steps,
        guidance=guidance,
        size=_size(size),
    )
    began = time.monotonic()
    samples = draw(prompts, seed=seed)
    seconds = round(time.monotonic() - began, 2)
    facts = {**_settings(draw, seed, sample), "seconds": seconds}
    return write(out, prompts, samples, facts)


def generate_folders(
    source: str,
    prompts: Sequence[Prompt],
    *,
    num: int,
    method: str,
    candidates: int | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    size: str | None = None,
    sample: Sequence[str] = (),
    out: Path,
    rows: int = 64,
) -> int:
    """Draw every prompt that has no whole folder yet; returns how many were drawn.

    ``settings.json`` beside the folders says what they were drawn with.

    Args:
      source: a working directory, a folder with weights, or an embedded model's name.
      prompts: P prompts; the folder of each is its number in this list.
      num, method, candidates, steps, guidance, seed, size, sample: as for ``generate``.
      out: folder of the folders.
      rows: pictures drawn together.

    Raises:
      ValueError: something the user can put right, in one line; nothing is written then.
    """
    _something(prompt.text for prompt in prompts)
    if out.suffix.lower() == ".png" or out.is_file():
        raise ValueError(f"--out={out} must be a folder with --layout=geneval")
    overlay(method)
    model = trained.load(source, ("llm", "vae", "clip"), sample=sample)
    draw = DiverseSampler(
        model=model,
        num=num,
        method=method,
        candidates=candidates,
        steps=steps,
        guidance=guidance,
        size=_size(size),
    )
    settings = _settings(draw, seed, sample)
    todo = _todo(out, prompts, settings)
    together = max(1, min(len(todo), rows // draw.total))
    for first in range(0, len(prompts), 1024):
        # A prompt that is too long should be told of now, not after a night.
        model.read([prompt.text for prompt in prompts[first : first + 1024]])
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    done = len(prompts) - len(todo)
    with tqdm(total=len(prompts), initial=done, desc="Drawing", unit=" prompts") as bar:
        for numbers, samples in _drawn(draw, prompts, todo, together, seed):
            for p, number in enumerate(numbers):
                row = {**_row(prompts[number].text, samples, p), "evaluations": samples.evaluations}
                write_folder(out / f"{number:05}", prompts[number], samples.images[p], row)
                bar.update()
    return len(todo)


def _drawn(
    draw: DiverseSampler, prompts: Sequence[Prompt], todo: Sequence[int], together: int, seed: int
) -> Iterator[tuple[Sequence[int], Samples]]:
    """(numbers of prompts, their pictures), so many prompts at a time."""
    for first in range(0, len(todo), together):
        numbers = todo[first : first + together]
        # The last ones are filled up: one shape, one program.
        filled = [*numbers, *todo[: together - len(numbers)]]
        yield numbers, draw([prompts[number].text for number in filled], seed=seed)


def _todo(out: Path, prompts: Sequence[Prompt], settings: Mapping[str, Any]) -> list[int]:
    """Numbers of the prompts without a whole folder.

    Raises:
      ValueError: ``out`` holds what these prompts and settings would not have written.
    """
    found = {place.name: place for place in out.iterdir()} if out.is_dir() else {}
    begun = out / "settings.json"
    if begun.name in found:
        try:
            before = json.loads(begun.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise ValueError(f"{begun} cannot be read; give another --out")
        for field, value in settings.items():
            if before.get(field) != value:
                raise ValueError(
                    f"{out} was begun with {field} = {before.get(field)}, not {value}; give "
                    "another --out"
                )
    elif any(name.isdigit() for name in found):
        raise ValueError(f"{out} has folders that were not written from here; give another --out")
    own = {f"{number:05}" for number in range(len(prompts))}
    foreign = sorted(name for name in found if name.isdigit() and name not in own)
    if foreign:
        # GenEval's scorer takes every folder with a number.
        raise ValueError(
            f"{out / foreign[0]} is none of these {len(prompts)} prompts; give another --out"
        )
    return [
        number
        for number, prompt in enumerate(prompts)
        if f"{number:05}" not in found or not _whole(out / f"{number:05}", prompt, settings["num"])
    ]


def _whole(place: Path, prompt: Prompt, num: int) -> bool:
    file = place / "metadata.jsonl"
    if not file.is_file() or file.read_text(encoding="utf-8") != metadata(prompt) + "\n":
        raise ValueError(f"{place} is of another prompt than {prompt.key}; give another --out")
    pictures = (place / "samples" / f"{k:04}.png" for k in range(num))
    return all(picture.is_file() for picture in (place / "grid.png", *pictures))


def _settings(draw: DiverseSampler, seed: int, sample: Sequence[str]) -> dict[str, Any]:
    """What it takes to draw the same pictures again; what was not asked for is said as it was."""
    chosen = draw.config.sample
    height, width = draw.size or draw.model.shape[:2]
    return {
        "model": draw.model.name,
        **draw.model.digests,
        "method": draw.method,
        "num": draw.num,
        "candidates": draw.total,
        "steps": chosen.steps,
        "guidance": chosen.guidance[chosen.guidance.name].get("scale"),
        "seed": seed,
        "size": f"{height}x{width}",
        "sample": list(sample) or None,
        # A method is what it changes, which another version may have changed.
        "changes": json.loads(json.dumps(overlay(draw.method))) or None,
    }


def _row(prompt: str, samples: Samples, p: int) -> dict[str, Any]:
    """What is known of prompt p's pictures."""
    return {
        "prompt": prompt,
        "kept": samples.kept[p].tolist(),
        "score": None if samples.score is None else np.round(samples.score[p], 4).tolist(),
        "feature": samples.feature,
        **samples.table[p],
    }


def _picture(image: UInt8[np.ndarray, "X Y C"]) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
    if sides is None:
        raise ValueError(f"--size={text} is not HEIGHTxWIDTH, such as 48x80")
    return int(sides[1]), int(sides[2])


def _something(prompts: Iterable[str]) -> None:
    if not any(prompt.strip() for prompt in prompts):
        raise ValueError(
            'nothing to draw: give at least one --prompt="...", or a --prompts_file of them'
        )


def define() -> None:
    """Define the flags; not at import, for several entry points share names."""
    flags.DEFINE_string("workdir", None, "A run's folder, or one with its weights")
    flags.DEFINE_string("model", "fusion_base", "Embedded model, where no workdir is given")
    flags.DEFINE_multi_string("prompt", [], "What to draw; give it again for another row")
    flags.DEFINE_string("prompts_file", None, "File of prompts, in any form in data/prompts.py")
    forms = list(prompt_sets.FORMS)
    flags.DEFINE_enum("prompts_form", None, forms, "Of --prompts_file, where it cannot be told")
    layouts = ["grid", "geneval"]
    flags.DEFINE_enum("layout", "grid", layouts, "One picture of all, or a folder for each prompt")
    flags.DEFINE_integer("rows", 64, "Pictures drawn together, for folders", lower_bound=1)
    flags.DEFINE_integer("num", 4, "Pictures per prompt", lower_bound=1)
    flags.DEFINE_string("method", "independent", f"Names joined by +: {', '.join(METHODS)}")
    flags.DEFINE_integer("candidates", None, "Drawn to choose --num from", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Solver steps; by default the recipe's", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Scale s; 1 is none; by default the recipe's")
    flags.DEFINE_string("size", None, "HEIGHTxWIDTH in pixels; by default as the model was trained")
    flags.DEFINE_multi_string("sample", [], "field=value of the recipe's sample: solver.name=heun")
    flags.DEFINE_integer("seed", 0, "Of the noise", lower_bound=0)
    flags.DEFINE_string("out", None, "The grid's file (grid.png), or the folders' folder (geneval)")


def main(argv: list[str]) -> None:
    """Parse flags, draw, and turn errors a user can mend into one line."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    # That a damaged checkpoint was passed over is for the user to know.
    logging.getLogger("cosdiff_jax").setLevel(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}; options are written --name=value")
    began = time.monotonic()
    out = Path(FLAGS.out or {"grid": "grid.png", "geneval": "geneval"}[FLAGS.layout])
    options = {
        "num": FLAGS.num,
        "method": FLAGS.method,
        "candidates": FLAGS.candidates,
        "steps": FLAGS.steps,
        "guidance": FLAGS.guidance,
        "seed": FLAGS.seed,
        "size": FLAGS.size,
        "sample": FLAGS.sample,
        "out": out,
    }
    source = FLAGS.workdir or FLAGS.model
    try:
        if FLAGS.workdir and FLAGS["model"].present:
            raise ValueError("--workdir and --model both say what draws: name one of them")
        if FLAGS["rows"].present and FLAGS.layout == "grid":
            raise ValueError("--rows is of --layout=geneval: a grid is drawn at once")
        prompts = asked(FLAGS.prompt, FLAGS.prompts_file, FLAGS.prompts_form)
        if FLAGS.layout == "geneval":
            drawn = generate_folders(source, prompts, rows=FLAGS.rows, **options)
            said = f"{out}, {drawn} of {len(prompts)} folders new"
        else:
            written = generate(source, [prompt.text for prompt in prompts], **options)
            beside = f"{len(written) - 2} single pictures and {written[-1].name} beside it"
            said = f"{written[0]}, {beside}"
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if FLAGS.layout == "grid":
            sys.exit("stopped; the same command begins again")
        sys.exit("stopped; every folder written is whole, and the same command goes on")
    print(f"{said}, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    define()
    app.run(main)
