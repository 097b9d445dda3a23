"""Seconds, memory and error of the similarity of one large group.

    python benchmarks/similarity.py --form=mean_gradient --form=top [--number=65536]
        [--features=768] [--percent=5] [--block=1024] [--repeats=3]

Features are normal numbers around a common vector: cosines of 0.2 with a spread of 0.04 at 768
features. ``mean`` and ``mean_gradient`` are ``similarity.mean_cosine``; ``top`` and
``top_gradient`` are the mean of the highest ``--percent`` %, in blocks at every number of samples.
``--number``, ``--features`` and ``--form`` can be given several times.

Prints one JSON line for every combination. Seconds are medians and CPU seconds are of all threads;
the first call comes apart, and so does compilation. ``peak_mib`` is what the process took during
the first call above what it held with the inputs in place and the program compiled. Up to 4,096
samples, errors are against numpy in float64 over all pairs: of the value, and of the gradient
relative to its length.
"""

import argparse
import itertools
import json
import math
import pathlib
import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax.diversity import blockwise, similarity
from cosdiff_jax.report import facts


def measure(form: str, percent: float, block: int):
    """The function of features [N F] that a form stands for."""

    def top(f):
        return blockwise.top_mean(similarity.unit(f), percent, block=block)

    value = similarity.mean_cosine if form.startswith("mean") else top
    return jax.value_and_grad(value) if form.endswith("gradient") else value


def brute(f: np.ndarray, percent: float) -> tuple[float, np.ndarray]:
    """Mean of the highest ``percent`` % over all pairs and its gradient, in double precision."""
    f = f.astype(np.float64)
    length = np.linalg.norm(f, axis=1, keepdims=True)
    u = f / length
    cosines = u @ u.T
    pairs = cosines[np.triu_indices(len(f), 1)]
    k = math.ceil(pairs.size * percent / 100 - 1e-9)
    highest = np.partition(pairs, pairs.size - k)[pairs.size - k :]
    chosen = (cosines >= highest[0]) & ~np.eye(len(f), dtype=bool)
    slope = chosen @ u / k
    return highest.mean(), (slope - np.sum(slope * u, axis=1, keepdims=True) * u) / length


def mebibytes(field: str) -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def timed(run, f):
    """Wall seconds, CPU seconds and what came of it."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = jax.block_until_ready(run(f))
    return time.perf_counter() - wall, time.process_time() - cpu, found


def row(form: str, number: int, features: int, percent: float, block: int, repeats: int) -> dict:
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(number, features)).astype(np.float32) + np.float32(0.5)
    f = jax.block_until_ready(jnp.asarray(drawn))
    start = time.perf_counter()
    run = jax.jit(measure(form, percent, block)).lower(f).compile()
    compile_s = time.perf_counter() - start
    # 5 sets the high-water mark back to what is held now.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    held = mebibytes("VmRSS")
    first_s, *_ = timed(run, f)
    peak = mebibytes("VmHWM") - held
    walls, cpus, results = zip(*(timed(run, f) for _ in range(repeats)), strict=True)
    value, gradient = results[-1] if form.endswith("gradient") else (results[-1], None)
    found = {
        "benchmark": "similarity",
        "device": jax.devices()[0].platform,
        "machine": facts.machine(),
        "number": number,
        "features": features,
        "form": form,
        "percent": percent if form.startswith("top") else 100.0,
        "block": block if form.startswith("top") else None,
        "compile_s": round(compile_s, 2),
        "first_s": round(first_s, 3),
        "seconds": round(statistics.median(walls), 3),
        "cpu_s": round(statistics.median(cpus), 3),
        "peak_mib": round(peak, 1),
        "value": float(value),
    }
    if number <= 4096:
        want, slope = brute(drawn, found["percent"])
        found["error"] = abs(float(value) - want)
        if gradient is not None:
            apart = np.linalg.norm(np.asarray(gradient, np.float64) - slope)
            found["gradient_error"] = float(apart / np.linalg.norm(slope))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    forms = ("mean", "mean_gradient", "top", "top_gradient")
    parser.add_argument("--number", type=int, action="append", help="N")
    parser.add_argument("--features", type=int, action="append", help="F")
    parser.add_argument("--form", choices=forms, action="append")
    parser.add_argument("--percent", type=float, default=5.0)
    parser.add_argument("--block", type=int, default=1024, help="rows of a block")
    parser.add_argument("--repeats", type=int, default=3, help="calls after the first one")
    args = parser.parse_args()
    combinations = itertools.product(
        args.form or forms, args.number or [65536], args.features or [768]
    )
    for form, number, features in combinations:
        found = row(form, number, features, args.percent, args.block, args.repeats)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
