"""Pictures of what an adversary does. Matplotlib is imported where it is used."""

from typing import Any

import numpy as np
from keras import ops

from keras_structadv.warp import dense_image_warp


def plot_flow(
    images: Any,
    flows: Any,
    *,
    before: list[str] | None = None,
    after: list[str] | None = None,
    value_range: tuple[float, float] = (0, 255),
    arrows: int = 14,
) -> Any:
    """Returns a figure: original, flow as arrows, and warped image, a row for each.

    Args:
        images: (batch, height, width, channels) in `value_range`, 1 or 3 channels.
        flows: (batch, height, width, 2), (dy, dx) in pixels. The arrows have their
            true length on the image.
        before: titles of the originals, e.g. the model's prediction and confidence.
        after: titles of the warped images.
        value_range: the lowest and the highest value of the images.
        arrows: arrows along the longer side, at most one for each pixel.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the shapes do not fit.

    Reference: in the manner of Luo, Mobahi, Bengio (2020), figure 2.
    """
    from matplotlib.figure import Figure

    images = np.asarray(images, "float32")
    warped = ops.convert_to_numpy(dense_image_warp(images, flows))
    flows = ops.convert_to_numpy(flows)
    count, height, width = images.shape[:3]
    figure = Figure(figsize=(6.6, 2.3 * count), layout="constrained")
    axes = figure.subplots(count, 3, squeeze=False)
    step = max(1, round(max(height, width) / arrows))
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    for row in range(count):
        titles = (
            "image" if before is None else before[row],
            f"flow, up to {np.linalg.norm(flows[row], axis=-1).max():.1f} px",
            "warped" if after is None else after[row],
        )
        for axis, picture, title in zip(
            axes[row], (images[row], images[row], warped[row]), titles
        ):
            axis.imshow(_unit(picture, value_range), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
        dy, dx = flows[row, y, x, 0], flows[row, y, x, 1]
        axes[row, 1].quiver(
            x, y, dx, dy, angles="xy", scale_units="xy", scale=1, color="tab:orange"
        )
    return figure


def _unit(image: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    image = np.clip((image - low) / (high - low), 0, 1)
    return image[..., 0] if image.shape[-1] == 1 else image
