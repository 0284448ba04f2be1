"""What one `fit` takes from a model and its layers, and gives back."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_structadv.backends import framework
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.training.fresh_step import TrainStep
from keras_structadv.training.gradient_store import GradientStore

_ATTRIBUTE = "_kept_adversarial_step"


@dataclasses.dataclass(frozen=True)
class Kept:
    """A compiled step that is kept with its model from one `fit` to the next.

    Attributes:
        made_for: everything that, if it changes, makes the step a different one.
        step: the step.
        function: its train function.
    """

    made_for: tuple
    step: TrainStep
    function: Callable[..., Any]


class Fit:
    """A `fit` that is going on. It takes the place of the model's train function.

    Args:
        model: the model that is trained.
        layers: the layers that augment; bound to the model until the fit ends.
        owner: the callback.
        store: the store whose gradients are reused, `None` for fresh ones. The next
            `fit` of the same compiled model, with the same layers and store, finds the
            compiled step again.
        make_step: makes the augmented step of a model.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: tuple[StructuredAdversary, ...],
        owner: Any,
        store: GradientStore | None,
        make_step: Callable[[keras.Model], TrainStep],
    ):
        self.model = model
        self.owner = owner
        self._store = store
        self._make_step = make_step
        self._history = getattr(model, "history", None)  # each `fit` makes a new one
        self._allowed = False
        self._bindings = []
        for layer in layers:
            old = layer.binding
            layer.bind(model, old.loss if old.model is model else None)
            self._bindings.append((layer, old, layer.binding))
        self._layers = layers
        self.install()

    def install(self) -> None:
        """Puts the augmented train function in the place of the model's own."""
        model = self.model
        model.make_train_function()
        self._plain = model.train_function
        # Keras keeps its train function until the model is compiled anew.
        configs = [layer.get_config() for layer in self._layers]
        losses = [layer.binding.loss for layer in self._layers]
        inside = self.owner.inside
        made_for = (self._plain, inside, self._store, self._layers, configs, losses)
        kept = vars(model).get(_ATTRIBUTE)
        if kept is None or kept.made_for != made_for:
            step = self._make_step(model)
            kept = Kept(made_for, step, framework().train_function(model, step))
            vars(model)[_ATTRIBUTE] = kept  # past Keras, which would track it
        self.step, self._augmented = kept.step, kept.function
        model.train_function = self

    def allow_next(self) -> None:
        """Allows the next call of the train function to augment."""
        if self.model.train_function is not self:  # another callback made a new one
            self.install()
        self._allowed = True

    def __call__(self, *arguments: Any) -> Any:
        """Runs a step. The arguments are the batches; on JAX the state before them."""
        if getattr(self.model, "history", None) is not self._history:
            # A later `fit` without the callback, after this one was interrupted.
            self.leave()
            return self._plain(*arguments)
        if self._allowed and not framework().is_single_batch(arguments[-1]):
            self._allowed = False
            return self._augmented(*arguments)
        # Not a batch of this `fit`, e.g. `train_on_batch` in another callback.
        return self._plain(*arguments)

    def leave(self) -> None:
        """Restores the model and the layers."""
        self._allowed = False
        if self.model.train_function is self:
            self.model.train_function = self._plain
        for layer, old, ours in self._bindings:
            if layer.binding is ours:  # and was not bound anew since
                layer.binding = old
