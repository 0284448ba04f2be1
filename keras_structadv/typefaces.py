"""Characters in the typefaces that come with Matplotlib."""

import pathlib

import numpy as np

from keras_structadv.checks import missing_packages

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
"""The 47 classes of `load_glyphs`, in the order of their labels."""

TYPEFACES = """
DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique
DejaVuSansMono DejaVuSansMono-Bold DejaVuSansMono-Oblique DejaVuSansMono-BoldOblique
DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic DejaVuSerif-BoldItalic
STIXGeneral STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta
cmb10 cmr10 cmss10 cmti10 cmtt10
""".split()
"""The text typefaces of Matplotlib, by their files."""


def draw_typefaces(seed: int) -> list[np.ndarray]:
    """Draws the characters in every typeface, the typefaces in random order."""
    order = np.random.default_rng(seed).permutation(len(TYPEFACES))
    return [_draw_typeface(TYPEFACES[i]) for i in order]


def _draw_typeface(name: str, size: int = 28, height: int = 20) -> np.ndarray:
    """Draws the characters in one typeface, uint8, (47, size, size, 1)."""
    try:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise missing_packages("matplotlib and pillow", error) from error
    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    try:
        font = ImageFont.truetype(str(path), height)
    except OSError as error:  # Matplotlib has cmti10 since 3.11
        raise missing_packages("matplotlib>=3.11", error) from error
    glyphs = []
    for character in CHARACTERS:
        glyph = Image.new("L", (size, size))
        ImageDraw.Draw(glyph).text((size / 2, size / 2), character, 255, font, "mm")
        glyphs.append(np.asarray(glyph))
    return np.stack(glyphs)[..., None]
