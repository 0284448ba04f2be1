"""Figures of flows and recolourings. Matplotlib is imported when one is drawn."""

import functools
import io
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from keras_structadv.checks import likely_range
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
    """Plots each image, its flow as arrows and the warped image in one row.

    Args:
        images: a batch, or a sequence of images of different sizes, each
            (height, width, channels) in `value_range`, with 1 or 3 channels.
        flows: one for each image, (height, width, 2), (dy, dx) in pixels. Arrows have
            their true length, or a multiple where that can hardly be seen; the title
            tells.
        before: titles of the images, e.g. the model's prediction and confidence.
        after: titles of the warped images.
        value_range: lowest and highest value of the images. A warning says if the
            images do not fit.
        arrows: number of arrows along the longer side, at most one per pixel.

    Returns:
        A `matplotlib.figure.Figure`. A notebook displays it, `savefig` saves it and
        `show` opens a window. In a script, `pyplot.show()` then keeps the window open.

    Raises:
        ValueError: if the numbers of images, flows and titles differ, or if an image
            and its flow differ in height or width.

    Example:
    >>> from keras_structadv import random_flow
    >>> images = np.random.default_rng(0).uniform(0, 255, (2, 28, 28, 1))
    >>> figure = plot_flow(images, random_flow(images, max_displacement=2.0, seed=0))
    >>> figure.savefig("flow.png")  # doctest: +SKIP

    Reference: after Luo, Mobahi, Bengio (2020), figure 2.
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
        height, width = flow.shape[:2]
        step = max(1, round(max(height, width) / arrows))
        # A longest arrow reaches about the next one.
        times = max(1, int(step / longest)) if longest > 0 else 1
        enlarged = f", arrows x{times}" if times > 1 else ""
        titles = (first, f"flow, up to {longest:.1f} px{enlarged}", last)
        pictures = (_unit(x, value_range) for x in (image, image, warped))
        _show(row, pictures, titles)
        y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
        dy, dx = flow[y, x, 0], flow[y, x, 1]
        row[1].quiver(
            x,
            y,
            dx,
            dy,
            angles="xy",
            scale_units="xy",
            scale=1 / times,
            color="tab:orange",
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
    """Plots each image, its gradient, its perturbation and the result in one row.

    Args:
        images: a batch, or a sequence of images of different sizes, each
            (height, width, channels) in `value_range`, with 1 or 3 channels.
        gradients: one for each image, of the same shape, or `None` to leave their
            column out. Zero is drawn grey; each is scaled on its own.
        perturbations: one for each image, of the same shape, drawn like the gradients.
        before: titles of the images, e.g. the model's prediction and confidence.
        after: titles of the results.
        value_range: lowest and highest value of the images. A warning says if the
            images do not fit.

    Returns:
        A `matplotlib.figure.Figure`. A notebook displays it, `savefig` saves it and
        `show` opens a window. In a script, `pyplot.show()` then keeps the window open.

    Raises:
        ValueError: if the numbers of images, gradients, perturbations and titles
            differ, or if the shapes of an image, its gradient and its perturbation do.

    Example:
    >>> from keras_structadv import adversarial_recoloring
    >>> rng = np.random.default_rng(0)
    >>> images = rng.uniform(0, 255, (2, 28, 28, 3))
    >>> changes = adversarial_recoloring(images, rng.normal(size=images.shape))
    >>> figure = plot_recoloring(images, None, changes)

    Reference: after Luo, Mobahi, Bengio (2020), figure 1.
    """
    count = len(images)
    before = ["image"] * count if before is None else before
    after = ["recoloured"] * count if after is None else after
    shown = gradients is not None
    gradients = gradients if shown else perturbations
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
    figure, axes = _rows(count, 4 if shown else 3)
    for row, image, gradient, perturbation, first, last in zip(
        axes, images, gradients, perturbations, before, after
    ):
        if not image.shape == gradient.shape == perturbation.shape:
            raise ValueError(
                f"Received an image of shape {image.shape} with a gradient of shape "
                f"{gradient.shape} and a perturbation of shape {perturbation.shape}. "
                "Pass three arrays of one shape."
            )
        span = value_range[1] - value_range[0]
        size = np.sqrt(np.mean(np.square(perturbation))) / span
        columns = [
            (first, _unit(image, value_range)),
            ("gradient", _around_grey(gradient)),
            (f"change, RMS {size:.2f}", _around_grey(perturbation)),
            (last, _unit(image + perturbation, value_range)),
        ]
        titles, pictures = zip(*(columns if shown else columns[:1] + columns[2:]))
        _show(row, pictures, titles)
    return figure


def _check_counts(**sequences: Any) -> None:
    counts = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"Received {listed}. Pass one for each image.")


def _floats(arrays: Iterable[Any]) -> list[np.ndarray]:
    return [ops.convert_to_numpy(array).astype("float32") for array in arrays]


def _check_values(images: list[np.ndarray], value_range: tuple[float, float]) -> None:
    """Warns if the images do not fit `value_range`; the layers use the same rule."""
    lowest = float(min((image.min() for image in images), default=0))
    highest = float(max((image.max() for image in images), default=0))
    likely = likely_range(value_range, lowest, highest)
    if likely is not None:
        warnings.warn(
            f"Received value_range={value_range} and images with values from "
            f"{lowest:.3g} to {highest:.3g}. They come out too dark or clipped. "
            f"Pass the range of the images, e.g. value_range={likely}.",
            stacklevel=3,
        )


def new_figure(size: tuple[float, float], **grid: Any) -> tuple[Any, Any]:
    """Makes a figure that notebooks display once, and its axes.

    Args:
        size: width and height in inches.
        **grid: arguments of `Figure.subplots`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.show = functools.partial(_open_window, figure)
    figure._repr_png_ = functools.partial(_png, figure)
    return figure, figure.subplots(**grid)


def _rows(count: int, columns: int) -> tuple[Any, np.ndarray]:
    """Makes a figure with one row of axes for each image."""
    size = (2.2 * columns, 2.3 * count)
    return new_figure(size, nrows=count, ncols=columns, squeeze=False)


def _open_window(figure: Any, warn: bool = True) -> None:
    """Registers a figure with pyplot, then does what `Figure.show` does.

    Registered earlier, notebooks would display it twice, and pyplot would warn about
    more than 20 open figures.
    """
    from matplotlib import pyplot
    from matplotlib.backend_bases import NonGuiException

    if figure.canvas.manager is None:
        pyplot.figure(FigureClass=lambda **_: figure)
    try:
        figure.canvas.manager.show()
    except NonGuiException as error:  # e.g. the Agg backend
        if warn:
            warnings.warn(str(error), stacklevel=2)


def _png(figure: Any) -> bytes:
    """Encodes a figure for IPython, which prints it as text until pyplot was used."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _show(row: Any, pictures: Iterable[np.ndarray], titles: Iterable[str]) -> None:
    for axis, picture, title in zip(row, pictures, titles):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()


def _around_grey(field: np.ndarray) -> np.ndarray:
    """Maps a field to [0, 1] with zero at grey; the largest 1 % is clipped."""
    field = np.nan_to_num(field)
    size = np.quantile(np.abs(field), 0.99) or np.abs(field).max() or 1.0
    return _unit(field, (-size, size))


def _unit(image: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Maps `value_range` to [0, 1], clips the rest and drops a single channel."""
    low, high = value_range
    image = np.clip((image - low) / (high - low), 0, 1)
    return image[..., 0] if image.shape[-1] == 1 else image
