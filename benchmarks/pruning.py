"""What dropping candidates on the way costs and loses, against choosing from all finished pictures.

    python benchmarks/pruning.py [--setting=64,4,4,0.9] [--setting=128,4,20,0.5] [--prompts=16]
        [--model=fusion_base] [--guidance=5] [--sample=grid.name=shifted ...]

A setting is M, k, solver steps, share dropped after every step and, optionally, the t from which
on they are dropped; the two above are the published ones of group inference (arXiv 2508.15773).
``--sample`` changes the recipe's ``sample`` for both ways, as ``generate`` does. Both start from
the same noise and keep what the quadratic programme keeps; ``ratio`` is the programme's objective,
on finished pictures, of the set that pruning keeps over that of the set chosen from all M, and
``chance`` that of the first k. Prints one JSON line for each setting.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax
import numpy as np

from cosdiff_jax import trained
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.diverse import DiverseSampler
from cosdiff_jax.diversity.programme import QuadraticProgram
from cosdiff_jax.report import facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", action="append", help="M,k,steps,share[,start]")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--model", default="fusion_base")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--sample", action="append", default=[], help="FIELD=VALUE")
    args = parser.parse_args()

    model = trained.load(args.model, ("llm", "vae", "clip"), sample=args.sample)
    prompts = [item["caption"] for item in held_out(args.prompts, 1, 0)]
    objective = jax.jit(QuadraticProgram().objective)
    for setting in args.setting or ("64,4,4,0.9", "128,4,20,0.5"):
        m, k, steps = (int(x) for x in setting.split(",")[:3])
        share, start = (float(x) for x in (*setting.split(",")[3:], 1.0)[:2])
        options = {"num": k, "candidates": m, "steps": steps, "guidance": args.guidance}
        every = DiverseSampler(model=model, method="programme", **options)
        config = model.as_asked(None, None, {"pruning": share, "pruned_from": start})
        pruning = dataclasses.replace(model, config=config)
        pruned = DiverseSampler(model=pruning, method="programme", **options)
        ratios, chances, seconds = [], [], {"all": [], "pruned": []}
        row = {"setting": setting, "sample": args.sample, "machine": facts.machine()}
        for prompt in prompts:
            began = time.perf_counter()
            drawn = every.draw([prompt])
            best = every.choose(drawn)
            between = time.perf_counter()
            kept = pruned([prompt])
            seconds["all"].append(between - began)
            seconds["pruned"].append(time.perf_counter() - between)
            assert drawn.f is not None and drawn.score is not None
            f, score = drawn.f[0], drawn.score[0]
            value, of_best, of_first = (
                float(objective(f, score, np.asarray(numbers)))
                for numbers in (kept.kept[0], best.kept[0], np.arange(k))
            )
            ratios.append(value / of_best)
            chances.append(of_first / of_best)
            row |= {"evaluations": {"all": drawn.evaluations, "pruned": kept.evaluations}}
        row |= {
            "prompts": len(prompts),
            "ratio": round(statistics.mean(ratios), 4),
            "worst": round(min(ratios), 4),
            "chance": round(statistics.mean(chances), 4),
            **{
                f"seconds_{way}": round(statistics.median(s[1:] or s), 2)
                for way, s in seconds.items()
            },
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
