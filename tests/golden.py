"""Shows whether a change of the code changes a result: weights and History of `fit`.

    python -m tests.golden FILE      # once before the change, once after it

The first call writes the file. Every further call trains the same models again, prints
what differs from the file, and exits with 1 if anything does. Run it on one machine and
one backend, because other ones round differently.
"""

import argparse
import itertools
import pathlib
import sys

import keras
import numpy as np
from keras import layers, ops

import keras_structadv as ksa

KINDS = {
    "flow": (ksa.AdversarialFlow, {"max_displacement": 3.0, "smoothness": 100.0}),
    "recoloring": (ksa.AdversarialRecoloring, {"damping": 1e-3}),
}
PLACES = ("fresh", "reuse", "inside")
LAYOUTS = ("channels_last", "channels_first")


def network(shape: tuple[int, int, int], inside: list) -> keras.Model:
    """Returns a network that computes the same in both layouts, but for rounding."""
    first = shape[0] == 3
    return keras.Sequential(
        [
            keras.Input(shape),
            *inside,
            layers.Permute((2, 3, 1)) if first else layers.Identity(),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.1, seed=3),
            layers.Dense(10),
        ]
    )


def trained(kind: str, place: str, layout: str) -> dict[str, np.ndarray]:
    """Returns the weights and the History after two epochs, by name."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    (x, y), _ = ksa.datasets.load_digits(40)
    x = np.concatenate([x, 255 - x, x[::-1] // 2 + 64], axis=-1).astype("float32")
    if layout == "channels_first":
        x = x.transpose(0, 3, 1, 2)
    make, arguments = KINDS[kind]
    layer = make(rate=0.7, seed=5, data_format=layout, dtype="float32", **arguments)
    model = network(x.shape[1:], [layer] if place == "inside" else [])
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callback = (
        ksa.AdversarialTraining()
        if place == "inside"
        else ksa.AdversarialTraining(layer, gradient=place)
    )
    history = model.fit(
        x, y, 16, 2, verbose=0, shuffle=False, callbacks=[callback]
    ).history
    weights = {f"weight {i}": w for i, w in enumerate(model.get_weights())}
    found = weights | {key: np.array(value) for key, value in history.items()}
    return {
        f"{kind}, {place}, {layout}: {key}": ops.convert_to_numpy(value)
        for key, value in found.items()
    }


def main() -> None:
    """Writes the file, or compares with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    path = parser.parse_args().file
    now = {}
    for combination in itertools.product(KINDS, PLACES, LAYOUTS):
        now |= trained(*combination)
    if not path.exists():
        np.savez(path, **now)
        print(f"wrote {len(now)} arrays to {path}")
        return
    before = dict(np.load(path))
    different = {
        key: np.abs(before[key] - now[key]).max() if key in before else np.nan
        for key in {*before, *now}
        if key not in before
        or key not in now
        or not np.array_equal(before[key], now[key])
    }
    for key in sorted(different):
        print(f"{key}: {different[key]:.2e}")
    print(f"{len(now) - len(different)} of {len(now)} arrays are the same bit for bit")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
