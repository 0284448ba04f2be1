"""Prints tables of recorded runs: means, standard errors, paired differences.

python -m experiments.table FILE [...] [--held-out test]
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

# The random row of the same structure and size for each adversarial row.
CONTROLS = {
    "flow": "random-flow",
    "flow-reused": "random-flow",
    "recoloring": "random-recoloring",
    "recoloring-reused": "random-recoloring",
}


def read_records(path: pathlib.Path) -> list[dict]:
    """Reads the records of a results file; a missing file has none.

    Skips an incomplete line, as an interrupted run leaves it.
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append_record(path: pathlib.Path, record: dict) -> None:
    """Appends a record to a results file, as one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        file.seek(max(0, file.seek(0, 2) - 1))
        if file.read(1) not in ("", "\n"):  # after an incomplete line
            file.write("\n")
        file.write(json.dumps(record) + "\n")


def mean_and_error(values: Iterable[float], form: str = "{:.4f}") -> str:
    """Formats a mean with its standard error; for differences, with t.

    Args:
        values: one for each seed.
        form: format of the mean; a sign, `{:+`, marks differences.
    """
    values = np.asarray(list(values))
    if len(values) < 2:
        return " ".join(form.format(x) for x in values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    text = f"{form.format(values.mean())} ± {error:.4f}"
    if form.startswith("{:+"):
        # No t if all values agree to rounding.
        text += f" (t {values.mean() / error:.1f})" if error > 1e-6 else ""
    return text


def difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Formats the paired difference of two rows; `""` for a row with itself.

    Args:
        ours: accuracies by seed.
        theirs: accuracies to subtract; only seeds of both rows count.
    """
    seeds = sorted(set(ours) & set(theirs))
    if ours is theirs or not seeds:
        return ""
    return mean_and_error((ours[s] - theirs[s] for s in seeds), "{:+.4f}")


def comparison(
    title: str,
    heads: tuple[str, ...],
    rows: dict[tuple[str, ...], dict[int, float]],
    bases: dict[str, Callable[[tuple[str, ...]], tuple[str, ...] | None]],
    notes: dict[str, dict[tuple[str, ...], str]] | None = None,
) -> str:
    """Formats a table of accuracies and their paired differences to other rows.

    Args:
        title: line above the table.
        heads: head of each label of a row.
        rows: accuracies by seed, by the labels of the row.
        bases: for each column of differences, a function from the labels of a row to
            those of the row to subtract, or `None`.
        notes: for each further column, its entries by the labels of the row.
    """
    notes = notes or {}
    heads = [*heads, "seeds", "accuracy", *(f"minus {name}" for name in bases), *notes]
    lines = [title, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for labels, ours in rows.items():
        cells = [*labels, str(len(ours)), mean_and_error(ours.values())]
        cells += [
            difference(ours, rows.get(base(labels), {})) for base in bases.values()
        ]
        cells += [note.get(labels, "") for note in notes.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(records: list[dict]) -> str:
    """Formats records as tables, one for each data set and set to measure on.

    Each row is a cell, with its paired differences to the same policy without an
    adversary and to the random field of the same structure and size. A cell with
    several settings has a row for each, marked by the digest.

    Args:
        records: as `runs.train` returns them.
    """
    tables, paper = {}, {}
    digests = {}
    for record in records:
        digests.setdefault(record["cell"], set()).add(record["digest"])
    for record in records:
        settings = record["settings"]
        labels = (settings["adversary"], settings["policy"])
        if len(digests[record["cell"]]) > 1:  # several settings
            labels = (f"{labels[0]} [{record['digest'][:6]}]", labels[1])
        for measured, accuracy in record["accuracy"].items():
            title = (settings["protocol"], settings["data"], measured)
            title = ", ".join(x for x in title if x)
            row = tables.setdefault(title, {}).setdefault(labels, {})
            row[record["seed"]] = accuracy
            if record["paper"] is not None:
                notes = paper.setdefault(title, {})
                notes[labels] = f"{record['paper'] / 100:.4f}"
    bases = {
        "none": lambda labels: ("none", labels[1]),
        "random": lambda labels: (CONTROLS.get(labels[0]), labels[1]),
    }
    return "\n\n".join(
        comparison(
            title,
            ("adversary", "policy"),
            rows,
            bases,
            {"the paper's": paper[title]} if title in paper else None,
        )
        for title, rows in tables.items()
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables of results files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--held-out", default="test", choices=("test", "validation"))
    options = parser.parse_args(arguments)
    records = [r for file in options.files for r in read_records(file)]
    print(markdown([r for r in records if r["held_out"] == options.held_out]))


if __name__ == "__main__":
    main()
