"""Pictures of what an adversary does. Matplotlib is imported where it is used."""

import functools
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from keras_structadv.warp import dense_image_warp

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_flow(
    images: Any,
    flows: Any,
    *,
    before: Sequence[str] | None = None,
    after: Sequence[str] | None = None,
    value_range: tuple[float, float] = (0, 255),
    arrows: int = 14,
) -> "Figure":
    """Returns a figure: original, flow as arrows, and warped image, a row for each.

    Args:
        images: a batch, or a sequence of images of different sizes, each
            (height, width, channels) in `value_range`, with 1 or 3 channels.
        flows: for each image, (height, width, 2), (dy, dx) in pixels. The arrows have
            their true length on the image.
        before: titles of the originals, e.g. the model's answer and confidence.
        after: titles of the warped images.
        value_range: the lowest and the highest value of the images. Images that do
            not fit it raise a warning.
        arrows: arrows along the longer side, at most one for each pixel.

    Returns:
        A `matplotlib.figure.Figure`. A notebook displays it, `savefig` saves it,
        `show` opens a window; a script keeps the window open with `pyplot.show()`.

    Raises:
        ValueError: if the numbers of images, flows and titles differ, or their shapes
            do not fit.

    Reference: in the manner of Luo, Mobahi, Bengio (2020), figure 2.
    """
    count = len(images)
    before = ["image"] * count if before is None else before
    after = ["warped"] * count if after is None else after
    _check_counts(images=images, flows=flows, before=before, after=after)
    images, flows = _floats(images), _floats(flows)
    _check_values(images, value_range)
    figure, axes = _rows(count, 3)
    for row, image, flow, first, last in zip(axes, images, flows, before, after):
        warped = ops.convert_to_numpy(dense_image_warp(image[None], flow[None]))[0]
        longest = np.linalg.norm(flow, axis=-1).max()
        titles = (first, f"flow, up to {longest:.1f} px", last)
        pictures = (_unit(x, value_range) for x in (image, image, warped))
        _show(row, pictures, titles)
        height, width = flow.shape[:2]
        step = max(1, round(max(height, width) / arrows))
        y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
        dy, dx = flow[y, x, 0], flow[y, x, 1]
        row[1].quiver(
            x, y, dx, dy, angles="xy", scale_units="xy", scale=1, color="tab:orange"
        )
    return figure


def plot_recoloring(
    images: Any,
    gradients: Any,
    perturbations: Any,
    *,
    before: Sequence[str] | None = None,
    after: Sequence[str] | None = None,
    value_range: tuple[float, float] = (0, 255),
) -> "Figure":
    """Returns a figure: original, raw gradient, perturbation, result, a row for each.

    Args:
        images: a batch, or a sequence of images of different sizes, each
            (height, width, channels) in `value_range`, with 1 or 3 channels.
        gradients: for each image, of its shape; shown around grey, each at its own
            scale.
        perturbations: for each image, of its shape; shown likewise.
        before: titles of the originals, e.g. the model's answer and confidence.
        after: titles of the results.
        value_range: the lowest and the highest value of the images. Images that do
            not fit it raise a warning.

    Returns:
        A `matplotlib.figure.Figure`. A notebook displays it, `savefig` saves it,
        `show` opens a window; a script keeps the window open with `pyplot.show()`.

    Raises:
        ValueError: if the numbers of images, gradients, perturbations and titles
            differ, or their shapes do not fit.

    Reference: in the manner of Luo, Mobahi, Bengio (2020), figure 1.
    """
    count = len(images)
    before = ["image"] * count if before is None else before
    after = ["recoloured"] * count if after is None else after
    _check_counts(
        images=images,
        gradients=gradients,
        perturbations=perturbations,
        before=before,
        after=after,
    )
    images, gradients = _floats(images), _floats(gradients)
    perturbations = _floats(perturbations)
    _check_values(images, value_range)
    figure, axes = _rows(count, 4)
    for row, image, gradient, perturbation, first, last in zip(
        axes, images, gradients, perturbations, before, after
    ):
        if not image.shape == gradient.shape == perturbation.shape:
            raise ValueError(
                f"Received an image of shape {image.shape}, its gradient of shape "
                f"{gradient.shape} and its perturbation of shape {perturbation.shape}. "
                "The three must be equal."
            )
        span = value_range[1] - value_range[0]
        size = np.sqrt(np.mean(np.square(perturbation))) / span
        pictures = (
            _unit(image, value_range),
            _around_grey(gradient),
            _around_grey(perturbation),
            _unit(image + perturbation, value_range),
        )
        _show(row, pictures, (first, "gradient", f"change, RMS {size:.2f}", last))
    return figure


def _check_counts(**sequences: Any) -> None:
    counts = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"Received {listed}. Pass one for each image.")


def _floats(arrays: Iterable[Any]) -> list[np.ndarray]:
    return [ops.convert_to_numpy(array).astype("float32") for array in arrays]


def _check_values(images: list[np.ndarray], value_range: tuple[float, float]) -> None:
    """Warns if the images do not fit their range, as the layers do."""
    lowest = float(min((image.min() for image in images), default=0))
    highest = float(max((image.max() for image in images), default=0))
    if not -math.inf < lowest < highest < math.inf:
        return  # constant images tell nothing
    low, high = value_range
    span = high - low
    outside = lowest < low - 0.01 * span or highest > high + 0.01 * span
    if outside or highest < low + 0.03 * span:
        usual = [(0, 1), (-1, 1), (0, 255), (math.floor(lowest), math.ceil(highest))]
        likely = next(x for x in usual if x[0] <= lowest and highest <= x[1])
        warnings.warn(
            f"Received value_range={value_range} and images with values from "
            f"{lowest:.3g} to {highest:.3g}, which come out black, white or cut off. "
            f"Pass the range of the images, e.g. value_range={likely}.",
            stacklevel=3,
        )


def _rows(count: int, columns: int) -> tuple[Any, np.ndarray]:
    """Returns a figure with one row of axes for each image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * columns, 2.3 * count), layout="constrained")
    figure.show = functools.partial(_open_window, figure)
    figure._repr_png_ = functools.partial(_png, figure)
    return figure, figure.subplots(count, columns, squeeze=False)


def _open_window(figure: Any, warn: bool = True) -> None:
    """Shows a figure as `Figure.show` does, which accepts figures of pyplot only.

    pyplot learns of the figure here and not before: it displays all that it knows in a
    notebook, a second time, and warns of more than 20.
    """
    from matplotlib import pyplot
    from matplotlib.backend_bases import NonGuiException

    if figure.canvas.manager is None:
        pyplot.figure(FigureClass=lambda **_: figure)
    try:
        figure.canvas.manager.show()
    except NonGuiException as error:  # no window with this backend
        if warn:
            warnings.warn(str(error), stacklevel=2)


def _png(figure: Any) -> bytes:
    """Returns the PNG for IPython, which without pyplot shows no figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _show(row: Any, pictures: Iterable[np.ndarray], titles: Iterable[str]) -> None:
    for axis, picture, title in zip(row, pictures, titles):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()


def _around_grey(field: np.ndarray) -> np.ndarray:
    """Returns a field with zero as grey; its largest values, bar outliers, as ends."""
    field = np.nan_to_num(field)
    size = np.quantile(np.abs(field), 0.99) or np.abs(field).max() or 1.0
    return _unit(field, (-size, size))


def _unit(image: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    image = np.clip((image - low) / (high - low), 0, 1)
    return image[..., 0] if image.shape[-1] == 1 else image
