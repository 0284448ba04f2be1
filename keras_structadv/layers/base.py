"""What the adversarial layers share: arguments, the bound model, the configuration."""

import functools
import math
from typing import Any

import keras

from keras_structadv.backends import WeightSnapshot, framework
from keras_structadv.checks import (
    check_fraction,
    is_one_of,
    range_pair,
    strength_range,
)
from keras_structadv.gradients.labels import TARGETS
from keras_structadv.layers.adversary import Adversary
from keras_structadv.layers.arguments import argument_names, check_names
from keras_structadv.layers.binding import Binding
from keras_structadv.layers.layout import Layout
from keras_structadv.layers.masks_boxes_points import BOX_FORMATS
from keras_structadv.layers.selection import seed_for
from keras_structadv.layers.steps import Steps
from keras_structadv.layers.value_range import check_values

_TARGETS = (None, *TARGETS)
OF_GRADIENTS = ("target", "steps", "step_size", "random_start", "loss")
"""Arguments that have no meaning for random fields."""


class StructuredAdversary(Adversary):
    """Base of the layers that move images along the structured gradient of a loss.

    A subclass defines the field by the methods of `Hooks`: `make_field`, `compose`,
    `apply`, `size_of`, `encode`, `decode`, and `move` where it moves pixels.

    Args:
        rate: the fraction of the images that is augmented, in [0, 1]. The gradient
            is computed for `ceil(rate * batch)` images only.
        target: `None` to ascend the loss of the true label; `"most_confident_wrong"`
            or `"random"` to descend the loss of a wrong one.
        steps: how often gradient, solve and application are repeated, >= 1. The
            strength bounds the whole field.
        step_size: the size of each step, > 0, as a fraction of the strength. `None`
            for 1 with one step, 2.5 / steps with several.
        random_start: whether a random field of the drawn strength comes first, and the
            gradient is taken there. Fields then differ from epoch to epoch.
        loss: a loss as `model.compile` takes it; `None` for the model's own.
        value_range: the lowest and the highest value of the images.
        seed: integer; `None` for a random one.
        data_format: `"channels_last"` or `"channels_first"`; `None` for Keras' own.
        bounding_box_format: format of the `"boxes"` of `"bounding_boxes"`, a name of
            `keras.utils.bounding_boxes` such as `"xyxy"`.
        name: of the layer.
        dtype: as for every Keras layer. Fields are computed in float32.
        **kwargs: further arguments of `keras.layers.Layer`, e.g. `trainable`.
    """

    strength_name: str
    """The argument from which the strengths are drawn."""

    scale_name: str
    """The argument that, if it is given, scales the fields of all images alike."""

    measure_name: str
    """The name of the mean size of the fields in `History`."""

    fixed_arguments: tuple[str, ...] = ()
    """Arguments of a base class that a subclass fixes and does not take itself."""

    def __init__(
        self,
        *,
        rate: float = 0.5,
        target: str | None = None,
        steps: int = 1,
        step_size: float | None = None,
        random_start: bool = False,
        loss: Any = None,
        value_range: tuple[float, float] = (0, 255),
        seed: int | None = None,
        data_format: str | None = None,
        bounding_box_format: str | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        self._check_names(kwargs)
        super().__init__(name=name, dtype=dtype, **kwargs)
        if not is_one_of(target, _TARGETS):
            raise ValueError(
                f"Received target={target!r}. Pass one of {_TARGETS}, or give labels "
                'with each call: layer({"images": ..., "labels": ..., "targets": ...}).'
            )
        if not is_one_of(bounding_box_format, (None, *BOX_FORMATS)):
            raise ValueError(
                f"Received bounding_box_format={bounding_box_format!r}. Pass one of "
                f"{BOX_FORMATS}."
            )
        self.rate = check_fraction("rate", rate)
        self.target = target
        self.steps = Steps.checked(steps, step_size, random_start).count
        self.step_size = None if step_size is None else float(step_size)
        self.random_start = random_start
        self.loss = loss
        self.value_range = range_pair("value_range", value_range)
        self.seed = seed
        self.layout = Layout.named(data_format)
        self.data_format = self.layout.data_format
        self.bounding_box_format = bounding_box_format
        self.seed_generator = keras.random.SeedGenerator(self.stream())
        if random_start or not self.takes_gradient:
            # Of its own, so that the other draws stay paired between kinds of fields.
            noise = self.stream("noise")
            self.noise_generator = keras.random.SeedGenerator(noise)
        self.binding = Binding()
        self._values_checked = False
        self._layout_checked = False

    @classmethod
    def _check_names(cls, unknown: dict) -> None:
        """Raises a `TypeError` for an argument that no layer has, with a hint."""
        if unknown:
            names = argument_names(cls, StructuredAdversary) - set(cls.fixed_arguments)
            check_names(cls.__name__, unknown, names, cls.strength_name)

    def bind(
        self, model: keras.Model, loss: Any = None, snapshot: bool = False
    ) -> "StructuredAdversary":
        """Sets the model that the layer attacks.

        Args:
            model: the model; it may contain the layer. Each call reads its weights
                anew. (Not during `fit` on JAX, which keeps the weights elsewhere
                meanwhile.) The layer neither tracks, saves nor copies the model.
            loss: overrides the layer's own `loss` and the model's compiled one.
            snapshot: whether to attack a copy of the weights on the CPU, so that a
                `tf.data` pipeline can use it while the model is trained elsewhere; see
                `RefreshSnapshot`.

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
        self.binding = Binding(model, loss, copy)
        return self

    def stream(self, purpose: str = "") -> int | None:
        """Returns the seed of some draws, another one for flows than for recolourings.

        Otherwise two layers with one seed would choose the same images and strengths.
        """
        return seed_for(f"{self.strength_name}{purpose}", self.seed)

    def _set_strength(self, value: Any) -> None:
        """Sets the argument from which the strengths are drawn, a number or a pair."""
        low, high = strength_range(self.strength_name, value)
        kept = (low, high) if isinstance(value, (tuple, list)) else high
        setattr(self, self.strength_name, kept)
        self.check_unit(kept, high)

    def check_unit(self, value: Any, highest: float) -> None:
        """Warns of a strength that seems to be in another unit than the layer's."""

    @property
    def can_change(self) -> bool:
        """Whether the arguments allow any change at all."""
        return self.rate > 0 and getattr(self, self.strength_name) not in (0, (0, 0))

    def strength_bounds(self, images: Any) -> tuple[float, float]:
        """Returns the bounds of the strengths for channels-last images."""
        return strength_range(self.strength_name, getattr(self, self.strength_name))

    @property
    def checks_values(self) -> bool:
        """Whether the values of the images are still to be compared with the range."""
        return self.uses_value_range and self.rate > 0 and not self._values_checked

    def check_layout(self, images: Any) -> None:
        """Warns once of images that seem to have the other layout."""
        if not self._layout_checked:
            self._layout_checked = self.layout.check(images, self.name)

    def check_visible_values(self, images: Any) -> None:
        """Warns once of images outside `value_range`, where no program is traced."""
        if self.checks_values:
            seen = framework().visible(images)
            if seen is not None and seen.size:
                self.check_values(float(seen.min()), float(seen.max()))

    def check_values(self, lowest: float, highest: float) -> None:
        """Warns once if images with these extremes do not fit `value_range`."""
        if -math.inf < lowest < highest < math.inf:  # other extremes tell nothing
            self._values_checked = True
            check_values(self.name, self.value_range, lowest, highest)

    @property
    def loss_in_use(self) -> Any:
        """The loss that overrides the model's own, `None` if none does."""
        return self.loss if self.binding.loss is None else self.binding.loss

    def __getattr__(self, name: str) -> Any:
        """Raises an `AttributeError`; says what to do where a callback was expected."""
        if name in ("on_batch_end", "set_model", "set_params"):
            raise AttributeError(
                f"Received layer {self.name!r} among the callbacks. Pass "
                "callbacks=[AdversarialTraining(layer)]."
            )
        other = getattr(super(), "__getattr__", None)
        if other is not None:  # PyTorch keeps parameters there
            return other(name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}.")

    def arguments(self) -> dict:
        """Returns the constructor's arguments by name, except `name` and `dtype`.

        Those of a subclass count where they are attributes.
        """
        names = argument_names(type(self), StructuredAdversary)
        names -= {"name", "dtype", *self.fixed_arguments}
        return {
            name: getattr(self, name) for name in sorted(names) if hasattr(self, name)
        }

    def twin(self) -> "StructuredAdversary | None":
        """Returns one unbound layer for all layers with these arguments.

        Programs that are compiled for it serve all of them. The strength, which is
        drawn, and the arguments around the gradient do not count. `None` for a class
        that is not `stateless`.
        """
        kind: Any = type(self)
        if not vars(kind).get("stateless"):
            return None
        neutral = {"seed": 0, "rate": 1.0, "loss": None, self.strength_name: 0.0}
        return _twin(kind, tuple({**self.arguments(), **neutral}.items()))

    def get_config(self) -> dict:
        """Returns every constructor argument; the bound model is not one."""
        config = {**super().get_config(), **self.arguments()}
        if not (self.loss is None or isinstance(self.loss, str)):
            config["loss"] = keras.saving.serialize_keras_object(self.loss)
        return config

    @classmethod
    def from_config(cls, config: dict) -> "StructuredAdversary":
        """Returns a layer from the result of `get_config`."""
        if isinstance(config.get("loss"), dict):
            loss = keras.saving.deserialize_keras_object(config["loss"])
            config = {**config, "loss": loss}
        return super().from_config(config)


def as_layers(layer: Any, what: str) -> tuple[StructuredAdversary, ...]:
    """Returns a layer or a list of layers as a tuple.

    Args:
        layer: what was passed.
        what: what to pass, for the error.

    Raises:
        ValueError: if anything else was passed.
    """
    layers = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
    if not layers or not all(isinstance(x, StructuredAdversary) for x in layers):
        raise ValueError(f"Received layer={layer!r}. Pass {what}, or a list of them.")
    return layers


@functools.cache
def _twin(kind: Any, arguments: tuple) -> StructuredAdversary:
    return kind(**dict(arguments))
