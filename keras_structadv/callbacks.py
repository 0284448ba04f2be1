"""Adversarial augmentation inside `model.fit`."""

import functools
import itertools
import numbers
import pathlib
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import backend, ops

from keras_structadv.backends import (
    framework,
    fused,
    has_replicas,
    strategy_scope,
)
from keras_structadv.gradient_store import GradientStore, fingerprint
from keras_structadv.gradients import images_among, without_gradient
from keras_structadv.layers.base import (
    Augmented,
    Step,
    StructuredAdversary,
    adversaries_in,
    during_step,
)

_FEW_HITS = 0.01


class _Fit(NamedTuple):
    """A `fit` that is going on.

    The step takes the model from here: on JAX, where the weights of `self.model` of a
    callback are asked for, the training is held up to give it those of that time.
    """

    model: keras.Model
    bindings: list[tuple]


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

    The model gets the images in the compute dtype of the first layer, also where the
    data are integers. Sample weights are passed on; they do not enter the direction of
    a fresh gradient.
    `History` gains

    - `adversarial_loss_gain`: the mean, over the images that were changed, of the
      first-order rise of the loss, `<gradient, augmented - image>`; with
      `gradient="reuse"` by the gradient at the augmented image, with its sample weight,
      for a loss that is a mean over the batch; with several layers, the mean over what
      each of them changed;
    - `mean_displacement`, with an `AdversarialFlow`: the mean of their longest
      displacements, in pixels;
    - `mean_magnitude`, with an `AdversarialRecoloring`: the mean of the sizes of their
      perturbations, as fractions of the value range;
    - `gradient_hit_rate`, with `gradient="reuse"`: the fraction of the images for which
      a gradient was found.

    Args:
        layer: the layer that augments, e.g. `AdversarialFlow()`, or a list of layers,
            each of which takes the images as the one before it leaves them; `None` for
            the layers inside the model, which then get the true labels. They are bound
            to the model that is trained until the training ends.
        gradient: `"fresh"`, `"reuse"`, or a `GradientStore` to reuse them with another
            capacity, or beside `keras.callbacks.BackupAndRestore`.
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
        super().__init__()
        self.inside = layer is None
        layers = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
        layers = () if self.inside else layers
        if not (layers or self.inside) or not all(
            isinstance(x, StructuredAdversary) for x in layers
        ):
            raise ValueError(
                f"Received layer={layer!r}. Pass an adversarial layer such as "
                "AdversarialFlow(), or a list of them."
            )
        if len({id(x) for x in layers}) < len(layers):
            raise ValueError(
                f"Received layer={layer!r}, in which one layer occurs twice. Pass two "
                "layers, or one with steps=2."
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
            if self.inside:
                raise ValueError(
                    f"Received gradient={gradient!r} and no layer. Layers inside a "
                    "model take fresh gradients: leave the layer out of the model and "
                    "pass it here."
                )
            for one in layers:
                one.check_reuse()
        if schedule is not None and not callable(schedule):
            raise ValueError(
                f"Received schedule={schedule!r}. Pass a function of the epoch."
            )
        self.layers = layers
        self.gradient = gradient
        self.schedule = schedule
        self._store = GradientStore() if gradient == "reuse" else gradient
        self._strength = None
        self._metrics = {}
        self._extremes = {}
        self._fit = None
        self._results = None
        self._trained = None
        self._in_step = False
        self._epochs = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Binds the layer and compiles the augmented train step."""
        model = self.model
        inside = adversaries_in(model)
        if self.inside:
            self.layers = tuple(inside)
        else:
            self._check_outside(inside)
        if not self.layers:
            raise ValueError(
                f"Model {model.name!r} has no adversarial layer inside. Pass one, "
                "AdversarialTraining(AdversarialFlow()), or add it to the model."
            )
        other = getattr(model.train_function, "callback", None)
        # `fit` gives one dict of parameters to all of its callbacks.
        if other is not None and other is not self and other.params is self.params:
            raise ValueError(
                "Received two AdversarialTraining callbacks in one `fit`. Pass one, "
                "with a list of layers."
            )
        for callback in {self, other} - {None}:
            callback._leave(callback._fit)  # a `fit` that was interrupted
        bindings = []
        for layer in self.layers:
            old = layer.binding
            layer.bind(model, old.loss if old.model is model else None)
            bindings.append((layer, old, layer.binding))
        self._fit = fit = _Fit(model, bindings)
        self._epochs = 0
        if self._reuses:
            self._prepare_store()
        if not set(self.layers) <= set(self._extremes):
            with strategy_scope(model):
                self._make_variables()
        augmented_function = framework().train_function(model, _Step(self))
        history = getattr(model, "history", None)  # each `fit` makes a new one

        def train_function(*arguments: Any) -> Any:  # the state on JAX, the batches
            if getattr(model, "history", None) is not history:
                # A later `fit` without this callback, after this one was interrupted.
                self._leave(fit)
                model.make_train_function(force=True)
                return model.train_function(*arguments)
            if self._in_step and not framework().is_single_batch(arguments[-1]):
                self._in_step = False
                return augmented_function(*arguments)
            # Not a batch of this `fit`, e.g. `train_on_batch` in another callback.
            if not plain_function:
                model.make_train_function(force=True)
                plain_function.append(model.train_function)
                model.train_function = train_function
            return plain_function[0](*arguments)

        plain_function = []
        train_function.callback = self
        model.train_function = train_function

    def _check_outside(self, inside: list[StructuredAdversary]) -> None:
        """Raises a `ValueError` if a layer would act twice, or not be driven."""
        model = self.model
        for layer in self.layers:
            if any(layer is other for other in inside):
                raise ValueError(
                    f"Layer {layer.name!r} is a layer of the model itself, and would "
                    "act twice. Pass no layer, AdversarialTraining(), or leave it out "
                    "of the model."
                )
        left = [layer.name for layer in inside if layer.binding.model is None]
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
        self._strength.assign(strength)
        for metric in self._metrics.values():
            metric.reset_state()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Allows the next call of the train function to augment."""
        self._in_step = True

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Looks whether the first images are in the range that the layers expect."""
        for layer, extremes in self._extremes.items():
            if layer.checks_values:
                layer.check_values(*(float(x.result()) for x in extremes))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Saves the store beside the model, and looks whether it is of any use."""
        if has_replicas(self.model) and logs is not None:
            self._take_means(logs)
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

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Keeps the results of the training, before validation has its own."""
        if self._fit is not None and has_replicas(self.model):
            self._results = self.model.get_metrics_result()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Gives the model its plain train step back."""
        self._leave(self._fit)
        if self._reuses and self._backup and self._store.delete_checkpoint:
            self._backup.unlink(missing_ok=True)

    def _leave(self, fit: _Fit | None) -> None:
        """Leaves the model and the layers of a `fit` as they were."""
        if fit is None:
            return
        self._in_step = False
        if self._fit is fit:
            self._fit = None
        fit.model.train_function = None
        for layer, old, ours in fit.bindings:
            if layer.binding is ours:  # and not bound anew since
                layer.binding = old

    def _take_means(self, logs: dict) -> None:
        """Puts the means over all images into the logs of an epoch.

        Keras takes the logs of the last step, since they are more than its metrics:
        the mean over the devices, however many images each had.
        """
        results, self._results = self._results or self.model.get_metrics_result(), None
        own = {name: metric.result() for name, metric in self._metrics.items()}
        trained = {key for key in logs if not key.startswith("val_")}
        if set(results) | set(own) == trained:
            for key, value in {**results, **own}.items():
                value = ops.convert_to_numpy(value)
                logs[key] = float(value) if value.ndim == 0 else value

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
        if has_replicas(model):
            raise NotImplementedError(
                "Gradients cannot be reused under a distribution strategy yet. Pass "
                'gradient="fresh".'
            )
        for layer in self.layers:
            layer.check_reuse()
        if self._trained is not None and self._trained() is not model:
            self._store.clear()
        self._trained = weakref.ref(model)
        if self._backup and self._backup.exists():
            self._store.load(self._backup)
        # Where the size of the images is known, the table is made before the step is
        # traced, which otherwise would be traced once more for it.
        shape = getattr(model, "input_shape", None)
        if isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:]:
            self._build_store(ops.zeros((1, *shape[1:])))

    def _build_store(self, images: Any) -> list[int]:
        """Makes the table for such images, and returns the length of each code."""
        size = self._store.size
        lengths = [layer.code_length(images, size) for layer in self.layers]
        kinds = (type(layer).__name__ for layer in self.layers)
        layout = ", ".join(f"{n} of {kind}" for n, kind in zip(lengths, kinds))
        self._store.build(sum(lengths), layout)
        return lengths

    def augmented(self, train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns the train step with the augmentation before it."""

        def augmented_step(data: Any) -> Any:
            x, labels, sample_weight, extra = self._unpack(data)
            self._check_inputs(x, extra)
            if self.inside:
                # Where a step is a function of the weights, what is in it can neither
                # write variables that are not the model's nor hand out what has a
                # gradient.
                notes = []

                def noting(note: Callable) -> Callable:
                    def call(layer: StructuredAdversary, seen: Any) -> None:
                        seen = keras.tree.map_structure(
                            lambda x: None if x is None else ops.stop_gradient(x), seen
                        )
                        notes.append((note, layer, seen))

                    return call

                step = Step(
                    self._fit.model,
                    functools.partial(_rows_of, x),
                    labels,
                    ops.convert_to_tensor(self._strength),  # that of this very step
                    noting(self._look_at),
                    noting(self._count),
                )
                with during_step(step):
                    logs = train_step(data)
                for note, *noted in notes:
                    note(*noted)
                return with_means(logs)
            images, pack = images_among(x)
            self._check_images(images, extra)

            def packed(images: Any, labels: Any, sample_weight: Any) -> Any:
                images = ops.cast(images, self.layers[0].compute_dtype)
                return keras.utils.pack_x_y_sample_weight(
                    pack(images), labels, sample_weight
                )

            beside = (labels, sample_weight)
            if self._reuses:
                logs = self._reusing_step(train_step, packed, images, beside, extra)
                return with_means(logs)
            for layer in self.layers:
                self._look_at(layer, images)
                if layer.rate > 0:
                    augmented = layer.augment(
                        images,
                        beside[0],
                        strength=self._strength,
                        extra=_for(layer, extra),
                        pack=pack,
                    )
                    self._count(layer, augmented)
                    beside = _moved(layer, augmented, beside, images)
                    images = augmented.images
            return with_means(train_step(packed(images, *beside)))

        def with_means(logs: Any) -> Any:
            if isinstance(logs, dict):
                means = {name: m.result() for name, m in self._metrics.items()}
                logs = {**logs, **means}
            return logs

        return augmented_step

    def _variables(self) -> list[keras.Variable]:
        """Returns what the augmented step reads and writes, beside the model's own."""
        metrics = [*self._metrics.values(), *itertools.chain(*self._extremes.values())]
        owners = [*metrics, *(() if self.inside else self.layers)]
        variables = [variable for owner in owners for variable in owner.variables]
        store = self._store.variables if self._reuses else []
        return [self._strength, *variables, *store]

    def _look_ahead(self, data: Any) -> None:
        """Makes the table of a store for the images of the first batch."""
        if self._reuses:
            self._build_store(images_among(self._unpack(data)[0])[0])

    def _unpack(self, data: Any) -> tuple[Any, Any, Any, dict]:
        """Returns inputs, labels, sample weights, and what is no input of the model."""
        x, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        extra = {}
        if isinstance(x, dict) and "images" in x:
            taken = getattr(self._fit.model, "input", None)
            taken = set(taken) if isinstance(taken, dict) else {"images"}
            known = {"ids"}.union(*(layer.extra_keys for layer in self.layers)) - taken
            extra = {key: value for key, value in x.items() if key in known}
            if extra:
                x = {key: value for key, value in x.items() if key not in extra}
                x = x["images"] if len(x) == 1 and taken == {"images"} else x
        return x, labels, sample_weight, extra

    def _check_inputs(self, x: Any, extra: dict) -> None:
        """Raises an error for inputs that the model does not take."""
        inputs = getattr(self._fit.model, "inputs", None)
        if inputs is not None and len(inputs) != len(keras.tree.flatten(x)):
            names = list(x) if isinstance(x, dict) else len(keras.tree.flatten(x))
            raise ValueError(
                f"Received the inputs {names} for a model with {len(inputs)}. Pass "
                "what the model takes, and beside it what a layer takes only."
            )
        if self.inside and extra:
            raise ValueError(
                f"Received {sorted(extra)} beside the images. Layers inside a model "
                "take images only: pass the layer to AdversarialTraining instead."
            )

    def _check_images(self, images: Any, extra: dict) -> None:
        """Raises an error for images that cannot be augmented, or what is with them."""
        ragged = bool(getattr(images, "ragged_rank", None))
        if ragged or len(getattr(images, "shape", ())) != 4:
            raise ValueError(
                "AdversarialTraining augments images of rank 4. Received "
                f"{'ragged ' if ragged else ''}images of shape {tuple(images.shape)}."
            )
        for number, layer in enumerate(self.layers):
            before = self.layers[:number]
            if _for(layer, extra) and any(x.moves_pixels for x in before):
                raise ValueError(
                    f"Received {sorted(_for(layer, extra))} for layer {layer.name!r}, "
                    "which comes after one that moves the images: it would no longer "
                    "fit them. Put it first in the list."
                )
        ids = extra.get("ids")
        if ids is not None and not backend.is_int_dtype(
            backend.standardize_dtype(ids.dtype)
        ):
            raise ValueError(
                f"Received ids of dtype {ids.dtype}. Pass one integer for each image."
            )

    def _make_variables(self) -> None:
        """Makes what the train step reads and writes, under the model's strategy."""
        self._strength = keras.Variable(1.0, trainable=False, name="strength")
        names = ["adversarial_loss_gain", *(x.measure_name for x in self.layers)]
        names += ["gradient_hit_rate"] if self._reuses else []
        self._metrics = {name: keras.metrics.Mean(name=name) for name in names}
        self._extremes = {
            layer: (keras.metrics.Mean(), keras.metrics.Mean()) for layer in self.layers
        }

    def _look_at(self, layer: StructuredAdversary, images: Any) -> None:
        """Notes the extremes of some images, for a layer that has yet to see them."""
        if layer.checks_values:
            some = ops.cast(images[:8], "float32")
            lowest, highest = ops.min(some), ops.max(some)
            known = ops.isfinite(lowest) & ops.isfinite(highest) & (lowest < highest)
            for metric, value in zip(self._extremes[layer], (lowest, highest)):
                value = ops.where(known, value, 0.0)
                metric.update_state(value, sample_weight=ops.cast(known, "float32"))

    def _count(self, layer: StructuredAdversary, augmented: Augmented) -> None:
        """Adds what a layer did to the means of the epoch."""
        for name, values in (
            ("adversarial_loss_gain", augmented.gain),
            (layer.measure_name, augmented.sizes),
        ):
            self._metrics[name].update_state(values, sample_weight=augmented.active)

    def _reusing_step(
        self,
        train_step: Callable[[Any], Any],
        packed: Callable[[Any, Any, Any], Any],
        images: Any,
        beside: tuple[Any, Any],
        extra: dict,
    ) -> Any:
        """Returns the logs of a step on images changed by the gradients of the last."""
        store = self._store
        if None in images.shape[1:]:
            raise ValueError(
                f"Received images of shape {tuple(images.shape)}. Their size must be "
                "known when the step is compiled: resize or crop, and set the static "
                "shape."
            )
        lengths = self._build_store(images)
        ends = list(itertools.accumulate(lengths))

        def find(images: Any, ids: Any) -> tuple[Any, Any, Any]:
            if ids is None:
                keys = fingerprint(images)
            else:
                keys = fingerprint(ops.reshape(ids, (-1, 1)))
            return keys, *store.read(keys)

        def change(images: Any, codes: Any, found: Any, extra: dict) -> list:
            done = []
            for layer, end, length in zip(self.layers, ends, lengths):
                code = codes[:, end - length : end]
                augmented = layer.augment_from_codes(
                    images, code, found, store.size, self._strength, _for(layer, extra)
                )
                images = augmented.images
                done.append(augmented)
            return done

        def keep(keys: Any, stages: list, gradients: Any) -> list:
            codes = [
                layer.code_of(stages[-1], gradients, store.size)
                for layer in self.layers
            ]
            store.write(keys, ops.concatenate(codes, axis=1))
            return [
                ops.sum(gradients * (after - before), axis=(1, 2, 3))
                for before, after in itertools.pairwise(stages)
            ]

        keys, codes, found = fused(find)(images, extra.get("ids"))
        images = ops.cast(images, "float32")
        for layer in self.layers:
            self._look_at(layer, images)
        done = fused(change)(images, codes, found, extra)
        for layer, augmented in zip(self.layers, done):
            beside = _moved(layer, augmented, beside, images)
        stages = [images, *(augmented.images for augmented in done)]
        logs, gradients = framework().step_with_gradients(
            self._fit.model, train_step, lambda x: packed(x, *beside), stages[-1]
        )
        if gradients is None:
            gradients = without_gradient(self._fit.model, stages[-1])
        rises = fused(keep)(keys, stages, gradients)
        self._metrics["gradient_hit_rate"].update_state(found)
        for layer, augmented, rise in zip(self.layers, done, rises):
            rise = ops.where(augmented.active > 0, rise, 0.0)
            self._count(layer, augmented._replace(gain=rise))
        return logs


class _Step:
    """The callback's step as an `AugmentedStep`."""

    def __init__(self, callback: AdversarialTraining):
        self._callback = callback

    @property
    def variables(self) -> list[keras.Variable]:
        return self._callback._variables()

    def prepare(self, data: Any) -> None:
        self._callback._look_ahead(data)

    def __call__(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        return self._callback.augmented(train_step)(data)


def _for(layer: StructuredAdversary, extra: dict) -> dict:
    return {key: extra[key] for key in layer.extra_keys if key in extra}


def _rows_of(inputs: Any, _: Any, chosen: Any = None) -> Any:
    """Returns the inputs of a model, of the chosen images only."""
    if chosen is None:
        return inputs
    return keras.tree.map_structure(lambda x: ops.take(x, chosen, axis=0), inputs)


def _moved(
    layer: StructuredAdversary,
    augmented: Augmented,
    beside: tuple[Any, Any],
    images: Any,
) -> tuple[Any, Any]:
    """Returns labels and sample weights, those of the pixels moved with the images."""
    if not layer.moves_pixels:
        return beside
    data = dict(zip(("labels", "sample_weight"), beside))
    data |= layer.move(data, augmented.all_fields, images)
    return tuple(data.values())


class RefreshSnapshot(keras.callbacks.Callback):
    """Renews the snapshot of a model that a `tf.data` pipeline takes gradients of.

    The pipeline is not traced anew. A batch that is under way keeps the weights with
    which it began; batches that were prefetched were made with the weights before.

    Args:
        layer: the layer in the pipeline, bound with `snapshot=True`, or a list of them.
        every: `"epoch"`, at the begin of each, or the number of batches after which the
            snapshot is renewed; it also is at the begin of the training.

    Raises:
        ValueError: if `layer` or `every` has no meaning here.

    Example:
    >>> from keras_structadv import AdversarialFlow
    >>> model = keras.Sequential(
    ...     [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    ... )
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    >>> flow = AdversarialFlow().bind(model, snapshot=True)
    >>> refresh = RefreshSnapshot(flow, every="epoch")
    """

    def __init__(
        self,
        layer: StructuredAdversary | Sequence[StructuredAdversary],
        *,
        every: str | int = "epoch",
    ):
        super().__init__()
        layers = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
        if not layers or not all(isinstance(x, StructuredAdversary) for x in layers):
            raise ValueError(
                f"Received layer={layer!r}. Pass the adversarial layer of the "
                "pipeline, or a list of them."
            )
        number = isinstance(every, numbers.Integral) and not isinstance(every, bool)
        if every != "epoch" and not (number and every >= 1):
            raise ValueError(
                f'Received every={every!r}. Pass "epoch" or a number of batches >= 1.'
            )
        self.layers = layers
        self.every = every
        self._seen = self._seen_before = self._refreshed_at = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Starts to count."""
        self._seen = self._seen_before = self._refreshed_at = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Takes the weights with which the training or an epoch begins."""
        self._seen_before = self._seen
        if self.every == "epoch" or self._seen == 0:
            self._refresh()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Takes the weights of this time, if enough batches have passed."""
        # Several steps may have been run at once: the number of the last one counts.
        self._seen = self._seen_before + batch + 1
        if self.every != "epoch" and self._seen - self._refreshed_at >= self.every:
            self._refresh()
            self._refreshed_at = self._seen

    def _refresh(self) -> None:
        for layer in self.layers:
            if layer.binding.snapshot is None:
                raise ValueError(
                    f"Layer {layer.name!r} has no snapshot to renew. Bind it with "
                    "layer.bind(model, snapshot=True)."
                )
            layer.binding.snapshot.refresh()
