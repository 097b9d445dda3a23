"""Train anything in objectives/: one loop, read from top to bottom.

    python -m cosdiff_jax.train --config=configs/fusion_div.py --workdir=runs/fusion_div

The same command resumes. Ctrl-C or SIGTERM saves and exits with 0; a second Ctrl-C leaves at once.
"""

import contextlib
import io
import json
import logging
import math
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from etils import epath
from ml_collections import config_flags
from tqdm import tqdm

from cosdiff_jax import checkpoint, checks, host, optimizer, sharding
from cosdiff_jax import job as job_lib
from cosdiff_jax.models import layers
from cosdiff_jax.report import curves, grid, measures, page, record
from cosdiff_jax.report import facts as facts_lib
from cosdiff_jax.shapes import TrainState

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/fusion_div.py:tiny")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs, grids, report")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a pod or cluster")

# What the progress bar has room for, of what the objective logs.
SHOWN = {
    **{name: name for name in ("loss", "flow", "diversity", "alignment", "anchor", "lambda")},
    **{"mean_cosine": "cosine", "psnr": "psnr", "accuracy": "accuracy"},
    "images_per_second": "images/s",
}

_log = logging.getLogger("cosdiff_jax")


def train(config, workdir: str) -> TrainState:
    """Run a recipe to its end or to the next signal; return the state it ended in.

    Args:
      config: the resolved recipe.
      workdir: where everything goes; resumed from if it holds a checkpoint of the same recipe.

    Raises:
      ValueError: something the user can put right, in one line.
    """
    began, stop = time.monotonic(), Stop()
    mesh = sharding.make_mesh(**config.mesh)
    kept = checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep)
    precision = layers.precision(config.matmul_precision)
    with kept as checkpoints, jax.set_mesh(mesh), precision:
        checks.same_run(config, checkpoints.config(), workdir)
        job = job_lib.prepare(config)
        stream = job.stream(jax.process_index(), jax.process_count())
        start = stream.get_state()
        example = sharding.to_device(next(stream), mesh)
        stream.set_state(start)
        frozen = sharding.put(job.frozen, mesh)
        initial = None if job.params is None else sharding.put(job.params, mesh)
        key = jax.random.key(config.seed)
        chain = optimizer.chain(job.rule, job.rate, clip=config.optimizer.clip)

        def init(key, frozen, batch, params):
            params = job.objective.init(key, batch) if params is None else params
            return TrainState(
                step=jnp.zeros((), jnp.int32),
                params=params,
                opt_state=chain.init(params),
                ema=params,
                memory=job.objective.start(frozen, batch, job.prompts),
            )

        # The state is born in its place: jit(chain.init) alone would return replicated moments.
        shapes = jax.eval_shape(init, key, frozen, example, initial)
        places = sharding.place(shapes, mesh)
        state = jax.jit(init, out_shardings=places)(key, frozen, example, initial)
        restored = checkpoints.restore(checkpoint.abstract(state), repair=True)
        if restored is not None:
            state = restored.state
            stream.set_state(restored.data["stream"])
            began -= restored.data["seconds"]
            _log.info("resumed %s from step %d of %d", workdir, restored.step, config.steps)

        value_and_grad = optimizer.accumulated(
            jax.value_and_grad(job.objective, has_aux=True), config.optimizer.accumulate
        )

        def train_step(state, frozen, batch):
            # Draws depend on the seed and the step only: a resumed run repeats them.
            now = jax.random.fold_in(key, state.step)
            held = {**frozen, "average": state.ema}
            (_, (logs, memory)), grads = value_and_grad(
                state.params, held, batch, now, state.step, state.memory
            )
            updates, opt_state = chain.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            step = state.step + 1
            logs["gradient_norm"] = optax.global_norm(grads)
            logs["learning_rate"] = job.rate(state.step)
            ema = job.ema(state.ema, params, step)
            return TrainState(step, params, opt_state, ema, memory), logs

        train_step = jax.jit(
            train_step,
            donate_argnums=0,
            out_shardings=(places, None),
            compiler_options=host.compiler_options(),
        )

        recipe = json.loads(config.to_json_best_effort())

        def save():
            place = {"stream": stream.get_state(), "seconds": time.monotonic() - began}
            checkpoints.save(state, place, recipe)

        step, first = int(state.step), jax.process_index() == 0
        wandb = record.Wandb(**config.wandb)
        log = record.Record(workdir, step, write=first, wandb=wandb, config=recipe)
        if not step:
            look(job, frozen, state, workdir, log)
        rows = example.tokens.shape[0] * config.data.samples
        meter = record.Meter(rows)
        bar = tqdm(
            total=config.steps,
            initial=step,
            unit="step",
            disable=None if os.isatty(2) else False,
            mininterval=1.0 if os.isatty(2) else 10.0,
            dynamic_ncols=True,
        )
        last = None
        while step < config.steps and not stop.asked:
            batch = sharding.to_device(next(stream), mesh)
            state, logs = train_step(state, frozen, batch)
            # One step runs while the next is prepared; more would run on after a signal.
            jax.block_until_ready(last)
            last = logs["loss"]
            step += 1
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in logs.items()}
                if not math.isfinite(values["loss"]):
                    raise ValueError(
                        f"the loss is {values['loss']} at step {step}; the last good checkpoint "
                        "stands: lower optimizer.rate or look at the data"
                    )
                values["images_per_second"] = meter.rate(step)
                log.write(step, values)
                bar.set_postfix_str(brief(values))
            bar.update()
            if step < config.steps:
                # Looked at first: what a run killed in between has not kept, it does again.
                measure = bool(config.sample.measure) and step % config.sample.measure == 0
                if measure or step % config.sample.every == 0:
                    look(job, frozen, state, workdir, log, measure=measure)
                if step % config.checkpoint.every == 0:
                    save()
        bar.close()
        save()
        if step < config.steps:
            log.close()
            _log.info("stopped and saved at step %d; the same command goes on", step)
            return state
        table = look(job, frozen, state, workdir, log)
        log.close()
        seconds = time.monotonic() - began
        model = epath.Path(workdir) / "model"
        job_lib.export(config, job, state.ema, model, seconds=seconds, table=table)
        report(job, config, workdir, seconds)
    return state


def look(
    job: job_lib.Job,
    frozen,
    state: TrainState,
    workdir: str,
    log: record.Record,
    *,
    measure: bool = True,
) -> dict:
    """Draw the fixed prompts with the averaged weights, measure; keep both, in samples/ and log."""
    seen = job.judge(state.ema, frozen, measure=measure)
    if jax.process_index():
        return seen.table
    step = int(state.step)
    log.look(step, seen.table, seen.images)
    stem = epath.Path(workdir) / "samples" / f"step_{step:07d}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    if seen.images is not None:
        grid.write_png(stem.with_suffix(".png"), seen.images, job.judge.captions)
        with stem.with_suffix(".npy").open("wb") as file:
            np.save(file, seen.images)
    if measure:
        stem.with_suffix(".json").write_text(json.dumps(seen.table, indent=1) + "\n")
        lines = "".join(json.dumps(one) + "\n" for one in seen.each)
        stem.with_suffix(".jsonl").write_text(lines)
    return seen.table


def load_each(stem: epath.Path) -> dict[int, dict[str, float]]:
    """Number of each prompt -> its measures; {} of a run begun before ``look`` kept them."""
    place = stem.with_suffix(".jsonl")
    lines = place.read_text().splitlines() if place.exists() else []
    return {number: json.loads(line) for number, line in enumerate(lines)}


def load_pictures(stem: epath.Path) -> np.ndarray:
    """The pictures that ``look`` kept."""
    with stem.with_suffix(".npy").open("rb") as file:
        return np.load(file)


def report(job: job_lib.Job, config, workdir: str, seconds: float) -> None:
    """The first and the last look beside the true distribution: report.html and report.json."""
    if jax.process_index():
        return
    first, last = (epath.Path(workdir) / "samples" / f"step_{n:07d}" for n in (0, config.steps))
    tables = [json.loads(stem.with_suffix(".json").read_text()) for stem in (first, last)]
    changes = measures.changes(load_each(first), load_each(last))
    peak, whose = facts_lib.peak()
    result = {
        "seconds": round(seconds),
        "steps": config.steps,
        "seed": config.seed,
        f"{whose}_peak_mib": round(peak),
        "machine": facts_lib.machine(),
        "versions": facts_lib.versions(),
        "before": tables[0],
        "after": tables[1],
        "true": job.judge.truth,
        "change": {name: interval._asdict() for name, interval in changes.items()},
    }
    place = epath.Path(workdir) / "report.json"
    place.write_text(json.dumps(result, indent=1) + "\n")
    facts = {
        "wall time": facts_lib.duration(seconds),
        "peak memory": f"{peak / 1024:.1f} GiB of the {whose}",
        "steps": config.steps,
        "seed": config.seed,
        "machine": result["machine"],
        "versions": result["versions"],
    }
    nothing = np.zeros((0, 1, 1, 1, 1), np.uint8)
    before = after = nothing
    if job.judge.real is not None:
        before, after = (load_pictures(stem) for stem in (first, last))
    page.write(
        epath.Path(workdir) / "report.html",
        title=f"{config.objective.name.replace('_', ' ').capitalize()} on {config.data.name}",
        captions=job.judge.captions,
        before=before,
        after=after,
        true=job.judge.real,
        rows=page.table(tables[0], tables[1], job.judge.truth, changes),
        curves=curves.read(epath.Path(workdir) / "metrics.jsonl"),
        facts=facts,
        config=json.loads(config.to_json_best_effort()),
    )


class Stop:
    """Turns SIGINT and SIGTERM into a flag that the loop reads between two steps."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step (Ctrl-C again leaves at once)", file=sys.stderr)


def brief(values: dict[str, float]) -> str:
    """The few numbers that fit beside a progress bar."""
    return " ".join(f"{SHOWN[n]} {values[n]:.3g}" for n in SHOWN if n in values)


def parse(argv: list[str]) -> list[str]:
    """Parse the command line; what is wrong with it becomes one line.

    ml_collections reports an unknown field as an AttributeError with the nearest name, and a
    recipe that fails to load as an error around the real one.
    """
    try:
        # ml_collections prints a traceback of its own and fails at the first look at the config.
        with contextlib.redirect_stderr(io.StringIO()):
            rest = flags.FLAGS(argv)
            assert CONFIG.value is not None and WORKDIR.value
            CONFIG.value.recipe = str(config_flags.get_config_filename(flags.FLAGS["config"]))
    except AssertionError:
        sys.exit("error: both --config=configs/RECIPE.py and --workdir=FOLDER are needed")
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        text = str(error).strip("'\"").replace("\\'", "").replace("\\n", "\n")
        lines = [line.strip() for line in text.split("\n")]
        telling = ("Error: ", "Did you mean", "No such file")
        said = [line for line in lines if any(words in line for words in telling)][:2]
        if isinstance(error, AttributeError):
            said = [f"the config has no field {lines[0]}", *said]
        sys.exit("error: " + ". ".join(said or lines[:1]).replace("'\"", "").strip("\"'"))
    if len(rest) > 1:
        sys.exit(f"error: unexpected argument {rest[1]!r}; options are written --name=value")
    return rest


def main(argv: list[str]) -> None:
    """Run, and turn errors a user can mend into one line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    _log.setLevel(logging.INFO)
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    try:
        workdir = str(WORKDIR.value)
        with contextlib.ExitStack() as held:
            if jax.process_index() == 0:
                held.enter_context(checkpoint.claim(workdir))
            train(CONFIG.value, workdir)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
