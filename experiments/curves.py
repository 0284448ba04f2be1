"""Draws the worst case of each row of a table over the strength of the attack.

    python -m experiments.curves --picture FILE [--results FILE] [--measured SET]

The runs are those of experiments.train with several `attack.strengths`; at 0 stands the
clean accuracy. A line is the mean over the seeds, its band two standard errors.
"""

import argparse
import pathlib

import numpy as np

from experiments.cells import RESULTS
from experiments.records import read_records
from experiments.table import NAMES
from keras_structadv.visualization import new_figure


def curves(records: list[dict], measured: str) -> dict[str, dict[float, list[float]]]:
    """The worst cases of all seeds, by row and strength.

    Args:
        records: as `runs.train` returns them.
        measured: the set that was measured on.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for record in records:
        row = found.setdefault(record["settings"]["adversary"], {})
        row.setdefault(0.0, []).append(record["accuracy"][measured])
        for strength, value in record["worst_case"][measured]["both"].items():
            row.setdefault(float(strength), []).append(value)
    return {name: found[name] for name in NAMES if name in found}


def draw(found: dict[str, dict[float, list[float]]], path: pathlib.Path) -> None:
    """Draws the curves into a file."""
    figure, axes = new_figure((5.2, 3.6))
    for name, row in found.items():
        strengths = sorted(row)
        means = np.array([np.mean(row[x]) for x in strengths])
        errors = [np.std(row[x], ddof=1) / len(row[x]) ** 0.5 for x in strengths]
        (line,) = axes.plot(strengths, means, marker="o", label=NAMES[name])
        low, high = means - 2 * np.array(errors), means + 2 * np.array(errors)
        axes.fill_between(
            strengths, low, high, color=line.get_color(), alpha=0.2, linewidth=0
        )
    axes.set_xlabel("longest displacement (pixels)")
    axes.set_ylabel("accuracy, worst case")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """Draws the picture and prints its numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=pathlib.Path, default=RESULTS / "curves.jsonl"
    )
    parser.add_argument("--picture", type=pathlib.Path, required=True)
    parser.add_argument("--measured", default="", help="the set, if there are several")
    options = parser.parse_args(arguments)
    found = curves(read_records(options.results), options.measured)
    draw(found, options.picture)
    strengths = sorted(next(iter(found.values())))
    heads = [f"{strength:g}" for strength in strengths]
    print(f"| training | seeds | {' | '.join(heads)} |")
    print("|---" * (2 + len(heads)) + "|")
    for name, row in found.items():
        cells = [f"{np.mean(row[strength]):.3f}" for strength in strengths]
        seeds = len(row[strengths[0]])
        print(f"| {NAMES[name]} | {seeds} | {' | '.join(cells)} |")
    print(f"\n{options.picture}")


if __name__ == "__main__":
    main()
