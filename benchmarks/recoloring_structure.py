"""Whether a recolouring keeps contours, and raises the loss all the same.

Small CNNs learn to tell ten photographs apart, by 64x64 crops of their left halves.
Crops of the right halves are then changed by a root mean square of 0.08: along the raw
gradient, by the paper's own operator (coherence=0, damped), by ours, and by ours with
noise in the place of the gradient. A change keeps contours if its slopes lie on the
edges of the image.

    python -m benchmarks.recoloring_structure [--models 5] [--picture FILE] [--small]
"""

import argparse
from typing import Any

import keras
import numpy as np

import keras_structadv as ksa
from experiments.models import confidences, fitted_small_cnn
from experiments.paired import mean_and_error
from keras_structadv.datasets import PHOTOGRAPHS

MAGNITUDE = 0.08
PICTURED = ("chelsea", "coffee", "motorcycle", "china")


def train(seed: int, crops: int = 100, epochs: int = 10) -> keras.Model:
    """Trains a model to tell the photographs apart."""
    (x, y), _ = ksa.datasets.load_photographs(crops=crops, seed=seed)
    return fitted_small_cnn(
        x, y, len(PHOTOGRAPHS), batch_size=50, epochs=epochs, seed=seed
    )


def squared_slope(fields: np.ndarray) -> np.ndarray:
    """The squared slope at each pixel, summed over the channels."""
    down = np.square(np.diff(fields, axis=1)).sum(axis=-1)[:, :, :-1]
    right = np.square(np.diff(fields, axis=2)).sum(axis=-1)[:, :-1]
    return down + right


def share_on_edges(images: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """Share of a change's squared slope on the fifth of the pixels with most edge."""
    edges = squared_slope(images.astype("float64"))
    strongest = edges >= np.quantile(edges, 0.8, axis=(1, 2), keepdims=True)
    slopes = squared_slope(changes)
    return (slopes * strongest).sum(axis=(1, 2)) / slopes.sum(axis=(1, 2))


def changes_of(x: np.ndarray, gradients: np.ndarray) -> dict[str, np.ndarray]:
    """The changes to compare, all of the same size."""

    def recolor(direction: np.ndarray, **arguments: Any) -> np.ndarray:
        return np.asarray(
            ksa.adversarial_recoloring(
                x,
                direction,
                magnitude=MAGNITUDE,
                damping=1e-3,
                rtol=0.01,
                **arguments,
            )
        )

    size = np.sqrt(np.mean(np.square(gradients), axis=(1, 2, 3), keepdims=True))
    noise = np.random.default_rng(0).normal(size=x.shape)
    return {
        "raw gradient": gradients * (255 * MAGNITUDE / size),
        "the paper's operator": recolor(gradients, coherence=0.0, max_iterations=1000),
        "ours": recolor(gradients, max_iterations=200),
        "ours, of noise": recolor(noise, max_iterations=200),
    }


def measure(
    seed: int, picture: str | None = None, small: bool = False
) -> dict[str, np.ndarray]:
    """The mean of each photograph in each column, for one model.

    Args:
        seed: seed of the crops and of the model.
        picture: file to write the picture to.
        small: whether to take one crop of each photograph and one epoch.
    """
    model = train(seed, crops=1, epochs=1) if small else train(seed)
    _, (x, y) = ksa.datasets.load_photographs(crops=1 if small else 20, seed=seed)
    x = x.astype("float32")
    accuracy = model.evaluate(x, y, 100, verbose=0)[1]
    print(f"model {seed}: accuracy on the right halves {accuracy:.3f}", flush=True)
    gradients = np.asarray(ksa.per_image_gradients(model, x, y))
    changes = changes_of(x, gradients)
    entropy = keras.losses.SparseCategoricalCrossentropy(True, reduction="none")

    def losses(images: np.ndarray) -> np.ndarray:
        return np.asarray(entropy(y, model.predict(images, 100, verbose=0)))

    before = losses(x)
    columns = {}
    for name, change in changes.items():
        rise = losses(np.clip(x + change, 0, 255)) - before
        columns[f"{name}: on edges"] = share_on_edges(x, change)
        columns[f"{name}: loss"] = rise
    if picture:
        draw(model, x, y, gradients, changes["ours"], picture)
    return {k: v.reshape(len(PHOTOGRAPHS), -1).mean(axis=1) for k, v in columns.items()}


def main(arguments: list[str] | None = None) -> None:
    """Prints the table and draws the picture if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--picture", help="file to write the picture to")
    parser.add_argument("--small", action="store_true", help="one model, ten crops")
    options = parser.parse_args(arguments)
    options.models = 1 if options.small else options.models
    results = [
        measure(seed, options.picture if seed == 0 else None, options.small)
        for seed in range(options.models)
    ]
    print(f"\nmean over {options.models} models; changes of RMS {MAGNITUDE}")
    print("| photograph | " + " | ".join(results[0]) + " |")
    print("|---" * (1 + len(results[0])) + "|")
    columns = {k: np.stack([r[k] for r in results]) for k in results[0]}
    for i, name in enumerate(PHOTOGRAPHS):
        cells = [f"{values[:, i].mean():+.2f}" for values in columns.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    means = {k: values.mean(axis=1) for k, values in columns.items()}  # one per model
    cells = [mean_and_error(values, "{:.2f}") for values in means.values()]
    print("| *mean* | " + " | ".join(cells) + " |")
    for other in ("raw gradient", "the paper's operator", "ours, of noise"):
        difference = means["ours: loss"] - means[f"{other}: loss"]
        print(f"loss, ours minus {other}:", mean_and_error(difference, "{:+.2f}"))


def draw(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    gradients: np.ndarray,
    changes: np.ndarray,
    path: str,
) -> None:
    """Draws the crop of four photographs that lost most confidence."""
    changed = np.clip(x + changes, 0, 255)
    before, after = (confidences(model, v) for v in (x, changed))
    place = np.arange(len(y))
    fall = np.where(before.argmax(axis=1) == y, before[place, y] - after[place, y], -1)
    chosen = [
        place[y == k][fall[y == k].argmax()] for k in map(PHOTOGRAPHS.index, PICTURED)
    ]
    titles = [
        [f"{PHOTOGRAPHS[p[i].argmax()]} {p[i].max():.0%}" for i in chosen]
        for p in (before, after)
    ]
    figure = ksa.visualization.plot_recoloring(
        x[chosen],
        gradients[chosen],
        changes[chosen],
        before=titles[0],
        after=titles[1],
    )
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
