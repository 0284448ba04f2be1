"""Which images of a batch are augmented, and what became of them."""

import hashlib
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops


def seed_for(purpose: str, seed: Any) -> Any:
    """Returns the seed of some draws; each purpose has draws of its own.

    Args:
        purpose: what is drawn.
        seed: an integer; anything else is returned as it is.
    """
    if not isinstance(seed, numbers.Integral):
        return seed  # none, or what Keras refuses
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "little") // 2


class Selection(NamedTuple):
    """The images of a batch that are augmented.

    Attributes:
        places: int32, (chosen,), their places in the batch; `None` for all images.
        active: float32, (chosen,), 1.0 for each image that is augmented, else 0.0.
    """

    places: Any
    active: Any

    @classmethod
    def drawn(cls, rate: float, batch: Any, draw: Callable[[Any], Any]) -> "Selection":
        """Chooses a fraction of a batch at random.

        Args:
            rate: the fraction, in [0, 1].
            batch: the number of images, an integer or a scalar tensor.
            draw: returns `count` draws from U(0, 1), float32, (count,).
        """
        if rate == 1:
            return cls(None, ops.ones((batch,)))
        # The count is rounded up, but for a rounding error: 0.1 * 30 is not quite 3.
        # The expected number is not rounded, so that small rates stay probabilities.
        if isinstance(batch, int):
            expected = rate * batch
            count = math.ceil(expected * (1 - 1e-9))
        else:
            expected = rate * ops.cast(batch, "float32")
            count = ops.cast(ops.ceil(expected * (1 - 1e-6)), "int32")
        places = ops.cast(ops.argsort(draw(batch))[:count], "int32")
        # The last one makes up for the fraction: it is active with that probability.
        rest = expected - ops.arange(count, dtype="float32")
        return cls(places, ops.cast(draw(1) < rest, "float32"))

    def pick(self, tree: Any) -> Any:
        """Returns the entries of the chosen images, for every array of a structure."""

        def pick(x: Any) -> Any:
            return None if x is None else ops.take(x, self.places, axis=0)

        return tree if self.places is None else keras.tree.map_structure(pick, tree)

    def put_back(self, whole: Any, part: Any) -> Any:
        """Returns the whole batch with the entries of the chosen images replaced."""
        if self.places is None:
            return part
        return ops.scatter_update(whole, self.places[:, None], part)


class Augmented(NamedTuple):
    """What a layer made of a batch.

    Attributes:
        images: float32, the whole batch, in the layout in which it came.
        fields: the fields of the chosen images, (chosen, height, width, ...).
        sizes: float32, (chosen,), the size of each field, as `measure` reports it.
        gain: float32, (chosen,), the first-order rise of the adversarial loss; `None`
            if no gradient was taken.
        selection: the chosen images.
    """

    images: Any
    fields: Any
    sizes: Any
    gain: Any
    selection: Selection

    @property
    def active(self) -> Any:
        """1.0 for each chosen image that is augmented, else 0.0; (chosen,)."""
        return self.selection.active

    @property
    def all_fields(self) -> Any:
        """The fields of the whole batch, zero for images that were not chosen."""
        shape = (*ops.shape(self.images)[:1], *ops.shape(self.fields)[1:])
        whole = None if self.selection.places is None else ops.zeros(shape)
        return self.selection.put_back(whole, self.fields)
