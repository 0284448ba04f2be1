"""What the adversarial layers share: from images and labels to augmented images."""

import dataclasses
import functools
import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_structadv.fields import range_pair
from keras_structadv.gradients import per_image_gradients, visible
from keras_structadv.losses import TARGETS, check_length, random_wrong

_KEYS = ("images", "labels", "targets")
_FIELD_KEYS = ("segmentation_masks", "bounding_boxes", "keypoints")
_TARGETS = (None, *TARGETS)


class Augmented(NamedTuple):
    """What an adversary made of a batch.

    Attributes:
        images: float32, the shape of the images that went in.
        gain: float32, (chosen,), the first-order rise of the adversarial loss; `None`
            if no gradient was taken.
        active: float32, (chosen,), 1 where an image was chosen, else 0.
        sizes: float32, (chosen,), the size of each field, as `measure` tells it.
        fields: the fields of the chosen images, (chosen, height, width, ...).
    """

    images: Any
    gain: Any
    active: Any
    sizes: Any
    fields: Any


@dataclasses.dataclass(frozen=True)
class Binding:
    """Holds the bound model where Keras does not track its weights."""

    model: keras.Model | None = None
    loss: Any = None


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
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.binding = Binding()
        self._values_checked = False
        self.built = True

    def bind(self, model: keras.Model, loss: Any = None, snapshot: bool = False):
        """Tells the layer whose loss its gradients are taken of.

        Args:
            model: a model with one input, images, and one output. It is read at each
                call, so that the gradients are those of the weights at that time.
                It is neither tracked nor saved with the layer.
            loss: overrides the layer's own `loss` and the model's compiled one.
            snapshot: not available yet.

        Returns:
            The layer itself.

        Raises:
            TypeError: if `model` is not a Keras model.
            NotImplementedError: for a snapshot.
        """
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"Received model={model!r} of type {type(model).__name__}. Bind to a "
                "keras.Model."
            )
        if snapshot:
            raise NotImplementedError(
                "Received snapshot=True, which a later release brings. Bind to the "
                "live model, or train with AdversarialTraining."
            )
        self.binding = Binding(model, loss)
        return self

    def draw_uniform(self, count: Any) -> Any:
        """Returns `count` draws from U(0, 1), float32, (count,)."""
        # By integers: TensorFlow draws other floats with XLA than without.
        draw = keras.random.randint((count,), 0, 2**24, seed=self.seed_generator)
        return ops.cast(draw, "float32") / 2**24

    # What a subclass defines.

    measure_name: str
    """What `measure` is called in the `History`."""

    moves_pixels: bool
    """Whether the field moves what is in the image, and so masks, boxes and points."""

    uses_value_range: bool = False
    """Whether the layer does to the images what depends on `value_range`."""

    extra_keys: tuple[str, ...] = ()
    """Keys of a dict of data that `make_field` and `decode` take as arguments."""

    def draw_strength(self, count: Any) -> Any:
        """Returns the random strength of each of `count` images, float32, (count,)."""
        raise NotImplementedError

    def make_field(
        self, images: Any, gradients: Any, strength: Any, **extra: Any
    ) -> Any:
        """Returns the fields for channels-last images, their gradients, strengths."""
        raise NotImplementedError

    def compose(self, first: Any, second: Any) -> Any:
        """Returns the field that does what `first` and then `second` do."""
        raise NotImplementedError

    def encode(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the k x k lowest frequencies of what the field is made from."""
        raise NotImplementedError

    def decode(
        self, images: Any, codes: Any, size: int, strength: Any, **extra: Any
    ) -> Any:
        """Returns the fields for channels-last images and the codes of `encode`."""
        raise NotImplementedError

    def measure(self, field: Any, strength: Any) -> Any:
        """Returns the size of each field, float32, (batch,), in the strength's unit."""
        raise NotImplementedError

    def apply(self, images: Any, field: Any) -> Any:
        """Returns channels-last float32 images changed by a field."""
        raise NotImplementedError

    # The way of the data.

    def augment(
        self,
        images: Any,
        labels: Any = None,
        targets: Any = None,
        strength: Any = 1.0,
        extra: dict | None = None,
    ) -> Augmented:
        """Augments a batch for the bound model.

        Args:
            images: (batch, height, width, channels), or channels first.
            labels: as the model's loss takes them; `None` for the model's own.
            targets: labels to approach instead of the layer's `target`.
            strength: factor in [0, 1] on the drawn strengths.
            extra: what came under the `extra_keys`, one entry for each image.

        Returns:
            An `Augmented`.
        """
        images = ops.cast(images, "float32")
        chosen, active = self._choose(images)
        pick = (lambda x: x) if chosen is None else _picker(chosen)
        originals, labels, targets = pick(images), pick(labels), pick(targets)
        extra = {key: pick(value) for key, value in (extra or {}).items()}
        drawn = strength * active * self.draw_strength(ops.shape(originals)[0])

        current, field, gain = originals, None, 0.0
        for _ in range(self.steps):
            gradients = self.gradient(current, labels, targets)
            step = self.make_field(
                self._channels_last(current),
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
        return Augmented(current, gain, active, sizes, field)

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
        return Augmented(moved, None, active, self.measure(field, drawn), field)

    def check_labels(self, images: Any, labels: Any) -> None:
        """Raises a `NotImplementedError` for labels that would have to move as well."""
        if labels is None or not self.moves_pixels or len(labels.shape) < 3:
            return
        axes = slice(1, 3) if self.data_format == "channels_last" else slice(2, 4)
        size = tuple(images.shape[axes])
        if size in (tuple(labels.shape[1:3]), tuple(labels.shape[2:4])):
            raise NotImplementedError(
                f"Received labels of shape {tuple(labels.shape)} for images of shape "
                f"{tuple(images.shape)}. They seem to be masks or images, which would "
                "have to move with the images: that comes in a later release."
            )

    def check_values(self, lowest: float, highest: float) -> None:
        """Warns once if images with these extremes are not those of `value_range`."""
        if not -math.inf < lowest < highest < math.inf:
            return  # which says nothing
        self._values_checked = True
        low, high = self.value_range
        span = high - low
        outside = lowest < low - 0.01 * span or highest > high + 0.01 * span
        if outside or highest < low + 0.03 * span:
            warnings.warn(
                f"Layer {self.name!r} has value_range={self.value_range}, and met "
                f"images with values from {lowest:.3g} to {highest:.3g}. It measures "
                "its changes by that range and clips to it: pass the range of the "
                "images, e.g. value_range=(0, 1).",
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

    def code_length(self, images: Any, size: int) -> int:
        """Returns how many numbers the code of one of these images has."""
        return self.code_of(images[:1], images[:1], size).shape[1]

    def code_of(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the code of each gradient, (batch, length); layout as the images."""
        images, gradients = (
            self._channels_last(ops.cast(x, "float32")) for x in (images, gradients)
        )
        return self.encode(images, gradients, size)

    def gradient(self, images: Any, labels: Any, targets: Any) -> Any:
        """Returns the adversarial gradient of the bound model, as the images are."""
        model = self.binding.model
        if model is None:
            raise ValueError(
                f"Layer {self.name!r} was called with training=True before it was "
                "bound to a model. Call layer.bind(model), or train with "
                "callbacks=[AdversarialTraining(layer)]."
            )
        target = self.target if targets is None else targets
        if isinstance(target, str) and target == "random":
            target = functools.partial(random_wrong, seed=self.seed_generator)
        return per_image_gradients(
            model, images, labels, loss=self._loss_in_use, target=target
        )

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns what `call` returns; keys that it does not know are not touched."""
        if not isinstance(images, dict):
            args = [np.asarray(x) if _is_python_data(x) else x for x in args]
            return super().__call__(images, *args, **kwargs)
        for key in _FIELD_KEYS:
            if key in images and self.moves_pixels:
                raise NotImplementedError(
                    f"Received the key {key!r}: moving it with the image comes in a "
                    "later release, and leaving it where it was would be wrong."
                )
        if "images" not in images:
            raise ValueError(
                f"Received a dict with the keys {sorted(images)}. Pass the images "
                'under the key "images".'
            )
        known = {
            key: np.asarray(images[key])
            if _is_python_data(images[key])
            else images[key]
            for key in (*_KEYS, *self.extra_keys)
            if images.get(key) is not None
        }
        result = super().__call__(known, *args, **kwargs)
        untouched = {key: images[key] for key in self.extra_keys if key in images}
        return {**images, **result, **untouched}

    def call(
        self,
        images: Any,
        labels: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the augmented data in the structure in which it came.

        Args:
            images: one image (rank 3), a batch (rank 4), or a dict with the key
                `"images"` and, if there are any, `"labels"` and `"targets"`.
            labels: one for each image, in the form that the loss takes.
            sample_weight: passed through; it does not enter the gradient.
            training: `False` for the identity.

        Returns:
            Images alone, `(images, labels)`, `(images, labels, sample_weight)` or a
            dict, as the arguments were. The images have the layer's compute dtype;
            everything else is returned as it came.
        """
        if isinstance(images, dict):
            return {**images, "images": self._augment_data(images, training)}
        augmented = self._augment_data({"images": images, "labels": labels}, training)
        if sample_weight is not None:
            return augmented, labels, sample_weight
        return augmented if labels is None else (augmented, labels)

    def compute_output_spec(
        self,
        images: Any,
        labels: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the symbolic outputs of `call`."""

        def spec(x: Any) -> keras.KerasTensor:
            return keras.KerasTensor(x.shape, dtype=x.dtype)

        data = images if isinstance(images, dict) else {"images": images}
        out = keras.KerasTensor(data["images"].shape, dtype=self.compute_dtype)
        if isinstance(images, dict):
            return {**keras.tree.map_structure(spec, images), "images": out}
        if sample_weight is not None:
            return out, spec(labels), spec(sample_weight)
        return out if labels is None else (out, spec(labels))

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

    def _augment_data(self, data: dict, training: bool) -> Any:
        images, labels, targets = (data.get(key) for key in _KEYS)
        extra = {key: data[key] for key in self.extra_keys if key in data}
        if len(images.shape) not in (3, 4):
            raise ValueError(
                f"Received images of shape {tuple(images.shape)}. Pass one image of "
                "rank 3 or a batch of rank 4."
            )
        if not training or self.rate == 0:
            return ops.cast(images, self.compute_dtype)
        single = len(images.shape) == 3
        if single:
            images, labels, targets, extra = keras.tree.map_structure(
                lambda x: None if x is None else x[None],
                (images, labels, targets, extra),
            )
        for name, x in {"labels": labels, "targets": targets, **extra}.items():
            if x is not None:
                check_length(name, x, images)
        self.check_labels(images, labels)
        if self.checks_values and (seen := visible(images)) is not None and seen.size:
            self.check_values(float(seen.min()), float(seen.max()))
        augmented = self.augment(images, labels, targets, extra=extra).images
        augmented = ops.cast(augmented, self.compute_dtype)
        return augmented[0] if single else augmented

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


def _is_python_data(x: Any) -> bool:
    return isinstance(x, (list, tuple, numbers.Number))


def is_zero(field: Any) -> Any:
    """Returns, for each field, whether it is zero everywhere, bool, (batch,)."""
    return ops.all(field == 0, axis=(1, 2, 3))


def _picker(chosen: Any) -> Callable[[Any], Any]:
    return lambda x: None if x is None else ops.take(x, chosen, axis=0)


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
