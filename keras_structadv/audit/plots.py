"""Pictures of a report. Matplotlib is imported when one is drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_structadv import visualization
from keras_structadv.checks import check_count, likely_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = {
    "random_mean": "random",
    "random_worst": "worst of {random} random",
    "adversarial": "adversarial",
    "worst": "worst of all",
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
            linestyle="--" if name == "worst" else "-",
            label=label.format(**report.settings),
        )
        if name == "worst":
            continue  # its band is nearly that of the curve before
        low, high = report.band(name)
        axes.fill_between(
            report.strengths, low, high, color=line.get_color(), alpha=0.2, linewidth=0
        )
    unit = report.settings["strength"]
    axes.set_xlabel(_UNITS.get(unit, unit))
    score = "accuracy" if report.settings["labeled"] else "unchanged answers"
    axes.set_ylabel(score if report.settings["metric"] is None else "score")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def plot_lost(
    report: Any, count: int, class_names: Sequence[str] | None = None
) -> "Figure":
    """Plots the images that were lost at the smallest strengths, a row for each.

    Raises:
        ValueError: if no kept image was lost to a field, or a class has no name.
    """
    check_count("count", count)
    rows = report.lost()[:count]
    if not len(rows):
        raise ValueError(
            "None of the kept images was lost to a field. Pass larger strengths to the "
            "audit."
        )
    highest = report.answers[rows].max()
    if class_names is not None and highest >= len(class_names):
        raise ValueError(
            f"Received {len(class_names)} class_names, and the model answered class "
            f"{highest}. Pass a name for each class."
        )
    images, fields = report.images[rows], report.fields[rows]
    before, after = (
        [_named(answer, class_names) for answer in report.answers[rows, side]]
        for side in (0, 1)
    )
    unit = " px" if report.settings["strength"] == "max_displacement" else ""
    after = [
        f"{name} at {report.strengths[place]:g}{unit}".removeprefix(" ")
        for name, place in zip(after, report.place[rows])
    ]
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"Received images with {images.shape[-1]} channels. Only 1 and 3 can be "
            "drawn: plot report.images and report.fields yourself."
        )
    value_range = tuple(report.settings["value_range"])
    if report.settings["moves_pixels"]:  # which works in any range
        low, high = float(images.min()), float(images.max())
        value_range = likely_range(value_range, low, high) or value_range
    titles: Any = {"before": before, "after": after, "value_range": value_range}
    if report.settings["moves_pixels"]:
        return visualization.plot_flow(images, fields, **titles)
    return visualization.plot_recoloring(images, None, fields, **titles)


def _named(answer: int, class_names: Sequence[str] | None) -> str:
    if answer < 0:
        return ""
    return f"answer {answer}" if class_names is None else str(class_names[answer])
