"""The warning about images whose values are not those of `value_range`."""

import warnings

from keras_structadv.checks import likely_range


def check_values(
    name: str, value_range: tuple[float, float], lowest: float, highest: float
) -> None:
    """Warns if images with these extremes do not fit the range of a layer.

    Args:
        name: of the layer.
        value_range: the lowest and the highest value that the layer expects.
        lowest: the smallest value of some images.
        highest: their largest value.
    """
    likely = likely_range(value_range, lowest, highest)
    if likely is not None:
        warnings.warn(
            f"Layer {name!r} has value_range={value_range} and received images with "
            f"values from {lowest:.3g} to {highest:.3g}. It scales its changes by that "
            f"range and clips to it. Pass the range of the images, e.g. "
            f"value_range={likely}.",
            stacklevel=3,
        )
