"""Chooses the magnitude of each kind of recolouring, on the validation set.

Trains on colour glyphs with each magnitude. Prints the accuracies on the validation
set, whose typefaces are in neither training nor test set, in the same and in unseen
colours.

    python -m benchmarks.recoloring_strengths [--seeds 4] [--rows ROW ...] [--small]
"""

import argparse
import functools

from experiments.cells import load_cells
from experiments.paired import mean_and_error
from experiments.runs import train
from experiments.table import NAMES
from experiments.workers import run_all, workers

ADVERSARIES = ("colour-jitter", "random-recoloring", "recoloring", "recoloring-reused")
ROWS = {NAMES[adversary]: adversary for adversary in ADVERSARIES}
MAGNITUDES = (0.2, 0.3, 0.5, 0.7)


def measure(job: tuple[str, float, int], smoke: bool = False) -> dict[str, float]:
    """Trains a job, `(row, magnitude, seed)`; returns its validation accuracies."""
    row, magnitude, seed = job
    changes = f"adversary={ROWS[row]}", f"recoloring.magnitude={magnitude}"
    (cell,) = load_cells(
        "small/colour-glyphs", [*changes, "policy=none", "recoloring.rate=0.5"]
    )
    return train(cell, seed, held_out="validation", smoke=smoke)[1]["accuracy"]


def main(arguments: list[str] | None = None) -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=ROWS)
    parser.add_argument("--small", action="store_true", help="two steps, one magnitude")
    options = parser.parse_args(arguments)
    magnitudes, seeds = MAGNITUDES, range(options.seeds)
    if options.small:
        magnitudes, seeds = MAGNITUDES[:1], range(1)
    jobs = [(r, m, s) for s in seeds for r in options.rows for m in magnitudes]
    smallest = functools.partial(measure, smoke=options.small)
    results = dict(run_all(jobs, smallest, **workers(options.small)))
    print("\n| augmentation | magnitude | same colours | unseen colours |")
    print("|---|---|---|---|")
    for row in options.rows:
        for magnitude in magnitudes:
            found = [results[row, magnitude, seed] for seed in seeds]
            cells = [mean_and_error((x[k] for x in found), "{:.4f}") for k in found[0]]
            print(f"| {row} | {magnitude} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
