"""What adversarial augmentation gains on real images, in minutes on two cores.

Trains a small CNN on few images of data sets that need no download, several seeds for
each row, and prints accuracies, their standard errors and the paired differences.

    python -m benchmarks.demo [--seeds 3 2 2] [--data digits glyphs colour-glyphs]
        [--picture demo.png]
"""

import argparse
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

import keras_structadv as ksa
from experiments.controls import ColourJitter, RandomFlow, RandomRecoloring
from experiments.models import small_cnn
from experiments.table import comparison
from experiments.train import run_all

BATCH = 64


def row(kind: type, gradient: str = "fresh") -> Callable:
    """Returns a function `(strength, seed) -> callbacks` for a kind of layer."""

    def callbacks(strength, seed):
        layer = kind(strength, rate=0.5, seed=seed)
        return [ksa.AdversarialTraining(layer, gradient=gradient)]

    return callbacks


FLOW_ROWS = {
    "none": lambda strength, seed: [],
    "random flow": row(RandomFlow),
    "adversarial flow, fresh": row(ksa.AdversarialFlow),
    "adversarial flow, reused": row(ksa.AdversarialFlow, "reuse"),
}
RECOLORING_ROWS = {
    "none": lambda strength, seed: [],
    "colour jitter": row(ColourJitter),
    "random recolouring": row(RandomRecoloring),
    "adversarial recolouring, fresh": row(ksa.AdversarialRecoloring),
    "adversarial recolouring, reused": row(ksa.AdversarialRecoloring, "reuse"),
}
# Chosen on the validation set by `python -m benchmarks.recoloring_strengths`.
MAGNITUDES = {
    "none": 0.0,
    "colour jitter": 0.7,
    "random recolouring": 0.7,
    "adversarial recolouring, fresh": 0.3,
    "adversarial recolouring, reused": 0.7,
}


class Task(NamedTuple):
    """What is learnt.

    Attributes:
        load: from the seed to a training set and test sets by name.
        epochs: how long.
        rows: functions `(strength, seed) -> callbacks`.
        strength: that of each row.
    """

    load: Callable
    epochs: int
    rows: dict
    strength: dict


def flow_task(load: Callable, displacement: float) -> Task:
    """Returns the task in which flows of one displacement are compared."""

    def sets(seed):
        train, test = load(seed=seed)
        return train, {"": test}

    return Task(sets, 60, FLOW_ROWS, dict.fromkeys(FLOW_ROWS, displacement))


def load_colour_glyphs(seed: int, held_out: str = "test"):
    """Returns colour glyphs, with a test set in the same and in unseen colours."""
    tests = {}
    for colours in ("same", "unseen"):
        train, tests[f", {colours} colours"] = ksa.datasets.load_colour_glyphs(
            colours=colours, held_out=held_out, seed=seed
        )
    return train, tests


digits, glyphs = ksa.datasets.load_digits, ksa.datasets.load_glyphs
DATA = {
    "digits": flow_task(functools.partial(digits, 200), 3.0),
    "glyphs": flow_task(functools.partial(glyphs, 6), 4.0),
    "colour-glyphs": Task(load_colour_glyphs, 20, RECOLORING_ROWS, MAGNITUDES),
    "digits-100": flow_task(functools.partial(digits, 100), 3.0),
    "digits-500": flow_task(functools.partial(digits, 500), 3.0),
}


def train(
    task: Task, row: str, seed: int, strength: float | None = None
) -> tuple[keras.Model, np.ndarray]:
    """Returns a trained model and its accuracies, one for each test set.

    Seeds set the split, the initial weights, the order of the batches and the fields;
    rows of one seed share all but the last.
    """
    (x, y), tests = task.load(seed)
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = small_cnn(x.shape[1:], int(y.max()) + 1)
    steps = task.epochs * -(-len(x) // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    strength = task.strength[row] if strength is None else strength
    callbacks = task.rows[row](strength, seed)
    model.fit(x, y, BATCH, task.epochs, verbose=0, callbacks=callbacks)
    accuracies = [
        model.evaluate(x_test, y_test, 1024, verbose=0)[1]
        for x_test, y_test in tests.values()
    ]
    return model, np.array(accuracies)


def draw(path: str) -> None:
    """Writes a picture: image, flow and warped image with the model's confidence."""
    rows = []
    for data in ("digits", "glyphs"):
        task = DATA[data]
        model, _ = train(task, "none", seed=0)
        x, y = task.load(0)[1][""]
        softmax = keras.Sequential([model, layers.Softmax()])
        before = softmax.predict(x, 1024, verbose=0)
        flow = ksa.adversarial_flow(
            x,
            ksa.per_image_gradients(model, x, y),
            max_displacement=task.strength["none"],
        )
        after = softmax.predict(ksa.dense_image_warp(x, flow), 1024, verbose=0)
        place = np.arange(len(y))
        sure = before[place, y] > 0.9
        fooled = sure & (after.argmax(1) != y)
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(fooled))[:2]
        print(
            f"{data}: of {sure.sum()} test images known with confidence above 0.9, "
            f"the flow changes the answer for {fooled.sum()}; two of them are drawn"
        )
        name = "0123456789" if data == "digits" else ksa.datasets.CHARACTERS
        for i in chosen:
            titles = [
                f"{name[p[i].argmax()]!r} {p[i].max():.0%}" for p in (before, after)
            ]
            rows.append((x[i], flow[i], *titles))
    images, flows, titles_before, titles_after = zip(*rows)
    figure = ksa.visualization.plot_flow(
        images, flows, before=titles_before, after=titles_after
    )
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def accuracies_of(job: tuple[str, str, int]) -> np.ndarray:
    """Returns the accuracies of a job, `(data, row, seed)`, one for each test set."""
    data, *rest = job
    return train(DATA[data], *rest)[1]


def _always(labels: tuple[str]) -> Callable:
    return lambda _: labels


def main() -> None:
    """Trains, prints the tables and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        nargs="+",
        default=["digits", "glyphs", "colour-glyphs"],
        choices=DATA,
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 2, 2])
    parser.add_argument("--picture", help="file to write the picture to")
    options = parser.parse_args()
    if len(options.seeds) == 1:
        options.seeds = options.seeds * len(options.data)
    jobs = [
        (data, row, seed)
        for data, seeds in zip(options.data, options.seeds)
        for seed in range(seeds)
        for row in DATA[data].rows
    ]
    results = dict(run_all(jobs, accuracies_of, workers=os.cpu_count() or 1))
    for data, seeds in zip(options.data, options.seeds):
        rows = DATA[data].rows
        bases = {row: _always((row,)) for row in rows if "adversarial" not in row}
        for number, name in enumerate(DATA[data].load(0)[1]):
            accuracies = {
                (row,): {s: results[data, row, s][number] for s in range(seeds)}
                for row in rows
            }
            title = f"{data}{name}: test accuracy ± standard error"
            print("\n" + comparison(title, ("augmentation",), accuracies, bases))
    if options.picture:
        print()
        draw(options.picture)


if __name__ == "__main__":
    main()
