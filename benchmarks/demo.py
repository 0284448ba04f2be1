"""What adversarial augmentation gains on real images, in minutes on two cores.

Trains a small CNN on few images of data sets that need no download, several seeds for
each row, and prints accuracies, their standard errors and the paired differences.

    python -m benchmarks.demo [--seeds 6 3 2] [--data digits glyphs colour-glyphs]
        [--picture demo.png]
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

import keras_structadv as ksa
from keras_structadv.flow import random_flow

BATCH = 64


class RandomFlow(ksa.AdversarialFlow):
    """The control: a random flow of the same smoothness, displacement and rate."""

    def gradient(self, forward, images, labels, targets):
        """Returns zeros; the field does not depend on the model."""
        return keras.ops.zeros_like(images)

    def make_field(self, images, gradients, strength):
        """Returns a random flow with the given longest displacements."""
        return random_flow(
            images,
            smoothness=self.smoothness,
            max_displacement=strength,
            seed=self.seed_generator,
        )


class RandomRecoloring(ksa.AdversarialRecoloring):
    """The control: a random perturbation of the same operator, magnitude and rate."""

    def gradient(self, forward, images, labels, targets):
        """Returns noise, which takes the place of the gradient."""
        return keras.random.normal(keras.ops.shape(images), seed=self.seed_generator)


class ColourJitter(RandomRecoloring):
    """What one would do else: contrast and brightness of each channel at random.

    The perturbation `a_c * (image - mean) + b_c`, with normal a and b, is scaled to the
    magnitude that is drawn, as those of the other rows are.
    """

    def make_field(self, images, gradients, strength, basis=None):
        """Returns a random global change of colour of the given magnitude."""
        low, high = self.value_range
        shape = (keras.ops.shape(images)[0], 1, 1, images.shape[-1])
        contrast, brightness = (
            keras.random.normal(shape, seed=self.seed_generator) for _ in range(2)
        )
        centred = images - keras.ops.mean(images, axis=(1, 2), keepdims=True)
        change = contrast * centred + brightness * (high - low) / 4
        size = keras.ops.sqrt(keras.ops.mean(change**2, axis=(1, 2, 3), keepdims=True))
        return change / size * strength[:, None, None, None] * (high - low)


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


def small_cnn(
    shape: tuple[int, int, int], classes: int, flatten: type = layers.Flatten
) -> keras.Model:
    """Returns three blocks of convolution, normalization and pooling."""
    model = keras.Sequential([keras.Input(shape), layers.Rescaling(1 / 255)])
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(flatten())
    model.add(layers.Dense(classes))
    return model


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


def report(title: str, accuracy: dict[str, np.ndarray], bases: tuple[str, ...]) -> None:
    """Prints the rows of one test set, and their paired differences to some of them."""
    seeds = len(accuracy[bases[0]])
    print(f"\n{title}, {seeds} seeds: mean test accuracy ± standard error")
    print("| augmentation | accuracy | " + " | ".join(f"minus {b}" for b in bases), "|")
    print("|---|---|" + "---|" * len(bases))
    for row, values in accuracy.items():
        cells = [mean_and_error(values, "{:.4f}")]
        for base in bases:
            if row in (bases[0], base):
                cells.append("")
            else:
                cells.append(mean_and_error(values - accuracy[base], "{:+.4f}"))
        print(f"| {row} | " + " | ".join(cells) + " |")


def mean_and_error(values: np.ndarray, form: str) -> str:
    """Returns the mean, its standard error and, of a difference, t."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    text = f"{form.format(values.mean())} ± {error:.4f}"
    if form.startswith("{:+"):
        text += f" (t {values.mean() / error:.1f})" if error > 0 else ""
    return text


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


def one_thread() -> None:
    """Keeps each worker to its own core; small models gain nothing from two."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def accuracies_of(job: tuple[str, str, int]) -> np.ndarray:
    """Returns the accuracies of a job, `(data, row, seed)`, one for each test set."""
    data, *rest = job
    return train(DATA[data], *rest)[1]


def run(jobs: list[tuple], measure: Callable = accuracies_of) -> dict:
    """Returns what each job measures, on all the cores, with a progress bar."""
    results = {}
    progress = keras.utils.Progbar(len(jobs), unit_name="training")
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=min(os.cpu_count() or 1, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not fork
        initializer=one_thread,
    ) as pool:
        for job, accuracies in zip(jobs, pool.map(measure, jobs)):
            results[job] = accuracies
            progress.update(len(results))
    return results


def main() -> None:
    """Trains, prints the tables and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        nargs="+",
        default=["digits", "glyphs", "colour-glyphs"],
        choices=DATA,
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[6, 3, 2])
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
    results = run(jobs)
    for data, seeds in zip(options.data, options.seeds):
        _, *controls = (row for row in DATA[data].rows if "adversarial" not in row)
        for number, name in enumerate(DATA[data].load(0)[1]):
            accuracy = {
                row: np.array([results[data, row, s][number] for s in range(seeds)])
                for row in DATA[data].rows
            }
            report(data + name, accuracy, ("none", *controls))
    if options.picture:
        print()
        draw(options.picture)


if __name__ == "__main__":
    main()
