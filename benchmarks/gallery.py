"""Draws the pictures of the README.

    python -m benchmarks.gallery [--folder images] [--small]

`demo` draws `flow.png`, and `recoloring_structure` draws `recoloring.png`. `steps.png`
follows the paper's figure 3.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import keras_structadv as ksa
from benchmarks import demo, recoloring_structure
from experiments.models import confidences
from keras_structadv.datasets import CHARACTERS

STEPS = (0, 2, 4, 6, 8, 10)


def films(
    model: keras.Model,
    x: Any,
    y: Any,
    targets: Any,
    numbers: tuple[int, ...],
    smoothness: float | None = 100.0,
) -> dict[str, np.ndarray]:
    """The images after these numbers of steps, away from labels and towards targets.

    Each step moves by one pixel.
    """
    made = {}
    for name, data in (
        ("away from", {"images": x, "labels": y}),
        ("towards", {"images": x, "labels": y, "targets": targets}),
    ):
        frames = [x.astype("float32")]
        for steps in numbers[1:]:
            layer = ksa.AdversarialFlow(
                (steps, steps), smoothness, rate=1.0, steps=steps, step_size=1 / steps
            ).bind(model)
            frames.append(np.asarray(layer(data, training=True)["images"]))
        made[name] = np.stack(frames)
    return made


def draw_steps(path: pathlib.Path, small: bool = False) -> None:
    """Draws ten steps away from the label, and ten towards the next likely one.

    Args:
        path: file to write to.
        small: whether to draw a model after two steps of training.
    """
    model, x, y = demo.plain_model("glyphs", small)
    before, place = confidences(model, x), np.arange(len(y))
    wrong = before.copy()
    wrong[place, y] = -1
    sure = before[place, y] > (0 if small else 0.95)
    x, y, targets = x[sure], y[sure], wrong.argmax(axis=1)[sure]
    place = np.arange(len(y))
    numbers = STEPS[:2] if small else STEPS
    frames = films(model, x, y, targets, numbers)
    beliefs = {
        name: np.stack([confidences(model, frame) for frame in film])
        for name, film in frames.items()
    }
    falls = beliefs["away from"][:, place, y]
    rises = beliefs["towards"][:, place, targets]
    print(
        f"of {len(y)} glyphs known with confidence above .95, the steps lower that of "
        f"the label for {np.mean(falls[-1] < falls[0]):.1%}, and raise that of the "
        f"target for {np.mean(rises[-1] > rises[0]):.1%}; two that reach it are drawn"
    )
    reached = np.flatnonzero(beliefs["towards"][-1].argmax(axis=1) == targets)
    chosen = np.random.default_rng(0).permutation(reached)[:2]
    draw_films(path, frames, beliefs, y, targets, CHARACTERS, numbers, chosen)


def draw_films(
    path: pathlib.Path,
    frames: dict[str, np.ndarray],
    beliefs: dict[str, np.ndarray],
    y: Any,
    targets: Any,
    names: Sequence[str],
    numbers: tuple[int, ...],
    chosen: Any,
) -> None:
    """Draws films, a row for each image and direction.

    Args:
        path: file to write to.
        frames: what `films` returned.
        beliefs: the confidences of the model at each of them.
        y: the labels.
        targets: the targets.
        names: the names of the classes.
        numbers: the numbers of steps.
        chosen: the images to draw.
    """
    from matplotlib.figure import Figure

    rows = [(i, name) for i in chosen for name in frames]
    size = (1.4 * len(numbers), 1.65 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(numbers))
    for row, (i, name) in zip(axes, rows):
        aim = names[(targets if name == "towards" else y)[i]]
        row[0].set_ylabel(f"{name}\n{aim!r}")
        for axis, image, belief in zip(row, frames[name][:, i], beliefs[name][:, i]):
            axis.imshow(image.squeeze() / 255, cmap="gray", vmin=0, vmax=1)
            answer = names[belief.argmax()]
            axis.set_title(f"{answer!r} {belief.max():.0%}", fontsize=9)
            axis.set(xticks=[], yticks=[])
    for axis, steps in zip(axes[-1], numbers):
        axis.set_xlabel(f"{steps} steps")
    figure.savefig(path, dpi=90)
    print(f"wrote {path}")


def main(arguments: list[str] | None = None) -> None:
    """Draws all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("images"))
    parser.add_argument("--small", action="store_true", help="models after two steps")
    options = parser.parse_args(arguments)
    folder, small = options.folder, options.small
    folder.mkdir(parents=True, exist_ok=True)
    demo.draw(str(folder / "flow.png"), small)
    recoloring_structure.measure(0, str(folder / "recoloring.png"), small)
    draw_steps(folder / "steps.png", small)


if __name__ == "__main__":
    main()
