"""Audits an ImageNet model on photographs, and redraws the paper's figures 1 to 3.

EfficientNet-Lite0, right on 17 of the 20 photographs of ImageNet in the package
foolbox, is attacked by flows and by recolourings. The pictures are of scikit-image's
photographs, which may be published.

    python -m benchmarks.photographs [--folder images] [--small]
"""

import argparse
import pathlib
from typing import Any

import keras
import numpy as np

import keras_structadv as ksa
from benchmarks.gallery import draw_films, films
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
    images, y = imagenet.load_public_photographs()
    x, names = images.astype("float32"), imagenet.class_names()
    gradients = ksa.per_image_gradients(model, x, y)

    def answers(pictures: Any) -> list[str]:
        found = confidences(model, pictures)
        return [f"{names[row.argmax()]} {row.max():.0%}" for row in found]

    flows = ksa.adversarial_flow(x, gradients, max_displacement=PIXELS)
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
    frames = films(model, x, y, targets, numbers, smoothness=None)
    beliefs = {
        name: np.stack([confidences(model, frame) for frame in film])
        for name, film in frames.items()
    }
    path = folder / "photographs_steps.png"
    draw_films(path, frames, beliefs, y, targets, names, numbers, [0, 1])


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
