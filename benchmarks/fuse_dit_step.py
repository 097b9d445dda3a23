"""Seconds per training step, images/s sampled and peak memory of one fixed FuseDiT.

    python benchmarks/fuse_dit_step.py [--grouped] [--only=train|sample] [--repeats=5]

The shapes are those the official fuse-dit was timed at (4.09 s a step, 69.7 s for 16 images with
its cache, two idle cores, float32): width 384, 8 layers, 6 heads of 64, MLP 1536, a language model
of the same shape, absolute positions, adaLN-Zero, QK-norm, 16 latents of 32 x 32 x 16 in patches of
2, 64 text tokens, half the rows padded by half. A training step is LLM and DiT forward, DiT
backward and AdamW; sampling is 25 Euler steps at guidance 6 for 16 images.

``--grouped`` runs the same 16 images as 2 prompts with 8 samples each. Prints one JSON line; wall
times are medians, CPU times (all threads) tell the truth on a busy machine.
"""

import argparse
import json
import platform
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from cosdiff_jax import host, text_stream
from cosdiff_jax.models.fuse_dit import FuseDiT
from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.models.position import Ape

IMAGES, LENGTH, VOCAB = 16, 64, 8192
STEPS, GUIDANCE = 25, 6.0


def models(unroll: int) -> tuple[FuseDiT, Gemma]:
    sizes = {"width": 384, "depth": 8, "heads": 6, "kv_heads": 6, "head_size": 64, "mlp": 1536}
    return FuseDiT(position=Ape(), **sizes, unroll=unroll), Gemma(
        vocab=VOCAB, **sizes, unroll=unroll
    )


def prompts(number: int) -> tuple[jax.Array, jax.Array]:
    tokens = jax.random.randint(jax.random.key(1), (number, LENGTH), 3, VOCAB)
    real = jnp.where(jnp.arange(number) % 2 == 0, LENGTH, LENGTH // 2)
    return tokens, jnp.arange(LENGTH)[None, :] < real[:, None]


def measure(run, repeats: int) -> tuple[float, float]:
    """Median wall seconds and CPU seconds of a call that blocks; the first call is not counted."""
    run()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grouped", action="store_true")
    parser.add_argument("--only", choices=("train", "sample"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--unroll", type=int, default=8, help="layers per loop, in training")
    args = parser.parse_args()

    backbone, llm = models(args.unroll)
    tokens, mask = prompts(2 if args.grouped else IMAGES)
    empty = jnp.zeros((1, LENGTH), jnp.int32).at[0, 0].set(2)
    empty_mask = jnp.arange(LENGTH)[None, :] < 1
    keys = jax.random.split(jax.random.key(0), 4)
    latents = jax.random.normal(keys[0], (IMAGES, 32, 32, 16))
    frozen = jax.jit(llm.init)(keys[1], tokens, mask)

    def born(key):
        return backbone.init(key, latents, jnp.ones(IMAGES), llm.apply(frozen, tokens, mask))

    params = jax.jit(born)(keys[2])
    # Zero gates would let XLA prove nothing away, but a real step has none: start from noise.
    params = jax.tree.map(lambda x: x + 0.01 * jax.random.normal(keys[3], x.shape), params)
    optimizer = optax.adamw(1e-4, weight_decay=1e-4)

    def step(params, moments, frozen, key):
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, latents.shape)
        t = jax.nn.sigmoid(jax.random.normal(time_key, (IMAGES,)))
        mix = t[:, None, None, None]
        text = llm.apply(frozen, tokens, mask)

        def loss(params):
            v = backbone.apply(params, (1 - mix) * latents + mix * noise, t, text)
            return jnp.mean((v - (noise - latents)) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    def sample(params, frozen, z):
        text = text_stream.concatenate(
            llm.apply(frozen, tokens, mask),
            text_stream.repeat(llm.apply(frozen, empty, empty_mask), tokens.shape[0]),
        )

        # Without a backward pass the loop over layers costs nothing and compiles faster.
        velocity = backbone.clone(unroll=1).apply

        def euler(i, z):
            t = jnp.full(2 * IMAGES, 1 - i / STEPS)
            both = velocity(params, jnp.concatenate([z, z]), t, text)
            v, v_empty = jnp.split(both, 2)
            return z - (v_empty + GUIDANCE * (v - v_empty)) / STEPS

        return jax.lax.fori_loop(0, STEPS, euler, z)

    row = {
        "benchmark": "fuse_dit_step" + ("_grouped" if args.grouped else ""),
        "device": jax.devices()[0].platform,
        "machine": platform.processor() or platform.machine(),
        "unroll": args.unroll,
    }
    if args.only != "sample":
        # Donated state needs a copy of its own: the parameters are used again below.
        state = [jax.tree.map(jnp.copy, params), optimizer.init(params)]
        train = jax.jit(step, donate_argnums=(0, 1), compiler_options=host.compiler_options())

        def run_step():
            state[0], state[1], value = train(state[0], state[1], frozen, keys[0])
            jax.block_until_ready(value)

        wall, cpu = measure(run_step, args.repeats)
        row |= {"train_step_s": round(wall, 3), "train_step_cpu_s": round(cpu, 3)}
        row["train_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        del state
    if args.only != "train":
        draw = jax.jit(sample)
        repeats = max(1, args.repeats // 3)
        wall, cpu = measure(lambda: jax.block_until_ready(draw(params, frozen, latents)), repeats)
        row |= {
            "sample_s": round(wall, 2),
            "sample_cpu_s": round(cpu, 2),
            "images_per_s": round(IMAGES / wall, 3),
        }
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(row))


if __name__ == "__main__":
    main()
