"""Means over the changed images for `History`, and the extremes of the first images."""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.layers.selection import Augmented

HIT_RATE = "gradient_hit_rate"
GAIN = "adversarial_loss_gain"


class Measures:
    """What a training step measures of the layers in it.

    Args:
        layers: the layers.
        reuses: whether the step reuses gradients.
    """

    def __init__(self, layers: Sequence[StructuredAdversary], reuses: bool):
        names = [layer.measure_name for layer in layers]
        names += [GAIN] if any(layer.takes_gradient for layer in layers) else []
        names += [HIT_RATE] if reuses else []
        self.means = {name: keras.metrics.Mean(name=name) for name in names}
        self._extremes = {
            layer: (keras.metrics.Mean(), keras.metrics.Mean()) for layer in layers
        }

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of all means."""
        extremes = itertools.chain(*self._extremes.values())
        metrics = [*self.means.values(), *extremes]
        return [variable for metric in metrics for variable in metric.variables]

    def reset(self) -> None:
        """Starts the means of an epoch."""
        for mean in self.means.values():
            mean.reset_state()

    def look_at(self, layer: StructuredAdversary, images: Any) -> None:
        """Records the extremes of some images, for a layer that still checks them."""
        if layer.checks_values:
            some = ops.cast(images[:8], "float32")
            lowest, highest = ops.min(some), ops.max(some)
            known = ops.isfinite(lowest) & ops.isfinite(highest) & (lowest < highest)
            for metric, value in zip(self._extremes[layer], (lowest, highest)):
                value = ops.where(known, value, 0.0)
                metric.update_state(value, sample_weight=ops.cast(known, "float32"))

    def check_values(self) -> None:
        """Warns of images outside the range that a layer expects."""
        for layer, extremes in self._extremes.items():
            if layer.checks_values:
                layer.check_values(*(float(x.result()) for x in extremes))

    def count(self, layer: StructuredAdversary, augmented: Augmented) -> None:
        """Adds the changes that a layer made to the means of the epoch."""
        for name, values in (
            (GAIN, augmented.gain),
            (layer.measure_name, augmented.sizes),
        ):
            if values is not None:  # random fields have no gain
                self.means[name].update_state(values, sample_weight=augmented.active)

    def check_gain(self, loss: float) -> bool:
        """Warns if the changes of an epoch did not raise the loss.

        Args:
            loss: the loss of the epoch.

        Returns:
            Whether it warned.
        """
        mean = self.means.get(GAIN)
        # Under a strategy, only the result of an operation is a tensor.
        if mean is None or float(mean.count * 1.0) == 0:
            return False
        gain = float(mean.result())
        if not gain <= 1e-6 * abs(loss):
            return False
        warnings.warn(
            f"The changed images raised the loss by {gain:.3g} on average, at a "
            f"loss of {loss:.3g}: the augmentation is not adversarial. Usual "
            "causes: a saturated softmax (train on logits, from_logits=True), integer "
            'inputs, images that changed under the same "ids", or a strength that is '
            "too large for the images.",
            stacklevel=3,
        )
        return True

    def results(self) -> dict[str, Any]:
        """Returns the means so far, by name."""
        return {name: mean.result() for name, mean in self.means.items()}

    def joined(self, logs: Any) -> Any:
        """Returns the logs of a step with the means, where the logs are a dict."""
        return {**logs, **self.results()} if isinstance(logs, dict) else logs
