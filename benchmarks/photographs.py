"""Audits an ImageNet model on photographs, and redraws the paper's figures 1 to 3.

EfficientNet-Lite0, right on 17 of the 20 photographs of ImageNet in the package
foolbox, is attacked by flows and by recolourings. The pictures are of scikit-image's
photographs in the public domain.

    python -m benchmarks.photographs [--folder images] [--small]
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import keras_structadv as ksa
from benchmarks.timing import machine
from experiments import imagenet
from experiments.models import confidences

AUDITS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "flow": (ksa.AdversarialFlow, (0, 1, 2, 4, 8)),
    "recoloring": (ksa.AdversarialRecoloring, (0, 0.01, 0.03, 0.05, 0.1)),
}
PIXELS, MAGNITUDE = 4.0, 0.05  # of the pictures
STEPS = (0, 2, 4, 6, 8, 10)


def model_of_photographs() -> keras.Model:
    """EfficientNet-Lite0 with its weights for ImageNet, compiled."""
    model = imagenet.efficientnet_lite0()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def audit(model: keras.Model, folder: pathlib.Path, small: bool) -> None:
    """Prints the table of each kind of field and draws its curves."""
    x, y = imagenet.load_imagenet_photographs()
    given = {"steps": 2, "random": 2} if small else {}
    x, y = (x[:2], y[:2]) if small else (x, y)
    for name, (kind, strengths) in AUDITS.items():
        report = ksa.evaluate_robustness(
            model,
            x.astype("float32"),
            y,
            kind(),
            strengths=strengths[:2] if small else strengths,
            batch_size=10,
            seed=0,
            verbose=0,
            **given,
        )
        print(f"\n{name}\n\n{report.table()}")
        report.plot().savefig(folder / f"audit_{name}.png", dpi=120)


def draw(model: keras.Model, folder: pathlib.Path, small: bool) -> None:
    """Draws the photographs with one step of a flow and of a recolouring, and films."""
    images, y = (x[:3] for x in imagenet.load_public_photographs())
    x, names = images.astype("float32"), imagenet.class_names()
    gradients = ksa.per_image_gradients(model, x, y)

    def answers(pictures: Any) -> list[str]:
        found = confidences(model, pictures)
        return [f"{names[row.argmax()]} {row.max():.0%}" for row in found]

    within = ksa.AdversarialFlow((PIXELS, PIXELS), steps=2 if small else 10).bind(model)
    flows = within.fields(x, y)
    warped = ksa.dense_image_warp(x, flows)
    ksa.visualization.plot_flow(
        x, flows, before=answers(x), after=answers(warped)
    ).savefig(folder / "photographs_flow.png", dpi=80)
    changes = ksa.adversarial_recoloring(x, gradients, magnitude=MAGNITUDE)
    changed = np.clip(x + np.asarray(changes), 0, 255)
    ksa.visualization.plot_recoloring(
        x, gradients, changes, before=answers(x), after=answers(changed)
    ).savefig(folder / "photographs_recoloring.png", dpi=80)
    wrong = confidences(model, x)
    wrong[np.arange(len(y)), y] = -1
    targets = wrong.argmax(axis=1)
    numbers = STEPS[:2] if small else STEPS
    frames = films(model, x, y, targets, numbers)
    beliefs = {
        name: np.stack([confidences(model, frame) for frame in film])
        for name, film in frames.items()
    }
    path = folder / "photographs_steps.png"
    draw_films(path, frames, beliefs, y, targets, names, numbers, [0, 1])


def films(
    model: keras.Model,
    x: Any,
    y: Any,
    targets: Any,
    numbers: tuple[int, ...],
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
                (steps, steps), rate=1.0, steps=steps, step_size=1 / steps
            ).bind(model)
            frames.append(np.asarray(layer(data, training=True)["images"]))
        made[name] = np.stack(frames)
    return made


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
    """Prints the tables and draws the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("images"))
    parser.add_argument("--small", action="store_true", help="fewer images and steps")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    model = model_of_photographs()
    print(machine())
    audit(model, options.folder, options.small)
    draw(model, options.folder, options.small)


if __name__ == "__main__":
    main()
