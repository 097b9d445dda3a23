"""What does the sampler cost beside the network's own calls?

    python benchmarks/sampler_overhead.py [--rounds=7] [--num=16] [--steps=25] [--sample=...]

Draws latents of one prompt with the embedded base model under guidance, classifier-free and by
Euler's rule unless ``--sample`` says otherwise (as of ``generate``), as one jitted program, and
beside it makes the same calls of the network with nothing around them: in one
jitted program too, each call fed what the one before it gave (``calls``), and one after the other,
each a program by itself (``dispatched``). Alternating, medians; prints one JSON object.
``overhead`` is how much longer the sampler takes than the calls in one program.
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
from cosdiff_jax.models import layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--sample", action="append", default=[])
    args = parser.parse_args()
    model = trained.load("fusion_base", sample=args.sample)
    config = model.as_asked(args.steps, 5.0, None)
    sampler = build.sampler(config, model.shape)
    tokens, mask, _ = model.read(["a red star"])
    text, empty = sampler.read(model.frozen, tokens, mask)
    keys = jax.random.split(jax.random.key(0), args.num)
    z = jax.random.normal(jax.random.key(1), (args.num, *sampler.shape))

    @jax.jit
    def drawn(params, frozen, text, empty, keys, z):
        velocity = sampler.velocity(params, frozen, text, empty, keys)
        return sampler.solver(velocity, z, args.steps, key=keys)

    # What weaker fields ask besides is no call of the network alone, and is not among these.
    number = sampler.evaluations
    both = text_stream.concatenate(text, empty)
    twice, t = jnp.concatenate([z, z]), jnp.full(2 * args.num, 0.5)

    @jax.jit
    def call(params, z, t, text):
        with layers.precision(sampler.precision):  # as the sampler itself asks
            return sampler.backbone.apply({"params": params}, z, t, text)

    @jax.jit
    def called(params, z, t, text):
        return jax.lax.scan(lambda z, _: (call(params, z, t, text), None), z, length=number)[0]

    def dispatched():
        for _ in range(number):
            jax.block_until_ready(call(model.params, twice, t, both))

    def calls():
        jax.block_until_ready(called(model.params, twice, t, both))

    def sample():
        jax.block_until_ready(drawn(model.params, model.frozen, text, empty, keys, z))

    def timed(run) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    ways = (sample, calls, dispatched)
    for way in ways:
        way()
    rounds = [[timed(way) for way in ways] for _ in range(args.rounds)]
    sampler_seconds, calls_seconds, dispatched_seconds = (
        round(statistics.median(column), 3) for column in zip(*rounds, strict=True)
    )
    ratios = [sample / calls for sample, calls, _ in rounds]
    print(
        json.dumps(
            {
                "num": args.num,
                "steps": args.steps,
                "sample": args.sample,
                "calls": number,
                "sampler_seconds": sampler_seconds,
                "calls_seconds": calls_seconds,
                "dispatched_seconds": dispatched_seconds,
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
