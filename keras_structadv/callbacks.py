"""Adversarial augmentation inside `model.fit`."""

from collections.abc import Callable
from typing import Any

import keras
from keras import backend

from keras_structadv.layers.base import StructuredAdversary


class AdversarialTraining(keras.callbacks.Callback):
    """Augments every training batch inside the compiled train step.

    The images are changed with their true labels, by the gradient of the weights of
    that very step, before the model's own `train_step` sees them. Validation,
    prediction and the saved model stay those of the plain model, and so does the model
    after `fit`.

    Sample weights are passed on and do not enter the gradient. `History` gains
    `adversarial_loss_gain`: the mean, over the images that were augmented, of the
    first-order rise of the adversarial loss, `<gradient, augmented - image>`.

    Args:
        layer: the layer that augments, e.g. `AdversarialFlow()`. It is bound to the
            model that is trained.
        gradient: `"fresh"`, a gradient pass for each step.
        schedule: a function from the epoch, counted from 0, to a factor in [0, 1] on
            the strength of the augmentation; `None` for 1.

    Raises:
        ValueError: if an argument has no meaning here.

    Example:
    >>> import numpy as np
    >>> from keras_structadv import AdversarialFlow
    >>> x = np.random.default_rng(0).uniform(size=(8, 6, 6, 1))
    >>> y = np.arange(8) % 2
    >>> model = keras.Sequential(
    ...     [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    ... )
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    >>> warm_up = AdversarialTraining(AdversarialFlow(), schedule=lambda e: e / 60)
    >>> history = model.fit(x, y, callbacks=[warm_up], verbose=0)
    >>> sorted(history.history)
    ['adversarial_loss_gain', 'loss']
    """

    def __init__(
        self,
        layer: StructuredAdversary | None = None,
        *,
        gradient: str = "fresh",
        schedule: Callable[[int], float] | None = None,
    ):
        super().__init__()
        if layer is None:
            raise NotImplementedError(
                "Received no layer. Finding the layers inside the model comes in a "
                "later release: pass one, AdversarialTraining(AdversarialFlow())."
            )
        if not isinstance(layer, StructuredAdversary):
            raise ValueError(
                f"Received layer={layer!r}. Pass an adversarial layer such as "
                "AdversarialFlow()."
            )
        if gradient != "fresh":
            raise ValueError(f'Received gradient={gradient!r}. Pass "fresh".')
        if schedule is not None and not callable(schedule):
            raise ValueError(
                f"Received schedule={schedule!r}. Pass a function of the epoch."
            )
        self.layer = layer
        self.gradient = gradient
        self.schedule = schedule
        self._gain = None
        self._strength = None
        self._in_step = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Binds the layer and compiles the augmented train step."""
        if backend.backend() != "tensorflow":
            raise NotImplementedError(
                f"AdversarialTraining does not run on the {backend.backend()} backend "
                'yet. Set KERAS_BACKEND="tensorflow".'
            )
        model = self.model
        self.layer.bind(model)
        if self._gain is None:
            self._gain = keras.metrics.Mean(name="adversarial_loss_gain")
            self._strength = keras.Variable(1.0, trainable=False, name="strength")
        own = vars(model).get("train_step")
        model.train_step = self._augmented(model.train_step)
        try:
            model.make_train_function(force=True)
        finally:  # the compiled function has the step; the model gets its own back
            del model.train_step
            if own is not None:
                model.train_step = own
        augmented_function = model.train_function

        def train_function(iterator: Any) -> Any:
            if not self._in_step:
                # A `fit` was interrupted before `on_train_end`, and this is another
                # one, without this callback.
                model.make_train_function(force=True)
                return model.train_function(iterator)
            try:
                return augmented_function(iterator)
            except BaseException as error:
                if not isinstance(error, StopIteration):
                    self.on_train_end()
                raise

        model.train_function = train_function

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the strength of the epoch and starts a new mean."""
        strength = 1.0 if self.schedule is None else float(self.schedule(epoch))
        if not 0 <= strength <= 1:
            raise ValueError(
                f"schedule({epoch}) returned {strength}. Return a factor in [0, 1]; "
                "the strength itself is an argument of the layer."
            )
        self._strength.assign(strength)
        self._gain.reset_state()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Allows the next call of the train function to augment."""
        self._in_step = True

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Ends what `on_train_batch_begin` allowed."""
        self._in_step = False

    def on_train_end(self, logs: dict | None = None) -> None:
        """Gives the model its plain train step back."""
        self._in_step = False
        self.model.train_function = None

    def _augmented(self, train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def augmented_step(data: Any) -> Any:
            images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            if not hasattr(images, "shape") or len(images.shape) != 4:
                raise ValueError(
                    "AdversarialTraining augments models with one input, images of "
                    "rank 4. Received: "
                    f"{keras.tree.map_structure(lambda x: x.shape, images)}."
                )
            augmented = self.layer.augment(images, labels, strength=self._strength)
            self._gain.update_state(augmented.gain, sample_weight=augmented.active)
            images = keras.ops.cast(augmented.images, self.layer.compute_dtype)
            logs = train_step(
                keras.utils.pack_x_y_sample_weight(images, labels, sample_weight)
            )
            if isinstance(logs, dict):
                logs = {**logs, self._gain.name: self._gain.result()}
            return logs

        return augmented_step
