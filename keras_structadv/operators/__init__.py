"""The linear operators that give a field its structure."""

from keras_structadv.operators.edge_preserving import EdgePreserving
from keras_structadv.operators.screened_poisson import ScreenedPoisson

__all__ = ["EdgePreserving", "ScreenedPoisson"]
