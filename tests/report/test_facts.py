import pathlib
import re
import types

import jax
import pytest

from cosdiff_jax.report import facts


def test_facts():
    assert facts.duration(4) == "4 s"
    assert facts.duration(59.7) == "1 min 00 s"
    assert facts.duration(3 * 3600 + 5 * 60) == "3 h 05 min"
    assert "cores" in facts.machine()["processor"]
    assert facts.versions()["jax"]


def test_the_peak_is_the_fullest_devices_or_else_the_processes(monkeypatch):
    value, whose = facts.peak()
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        (most,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert whose == "process" and value == pytest.approx(int(most) / 1024, rel=0.05)

    def device(peak):
        return types.SimpleNamespace(memory_stats=lambda: peak and {"peak_bytes_in_use": peak})

    monkeypatch.setattr(jax, "local_devices", lambda: [device(2**21), device(2**23), device(None)])
    assert facts.peak() == (8.0, "device")
