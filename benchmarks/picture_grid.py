"""Draws grids of pictures with labelled rows and columns, in cells of one size."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# In inches. At 100 pixels an inch a grid of five columns is about 750 pixels wide.
_CELL, _GAP, _CAPTION, _TITLES, _LABELS, _HEADING = 1.36, 0.04, 0.18, 0.23, 0.46, 0.27
_BLUE = "#0057b7"
_ARROWS = 8


class Cell(NamedTuple):
    """A picture in [0, 1], what stands below it, and a flow to draw on it."""

    picture: np.ndarray
    caption: str
    flow: np.ndarray | None = None


@dataclasses.dataclass
class Block:
    """Rows of pictures with common columns.

    Args:
        titles: one for each column.
        rows: the cells of each row, by its label.
        default: the rows and the columns of the default, which are framed.
    """

    titles: Sequence[str]
    rows: dict[str, list[Cell]]
    default: tuple[range, range]

    @property
    def height(self) -> float:
        """Inches."""
        return _TITLES + len(self.rows) * (_CELL + _CAPTION)


def draw(path: pathlib.Path, heading: str, blocks: Sequence[Block]) -> None:
    """Draws blocks below each other and writes the picture.

    Args:
        path: file to write to.
        heading: the first line of the picture.
        blocks: with as many columns each.
    """
    from matplotlib.figure import Figure

    width = _LABELS + len(blocks[0].titles) * (_CELL + _GAP)
    height = _HEADING + sum(block.height for block in blocks)
    figure = Figure(figsize=(width, height))
    _write(figure, width / 2, height - _HEADING / 2, heading, fontsize=10)
    top = height - _HEADING
    for block in blocks:
        _draw_block(figure, block, top)
        top -= block.height
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    print(f"wrote {path}")


def _draw_block(figure: Any, block: Block, top: float) -> None:
    """Draws a block below a height in inches."""
    from matplotlib.patches import Rectangle

    rows, columns = block.default
    lefts = [_LABELS + j * (_CELL + _GAP) for j in range(len(block.titles))]
    bottoms = [
        top - _TITLES - i * (_CELL + _CAPTION) - _CELL for i in range(len(block.rows))
    ]
    for j, (title, left) in enumerate(zip(block.titles, lefts)):
        middle = top - 0.55 * _TITLES
        _write(figure, left + _CELL / 2, middle, title, j in columns)
    for i, (label, bottom) in enumerate(zip(block.rows, bottoms)):
        middle = bottom + _CELL / 2
        blue = i in rows and len(rows) < len(bottoms)
        _write(figure, _LABELS / 2, middle, label, blue, rotation=90)
        for cell, left in zip(block.rows[label], lefts):
            _draw_cell(figure, cell, left, bottom)
    corner = lefts[columns[0]], bottoms[rows[-1]]
    frame = Rectangle(
        corner,
        lefts[columns[-1]] + _CELL - corner[0],
        bottoms[rows[0]] + _CELL - corner[1],
        fill=False,
        edgecolor=_BLUE,
        linewidth=3,
        transform=figure.dpi_scale_trans,
    )
    figure.add_artist(frame)


def _draw_cell(figure: Any, cell: Cell, left: float, bottom: float) -> None:
    """Draws a picture, its caption and its flow."""
    width, height = figure.get_size_inches()
    box = (left / width, bottom / height, _CELL / width, _CELL / height)
    axis = figure.add_axes(box)
    picture = np.clip(cell.picture.squeeze(), 0, 1)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()
    middle = bottom - _CAPTION / 2
    _write(figure, left + _CELL / 2, middle, cell.caption, fontsize=8.5)
    if cell.flow is not None:
        # The longest of these arrows reaches the next one.
        step = len(cell.flow) / _ARROWS
        y, x = np.mgrid[0:_ARROWS, 0:_ARROWS] * step + step / 2
        arrows = cell.flow[y.astype(int), x.astype(int)]
        arrows = arrows * (step / np.linalg.norm(arrows, axis=-1).max())
        style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.011}
        axis.quiver(x, y, arrows[..., 1], arrows[..., 0], color="tab:orange", **style)


def _write(
    figure: Any, x: float, y: float, text: str, blue: bool = False, **style: Any
) -> None:
    """Writes text around a point in inches."""
    style = {"ha": "center", "va": "center", "fontsize": 9, **style}
    color = _BLUE if blue else "black"
    figure.text(x, y, text, transform=figure.dpi_scale_trans, color=color, **style)
