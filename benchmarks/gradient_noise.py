"""How much of a step's gradient is signal: do independent batches ask for the same change?

    python -m benchmarks.gradient_noise --config=configs/fusion_div.py [--batches=12] [--step=20]
        [--config.objective.flow_matching.prediction.rollout.detached=True]

The gradient of a recipe's loss at the weights it starts from, with the weights of its terms as they
are at ``--step``, for as many batches of training data, each with noise of its own. Prints one JSON
object:

    norms    least, median and largest norm
    cosine   mean over all pairs of batches of the cosine between their gradients, and its standard
             error over batches: 1 is no noise, 0 nothing else. Gradients that are clipped to one
             length count alike, so this is what a step of a recipe that clips them learns from
    halves   cosine between the mean directions of the even and of the odd batches
    seconds  median of a gradient without the first
"""

import json
import statistics
import sys
import time
from datetime import date

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.flatten_util import ravel_pytree
from ml_collections import config_flags

from cosdiff_jax import checks, host, job, sharding
from cosdiff_jax.models import layers
from cosdiff_jax.report import facts

FLAGS = flags.FLAGS


def gradients(config, batches: int, step: int) -> tuple[np.ndarray, list[float]]:
    """Of each batch the gradient, flat, "batches weights", and its seconds."""
    checks.recipe(config)
    made = job.prepare(config)
    if made.params is None:
        raise ValueError("the recipe starts from scratch: there are no weights to look at")
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh), layers.precision(config.matmul_precision):
        params = sharding.put(made.params, mesh)
        # What an anchor holds to: before the first step all are the weights themselves.
        frozen = sharding.put({"anchor": made.params, **made.frozen}, mesh) | {"average": params}
        stream = made.stream(0, 1)
        rows = [sharding.to_device(next(stream), mesh) for _ in range(batches)]
        memory = sharding.put(made.objective.start(frozen, rows[0], made.prompts), mesh)

        def loss(params, frozen, batch, key, memory):
            return made.objective(params, frozen, batch, key, jnp.asarray(step), memory)[0]

        gradient = jax.jit(jax.grad(loss), compiler_options=host.compiler_options())
        found, seconds = [], []
        for number, batch in enumerate(rows):
            began, key = time.perf_counter(), jax.random.key(number)
            found.append(np.asarray(ravel_pytree(gradient(params, frozen, batch, key, memory))[0]))
            seconds.append(time.perf_counter() - began)
    return np.stack(found), seconds


def agreement(found: np.ndarray) -> dict[str, object]:
    """What the gradients of several batches, "batches weights", have in common."""
    norms = np.linalg.norm(found, axis=1)
    units = found / norms[:, None]
    cosines = units @ units.T
    number = len(units)
    # A batch's mean over the others: pairs that share a batch are not independent.
    each = (cosines.sum(axis=1) - 1) / (number - 1)
    even, odd = units[::2].mean(axis=0), units[1::2].mean(axis=0)
    between = even @ odd / (np.linalg.norm(even) * np.linalg.norm(odd))
    return {
        "norms": [round(float(q), 1) for q in (norms.min(), np.median(norms), norms.max())],
        "cosine": round(float(each.mean()), 3),
        "cosine_error": round(float(2 * each.std(ddof=1) / np.sqrt(number)), 3),
        "halves": round(float(between), 3),
    }


def main(_) -> None:
    config = FLAGS.config
    # Only what the judge is made of; nothing is drawn.
    config.sample.update(prompts=2, shown=1, num=2)
    found, seconds = gradients(config, FLAGS.batches, FLAGS.step)
    changes = [word for word in sys.argv[1:] if word.startswith("--config.")]
    row = {"recipe": config_flags.get_config_filename(FLAGS["config"]), "changes": changes}
    row |= {"batches": FLAGS.batches, "step": FLAGS.step}
    row |= {**agreement(found), "seconds": round(statistics.median(seconds[1:]), 2)}
    row |= {"date": date.today().isoformat(), "machine": facts.machine()}
    print(json.dumps({**row, "versions": facts.versions()}))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/fusion_div.py")
    flags.DEFINE_integer("batches", 12, "Batches to compare", lower_bound=4)
    flags.DEFINE_integer("step", 20, "On which the terms' weights depend", lower_bound=0)
    flags.mark_flags_as_required(["config"])
    app.run(main)
