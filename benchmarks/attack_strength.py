"""How strong the steepest steps of an audit are, against other attacks by motions.

A small CNN learns MNIST. Test images that it gets right are then attacked, with one and
the same bound on the longest displacement: by the steps of an audit, by L-BFGS over
smooth flows, by stAdv, and by rotations and translations. Kept is the motion of the
highest loss among all that an attack tried.

    python -m benchmarks.attack_strength [--images 100] [--displacements 1 2] [--small]

The last row needs `pip install --no-deps adversarial-robustness-toolbox`.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_structadv as ksa
from benchmarks.attacked import Attacked, Found, roughness_of
from benchmarks.flow_lbfgs import Bounded, BoundedWithRoughness, optimised
from benchmarks.rigid_motions import by_art, rigid
from benchmarks.timing import machine
from experiments.models import fitted_small_cnn
from keras_structadv.audit.audit import Audit
from keras_structadv.defaults import smoothness_of
from keras_structadv.flow import flow_code_size

ROUNDING = 1e-3
"""Losses that differ by less count as equal."""


def images_to_attack(count: int, small: bool) -> Attacked:
    """Trains the model and returns test images that it gets right."""
    train, (x, y) = ksa.datasets.load_mnist_5k(300 if small else 3000)
    epochs = 2 if small else 10
    model = fitted_small_cnn(
        *train, 10, batch_size=50, epochs=epochs, head=layers.Flatten
    )
    right = model.predict(x, 500, verbose=0).argmax(axis=-1) == y
    print(f"{len(train[0])} training images, test accuracy {right.mean():.3f}")
    chosen = np.flatnonzero(right)[:count]
    return Attacked(model, x[chosen].astype("float32"), y[chosen])


def by_steps(
    attacked: Attacked,
    limit: float,
    *,
    steps: int = 10,
    restarts: int = 1,
    batch: int | None = None,
    smoothness: float | None = None,
) -> Found:
    """Attacks the images as an audit does.

    Args:
        attacked: the images.
        limit: the longest displacement, pixels.
        steps: as in `evaluate_robustness`.
        restarts: as in `evaluate_robustness`.
        batch: number of images at once; `None` for all.
        smoothness: as in `AdversarialFlow`.
    """
    audit = Audit(
        ksa.AdversarialFlow(smoothness=smoothness),
        strengths=(limit,),
        steps=steps,
        restarts=restarts,
        random=0,
        metric=falling_with_loss,
        batch_size=batch or len(attacked.y),
        seed=0,
    )
    audit.run(attacked.model, attacked.x[:batch], attacked.y[:batch])  # compiles
    begin = time.perf_counter()
    report = audit.run(attacked.model, attacked.x, attacked.y)
    seconds = time.perf_counter() - begin
    images, roughness = attacked.warped(report.fields), roughness_of(report.fields)
    return attacked.found(images, roughness, restarts * (steps + 1), seconds)


def falling_with_loss(labels: Any, logits: Any) -> Any:
    """A score of an audit that is lowest where the loss is highest."""
    loss = keras.losses.sparse_categorical_crossentropy(labels, logits, True)
    return 1 / (1 + loss)


def attacks(
    attacked: Attacked, limit: float, iterations: int
) -> Iterator[tuple[str, Found | None]]:
    """Yields the name of each attack and what it found; ten steps come first."""
    ours = by_steps(attacked, limit)
    yield "ten steps", ours
    yield "ten steps, one image at a time", by_steps(attacked, limit, batch=1)
    yield "ten steps from each of 3 starts", by_steps(attacked, limit, restarts=3)
    yield "50 steps", by_steps(attacked, limit, steps=50)

    side = attacked.x.shape[1]
    for part in (10, 30):
        smoothness = smoothness_of(None, side, side) / part
        found = by_steps(attacked, limit, smoothness=smoothness)
        yield f"ten steps, 1/{part} of the smoothness", found

    def lbfgs(bound: Any, **arguments: Any) -> Found:
        return optimised(attacked, bound, iterations=iterations, **arguments)

    low = 2 * flow_code_size((side, side), None)  # as many as the audit draws
    free = Bounded(limit)
    alike = BoundedWithRoughness(limit, np.maximum(ours.roughness, 1e-6))
    yield "L-BFGS, low frequencies, no rougher", lbfgs(alike, frequencies=low)
    yield "L-BFGS, all frequencies, no rougher", lbfgs(alike, frequencies=side)
    yield "L-BFGS, low frequencies", lbfgs(free, frequencies=low)
    yield "stAdv as published", lbfgs(free, confidence=0.0, tau=0.05)
    yield "stAdv for the highest loss", lbfgs(free, tau=0.05)
    yield "stAdv without its flow loss", lbfgs(free)
    yield "rotations and translations, a grid", rigid(attacked, limit)
    yield "ART SpatialTransformation", by_art(attacked, limit)


def row(name: str, limit: float, found: Found, ours: Found) -> str:
    """The row of an attack."""
    rise = found.losses - ours.losses
    error = rise.std() / np.sqrt(len(rise))
    cells = (
        name,
        f"{limit:g}",
        f"{found.losses.mean():.2f}",
        f"{rise.mean():+.2f} ± {error:.2f}" if found is not ours else "",
        f"{np.mean(rise > -ROUNDING):.2f}",
        f"{found.right.mean():.2f}",
        f"{found.roughness.mean():.4f}",
        f"{found.passes:.0f}",
        f"{1000 * found.seconds:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--displacements", type=float, nargs="+", default=(1.0, 2.0))
    parser.add_argument("--small", action="store_true", help="four images, one bound")
    options = parser.parse_args(arguments)
    count, limits, iterations = options.images, options.displacements, 100
    if options.small:
        count, limits, iterations = 4, (1.0,), 3
    print(machine())
    attacked = images_to_attack(count, options.small)
    print(
        f"{len(attacked.y)} images. Share: of images with at least the loss of ten "
        "steps. Left: accuracy at the\nhighest loss. Roughness: mean squared "
        "difference of neighbouring displacements.\n"
    )
    columns = "attack", "pixels", "loss", "minus ten steps", "share", "left"
    columns += "roughness", "passes", "ms per image"
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for limit in limits:
        ours = None
        for name, found in attacks(attacked, limit, iterations):
            if found is None:
                print(f"| {name} | not installed |{' |' * (len(columns) - 2)}")
                continue
            ours = ours or found
            print(row(name, limit, found, ours), flush=True)


if __name__ == "__main__":
    main()
