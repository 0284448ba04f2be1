"""Pictures of a report. Matplotlib is imported when one is drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_structadv import visualization

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = {
    "random_mean": "random",
    "random_worst": "worst of {random} random",
    "adversarial": "adversarial",
}
_UNITS = {
    "max_displacement": "longest displacement (pixels)",
    "magnitude": "magnitude (RMS, fraction of the value range)",
}


def plot_curves(report: Any) -> "Figure":
    """Plots the accuracies of a report over the strength, with bootstrap bands."""
    figure, axes = visualization.new_figure((5.2, 3.6))
    for name, label in _CURVES.items():
        (line,) = axes.plot(
            report.strengths,
            getattr(report, name),
            marker="o",
            label=label.format(**report.settings),
        )
        low, high = report.band(name)
        axes.fill_between(
            report.strengths, low, high, color=line.get_color(), alpha=0.2, linewidth=0
        )
    unit = report.settings["strength"]
    axes.set_xlabel(_UNITS.get(unit, unit))
    axes.set_ylabel("accuracy" if report.settings["metric"] is None else "score")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def plot_lost(
    report: Any, count: int, class_names: Sequence[str] | None = None
) -> "Figure":
    """Plots the images that were lost at the smallest strengths, a row for each.

    Raises:
        ValueError: if no kept image was lost to a field.
    """
    rows = report.lost()[:count]
    if not len(rows):
        raise ValueError(
            "No image was lost to a field. Pass larger strengths to the audit."
        )
    images, fields = report.images[rows], report.fields[rows]
    before, after = (
        [_named(answer, class_names) for answer in report.answers[rows, side]]
        for side in (0, 1)
    )
    after = [
        f"{name}, at {report.strengths[place]:g}".removeprefix(", ")
        for name, place in zip(after, report.place[rows])
    ]
    value_range = tuple(report.settings["value_range"])
    titles: Any = {"before": before, "after": after, "value_range": value_range}
    if report.settings["moves_pixels"]:
        return visualization.plot_flow(images, fields, **titles)
    return visualization.plot_recoloring(images, None, fields, **titles)


def _named(answer: int, class_names: Sequence[str] | None) -> str:
    if answer < 0:
        return ""
    return str(answer) if class_names is None else str(class_names[answer])
