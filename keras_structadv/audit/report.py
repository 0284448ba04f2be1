"""What an audit found, as numbers, tables, pictures and files."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_structadv.audit.plots import plot_curves, plot_lost
from keras_structadv.audit.report_file import (
    ARRAYS,
    FILE,
    fits,
    read_report,
    write_report,
)
from keras_structadv.checks import check_fraction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("random_mean", "random_worst", "adversarial", "worst")
_FORMAT = 2


@dataclasses.dataclass(frozen=True, eq=False)
class RobustnessReport:
    """The accuracy of a model under attacks of growing strength.

    A row is a strength: `len(report)` counts them, and `pandas.DataFrame(list(report))`
    is the table. With a `metric` of your own, read score for accuracy.

    Attributes:
        strengths: float64, (strengths,), the budgets.
        scores: for each image, float32, (n, strengths), by name: `"random_mean"`, the
            mean over the random fields; `"random_worst"` and `"adversarial"`, the
            lowest score at this strength or a smaller one.
        clean: float32, (n,), the score of each image as it is.
        kind: int8, (n,), by which attempt the image got its lowest score: 0 clean, 1
            adversarial, 2 random.
        place: int32, (n,), the place in `strengths` at which it did; -1 if clean.
        answers: int32, (n, 2), the classes named before and then; -1 without classes.
        images: (m, height, width, channels), the first images; 256 MiB of images and
            fields are kept.
        fields: float32, (m, height, width, ...), the flow or the perturbation of that
            attempt; zero if clean.
        settings: what was measured, and how.

    Example:
    >>> import keras
    >>> import keras_structadv as ksa
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((8, 8, 1)),
    ...         keras.layers.Rescaling(1 / 255),
    ...         keras.layers.Flatten(),
    ...         keras.layers.Dense(2),
    ...     ]
    ... )
    >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(True))
    >>> x = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 1))
    >>> report = ksa.evaluate_robustness(model, x, strengths=(0, 1), verbose=0)
    >>> [row["strength"] for row in report]
    [0.0, 1.0]
    """

    strengths: np.ndarray
    scores: dict[str, np.ndarray]
    clean: np.ndarray
    kind: np.ndarray
    place: np.ndarray
    answers: np.ndarray
    images: np.ndarray
    fields: np.ndarray
    settings: dict

    @classmethod
    def of(
        cls, parts: list[dict], strengths: Sequence[float], settings: dict
    ) -> "RobustnessReport":
        """Returns the report of batches, each with the arrays of `Tally.first`."""
        whole = {name: np.concatenate([x[name] for x in parts]) for name in parts[0]}
        scores = {name: whole.pop(name) for name in _COLUMNS[:-1]}
        return cls(np.array(strengths, "float64"), scores, settings=settings, **whole)

    @property
    def random_mean(self) -> np.ndarray:
        """The accuracy under a random field, float64, (strengths,)."""
        return self.of_images("random_mean").mean(axis=0)

    @property
    def random_worst(self) -> np.ndarray:
        """The accuracy under the worst of the random fields, float64, (strengths,)."""
        return self.of_images("random_worst").mean(axis=0)

    @property
    def adversarial(self) -> np.ndarray:
        """The accuracy under the steepest steps, float64, (strengths,)."""
        return self.of_images("adversarial").mean(axis=0)

    @property
    def worst(self) -> np.ndarray:
        """The accuracy under all attempts together, float64, (strengths,)."""
        return self.of_images("worst").mean(axis=0)

    def of_images(self, name: str) -> np.ndarray:
        """Returns a column for each image, float64, (n, strengths).

        Args:
            name: `"random_mean"`, `"random_worst"`, `"adversarial"` or `"worst"`.

        Raises:
            ValueError: if there is no such column.
        """
        if name not in _COLUMNS:
            raise ValueError(f"Received name={name!r}. Pass one of {_COLUMNS}.")
        if name == "worst":
            both = self.scores["random_worst"], self.scores["adversarial"]
            return np.minimum(*both).astype("float64")
        return self.scores[name].astype("float64")

    def __len__(self) -> int:
        """Returns the number of strengths."""
        return len(self.strengths)

    def __getitem__(self, place: int) -> dict[str, float]:
        """Returns the row of a strength."""
        row = {"strength": float(self.strengths[place])}
        return row | {name: float(getattr(self, name)[place]) for name in _COLUMNS}

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Yields the rows."""
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        """Returns the table."""
        return self.table()

    def table(self) -> str:
        """Returns the accuracies with their standard errors, a table in Markdown."""
        fields, unit = self.settings["random"], self.settings["strength"]
        names = ("random", f"worst of {fields} random", "adversarial", "worst of all")
        lines = [f"| {unit} | {' | '.join(names)} |", "|---" * 5 + "|"]
        errors = {name: self._standard_error(name) for name in _COLUMNS}
        for place, row in enumerate(self):
            cells = [
                f"{row[name]:.3f} \u00b1 {errors[name][place]:.3f}" for name in _COLUMNS
            ]
            lines.append(f"| {row['strength']:g} | {' | '.join(cells)} |")
        if not self.settings["labeled"]:
            lines += ["", "Labels: the model's own answers to the images as they are."]
        return "\n".join(lines)

    def strength_at(self, accuracy: float = 0.5) -> float:
        """Returns the strength at which the worst case falls to an accuracy.

        Args:
            accuracy: in [0, 1].

        Returns:
            The strength, interpolated; infinity if it is beyond the largest one.
        """
        check_fraction("accuracy", accuracy)
        below = np.flatnonzero(self.worst <= accuracy)
        if not len(below):
            return math.inf
        pair = [below[0], max(below[0] - 1, 0)]  # ascending accuracies, as NumPy wants
        return float(np.interp(accuracy, self.worst[pair], self.strengths[pair]))

    def _standard_error(self, name: str) -> np.ndarray:
        return self.of_images(name).std(axis=0) / np.sqrt(len(self.clean))

    def band(
        self, name: str, level: float = 0.95, draws: int = 1000
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lower and the upper end of a bootstrap interval.

        The images are drawn anew, with replacement.

        Args:
            name: of the column; see `of_images`.
            level: the probability of the interval.
            draws: number of draws.

        Returns:
            Two float64 arrays, (strengths,).
        """
        count, scores = len(self.clean), self.of_images(name)
        rng = np.random.default_rng(0)
        if np.all((scores == 0) | (scores == 1)):
            means = rng.binomial(count, scores.mean(axis=0), (draws, len(self))) / count
        else:
            even = np.full(count, 1 / count)
            means = np.stack(
                [rng.multinomial(count, even) @ scores / count for _ in range(draws)]
            )
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def plot(self) -> "Figure":
        """Plots the accuracies over the strength, with 95 % bootstrap bands."""
        return plot_curves(self)

    def plot_worst(
        self, count: int = 6, class_names: Sequence[str] | None = None
    ) -> "Figure":
        """Plots the images that were lost at the smallest strengths.

        Each row shows the image, the field and the result, with the model's answers.

        Args:
            count: the number of rows, at most.
            class_names: the names of the classes; `None` for their numbers.

        Raises:
            ValueError: if no image was lost.
        """
        return plot_lost(self, count, class_names)

    def lost(self) -> np.ndarray:
        """Returns the places of the kept images that a field changed for the worse.

        Those of the smallest strengths come first.
        """
        moved = np.flatnonzero(self.kind[: len(self.images)] > 0)
        return moved[np.argsort(self.place[moved], kind="stable")]

    def save(self, folder: str | os.PathLike) -> None:
        """Saves the report in a folder.

        `report.npz` holds all of it, `report.json` the rows and the settings to read.
        An interruption leaves the old report or the new one: whole files, and never
        one of each.

        Args:
            folder: it is made if it is not there.
        """
        about = {
            "format": _FORMAT,
            "images": len(self.clean),
            "settings": self.settings,
        }
        arrays = {name: getattr(self, name) for name in ARRAYS} | self.scores
        write_report(pathlib.Path(folder), arrays, about, list(self))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "RobustnessReport":
        """Loads a report that `save` wrote. Nothing in it is run.

        Args:
            folder: the folder, or `report.npz` in it.

        Raises:
            ValueError: if `report.npz` is not a whole report.
        """
        path = pathlib.Path(folder)
        path = path if path.suffix == ".npz" else path / FILE
        arrays, about = read_report(path, (*ARRAYS, *_COLUMNS[:-1]))
        scores = {name: arrays.pop(name) for name in _COLUMNS[:-1]}
        report = cls(scores=scores, settings=about.get("settings", {}), **arrays)
        if about.get("format") != _FORMAT or not fits(report, about.get("images")):
            raise ValueError(
                f"{path} is of another version, or its arrays do not fit. Run the "
                "audit anew."
            )
        return report
