"""Real images that need no download, as `keras.datasets` gives them."""

import functools
import pathlib

import numpy as np

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
"""The 47 characters of `load_glyphs`, in the order of their labels."""

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
"""The photographs of `load_photographs`, in the order of their labels."""

_TYPEFACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmti10",
    "cmtt10",
)

_Arrays = tuple[np.ndarray, np.ndarray]


def load_digits(train_size: int = 200, seed: int = 0) -> tuple[_Arrays, _Arrays]:
    """Returns scikit-learn's handwritten digits, resized to 16x16.

    Args:
        train_size: images in the training set, between 1 and 1796; the rest of the
            1797 is the test set.
        seed: seed of the split.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8, (n, 16, 16, 1), 0 to
        255; labels int32, (n,), 0 to 9.

    Raises:
        ImportError: if scikit-learn or pillow is not installed.
        ValueError: if `train_size` leaves no training or no test image.
    """
    try:
        import sklearn.datasets
        from PIL import Image
    except ImportError as error:
        raise _missing("scikit-learn and pillow", error) from error
    digits = sklearn.datasets.load_digits()
    if not 1 <= train_size < len(digits.target):
        raise ValueError(
            f"Received train_size={train_size}. Pass 1 to {len(digits.target) - 1}."
        )
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


def load_glyphs(train_typefaces: int = 6, seed: int = 0) -> tuple[_Arrays, _Arrays]:
    """Returns 47 characters drawn in the 21 text typefaces that matplotlib ships.

    Training and test images are of different typefaces, so that the test asks for
    shapes that were never seen.

    Args:
        train_typefaces: typefaces in the training set, between 1 and 20, 47 images
            each; the others are the test set.
        seed: seed of the choice of typefaces.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8, (n, 28, 28, 1), 0 to
        255, bright on dark; labels int32, (n,), indices into `CHARACTERS`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `train_typefaces` leaves no training or no test typeface.
    """
    if not 1 <= train_typefaces < len(_TYPEFACES):
        raise ValueError(
            f"Received train_typefaces={train_typefaces}. Pass 1 to "
            f"{len(_TYPEFACES) - 1}."
        )
    drawn = _draw_typefaces(seed)
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
    """Returns the characters of `load_glyphs` in colours, with some pixel noise.

    In training each character is painted in three palettes, pairs of a foreground and a
    background. The second set is of other typefaces, in one of the same palettes or in
    colours that were never seen. Colour tells nothing about the class, but a model that
    saw only three palettes does not know that.

    Args:
        train_typefaces: typefaces in the training set, between 1 and 17, 141 images
            each. Three of the others are the validation set, the rest the test set.
        colours: `"unseen"` to paint each image of the second set in colours of its own,
            `"same"` to paint it in a palette of the training set.
        held_out: which set is the second, `"test"` or `"validation"`.
        seed: seed of the choice of typefaces, of the colours and of the noise.

    Returns:
        `((x_train, y_train), (x_held_out, y_held_out))`: images uint8, (n, 28, 28, 3),
        0 to 255; labels int32, (n,), indices into `CHARACTERS`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if an argument is none of those above.
    """
    validation = 3
    most = len(_TYPEFACES) - validation - 1
    if not 1 <= train_typefaces <= most:
        raise ValueError(
            f"Received train_typefaces={train_typefaces}. Pass 1 to {most}."
        )
    for name, value, known in (
        ("colours", colours, ("unseen", "same")),
        ("held_out", held_out, ("test", "validation")),
    ):
        if value not in known:
            raise ValueError(f"Received {name}={value!r}. Pass one of {known}.")
    drawn = _draw_typefaces(seed)
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
    """Returns crops of the ten colour photographs in scikit-image and scikit-learn.

    The shorter side of a photograph is resized to 256 pixels, or to twice the size of
    the crops. Training crops are from left halves, test crops from right halves.

    Args:
        size: height and width of the crops, in pixels.
        crops: from each half of each photograph, at random places.
        seed: seed of the places.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8, (10 crops, size, size,
        3), 0 to 255; labels int32, (10 crops,), indices into `PHOTOGRAPHS`.

    Raises:
        ImportError: if scikit-image, scikit-learn or pillow is not installed.
        ValueError: if `size` or `crops` is below 1.
    """
    if size < 1 or crops < 1:
        raise ValueError(f"Received size={size} and crops={crops}. Pass both >= 1.")
    rng = np.random.default_rng(seed)
    halves = ([], [])
    for photograph in _photographs(max(256, 2 * size)):
        height, width = photograph.shape[:2]
        for half, left in zip(halves, (0, width // 2)):
            for _ in range(crops):
                y = rng.integers(height - size + 1)
                x = left + rng.integers(width // 2 - size + 1)
                half.append(photograph[y : y + size, x : x + size])
    labels = np.repeat(np.arange(len(PHOTOGRAPHS), dtype="int32"), crops)
    return (np.stack(halves[0]), labels), (np.stack(halves[1]), labels.copy())


@functools.lru_cache(maxsize=2)
def _photographs(shorter: int) -> list[np.ndarray]:
    """Returns the photographs, uint8, their shorter sides of that many pixels."""
    try:
        import skimage.data
        import sklearn.datasets
        from PIL import Image
    except ImportError as error:
        raise _missing("scikit-image, scikit-learn and pillow", error) from error
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
    """Returns pairs of colours that are well apart, float64, (count, 2, 3)."""
    pairs = rng.uniform(0, 255, (8 * count + 64, 2, 3))
    apart = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=-1) > 150
    return pairs[apart][:count]


def _draw_typefaces(seed: int) -> list[np.ndarray]:
    """Returns the characters in every typeface, the typefaces in random order."""
    order = np.random.default_rng(seed).permutation(len(_TYPEFACES))
    return [_draw_typeface(_TYPEFACES[i]) for i in order]


def _draw_typeface(name: str, size: int = 28, height: int = 20) -> np.ndarray:
    """Returns the characters in one typeface, uint8, (47, size, size, 1)."""
    try:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise _missing("matplotlib", error) from error
    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    font = ImageFont.truetype(str(path), height)
    glyphs = []
    for character in CHARACTERS:
        glyph = Image.new("L", (size, size))
        ImageDraw.Draw(glyph).text((size / 2, size / 2), character, 255, font, "mm")
        glyphs.append(np.asarray(glyph))
    return np.stack(glyphs)[..., None]


def _missing(packages: str, error: ImportError) -> ImportError:
    return ImportError(
        f"This data set is made with {packages}, of which something is missing "
        f"({error}). Run: pip install 'keras-structadv[experiments]'"
    )
