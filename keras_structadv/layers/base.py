"""What the adversarial layers share: from images and labels to augmented images."""

import contextlib
import contextvars
import dataclasses
import functools
import math
import numbers
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_structadv.backends import check_native, framework, infers_shapes
from keras_structadv.fields import range_pair
from keras_structadv.gradients import (
    Inference,
    WeightSnapshot,
    gradients_of,
    images_among,
)
from keras_structadv.gradients.labels import TARGETS, check_length, random_wrong

_KEYS = ("images", "labels", "targets")
_MOVED = ("segmentation_masks", "bounding_boxes", "keypoints")
_TARGETS = (None, *TARGETS)
_MAY_BE_MASKS = ("labels", "sample_weight")
_BOXES = ("xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw")
BOX_FORMATS = _BOXES + tuple(f"rel_{name}" for name in _BOXES if name != "center_yxhw")


class Augmented(NamedTuple):
    """What an adversary made of a batch.

    Attributes:
        images: float32, the shape of the images that went in.
        gain: float32, (chosen,), the first-order rise of the adversarial loss; `None`
            if no gradient was taken.
        active: float32, (chosen,), 1 where an image was chosen, else 0.
        sizes: float32, (chosen,), the size of each field, as `measure` tells it.
        fields: the fields of the chosen images, (chosen, height, width, ...).
        chosen: int32, (chosen,), which images of the batch they are; `None` for all.
    """

    images: Any
    gain: Any
    active: Any
    sizes: Any
    fields: Any
    chosen: Any

    @property
    def all_fields(self) -> Any:
        """The fields of all images of the batch, zero for those that stay."""
        if self.chosen is None:
            return self.fields
        batch = ops.shape(self.images)[:1]
        shape = (*batch, *ops.shape(self.fields)[1:])
        return ops.scatter_update(ops.zeros(shape), self.chosen[:, None], self.fields)


class Step(NamedTuple):
    """The train step that is being traced or run, as the layers in it need it.

    Attributes:
        model: the model that is trained.
        pack: `(images, chosen) -> inputs` of the model; see `images_among`. For a layer
            inside the model these are the real inputs, whatever the images.
        labels: the true labels of the batch.
        strength: factor in [0, 1] on the drawn strengths.
        look_at: takes `(layer, images)`, the images as they reach a layer.
        count: takes `(layer, augmented)`, what a layer made of them.
    """

    model: keras.Model
    pack: Callable[..., Any]
    labels: Any
    strength: Any
    look_at: Callable[[Any, Any], None]
    count: Callable[[Any, Augmented], None]


@dataclasses.dataclass
class Probe:
    """What a layer inside a model emits during its own gradient pass."""

    layer: Any
    images: Any
    calls: int = 0


# Of each thread its own: replicas are traced in threads that take turns.
_STEP = contextvars.ContextVar("step", default=None)
_PROBE = contextvars.ContextVar("probe", default=None)


@contextlib.contextmanager
def during(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    """Gives a context variable a value for a while."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def during_step(step: Step) -> contextlib.AbstractContextManager:
    """Lets the layers that are called meanwhile know the step they are in."""
    return during(_STEP, step)


@dataclasses.dataclass(frozen=True)
class Binding:
    """Holds the bound model where Keras does not track its weights."""

    model: keras.Model | None = None
    loss: Any = None
    snapshot: WeightSnapshot | None = None
    inside: bool = False  # whether the layer is a part of the model


class StructuredAdversary(keras.layers.Layer):
    """Base of the layers that move images along the structured gradient of a loss.

    Subclasses say what a field is: `draw_strength`, `make_field`, `compose`, `apply`.

    Args:
        rate: the fraction of the images that is augmented, in [0, 1]. The gradient
            is computed for `ceil(rate * batch)` images only.
        target: `None` to ascend the loss of the true label; `"most_confident_wrong"`
            or `"random"` to descend the loss of a wrong one.
        steps: how often gradient, solve and application are repeated, >= 1; each
            repetition has the full strength.
        loss: a loss as `model.compile` takes it; `None` for the model's own.
        value_range: the lowest and the highest value of the images.
        seed: integer; `None` for a random one.
        data_format: `"channels_last"` or `"channels_first"`; `None` for Keras' own.
        bounding_box_format: how the `"boxes"` of `"bounding_boxes"` are meant, as
            `keras.utils.bounding_boxes` names it, e.g. `"xyxy"`.
        **kwargs: `name` and `dtype`, as for every layer.
    """

    def __init__(
        self,
        *,
        rate: float = 0.5,
        target: str | None = None,
        steps: int = 1,
        loss: Any = None,
        value_range: tuple[float, float] = (0, 255),
        seed: int | None = None,
        data_format: str | None = None,
        bounding_box_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)  # labels keep their dtype
        if not isinstance(rate, numbers.Real) or not 0 <= rate <= 1:
            raise ValueError(f"Received rate={rate!r}. Pass a fraction in [0, 1].")
        if target not in _TARGETS:
            raise ValueError(
                f"Received target={target!r}. Pass one of {_TARGETS}, or give labels "
                'with each call: layer({"images": ..., "labels": ..., "targets": ...}).'
            )
        if not isinstance(steps, numbers.Integral) or steps < 1 or steps is True:
            raise ValueError(f"Received steps={steps!r}. Pass an integer >= 1.")
        self.rate = float(rate)
        self.target = target
        self.steps = int(steps)
        self.loss = loss
        self.value_range = range_pair("value_range", value_range)
        self.seed = seed
        self.data_format = data_format or keras.config.image_data_format()
        if self.data_format not in ("channels_last", "channels_first"):
            raise ValueError(
                f"Received data_format={data_format!r}. Pass "
                '"channels_last" or "channels_first".'
            )
        if bounding_box_format not in (None, *BOX_FORMATS):
            raise ValueError(
                f"Received bounding_box_format={bounding_box_format!r}. Pass one of "
                f"{BOX_FORMATS}."
            )
        self.bounding_box_format = bounding_box_format
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.binding = Binding()
        self._values_checked = False
        self.built = True

    def bind(self, model: keras.Model, loss: Any = None, snapshot: bool = False):
        """Tells the layer whose loss its gradients are taken of.

        Args:
            model: the model; it may be the one that the layer is in. It is read at
                each call, so that the gradients are those of the weights at that time;
                on JAX not while `fit` runs, which keeps the weights elsewhere. It is
                neither tracked nor saved nor copied with the layer.
            loss: overrides the layer's own `loss` and the model's compiled one.
            snapshot: whether to take the gradients of a copy of the weights instead,
                which lies on the CPU, so that a `tf.data` pipeline can use it while the
                model is trained elsewhere; see `RefreshSnapshot`.

        Returns:
            The layer itself.

        Raises:
            TypeError: if `model` is not a Keras model.
            ValueError: for a snapshot of a model that is not built.
        """
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"Received model={model!r} of type {type(model).__name__}. Bind to a "
                "keras.Model."
            )
        copy = WeightSnapshot(model) if snapshot else None
        inside = any(layer is self for layer in adversaries_in(model))
        self.binding = Binding(model, loss, copy, inside)
        return self

    def draw_uniform(self, count: Any) -> Any:
        """Returns `count` draws from U(0, 1), float32, (count,)."""
        # By integers: TensorFlow draws other floats with XLA than without.
        draw = keras.random.randint((count,), 0, 2**24, seed=self.seed_generator)
        return ops.cast(draw, "float32") / 2**24

    # What a subclass defines.

    strength_name: str
    """The argument from which the strengths are drawn."""

    scale_name: str
    """The argument that, if it is given, scales the fields of all images alike."""

    measure_name: str
    """What `measure` is called in the `History`."""

    moves_pixels: bool
    """Whether the field moves what is in the image, and so masks, boxes and points."""

    uses_value_range: bool = False
    """Whether the layer does to the images what depends on `value_range`."""

    extra_keys: tuple[str, ...] = ()
    """Keys of a dict of data that `make_field` and `decode` take as arguments."""

    def make_field(
        self, images: Any, gradients: Any, strength: Any, **extra: Any
    ) -> Any:
        """Returns the fields for channels-last images, their gradients, strengths."""
        raise NotImplementedError

    def compose(self, first: Any, second: Any) -> Any:
        """Returns the field that does what `first` and then `second` do."""
        raise NotImplementedError

    def encode(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the lowest frequencies of what the field is made from."""
        raise NotImplementedError

    def decode(
        self, images: Any, codes: Any, size: int, strength: Any, **extra: Any
    ) -> Any:
        """Returns the fields for channels-last images and the codes of `encode`."""
        raise NotImplementedError

    def size_of(self, field: Any) -> Any:
        """Returns the size of each field, float32, (batch,), in the strength's unit."""
        raise NotImplementedError

    def apply(self, images: Any, field: Any) -> Any:
        """Returns channels-last float32 images changed by a field."""
        raise NotImplementedError

    def move(self, data: dict, field: Any, images: Any) -> dict:
        """Returns the entries of `data` that have to move with the images, moved.

        Args:
            data: labels, masks, boxes, points, under the keys of `call`.
            field: the field of each image.
            images: the images, for their shape.
        """
        return {}

    def is_mask(self, x: Any, images: Any) -> bool:
        """Returns whether labels or weights are of the pixels and move with them."""
        return False

    # What all of them do alike.

    def _set_strength(self, value: Any) -> None:
        """Sets the argument from which the strengths are drawn, a number or a pair."""
        self._strength_range = strength_range(self.strength_name, value)
        pair = isinstance(value, (tuple, list))
        kept = self._strength_range if pair else self._strength_range[1]
        setattr(self, self.strength_name, kept)

    def draw_strength(self, count: Any) -> Any:
        """Returns the random strength of each of `count` images, float32, (count,)."""
        low, high = self._strength_range
        return low + (high - low) * self.draw_uniform(count)

    def measure(self, field: Any, strength: Any) -> Any:
        """Returns the size of each field, float32, (batch,), in the strength's unit."""
        if getattr(self, self.scale_name) is None and self.steps == 1:
            return ops.where(is_zero(field), 0.0, strength)  # as it was made
        return self.size_of(field)

    # The way of the data.

    def augment(
        self,
        images: Any,
        labels: Any = None,
        targets: Any = None,
        strength: Any = 1.0,
        extra: dict | None = None,
        pack: Callable[..., Any] | None = None,
    ) -> Augmented:
        """Augments a batch for the bound model.

        Args:
            images: (batch, height, width, channels), or channels first.
            labels: as the model's loss takes them; `None` for the model's own.
            targets: labels to approach instead of the layer's `target`.
            strength: factor in [0, 1] on the drawn strengths.
            extra: what came under the `extra_keys`, one entry for each image.
            pack: `(images, chosen) -> inputs` of the model; see `images_among`. `None`
                where the images are the only input.

        Returns:
            An `Augmented`.
        """
        images = ops.cast(images, "float32")
        chosen, active = self._choose(images)
        pick = (lambda x: x) if chosen is None else _picker(chosen)
        originals, labels, targets = pick(images), pick(labels), pick(targets)
        extra = {key: pick(value) for key, value in (extra or {}).items()}
        drawn = strength * active * self.draw_strength(ops.shape(originals)[0])

        forward = self._forward(
            None if pack is None else functools.partial(pack, chosen=chosen)
        )
        current, field, gain = originals, None, 0.0
        for _ in range(self.steps):
            gradients = self.gradient(forward, current, labels, targets)
            # To the layers before this one in a model, the field is a constant.
            step = self.make_field(
                self._channels_last(ops.stop_gradient(current)),
                self._channels_last(gradients),
                drawn,
                **extra,
            )
            field = step if field is None else self.compose(field, step)
            moved = self._applied(originals, field)
            rise = ops.sum(gradients * (moved - current), axis=(1, 2, 3))
            gain = gain + ops.where(is_zero(step), 0.0, rise)
            current = moved
        if chosen is not None:
            current = ops.scatter_update(images, chosen[:, None], current)
        sizes = self.measure(field, drawn)
        return Augmented(current, gain, active, sizes, field, chosen)

    def augment_from_codes(
        self,
        images: Any,
        codes: Any,
        found: Any,
        size: int,
        strength: Any = 1.0,
        extra: dict | None = None,
    ) -> Augmented:
        """Augments a batch by gradients that were kept as codes.

        Args:
            images: (batch, height, width, channels), or channels first.
            codes: float32, (batch, length), as `encode` made them.
            found: bool, (batch,); the other images stay as they are.
            size: the k of `encode`.
            strength: factor in [0, 1] on the drawn strengths.
            extra: what came under the `extra_keys`, one entry for each image.

        Returns:
            An `Augmented` without a gain.
        """
        images = ops.cast(images, "float32")
        active = ops.cast(found, "float32")
        chosen, picked = self._choose(images)
        if chosen is not None:
            # All images are moved, some of them by nothing: no gradient is saved by
            # picking some, and picking and putting back costs more than moving.
            none = ops.zeros_like(active)
            picked = ops.scatter_update(none, chosen[:, None], picked)
        active = active * picked
        drawn = strength * active * self.draw_strength(ops.shape(images)[0])
        field = self.decode(
            self._channels_last(images), codes, size, drawn, **(extra or {})
        )
        moved = self._applied(images, field)
        return Augmented(moved, None, active, self.measure(field, drawn), field, None)

    def check_values(self, lowest: float, highest: float) -> None:
        """Warns once if images with these extremes are not those of `value_range`."""
        if not -math.inf < lowest < highest < math.inf:
            return  # which says nothing
        self._values_checked = True
        low, high = self.value_range
        span = high - low
        outside = lowest < low - 0.01 * span or highest > high + 0.01 * span
        usual = [(0, 1), (-1, 1), (0, 255), (math.floor(lowest), math.ceil(highest))]
        likely = next(x for x in usual if x[0] <= lowest and highest <= x[1])
        if outside or highest < low + 0.03 * span:
            warnings.warn(
                f"Layer {self.name!r} has value_range={self.value_range}, and met "
                f"images with values from {lowest:.3g} to {highest:.3g}. It measures "
                "its changes by that range and clips to it: pass the range of the "
                f"images, e.g. value_range={likely}.",
                stacklevel=2,
            )

    def check_reuse(self) -> None:
        """Raises a `ValueError` where the gradient of training cannot serve."""
        loss = self._loss_in_use
        if self.target is not None or self.steps > 1 or loss is not None:
            raise ValueError(
                f"Received a layer with target={self.target!r}, steps={self.steps} and "
                f"loss={loss!r}. A reused gradient is the one of the training "
                'loss, taken once: leave these arguments, or pass gradient="fresh".'
            )
        scale = getattr(self, self.scale_name)
        if scale is not None:
            raise ValueError(
                f"Received a layer with {self.scale_name}={scale}. Of a reused "
                f"gradient only the direction is kept: leave {self.scale_name}=None, "
                'or pass gradient="fresh".'
            )

    def code_length(self, images: Any, size: int) -> int:
        """Returns how many numbers the code of one of these images has."""
        return self.code_of(images[:1], images[:1], size).shape[1]

    def code_of(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the code of each gradient, (batch, length); layout as the images."""
        images, gradients = (
            self._channels_last(ops.cast(x, "float32")) for x in (images, gradients)
        )
        code = self.encode(images, gradients, size)
        return ops.reshape(code, (-1, math.prod(code.shape[1:])))

    def gradient(
        self,
        forward: Callable[[Any], Any],
        images: Any,
        labels: Any,
        targets: Any,
    ) -> Any:
        """Returns the adversarial gradient of the bound model, as the images are."""
        target = self.target if targets is None else targets
        if isinstance(target, str) and target == "random":
            target = functools.partial(random_wrong, seed=self.seed_generator)
        loss = self._loss_in_use
        model = self.binding.model
        return gradients_of(model, forward, images, labels, loss=loss, target=target)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns what `call` returns; keys that it does not know are not touched."""
        check_native((images, args, kwargs))
        images, *args = (_as_array(x) for x in (images, *args))
        kwargs = {k: x if k == "training" else _as_array(x) for k, x in kwargs.items()}
        if not isinstance(images, dict):
            _check_dense(images)
            return super().__call__(images, *args, **kwargs)
        if "images" not in images:
            raise ValueError(
                f"Received a dict with the keys {sorted(images)}. Pass the images "
                'under the key "images".'
            )
        _check_dense(images["images"])
        moved = _MOVED if self.moves_pixels else ()
        keys = {*_KEYS, *moved, *self.extra_keys, *self._inputs_beside}
        known = {
            key: _as_array(x)
            for key, x in images.items()
            if key in keys and x is not None
        }
        result = super().__call__(known, *args, **kwargs)
        data, *others = result if isinstance(result, tuple) else (result,)
        changed = {key: data[key] for key in (*_KEYS[:2], *_MOVED) if key in data}
        merged = {**images, **changed}
        return (merged, *others) if others else merged

    @property
    def _inputs_beside(self) -> list[str]:
        """The names of what the bound model takes beside its input "images"."""
        inputs = getattr(self.binding.model, "input", None)
        if isinstance(inputs, dict) and "images" in inputs:
            return [key for key in inputs if key != "images"]
        return []

    def call(
        self,
        images: Any,
        labels: Any = None,
        sample_weight: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Returns the augmented data in the structure in which it came.

        A layer that moves what is in an image moves with it, in a dict, the
        `"segmentation_masks"`, `"bounding_boxes"` and `"keypoints"`, and labels and
        weights that have the height and width of the images, as masks.

        Args:
            images: one image (rank 3), a batch (rank 4), or a dict with the key
                `"images"` and, if there are any, `"labels"`, `"targets"`, and what the
                model takes beside the images.
            labels: one for each image, in the form that the loss takes.
            sample_weight: passed through; it does not enter the gradient.
            training: `False` for the identity. `None`, in which no layer around this
                one knew the mode either, is training where the layer is called by
                itself, and inference inside its model.

        Returns:
            Images alone, `(images, labels)`, `(images, labels, sample_weight)` or a
            dict, as the arguments were. The images have the layer's compute dtype;
            everything else keeps its own.
        """
        data = images if isinstance(images, dict) else {"images": images}
        beside = {"labels": labels, "sample_weight": sample_weight}
        beside = {key: x for key, x in beside.items() if x is not None}
        given = {**data, **beside}
        out = {**given, **self._augment_data(given, training)}
        first = {key: out[key] for key in data}
        first = first if isinstance(images, dict) else first["images"]
        return (first, *(out[key] for key in beside)) if beside else first

    def compute_output_spec(
        self,
        images: Any,
        labels: Any = None,
        sample_weight: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Returns the symbolic outputs of `call`."""

        def spec(x: Any) -> keras.KerasTensor:
            return keras.KerasTensor(x.shape, dtype=x.dtype)

        data = images if isinstance(images, dict) else {"images": images}
        out = keras.KerasTensor(data["images"].shape, dtype=self.compute_dtype)
        if isinstance(images, dict):
            out = {**keras.tree.map_structure(spec, images), "images": out}
        beside = [x for x in (labels, sample_weight) if x is not None]
        return (out, *keras.tree.map_structure(spec, beside)) if beside else out

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the images out, which is that of the images in."""
        return input_shape

    def get_config(self) -> dict:
        """Returns every constructor argument; the bound model is not one."""
        loss = self.loss
        if not (loss is None or isinstance(loss, str)):
            loss = keras.saving.serialize_keras_object(loss)
        return {
            **super().get_config(),
            "rate": self.rate,
            "target": self.target,
            "steps": self.steps,
            "loss": loss,
            "value_range": self.value_range,
            "seed": self.seed,
            "data_format": self.data_format,
            "bounding_box_format": self.bounding_box_format,
        }

    @classmethod
    def from_config(cls, config: dict) -> "StructuredAdversary":
        """Returns a layer from what `get_config` returned."""
        if isinstance(config.get("loss"), dict):
            loss = keras.saving.deserialize_keras_object(config["loss"])
            config = {**config, "loss": loss}
        return super().from_config(config)

    @property
    def checks_values(self) -> bool:
        """Whether the values of the images have yet to be held against the range."""
        return self.uses_value_range and self.rate > 0 and not self._values_checked

    @property
    def _loss_in_use(self) -> Any:
        """The loss that overrides the model's own, `None` if none does."""
        return self.loss if self.binding.loss is None else self.binding.loss

    def _augment_data(self, data: dict, training: bool | None) -> dict:
        """Returns the images and what moves with them."""
        images = data["images"]
        probe, step = _PROBE.get(), _STEP.get()
        if probe is not None and probe.layer is self:
            probe.calls += 1
            return {"images": ops.cast(probe.images, self.compute_dtype)}
        if len(images.shape) not in (3, 4):
            raise ValueError(
                f"Received images of shape {tuple(images.shape)}. Pass one image of "
                "rank 3 or a batch of rank 4."
            )
        in_step = step is not None and step.model is self.binding.model
        if training is None:
            ours = self.binding.model is not None and not self.binding.inside
            training = in_step or ours or not framework().is_nested_call(self)
        nothing = self.rate == 0 or images.shape[0] == 0
        if not training or nothing or infers_shapes():
            return {"images": ops.cast(images, self.compute_dtype)}
        single = len(images.shape) == 3
        if single:
            data = keras.tree.map_structure(
                lambda x: None if x is None else ops.convert_to_tensor(x)[None], data
            )
        images, labels, targets = (data.get(key) for key in _KEYS)
        extra = {key: data[key] for key in self.extra_keys if key in data}
        for name, x in {"labels": labels, "targets": targets, **extra}.items():
            for entry in keras.tree.flatten(x):
                if entry is not None:
                    check_length(name, entry, images)
        strength, pack = 1.0, None
        if beside := {key: data[key] for key in self._inputs_beside if key in data}:
            _, pack = images_among({"images": images, **beside})
        if in_step:
            strength, pack = step.strength, step.pack
            labels = step.labels if labels is None else labels
            self._check_labels_outside(step.labels, images)
            step.look_at(self, images)
        elif (
            self.checks_values
            and (seen := framework().visible(images)) is not None
            and seen.size
        ):
            self.check_values(float(seen.min()), float(seen.max()))
        augment = framework().apart(self.augment)
        augmented = augment(images, labels, targets, strength, extra, pack)
        if in_step:
            step.count(self, augmented)
        out = {"images": ops.cast(augmented.images, self.compute_dtype)}
        if self.moves_pixels and set(data) & {*_MAY_BE_MASKS, *_MOVED}:
            out |= self.move(data, augmented.all_fields, images)
        return keras.tree.map_structure(lambda x: x[0], out) if single else out

    def _forward(self, inputs: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
        """Returns the way from images at this layer to the predictions of the model.

        A layer inside the model emits the images itself in this pass, so that the
        gradient is that of the rest of the model.
        """
        model, snapshot = self.binding.model, self.binding.snapshot
        if model is None:
            raise ValueError(
                f"Layer {self.name!r} was called with training=True before it was "
                "bound to a model. Call layer.bind(model), or train with "
                "callbacks=[AdversarialTraining(layer)], or, if the layer is inside "
                "the model, with callbacks=[AdversarialTraining()]. For inference, "
                "pass training=False."
            )
        if inputs is None:
            given = _inputs_before if self.binding.inside else _only_input
            inputs = functools.partial(given, model)
        # All steps see the weights of one time.
        inference = Inference(model, () if snapshot is None else snapshot.values())

        def forward(images: Any) -> Any:
            probe = Probe(self, images)
            given = inputs(images)
            if not (model.built or self.binding.inside or keras.tree.is_nested(given)):
                model.build(given.shape)
            with during(_PROBE, probe):
                predictions = inference(given)
            if probe.calls > 1:
                raise ValueError(
                    f"Layer {self.name!r} is called {probe.calls} times in model "
                    f"{model.name!r}. Use one layer for each call."
                )
            return predictions

        return forward

    def _check_labels_outside(self, labels: Any, images: Any) -> None:
        """Raises a `ValueError` for labels that this layer, inside a model, leaves."""
        for entry in keras.tree.flatten(labels):
            if entry is not None and self.is_mask(entry, images):
                raise ValueError(
                    f"Received labels of shape {tuple(entry.shape)} for images of "
                    f"shape {tuple(images.shape)}. A layer inside the model cannot "
                    "move them with the images: leave it out of the model and pass it "
                    "to AdversarialTraining."
                )

    def _choose(self, images: Any) -> tuple[Any, Any]:
        """Returns the places of the chosen images, and 1.0 for each that is active."""
        batch = ops.shape(images)[0]
        if self.rate == 1:
            return None, ops.ones((batch,))
        if isinstance(batch, int):
            expected = round(self.rate * batch, 6)  # 0.1 * 30 is not quite 3
            count = math.ceil(expected)
        else:
            expected = ops.cast(self.rate * ops.cast(batch, "float64"), "float32")
            expected = ops.round(expected * 1024) / 1024
            count = ops.cast(ops.ceil(expected), "int32")
        chosen = ops.cast(ops.argsort(self.draw_uniform(batch))[:count], "int32")
        # The last one makes up for the fraction: it is active with that probability.
        place = ops.arange(count, dtype="float32")
        return chosen, ops.cast(place + self.draw_uniform(1) < expected, "float32")

    def _applied(self, images: Any, field: Any) -> Any:
        """Returns images as they came, changed by a field."""
        moved = self._as_came(self.apply(self._channels_last(images), field))
        # A field of zeros is the identity, also where a pixel is not finite.
        still = ops.broadcast_to(
            is_zero(field)[:, None, None, None], ops.shape(images)
        )  # at full size, because TensorFlow selects slowly where it has to broadcast
        return ops.where(still, images, moved)

    def _channels_last(self, x: Any) -> Any:
        if self.data_format == "channels_first":
            return ops.transpose(x, (0, 2, 3, 1))
        return x

    def _as_came(self, x: Any) -> Any:
        if self.data_format == "channels_first":
            return ops.transpose(x, (0, 3, 1, 2))
        return x


def _as_array(x: Any) -> Any:
    """Returns numbers and lists of numbers as an array, and all else as it came."""
    leaves = keras.tree.flatten(x) if isinstance(x, (list, tuple)) else [x]
    return np.asarray(x) if all(isinstance(y, numbers.Number) for y in leaves) else x


def _check_dense(images: Any) -> None:
    if getattr(images, "ragged_rank", None):  # symbolic tensors have one of None
        raise ValueError(
            f"Received ragged images of shape {tuple(images.shape)}. A flow and a "
            "recolouring are solved for images of one size: resize or pad the images "
            "(keras.layers.Resizing, images.to_tensor()) before this layer."
        )


def _only_input(model: keras.Model, images: Any) -> Any:
    """Returns images as the only input of a model."""
    structure = getattr(model, "input", None)
    names = keras.tree.flatten(structure)
    if len(names) > 1:
        raise ValueError(
            f"Received images alone for model {model.name!r}, which takes "
            f"{len(names)} inputs. Pass a dict with the images under the key "
            '"images" and the other inputs under theirs, or, if the layer is inside '
            "the model, train with callbacks=[AdversarialTraining()]."
        )
    nested = keras.tree.is_nested(structure) and len(names) == 1
    return keras.tree.pack_sequence_as(structure, [images]) if nested else images


def _inputs_before(model: keras.Model, images: Any) -> Any:
    """Returns what the model of a layer inside it may have got, images of the layer.

    They only have to pass through what is before the layer, which emits the images
    itself. Where the layers before it change the size, they are zeros.
    """
    images = ops.stop_gradient(images)
    shape = getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and shape and not isinstance(shape[0], tuple):
        sizes = zip(shape[1:], (*images.shape[1:], *(None for _ in shape)))
        shape = tuple(own if own is not None else given for own, given in sizes)
        if None not in shape and shape != tuple(images.shape[1:]):
            images = ops.zeros((ops.shape(images)[0], *shape))
    return _only_input(model, images)


def adversaries_in(layer: keras.layers.Layer) -> list["StructuredAdversary"]:
    """Returns the adversarial layers inside a model, however deep."""
    found, seen, waiting = [], set(), [layer]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, StructuredAdversary):
            found.append(one)
            continue
        # Layers that are made of others keep them in attributes, or lists of them.
        for value in (*getattr(one, "layers", ()), *vars(one).values()):
            entries = value.values() if isinstance(value, dict) else [value]
            if isinstance(value, (list, tuple)):
                entries = value
            waiting += [x for x in entries if isinstance(x, keras.layers.Layer)]
    return found


def is_zero(field: Any) -> Any:
    """Returns, for each field, whether it is zero everywhere, bool, (batch,)."""
    return ops.all(field == 0, axis=(1, 2, 3))


def _picker(chosen: Any) -> Callable[[Any], Any]:
    def pick(x: Any) -> Any:
        return None if x is None else ops.take(x, chosen, axis=0)

    return lambda x: keras.tree.map_structure(pick, x)


def strength_range(name: str, value: Any) -> tuple[float, float]:
    """Returns the (low, high) from which a layer draws, for a number or a pair.

    Raises:
        ValueError: if it is neither, or out of range.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (0.0, value)
    numeric = len(pair) == 2 and all(isinstance(x, numbers.Real) for x in pair)
    if not numeric or not 0 <= pair[0] <= pair[1] < float("inf"):
        raise ValueError(
            f"Received {name}={value!r}. Pass a number >= 0, to draw from "
            f"U(0, {name}), or a pair (low, high) with 0 <= low <= high."
        )
    return float(pair[0]), float(pair[1])
