"""The data sets of the experiments; `load` returns each of them."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

import keras_structadv as ksa

Arrays = tuple[np.ndarray, np.ndarray]
Sets = dict[str, Arrays]


class Description(NamedTuple):
    """Properties of a data set that are needed before it is loaded.

    Attributes:
        shape: height, width and channels.
        classes: number of classes.
        train_size: images in the training set, including any validation images.
        test_size: images in the test set.
        flip: whether a mirrored image keeps its class.
        padding: zero-padding before a random crop, in pixels.
        cutout: side of the square that cutout erases, in pixels.
        fill: grey level beyond the border, for the geometric operations of a policy.
    """

    shape: tuple[int, int, int]
    classes: int
    train_size: int
    test_size: int
    flip: bool
    padding: int
    cutout: int
    fill: float


DESCRIPTIONS = {
    "cifar10": Description((32, 32, 3), 10, 50000, 10000, True, 4, 16, 128.0),
    "cifar100": Description((32, 32, 3), 100, 50000, 10000, True, 4, 16, 128.0),
    "stl10": Description((96, 96, 3), 10, 5000, 8000, True, 12, 16, 128.0),
    # Digits and characters are not mirrored; padding and cutout follow their size.
    "digits": Description((16, 16, 1), 10, 200, 800, False, 2, 8, 0.0),
    "mnist-50": Description((28, 28, 1), 10, 50, 2000, False, 3, 14, 0.0),
    "mnist-200": Description((28, 28, 1), 10, 200, 2000, False, 3, 14, 0.0),
    "mnist-1000": Description((28, 28, 1), 10, 1000, 2000, False, 3, 14, 0.0),
    "glyphs": Description((28, 28, 1), 47, 282, 517, False, 3, 14, 0.0),
    "colour-glyphs": Description((28, 28, 3), 47, 1128, 470, False, 3, 14, 128.0),
    "colour-glyphs-423": Description((28, 28, 3), 47, 423, 705, False, 3, 14, 128.0),
}


def load(
    name: str, seed: int = 0, held_out: str = "test", made_up: bool = False
) -> tuple[Arrays, Sets]:
    """Loads a training set and the sets to measure on.

    - CIFAR and STL-10 have their own test set. The seed chooses a tenth of the training
      images for validation; with `held_out="test"` they are trained on as well.
    - Digits: a fixed part is the test set. The seed splits the rest into training and
      validation.
    - MNIST: a fixed half of the 5,000 images is for tests; the seed draws 2,000 of it.
      It splits the other half into training and validation.
    - Glyphs: 4 typefaces are for validation. The seed draws 6 of the others for
      training; the remaining 11 are for tests.
    - Colour glyphs: the seed chooses palettes and typefaces. Typefaces that one seed
      validates on, another seed tests on, in other colours.

    Args:
        name: one of `DESCRIPTIONS`.
        seed: seed of the split.
        held_out: `"test"` or `"validation"`.
        made_up: whether to return 20 images of noise instead of downloading data.

    Returns:
        `(x, y), {name: (x, y)}`: images uint8, (n, height, width, channels), 0 to 255;
        labels int32, (n,). Most data sets have one set to measure on, named `""`.

    Raises:
        ValueError: if `name` or `held_out` is unknown.
        RuntimeError: if the download fails.
    """
    if name not in DESCRIPTIONS:
        raise ValueError(f"Received data={name!r}. Pass one of {list(DESCRIPTIONS)}.")
    if held_out not in ("test", "validation"):
        raise ValueError(
            f'Received held_out={held_out!r}. Pass "test" or "validation".'
        )
    if name in _EMBEDDED:
        return _EMBEDDED[name](name, seed, held_out)
    source = _noise if made_up else _SOURCES[name]
    try:
        train, test = source(name)
    except Exception as error:  # the sources raise different types
        raise RuntimeError(
            f"{name} could not be loaded ({type(error).__name__}: {error}). Its first "
            "use downloads it: connect to the internet, or pass --smoke to try the "
            "rest on noise."
        ) from error
    train, test = _checked(train), _checked(test)
    if held_out == "test":
        return train, {"": test}
    train, validation = _split(train, len(train[1]) * 9 // 10, seed)
    return train, {"": validation}


def _checked(arrays: Arrays) -> Arrays:
    images, labels = arrays
    return np.asarray(images, "uint8"), np.asarray(labels, "int32").reshape(-1)


def _split(arrays: Arrays, size: int, seed: int) -> tuple[Arrays, Arrays]:
    """Splits off `size` random images; returns them and the rest."""
    order = np.random.default_rng(seed).permutation(len(arrays[1]))
    return tuple(
        tuple(x[places] for x in arrays) for places in (order[:size], order[size:])
    )


def _cifar(name: str) -> tuple[Arrays, Arrays]:
    return getattr(keras.datasets, name).load_data()


def _stl10(name: str) -> tuple[Arrays, Arrays]:
    import tensorflow_datasets as tfds

    train, test = tfds.load(
        name, split=["train", "test"], batch_size=-1, as_supervised=True
    )
    return tfds.as_numpy(train), tfds.as_numpy(test)


def _noise(name: str) -> tuple[Arrays, Arrays]:
    """Noise with the shapes and types of `keras.datasets`."""
    description, rng = DESCRIPTIONS[name], np.random.default_rng(0)
    return tuple(
        (
            rng.integers(0, 256, (20, *description.shape), "uint8"),
            rng.integers(0, description.classes, (20, 1), "uint8"),
        )
        for _ in range(2)
    )


def _digits(name: str, seed: int, held_out: str) -> tuple[Arrays, Sets]:
    description = DESCRIPTIONS[name]
    total = 1797
    pool, test = ksa.datasets.load_digits(total - description.test_size)
    train, validation = _split(pool, description.train_size, seed)
    return train, {"": test if held_out == "test" else validation}


def _mnist(name: str, seed: int, held_out: str) -> tuple[Arrays, Sets]:
    description = DESCRIPTIONS[name]
    parts = zip(*ksa.datasets.load_mnist_5k(3000, seed=0))
    # Test images of one seed are no training or validation images of another.
    pool, tests = _split(tuple(np.concatenate(x) for x in parts), 2500, seed=0)
    train, validation = _split(pool, description.train_size, seed)
    if held_out == "validation":
        return train, {"": validation}
    return train, {"": _split(tests, description.test_size, seed)[0]}


def _glyphs(_: str, seed: int, held_out: str) -> tuple[Arrays, Sets]:
    # Four typefaces, the same for all seeds, are for choices alone.
    pool, validation = ksa.datasets.load_glyphs(17)
    pool = tuple(x.reshape(17, -1, *x.shape[1:]) for x in pool)
    train, test = (
        tuple(np.concatenate(x) for x in part) for part in _split(pool, 6, seed)
    )
    return train, {"": test if held_out == "test" else validation}


def _colour_glyphs(name: str, seed: int, held_out: str) -> tuple[Arrays, Sets]:
    typefaces, sets = DESCRIPTIONS[name].train_size // 141, {}
    for colours in ("same", "unseen"):
        train, sets[f"{colours} colours"] = ksa.datasets.load_colour_glyphs(
            typefaces, colours, held_out, seed
        )
    return train, sets


_SOURCES: dict[str, Callable] = {
    "cifar10": _cifar,
    "cifar100": _cifar,
    "stl10": _stl10,
}
_EMBEDDED: dict[str, Callable] = {
    "digits": _digits,
    "mnist-50": _mnist,
    "mnist-200": _mnist,
    "mnist-1000": _mnist,
    "glyphs": _glyphs,
    "colour-glyphs": _colour_glyphs,
    "colour-glyphs-423": _colour_glyphs,
}
