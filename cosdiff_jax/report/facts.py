"""What a reader needs to judge a run's numbers: the machine, the versions, the time it took."""

import os
import platform
import resource
import sys
from importlib import metadata

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def machine() -> dict[str, str]:
    """Processor, accelerator, memory and operating system of the computer this runs on."""
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    facts = {"processor": f"{_processor()}, {os.cpu_count()} cores"}
    if devices[0].platform != "cpu":
        facts["accelerator"] = f"{len(devices)} x {kinds}"
    elif len(devices) > 1:
        facts["devices"] = f"{len(devices)} emulated on the processor"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts["memory"] = f"{size / 2**30:.0f} GiB"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    return facts


def versions() -> dict[str, str]:
    """Python and the packages that decide a run's numbers."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def duration(seconds: float | int) -> str:
    """``4 s``, ``7 min 12 s``, ``3 h 05 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def peak() -> tuple[float, str]:
    """The most memory that was ever in use, in MiB, and whose: the "device" or the "process".

    The fullest device's where its backend counts, else all that the process held. Neither can be
    set back: what is drawn later never reads lower.
    """
    counts = [device.memory_stats() or {} for device in jax.local_devices()]
    held = [count["peak_bytes_in_use"] for count in counts if "peak_bytes_in_use" in count]
    if held:
        return max(held) / 2**20, "device"
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, "process"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
