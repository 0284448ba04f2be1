"""What products rounded to TF32 or bfloat16 do to fields, simulated on TensorFlow.

On a GPU, TensorFlow computes float32 products in TF32 unless it is told otherwise, for
the whole process; a TPU rounds to bfloat16. Here the two factors of every product that
the package computes are rounded to the nearest such number, products are summed in
float32, and all else stays as it is. The model and its gradients keep float32. Small
CNNs learn to tell photographs apart, and crops that they have not seen are changed.

    python -m benchmarks.precision [--sides 28 64 224] [--images 20] [--small]
"""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import keras
import numpy as np
from keras import ops

import keras_structadv as ksa
from benchmarks.timing import machine
from experiments.models import fitted_small_cnn
from keras_structadv.datasets import PHOTOGRAPHS

BITS = {"TF32": 11, "bfloat16": 8}
"""Digits of a factor, the hidden one among them; float32 has 24."""
STRENGTHS = {"flow": 1 / 16, "recolouring": 0.08}
"""The mean of what the layers draw: of the side, and of the value range."""


def rounded(x: Any, bits: int) -> Any:
    """Rounds float32 to the nearest number of so many binary digits.

    Reference: Dekker (1971), A floating-point technique for extending the available
        precision.
    """
    scaled = ops.multiply(x, 2.0 ** (24 - bits) + 1)
    return scaled - ops.subtract(scaled, x)


@contextlib.contextmanager
def rounded_products(bits: int) -> Iterator[None]:
    """Rounds the factors of the package's products; those of Keras' layers stay."""

    def product(a: Any, b: Any, function: Callable = ops.matmul) -> Any:
        return function(rounded(a, bits), rounded(b, bits))

    def einsum(pattern: str, a: Any, b: Any, function: Callable = ops.einsum) -> Any:
        return function(pattern, rounded(a, bits), rounded(b, bits))

    # Keras' layers do not look the functions up in the public module.
    with mock.patch.multiple(ops, matmul=product, einsum=einsum):
        yield


class Task(NamedTuple):
    """Images, and the model that they are to mislead."""

    model: keras.Model
    images: np.ndarray
    labels: np.ndarray
    gradients: np.ndarray

    def losses(self, images: np.ndarray) -> np.ndarray:
        """The loss of each image, float64, (n,)."""
        logits = ops.convert_to_numpy(self.model(images, training=False))
        shifted = logits.astype("float64") - logits.max(axis=1, keepdims=True)
        own = np.take_along_axis(shifted, self.labels[:, None], axis=1)[:, 0]
        return np.log(np.exp(shifted).sum(axis=1)) - own


def task_of(side: int, count: int, epochs: int) -> Task:
    """Trains a model on crops of photographs, for test crops of this side."""
    crops = max(2, min(30, 3000 // side))
    (x, y), (images, labels) = ksa.datasets.load_photographs(side, crops)
    model = fitted_small_cnn(x, y, len(PHOTOGRAPHS), batch_size=20, epochs=epochs)
    chosen = np.linspace(0, len(images) - 1, count).astype("int32")
    images, labels = images[chosen].astype("float32"), labels[chosen]
    gradients = ksa.per_image_gradients(model, images, labels)
    return Task(model, images, labels, ops.convert_to_numpy(gradients))


def kinds(task: Task) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """The layer of each field, and a function that makes the fields."""
    count, side = task.images.shape[:2]
    flow, recolor = ksa.AdversarialFlow(), ksa.AdversarialRecoloring()
    fields = {}
    for layer, name in ((flow, "flow"), (recolor, "recolouring")):
        strength = STRENGTHS[name] * (side if layer is flow else 1)
        strengths = np.full(count, strength, "float32")
        given = task.images, task.gradients
        size = max(8, layer.code_size(task.images))

        def reused(layer: Any, size: int, given: tuple, strengths: Any) -> Any:
            codes = ops.cast(layer.code_of(*given, size), "float16")
            codes = ops.cast(codes, "float32")
            return layer.decode(given[0], codes, size, strengths)

        fields[name] = layer, functools.partial(layer.make_field, *given, strengths)
        fields[f"{name}, reused"] = (
            layer,
            functools.partial(reused, layer, size, given, strengths),
        )
    low_rank = functools.partial(
        ksa.adversarial_recoloring, task.images, task.gradients, rank=8
    )
    if side <= 64:  # larger ones take minutes
        fields["recolouring, rank 8"] = recolor, low_rank
    return fields


def angles(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The angle between two fields of each image, in degrees, float64, (n,)."""
    one, other = (
        x.reshape(len(x), -1) / np.linalg.norm(x.reshape(len(x), -1), axis=1)[:, None]
        for x in (one.astype("float64"), other.astype("float64"))
    )
    # Exact for small angles, unlike the arc cosine.
    return np.degrees(2 * np.arcsin(np.linalg.norm(one - other, axis=1) / 2))


def report(side: int, task: Task) -> None:
    """Prints the rows of one side."""
    before = task.losses(task.images)
    for name, (layer, make) in kinds(task).items():
        exact = ops.convert_to_numpy(make())

        def gain(field: np.ndarray, layer: Any = layer) -> float:
            changed = layer.apply(task.images, field)
            return float((task.losses(changed) - before).mean())

        for kind, bits in BITS.items():
            with rounded_products(bits):
                field = ops.convert_to_numpy(make())
            assert (field != exact).any(), "the products were not rounded"
            apart = angles(field, exact)
            size = ops.convert_to_numpy(layer.size_of(field))
            difference = np.abs(field - exact).max()
            print(
                f"| {side} | {name} | {kind} | {apart.mean():.3f} | {apart.max():.3f} "
                f"| {gain(field) / gain(exact):.4f} | {size.max():.4f} "
                f"| {difference:.4f} |",
                flush=True,
            )


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[28, 64, 224])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="one side, two images")
    options = parser.parse_args(arguments)
    sides, count, epochs = options.sides, options.images, 10
    if options.small:
        sides, count, epochs = (28,), 2, 1
    print(f"\n{machine()}; {count} images\n")
    print(
        "Against float32: the angle between the fields in degrees, the gain in loss as "
        "a factor,\nthe largest difference in pixels or grey levels. `size` is the "
        "longest displacement in\npixels, or the root mean square as a fraction of the "
        "value range.\n\n| side | field | factors | angle, mean | angle, largest "
        "| loss gain | size | difference |\n" + "|" + "---|" * 8
    )
    for side in sides:
        report(side, task_of(side, count, epochs))


if __name__ == "__main__":
    main()
