"""Measure pictures, a model's or anyone's, and put several side by side.

    python -m cosdiff_jax.evaluate --model=fusion_base --workdir=runs/fusion_div --num=8
    python -m cosdiff_jax.evaluate --model=fusion_base --method=independent --method=interval
    python -m cosdiff_jax.evaluate --images=DIR --images=OTHER --prompts=prompts.jsonl
    python -m cosdiff_jax.evaluate --write_prompts=prompts.jsonl --prompts=256
    python -m cosdiff_jax.evaluate --metric=clip|latent_clip|vae|llm|consistency
    python -m cosdiff_jax.evaluate --study=studies/diversity

writes ``metrics.json`` and ``report.html`` and prints a table. ``--prompts`` is a number of
held-out Scenes (or digits) prompts, made on the spot from ``--seed``, with the true distribution
in a column of its own; or a file of prompts, of any published form, with ``--reference=DIR`` for
real pictures if there are any. ``--write_prompts`` writes held-out Scenes prompts as such a file,
with what they mean, so that the oracle reads pictures that anything drew of them. A measurement
that was stopped goes on where it was. The other metrics are of the frozen networks alone.
"""

import dataclasses
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pyarrow.parquet as pq
from absl import app, flags
from jax.experimental import multihost_utils

from cosdiff_jax import (
    build,
    columns,
    comparison,
    diverse,
    neighbours,
    networks,
    perceptual,
    trained,
    views,
    weights,
)
from cosdiff_jax.columns import Asked
from cosdiff_jax.data import prompts
from cosdiff_jax.data.prompts import Prompt
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.metrics import scenes
from cosdiff_jax.report import facts as facts_lib
from cosdiff_jax.report import formulations, study
from cosdiff_jax.survey import TOP_PERCENT, Eye, Survey, Surveyed

FLAGS = flags.FLAGS
_log = logging.getLogger("cosdiff_jax")
STEPS = 25  # where neither --steps nor --sample says
NETWORKS = ("clip", "latent_clip", "vae", "llm", "consistency")


def pictures(asked: Asked, out: Path, *, page: bool = True) -> dict[str, Any]:
    """Measure, compare, and write the report; what was measured before is not measured again.

    Args:
      asked: what.
      out: folder for ``metrics.json``, ``report.html``, figures, and the measurements.
      page: whether to draw figures and page, for which some prompts are drawn once more.

    Returns:
      What ``metrics.json`` holds; only on the first host.

    Raises:
      ValueError: something the user can put right, in one line.
    """
    roles = ("llm", "vae", "clip")
    models = {
        name: trained.load(name, roles, ema=asked.ema, sample=asked.sample) for name in asked.models
    }
    eye = columns.eye_of(asked, models)
    entries = columns.gather(asked, models, eye)
    # The name of a CLIP stays when its weights are replaced.
    seen_by = "none" if eye is None else f"{eye.name} {weights.digest(eye.params)}"
    side = 64 if eye is None else eye.size  # as galleries are cut
    distances = [] if asked.vgg is None else [perceptual.load(asked.vgg, asked.lpips, side)]
    also = {"distances": distances[0].digest} if distances else {}
    seen = views.load(asked.views, asked.vgg, side, asked.top_percent)
    also |= {"views": [view.digest for view in seen]} if seen else {}
    shard, shards = jax.process_index(), jax.process_count()
    surveyed: dict[str, Surveyed] = {}
    for entry in entries:
        survey = Survey(
            folder=out / "measured" / entry.folder,
            eye=eye,
            measures=[*columns.measures(models), *distances, *seen, *entry.measures],
            facts={**entry.facts, "eye": seen_by, "oracle": scenes.VERSION, **also},
            label=entry.name,
            top_percent=asked.top_percent,
        )
        survey.run(entry.source, shard=shard, shards=shards)
        if shards > 1:
            multihost_utils.sync_global_devices(entry.folder)
        surveyed[entry.name] = survey.result()
    if shard:
        return {}
    if asked.paired:
        for entry in entries:
            if entry.name != "reference" and "psnr" not in surveyed[entry.name].names:
                _log.warning(
                    "--paired: %s has as many pictures of no prompt of --reference", entry.name
                )
    facts = {k: v for k, v in dataclasses.asdict(asked).items() if v not in (None, ())}
    if models:
        facts["peak_memory"] = facts_lib.peak()[1]
    return comparison.write(
        out,
        [
            comparison.Column(
                name=entry.name, surveyed=surveyed[entry.name], pictures=entry.pictures
            )
            for entry in entries
            if entry.name != "reference"
        ],
        reference=surveyed.get("reference"),
        eye=None if eye is None else eye.name,
        training=_training(asked, models, eye),
        facts=facts,
        page=page,
    )


def _training(
    asked: Asked, models: Mapping[str, trained.Trained], eye: Eye | None
) -> neighbours.Neighbours | None:
    if not asked.training:
        return None
    if eye is None:
        raise ValueError("--training compares pictures by CLIP, and these have none: name a --clip")
    data = next(iter(models.values())).config.data.copy_and_resolve_references()
    if data.name == "folder":
        data.folder.longest = 1.0  # squares, as the eye sees them
    return neighbours.of_training(build.source(data, "train"), eye, asked.training)


def write_prompts(file: str, number: str, num: int, seed: int) -> str:
    """Held-out Scenes prompts, with what they mean, as a file that ``--prompts`` reads.

    They are those on which a model is measured with the same number, ``num`` and seed.

    Raises:
      ValueError: no number of them, or the file is there already.
    """
    if not number.isdigit() or not int(number):
        raise ValueError(f"--write_prompts writes a number of held-out --prompts, not {number!r}")
    held = held_out(int(number), num, seed).asked()
    prompts.write(
        file,
        [Prompt(text=x["caption"], key=x["key"], extra={"spec": x["spec"]}) for x in held],
    )
    return f"{number} held-out prompts of seed {seed}; pictures of KEY: DIR/KEY/*.png, 64 x 64"


def _study(folder: Path, out: Path) -> str:
    """The report of a study's rows."""
    place = folder / "rows.parquet"
    if not place.is_file():
        raise ValueError(
            f"no study in {folder}: python -m cosdiff_jax.study makes its rows.parquet"
        )
    rows = pq.read_table(place).to_pylist()
    if "formulation" in rows[0]:
        return formulations.write(out, rows)
    volumes = study.write(out, rows)
    return "\n".join(f"hypervolume of {name}: {value:.4g}" for name, value in volumes.items())


# What says how pictures are drawn, and what goes with each way that does not measure any.
DRAWING = ("method", "candidates", "steps", "guidance", "sample", "ema")
MODES = {
    "study": ("study",),
    "write_prompts": ("write_prompts", "prompts", "num", "seed"),
    "metric": ("metric", "model", "workdir", "prompts", "num", "seed"),
}
ALWAYS = ("out", "page", "distributed")


def check_flags(told: Collection[str], metric: str) -> None:
    """Refuse what was said on the command line and would change nothing.

    Args:
      told: the flags of this command that were said.
      metric: what is measured.

    Raises:
      ValueError: naming the first such flag.
    """
    modes = [name for name in ("study", "write_prompts") if name in told]
    modes += ["metric"] * (metric != "pictures")
    if modes:
        idle = [name for name in told if name not in (*MODES[modes[0]], *ALWAYS)]
        called = f"metric={metric}" if modes[0] == "metric" else modes[0]
        reason = f"has no part in --{called}"
    elif "images" in told and not {"model", "workdir"} & set(told):
        idle = [name for name in told if name in DRAWING]
        reason = "says how a model draws, and --images are measured as they are"
    else:
        return
    if idle:
        raise ValueError(f"--{idle[0]} {reason}")


def _steps(flag: int | None, sample: Sequence[str]) -> int | None:
    """The flag's number, or the usual one unless ``--sample`` tells another."""
    told = any(change.partition("=")[0] == "steps" for change in sample)
    return flag if flag or told else STEPS


def define() -> None:
    """Define the flags; not at import, for several entry points share names."""
    metrics = ["pictures", *NETWORKS]
    flags.DEFINE_enum("metric", "pictures", metrics, "What to measure")
    flags.DEFINE_multi_string("workdir", [], "A run's folder; repeat to compare")
    flags.DEFINE_multi_string("model", [], "Embedded model or folder with weights; repeat")
    flags.DEFINE_multi_string("images", [], "Folder of anyone's pictures; repeat to compare")
    flags.DEFINE_string("prompts", None, "Number of held-out prompts (512), or a file of prompts")
    flags.DEFINE_string("write_prompts", None, "File to write held-out Scenes prompts into")
    flags.DEFINE_string("reference", None, "Real pictures of the prompts of a file")
    flags.DEFINE_bool("paired", False, "PSNR and SSIM with the reference, picture by picture")
    flags.DEFINE_integer("num", 4, "Pictures per prompt", lower_bound=2)
    flags.DEFINE_integer("steps", None, f"Solver steps, by default {STEPS}", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Scale s; by default the recipe's")
    flags.DEFINE_integer("seed", 0, "Of prompts, true pictures and noise", lower_bound=0)
    known = ", ".join(diverse.METHODS)
    flags.DEFINE_multi_string("method", ["independent"], f"Joined by +; repeat: {known}")
    flags.DEFINE_integer("candidates", None, "Drawn to choose --num from", lower_bound=1)
    flags.DEFINE_string("clip", None, "CLIP that looks: embedded model or folder with weights")
    flags.DEFINE_string("vgg", None, "Folder of VGG16, from convert: distances within a prompt")
    flags.DEFINE_string("lpips", None, "Folder of LPIPS's published weights, to go with --vgg")
    seen = ", ".join(views.NAMES)
    flags.DEFINE_multi_string("view", [], f"Cosines in a view, or VIEW=FOLDER; repeat: {seen}")
    flags.DEFINE_float("top_percent", TOP_PERCENT, "Pairs in the top-k cosine, most alike first")
    flags.DEFINE_string("read", None, "Texts read in --images: jsonl or csv of picture, text")
    flags.DEFINE_string("answers", None, "MODULE:FUNCTION that answers the prompts' questions")
    flags.DEFINE_integer("training", 0, "Training pictures to search for copies", lower_bound=0)
    flags.DEFINE_bool("ema", True, "Averaged weights; --noema draws with a run's newest ones")
    flags.DEFINE_multi_string("sample", [], "field=value of the recipes' sample: solver.name=heun")
    flags.DEFINE_string("study", None, "Folder of a study: draws its rows instead of measuring")
    flags.DEFINE_bool("page", True, "Figures and report.html; --nopage leaves the numbers alone")
    flags.DEFINE_string("out", None, "Folder; by default evaluation_METRIC in the first workdir")
    flags.DEFINE_bool("distributed", False, "Join the other hosts of a pod or cluster")


def main(argv: list[str]) -> None:
    """Parse flags, measure, and turn errors a user can mend into one line."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    _log.setLevel(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}; options are written --name=value")
    if FLAGS.distributed:
        jax.distributed.initialize()
    out = Path(FLAGS.out or Path(*FLAGS.workdir[:1]) / f"evaluation_{FLAGS.metric}")
    try:
        own = FLAGS.get_flags_for_module(sys.modules[__name__])
        check_flags([flag.name for flag in own if flag.present], FLAGS.metric)
        if FLAGS.study:
            out = Path(FLAGS.out or Path(FLAGS.study) / "report")
            text = _study(Path(FLAGS.study), out)
        elif FLAGS.write_prompts:
            out = Path(FLAGS.write_prompts)
            text = write_prompts(str(out), FLAGS.prompts or "512", FLAGS.num, FLAGS.seed)
        elif FLAGS.metric == "pictures":
            models = (*FLAGS.model, *FLAGS.workdir)
            asked = Asked(
                models=models or (() if FLAGS.images else ("fusion_base",)),
                images=tuple(FLAGS.images),
                methods=tuple(FLAGS.method),
                prompts=FLAGS.prompts,
                reference=FLAGS.reference,
                paired=FLAGS.paired,
                num=FLAGS.num,
                candidates=FLAGS.candidates,
                steps=_steps(FLAGS.steps, FLAGS.sample),
                guidance=FLAGS.guidance,
                seed=FLAGS.seed,
                eye=FLAGS.clip,
                vgg=FLAGS.vgg,
                lpips=FLAGS.lpips,
                views=tuple(FLAGS.view),
                top_percent=FLAGS.top_percent,
                read=FLAGS.read,
                answers=FLAGS.answers,
                training=FLAGS.training,
                ema=FLAGS.ema,
                sample=tuple(FLAGS.sample),
            )
            found = pictures(asked, out, page=FLAGS.page)
            if not found:
                return  # the first host has all there is to say
            text = comparison.text(found)
        else:
            text = networks.measured(
                FLAGS.metric,
                [*FLAGS.model, *FLAGS.workdir],
                out,
                prompts=FLAGS.prompts or "512",
                num=FLAGS.num,
                seed=FLAGS.seed,
            )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped; the same command goes on from {out / 'measured'}")
    print(text)
    print(f"written to {out}")


if __name__ == "__main__":
    define()
    app.run(main)
