"""Adversarial augmentation inside `model.fit`."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import check_keras, has_replicas, strategy_scope
from keras_structadv.checks import is_one_of
from keras_structadv.layers.base import StructuredAdversary, as_layers
from keras_structadv.layers.binding import layers_inside
from keras_structadv.training.fit import Fit
from keras_structadv.training.fresh_step import FreshStep, InsideStep, TrainStep
from keras_structadv.training.gradient_store import GradientStore
from keras_structadv.training.kept_gradients import KeptGradients, check_reuse
from keras_structadv.training.measures import HIT_RATE
from keras_structadv.training.reuse_step import ReuseStep


class AdversarialTraining(keras.callbacks.Callback):
    """Augments every training batch inside the compiled train step.

    The model's own `train_step` gets the changed images and the true labels.
    Validation, prediction and the saved model are those of the plain model, and so is
    the model after `fit`. A further `fit` of the same compiled model with the same
    layers (and store) compiles nothing; a new `compile` frees what was kept for it.

    `gradient="fresh"` takes the gradient with the weights of the same step. It costs a
    forward and a backward pass for the images that are changed. In this pass dropout is
    off, and `BatchNormalization` uses the statistics of these images: moving ones mean
    nothing early in training. `gradient="reuse"` takes the gradient that the training
    step itself made one epoch ago, when it last saw the image; it costs next to
    nothing. See `GradientStore`. With reuse

    - the first epoch is plain training, because no image has a gradient yet;
    - the model must get the same images in each epoch: put random layers inside the
      model, where the gradient goes through them;
    - two equal images share one gradient, even if their labels differ.

    The model gets the images in the compute dtype of the first layer. Sample weights
    are passed on; they do not enter the direction of a fresh gradient.

    `History` gains

    - `adversarial_loss_gain`: the first-order rise of the loss,
      `<gradient, augmented - image>`, averaged over the changed images. Several steps
      add up; a random start does not count. With reuse the gradient is that at the
      augmented image, with its sample weight, for a loss that is a mean over the
      batch. With several layers it is the mean over the changes of all of them;
    - `mean_displacement`, with an `AdversarialFlow`: the mean longest displacement, in
      pixels;
    - `mean_magnitude`, with an `AdversarialRecoloring`: the mean size of the changes
      after clipping, as a fraction of the value range;
    - `gradient_hit_rate`, with reuse: the fraction of the images with a gradient.

    Args:
        layer: the layer that augments, e.g. `AdversarialFlow()`, or a list of layers
            that act one after the other. `None` for the layers inside the model, which
            then get the true labels. They stay bound to the model until `fit` ends.
        gradient: `"fresh"`, `"reuse"`, or a `GradientStore` for another capacity, or
            for use beside `keras.callbacks.BackupAndRestore`.
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
    >>> flow = AdversarialTraining(AdversarialFlow(), gradient="reuse")
    >>> history = model.fit(x, y, epochs=2, callbacks=[flow], verbose=0).history
    >>> history["gradient_hit_rate"]
    [0.0, 1.0]
    """

    def __init__(
        self,
        layer: StructuredAdversary | Sequence[StructuredAdversary] | None = None,
        *,
        gradient: str | GradientStore = "fresh",
        schedule: Callable[[int], float] | None = None,
    ):
        check_keras()
        super().__init__()
        self.inside = layer is None
        self.layers = () if layer is None else _checked_layers(layer)
        if not isinstance(gradient, GradientStore) and not is_one_of(
            gradient, ("fresh", "reuse")
        ):
            raise ValueError(
                f'Received gradient={gradient!r}. Pass "fresh", "reuse" or a '
                "GradientStore."
            )
        if gradient != "fresh":
            if self.inside:
                raise ValueError(
                    f"Received gradient={gradient!r} and no layer. Layers inside a "
                    "model take fresh gradients: leave the layer out of the model and "
                    "pass it here."
                )
            for one in self.layers:
                check_reuse(one)
        if schedule is not None and not callable(schedule):
            raise ValueError(
                f"Received schedule={schedule!r}. Pass a function of the epoch."
            )
        self.gradient = gradient
        self.schedule = schedule
        self._kept = None
        if gradient != "fresh":
            store = GradientStore() if isinstance(gradient, str) else gradient
            self._kept = KeptGradients(store)
        self._fit: Fit | None = None
        self._results: dict | None = None
        self._strength = 1.0
        self._gain_warned = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Binds the layers and installs the augmented train step."""
        model = self.model
        inside = layers_inside(model)
        if self.inside:
            self.layers = tuple(inside)
        else:
            self._check_outside(inside)
        if not self.layers:
            raise ValueError(
                f"Model {model.name!r} has no adversarial layer inside. Pass one, "
                "AdversarialTraining(AdversarialFlow()), or add it to the model."
            )
        _check_streams(self.layers)
        other = model.train_function
        if isinstance(other, Fit):  # of a `fit` that was interrupted, or of this one
            # `fit` gives one dict of parameters to all of its callbacks.
            if other.owner is not self and other.owner.params is self.params:
                raise ValueError(
                    "Received two AdversarialTraining callbacks in one `fit`. Pass "
                    "one, with a list of layers."
                )
            other.leave()
        self._leave()
        self._gain_warned = False
        if self._kept is not None:
            self._kept.begin(model, self.layers)
        store = None if self._kept is None else self._kept.store
        self._fit = Fit(model, self.layers, self, store, self._make_step)

    def _make_step(self, model: keras.Model) -> TrainStep:
        with strategy_scope(model):
            if self._kept is not None:
                return ReuseStep(model, self.layers, self._kept)
            return (InsideStep if self.inside else FreshStep)(model, self.layers)

    def _check_outside(self, inside: list) -> None:
        """Raises a `ValueError` if a layer would act twice, or not be driven."""
        model = self.model
        for layer in self.layers:
            if any(layer is other for other in inside):
                raise ValueError(
                    f"Layer {layer.name!r} is a layer of the model itself, and would "
                    "act twice. Pass no layer, AdversarialTraining(), or leave it out "
                    "of the model."
                )
        left = [
            layer.name
            for layer in inside
            if layer.takes_gradient and layer.binding.model is None
        ]
        if left:
            raise ValueError(
                f"Model {model.name!r} has the adversarial layers {left} inside, "
                "which were not passed. Pass no layer, AdversarialTraining(), to "
                "train with these, or leave them out of the model."
            )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the strength of the epoch and starts new means."""
        strength = 1.0 if self.schedule is None else float(self.schedule(epoch))
        if not 0 <= strength <= 1:
            raise ValueError(
                f"schedule({epoch}) returned {strength}. Return a factor in [0, 1]; "
                "the strength itself is an argument of the layer."
            )
        if self._kept is not None:
            self._kept.begin_epoch(epoch)
        self._strength = strength
        self._running.step.strength.assign(strength)
        self._running.step.measures.reset()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Allows the next call of the train function to augment."""
        self._running.allow_next()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Checks that the first images are in the range that the layers expect."""
        self._running.step.measures.check_values()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Warns of a useless augmentation; backs up the store."""
        step = self._running.step
        if has_replicas(self._running.model) and logs is not None:
            self._take_means(logs, step.measures.results())
        if self._kept is not None:
            self._kept.end_epoch(epoch, step.measures.means[HIT_RATE].result())
        strong = any(x.takes_gradient and x.can_change for x in self.layers)
        if strong and self._strength > 0 and not self._gain_warned:
            loss = float((logs or {}).get("loss", 0.0))
            self._gain_warned = step.measures.check_gain(loss)

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Keeps the results of the training before validation replaces them."""
        if self._fit is not None and has_replicas(self._fit.model):
            self._results = self._fit.model.get_metrics_result()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Restores the model's own train step."""
        self._leave()
        if self._kept is not None:
            self._kept.store.remove_backup()

    @property
    def _running(self) -> Fit:
        if self._fit is None:
            raise RuntimeError(
                "No `fit` is going on. Pass the callback to `fit`, or call its hooks "
                "from `on_train_begin` on."
            )
        return self._fit

    def _leave(self) -> None:
        if self._fit is not None:
            self._fit.leave()
            self._fit = None

    def _take_means(self, logs: dict, own: dict) -> None:
        """Puts the means over all images into the logs of an epoch.

        Keras takes the logs of the last step, because they hold more than its metrics:
        the mean over the devices, however many images each had.
        """
        results, self._results = self._results, None
        results = results or self._running.model.get_metrics_result()
        trained = {key for key in logs if not key.startswith("val_")}
        if set(results) | set(own) == trained:
            for key, value in {**results, **own}.items():
                value = ops.convert_to_numpy(value)
                logs[key] = float(value) if value.ndim == 0 else value


def _check_streams(layers: Sequence[StructuredAdversary]) -> None:
    """Raises a `ValueError` for layers that would draw the same numbers."""
    seen: dict[int, str] = {}
    for layer in layers:
        stream = layer.stream()
        if stream is not None and stream in seen:
            raise ValueError(
                f"Layers {seen[stream]!r} and {layer.name!r} have the same "
                f"seed={layer.seed}, and would choose the same images and strengths. "
                "Pass different seeds."
            )
        if stream is not None:
            seen[stream] = layer.name


def _checked_layers(layer: Any) -> tuple[StructuredAdversary, ...]:
    layers = as_layers(layer, "an adversarial layer such as AdversarialFlow()")
    if len({id(x) for x in layers}) < len(layers):
        raise ValueError(
            f"Received layer={layer!r}, in which one layer occurs twice. Pass two "
            "layers, or one with steps=2."
        )
    return layers
