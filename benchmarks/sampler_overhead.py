"""What does the sampler cost beside the network's own calls?

    python benchmarks/sampler_overhead.py [--rounds=7] [--num=16] [--steps=25]

Draws latents of one prompt with the embedded base model under classifier-free guidance, as one
jitted program, and beside it makes the same calls of the network one after the other, each jitted
by itself with nothing around it. Alternating, medians; prints one JSON line. ``overhead`` is how
much longer the sampler takes than the sum of the calls.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from importlib import metadata

import jax
import jax.numpy as jnp

from cosdiff_jax import build, text_stream, trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    model = trained.load("fusion_base")
    config = model.as_asked(args.steps, 5.0, None)
    sampler = build.sampler(config, model.shape)
    tokens, mask, _ = model.read(["a red star"])
    text, empty = sampler.read(model.frozen, tokens, mask)
    keys = jax.random.split(jax.random.key(0), args.num)
    z = jax.random.normal(jax.random.key(1), (args.num, *sampler.shape))

    @jax.jit
    def drawn(params, frozen, text, empty, keys, z):
        velocity = sampler.velocity(params, frozen, text, empty, keys)
        return sampler.solver(velocity, z, args.steps)

    both = text_stream.concatenate(text, empty)
    twice, t = jnp.concatenate([z, z]), jnp.full(2 * args.num, 0.5)

    @jax.jit
    def call(params, z, t, text):
        return sampler.backbone.apply({"params": params}, z, t, text)

    def timed(run) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def calls():
        for _ in range(args.steps):
            jax.block_until_ready(call(model.params, twice, t, both))

    def sample():
        jax.block_until_ready(drawn(model.params, model.frozen, text, empty, keys, z))

    sample(), calls()
    pairs = [(timed(sample), timed(calls)) for _ in range(args.rounds)]
    ratios = [a / b for a, b in pairs]
    print(
        json.dumps(
            {
                "num": args.num,
                "steps": args.steps,
                "sampler_seconds": round(statistics.median(a for a, _ in pairs), 3),
                "calls_seconds": round(statistics.median(b for _, b in pairs), 3),
                "overhead": round(statistics.median(ratios) - 1, 4),
                "overhead_range": [round(min(ratios) - 1, 4), round(max(ratios) - 1, 4)],
                "rounds": args.rounds,
                "machine": platform.processor() or platform.machine(),
                "date": date.today().isoformat(),
                "jax": metadata.version("jax"),
            }
        )
    )


if __name__ == "__main__":
    main()
