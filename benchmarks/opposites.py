"""Are two pictures of one prompt less alike where they start from opposite noise?

    python benchmarks/opposites.py [--model=fusion_base] [--prompts=128] [--num=8] [--steps=25]
        [--method=antithetic] [--guidance=5] [--out=opposites.json]

Methods that pair samples, x and -x (``antithetic`` all of the noise, ``low_frequency`` its low
frequencies), draw ``--num`` pictures of held-out Scenes prompts. Within a prompt, the cosine of
pictures (embedded CLIP) that are partners is set beside the cosine of those that are not, which
are as independent as any: two groups of two, drawn with and without the method, from the same
pictures. Of K pictures K / 2 pairs are partners, so that a group's mean cosine moves by 1 / (K - 1)
of the difference: in a group of two by all of it, in one of eight by a seventh, which takes many
more prompts to see.

Prints one JSON line for each method at each guidance and writes them all to ``--out``; what stands
there already, asked in the same way of the same weights, is kept. The difference has the 95 %
interval of a bootstrap over the prompts.
"""

import argparse
import json
from datetime import date
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cosdiff_jax import diverse, trained, weights
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.diversity import similarity
from cosdiff_jax.metrics.bootstrap import Bootstrap
from cosdiff_jax.report import facts

ROWS = 64
PAIRED = ("antithetic", "low_frequency")


def pairs(
    f: Float[np.ndarray, "P K F"],
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Mean cosine of partners, which lie side by side, and of all other pairs, of each prompt."""
    i, j = np.triu_indices(f.shape[1], 1)
    partners = i // 2 == j // 2
    found = np.asarray(similarity.cosine_matrix(jnp.asarray(f)))[:, i, j]
    return found[:, partners].mean(axis=1), found[:, ~partners].mean(axis=1)


def pairs_samples(method: str) -> bool:
    """Whether a method draws partners side by side, and keeps all that it draws."""
    return diverse.overlay(method).get("noise", {}).get("name") in PAIRED and not diverse.chooses(
        method
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="fusion_base")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--num", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", action="append")
    parser.add_argument("--guidance", type=float, action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.num < 4 or args.num % 2:
        parser.error(f"--num={args.num}: partners and others take an even number from 4 on")

    methods = args.method or list(PAIRED)
    for method in methods:
        if not pairs_samples(method):
            parser.error(f"--method={method} draws no partners: {', '.join(PAIRED)} do, alone")

    model = trained.load(args.model, ("llm", "vae", "clip"))
    if "clip" not in model.frozen:
        parser.error(f"--model={args.model} has no CLIP to compare its pictures by")
    kept = ("model", "prompts", "num", "steps", "seed")
    asked = {**{name: getattr(args, name) for name in kept}, **model.digests}
    asked["clip"] = weights.digest(model.frozen["clip"])
    today = {"date": date.today().isoformat(), "machine": facts.machine()}
    today["versions"] = facts.versions()
    rows = []
    if args.out is not None and args.out.exists():
        before = json.loads(args.out.read_text())
        # Older files say no CLIP, and when and where only once.
        if {name: before["arguments"].get(name, asked[name]) for name in asked} != asked:
            parser.error(f"{args.out} was measured with {before['arguments']}: name another --out")
        once = {name: before[name] for name in today if name in before}
        rows = [{**row, **once} for row in before["rows"]]
    items = held_out(args.prompts, 1, args.seed)
    prompts = [items[index]["caption"] for index in range(args.prompts)]
    size = max(1, ROWS // args.num)
    for method in methods:
        for guidance in args.guidance or [5.0, 1.0]:
            if (method, guidance) in {(row["method"], row["guidance"]) for row in rows}:
                continue
            draw = diverse.DiverseSampler(
                model=model, num=args.num, method=method, steps=args.steps, guidance=guidance
            )
            groups = range(0, len(prompts), size)
            drawn = [draw.draw(prompts[first : first + size], seed=args.seed) for first in groups]
            partners, others = pairs(np.concatenate([np.asarray(each.f) for each in drawn]))
            value, low, high = Bootstrap()(partners - others)
            row = {
                "method": method,
                "guidance": guidance,
                "partners": float(partners.mean()),
                "others": float(others.mean()),
                "difference": value,
                "low": low,
                "high": high,
                **today,
            }
            rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            print(json.dumps(rows[-1]), flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps({"arguments": asked, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
