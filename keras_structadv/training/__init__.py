"""Adversarial training inside `fit`, and what serves it."""

from keras_structadv.training.adversarial_training import AdversarialTraining
from keras_structadv.training.gradient_store import GradientStore
from keras_structadv.training.refresh_snapshot import RefreshSnapshot

__all__ = ["AdversarialTraining", "GradientStore", "RefreshSnapshot"]
