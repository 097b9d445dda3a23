"""Which pairs of a group benchmarks/opposites.py sets beside which."""

import json

import numpy as np
import pytest

from benchmarks import opposites
from cosdiff_jax import trained


@pytest.mark.parametrize(
    ("method", "pairs"),
    [
        ("antithetic", True),
        ("low_frequency+particle", True),
        ("orthogonal", False),
        ("independent", False),
        ("antithetic+relevance", False),
        ("antithetic+pruning", False),
    ],
)
def test_methods_without_partners_are_refused(method, pairs, monkeypatch, capsys):
    assert opposites.pairs_samples(method) == pairs
    if not pairs:
        monkeypatch.setattr("sys.argv", ["opposites.py", f"--method={method}"])
        with pytest.raises(SystemExit):
            opposites.main()
        assert f"--method={method} draws no partners" in capsys.readouterr().err


def test_partners_lie_side_by_side_and_the_rest_is_every_other_pair():
    a, b, c = np.eye(3)
    partners, others = opposites.pairs(np.stack([[a, -a, b, -b], [a, a, c, -c]]))
    np.testing.assert_allclose(partners, [-1, 0])
    np.testing.assert_allclose(others, [0, 0])
    _, others = opposites.pairs(np.stack([[a, b, a, b]]))
    np.testing.assert_allclose(others, [0.5])  # two of four


def test_an_older_file_is_gone_on_from_and_one_of_other_weights_is_not(
    folder, tmp_path, monkeypatch, capsys
):
    place = tmp_path / "opposites.json"
    model = trained.load(folder, ("llm", "vae", "clip"))
    asked = {"model": folder, "prompts": 2, "num": 4, "steps": 1, "seed": 0, **model.digests}
    known = {"method": "antithetic", "guidance": 1.0, "difference": 0.25}
    place.write_text(json.dumps({"arguments": asked, "date": "2000-01-01", "rows": [known]}))
    said = [f"--{name}={asked[name]}" for name in ("model", "prompts", "num", "steps", "seed")]
    monkeypatch.setattr("sys.argv", ["opposites.py", *said, "--guidance=1", f"--out={place}"])
    opposites.main()
    kept, made = json.loads(place.read_text())["rows"]
    assert kept == {**known, "date": "2000-01-01"}
    assert (made["method"], made["guidance"]) == ("low_frequency", 1.0)
    assert made["date"] > "2000-01-01" and made["low"] <= made["difference"] <= made["high"]
    other = json.loads(place.read_text())
    other["arguments"]["clip"] = "another"
    place.write_text(json.dumps(other))
    with pytest.raises(SystemExit):
        opposites.main()
    assert "name another --out" in capsys.readouterr().err
