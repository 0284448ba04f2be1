"""Trains a small CNN in three ways and attacks it, in two minutes on two cores.

200 digits of MNIST are the training data: as they are, with random flows, and with
adversarial flows from reused gradients. The flows have the settings that
`experiments.search` found for them. Prints the accuracy where test digits move in the
worst way that an audit finds, and the lines that train and audit a model of yours.

    python -m benchmarks.demo [--seed 0] [--picture demo.png] [--small]
"""

import argparse
import dataclasses
import time
from typing import Any

import keras
import numpy as np

import keras_structadv as ksa
from experiments import datasets, runs
from experiments.adversaries import ADVERSARIES
from experiments.cells import Cell, load_cells
from experiments.table import NAMES

DATA = "mnist-200"
# The trainings by their adversaries: colour and marker, to be told apart by all eyes.
STYLES = {
    "none": {"color": "#000000", "marker": "s"},
    "random-flow": {"color": "#E69F00", "marker": "o"},
    "flow-reused": {"color": "#0072B2", "marker": "^"},
}
WRONG = "#D55E00"
STRENGTHS = (0, 0.5, 1, 1.5, 2, 3)
IN_TABLE = (1, 2)
PIXELS = 2  # of the digits in the picture
YOURS = """\
import keras_structadv as ksa

adversary = ksa.AdversarialTraining(ksa.AdversarialFlow(), gradient="reuse")
model.fit(x, y, epochs=20, callbacks=[adversary])
print(ksa.evaluate_robustness(model, x_test, y_test, strengths=(0, 1, 2)))
"""


class Progress(keras.callbacks.Callback):
    """Shows the epochs of a `fit` as a bar and times them.

    Attributes:
        times: of the clock at the begin and after each epoch, seconds.
    """

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Starts the bar and the clock."""
        epochs = self.params["epochs"]
        self._bar = keras.utils.Progbar(epochs, unit_name="epoch", interval=0.5)
        self.times = [time.perf_counter()]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Moves the bar and reads the clock."""
        self.times.append(time.perf_counter())
        self._bar.update(epoch + 1)


def cells() -> dict[str, Cell]:
    """The cells to train, by adversary; without the attack of `experiments`."""
    found = {cell.adversary: cell for cell in load_cells(f"small/{DATA}")}
    return {name: dataclasses.replace(found[name], attack={}) for name in STYLES}


def described(cell: Cell) -> str:
    """The adversary of a cell as one would write it."""
    adversary = ADVERSARIES[cell.adversary]
    if adversary is None:
        return "the digits as they are"
    given = ", ".join(f"{name}={value}" for name, value in cell.arguments.items())
    reuse = ', gradient="reuse"' if adversary.gradient == "reuse" else ""
    return f"{adversary.kind.__name__}({given}){reuse}"


def trained(cell: Cell, seed: int, small: bool) -> tuple[keras.Model, list[float]]:
    """Trains a cell; returns its model and `Progress.times`."""
    progress = Progress()

    def callbacks(*args: Any, **kwargs: Any) -> list:
        return [progress, *runs.adversarial(*args, **kwargs)]

    model, _ = runs.train(cell, seed, smoke=small, callbacks=callbacks)
    return model, progress.times


def table(
    reports: dict[str, ksa.RobustnessReport], times: dict[str, list[float]]
) -> str:
    """The accuracies and the times of each training, in Markdown."""
    heads = ["training", "clean", *(f"worst case, {pixels} px" for pixels in IN_TABLE)]
    heads += ["seconds, first epoch (compiles)", "seconds, other epochs"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, report in reports.items():
        worst = dict(zip(report.strengths.tolist(), report.worst))
        clock = times[name]
        row = [NAMES[name], *(f"{worst[pixels]:.3f}" for pixels in (0, *IN_TABLE))]
        row += [f"{clock[1] - clock[0]:.1f}", f"{clock[-1] - clock[1]:.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def moved(
    models: dict[str, keras.Model], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves each digit against each model, by ten steepest steps.

    Returns:
        The moved digits, (models, n, height, width, 1), and the models' answers to
        them, (models, n).
    """
    digits, answers = [], []
    for model in models.values():
        layer = ksa.AdversarialFlow((PIXELS, PIXELS), rate=1.0, steps=10).bind(model)
        digits.append(ksa.dense_image_warp(x, layer.fields(x, y)))
        answers.append(model.predict_on_batch(digits[-1]).argmax(axis=-1))
    return np.stack(digits), np.stack(answers)


def draw_curves(axes: Any, reports: dict[str, ksa.RobustnessReport]) -> None:
    """Draws the worst case of each model over the displacement."""
    for name, report in reports.items():
        axes.plot(report.strengths, report.worst, label=NAMES[name], **STYLES[name])
        low, high = report.band("worst")
        axes.fill_between(
            report.strengths,
            low,
            high,
            color=STYLES[name]["color"],
            alpha=0.15,
            linewidth=0,
        )
    axes.set_xlabel("longest displacement (pixels)")
    axes.set_ylabel("accuracy, worst motion found")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def draw_digits(
    grid: np.ndarray, x: np.ndarray, y: np.ndarray, digits: Any, answers: Any
) -> None:
    """Draws a row for each digit: as it is, then moved against each model."""
    for axis, head in zip(grid[0], ("digit", *map(NAMES.get, STYLES))):
        axis.set_title(head.replace(", ", ",\n"), fontsize=10)
    for i, row in enumerate(grid):
        row[0].set_xlabel(y[i])
        for axis, answer in zip(row[1:], answers[:, i]):
            if answer == y[i]:
                axis.set_xlabel(f"{answer} \N{CHECK MARK}")
            else:
                axis.set_xlabel(f"{answer} \N{BALLOT X}", color=WRONG)
        for axis, digit in zip(row, (x[i], *digits[:, i])):
            axis.imshow(digit[..., 0], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])


def draw(
    path: str,
    models: dict[str, keras.Model],
    reports: dict[str, ksa.RobustnessReport],
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    """Writes the picture: the curves of the audits, and digits moved by `PIXELS`."""
    from matplotlib.figure import Figure

    digits, answers = moved(models, x, y)
    right = answers == y
    last, others = right[-1], right[:-1].any(axis=0)
    alone, lost = last & ~others, others & ~last
    # Digits that the last model alone reads then, and all of them unmoved, come first.
    known = np.sum([report.clean for report in reports.values()], axis=0)
    chosen = np.lexsort((-known, ~alone))[:3]
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, side = figure.subfigures(1, 2, width_ratios=(10, 11))
    left.suptitle(f"{len(y)} digits, with 95 % bands", fontsize=11)
    draw_curves(left.subplots(), reports)
    side.suptitle(
        f"moved by up to {PIXELS} px against each model: {alone.sum()} of {len(y)}\n"
        f"are read by the last alone, {lost.sum()} by others alone",
        fontsize=11,
    )
    grid = side.subplots(len(chosen), 1 + len(models))
    draw_digits(grid, x[chosen], y[chosen], digits[:, chosen], answers[:, chosen])
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def main(arguments: list[str] | None = None) -> None:
    """Trains, attacks, prints the table and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", help="file to write the picture to")
    parser.add_argument("--small", action="store_true", help="two steps, four digits")
    options = parser.parse_args(arguments)
    count, steps, random = (4, 2, 1) if options.small else (400, 10, 16)
    x, y = (a[:count] for a in datasets.load(DATA, options.seed)[1][""])
    x = x.astype("float32")
    models, times, reports = {}, {}, {}

    print(
        f"Trains a small CNN on 200 digits of MNIST, three times; seed {options.seed}"
    )
    for name, cell in cells().items():
        print(f"\n{NAMES[name]}: {described(cell)}")
        models[name], times[name] = trained(cell, options.seed, options.small)

    print(
        f"\nMoves {count} other digits against each model, at each strength by {steps} "
        f"steepest\nsteps and {random} random flows; strengths in pixels: "
        f"{', '.join(map(str, STRENGTHS))}"
    )
    for name, model in models.items():
        print(f"\n{NAMES[name]}")
        reports[name] = ksa.evaluate_robustness(
            model,
            x,
            y,
            ksa.AdversarialFlow(),
            strengths=STRENGTHS,
            steps=steps,
            random=random,
            seed=options.seed,
        )

    print(f"\n{table(reports, times)}\n")
    print(
        "One seed says little: docs/evidence.md has the table of 20 seeds, with more "
        'trainings, under "MNIST with 200 images".'
    )
    if options.picture:
        draw(options.picture, models, reports, x, y)
    print(f"\nThe same for a model of yours:\n\n{YOURS}")


if __name__ == "__main__":
    main()
