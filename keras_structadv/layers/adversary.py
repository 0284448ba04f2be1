"""Images, labels -> gradient -> field -> apply: the loop that every layer runs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import framework, infers_shapes, is_inside_model
from keras_structadv.checks import check_length
from keras_structadv.gradients import gradients_of
from keras_structadv.gradients.inputs import keys_beside_images, pack_beside_images
from keras_structadv.gradients.labels import random_wrong
from keras_structadv.layers.contract import (
    ANNOTATIONS,
    KEYS,
    with_batch_axis,
    without_batch_axis,
)
from keras_structadv.layers.hooks import Hooks
from keras_structadv.layers.masks_boxes_points import MAY_BE_MASKS
from keras_structadv.layers.passes import current_probe, current_step
from keras_structadv.layers.selection import Augmented, Selection
from keras_structadv.scaling import is_zero


class Adversary(Hooks):
    """Augments images along a structured gradient; `Hooks` define the field."""

    # The loop.

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
            extra: the data under the `extra_keys`, one entry for each image.
            pack: `(images, chosen) -> inputs` of the model; see `images_among`. `None`
                where the images are the only input.
        """
        whole = self.layout.channels_last(ops.cast(images, "float32"))
        selection = Selection.drawn(self.rate, ops.shape(whole)[0], self.draw_uniform)
        originals, labels, targets, extra = (
            selection.pick(x) for x in (whole, labels, targets, extra or {})
        )
        pack = pack and functools.partial(pack, chosen=selection.places)
        drawn = strength * selection.active * self.draw_strength(originals)
        field, changed, gain = self._perturbed(
            originals, labels, targets, drawn, extra, pack
        )
        sizes = self.measure(originals, changed, field, drawn)
        changed = self.layout.restored(selection.put_back(whole, changed))
        return Augmented(changed, field, sizes, gain, selection)

    def fields(self, images: Any, labels: Any = None) -> Any:
        """Returns a field for each image, whatever `rate` is, without applying it.

        Args:
            images: (batch, height, width, channels), or channels first.
            labels: arrays, as the model's loss takes them; `None` for the model's own.

        Returns:
            The fields, float32, (batch, height, width, ...): flows or perturbations,
            which `apply(images, fields)` applies to these or to other images, float32
            and channels last.

        Raises:
            ValueError: if the layer is not bound, or images and labels do not fit.
        """
        images = ops.convert_to_tensor(images)
        if len(images.shape) != 4:
            raise ValueError(
                f"Received images of shape {tuple(images.shape)}. Pass a batch of rank "
                "4; images[None] is a batch of one."
            )
        _check_lengths(images, labels=labels)
        self.check_layout(images)
        self.check_visible_values(images)
        originals = self.layout.channels_last(ops.cast(images, "float32"))
        drawn = self.draw_strength(originals)
        return self._perturbed(originals, labels, None, drawn, {}, None)[0]

    def _perturbed(
        self,
        originals: Any,
        labels: Any,
        targets: Any,
        strength: Any,
        extra: dict,
        pack: Callable[..., Any] | None,
    ) -> tuple[Any, Any, Any]:
        """Returns `(fields, changed images, gains)` for channels-last images."""
        forward = self.binding.forward(self, pack) if self.takes_gradient else None
        current, field, gain, plan = originals, None, 0.0, self.plan
        if plan.random_start:
            field = self.random_field(originals, strength, **extra)
            current = self._applied(originals, field)
        for _ in range(plan.count):
            gradients = None
            if forward is not None:
                gradients = self.gradient(
                    lambda x: forward(self.layout.restored(x)), current, labels, targets
                )
            # To the layers before this one in a model, the field is a constant.
            step = self.make_field(
                ops.stop_gradient(current), gradients, plan.share * strength, **extra
            )
            field = step if field is None else self.compose(field, step)
            if not plan.is_single:
                field = self.within_budget(field, strength)
            moved = self._applied(originals, field)
            if gradients is not None:
                rise = ops.sum(gradients * (moved - current), axis=(1, 2, 3))
                gain = gain + ops.where(is_zero(step), 0.0, rise)
            current = moved
        return field, current, gain if self.takes_gradient else None

    def draw_for(self, images: Any, found: Any, strength: Any) -> tuple[Any, Any]:
        """Draws which images with a code are augmented, and the strength of each.

        Args:
            images: (batch, height, width, channels), or channels first.
            found: bool, (batch,), whether an image has a code.
            strength: factor in [0, 1] on the drawn strengths.

        Returns:
            Both float32, (batch,): 1.0 where it is augmented, else 0.0; the strength,
            zero where it is not.
        """
        active = ops.cast(found, "float32")
        batch = ops.shape(active)[0]
        selection = Selection.drawn(self.rate, batch, self.draw_uniform)
        active = active * selection.put_back(ops.zeros_like(active), selection.active)
        drawn = self.draw_strength(self.layout.channels_last(images))
        return active, strength * active * drawn

    def changed_by_codes(
        self, images: Any, codes: Any, strength: Any, extra: dict, size: int
    ) -> tuple[Any, Any, Any]:
        """Returns `(changed images, fields, sizes)` for gradients kept as codes.

        It draws nothing. All images are moved, some by nothing: picking some would save
        no gradient.

        Args:
            images: (batch, height, width, channels), or channels first.
            codes: float32, (batch, length), as `encode` made them.
            strength: float32, (batch,), of each image.
            extra: the data under the `extra_keys`, one entry for each image.
            size: the k of `encode`.
        """
        originals = self.layout.channels_last(ops.cast(images, "float32"))
        field = self.decode(originals, codes, size, strength, **extra)
        changed = self._applied(originals, field)
        sizes = self.measure(originals, changed, field, strength)
        return self.layout.restored(changed), field, sizes

    def gradient(
        self,
        forward: Callable[[Any], Any],
        images: Any,
        labels: Any,
        targets: Any,
    ) -> Any:
        """Returns the adversarial gradient of the bound model, shaped as the images."""
        target = self.target if targets is None else targets
        if isinstance(target, str) and target == "random":
            target = functools.partial(random_wrong, seed=self.seed_generator)
        loss, model = self.loss_in_use, self.binding.model
        passed = gradients_of(model, forward, images, labels, loss=loss, target=target)
        return passed[0]

    def code_length(self, images: Any, size: int) -> int:
        """Returns how many numbers the code of one of these images has."""
        return self.code_of(images[:1], images[:1], size).shape[1]

    def code_of(self, images: Any, gradients: Any, size: int) -> Any:
        """Returns the code of each gradient, (batch, length); layout as the images."""
        images, gradients = (
            self.layout.channels_last(ops.cast(x, "float32"))
            for x in (images, gradients)
        )
        code = self.encode(images, gradients, size)
        return ops.reshape(code, (-1, math.prod(code.shape[1:])))

    def draw_uniform(self, count: Any) -> Any:
        """Returns `count` draws from U(0, 1), float32, (count,)."""
        # By integers: TensorFlow draws other floats with XLA than without.
        draw = keras.random.randint((count,), 0, 2**24, seed=self.seed_generator)
        return ops.cast(draw, "float32") / 2**24

    def draw_strength(self, images: Any) -> Any:
        """Returns a random strength for each channels-last image, float32, (batch,)."""
        low, high = self.strength_bounds(images)
        return low + (high - low) * self.draw_uniform(ops.shape(images)[0])

    # The call.

    def augment_data(self, data: dict, training: bool | None) -> dict:
        """Returns the images and what moves with them; see `ImageLayer`."""
        images = data["images"]
        if (probe := current_probe(self)) is not None:
            probe.calls += 1
            return {"images": ops.cast(probe.images, self.compute_dtype)}
        if len(images.shape) not in (3, 4):
            raise ValueError(
                f"Received images of shape {tuple(images.shape)}. Pass one image of "
                "rank 3 or a batch of rank 4."
            )
        if not self._augments(images, training):
            return {"images": ops.cast(images, self.compute_dtype)}
        if len(images.shape) == 3:
            return without_batch_axis(self._augment_batch(with_batch_axis(data)))
        return self._augment_batch(data)

    def _augments(self, images: Any, training: bool | None) -> bool:
        if training is None:
            in_step = current_step(self.binding.model) is not None
            training = in_step or not is_inside_model()
        nothing = self.rate == 0 or images.shape[0] == 0
        return training and not nothing and not infers_shapes()

    def _augment_batch(self, data: dict) -> dict:
        images, labels, targets = (data.get(key) for key in KEYS)
        extra = {key: data[key] for key in self.extra_keys if key in data}
        _check_lengths(images, labels=labels, targets=targets, **extra)
        self.check_layout(images)
        strength, pack = 1.0, pack_beside_images(self.binding.model, images, data)
        step = current_step(self.binding.model)
        if step is not None:
            strength, pack = step.strength, step.pack
            labels = step.labels if labels is None else labels
            self._check_labels_outside(step.labels, images)
        else:
            self.check_visible_values(images)
        augment = framework().apart(self.augment)
        augmented = augment(images, labels, targets, strength, extra, pack)
        if step is not None:
            step.report(self, images, augmented)
        out = {"images": ops.cast(augmented.images, self.compute_dtype)}
        if self.moves_pixels and set(data) & {*MAY_BE_MASKS, *ANNOTATIONS}:
            out |= self.move(data, augmented.all_fields, images)
        return out

    def known_keys(self) -> set[str]:
        """Returns the keys of a dict that the layer reads."""
        beside = keys_beside_images(self.binding.model)
        return {*super().known_keys(), *self.extra_keys, *beside}

    def _check_labels_outside(self, labels: Any, images: Any) -> None:
        """Raises a `ValueError` for masks, which a layer inside a model cannot move."""
        for entry in keras.tree.flatten(labels):
            if entry is not None and self.is_mask(entry, images):
                raise ValueError(
                    f"Received labels of shape {tuple(entry.shape)} for images of "
                    f"shape {tuple(images.shape)}. A layer inside the model cannot "
                    "move them with the images: leave it out of the model and pass it "
                    "to AdversarialTraining."
                )

    def _applied(self, images: Any, field: Any) -> Any:
        """Returns channels-last images changed by a field."""
        moved = self.apply(images, field)
        # A field of zeros is the identity, also where a pixel is not finite.
        still = ops.broadcast_to(
            is_zero(field)[:, None, None, None], ops.shape(images)
        )  # at full size, because TensorFlow selects slowly where it has to broadcast
        return ops.where(still, images, moved)


def _check_lengths(images: Any, **beside: Any) -> None:
    """Raises a `ValueError` unless every array beside the images has their number."""
    for name, x in beside.items():
        for entry in keras.tree.flatten(x):
            if entry is not None:
                check_length(name, entry, images)
