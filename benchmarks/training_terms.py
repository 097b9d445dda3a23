"""What a training step of the main job costs with each option of its terms.

    python benchmarks/training_terms.py [--only=recipe] [--steps=6] [--repeats=1]

Every row is ``configs/fusion_div.py`` with one thing changed, trained for a few steps by the
command that users type, in a process of its own; ``seconds`` is the median step without the first,
``times`` that over the step of the flow loss alone, ``peak_mib`` of the whole process. Prints one
JSON line for each row.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cosdiff_jax.report import facts

FLOW = "objective.flow_matching"
FEATURE, ROLLOUT = f"{FLOW}.feature.name", f"{FLOW}.prediction.rollout"
NO_DIVERSITY, NO_ALIGNMENT = f"{FLOW}.diversity.name=none", f"{FLOW}.alignment.name=none"
ROWS = {
    "flow loss alone": (NO_DIVERSITY, NO_ALIGNMENT, f"{FLOW}.anchor=0.0"),
    "flow and anchor": (NO_DIVERSITY, NO_ALIGNMENT),
    "recipe": (),
    "without diversity": (NO_DIVERSITY,),
    "without alignment": (NO_ALIGNMENT,),
    "feature clip": (f"{FEATURE}=clip",),
    "feature latent, no alignment": (f"{FEATURE}=latent", NO_ALIGNMENT),
    "feature latent_clip, no alignment": (
        *(f"{FEATURE}=latent_clip", "latent_clip.name=asset", NO_ALIGNMENT),
    ),
    "feature hidden, no alignment": (f"{FEATURE}=hidden", NO_ALIGNMENT),
    "one step": (f"{FLOW}.prediction.name=one_step",),
    "rollout, gradient through the last 2": (f"{ROLLOUT}.gradient_steps=2",),
    "rollout without guidance": (f"{ROLLOUT}.guidance.classifier_free.scale=1.0",),
    "measure vendi": (f"{FLOW}.diversity.cosine.measure.name=vendi",),
    "bank": (f"{FLOW}.diversity.cosine.bank.name=fifo",),
    "float32": ("matmul_precision=float32",),
}
# What is looked at before and after is not what is timed.
LOOK = ("sample.prompts=2", "sample.shown=1", "sample.num=2", "sample.steps=1", "log_every=1")


def measured(changes: tuple[str, ...], steps: int) -> tuple[list[float], float]:
    """Seconds of each step but the first, and the most memory in MiB."""
    flags = [f"--config.{change}" for change in (*changes, *LOOK, f"steps={steps}")]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cosdiff_jax.train", "--config=configs/fusion_div.py"]
        subprocess.run(
            [*command, f"--workdir={folder}/run", *flags],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        report = json.loads((Path(folder) / "run" / "report.json").read_text())
        recipe = json.loads((Path(folder) / "run" / "model" / "recipe.json").read_text())
    rows = recipe["data"]["prompts"] * recipe["data"]["samples"]
    rates = [json.loads(line).get("images_per_second") for line in lines]  # the first has none
    (peak,) = (value for name, value in report.items() if name.endswith("_peak_mib"))
    return [rows / rate for rate in rates if rate], peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=ROWS)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    # Round by round: what a machine does besides meets all rows alike.
    for _ in range(args.repeats):
        for name in args.only or ROWS:
            steps, peaks[name] = measured(ROWS[name], args.steps)
            seconds.setdefault(name, []).extend(steps)
            print(name, round(statistics.median(steps), 2), file=sys.stderr, flush=True)
    plain = seconds.get("flow loss alone")
    for name, steps in seconds.items():
        row = {"row": name, "seconds": round(statistics.median(steps), 2), "steps": len(steps)}
        if plain:
            row["times"] = round(statistics.median(steps) / statistics.median(plain), 2)
        row |= {"peak_mib": round(peaks[name]), "changes": ROWS[name]}
        row |= {"machine": facts.machine(), "versions": facts.versions()}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
