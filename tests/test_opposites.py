"""Which pairs of a group benchmarks/opposites.py sets beside which."""

import numpy as np

from benchmarks import opposites


def test_partners_lie_side_by_side_and_the_rest_is_every_other_pair():
    a, b, c = np.eye(3)
    partners, others = opposites.pairs(np.stack([[a, -a, b, -b], [a, a, c, -c]]))
    np.testing.assert_allclose(partners, [-1, 0])
    np.testing.assert_allclose(others, [0, 0])
    _, others = opposites.pairs(np.stack([[a, b, a, b]]))
    np.testing.assert_allclose(others, [0.5])  # two of four
