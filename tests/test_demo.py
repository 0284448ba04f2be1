"""What the demo trains, prints and recommends."""

import dataclasses
import pathlib
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from benchmarks import demo
from experiments.cells import load_cells

pytestmark = pytest.mark.backends("tensorflow")


def test_cells_are_those_of_the_table_in_the_readme():
    searched = {cell.adversary: cell for cell in load_cells("small/mnist-200")}
    for name, cell in demo.cells().items():
        assert dataclasses.replace(cell, attack=searched[name].attack) == searched[name]
        assert bool(cell.arguments) == (name != "none")


def test_trainings_are_described_as_one_would_write_them():
    described = {name: demo.described(cell) for name, cell in demo.cells().items()}
    assert described["random-flow"].startswith("RandomFlow(max_displacement=7.243, ")
    assert described["flow-reused"].startswith("AdversarialFlow(max_displacement=2.4")
    assert described["flow-reused"].endswith('rate=0.75), gradient="reuse"')


def test_the_table_has_the_worst_cases_of_its_strengths():
    worst = np.linspace(0.9, 0.4, len(demo.STRENGTHS))
    report = SimpleNamespace(strengths=np.array(demo.STRENGTHS, "float32"), worst=worst)
    printed = demo.table({"none": report}, {"none": [1.0, 3.0, 4.0, 8.0]})
    assert printed.splitlines()[2:] == ["| plain | 0.900 | 0.700 | 0.500 | 2.0 | 5.0 |"]


def test_the_lines_for_a_model_of_ones_own_run(capsys):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 255, (8, 8, 8, 1)), np.arange(8) % 2
    layers = keras.layers.Rescaling(1 / 255), keras.layers.Flatten()
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    exec(demo.YOURS, {"model": model, "x": x, "y": y, "x_test": x, "y_test": y})
    assert "| max_displacement | random |" in capsys.readouterr().out


def test_the_table_of_many_seeds_is_where_the_demo_says():
    page = pathlib.Path(__file__).parents[1] / "docs/evidence.md"
    assert "\n## MNIST with 200 images\n" in page.read_text()
