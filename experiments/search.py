"""Searches the arguments of every adversary of a table on validation sets, with Optuna.

What it maximizes is the mean of the clean accuracy and, where a cell has an attack, of
the worst case at its first strength, by ten steps on 200 images.

    python -m experiments.search --config small/mnist-200 [...] [--trials 12]
        [--seeds 2] [--results FILE] [--set KEY=VALUE ...] [--workers 2] [--smoke]

All rows get the same number of trials and of seeds, which no table uses. The first
trial has the defaults of the layer. Each trial adds a line of JSON to the results, in
which `searched = "FILE"` of a configuration finds the best. Recorded trials are not
repeated.
"""

import argparse
import functools
import json
import pathlib
import statistics
from typing import Any

import optuna

from experiments.cells import (
    RESULTS,
    Cell,
    best_trial,
    load_cells,
    objective,
    trials_of,
)
from experiments.datasets import DESCRIPTIONS
from experiments.records import append_record, read_records
from experiments.runs import train
from experiments.workers import run_all

FIRST_SEED = 1000
_MEASURES = ("accuracies", "worst")


def space(cell: Cell) -> dict[str, optuna.distributions.BaseDistribution]:
    """The range of each parameter of a cell, the same for random and adversarial rows.

    Displacement and smoothness scale with the size of the images: to a third of the
    side and to twice its square.
    """
    side = DESCRIPTIONS[cell.data].shape[0]
    real = functools.partial(optuna.distributions.FloatDistribution, log=True)
    choice = optuna.distributions.CategoricalDistribution
    rate = optuna.distributions.FloatDistribution(0.25, 1.0, step=0.25)
    ranges: dict = {
        "flow": {
            "max_displacement": real(side / 32, side / 3),
            "smoothness": real(side**2 / 100, 2 * side**2),
            "rate": rate,
        },
        "recoloring": {
            "magnitude": real(0.02, 0.8),
            "coherence": real(0.1, 10),
            "rate": rate,
        },
        "pixel": {
            "magnitude": real(0.005, 0.3),
            "fixed": choice([False, True]),
            "rate": rate,
        },
        "elastic": {
            "scale": real(0.1, 1.0),
            "fixed": choice([False, True]),
            "rate": rate,
        },
        "keras_randaugment": {
            "factor": real(0.02, 1.0),
            "num_ops": optuna.distributions.IntDistribution(1, 3),
        },
    }
    return ranges[cell.table]


def arguments_of(cell: Cell, drawn: dict) -> dict:
    """The arguments of a cell's adversary for what was drawn from its space."""
    given: dict[str, Any] = {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in drawn.items()
    }
    if cell.table == "elastic" and "rate" in given:
        given["factor"] = [given.pop("rate")] * 2  # a probability
    if given.pop("fixed", False):  # not drawn for each image
        name = "scale" if cell.table == "elastic" else "magnitude"
        given[name] = [given[name]] * 2
    return given


def proposed(cell: Cell, trials: list[dict]) -> dict:
    """What the next trial of a cell draws: nothing in the first, then by Optuna.

    The number of the trial is the seed: a resumed search is the same, and the first
    trials of rows with one space are alike.
    """
    if not trials:
        return {}
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(n_startup_trials=6, seed=len(trials)),
    )
    ranges = space(cell)
    for trial in trials[1:]:
        study.add_trial(
            optuna.create_trial(
                params=trial["drawn"],
                distributions=ranges,
                value=objective(trial),
            )
        )
    return study.ask(ranges).params


def _measured(job: tuple[Cell, int], smoke: bool) -> dict[str, float]:
    """The mean accuracy on the validation sets, and the mean worst case."""
    record = train(*job, held_out="validation", smoke=smoke)[1]
    found = {"accuracies": statistics.fmean(record["accuracy"].values())}
    if "worst_case" in record:
        (strength,) = job[0].attack["strengths"]
        lost = [x["gradient"][f"{strength:g}"] for x in record["worst_case"].values()]
        found["worst"] = statistics.fmean(lost)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Runs the missing trials and prints the best of each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="+", required=True, help="rows to search")
    parser.add_argument("--trials", type=int, default=12, help="of each row")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each trial")
    parser.add_argument(
        "--results", type=pathlib.Path, default=RESULTS / "search.jsonl"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=2, help="processes on CPUs")
    parser.add_argument("--smoke", action="store_true", help="two steps, few images")
    options = parser.parse_args(arguments)
    changes = [*options.set, "searched="]
    cells = [x for config in options.config for x in load_cells(config, changes)]
    cells = [x.to_search() for x in cells if x.table]
    if not cells:
        raise ValueError("Received no cell with an adversary. Pass one.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    records = [] if options.smoke else read_records(options.results)
    measure = functools.partial(_measured, smoke=options.smoke)
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    tasks = None if options.workers == 1 else 25
    for number in range(options.trials):
        # One trial of every row at a time, because a trial depends on those before it.
        running, jobs = {}, []
        for cell in cells:
            done = trials_of(records, cell)
            if len(done) > number:
                continue
            drawn = proposed(cell, done)
            tried = cell.with_arguments(**arguments_of(cell, drawn))
            running[tried.digest()] = {
                "cell": cell.name,
                "digest": cell.digest(),
                "trial": number,
                "drawn": drawn,
                "settings": tried.arguments,
                "accuracies": {},
            }
            jobs += [(tried, seed) for seed in seeds]
        print(f"trial {number}: {len(jobs)} runs to do", flush=True)
        for (tried, seed), found in run_all(jobs, measure, options.workers, tasks):
            record = running[tried.digest()]
            for name, value in found.items():
                record.setdefault(name, {})[str(seed)] = value
            if len(record["accuracies"]) == len(seeds):
                records.append(record)
                if not options.smoke:
                    append_record(options.results, record)
    print("\nbest on validation sets: accuracy, and worst case at the first strength")
    for cell in cells:
        best = best_trial(records, cell)
        settings = json.dumps(best["settings"])
        means = [statistics.fmean(best[x].values()) for x in _MEASURES if x in best]
        text = ", ".join(f"{mean:.4f}" for mean in means)
        print(f"{cell.name}: {text} with {settings}")


if __name__ == "__main__":
    main()
