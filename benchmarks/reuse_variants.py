"""Whether reused gradients get better by averaging, other sizes or random parts.

Compares each variant with the plain form on digits with 200 training images. Seeds, and
so splits, differ from those of the tables in the documentation.

    python -m benchmarks.reuse_variants [--seeds 20] [--data digits] [--small]
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

import keras_structadv as ksa
from experiments.cells import Cell, load_cells
from experiments.runs import train
from experiments.table import comparison
from experiments.workers import run_all, workers

FIRST_SEED = 100
# The training of every row; the row makes the callbacks.
SETTINGS = (
    "adversary=flow-reused",
    "policy=none",
    "flow.smoothness=100",
    "flow.rate=0.5",
)


class Averaged(ksa.GradientStore):
    """Adds a part of the old code to each new one.

    Args:
        kept: weight of the old code.
        **kwargs: of `GradientStore`.
    """

    def __init__(self, kept: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.kept = kept

    def write(self, keys: Any, codes: Any) -> None:
        """Stores `codes + kept * old`, scaled to a peak of one."""
        mixed = ops.cast(codes, "float32") + self.kept * self.read(keys)[0]
        peak = ops.max(ops.abs(mixed), axis=1, keepdims=True)
        super().write(keys, ops.divide_no_nan(mixed, peak))


class HalfUpdated(ksa.GradientStore):
    """Updates a random half of the known images, and all new ones."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def write(self, keys: Any, codes: Any) -> None:
        """Replaces the codes of the other half by zeros, which are not stored."""
        draw = keras.random.uniform(ops.shape(codes)[:1], seed=self.seed_generator)
        keep = (draw < 0.5) & self.read(keys)[1]
        super().write(keys, ops.where(keep[:, None], 0.0, codes))


class HalfRandom(ksa.AdversarialFlow):
    """Mixes a random direction of the same band and length into each code."""

    def decode(self, images: Any, codes: Any, size: int, strength: Any) -> Any:
        """The flow of the code plus a random one of the same length."""
        noise = keras.random.normal(ops.shape(codes), seed=self.seed_generator)
        length = ops.norm(codes, axis=1, keepdims=True)
        noise = noise * ops.divide_no_nan(
            length, ops.norm(noise, axis=1, keepdims=True)
        )
        return super().decode(images, codes + noise, size, strength)


class BandLimitedRandom(ksa.AdversarialFlow):
    """The control: a random code of the same band in the place of the stored one."""

    def decode(self, images: Any, codes: Any, size: int, strength: Any) -> Any:
        """A random flow where a code was found, zero elsewhere."""
        noise = keras.random.normal(ops.shape(codes), seed=self.seed_generator)
        found = ops.any(codes != 0, axis=1, keepdims=True)
        return super().decode(images, ops.where(found, noise, 0.0), size, strength)


def reuse(
    store: Callable = ksa.GradientStore, kind: type = ksa.AdversarialFlow
) -> Callable:
    """A row: a function that makes the callbacks of a run, for `runs.train`."""

    def callbacks(cell: Cell, seed: int, **kwargs: Any) -> list:
        layer = kind(**cell.flow, seed=seed)
        return [ksa.AdversarialTraining(layer, gradient=store(**kwargs))]

    return callbacks


def sized(size: int) -> Callable:
    """Makes stores of `size` x `size` coefficients."""
    return functools.partial(ksa.GradientStore, size=size)


ROWS = {
    "reused, k = 8": reuse(),
    "k = 4": reuse(sized(4)),
    "k = 6": reuse(sized(6)),
    "k = 12": reuse(sized(12)),
    "averaged over epochs, 0.5": reuse(functools.partial(Averaged, 0.5)),
    "averaged over epochs, 0.9": reuse(functools.partial(Averaged, 0.9)),
    "half of the images updated": reuse(HalfUpdated),
    "half random": reuse(kind=HalfRandom),
    "random code of the same band": reuse(kind=BandLimitedRandom),
}
SMALL_ROWS = ("reused, k = 8", "averaged over epochs, 0.5", "half random")


def measure(job: tuple[str, str, int], smoke: bool = False) -> float:
    """Trains a job, `(data, row, seed)`; returns its test accuracy."""
    data, row, seed = job
    (cell,) = load_cells(f"small/{data}", SETTINGS)
    return train(cell, seed, smoke=smoke, callbacks=ROWS[row])[1]["accuracy"][""]


def main(arguments: list[str] | None = None) -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--data", default="digits", choices=["digits", "glyphs"])
    parser.add_argument("--small", action="store_true", help="two steps, three rows")
    options = parser.parse_args(arguments)
    rows = SMALL_ROWS if options.small else tuple(ROWS)
    seeds = range(FIRST_SEED, FIRST_SEED + (1 if options.small else options.seeds))
    jobs = [(options.data, row, s) for s in seeds for row in rows]
    smallest = functools.partial(measure, smoke=options.small)
    results = dict(run_all(jobs, smallest, **workers(options.small)))
    accuracies = {
        (row,): {s: results[options.data, row, s] for s in seeds} for row in rows
    }
    first = next(iter(accuracies))
    bases = {first[0]: lambda _: first}
    title = f"{options.data}: test accuracy ± standard error"
    measures = {"accuracy": accuracies}
    print("\n" + comparison(title, ("augmentation",), measures, bases))


if __name__ == "__main__":
    main()
