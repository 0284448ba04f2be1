"""Chooses the magnitude of each recolouring row of the demo, on the validation set.

Trains on colour glyphs with each magnitude, and prints the accuracies on typefaces that
neither training nor test set has, in the same and in unseen colours.

    python -m benchmarks.recoloring_strengths [--seeds 4] [--rows ROW ...]
"""

import argparse
import functools
import os

import numpy as np

from benchmarks.demo import DATA, train
from experiments.table import mean_and_error
from experiments.train import run_all

TASK = DATA["colour-glyphs"]
VALIDATION = TASK._replace(load=functools.partial(TASK.load, held_out="validation"))
MAGNITUDES = (0.2, 0.3, 0.5, 0.7)


def measure(job):
    """Returns the validation accuracies of a job, `(row, magnitude, seed)`."""
    row, magnitude, seed = job
    return train(VALIDATION, row, seed, magnitude)[1]


def main() -> None:
    """Trains and prints the table."""
    rows = [row for row in TASK.rows if row != "none"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rows", nargs="+", default=rows, choices=rows)
    options = parser.parse_args()
    seeds = range(options.seeds)
    jobs = [(r, m, s) for s in seeds for r in options.rows for m in MAGNITUDES]
    results = dict(run_all(jobs, measure, workers=os.cpu_count() or 1))
    print("\n| augmentation | magnitude | same colours | unseen colours |")
    print("|---|---|---|---|")
    for row in options.rows:
        for magnitude in MAGNITUDES:
            values = np.array([results[row, magnitude, seed] for seed in seeds])
            cells = [mean_and_error(column, "{:.4f}") for column in values.T]
            print(f"| {row} | {magnitude} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
