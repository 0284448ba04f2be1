"""Searches what makes an adversarial field better than a random one.

Each variant changes one thing of the plain form; random fields get the same changes.
Accuracies are those of the validation set, with seeds that no table uses.

    python -m experiments.variants --data digits [glyphs colour-glyphs] [--seeds 6]
        [--first-seed 100] [--only NAME ...] [--results FILE] [--workers 2] [--smoke]
"""

import argparse
import functools
import pathlib

import numpy as np

from experiments.cells import load_cells
from experiments.plans import MOVING, PLAIN, VARIANTS
from experiments.records import append_record, read_records
from experiments.runs import train
from experiments.table import comparison
from experiments.workers import run_all
from keras_structadv.training.measures import GAIN


def measure(job: tuple[str, str, int], smoke: bool = False) -> dict:
    """Trains a job, `(data, variant, seed)`, and returns its record."""
    data, name, seed = job
    (cell,) = load_cells(f"small/{data}", PLAIN)
    variant = VARIANTS[data][name]
    changed = {}
    if variant is not None:
        changed = {"callbacks": variant.callbacks, **variant.model}
    record = train(cell, seed, held_out="validation", smoke=smoke, **changed)[1]
    kept = ("digest", "seed", "accuracy", "worst_case", "history", "early", "seconds")
    kept = {key: record[key] for key in (*kept, "versions") if key in record}
    return {"data": data, "variant": name} | kept


def report(records: list[dict], data: str) -> str:
    """The tables of a data set, sorted by the gain over the random form."""
    tables = {}
    for record in records:
        if record["data"] != data:
            continue
        for measured, accuracy in record["accuracy"].items():
            worst = record.get("worst_case", {}).get(measured, {}).get("both", {})
            values = {"accuracy": accuracy}
            values |= {f"worst case, {key}": value for key, value in worst.items()}
            if GAIN in record.get("early", {}):
                values["gain in the third epoch"] = record["early"][GAIN]
            for name, value in values.items():
                rows = tables.setdefault(measured, {}).setdefault(name, {})
                rows.setdefault((record["variant"],), {})[record["seed"]] = value
    bases = {
        "random": lambda labels: _base(labels[0], "random"),
        "plain form": lambda labels: _base(labels[0], labels[0].split(",")[0]),
    }
    return "\n\n".join(
        comparison(
            ", ".join(x for x in (data, measured, "validation set") if x),
            ("variant",),
            {**measures, "accuracy": _sorted(measures["accuracy"])},
            bases,
        )
        for measured, measures in tables.items()
    )


def _base(name: str, plain: str) -> tuple[str]:
    """The labels of the row to subtract; another momentum is not a change of a form."""
    _, found, momentum = name.partition(", momentum")
    if not found:
        return (plain,)
    return (f"{'random' if plain == 'random' else MOVING}{found}{momentum}",)


def _sorted(rows: dict) -> dict:
    """Sorts rows by their paired difference to the random form, largest first."""
    random = rows.get(("random",), {})

    def gain(labels: tuple[str]) -> float:
        both = set(rows[labels]) & set(random)
        return float(np.mean([rows[labels][s] - random[s] for s in both] or [-1]))

    return {labels: rows[labels] for labels in sorted(rows, key=gain, reverse=True)}


def main(arguments: list[str] | None = None) -> None:
    """Trains the missing variants and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--only", nargs="+", help="names of variants; default all")
    parser.add_argument("--results", type=pathlib.Path, default="variants.jsonl")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="two steps, few images")
    options = parser.parse_args(arguments)
    records = [] if options.smoke else read_records(options.results)
    digests = {
        data: load_cells(f"small/{data}", PLAIN)[0].digest() for data in VARIANTS
    }
    done = {
        (r["data"], r["variant"], r["seed"])
        for r in records
        if r["digest"] == digests[r["data"]]
    }
    jobs = [
        (data, name, seed)
        for data in options.data
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for name in VARIANTS[data]
        if (options.only is None or name in options.only)
        and (data, name, seed) not in done
    ]
    one = functools.partial(measure, smoke=options.smoke)
    for _, record in run_all(jobs, one, options.workers, tasks=None):
        records.append(record)
        if not options.smoke:
            append_record(options.results, record)
    for data in options.data:
        print(f"\n{report(records, data)}")


if __name__ == "__main__":
    main()
