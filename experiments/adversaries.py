"""What may change the training images of a cell."""

from typing import NamedTuple

import keras

import keras_structadv as ksa
from experiments.controls import (
    ColourJitter,
    ComposedRandomFlow,
    MaxNormAdversary,
    MeanSquareAdversary,
    RandomSignFlow,
)


class Adversary(NamedTuple):
    """What changes the training images of a cell.

    Attributes:
        kind: the layer: one of this package, or one of Keras for `tf.data`.
        table: the field of `Cell` with its arguments.
        gradient: `"fresh"` or `"reuse"`.
        fixed: arguments that make the adversary what it is; a search leaves them.
    """

    kind: type
    table: str
    gradient: str = "fresh"
    fixed: dict = {}


_PGD = {"steps": 3, "random_start": True}
ADVERSARIES = {
    "none": None,
    "random-flow": Adversary(ksa.RandomFlow, "flow"),
    "random-flow-composed": Adversary(ComposedRandomFlow, "flow"),
    "random-sign-flow": Adversary(RandomSignFlow, "flow"),
    "flow": Adversary(ksa.AdversarialFlow, "flow"),
    "flow-random-start": Adversary(
        ksa.AdversarialFlow, "flow", fixed={"random_start": True}
    ),
    "flow-three-steps": Adversary(ksa.AdversarialFlow, "flow", fixed={"steps": 3}),
    "flow-reused": Adversary(ksa.AdversarialFlow, "flow", "reuse"),
    "random-recoloring": Adversary(ksa.RandomRecoloring, "recoloring"),
    "colour-jitter": Adversary(ColourJitter, "recoloring"),
    "recoloring": Adversary(ksa.AdversarialRecoloring, "recoloring"),
    "recoloring-random-start": Adversary(
        ksa.AdversarialRecoloring, "recoloring", fixed={"random_start": True}
    ),
    "recoloring-reused": Adversary(ksa.AdversarialRecoloring, "recoloring", "reuse"),
    "fgsm-linf": Adversary(MaxNormAdversary, "pixel"),
    "fgm-l2": Adversary(MeanSquareAdversary, "pixel"),
    "pgd-linf": Adversary(MaxNormAdversary, "pixel", fixed=_PGD),
    "pgd-l2": Adversary(MeanSquareAdversary, "pixel", fixed=_PGD),
    "elastic-transform": Adversary(keras.layers.RandomElasticTransform, "elastic"),
    "keras-randaugment": Adversary(keras.layers.RandAugment, "keras_randaugment"),
}
