"""What a subclass defines: the field, and how it acts on images and annotations."""

from typing import Any

import keras
from keras import ops

from keras_structadv.layers.binding import Binding
from keras_structadv.layers.contract import ImageLayer
from keras_structadv.layers.layout import Layout
from keras_structadv.layers.steps import Steps


class Hooks(ImageLayer):
    """The methods and attributes that make a layer a flow or a recolouring."""

    # The arguments, set by `StructuredAdversary`.
    rate: float
    target: str | None
    steps: int
    step_size: float | None
    random_start: bool
    loss: Any
    value_range: tuple[float, float]
    layout: Layout
    seed_generator: keras.random.SeedGenerator
    noise_generator: keras.random.SeedGenerator
    binding: Binding

    @property
    def plan(self) -> Steps:
        """How a field of a given strength is made."""
        return Steps.checked(self.steps, self.step_size, self.random_start)

    def check_layout(self, images: Any) -> None:
        """Warns once of images that seem to have the other layout."""
        raise NotImplementedError

    def check_visible_values(self, images: Any) -> None:
        """Warns once of images outside `value_range`, where no program is traced."""
        raise NotImplementedError

    # What a subclass defines.

    takes_gradient: bool = True
    """Whether the field depends on a model."""

    uses_value_range: bool = False
    """Whether the result depends on `value_range`."""

    stateless: bool = False
    """Whether `decode`, `apply`, `measure` and `encode` depend on the constructor's
    arguments only. Layers with equal arguments then share compiled programs. Each class
    says so for itself; a subclass does not inherit it."""

    extra_keys: tuple[str, ...] = ()
    """Keys of a dict of data that `make_field` and `decode` take as arguments."""

    def make_field(
        self, images: Any, gradients: Any, strength: Any, **extra: Any
    ) -> Any:
        """Returns the fields for channels-last images, their gradients, strengths.

        Without `takes_gradient` the gradients are `None`.
        """
        raise NotImplementedError

    def random_field(self, images: Any, strength: Any, **extra: Any) -> Any:
        """Returns random fields of the same kind, drawn from `noise_generator`.

        Args:
            images: float32, (batch, height, width, channels).
            strength: the size of each field, float32, (batch,).
            **extra: the data under the `extra_keys`.
        """
        raise NotImplementedError

    def compose(self, first: Any, second: Any) -> Any:
        """Returns the field that does what `first` and then `second` do."""
        raise NotImplementedError

    def apply(self, images: Any, field: Any) -> Any:
        """Returns channels-last float32 images changed by a field."""
        raise NotImplementedError

    def size_of(self, field: Any) -> Any:
        """Returns the size of each field, float32, (batch,), in the strength's unit."""
        raise NotImplementedError

    def within_budget(self, field: Any, strength: Any) -> Any:
        """Returns the fields, scaled down to `strength` where they are larger."""
        scale = ops.divide_no_nan(strength, self.size_of(field))
        scale = ops.where(scale < 1, scale, 1.0)
        return field * ops.reshape(scale, (-1,) + (1,) * (len(field.shape) - 1))

    def measure(self, images: Any, changed: Any, field: Any, strength: Any) -> Any:
        """Returns the size of what each image got, in the strength's unit.

        Args:
            images: float32, (batch, height, width, channels).
            changed: the images that the field made of them.
            field: the fields.
            strength: the strength that each field was made with, float32, (batch,).

        Returns:
            float32, (batch,).
        """
        return self.size_of(field)

    def encode(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the lowest frequencies of what the field is made from."""
        raise NotImplementedError

    def code_size(self, images: Any) -> int:
        """Returns the k for which a code of k x k frequencies holds the field.

        Args:
            images: (batch, height, width, channels); only the shape is used.
        """
        return 1

    def smoothing_for(self, images: Any, size: int) -> str:
        """Returns the argument, as text, for which a code of this size is enough."""
        return "smoother fields"

    def decode(
        self, images: Any, codes: Any, size: int, strength: Any, **extra: Any
    ) -> Any:
        """Returns the fields for channels-last images and the codes of `encode`."""
        raise NotImplementedError

    def move(self, data: dict, field: Any, images: Any) -> dict:
        """Returns the entries of `data` that move with the images, moved.

        Args:
            data: labels, masks, boxes, points, under the keys of `call`.
            field: the field of each image.
            images: the images, for their shape.
        """
        return {}

    def is_mask(self, x: Any, images: Any) -> bool:
        """Returns whether labels or weights belong to pixels and move with them."""
        return False

    def strength_bounds(self, images: Any) -> tuple[float, float]:
        """Returns the bounds of the strengths for channels-last images."""
        raise NotImplementedError
