"""Every way to different pictures of one prompt, side by side: what it costs and what it brings.

    python benchmarks/methods.py [--model=fusion_base] [--prompts=64] [--num=4] [--candidates=16]
        [--guidance=5] [--steps=25] [--method=cads --method=particle+max_min] [--out=methods.json]

Held-out Scenes prompts, the same noise for all. The methods that choose among candidates choose
from the same ones. Prints one JSON line for each method, the true pictures last, and writes them
all to ``--out``; what stands there already, asked in the same way, is kept and not measured again.
``evaluations`` (of the velocity: guidance asks the network twice for each) and
``seconds`` are for one prompt; seconds are medians over groups of prompts, the first of which,
with the compilation, is left out.
"""

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path

import numpy as np

from cosdiff_jax import job, tables, trained
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.diverse import METHODS, Candidates, DiverseSampler, overlay
from cosdiff_jax.report import facts

ROWS, TRUE = 64, "true pictures"
CHOOSING = set(tables.SELECTIONS) | {"pruning", "late_pruning"}


def changes(method: str) -> dict:
    """What methods joined by + change, as JSON has it."""
    return json.loads(json.dumps(overlay(method)))


def in_groups(
    draw: DiverseSampler, prompts: list[str], total: int, seed: int
) -> tuple[Candidates, float]:
    """The candidates of all prompts, and seconds a prompt."""
    size = max(1, ROWS // total)
    found, seconds = [], []
    for first in range(0, len(prompts), size):
        began = time.perf_counter()
        found.append(draw.draw(prompts[first : first + size], seed=seed))
        seconds.append((time.perf_counter() - began) / size)
    joined = {
        name: np.concatenate([getattr(part, name) for part in found])
        for name in ("images", "number", "f", "score")
    }
    whole = Candidates(**joined, evaluations=found[0].evaluations)
    return whole, statistics.median(seconds[1:] or seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fusion_base")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--num", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model = trained.load(args.model, ("llm", "vae", "clip"))
    model.config.sample.update(prompts=args.prompts, num=args.num, shown=1)
    asked = {k: str(v) for k, v in vars(args).items() if k not in ("out", "method")}
    asked |= model.digests  # the embedded model is trained anew now and then, under one name
    rows, pool = [], None
    if args.out is not None and args.out.exists():
        before = json.loads(args.out.read_text())
        if before["arguments"] != asked:
            parser.error(f"{args.out} was measured with {before['arguments']}: name another --out")
        # A method that has another strength since is measured anew.
        drawn = [row for row in before["rows"] if row["method"] != TRUE]
        rows = [row for row in drawn if row.get("changes") == changes(row["method"])]
    items = held_out(args.prompts, args.num, args.seed)
    judge = job.drawn(model.config, items, model.tokenizer, model.frozen)
    prompts = list(judge.prompts)
    about = {
        "arguments": asked,
        "date": date.today().isoformat(),
        "machine": facts.machine(),
        "versions": facts.versions(),
    }

    def note(row: dict) -> None:
        rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(json.dumps(rows[-1]), flush=True)
        if args.out is not None:
            args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")

    known = {row["method"] for row in rows}
    for method in (m for m in args.method or METHODS if m not in known):
        chooses = bool(CHOOSING & set(method.split("+")))
        draw = DiverseSampler(
            model=model,
            num=args.num,
            method=method,
            candidates=args.candidates if chooses else None,
            steps=args.steps,
            guidance=args.guidance,
        )
        if method in tables.SELECTIONS:
            pool = pool or in_groups(draw, prompts, args.candidates, args.seed)
            (candidates, seconds), began = pool, time.perf_counter()
            samples = draw.choose(candidates)
            seconds += (time.perf_counter() - began) / len(prompts)
        else:
            total = args.candidates if chooses else args.num
            candidates, seconds = in_groups(draw, prompts, total, args.seed)
            samples = draw.choose(candidates)
        cost = {"evaluations": samples.evaluations, "seconds": seconds}
        said = {"method": method, "changes": changes(method)}
        note({**said, **cost, **judge.measured(samples.images).table})
    note({"method": TRUE, **judge.truth})


if __name__ == "__main__":
    main()
