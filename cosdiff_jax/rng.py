"""Named random keys: a draw depends on its name, never on the order of the calls around it."""

import hashlib

import jax


def named(key: jax.Array, *names: str) -> dict[str, jax.Array]:
    """One independent key per name; adding a name leaves the keys of the others as they were.

    Args:
      key: a typed JAX key (``jax.random.key``).
      *names: what the keys are for, e.g. ``"time", "noise"``.
    """
    return {name: jax.random.fold_in(key, _fold(name)) for name in names}


def _fold(name: str) -> int:
    # Python's own hash() is salted per process; a digest is the same on every host of a pod.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
