"""Every test runs on eight emulated devices, with shapes checked and compiled programs kept."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import jaxtyping

_ROOT = pathlib.Path(__file__).parent.parent
jax.config.update("jax_compilation_cache_dir", str(_ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shapes and dtypes of every annotated function are checked while the tests run, and only then.
_hook = jaxtyping.install_import_hook("cosdiff_jax", "beartype.beartype")
