"""The files of a report."""

import json
import pathlib
from typing import Any

import numpy as np

from keras_structadv.files import read_arrays, whole_files

FILE = "report.npz"
"""The file that holds all of a report."""

ARRAYS = ("strengths", "clean", "kind", "place", "answers", "images", "fields")
"""The arrays of a report, beside those of its columns."""

_READABLE = "report.json"
# Pictures and fields take at most 256 MiB, see `Audit.run`; the rest some bytes for
# each image and strength.
_MOST_BYTES = 2**30
_SETTINGS = {"strength", "moves_pixels", "value_range", "random", "metric", "labeled"}


def write_report(
    folder: pathlib.Path, arrays: dict[str, np.ndarray], about: dict, rows: list
) -> None:
    """Writes the files of a report; see `RobustnessReport.save`."""
    text = json.dumps({**about, "rows": rows}, indent=1)
    whole: dict[str, Any] = {"about": np.array(json.dumps(about)), **arrays}
    with whole_files(folder, FILE, (_READABLE,)) as fresh:
        np.savez_compressed(fresh / FILE, **whole)
        (fresh / _READABLE).write_text(text)


def read_report(
    path: pathlib.Path, names: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict]:
    """Returns the arrays of a file that may be damaged or hostile, and the settings.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is no report.
    """
    try:
        arrays = read_arrays(path, (*names, "about"), _MOST_BYTES)
        about = json.loads(str(arrays.pop("about")))
        if not isinstance(about, dict):
            raise ValueError(f"its settings are {about!r:.99}")
        return arrays, about
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no report, or not a whole one ({error}). Pass the folder "
            "that `save` wrote."
        ) from error


def fits(report: Any, count: Any) -> bool:
    """Returns whether the arrays of a report have its shapes and ranges.

    Args:
        report: the `RobustnessReport`.
        count: the number of images, as the file says.
    """
    if not isinstance(count, int) or report.strengths.ndim != 1:
        return False
    columns = (count, len(report))
    images = (report.clean, report.kind, report.place)
    pictures = (report.images, report.fields)
    numbers = (report.strengths, *images, *pictures, *report.scores.values())
    if not (
        all(x.dtype.kind in "biuf" for x in (*numbers, report.answers))
        and report.strengths.shape == columns[1:]
        and min(columns) > 0
        and all(x.shape == columns for x in report.scores.values())
        and all(x.shape == (count,) for x in images)
        and report.answers.shape == (count, 2)
        and len(report.images) == len(report.fields) <= count
        and report.images.ndim == 4 == report.fields.ndim
    ):
        return False
    return bool(
        np.isfinite(report.strengths).all()
        and report.strengths[0] >= 0
        and np.all(np.diff(report.strengths) > 0)
        and all(_are_scores(x) for x in (report.clean, *report.scores.values()))
        and set(np.unique(report.kind)) <= {0, 1, 2}
        and -1 <= report.place.min() <= report.place.max() < len(report)
        and isinstance(report.settings, dict)
        and _SETTINGS <= set(report.settings)
    )


def _are_scores(scores: np.ndarray) -> bool:
    return bool(scores.min() >= 0 and scores.max() <= 1 + 1e-5)  # false for NaN
