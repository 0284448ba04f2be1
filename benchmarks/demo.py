"""What adversarial flow gains on real images, in five minutes on two cores.

Trains a small CNN on few images of two data sets that need no download, several seeds
for each row, and prints accuracies, their standard errors and the paired differences.

    python -m benchmarks.demo [--seeds 8 4] [--data digits glyphs] [--picture demo.png]
"""

import argparse
import concurrent.futures
import multiprocessing
import os

import keras
import numpy as np
from keras import layers

import keras_structadv as ksa
from keras_structadv.flow import random_flow

DATA = {
    # The training set, epochs and displacement of each data set.
    "digits": (lambda seed: ksa.datasets.load_digits(200, seed), 60, 3.0),
    "glyphs": (lambda seed: ksa.datasets.load_glyphs(6, seed), 60, 4.0),
    "digits-100": (lambda seed: ksa.datasets.load_digits(100, seed), 60, 3.0),
    "digits-500": (lambda seed: ksa.datasets.load_digits(500, seed), 60, 3.0),
}
BATCH = 64


class RandomFlow(ksa.AdversarialFlow):
    """The control: a random flow of the same smoothness, displacement and rate."""

    def gradient(self, images, labels, targets):
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


def small_cnn(shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Returns three blocks of convolution, normalization and pooling."""
    model = keras.Sequential([keras.Input(shape), layers.Rescaling(1 / 255)])
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(classes))
    return model


def flow(displacement: float, seed: int, kind: type = ksa.AdversarialFlow):
    """Returns the layer that all rows share but for what gives its direction."""
    return kind(max_displacement=displacement, rate=0.5, seed=seed)


ROWS = {
    "none": lambda displacement, seed: [],
    "random flow": lambda displacement, seed: [
        ksa.AdversarialTraining(flow(displacement, seed, RandomFlow))
    ],
    "adversarial flow, fresh": lambda displacement, seed: [
        ksa.AdversarialTraining(flow(displacement, seed))
    ],
    "adversarial flow, reused": lambda displacement, seed: [
        ksa.AdversarialTraining(flow(displacement, seed), gradient="reuse")
    ],
}


def train(
    data: str, row: str, seed: int, rows: dict = ROWS
) -> tuple[keras.Model, float]:
    """Returns a trained model and its test accuracy.

    Seeds set the split, the initial weights, the order of the batches and the fields;
    rows of one seed share all but the last.
    """
    load, epochs, displacement = DATA[data]
    (x, y), (x_test, y_test) = load(seed)
    keras.utils.set_random_seed(seed)
    model = small_cnn(x.shape[1:], int(y.max()) + 1)
    steps = epochs * -(-len(x) // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callbacks = rows[row](displacement, seed)
    model.fit(x, y, BATCH, epochs, verbose=0, callbacks=callbacks)
    return model, model.evaluate(x_test, y_test, 1024, verbose=0)[1]


def report(data: str, accuracy: dict[str, np.ndarray], bases: tuple[str, ...]) -> None:
    """Prints the rows of one data set, and their paired differences to some of them."""
    seeds = len(accuracy[bases[0]])
    print(f"\n{data}, {seeds} seeds: mean test accuracy ± standard error")
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
        model, _ = train(data, "none", seed=0)
        _, (x, y) = DATA[data][0](0)
        softmax = keras.Sequential([model, layers.Softmax()])
        before = softmax.predict(x, 1024, verbose=0)
        flow = ksa.adversarial_flow(
            x, ksa.per_image_gradients(model, x, y), max_displacement=DATA[data][2]
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


def accuracy_of(job: tuple[str, str, int], rows: dict = ROWS) -> float:
    """Returns the test accuracy of a job, `(data, row, seed)`."""
    return train(*job, rows)[1]


def run(jobs: list[tuple[str, str, int]], measure=accuracy_of) -> dict:
    """Returns the accuracy of each job, on all the cores, with a progress bar."""
    results = {}
    progress = keras.utils.Progbar(len(jobs), unit_name="training")
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=min(os.cpu_count() or 1, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not fork
        initializer=one_thread,
    ) as pool:
        for job, accuracy in zip(jobs, pool.map(measure, jobs)):
            results[job] = accuracy
            progress.update(len(results))
    return results


def main() -> None:
    """Trains, prints the tables and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["digits", "glyphs"], choices=DATA)
    parser.add_argument("--seeds", nargs="+", type=int, default=[8, 4])
    parser.add_argument("--picture", help="file to write the picture to")
    options = parser.parse_args()
    if len(options.seeds) == 1:
        options.seeds = options.seeds * len(options.data)
    jobs = [
        (data, row, seed)
        for data, seeds in zip(options.data, options.seeds)
        for seed in range(seeds)
        for row in ROWS
    ]
    results = run(jobs)
    for data, seeds in zip(options.data, options.seeds):
        accuracy = {
            row: np.array([results[data, row, seed] for seed in range(seeds)])
            for row in ROWS
        }
        report(data, accuracy, ("none", "random flow"))
    if options.picture:
        print()
        draw(options.picture)


if __name__ == "__main__":
    main()
