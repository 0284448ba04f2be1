"""Adversarial augmentation inside `model.fit`."""

import pathlib
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
from keras import backend, ops

from keras_structadv.gradient_store import GradientStore, fingerprint
from keras_structadv.gradients import (
    fused,
    is_distributed,
    replaced,
    step_with_gradients,
)
from keras_structadv.layers.base import Augmented, StructuredAdversary

_FEW_HITS = 0.01


class AdversarialTraining(keras.callbacks.Callback):
    """Augments every training batch inside the compiled train step.

    The images are changed before the model's own `train_step` sees them, with their
    true labels. Validation, prediction and the saved model stay those of the plain
    model, and so does the model after `fit`.

    With `gradient="fresh"` the gradient is that of the weights of that very step, at
    the price of a forward and a backward pass for the images that are changed. With
    `gradient="reuse"` it is the one that the training step itself made when it last saw
    the image, one epoch ago, at next to no price: see `GradientStore`. An image that
    has no gradient yet, as all in the first epoch, stays as it is. So do images that
    are changed at random before they come here, because each is a new image: put such
    layers into the model, after its input; the gradient goes through them. Two equal
    images share one gradient, that of whichever was trained on last, also where their
    labels differ.

    The model gets the images in the compute dtype of the layer, also where the data are
    integers. Sample weights are passed on; they do not enter the direction of a fresh
    gradient.
    `History` gains

    - `adversarial_loss_gain`: the mean, over the images that were changed, of the
      first-order rise of the loss, `<gradient, augmented - image>`; with
      `gradient="reuse"` by the gradient at the augmented image, with its sample weight,
      for a loss that is a mean over the batch;
    - `mean_displacement`: the mean of their longest displacements, in pixels;
    - `gradient_hit_rate`, with `gradient="reuse"`: the fraction of the images for which
      a gradient was found.

    Args:
        layer: the layer that augments, e.g. `AdversarialFlow()`. It is bound to the
            model that is trained until the training ends.
        gradient: `"fresh"`, `"reuse"`, or a `GradientStore` to reuse them with another
            capacity, or beside `keras.callbacks.BackupAndRestore`.
        schedule: a function from the epoch, counted from 0, to a factor in [0, 1] on
            the strength of the augmentation; `None` for 1.

    Raises:
        ValueError: if an argument has no meaning here.
        NotImplementedError: without a layer.

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
        layer: StructuredAdversary | None = None,
        *,
        gradient: str | GradientStore = "fresh",
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
        if not isinstance(gradient, GradientStore) and gradient not in (
            "fresh",
            "reuse",
        ):
            raise ValueError(
                f'Received gradient={gradient!r}. Pass "fresh", "reuse" or a '
                "GradientStore."
            )
        if gradient != "fresh":
            layer.check_reuse()
        if schedule is not None and not callable(schedule):
            raise ValueError(
                f"Received schedule={schedule!r}. Pass a function of the epoch."
            )
        self.layer = layer
        self.gradient = gradient
        self.schedule = schedule
        self._store = GradientStore() if gradient == "reuse" else gradient
        self._strength = None
        self._metrics = {}
        self._binding = layer.binding
        self._trained = None
        self._in_step = False
        self._epochs = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Binds the layer and compiles the augmented train step."""
        if backend.backend() != "tensorflow":
            raise NotImplementedError(
                f"AdversarialTraining does not run on the {backend.backend()} backend "
                'yet. Set KERAS_BACKEND="tensorflow".'
            )
        model = self.model
        if any(layer is self.layer for layer in model.layers):
            raise NotImplementedError(
                f"Layer {self.layer.name!r} is a layer of the model itself, and would "
                "act twice. Driving the layers of a model comes in a later release: "
                "leave the layer out of the model."
            )
        # `fit` gives one dict of parameters to all of its callbacks.
        if getattr(model.train_function, "fit_parameters", None) is self.params:
            raise ValueError(
                "Received two AdversarialTraining callbacks in one `fit`. Pass one."
            )
        self._binding = self.layer.binding
        if self._binding.model is not model:
            self.layer.bind(model)
        self._epochs = 0
        if self._reuses:
            self._prepare_store()
        if self._strength is None:
            self._strength = keras.Variable(1.0, trainable=False, name="strength")
            names = ["adversarial_loss_gain", self.layer.measure_name]
            names += ["gradient_hit_rate"] if self._reuses else []
            self._metrics = {name: keras.metrics.Mean(name=name) for name in names}
        # The compiled function has the step; the model gets its own back.
        step = self.augmented(model.train_step)
        with replaced(model, "train_step", step):
            model.make_train_function(force=True)
        augmented_function = model.train_function

        def train_function(iterator: Any) -> Any:
            if self._in_step:
                self._in_step = False
                return augmented_function(iterator)
            # Not a batch of this `fit`: `train_on_batch` in another callback, or a
            # later `fit` without this one, if this one was interrupted.
            if not plain_function:
                model.make_train_function(force=True)
                plain_function.append(model.train_function)
                model.train_function = train_function
            return plain_function[0](iterator)

        plain_function = []
        train_function.fit_parameters = self.params
        model.train_function = train_function

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the strength of the epoch and starts new means."""
        strength = 1.0 if self.schedule is None else float(self.schedule(epoch))
        if not 0 <= strength <= 1:
            raise ValueError(
                f"schedule({epoch}) returned {strength}. Return a factor in [0, 1]; "
                "the strength itself is an argument of the layer."
            )
        self._strength.assign(strength)
        for metric in self._metrics.values():
            metric.reset_state()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Allows the next call of the train function to augment."""
        self._in_step = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Saves the store beside the model, and looks whether it is of any use."""
        if not self._reuses:
            return
        if self._backup and self._store.built:
            self._store.save(self._backup)
        self._epochs += 1
        if self._epochs == 2 and (
            self._metrics["gradient_hit_rate"].result() < _FEW_HITS
        ):
            warnings.warn(
                "In the second epoch hardly any image was met again, so that no "
                "gradient could be reused. Images that are changed at random before "
                "they reach the model are new in each epoch: move those layers into "
                'the model, give "ids" with the images, or pass gradient="fresh". If '
                "there are more images than places, pass a larger GradientStore. If an "
                "epoch is but a part of the data, this may pass.",
                stacklevel=2,
            )

    def on_train_end(self, logs: dict | None = None) -> None:
        """Gives the model its plain train step back."""
        self._in_step = False
        self.model.train_function = None
        self.layer.binding = self._binding
        if self._reuses and self._backup and self._store.delete_checkpoint:
            self._backup.unlink(missing_ok=True)

    @property
    def _reuses(self) -> bool:
        return self.gradient != "fresh"

    @property
    def _backup(self) -> pathlib.Path | None:
        folder = self._store.backup_dir
        return None if folder is None else pathlib.Path(folder, "gradient_store.npz")

    def _prepare_store(self) -> None:
        """Fits the store to the model that is going to be trained."""
        model = self.model
        if is_distributed(model):
            raise NotImplementedError(
                "Gradients cannot be reused under a distribution strategy yet. Pass "
                'gradient="fresh".'
            )
        self.layer.check_reuse()
        if self._trained is not None and self._trained() is not model:
            self._store.clear()
        self._trained = weakref.ref(model)
        if self._backup and self._backup.exists():
            self._store.load(self._backup)
        # Where the size of the images is known, the table is made before the step is
        # traced, which otherwise would be traced once more for it.
        shape = getattr(model, "input_shape", None)
        if isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:]:
            zeros = ops.zeros((1, *shape[1:]))
            self._store.build(self.layer.code_length(zeros, self._store.size))

    def augmented(self, train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns the train step with the augmentation before it."""

        def augmented_step(data: Any) -> Any:
            images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            ids = None
            structure = images
            if isinstance(images, dict) and set(images) == {"images", "ids"}:
                structure, ids = images["images"], images["ids"]
                images = structure
                if not backend.is_int_dtype(backend.standardize_dtype(ids.dtype)):
                    raise ValueError(
                        f"Received ids of dtype {ids.dtype}. Pass one integer for each "
                        "image."
                    )
            if len(keras.tree.flatten(images)) == 1:
                (images,) = keras.tree.flatten(images)
            if not hasattr(images, "shape") or len(images.shape) != 4:
                raise ValueError(
                    "AdversarialTraining augments models with one input, images of "
                    "rank 4. Received: "
                    f"{keras.tree.map_structure(lambda x: x.shape, images)}."
                )

            def plain_step(images: Any) -> Any:
                images = ops.cast(images, self.layer.compute_dtype)
                x = keras.tree.pack_sequence_as(structure, [images])
                return train_step(
                    keras.utils.pack_x_y_sample_weight(x, labels, sample_weight)
                )

            if not keras.tree.is_nested(labels):
                self.layer.check_labels(images, labels)
            if self.layer.rate == 0:
                logs, augmented = train_step(data), None
            elif self._reuses:
                logs, augmented = self._reusing_step(plain_step, images, ids)
            else:
                augmented = self.layer.augment(images, labels, strength=self._strength)
                logs = plain_step(augmented.images)
            if augmented is not None:
                self._metrics["adversarial_loss_gain"].update_state(
                    augmented.gain, sample_weight=augmented.active
                )
                self._metrics[self.layer.measure_name].update_state(
                    augmented.sizes, sample_weight=augmented.active
                )
            if isinstance(logs, dict):
                means = {name: m.result() for name, m in self._metrics.items()}
                logs = {**logs, **means}
            return logs

        return augmented_step

    def _reusing_step(
        self, plain_step: Callable[[Any], Any], images: Any, ids: Any
    ) -> tuple[Any, Augmented]:
        """Returns the logs of a step on images changed by the gradients of the last."""
        store, layer = self._store, self.layer
        if None in images.shape[1:]:
            raise ValueError(
                f"Received images of shape {tuple(images.shape)}. Their size must be "
                "known when the step is compiled: resize or crop, and set the static "
                "shape."
            )
        store.build(layer.code_length(images, store.size))

        def find(images: Any, ids: Any) -> tuple[Any, Any, Any]:
            if ids is None:
                keys = fingerprint(images)
            else:
                keys = fingerprint(ops.reshape(ids, (-1, 1)))
            return keys, *store.read(keys)

        def change(images: Any, codes: Any, found: Any) -> Augmented:
            return layer.augment_from_codes(
                images, codes, found, store.size, self._strength
            )

        def keep(keys: Any, images: Any, changed: Any, gradients: Any) -> Any:
            store.write(keys, layer.code_of(changed, gradients, store.size))
            return ops.sum(gradients * (changed - images), axis=(1, 2, 3))

        find, change, keep = (
            fused(function, eagerly=self.model.run_eagerly)
            for function in (find, change, keep)
        )
        keys, codes, found = find(images, ids)
        images = ops.cast(images, "float32")
        augmented = change(images, codes, found)
        logs, gradients = step_with_gradients(self.model, plain_step, augmented.images)
        rise = keep(keys, images, augmented.images, gradients)
        self._metrics["gradient_hit_rate"].update_state(found)
        rise = ops.where(augmented.active > 0, rise, 0.0)
        return logs, augmented._replace(gain=rise)
