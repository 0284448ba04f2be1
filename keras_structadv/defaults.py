"""Defaults that go with the size of an image.

With s the shorter side in pixels: displacements up to `s / 8`, a smoothness of
`(s / 3)**2` and a damping of `10 / s**2`. The same picture at another size then gets
the same change. `benchmarks/results/sweeps.txt` has what other factors do.
"""


def default_displacement(height: int, width: int) -> float:
    """Returns the largest displacement that a layer draws, in pixels."""
    return min(height, width) / 8


def default_smoothness(height: int, width: int) -> float:
    """Returns gamma of eq. 12, in squared pixels."""
    return (min(height, width) / 3) ** 2


def default_damping(height: int, width: int) -> float:
    """Returns the damping of `EdgePreserving`, in inverse squared pixels."""
    return 10 / min(height, width) ** 2
