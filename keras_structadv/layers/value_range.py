"""The warning about images whose values are not those of `value_range`."""

import math
import warnings

USUAL = ((0, 1), (-1, 1), (0, 255))


def check_values(
    name: str, value_range: tuple[float, float], lowest: float, highest: float
) -> None:
    """Warns if images with these extremes do not fit the range of a layer.

    Args:
        name: of the layer.
        value_range: the lowest and the highest value that the layer expects.
        lowest: the smallest value of some images, finite.
        highest: their largest value, finite.
    """
    low, high = value_range
    span = high - low
    outside = lowest < low - 0.01 * span or highest > high + 0.01 * span
    if outside or highest < low + 0.03 * span:
        candidates = [*USUAL, (math.floor(lowest), math.ceil(highest))]
        likely = next(x for x in candidates if x[0] <= lowest and highest <= x[1])
        warnings.warn(
            f"Layer {name!r} has value_range={value_range} and received images with "
            f"values from {lowest:.3g} to {highest:.3g}. It scales its changes by that "
            f"range and clips to it. Pass the range of the images, e.g. "
            f"value_range={likely}.",
            stacklevel=3,
        )
