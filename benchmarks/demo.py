"""What adversarial augmentation gains on real images, in minutes on two cores.

Trains a small CNN on few images of data sets that need no download, with several seeds
for each row. Prints accuracies, standard errors and paired differences. Flows and
recolourings have their default coherence and rate; flows a smoothness of 100.

    python -m benchmarks.demo [--seeds 3 2 2] [--data digits glyphs colour-glyphs]
        [--picture demo.png] [--small]
"""

import argparse
import functools
import os
from collections.abc import Callable

import numpy as np

import keras_structadv as ksa
from experiments import datasets, runs
from experiments.cells import Cell, load_cells
from experiments.models import confidences
from experiments.table import comparison

# The adversary of each row, and its further settings.
FLOW_ROWS = {
    "none": ("none",),
    "random flow": ("random-flow",),
    "adversarial flow, fresh": ("flow",),
    "adversarial flow, reused": ("flow-reused",),
}
# `python -m benchmarks.recoloring_strengths` chose the magnitudes.
RECOLORING_ROWS = {
    "none": ("none",),
    "colour jitter": ("colour-jitter", "recoloring.magnitude=0.7"),
    "random recolouring": ("random-recoloring", "recoloring.magnitude=0.7"),
    "adversarial recolouring, fresh": ("recoloring", "recoloring.magnitude=0.3"),
    "adversarial recolouring, reused": (
        "recoloring-reused",
        "recoloring.magnitude=0.7",
    ),
}
# The file of the cells, and the rows of each data set.
DATA = {
    "digits": ("small/digits", FLOW_ROWS),
    "glyphs": ("small/glyphs", FLOW_ROWS),
    "colour-glyphs": ("small/colour-glyphs", RECOLORING_ROWS),
    "digits-100": ("small/digits", FLOW_ROWS),
    "digits-500": ("small/digits", FLOW_ROWS),
}
DEFAULTS = (
    *("policy=none", "flow.smoothness=100", "flow.rate=0.5"),
    "recoloring.rate=0.5",
)


def cell_of(data: str, row: str, *changes: str) -> Cell:
    """The cell of a row.

    Args:
        data: one of `DATA`.
        row: one of the rows of the data set.
        *changes: further `KEY=VALUE` for `load_cells`.
    """
    config, rows = DATA[data]
    adversary, *settings = rows[row]
    given = (f"data={data}", f"adversary={adversary}", *DEFAULTS)
    (cell,) = load_cells(config, [*given, *settings, *changes])
    return cell


def accuracies_of(job: tuple[str, str, int], smoke: bool = False) -> dict[str, float]:
    """Trains a job, `(data, row, seed)`; returns its accuracy on each test set."""
    data, row, seed = job
    return runs.train(cell_of(data, row), seed, smoke=smoke)[1]["accuracy"]


def plain_model(data: str, small: bool = False) -> tuple:
    """Trains without augmentation; returns the model, test images and labels.

    Args:
        data: `"digits"` or `"glyphs"`.
        small: whether to take only two steps and 20 test images.
    """
    model, _ = runs.train(cell_of(data, "none"), 0, smoke=small)
    x, y = datasets.load(data)[1][""]
    return (model, x[:20], y[:20]) if small else (model, x, y)


def draw(path: str, small: bool = False) -> None:
    """Writes a picture of images, flows and warped images with the model's answers.

    Args:
        path: file to write to.
        small: whether to draw models after two steps of training.
    """
    rows = []
    for data in ("digits", "glyphs"):
        model, x, y = plain_model(data, small)
        before = confidences(model, x)
        flow = ksa.adversarial_flow(
            x,
            ksa.per_image_gradients(model, x, y),
            smoothness=100.0,
            max_displacement=cell_of(data, "none").flow["max_displacement"],
        )
        after = confidences(model, ksa.dense_image_warp(x, flow))
        sure = before[np.arange(len(y)), y] > (0 if small else 0.9)
        fooled = sure & (after.argmax(1) != y)
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(fooled))[:2]
        print(
            f"{data}: of {sure.sum()} test images known with confidence above 0.9, "
            f"the flow changes the answer for {fooled.sum()}; two of them are drawn"
        )
        name = "0123456789" if data == "digits" else ksa.datasets.CHARACTERS
        for i in chosen:
            titles = [
                f"{name[p[i].argmax()]!r} {p[i].max():.0%}" for p in (before, after)
            ]
            rows.append((x[i], flow[i], *titles))
    images, flows, titles_before, titles_after = zip(*rows)
    figure = ksa.visualization.plot_flow(
        images, flows, before=titles_before, after=titles_after
    )
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def _always(labels: tuple[str]) -> Callable:
    return lambda _: labels


def main(arguments: list[str] | None = None) -> None:
    """Trains, prints the tables and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        nargs="+",
        default=["digits", "glyphs", "colour-glyphs"],
        choices=DATA,
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 2, 2])
    parser.add_argument("--picture", help="file to write the picture to")
    parser.add_argument("--small", action="store_true", help="two steps, one seed")
    options = parser.parse_args(arguments)
    if options.small:
        options.seeds = [1]
    if len(options.seeds) == 1:
        options.seeds = options.seeds * len(options.data)
    jobs = [
        (data, row, seed)
        for data, seeds in zip(options.data, options.seeds)
        for seed in range(seeds)
        for row in DATA[data][1]
    ]
    measure = functools.partial(accuracies_of, smoke=options.small)
    results = dict(runs.run_all(jobs, measure, **workers(options.small)))
    for data, seeds in zip(options.data, options.seeds):
        rows = DATA[data][1]
        bases = {row: _always((row,)) for row in rows if "adversarial" not in row}
        for measured in results[data, "none", 0]:
            accuracies = {
                (row,): {s: results[data, row, s][measured] for s in range(seeds)}
                for row in rows
            }
            name = ", ".join(x for x in (data, measured) if x)
            title = f"{name}: test accuracy ± standard error"
            measures = {"accuracy": accuracies}
            print("\n" + comparison(title, ("augmentation",), measures, bases))
    if options.picture:
        print()
        draw(options.picture, options.small)


def workers(small: bool) -> dict:
    """Arguments of `run_all`: one process a core, or only this process if small."""
    if small:
        return {"workers": 1, "tasks": None}
    return {"workers": os.cpu_count() or 1}


if __name__ == "__main__":
    main()
