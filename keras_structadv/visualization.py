"""Pictures of what an adversary does. Matplotlib is imported where it is used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_structadv.warp import dense_image_warp


def plot_flow(
    images: Any,
    flows: Any,
    *,
    before: Sequence[str] | None = None,
    after: Sequence[str] | None = None,
    value_range: tuple[float, float] = (0, 255),
    arrows: int = 14,
) -> Any:
    """Returns a figure: original, flow as arrows, and warped image, a row for each.

    Args:
        images: a batch, or a sequence of images of different sizes, each
            (height, width, channels) in `value_range`, with 1 or 3 channels.
        flows: for each image, (height, width, 2), (dy, dx) in pixels. The arrows have
            their true length on the image.
        before: titles of the originals, e.g. the model's answer and confidence.
        after: titles of the warped images.
        value_range: the lowest and the highest value of the images.
        arrows: arrows along the longer side, at most one for each pixel.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the numbers of images, flows and titles differ, or their shapes
            do not fit.

    Reference: in the manner of Luo, Mobahi, Bengio (2020), figure 2.
    """
    from matplotlib.figure import Figure

    count = len(images)
    before = ["image"] * count if before is None else before
    after = ["warped"] * count if after is None else after
    if {len(flows), len(before), len(after)} != {count}:
        raise ValueError(
            f"Received {count} images, {len(flows)} flows and {len(before)} and "
            f"{len(after)} titles. Pass one for each image."
        )
    figure = Figure(figsize=(6.6, 2.3 * count), layout="constrained")
    axes = figure.subplots(count, 3, squeeze=False)
    for row, image, flow, first, last in zip(axes, images, flows, before, after):
        image = np.asarray(image, "float32")
        flow = np.asarray(flow, "float32")
        warped = ops.convert_to_numpy(dense_image_warp(image[None], flow[None]))[0]
        longest = np.linalg.norm(flow, axis=-1).max()
        titles = (first, f"flow, up to {longest:.1f} px", last)
        for axis, picture, title in zip(row, (image, image, warped), titles):
            axis.imshow(_unit(picture, value_range), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
        height, width = flow.shape[:2]
        step = max(1, round(max(height, width) / arrows))
        y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
        dy, dx = flow[y, x, 0], flow[y, x, 1]
        row[1].quiver(
            x, y, dx, dy, angles="xy", scale_units="xy", scale=1, color="tab:orange"
        )
    return figure


def _unit(image: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    image = np.clip((image - low) / (high - low), 0, 1)
    return image[..., 0] if image.shape[-1] == 1 else image
