"""What only a CPU needs to train fast."""

import jax


def compiler_options() -> dict[str, bool]:
    """Options of ``jax.jit`` for a training step.

    On a CPU sums may be taken in any order, as accelerators take them, which lets XLA use vector
    instructions for them. NaN and infinity keep their meaning, except that the larger of a number
    and a NaN may be the number.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_enable_fast_math": True, "xla_cpu_enable_fast_min_max": True}
