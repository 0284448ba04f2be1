"""How much of a field the code of its gradient holds, at 32 to 512 pixels.

The cosine between the field from the code and the field of the whole gradient: of small
CNNs that tell photographs apart, and of white noise in the place of their gradient.

    python -m benchmarks.code_sizes [--sides 32 64 ...] [--images 10] [--small]
"""

import argparse
from typing import Any

import numpy as np
from keras import ops

import keras_structadv as ksa
from experiments.models import fitted_small_cnn
from keras_structadv.datasets import PHOTOGRAPHS
from keras_structadv.training.kept_gradients import KeptGradients

SIDES = (32, 64, 96, 128, 224, 384, 512)
SMOOTHNESSES = (None, 1000.0, 300.0, 100.0, 30.0)
DAMPINGS = (None, 1e-2, 1e-3, 1e-4)
LARGEST_RECOLORING = 224
"""Solves of larger images take minutes."""


def gradients_of(side: int, count: int, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Trains a model on crops of photographs; returns test crops, their gradients."""
    crops = max(2, min(30, 3000 // side))
    (x, y), (images, labels) = ksa.datasets.load_photographs(side, crops)
    model = fitted_small_cnn(x, y, len(PHOTOGRAPHS), batch_size=20, epochs=epochs)
    chosen = np.linspace(0, len(images) - 1, count).astype("int32")
    images = images[chosen].astype("float32")
    gradients = ksa.per_image_gradients(model, images, labels[chosen])
    return images, np.asarray(gradients)


def cosines(
    layer: Any, images: np.ndarray, gradients: np.ndarray, size: int
) -> np.ndarray:
    """The cosine of each image's two fields, for a code of `size`."""
    images, gradients = map(ops.convert_to_tensor, (images, gradients))
    strength = np.ones(len(images), "float32")
    codes = layer.code_of(images, gradients, size)
    fields = (
        layer.make_field(images, gradients, strength),
        layer.decode(images, codes, size, strength),
    )
    one, other = (
        ops.convert_to_numpy(field).reshape(len(images), -1).astype("float64")
        for field in fields
    )
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / norms


def sizes_of(layer: Any, images: np.ndarray) -> tuple[int, int]:
    """The k that the field needs, and the one that a store of 65536 places takes."""
    kept = KeptGradients(ksa.GradientStore())
    needed = layer.code_size(images)
    return needed, kept.chosen_sizes(images, {layer: needed})[layer]


def report(layer: Any, name: str, images: np.ndarray, gradients: np.ndarray) -> None:
    """Prints the row of a layer: mean and least cosine, of gradients and of noise."""
    noise = np.random.default_rng(0).normal(size=images.shape).astype("float32")
    needed, taken = sizes_of(layer, images)
    cells = [str(images.shape[1]), name, str(needed)]
    for size in (8, taken):
        cells.append(str(size))
        for direction in (gradients, noise):
            found = cosines(layer, images, direction, size)
            cells.append(f"{found.mean():.3f} ({found.min():.2f})")
    print(f"| {' | '.join(cells)} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Prints a table of flows and one of recolourings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="one side, two images")
    options = parser.parse_args(arguments)
    sides, count, epochs = options.sides, options.images, 10
    if options.small:
        sides, count, epochs = (32,), 2, 1
    print(
        "cosine: mean (least) over the images\n\n| side | setting | needed k "
        "| k | gradients | noise | k by default | gradients | noise |"
        + "\n|"
        + "---|" * 9
    )
    for side in sides:
        images, gradients = gradients_of(side, count, epochs)
        for smoothness in SMOOTHNESSES:
            layer = ksa.AdversarialFlow(smoothness=smoothness)
            report(layer, f"flow, smoothness {smoothness}", images, gradients)
        if side <= LARGEST_RECOLORING:
            for damping in DAMPINGS:
                layer = ksa.AdversarialRecoloring(
                    damping=damping, rtol=0.02, max_iterations=200
                )
                name = f"recolouring, damping {damping}"
                report(layer, name, images, gradients)


if __name__ == "__main__":
    main()
