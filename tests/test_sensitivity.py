"""True pictures spoilt in known ways: the figure that should move moves, the others do not."""

import json
import sys

import pytest

from benchmarks import sensitivity


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    out = tmp_path_factory.mktemp("sensitivity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", "--prompts=24", "--num=6", f"--out={out}", "--nopage"])
        sensitivity.main()
    found = json.loads((out / "metrics.json").read_text())["columns"]
    return {name: {m: cell["mean"] for m, cell in of.items()} for name, of in found.items()}


ORACLE = ("all", "colour", "shape", "size", "background", "count")
VARIETIES = tuple(f"variety_{name}" for name in ("shape", "colour", "size", "background"))


@pytest.mark.parametrize(
    ("spoilt", "moved", "still"),
    [
        ("one colour", {"variety_colour": 0.1}, ("clip_score", "recall")),
        ("one place", {"variety_place": 0.2}, ("clip_score", "recall", "mean_cosine", "frechet")),
        ("duplicates", {**dict.fromkeys(VARIETIES, 0.0), "recall": 0.1}, ("clip_score",)),
        ("wrong caption", {"clip_score": 0.4, "all": 0.1}, ("recall", "frechet", "mean_cosine")),
        ("noise", {"frechet": None, "clip_score": 0.6}, ("variety_colour", "variety_shape")),
    ],
)
def test_what_should_move_moves_and_what_should_not_does_not(columns, spoilt, moved, still):
    found, true = columns[spoilt], columns["true"]
    for name, most in moved.items():
        if most is None:  # goes up
            assert found[name] > true[name] + 0.01, name
        else:
            assert found[name] <= most < true[name] - 0.1, name
    # Of true pictures another draw is as far away as these.
    width = {"clip_score": 0.03, "recall": 0.1, "mean_cosine": 0.04, "frechet": 0.02}
    for name in still:
        assert found[name] == pytest.approx(true[name], abs=width.get(name, 0.05)), name
    if spoilt != "wrong caption":
        assert {found[name] for name in ORACLE} == {1.0}


def test_copies_are_one_picture(columns):
    assert columns["duplicates"]["mean_cosine"] == pytest.approx(1, abs=1e-5)
    assert columns["duplicates"]["vendi"] == pytest.approx(1, abs=1e-3)
    assert columns["duplicates"]["meaningful_diversity"] == 0
