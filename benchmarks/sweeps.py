"""Draws fields of several strengths and smoothnesses on images of 16 to 224 pixels.

    python -m benchmarks.sweeps [--folder images] [--small]

Of each three columns, the middle one has the default smoothness or damping. Prints what
the default factors were chosen by: the share of pixels that move by more than half a
pixel, the share at which a flow folds, and the share of a recolouring that is not
constant over the image.
"""

import argparse
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers

import keras_structadv as ksa
from experiments.models import fitted_small_cnn
from keras_structadv.datasets import CHARACTERS, PHOTOGRAPHS
from keras_structadv.flow import folded_fraction

DISPLACEMENTS = (16, 8, 4)
"""The side over the longest displacement; layers draw up to an eighth."""
LENGTHS = (6, 3, 1.5)
"""The side over the root of the smoothness."""
MAGNITUDES = (0.05, 0.1, 0.2)
DAMPINGS = (1, 10, 100)
"""The damping times the squared side."""


def photographs(size: int, name: str, small: bool) -> tuple:
    """Crops to train on, and crops of one photograph to change."""
    crops = 1 if small else 40 if size < 200 else 12
    train, (x, y) = ksa.datasets.load_photographs(size=size, crops=crops)
    chosen = y == PHOTOGRAPHS.index(name)
    return train, (x[chosen][:10], y[chosen][:10]), len(PHOTOGRAPHS)


def digits(small: bool) -> tuple:
    """Digits of 16 pixels."""
    train, (x, y) = ksa.datasets.load_digits(20 if small else 400)
    return train, (x[:40], y[:40]), 10


def glyphs(load: Callable, small: bool) -> tuple:
    """Glyphs of 28 pixels."""
    train, (x, y) = load(1 if small else 8)
    return train, (x[5:45], y[5:45]), len(CHARACTERS)


FLOWS = {
    16: digits,
    28: lambda small: glyphs(ksa.datasets.load_glyphs, small),
    64: lambda small: photographs(64, "chelsea", small),
    96: lambda small: photographs(96, "rocket", small),
    224: lambda small: photographs(224, "coffee", small),
}
RECOLORINGS = {
    **FLOWS,
    28: lambda small: glyphs(ksa.datasets.load_colour_glyphs, small),
}
del RECOLORINGS[16]


def gradients_of(data: tuple, small: bool) -> tuple[np.ndarray, np.ndarray]:
    """Trains a model; returns the images to change and their gradients."""
    (x, y), (images, labels), classes = data
    head = layers.GlobalAveragePooling2D if x.shape[1] > 28 else layers.Flatten
    epochs = 1 if small else 12
    model = fitted_small_cnn(x, y, classes, batch_size=32, epochs=epochs, head=head)
    images = images.astype("float32")
    return images, np.asarray(ksa.per_image_gradients(model, images, labels))


def flow_cell(
    images: np.ndarray, gradients: np.ndarray, part: float, length: float
) -> tuple[np.ndarray, str]:
    """The warped images, and what the flows do."""
    side = min(images.shape[1:3])
    flow = ksa.adversarial_flow(
        images,
        gradients,
        max_displacement=side / part,
        smoothness=(side / length) ** 2,
    )
    moved = np.linalg.norm(np.asarray(flow), axis=-1) > 0.5
    folded = np.asarray(folded_fraction(flow)).mean()
    measured = f"{moved.mean():.0%} moved, {folded:.2%} folded"
    return np.asarray(ksa.dense_image_warp(images, flow)), measured


def recoloring_cell(
    images: np.ndarray, gradients: np.ndarray, magnitude: float, factor: float
) -> tuple[np.ndarray, str]:
    """The recoloured images, and the share of the change that is not constant."""
    change = np.asarray(
        ksa.adversarial_recoloring(
            images,
            gradients,
            magnitude=magnitude,
            damping=factor / min(images.shape[1:3]) ** 2,
        )
    )
    tint = np.square(change.mean(axis=(1, 2))).mean(axis=-1)
    share = 1 - tint / np.square(change).mean(axis=(1, 2, 3))
    return np.clip(images + change, 0, 255), f"{share.mean():.0%} not constant"


def draw(
    path: pathlib.Path,
    data: dict[int, Callable],
    cell: Callable[..., tuple[np.ndarray, str]],
    settings: dict[str, tuple[Any, Any]],
    small: bool,
) -> None:
    """Draws one row for each size of image, and prints the measures.

    Args:
        path: file to write to.
        data: loads the images of each size.
        cell: changes the images by a setting.
        settings: the settings of the columns, by title.
        small: whether to train for one epoch on few images.
    """
    from matplotlib.figure import Figure

    size = (1.1 * (1 + len(settings)), 1.15 * len(data) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(data), 1 + len(settings))
    print(f"\n| side | {' | '.join(settings).replace(chr(10), ', ')} |")
    print("|---" * (1 + len(settings)) + "|")
    for row, (side, load) in zip(axes, data.items()):
        images, gradients = gradients_of(load(small), small)
        cells = [cell(images, gradients, *pair) for pair in settings.values()]
        print(f"| {side} | {' | '.join(measured for _, measured in cells)} |")
        # The image whose gradient is the median of those that are not zero.
        sizes = np.square(gradients).sum(axis=(1, 2, 3))
        chosen = np.argsort(sizes)[len(sizes) // 2]
        row[0].set_ylabel(f"{side} pixels", fontsize=8)
        for axis, pictures in zip(row, (images, *(made for made, _ in cells))):
            axis.imshow(pictures[chosen].squeeze() / 255, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("image", *settings)):
        axis.set_title(title, fontsize=7)
    figure.savefig(path, dpi=85)
    print(f"wrote {path}")


def main(arguments: list[str] | None = None) -> None:
    """Draws both pictures and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("images"))
    parser.add_argument("--small", action="store_true", help="one epoch, few images")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    flows = {
        f"s/{part} pixels\nsmoothness (s/{length})²": (part, length)
        for part, length in itertools.product(DISPLACEMENTS, LENGTHS)
    }
    draw(options.folder / "sweep_flow.png", FLOWS, flow_cell, flows, options.small)
    recolorings = {
        f"RMS {magnitude}\ndamping {factor}/s²": (magnitude, factor)
        for magnitude, factor in itertools.product(MAGNITUDES, DAMPINGS)
    }
    path = options.folder / "sweep_recoloring.png"
    draw(path, RECOLORINGS, recoloring_cell, recolorings, options.small)


if __name__ == "__main__":
    main()
