"""All that differs between TensorFlow, JAX and PyTorch; only this folder imports them.

`framework()` returns the `Framework` in use.
"""

from keras_structadv.backends.base import AugmentedStep, Framework
from keras_structadv.backends.current import (
    check_native,
    framework,
    full_precision,
    fused,
    kept_program,
    largest,
    shared,
)
from keras_structadv.backends.keras_state import (
    check_keras,
    compiled_loss_weights,
    current_values,
    has_replicas,
    infers_shapes,
    is_built,
    is_inside_model,
    keras_version,
    strategy_scope,
)
from keras_structadv.backends.snapshot import WeightSnapshot
from keras_structadv.backends.train_step import replaced

__all__ = [
    "AugmentedStep",
    "Framework",
    "WeightSnapshot",
    "check_keras",
    "check_native",
    "compiled_loss_weights",
    "current_values",
    "framework",
    "full_precision",
    "fused",
    "has_replicas",
    "infers_shapes",
    "is_built",
    "is_inside_model",
    "keras_version",
    "kept_program",
    "largest",
    "replaced",
    "shared",
    "strategy_scope",
]
