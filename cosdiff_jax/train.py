"""Train anything in objectives/: one loop, read from top to bottom.

    python -m cosdiff_jax.train --config=configs/fusion_div.py --workdir=runs/fusion_div

The same command resumes. Ctrl-C or SIGTERM saves what there is to save and exits with 0; a second
Ctrl-C leaves at once.
"""

import contextlib
import json
import logging
import math
import sys
import time

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from cosdiff_jax import checkpoint, checks, commandline, host, optimizer, sharding
from cosdiff_jax import job as job_lib
from cosdiff_jax.models import layers
from cosdiff_jax.report import record
from cosdiff_jax.report import run as report
from cosdiff_jax.shapes import TrainState
from cosdiff_jax.signals import Stop

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/fusion_div.py:tiny")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs, grids, report")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a pod or cluster")

_log = logging.getLogger("cosdiff_jax")


def train(config, workdir: str) -> TrainState:
    """Run a recipe to its end or to the next signal; return the state it ended in.

    Args:
      config: the resolved recipe.
      workdir: where everything goes; resumed from if it holds a checkpoint of the same recipe.

    Raises:
      ValueError, OSError: something the user can put right, in one line.
    """
    began, stop = time.monotonic(), Stop()
    checks.recipe(config)
    mesh = sharding.make_mesh(**config.mesh)
    with (
        jax.set_mesh(mesh),
        layers.precision(config.matmul_precision),
        checkpoint.claim(workdir),
        checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints,
        contextlib.ExitStack() as held,
    ):
        checks.same_run(config, checkpoints.begun(), workdir)
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
        looked = False  # at the step that the state is in
        if restored is not None:
            if restored.step > config.steps:
                raise ValueError(
                    f"steps = {config.steps}, but {workdir} is at step {restored.step} already: "
                    "raise steps or choose another --workdir"
                )
            state = restored.state
            stream.set_state(restored.data["stream"])
            began -= restored.data["seconds"]
            # The last look is what the report is made of.
            looked = restored.data.get("looked", True) and restored.step < config.steps
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
            checkpoints.save(state, {**place, "looked": looked}, recipe)

        stop.preparing = False  # from here on there is something to save
        checkpoints.begin(recipe)
        step, first = int(state.step), jax.process_index() == 0
        wandb = record.Wandb(**config.wandb)
        log = record.Record(workdir, step, write=first, wandb=wandb, config=recipe)
        meter = record.Meter(example.tokens.shape[0] * config.data.samples)
        bar = held.enter_context(record.bar(step, config.steps))
        often = job.epoch if config.sample.measure == -1 else config.sample.measure
        last = table = None
        while True:
            ends, keeps = step == config.steps, step % config.checkpoint.every == 0
            measures = ends or not step or divides(often, step)
            looks = not looked and (measures or divides(config.sample.every, step))
            if looks or keeps:
                jax.block_until_ready(last)
                meter.pause(step)
            if ends:
                bar.close()
                save()
            if looks:
                # Before it is saved: what a run killed in between has not kept, it does again.
                table = look(job, frozen, state, workdir, log, stop, measure=measures)
                looked = table is not None
            if ends or stop.heard(together=step % config.log_every == 0):
                break
            if keeps and step:
                save()
            if looks or keeps:
                bar.unpause()  # what they took says nothing about the time left
            if last is not None:  # the first step compiles
                meter.run(step)
            batch = sharding.to_device(next(stream), mesh)
            state, logs = train_step(state, frozen, batch)
            # One step runs while the next is prepared; more would run on after a signal.
            jax.block_until_ready(logs["loss"] if last is None else last)
            last = logs["loss"]
            step, looked = step + 1, False
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in logs.items()}
                if not math.isfinite(values["loss"]):
                    raise ValueError(
                        f"the loss is {values['loss']} at step {step}; the last good checkpoint "
                        "stands: lower optimizer.rate or look at the data"
                    )
                values |= meter.rate(step)
                log.write(step, values)
                bar.set_postfix_str(record.brief(values))
            bar.update()
        bar.close()
        save()
        log.close()
        if table is None or step < config.steps:
            _log.info("stopped and saved at step %d; the same command goes on", step)
            return state
        seconds = time.monotonic() - began
        model = epath.Path(workdir) / "model"
        weights = sharding.to_host(state.ema)  # of every host; the first one writes
        if first:
            job_lib.export(config, job, weights, model, seconds=seconds, table=table)
            report.write(
                workdir,
                recipe,
                captions=job.judge.captions,
                truth=job.judge.truth,
                real=job.judge.real,
                seconds=seconds,
            )
    return state


def look(
    job: job_lib.Job,
    frozen,
    state: TrainState,
    workdir: str,
    log: record.Record,
    stop: Stop,
    *,
    measure: bool,
) -> dict | None:
    """Draw the fixed prompts with the averaged weights, measure; keep both, in samples/ and log.

    After a signal nothing is kept, and None comes back: half a look is none.
    """
    seen = job.judge(state.ema, frozen, measure=measure, stop=stop.heard)
    if seen is None:
        return None
    if jax.process_index() == 0:
        step = int(state.step)
        log.look(step, seen.table, seen.images)
        report.keep_pictures(workdir, step, seen.images, job.judge.captions)
        if measure:
            report.keep_measures(workdir, step, seen.table, seen.each)
    return seen.table


def divides(every: int, step: int) -> bool:
    """Whether something that comes every so many steps, or at 0 never, comes at this one."""
    return every > 0 and step % every == 0


def parse(argv: list[str]) -> list[str]:
    """Parse the command line; what is wrong with it becomes one line."""

    def look() -> None:
        if CONFIG.value is None or not WORKDIR.value:
            sys.exit("error: both --config=configs/RECIPE.py and --workdir=FOLDER are needed")
        CONFIG.value.recipe = str(config_flags.get_config_filename(flags.FLAGS["config"]))

    return commandline.parse(argv, look)


def main(argv: list[str]) -> None:
    """Run, and turn errors a user can mend into one line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    _log.setLevel(logging.INFO)
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    try:
        train(CONFIG.value, str(WORKDIR.value))
    except (OSError, ValueError) as error:  # a full disk is the user's to mend, too
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
