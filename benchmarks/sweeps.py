"""Measures and draws what each argument of a flow and of a recolouring does.

    python -m benchmarks.sweeps [--folder images] [--small]

Needs the extra `imagenet`. s is the side of the image.

- Two tables at 16 to 224 pixels against small CNNs, by which the default factors were
  chosen: the shares of the pixels that move by more than half a pixel, and at which a
  flow folds; the share of a recolouring that is not constant over the image.
- Two tables of one step against EfficientNet-Lite0 on ImageNet photographs: the share
  that it still gets right, the mean loss, the gain (the first-order rise of the loss).
- Three pictures, of a photograph and a glyph.
"""

import argparse
import itertools
import pathlib
from typing import Any

import keras
import numpy as np

from benchmarks.picture_grid import Block, Cell, draw
from benchmarks.sweep_cases import (
    FLOWS,
    GREY,
    RECOLORINGS,
    Case,
    constant,
    folded,
    glyphs,
)
from benchmarks.timing import machine
from experiments import imagenet
from keras_structadv.datasets import CHARACTERS

PARTS = (32, 16, 8, 4)
"""The side over the longest displacement; layers draw up to an eighth."""
LENGTHS = {"loose": 9, "default": 3, "stiff": 1}
"""The side over the root of the smoothness."""
MAGNITUDES = (0.02, 0.05, 0.1, 0.2)
FACTORS = {"one tint": 1, "default": 10, "local": 100}
"""The damping times the squared side."""
COHERENCES = (0, 0.01, 0.1, 1, 10)
EDGE_SCALES = (0.002, 0.01, 0.05, 0.25, 1)
DRAWN = range(1, 2), range(1, 4)
"""The rows and columns of the pictures with what layers do by default."""
COFFEE = 1
"""Which of the public photographs the pictures show."""
FIVE = len(CHARACTERS) + CHARACTERS.index("5")
"""Which of the test glyphs: of the second typeface."""


def print_table(corner: str, titles: list, rows: dict[Any, list[str]]) -> None:
    """Prints the cells of each row by its name."""
    print(f"\n| {corner} | {' | '.join(titles)} |\n{'|---' * (1 + len(titles))}|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def measure_sizes(small: bool) -> None:
    """Prints what the default factors were chosen by."""

    def flow(case: Case, part: float, length: float) -> str:
        flows = case.flows(part, length)
        moved = np.mean(np.linalg.norm(flows, axis=-1) > 0.5)
        return f"{moved:.0%} moved, {folded(flows):.2%} folded"

    def recoloring(case: Case, magnitude: float, factor: float) -> str:
        return f"{1 - constant(case.changes(magnitude, factor)):.0%} not constant"

    flows = itertools.product((16, 8, 4), (6, 3, 1.5))
    recolorings = itertools.product((0.05, 0.1, 0.2), (1, 10, 100))
    for loads, cell, title, settings in (
        (FLOWS, flow, "s/{} pixels, smoothness (s/{})²", flows),
        (RECOLORINGS, recoloring, "RMS {}, damping {}/s²", recolorings),
    ):
        pairs = list(settings)
        cases = ((side, load(small)) for side, load in loads.items())
        rows = {side: [cell(case, *pair) for pair in pairs] for side, case in cases}
        print_table("side", [title.format(*pair) for pair in pairs], rows)


def measure_imagenet(model: keras.Model, small: bool) -> None:
    """Prints what one step does to an ImageNet model."""
    if small:
        x, y = (array[:2] for array in imagenet.load_public_photographs())
    else:
        x, y = imagenet.load_imagenet_photographs()
    case = Case(model, x, y)

    def results(images: Any) -> str:
        loss, right = case.results(images)
        return f"right {right:.0%}, loss {loss:.2f}"

    def flow(part: float, length: float) -> str:
        flows = case.flows(part, length)
        warped, random = map(case.warped, (flows, case.flows(part, length, True)))
        measured = f"{results(warped)}, gain {case.gain(warped):.2f}"
        control = f"random {results(random)}"
        return f"{measured}, {folded(flows):.1%} folded; {control}"

    def recoloring(magnitude: float, factor: float) -> str:
        images = case.recoloured(case.changes(magnitude, factor))
        return f"{results(images)}, gain {case.gain(images):.2f}"

    print(f"\nEfficientNet-Lite0, {len(x)} photographs: {results(case.images)}")
    rows = {f"(s/{b})²": [flow(a, b) for a in PARTS] for b in LENGTHS.values()}
    print_table("smoothness", [f"s/{a} pixels" for a in PARTS], rows)
    rows = {f"{b}/s²": [recoloring(a, b) for a in MAGNITUDES] for b in FACTORS.values()}
    print_table("damping", [f"RMS {a}" for a in MAGNITUDES], rows)


def flow_block(case: Case, name: str) -> Block:
    """Displacement and smoothness on one image."""
    before, rows = case.results(case.images)[0], {}
    for kind, length in LENGTHS.items():
        made = [case.flows(part, length) for part in PARTS]
        cells = [Cell(case.images[0] / 510, f"loss {before:.2f} before", made[0][0])]
        for flows in made:
            images = case.warped(flows)
            folds = f"{folded(flows):.1%}"
            caption = f"loss {case.results(images)[0]:.2f}"
            caption += "" if folds == "0.0%" else f", folds {folds}"
            cells.append(Cell(images[0] / 255, caption))
        smoothness = f"(s/{length})² = {(case.side / length) ** 2:.0f} px²"
        rows[f"{kind}: smoothness\n{smoothness}"] = cells
    titles = [f"s/{part} = {case.side / part:.2g} px" for part in PARTS]
    return Block([f"{name}, s = {case.side} px", *titles], rows, DRAWN)


def change_cell(changes: np.ndarray) -> Cell:
    """A change around grey, and how much of it is constant."""
    size = np.quantile(np.abs(changes), 0.99) or 1.0
    return Cell(changes[0] / size / 2 + 0.5, f"{constant(changes):.0%} is one tint")


def result_cell(case: Case, changes: np.ndarray) -> Cell:
    """A recoloured image and its loss."""
    images = case.recoloured(changes)
    return Cell(images[0] / 255, f"loss {case.results(images)[0]:.2f}")


def recoloring_block(case: Case) -> Block:
    """Magnitude and damping on one image."""
    rows = {}
    for kind, factor in FACTORS.items():
        made = [case.changes(magnitude, factor) for magnitude in MAGNITUDES]
        label = f"{kind}: damping\n{factor}/s² = {factor / case.side**2:.1g}"
        rows[label] = [change_cell(made[0]), *(result_cell(case, x) for x in made)]
    titles = [f"{size} = {255 * size:.0f} of 255" for size in MAGNITUDES]
    return Block(["the change", *titles], rows, DRAWN)


def tie_block(
    case: Case, name: str, values: tuple, default: float, results: bool
) -> Block:
    """Coherence or edge scale on one image: changes, and results if asked for."""
    made = [case.changes(0.05, **{name: value}) for value in values]
    rows = {"the change": [change_cell(changes) for changes in made]}
    if results:
        rows["result"] = [result_cell(case, changes) for changes in made]
    column = values.index(default)
    titles = [f"{name} {value}" for value in values]
    return Block(titles, rows, (range(len(rows)), range(column, column + 1)))


def draw_pictures(model: keras.Model, folder: pathlib.Path, small: bool) -> None:
    """Draws the three pictures."""
    x, y = imagenet.load_public_photographs()
    photograph = Case(model, x[COFFEE][None], y[COFFEE][None])
    glyph = glyphs(GREY, slice(FIVE, FIVE + 1), small)
    blocks = [flow_block(photograph, "photo"), flow_block(glyph, "glyph")]
    heading = (
        "columns: displacement; rows: smoothness; blue: default, up to s/8 at random"
    )
    draw(folder / "sweep_flow.png", heading, blocks)
    loss, _ = photograph.results(photograph.images)
    heading = (
        "columns: magnitude (RMS); rows: damping; blue: default, up to 0.1 at "
        f"random; loss {loss:.2f} before"
    )
    draw(folder / "sweep_recoloring.png", heading, [recoloring_block(photograph)])
    heading = "columns: coherence, edge_scale, at a magnitude of 0.05; blue: default"
    blocks = [
        tie_block(photograph, "coherence", COHERENCES, 1, results=True),
        tie_block(photograph, "edge_scale", EDGE_SCALES, 0.05, results=False),
    ]
    draw(folder / "sweep_coherence.png", heading, blocks)


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables and draws the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("images"))
    parser.add_argument("--small", action="store_true", help="little data, no weights")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    model = imagenet.efficientnet_lite0(weights=None if options.small else "imagenet")
    print(machine())
    measure_sizes(options.small)
    measure_imagenet(model, options.small)
    draw_pictures(model, options.folder, options.small)


if __name__ == "__main__":
    main()
