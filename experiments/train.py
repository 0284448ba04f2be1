"""Trains the cells of a table, several seeds each, and records the results.

    python -m experiments.train --config table1/cifar10-flow-base [...] [--seeds 10]
        [--held-out test] [--results FILE] [--set KEY=VALUE ...] [--workers 1] [--smoke]

A file below `experiments/configs` describes a cell, or several if it has lists; see
`cells.load_cells`. Each run adds a line of JSON to the results. Recorded runs are not
repeated. An interrupted run resumes at the epoch in which it stopped.
"""

import argparse
import functools
import pathlib
import shutil

import numpy as np

from experiments.cells import Cell, load_cells
from experiments.records import append_record, read_records
from experiments.runs import train
from experiments.table import markdown
from experiments.workers import run_all


def _record(
    job: tuple[Cell, int], held_out: str, smoke: bool, verbose: int, folder: str
) -> dict:
    """Trains one job and returns its record."""
    cell, seed = job
    state = None
    if cell.resumable and not smoke:
        state = _state(folder, cell.digest(), held_out, seed)
    return train(
        cell, seed, held_out=held_out, smoke=smoke, verbose=verbose, state=state
    )[1]


def _state(folder: str, digest: str, held_out: str, seed: int) -> pathlib.Path:
    """The folder of an unfinished run."""
    return pathlib.Path(folder, f"{digest}-{held_out}-{seed}")


def main(arguments: list[str] | None = None) -> None:
    """Trains the missing runs and prints the table of all runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="+", required=True, help="cells to train")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each cell")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--held-out", default="test", choices=("test", "validation"))
    parser.add_argument("--results", type=pathlib.Path, default="results.jsonl")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=1, help="processes on CPUs")
    parser.add_argument("--verbose", type=int, default=1, help="of one process: 0 to 2")
    parser.add_argument("--smoke", action="store_true", help="two steps, few images")
    options = parser.parse_args(arguments)
    cells = [x for config in options.config for x in load_cells(config, options.set)]
    cells = list({cell.digest(): cell for cell in cells}.values())
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.smoke:
        seeds = seeds[:1]
    done = {
        (r["digest"], r["seed"], r["held_out"]): r
        for r in ([] if options.smoke else read_records(options.results))
    }
    folder = f"{options.results}.state"
    for digest, seed, held_out in done:
        # Of a run that ended between its record and this.
        shutil.rmtree(_state(folder, digest, held_out, seed), ignore_errors=True)
    # All cells of one seed before the next seed, so that the rows grow evenly.
    jobs = [
        (cell, seed)
        for seed in seeds
        for cell in cells
        if (cell.digest(), seed, options.held_out) not in done
    ]
    wanted = {cell.digest() for cell in cells}
    records = [
        r
        for (digest, _, held), r in done.items()
        if digest in wanted and held == options.held_out
    ]
    print(f"{len(records)} runs are there, {len(jobs)} to do", flush=True)
    measure = functools.partial(
        _record,
        held_out=options.held_out,
        smoke=options.smoke,
        verbose=options.verbose if options.workers == 1 and not options.smoke else 0,
        folder=folder,
    )
    large = any(cell.resumable for cell in cells)
    tasks = (5 if options.smoke else 1) if large else None
    for _, record in run_all(jobs, measure, options.workers, tasks):
        records.append(record)
        if options.smoke:
            values = [*record["accuracy"].values(), *record["history"].values()]
            if not np.all(np.isfinite(values)):
                raise ArithmeticError(
                    f"{record['cell']} gave a value that is not finite: {record}"
                )
            print(f"\n{record['cell']}: two steps, {record['seconds']} s", flush=True)
        else:
            append_record(options.results, record)
            # Not before: a run that is neither recorded nor saved would be lost.
            state = _state(folder, record["digest"], record["held_out"], record["seed"])
            shutil.rmtree(state, ignore_errors=True)
    if not options.smoke:
        print(f"\n{markdown(records)}")


if __name__ == "__main__":
    main()
