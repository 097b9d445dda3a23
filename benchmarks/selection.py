"""Milliseconds to keep k of M candidates of one prompt, by every method.

    python benchmarks/selection.py [--candidates=1024] [--keep=16] [--features=768] [--repeats=20]

Features are drawn as those of one prompt's pictures look: a common direction and noise around it,
for a mean cosine of about 0.7; scores as CLIP cosines are, 0.3 +- 0.02. Times are of a compiled
call for one prompt: wall times are medians, CPU times (all threads) tell the truth on a busy
machine. The quadratic programme's local search is also set beside a run from ``--long`` starts on
20 prompts with 64 candidates: its share of that objective (mean and worst) and of the way there
from a random set. Prints one JSON line per method.
"""

import argparse
import json
import statistics
import time

import jax

from cosdiff_jax.diversity import programme, selection
from cosdiff_jax.report import facts

METHODS = {
    "max_min": selection.MaxMin(),
    "min_sum": selection.MinSum(),
    "maximal_marginal_relevance": selection.MaximalMarginalRelevance(),
    "determinantal_point_process": selection.DeterminantalPointProcess(),
    "k_medoids": selection.KMedoids(),
    "quadratic_program": programme.QuadraticProgram(),
}
PROMPTS, FEW = 20, 64


def candidates(prompts: int, number: int, features: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    common = jax.random.normal(keys[0], (prompts, 1, features))
    f = 1.5 * common + jax.random.normal(keys[1], (prompts, number, features))
    return f, 0.3 + 0.02 * jax.random.normal(keys[2], (prompts, number))


def measure(run, repeats: int) -> tuple[float, float]:
    """Median wall and CPU milliseconds of a call that blocks; the first call is not counted."""
    run()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    return statistics.median(walls), statistics.median(cpus)


def share_of_long_run(keep: int, features: int, starts: int) -> dict[str, float]:
    f, score = candidates(PROMPTS, FEW, features)

    def objective(search):
        def one(f, score):
            return search.objective(f, score, search(f, score, keep))

        return jax.jit(jax.vmap(one))(f, score)

    search = METHODS["quadratic_program"]
    value = objective(search)
    best = objective(programme.QuadraticProgram(restarts=starts))
    keys = jax.random.split(jax.random.key(1), 1000)
    some = jax.vmap(lambda key: jax.random.permutation(key, FEW)[:keep])(keys)
    chance = jax.jit(
        jax.vmap(lambda f, s: jax.lax.map(lambda i: search.objective(f, s, i), some).mean())
    )(f, score)
    return {
        "share_of_long_run": round(float((value / best).mean()), 5),
        "worst_share": round(float((value / best).min()), 5),
        "share_above_chance": round(float(((value - chance) / (best - chance)).mean()), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=1024, help="M")
    parser.add_argument("--keep", type=int, default=16, help="k")
    parser.add_argument("--features", type=int, default=768, help="F")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--long", type=int, default=2000, help="starts of the long run")
    args = parser.parse_args()

    f, score = candidates(1, args.candidates, args.features)
    for name, select in METHODS.items():
        keep = jax.jit(lambda f, score, select=select: select(f, score, args.keep))

        def run(keep=keep):
            jax.block_until_ready(keep(f[0], score[0]))

        wall, cpu = measure(run, args.repeats)
        row = {
            "benchmark": "selection",
            "method": name,
            "device": jax.devices()[0].platform,
            "machine": facts.machine(),
            "M": args.candidates,
            "k": args.keep,
            "F": args.features,
            "ms_per_prompt": round(wall, 2),
            "cpu_ms_per_prompt": round(cpu, 2),
        }
        if name == "quadratic_program":
            row |= share_of_long_run(args.keep, args.features, args.long)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
