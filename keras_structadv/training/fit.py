"""What one `fit` takes from a model and its layers, and gives back."""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from keras_structadv.backends import framework
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.training.fresh_step import TrainStep
from keras_structadv.training.gradient_store import GradientStore

_ATTRIBUTE = "_kept_adversarial_steps"


class Kept(NamedTuple):
    """A compiled step that stays with its model from one `fit` to the next.

    Attributes:
        made_for: all that the step depends on, beside the model as it was compiled.
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
        self._inside = owner.inside
        self._store = store
        self._make_step = make_step
        self._history = getattr(model, "history", None)  # each `fit` makes a new one
        self._allowed = False
        self._layers = layers
        self._bindings = []
        for layer in layers:
            old = layer.binding.before or layer.binding  # after an interrupted `fit`
            layer.bind(model, old.loss if old.model is model else None)
            layer.binding = dataclasses.replace(layer.binding, before=old)
            self._bindings.append((layer, old, layer.binding))
        try:
            self._install()
        except BaseException:
            self.leave()
            raise

    def _install(self) -> None:
        """Puts the augmented train function in the place of the model's own."""
        model = self.model
        model.make_train_function()
        self._plain = model.train_function
        kept = self._kept(self._plain)
        self.step, self._augmented = kept.step, kept.function
        model.train_function = self

    def _kept(self, plain: Callable[..., Any]) -> Kept:
        """Returns the compiled step for a train function of the model, made if needed.

        A new `compile` drops the train function, and with it all that was kept for it.
        """
        # Past Keras, which would track the attribute.
        table = vars(self.model).setdefault(_ATTRIBUTE, weakref.WeakKeyDictionary())
        entries = table.setdefault(plain, [])
        arguments = [layer.arguments() for layer in self._layers]
        losses = [layer.binding.loss for layer in self._layers]
        made_for = (self._inside, self._store, self._layers, arguments, losses)
        for kept in entries:
            if _are_equal(kept.made_for, made_for):
                return kept
        step = self._make_step(self.model)
        function = framework().train_function(self.model, step)
        entries.append(Kept(made_for, step, function))
        return entries[-1]

    def allow_next(self) -> None:
        """Allows the next call of the train function to augment."""
        if self.model.train_function is not self:  # another callback made a new one
            before = self.step
            self._install()
            for new, old in zip(self.step.own_variables, before.own_variables):
                new.assign(old)  # the strength and the means of the epoch
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
            if layer.binding is ours:  # and was not bound again since
                layer.binding = old


def _are_equal(one: tuple, other: tuple) -> bool:
    try:
        return bool(one == other)
    except ValueError:  # arrays among the arguments of a subclass
        return False
