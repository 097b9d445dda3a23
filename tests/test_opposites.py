"""Which pairs of a group benchmarks/opposites.py sets beside which."""

import numpy as np
import pytest

from benchmarks import opposites


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
