"""Real images that need no download, as `keras.datasets` gives them."""

import pathlib

import numpy as np

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
"""The 47 characters of `load_glyphs`, in the order of their labels."""

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
    order = np.random.default_rng(seed).permutation(len(_TYPEFACES))
    drawn = [_draw_typeface(_TYPEFACES[i]) for i in order]
    labels = np.arange(len(CHARACTERS), dtype="int32")
    train, test = drawn[:train_typefaces], drawn[train_typefaces:]
    return (
        (np.concatenate(train), np.tile(labels, len(train))),
        (np.concatenate(test), np.tile(labels, len(test))),
    )


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
