from cosdiff_jax.report import facts


def test_facts():
    assert facts.duration(4) == "4 s"
    assert facts.duration(59.7) == "1 min 00 s"
    assert facts.duration(3 * 3600 + 5 * 60) == "3 h 05 min"
    assert "cores" in facts.machine()["processor"]
    assert facts.versions()["jax"]
