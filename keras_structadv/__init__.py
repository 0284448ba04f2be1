"""Structured adversarial perturbations as Keras preprocessing layers."""

from keras_structadv import datasets, visualization
from keras_structadv.audit import (
    RobustnessReport,
    WorstCaseAccuracy,
    evaluate_robustness,
)
from keras_structadv.basis import precompute_basis
from keras_structadv.flow import adversarial_flow, random_flow
from keras_structadv.gradients import per_image_gradients
from keras_structadv.layers.adversarial_flow import AdversarialFlow
from keras_structadv.layers.adversarial_recoloring import AdversarialRecoloring
from keras_structadv.layers.random_flow import RandomFlow
from keras_structadv.layers.random_recoloring import RandomRecoloring
from keras_structadv.recoloring import adversarial_recoloring
from keras_structadv.training import (
    AdversarialTraining,
    GradientStore,
    RefreshSnapshot,
)
from keras_structadv.warp import dense_image_warp

__version__ = "0.1.0"

__all__ = [
    "AdversarialFlow",
    "AdversarialRecoloring",
    "AdversarialTraining",
    "GradientStore",
    "RandomFlow",
    "RandomRecoloring",
    "RefreshSnapshot",
    "RobustnessReport",
    "WorstCaseAccuracy",
    "adversarial_flow",
    "adversarial_recoloring",
    "datasets",
    "dense_image_warp",
    "evaluate_robustness",
    "per_image_gradients",
    "precompute_basis",
    "random_flow",
    "visualization",
]
