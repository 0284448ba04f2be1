"""Prints tables of recorded runs: means, errors, paired differences, corrected p.

python -m experiments.table FILE [...] [--held-out test] [--control ADVERSARY]
    [--data NAME] [--brief] [--by random]
"""

import argparse
import pathlib
from collections.abc import Callable

import numpy as np

from experiments.paired import (
    corrected_p,
    differences,
    mean_and_error,
    standard_error,
    t_and_p,
)
from experiments.records import read_records

# The random row of the same structure for each adversarial row.
CONTROLS = {
    **dict.fromkeys(
        ("flow", "flow-random-start", "flow-three-steps", "flow-reused"), "random-flow"
    ),
    **dict.fromkeys(
        ("recoloring", "recoloring-random-start", "recoloring-reused"),
        "random-recoloring",
    ),
}

# What a reader calls the rows.
NAMES = {
    "none": "plain",
    "random-flow": "random flow",
    "random-flow-composed": "two random flows",
    "random-sign-flow": "adversarial flow, random sign",
    "elastic-transform": "Keras RandomElasticTransform",
    "keras-randaugment": "Keras RandAugment",
    "fgsm-linf": "FGSM, L-infinity",
    "fgm-l2": "FGM, L2",
    "pgd-linf": "PGD, L-infinity",
    "pgd-l2": "PGD, L2",
    "flow": "adversarial flow, fresh",
    "flow-random-start": "adversarial flow, random start",
    "flow-three-steps": "adversarial flow, three steps",
    "flow-reused": "adversarial flow, reused",
    "random-recoloring": "random recolouring",
    "colour-jitter": "colour jitter",
    "recoloring": "adversarial recolouring, fresh",
    "recoloring-random-start": "adversarial recolouring, random start",
    "recoloring-reused": "adversarial recolouring, reused",
}

# Accuracies by seed, by the labels of a row.
Rows = dict[tuple[str, ...], dict[int, float]]


def comparison(
    title: str,
    heads: tuple[str, ...],
    measures: dict[str, Rows],
    bases: dict[str, Callable[[tuple[str, ...]], tuple[str, ...] | None]],
    notes: dict[str, dict[tuple[str, ...], str]] | None = None,
) -> str:
    """Formats a table of accuracies and their paired differences to other rows.

    Each p is corrected for all differences of the table.

    Args:
        title: line above the table.
        heads: head of each label of a row.
        measures: for each kind of accuracy its rows; the first has all of them.
        bases: for each column of differences, a function from the labels of a row to
            those of the row to subtract, or `None`.
        notes: for each further column, its entries by the labels of the row.
    """
    notes, (first, *_) = notes or {}, measures.values()
    found = {
        (name, labels, base): differences(rows[labels], rows.get(of(labels), {}))
        for name, rows in measures.items()
        for labels in rows
        for base, of in bases.items()
    }
    corrected = corrected_p(found)

    heads = [*heads, "seeds"]
    for name in measures:
        heads += [name, *(f"minus {base}" for base in bases)]
    heads += notes
    lines = [title, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for labels in first:
        cells = [*labels, str(len(first[labels]))]
        for name, rows in measures.items():
            cells.append(mean_and_error(rows.get(labels, {}).values()))
            keys = [(name, labels, base) for base in bases]
            cells += [
                mean_and_error(found.get(key, ()), "{:+.4f}", corrected.get(key))
                for key in keys
            ]
        cells += [note.get(labels, "") for note in notes.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(records: list[dict], control: str | None = None) -> str:
    """Formats records as tables, one for each data set and set to measure on.

    Each row is a cell, with its paired differences to the same policy without an
    adversary and to a control. Where models were attacked, the worst case by both
    attacks stands beside the clean accuracy, and each attack by itself in a second
    table. A cell with several settings has a row for each, marked by the digest.

    Args:
        records: as `runs.train` returns them.
        control: the adversary whose row all others are compared with. `None` for the
            random field of the same structure, as far as there is one.
    """
    tables, attacks, paper = {}, {}, {}
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
            measures = tables.setdefault(title, {})
            _note(measures, "accuracy", labels, record["seed"], accuracy)
            worst = record.get("worst_case", {}).get(measured, {})
            for attack, by_strength in worst.items():
                both = attack == "both"
                into = measures if both else attacks.setdefault(title, {})
                name = "worst case" if both else f"by {attack}"
                for strength, value in by_strength.items():
                    head = f"{name}, {strength}"
                    _note(into, head, labels, record["seed"], value)
            if record["paper"] is not None:
                notes = paper.setdefault(title, {})
                notes[labels] = f"{record['paper'] / 100:.4f}"

    def control_of(labels: tuple[str, ...]) -> tuple[str, ...]:
        return (control or CONTROLS.get(labels[0]), labels[1])

    bases = {
        "none": lambda labels: ("none", labels[1]),
        control or "random": control_of,
    }
    heads = ("adversary", "policy")
    texts = []
    for title, measures in tables.items():
        notes = {"the paper's": paper[title]} if title in paper else None
        texts.append(comparison(title, heads, measures, bases, notes))
        if title in attacks:
            apart = f"{title}, each attack"
            texts.append(comparison(apart, heads, attacks[title], {}))
    return "\n\n".join(texts)


def brief(records: list[dict], control: str, by: str = "both") -> str:
    """Formats the rows of one data set as a table to read, without policies.

    The clean accuracy and the worst cases, and each minus that of the control. A star
    marks differences whose p, corrected for all of the table, is below .001.

    Args:
        records: as `runs.train` returns them, of one data set.
        control: the adversary whose row all others are compared with. Records under
            other attacks than its own are left out.
        by: whose worst case: `"gradient"`, `"random"` or `"both"`.

    Returns:
        A table for each attack on the control and each set that was measured, with
        their names where there are several.
    """
    tables: dict[tuple, dict[str, Rows]] = {}
    attacks = {_attack(r) for r in records if _adversary(r) == control}
    for record in records:
        if (attack := _attack(record)) not in attacks:
            continue
        labels = (_adversary(record),)
        for measured, accuracy in record["accuracy"].items():
            measures = tables.setdefault((attack, measured), {})
            _note(measures, "clean", labels, record["seed"], accuracy)
            for strength, value in record["worst_case"][measured][by].items():
                name = f"worst case, {strength}"
                _note(measures, name, labels, record["seed"], value)
    texts, named = [], {attack: dict(attack) for attack in attacks}
    keys = sorted({key for arguments in named.values() for key in arguments})
    differ = [k for k in keys if len({x.get(k) for x in named.values()}) > 1]
    for (attack, measured), measures in tables.items():
        names = [f"In {measured}"] if measured else []
        if differ:
            told = [f"{key} {named[attack].get(key, 'by default')}" for key in differ]
            names.append(f"Attack with {', '.join(told)}")
        title = f"{', '.join(names)}:\n\n" if names else ""
        texts.append(title + _brief(measures, control))
    return "\n\n".join(texts)


def _adversary(record: dict) -> str:
    return record["settings"]["adversary"]


def _attack(record: dict) -> tuple[tuple[str, str], ...]:
    """The arguments of the attack."""
    attack = record["settings"].get("attack", {})
    return tuple((key, str(value)) for key, value in sorted(attack.items()))


def _brief(measures: dict[str, Rows], control: str) -> str:
    """Formats one table of `brief`."""
    found = {
        (name, labels): differences(values, rows[control,])
        for name, rows in measures.items()
        for labels, values in rows.items()
    }
    corrected = corrected_p(found)
    heads = ["training", "seeds"]
    for name in measures:
        heads += [name, "minus control"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    order = [*NAMES]
    for labels in sorted(measures["clean"], key=lambda x: order.index(x[0])):
        cells = [NAMES[labels[0]], str(len(measures["clean"][labels]))]
        for name, rows in measures.items():
            values = np.array([*rows[labels].values()])
            error = f" ± {short(standard_error(values))}" if len(values) > 1 else ""
            cells.append(f"{short(values.mean())}{error}")
            difference = found[name, labels]
            text = short(difference.mean(), "+") if len(difference) else ""
            if test := t_and_p(difference):
                star = "*" if corrected[name, labels] < 0.001 else ""
                text += f" (t {test[0]:.1f}){star}"
            cells.append(text)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def short(value: float, sign: str = "") -> str:
    """Formats a fraction with three digits and no zero before the point."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def _note(
    measures: dict[str, Rows], name: str, labels: tuple, seed: int, value: float
) -> None:
    measures.setdefault(name, {}).setdefault(labels, {})[seed] = value


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables of results files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--held-out", default="test", choices=("test", "validation"))
    parser.add_argument("--control", help="adversary to compare with; default random")
    parser.add_argument("--data", help="only the runs on this data set")
    parser.add_argument("--brief", action="store_true", help="a table to read")
    parser.add_argument(
        "--by",
        default="both",
        choices=("gradient", "random", "both"),
        help="attack whose worst case a brief table has",
    )
    options = parser.parse_args(arguments)
    records = [r for file in options.files for r in read_records(file)]
    records = [
        r
        for r in records
        if r["held_out"] == options.held_out
        and options.data in (None, r["settings"]["data"])
    ]
    if options.brief:
        print(brief(records, options.control, options.by))
    else:
        print(markdown(records, options.control))


if __name__ == "__main__":
    main()
