"""The training step that reuses the gradients of the epoch before."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import framework, fused, shared
from keras_structadv.gradients import images_among, without_gradient
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.layers.selection import Augmented, Selection
from keras_structadv.training.batch import Batch, unpack
from keras_structadv.training.fingerprint import fingerprint
from keras_structadv.training.fresh_step import TrainStep
from keras_structadv.training.kept_gradients import KeptGradients
from keras_structadv.training.measures import HIT_RATE


class ReuseStep(TrainStep):
    """Changes images by their gradients of the last epoch, and keeps the new ones.

    The gradient is taken from the backward pass of the model's own step.

    Args:
        model: the model that is trained.
        layers: the layers that augment.
        kept: the gradients that are kept.
    """

    reuses = True

    def __init__(
        self,
        model: keras.Model,
        layers: Sequence[StructuredAdversary],
        kept: KeptGradients,
    ):
        super().__init__(model, layers)
        self.kept = kept
        # Made here: a layer has a seed, which is a variable that a step cannot create.
        self._twins = {layer: layer.twin() for layer in self.layers}

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the step and the table of the store."""
        return [*super().variables, *self.kept.store.variables]

    def prepare(self, data: Any) -> None:
        """Builds the table for the images of the first batch."""
        x, *_ = unpack(data, self.model, self.layers)
        self.kept.build(images_among(x)[0], self.layers)

    def __call__(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        """Runs the model's step on changed images; returns its logs and the means."""
        batch = Batch.unpacked(data, self.model, self.layers)
        if None in batch.images.shape[1:]:
            raise ValueError(
                f"Received images of shape {tuple(batch.images.shape)}. Their size "
                "must be known when the step is compiled: resize or crop, and set the "
                "static shape."
            )
        lengths = self.kept.build(batch.images, self.layers)
        extras = [batch.extra_for(layer) for layer in self.layers]

        ids = batch.extra.get("ids")
        content = batch.images if ids is None else ops.reshape(ids, (-1, 1))
        keys = shared(fingerprint)(content)
        codes, found = self.kept.store.read(keys)
        images = ops.cast(batch.images, "float32")
        for layer in self.layers:
            self.measures.look_at(layer, images)
            layer.check_layout(images)
        done = self._changed(images, codes, found, extras, lengths)
        for layer, augmented in zip(self.layers, done):
            batch = batch.moved(layer, augmented)
        stages = [images, *(augmented.images for augmented in done)]
        dtype = self.layers[0].compute_dtype
        logs, gradients = framework().step_with_gradients(
            self.model, train_step, lambda x: batch.packed(x, dtype), stages[-1]
        )
        if gradients is None:
            gradients = without_gradient(self.model, stages[-1])
        self._keep(keys, stages[-1], gradients)
        rises = shared(_rises)(stages, gradients)
        self.measures.means[HIT_RATE].update_state(found)
        for layer, augmented, rise in zip(self.layers, done, rises):
            rise = ops.where(augmented.active > 0, rise, 0.0)
            self.measures.count(layer, augmented._replace(gain=rise))
        return self.measures.joined(logs)

    def _changed(
        self, images: Any, codes: Any, found: Any, extras: list, lengths: list[int]
    ) -> list[Augmented]:
        """Returns what each layer makes of the images, one after the other."""
        done = []
        ends = list(itertools.accumulate(lengths))
        for layer, extra, end, length in zip(self.layers, extras, ends, lengths):
            code = codes[:, end - length : end]
            active, drawn = layer.draw_for(images, found, self.strength)
            change = self._compiled(_changed_by_codes, layer)
            images, fields, sizes = change(images, code, drawn, extra)
            selection = Selection(None, active)
            done.append(Augmented(images, fields, sizes, None, selection))
        return done

    def _keep(self, keys: Any, images: Any, gradients: Any) -> None:
        """Keeps the codes of the gradients, those of all devices on each of them."""
        codes = [
            self._compiled(_codes_of, layer)(images, gradients) for layer in self.layers
        ]
        # The codes in the precision of the table: half of the traffic.
        codes = ops.cast(ops.concatenate(codes, axis=1), "float16")
        self.kept.store.write(*framework().gathered([keys, codes]))

    def _compiled(
        self, function: Callable, layer: StructuredAdversary
    ) -> Callable[..., Any]:
        """Compiles a function of a layer, for all layers like it if that can be."""
        size, twin = self.kept.sizes[layer], self._twins[layer]
        if twin is not None:
            return shared(function, layer=twin, size=size)
        return fused(functools.partial(function, layer=layer, size=size))


def _changed_by_codes(
    images: Any,
    codes: Any,
    strength: Any,
    extra: dict,
    *,
    layer: StructuredAdversary,
    size: int,
) -> tuple[Any, Any, Any]:
    return layer.changed_by_codes(images, codes, strength, extra, size)


def _codes_of(
    images: Any, gradients: Any, *, layer: StructuredAdversary, size: int
) -> Any:
    return layer.code_of(images, gradients, size)


def _rises(stages: list, gradients: Any) -> list:
    return [
        ops.sum(gradients * (after - before), axis=(1, 2, 3))
        for before, after in itertools.pairwise(stages)
    ]
