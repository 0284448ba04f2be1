"""AutoAugment and RandAugment, as layers for the inside of a model."""

from typing import Any

import keras
import numpy as np
from keras import ops

from experiments.base_augmentation import Augmentation
from experiments.operations import ENHANCEMENTS, OPERATIONS, apply_operations

AUTO_AUGMENT = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)
"""The policy for CIFAR-10: two (operation, probability, level) a sub-policy."""

RAND_AUGMENT = tuple(name for name in OPERATIONS if name != "Invert")
"""The operations that RandAugment draws from."""


class _Policy(Augmentation):
    """Draws from `operations` for each image."""

    operations: list[tuple[str, float]]

    def __init__(self, fill: float = 128.0, seed: int | None = None, **kwargs: Any):
        super().__init__(seed=seed, **kwargs)
        self.fill = float(fill)

    def draw_operations(self, batch: Any) -> list:
        """Draws indices into `operations`, int32, (batch,), in order of use."""
        raise NotImplementedError

    def augment(self, images: Any) -> Any:
        """Applies the drawn operations to each image."""
        for which in self.draw_operations(ops.shape(images)[0]):
            images = apply_operations(images, self.operations, which, self.fill)
        return images

    def get_config(self) -> dict:
        """Every constructor argument."""
        return {**super().get_config(), "fill": self.fill}


@keras.saving.register_keras_serializable(package="experiments")
class AutoAugment(_Policy):
    """The policy that AutoAugment found on CIFAR-10.

    Draws one of the 25 sub-policies for each image and applies each of its two
    operations with its probability. Level `k` is `k / 10` of the largest strength, as
    in the authors' code for CIFAR-10. Signs of shear, translation and rotation are
    drawn; for the enhancements, levels 0 to 10 are factors 0.1 to 1.9. Posterize leaves
    8 to 4 bits, as in the paper (their code leaves 4 to 0).

    Args:
        fill: grey level beyond the border, 0 to 255.
        seed: seed of the draws.
        **kwargs: of `keras.layers.Layer`.

    Input shape: (batch, height, width, 1 or 3), uint8 or float, 0 to 255.

    Output shape: as the input, in the compute dtype.

    Reference: Cubuk et al. (2019), arXiv:1805.09501, the table of operations and that
        of the policy for CIFAR-10 in the appendix. Code: tensorflow/models,
        research/autoaugment.
    """

    def __init__(self, fill: float = 128.0, seed: int | None = None, **kwargs: Any):
        super().__init__(fill=fill, seed=seed, **kwargs)
        # The identity, then each operation of the policy with either sign.
        self.operations = [("Identity", 0.0)]
        for name, _, level in (x for policy in AUTO_AUGMENT for x in policy):
            strengths = (level / 10, -level / 10)
            if name in ENHANCEMENTS:
                strengths = (2 * level / 10 - 1,) * 2
            self.operations += [(name, strength) for strength in strengths]

    def draw_operations(self, batch: Any) -> list:
        """Draws indices into `operations`, int32, (batch,), in order of use."""
        policy = self._draw((batch,), len(AUTO_AUGMENT))
        drawn = []
        for place in (0, 1):
            # In tenths: floats differ between backends and with XLA.
            tenths = [round(10 * sub[place][1]) for sub in AUTO_AUGMENT]
            done = self._draw((batch,), 10) < ops.take(np.int32(tenths), policy)
            index = 1 + 4 * policy + 2 * place + self._draw((batch,), 2)
            drawn.append(ops.where(done, index, 0))
        return drawn


@keras.saving.register_keras_serializable(package="experiments")
class RandAugment(_Policy):
    """RandAugment: draws operations for each image, all of the same magnitude.

    The scale is torchvision's. At 0 only AutoContrast and Equalize act; at 30 the
    strength is the largest of AutoAugment. Signs of shear, translation, rotation and
    the enhancements (factors 1 - 0.9 to 1 + 0.9) are drawn. The paper has 0 to 10 in
    one place and 0 to 30 in another, and its code divides by 10 what may be 30. For a
    magnitude on the scale 0 to 10, pass three times as much.

    `keras.layers.RandAugment` differs: it draws the operations once for a whole batch,
    from another list, and draws most strengths for each image from U(0, factor). XLA
    cannot compile it on TensorFlow (no kernel of `ImageProjectiveTransformV3`).

    Args:
        num_ops: number of operations on each image, > 0.
        magnitude: strength of all operations, 0 to 30.
        fill: grey level beyond the border, 0 to 255.
        seed: seed of the draws.
        **kwargs: of `keras.layers.Layer`.

    Input shape: (batch, height, width, 1 or 3), uint8 or float, 0 to 255.

    Output shape: as the input, in the compute dtype.

    Raises:
        ValueError: if `num_ops` or `magnitude` is out of its range.

    Reference: Cubuk et al. (2019), arXiv:1909.13719.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: float = 9,
        fill: float = 128.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(fill=fill, seed=seed, **kwargs)
        if not (isinstance(num_ops, int) and num_ops > 0 and 0 <= magnitude <= 30):
            raise ValueError(
                f"Received num_ops={num_ops!r} and magnitude={magnitude!r}. Pass an "
                "integer > 0 and a number from 0 to 30."
            )
        self.num_ops = num_ops
        self.magnitude = magnitude
        signed = (magnitude / 30, -magnitude / 30)
        self.operations = [(name, x) for name in RAND_AUGMENT for x in signed]

    def draw_operations(self, batch: Any) -> list:
        """Draws indices into `operations`, int32, (batch,), in order of use."""
        end = len(self.operations)
        return [self._draw((batch,), end) for _ in range(self.num_ops)]

    def get_config(self) -> dict:
        """Every constructor argument."""
        config = {"num_ops": self.num_ops, "magnitude": self.magnitude}
        return {**super().get_config(), **config}
