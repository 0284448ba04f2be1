"""The cells that the demo trains."""

import pytest

import keras_structadv as ksa
from benchmarks import demo
from experiments.cells import ADVERSARIES

pytestmark = pytest.mark.backends("tensorflow")


@pytest.mark.parametrize("data", demo.DATA)
def test_rows_have_the_defaults_of_the_layers_but_for_strength_and_smoothness(data):
    defaults = {
        "flow": ksa.AdversarialFlow().get_config(),
        "recoloring": ksa.AdversarialRecoloring().get_config(),
    }
    for row in demo.DATA[data][1]:
        cell = demo.cell_of(data, row)
        assert (cell.data, cell.policy) == (data, "none")
        if row == "none":
            assert ADVERSARIES[cell.adversary] is None
            continue
        kind, table, gradient, _ = ADVERSARIES[cell.adversary]
        assert (gradient == "reuse") == row.endswith("reused")
        assert issubclass(kind, ksa.AdversarialFlow) == ("flow" in row)
        given = {**getattr(cell, table)}
        strength = given.pop(kind.strength_name)
        if table == "flow":
            assert given.pop("smoothness") == 100  # what the README's tables have
        assert given.items() <= defaults[table].items()
        expected = {"glyphs": 4.0, "colour-glyphs": 0.3 if "fresh" in row else 0.7}
        assert strength == expected.get(data, 3.0)


def test_further_settings_win():
    cell = demo.cell_of("colour-glyphs", "colour jitter", "recoloring.magnitude=0.2")
    assert cell.recoloring["magnitude"] == 0.2
