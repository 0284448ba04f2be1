"""The guide to strength and smoothness says what the code and the records say."""

import json
import pathlib
import re

import pytest

from experiments.cells import objective
from keras_structadv.defaults import damping_of, default_displacement, smoothness_of

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs/guides/strength_and_smoothness.md"
TEXT = PAGE.read_text()
RECORD = (ROOT / "benchmarks/results/sweeps.txt").read_text()

pytestmark = pytest.mark.backends("tensorflow")


def rows_of(text, start):
    """The cells of the rows of a table whose first cell begins so."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]


@pytest.mark.parametrize("side", [28, 64, 96, 224, 512])
def test_the_rule_of_thumb_is_that_of_the_defaults(side):
    displacement = default_displacement(side, 2 * side)
    smoothness = smoothness_of(None, side, 2 * side)
    expected = [displacement / 4, displacement, 2 * displacement]
    expected += [smoothness / 9, smoothness, 9 * smoothness]
    expected.append(damping_of(None, side, 2 * side))
    ((_, *cells),) = rows_of(TEXT, f"{side} |")
    found = [float(re.sub(r"[*,]| px²?", "", cell)) for cell in cells]
    assert found == [float(f"{value:.3g}") for value in expected]


def test_the_search_is_told_as_it_was_recorded():
    record = (ROOT / "experiments/results/search.jsonl").read_text()
    trials = [json.loads(line) for line in record.splitlines()]
    ranks = {}
    for kind in ("", "-random-start", "-three-steps", "-reused"):
        mine = [t for t in trials if t["cell"] == f"small/mnist-200/flow{kind}"]
        mine.sort(key=objective, reverse=True)
        assert len(mine) == 12
        ranks[kind] = [t["drawn"] for t in mine].index({}) + 1
        best = {k: float(f"{v:.3g}") for k, v in mine[0]["drawn"].items()}
        assert best == {"max_displacement": 2.46, "smoothness": 8.99, "rate": 0.75}
        weak = [t["drawn"].get("max_displacement", 3.5) < 1.5 for t in mine]
        assert sum(weak) == 3 and not any(weak[:6])
        if kind == "-three-steps":
            clean = {
                t["drawn"].get("max_displacement"): sum(t["accuracies"].values()) / 2
                for t in mine
            }
    assert list(ranks.values()) == [2, 4, 3, 6]
    far = sorted(v for k, v in clean.items() if k is not None and k > 7)
    assert [round(v, 2) for v in far] == [0.83, 0.87] and round(clean[None], 2) == 0.95


def test_the_sweep_is_told_as_it_was_recorded():
    for kind, length in (
        ("loose, (s/9)²", 9),
        ("default, (s/3)²", 3),
        ("stiff, s²", 1),
    ):
        ((_, *told),) = rows_of(TEXT, f"{kind}; random flow")
        ((_, *cells),) = rows_of(RECORD, f"(s/{length})²")
        measured = [re.findall(r"right (\d+)%", cell) for cell in cells]
        assert told == [f"{a} %; {b} %" for a, b in measured]
    gains = re.findall(r"gain ([\d.]+)", " ".join(rows_of(RECORD, "(s/3)²")[0]))
    assert gains[0] == "1.81" and gains[-1] == "0.53"
    folds = [
        re.findall(r"([\d.]+)% folded", " ".join(rows_of(RECORD, f"{side} | ")[0]))
        for side in (16, 28, 64, 96, 224)
    ]
    columns = [sorted(map(float, column)) for column in zip(*folds)]
    ends = [(column[0], column[-1]) for column in columns]
    # s/8 and s/4 with the default smoothness, then with (s/6)².
    assert [ends[i] for i in (4, 7)] == [(0.05, 0.71), (1.41, 3.4)]
    assert [ends[i] for i in (3, 6)] == [(0.53, 1.39), (3.42, 6.05)]
