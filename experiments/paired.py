"""Means, errors and paired differences over seeds, with corrected p."""

from collections.abc import Iterable

import numpy as np
import scipy.stats


def mean_and_error(
    values: Iterable[float], form: str = "{:.4f}", p: float | None = None
) -> str:
    """Formats a mean with its standard error; for differences, with t.

    Args:
        values: one for each seed.
        form: format of the mean; a sign, `{:+`, marks differences.
        p: the corrected p of the t, if it is to be told.
    """
    values = np.asarray(list(values))
    if len(values) < 2:
        return " ".join(form.format(x) for x in values)
    text = f"{form.format(values.mean())} ± {standard_error(values):.4f}"
    if form.startswith("{:+") and (test := t_and_p(values)):
        told = "" if p is None else ", p < .001" if p < 0.001 else f", p {p:.3f}"
        text += f" (t {test[0]:.1f}{told})"
    return text


def differences(ours: dict[int, float], theirs: dict[int, float]) -> np.ndarray:
    """The paired differences of two rows, empty for a row with itself.

    Args:
        ours: accuracies by seed.
        theirs: accuracies to subtract; only seeds of both rows count.
    """
    seeds = [] if ours is theirs else sorted(set(ours) & set(theirs))
    return np.array([ours[s] - theirs[s] for s in seeds])


def t_and_p(values: np.ndarray) -> tuple[float, float] | None:
    """The t and two-sided p of paired differences.

    `None` for a single seed, or where all differences agree to rounding.
    """
    if len(values) < 2 or standard_error(values) <= 1e-6:
        return None
    t = values.mean() / standard_error(values)
    return float(t), float(2 * scipy.stats.t.sf(abs(t), len(values) - 1))


def holm(values: list[float]) -> list[float]:
    """Corrects the p of several tests by Holm's method, in their order."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(np.argsort(values)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def corrected_p(found: dict[tuple, np.ndarray]) -> dict[tuple, float]:
    """The p of paired differences by their keys, corrected for all that have one."""
    tests = {key: test[1] for key, x in found.items() if (test := t_and_p(x))}
    return dict(zip(tests, holm([*tests.values()])))


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of values."""
    return values.std(ddof=1) / np.sqrt(len(values))
