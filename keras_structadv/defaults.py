"""Defaults that go with the size of an image.

With s the shorter side in pixels: displacements up to `s / 8`, a smoothness of
`(s / 3)**2` and a damping of `10 / s**2`. The same picture at another size then gets
the same change. `benchmarks/results/sweeps.txt` has what other factors do.
"""


def default_displacement(height: int, width: int) -> float:
    """Returns the largest displacement that a layer draws, in pixels."""
    return min(height, width) / 8


def smoothness_of(smoothness: float | None, height: int, width: int) -> float:
    """Returns gamma of eq. 12, in squared pixels; `None` stands for the default."""
    default = (min(height, width) / 3) ** 2
    return default if smoothness is None else float(smoothness)


def damping_of(damping: float | None, height: int, width: int) -> float:
    """Returns a damping, in inverse squared pixels; `None` stands for the default."""
    default = 10 / min(height, width) ** 2
    return default if damping is None else float(damping)
