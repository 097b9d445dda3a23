"""The official fuse-dit at the shapes of ``fuse_dit_step.py``, to be timed beside it.

    python benchmarks/fuse_dit_official.py --source=FOLDER [--only=train|sample] [--repeats=5]

FOLDER is a checkout of the published code (commit 5e6431a), which pins its own packages: run this
with an environment of its own that has torch, transformers 4.43.3, diffusers 0.32.0 and einops.
Random weights, float32, as many threads as the machine has cores. Prints one JSON line with the
fields of ``fuse_dit_step.py``.

The step is what its trainer does on one device, without data, autoencoder and EMA: joint forward,
backward of the transformer alone, AdamW. Sampling is its pipeline's loop with its cache.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch

IMAGES, LENGTH, VOCAB = 16, 64, 8192
STEPS, GUIDANCE = 25, 6.0


def median(run: Callable[[int], object], warm: int, full: int, repeats: int) -> tuple[float, float]:
    """Median wall and CPU seconds of ``run(full)``, after ``run(warm)`` that is not counted."""
    run(warm)
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run(full)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="a checkout of the published code")
    parser.add_argument("--only", choices=("train", "sample"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    sys.path.insert(0, args.source)
    from diffusion.configs import FuseDiTConfig
    from diffusion.models import FuseDiT
    from transformers import GemmaConfig

    torch.manual_seed(0)
    base = GemmaConfig(
        vocab_size=VOCAB,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=64,
    )
    model = FuseDiT(
        FuseDiTConfig(
            attention="self",
            base_config=base,
            dit_num_hidden_layers=8,
            pos_embed="ape",
            qk_norm=True,
            sample_size=32,
            timestep_conditioning="adaln-zero",
            attn_implementation="sdpa",
        )
    )
    model.llm.requires_grad_(False)
    for parameter in model.dit.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    latents = torch.randn(IMAGES, 16, 32, 32)
    tokens = torch.randint(3, VOCAB, (IMAGES, LENGTH))
    mask = torch.ones(IMAGES, LENGTH, dtype=torch.long)
    mask[1::2, LENGTH // 2 :] = 0
    optimizer = torch.optim.AdamW(model.dit.parameters(), lr=1e-4, weight_decay=1e-4)

    def train(steps: int) -> None:
        for _ in range(steps):
            noise = torch.randn_like(latents)
            t = torch.sigmoid(torch.randn(IMAGES))
            mix = t[:, None, None, None]
            v = model((1 - mix) * latents + mix * noise, 1000 * t, tokens, mask)[0]
            loss = ((v - (noise - latents)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    empty = torch.zeros_like(tokens)
    empty[:, 0] = 2
    empty_mask = (torch.arange(LENGTH) < 1).long().expand(IMAGES, -1)
    both, both_mask = torch.cat([empty, tokens]), torch.cat([empty_mask, mask])

    @torch.no_grad()
    def sample(steps: int) -> None:
        z, cache = latents, None  # the first call makes it
        for i in range(steps):
            t = torch.full((2 * IMAGES,), 1000 * (1 - i / STEPS))
            v, cache = model(
                torch.cat([z, z]), t, both, both_mask, use_cache=True, past_key_values=cache
            )
            v_empty, v_text = v.chunk(2)
            z = z - (v_empty + GUIDANCE * (v_text - v_empty)) / STEPS

    row = {
        "benchmark": "fuse_dit_official",
        "device": "cpu",
        "machine": platform.processor() or platform.machine(),
    }
    if args.only != "sample":
        wall, cpu = median(train, 1, 1, args.repeats)
        row |= {"train_step_s": round(wall, 3), "train_step_cpu_s": round(cpu, 3)}
        row["train_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if args.only != "train":
        wall, cpu = median(sample, 2, STEPS, max(1, args.repeats // 3))
        row |= {
            "sample_s": round(wall, 2),
            "sample_cpu_s": round(cpu, 2),
            "images_per_s": round(IMAGES / wall, 3),
        }
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(row))


if __name__ == "__main__":
    main()
