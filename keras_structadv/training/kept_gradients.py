"""The gradients kept for one model: their table, and whether they are found again."""

import bisect
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import framework, strategy_scope
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.training.gradient_store import GradientStore

_FEW_HITS = 0.01
# The k of a code that the store chooses. Even the smallest holds the default flows. A
# table of 256 MiB is a small part of an accelerator's memory: 31 x 31 frequencies for
# each of 65536 images.
_LEAST_SIZE, _MOST_BYTES = 8, 2**28
# Two thirds of the k that a field needs keep a cosine of .95 or more; see
# benchmarks/results/code_sizes.txt.
_ENOUGH = 2 / 3


class KeptGradients:
    """A store and the model whose gradients it holds.

    Args:
        store: the store.

    Attributes:
        sizes: the k of each layer's codes.
    """

    def __init__(self, store: GradientStore):
        self.store = store
        self.sizes: dict[StructuredAdversary, int] = {}
        self._model: weakref.ref | None = None
        self._epochs = 0
        self._resumes = False

    def begin(self, model: keras.Model, layers: Sequence[StructuredAdversary]) -> None:
        """Prepares the store for the training of a model.

        Empties it for another model; reads the backup of an interrupted run.

        Raises:
            NotImplementedError: where the devices do not share what they keep.
            ValueError: if a layer cannot reuse gradients.
        """
        framework().check_gathers(model)
        for layer in layers:
            check_reuse(layer)
        self._epochs = 0
        if self._model is not None and self._model() is not model:
            self.store.clear()
        self._model = weakref.ref(model)
        self._resumes = True
        with strategy_scope(model):  # one table for each replica
            self.store.restore()
            # Where the size of the images is known, build the table before the step is
            # traced: building it in the step would trace the step twice.
            shape: Any = getattr(model, "input_shape", None)
            known = isinstance(shape, tuple) and len(shape) == 4
            if known and None not in shape[1:] and not self.store.built:
                self.build(ops.zeros((1, *shape[1:])), layers)

    def build(self, images: Any, layers: Sequence[StructuredAdversary]) -> list[int]:
        """Builds the table for such images; returns the length of each layer's code.

        Warns if codes of this size do not hold the fields.
        """
        needed = {
            layer: layer.code_size(layer.layout.channels_last(images[:1]))
            for layer in layers
        }
        self.sizes = self.chosen_sizes(images, needed)
        lengths = [layer.code_length(images, self.sizes[layer]) for layer in layers]
        kinds = (type(layer).__name__ for layer in layers)
        layout = ", ".join(f"{n} of {kind}" for n, kind in zip(lengths, kinds))
        first = not self.store.built
        self.store.build(sum(lengths), layout)
        if first:
            self._check_sizes(images, needed)
        return lengths

    def chosen_sizes(self, images: Any, needed: dict) -> dict:
        """Returns the k of each layer: that of the store, or what its fields need.

        A table that exists keeps its codes, whatever the size of the images is now.
        """
        if self.store.size is not None:
            return dict.fromkeys(needed, self.store.size)
        sizes = {layer: max(_LEAST_SIZE, size) for layer, size in needed.items()}

        def capped(most: int) -> dict:
            return {layer: min(most, size) for layer, size in sizes.items()}

        def equal(most: int) -> dict:
            return dict.fromkeys(sizes, most)

        def largest(make: Callable[[int], dict], length: int) -> int:
            ks = range(1, max(*sizes.values(), *images.shape[1:]) + 1)
            return bisect.bisect_right(
                ks, length, key=lambda k: self._length(images, make(k))
            )

        for make in (capped, equal) if self.store.built else ():
            chosen = make(max(1, largest(make, self.store.length)))
            if self._length(images, chosen) == self.store.length:
                return chosen
        most = largest(capped, self.store.length_for(_MOST_BYTES))
        return capped(max(_LEAST_SIZE, most))

    def _length(self, images: Any, sizes: dict) -> int:
        return sum(layer.code_length(images, size) for layer, size in sizes.items())

    def _check_sizes(self, images: Any, needed: dict) -> None:
        """Warns of a layer whose codes lose much of the field."""
        for layer, size in self.sizes.items():
            if size < needed[layer] * _ENOUGH:
                shaped = layer.layout.channels_last(images[:1])
                height, width = shaped.shape[1:3]
                length = self._length(images, dict.fromkeys(needed, needed[layer]))
                much = self.store.bytes_for(length)
                warnings.warn(
                    f"Codes of {size} x {size} frequencies lose much of the fields of "
                    f"layer {layer.name!r} on images of {height} x {width} pixels. "
                    f"Pass GradientStore(size={needed[layer]}), whose "
                    f"{self.store.capacity} places take {much / 1e6:,.0f} MB, or give "
                    f"the layer {layer.smoothing_for(shaped, size)}.",
                    stacklevel=4,
                )

    def begin_epoch(self, epoch: int) -> None:
        """Restores the table of an interrupted run, once the epoch is known."""
        if self._resumes:
            self._resumes = False
            self.store.restore(epoch)

    def end_epoch(self, epoch: int, hit_rate: Any) -> None:
        """Backs up the store; warns if its gradients are never found."""
        self.store.back_up(epoch + 1)
        self._epochs += 1
        if self._epochs == 2 and hit_rate < _FEW_HITS:
            warnings.warn(
                "In the second epoch hardly any image was met again, so that no "
                "gradient could be reused. Images that are changed at random before "
                "they reach the model are new in each epoch: move those layers into "
                'the model, give "ids" with the images, or pass gradient="fresh". If '
                "there are more images than places, pass a larger GradientStore. If an "
                "epoch is only a part of the data, the images may still come again.",
                stacklevel=3,
            )


def check_reuse(layer: StructuredAdversary) -> None:
    """Raises a `ValueError` for a layer that the gradient of training cannot serve."""
    if not layer.takes_gradient:
        raise ValueError(
            f"Received a layer of type {type(layer).__name__}, whose fields are "
            'random: there is no gradient to reuse. Pass gradient="fresh".'
        )
    given = {
        "target": layer.target,
        "steps": None if layer.steps == 1 else layer.steps,
        "step_size": layer.step_size,
        "random_start": layer.random_start or None,
        "loss": layer.loss_in_use,
    }
    named = [f"{name}={x!r}" for name, x in given.items() if x is not None]
    if named:
        raise ValueError(
            f"Received a layer with {', '.join(named)}. A reused gradient is the one "
            "of the training loss, taken once: leave these arguments, or pass "
            'gradient="fresh".'
        )
    scale = getattr(layer, layer.scale_name)
    if scale is not None:
        raise ValueError(
            f"Received a layer with {layer.scale_name}={scale}. Of a reused gradient "
            f"only the direction is kept: leave {layer.scale_name}=None, or pass "
            'gradient="fresh".'
        )
