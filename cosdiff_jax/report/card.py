"""The model card that goes with a run's weights: where they come from and what they can do."""

from collections.abc import Mapping

from etils import epath

from cosdiff_jax.report import facts


def write(
    folder: epath.PathLike,
    *,
    name: str,
    what: str,
    data: str,
    command: str,
    steps: int,
    seed: int,
    seconds: float,
    parameters: int,
    measures: Mapping[str, float],
) -> None:
    """Write MODEL_CARD.md.

    Args:
      folder: where the weights are.
      name: of the model.
      what: one sentence: what kind of network it is.
      data: what it was trained on.
      command: reproduces it.
      steps: optimizer steps.
      seed: of everything.
      seconds: wall time over all parts of the run, looking and compiling included.
      parameters: number of weights.
      measures: held-out numbers by name.
    """
    machine = ", ".join(facts.machine().values())
    versions = ", ".join(f"{key} {value}" for key, value in facts.versions().items())
    numbers = "".join(f"| {key} | {value:.4g} |\n" for key, value in measures.items())
    (epath.Path(folder) / "MODEL_CARD.md").write_text(
        f"# {name}\n\n{what}\n\n"
        f"- Parameters: {parameters:,}\n"
        f"- Data: {data}\n"
        f"- Training: {steps:,} steps, seed {seed}, {facts.duration(seconds)} wall time\n"
        f"- Machine: {machine}\n"
        f"- Versions: {versions}\n"
        f"- Command: `{command}`\n\n"
        f"Held-out measures at the last step:\n\n| measure | value |\n|---|---|\n{numbers}"
    )
