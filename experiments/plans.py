"""The variants that `variants` compares, each with one change to the plain form."""

import functools
from collections.abc import Callable
from typing import Any

import keras_structadv as ksa
from experiments.altered import (
    FlowByMovingStatistics,
    FlowByWholeBatch,
    FlowFromAfar,
    FlowFromNearby,
    FlowInTrainingMode,
    Mixed,
    RecoloringInTrainingMode,
    RecoloringJittered,
    RecoloringMixed,
    RecoloringSomeReversed,
    SomeRandom,
    SomeReversed,
    SplitBatchNormalization,
    first_half,
)
from experiments.cells import Cell
from experiments.controls import ColourJitter

# The plain form: default flows, and recolourings of the strength that suits the
# controls on the colour glyphs.
PLAIN = (
    *("adversary=none", "policy=none", "flow.smoothness=100", "flow.rate=0.5"),
    *("recoloring.magnitude=0.5", "recoloring.rate=0.5"),
)


MOVING = "moving statistics"  # the form without a change of the statistics


class Variant:
    """One change to the plain form of an adversary.

    Args:
        kind: the layer.
        gradient: `"fresh"` or `"reuse"`.
        scale: factor on the strength.
        fixed: whether each image gets the mean strength, instead of a drawn one.
        schedule: function from the elapsed fraction of the training to a factor on the
            strength.
        split: whether augmented images have their own BatchNormalization statistics.
        momentum: of BatchNormalization; `None` for that of the model.
        **arguments: of the layer.
    """

    def __init__(
        self,
        kind: type,
        gradient: str = "fresh",
        *,
        scale: float = 1.0,
        fixed: bool = False,
        schedule: Callable[[float], float] | None = None,
        split: bool = False,
        momentum: float | None = None,
        **arguments: Any,
    ):
        self.kind = first_half(kind) if split else kind
        self.gradient = gradient
        self.scale = scale
        self.fixed = fixed
        self.schedule = schedule
        self.model: dict = {"normalization": SplitBatchNormalization} if split else {}
        if momentum is not None:
            self.model["momentum"] = momentum
        self.arguments = arguments

    def callbacks(self, cell: Cell, seed: int, **store: Any) -> list:
        """The callbacks of a run, as `runs.train` asks for them."""
        colour = issubclass(self.kind, ksa.AdversarialRecoloring)
        given = {**(cell.recoloring if colour else cell.flow), **self.arguments}
        name = self.kind.strength_name
        most = given.pop(name) * self.scale
        strength = (most / 2, most / 2) if self.fixed else most
        layer = self.kind(**{name: strength}, **given, seed=seed)
        gradient = self.gradient
        if gradient == "reuse":
            gradient = ksa.GradientStore(**store)
        schedule = self.schedule and (lambda epoch: self.schedule(epoch / cell.epochs))
        return [ksa.AdversarialTraining(layer, gradient=gradient, schedule=schedule)]


def _late(passed: float) -> float:
    return float(passed >= 0.25)


def _warm_up(passed: float) -> float:
    return min(1.0, 2 * passed)


def _cool_down(passed: float) -> float:
    return min(1.0, 2 * (1 - passed))


def _variants_of(name: str, kind: type, gradient: str = "fresh") -> dict:
    """The changes that apply to every kind of field."""
    make = functools.partial(Variant, kind, gradient)
    return {
        name: make(),
        f"{name}, strength x 0.5": make(scale=0.5),
        f"{name}, strength x 1.5": make(scale=1.5),
        f"{name}, strength x 2": make(scale=2.0),
        f"{name}, strength fixed": make(fixed=True),
        f"{name}, rate 0.25": make(rate=0.25),
        f"{name}, rate 0.75": make(rate=0.75),
        f"{name}, rate 1": make(rate=1.0),
        f"{name}, late": make(schedule=_late),
        f"{name}, warm-up": make(schedule=_warm_up),
        f"{name}, cool-down": make(schedule=_cool_down),
        f"{name}, own statistics": make(split=True),
    }


def _flow_variants() -> dict:
    variants = {"none": None}
    for name, kind, gradient in (
        ("random", ksa.RandomFlow, "fresh"),
        ("fresh", ksa.AdversarialFlow, "fresh"),
        ("reused", ksa.AdversarialFlow, "reuse"),
    ):
        variants |= _variants_of(name, kind, gradient)
        for smoothness in (30.0, 300.0):
            variants[f"{name}, smoothness {smoothness:.0f}"] = Variant(
                kind, gradient, smoothness=smoothness
            )
    for gradient, name in (("fresh", "fresh"), ("reuse", "reused")):
        for label, kind in (
            ("half of each random", Mixed),
            ("half of the images random", SomeRandom),
            ("three in ten reversed", SomeReversed),
        ):
            variants[f"{name}, {label}"] = Variant(kind, gradient)
    # Pairs of the changes that were best on digits and glyphs.
    for name, kind, gradient in (
        ("random", ksa.RandomFlow, "fresh"),
        ("reused", ksa.AdversarialFlow, "reuse"),
    ):
        variants[f"{name}, rate 0.75, smoothness 300"] = Variant(
            kind, gradient, rate=0.75, smoothness=300.0
        )
    for label, arguments in (
        ("rate 0.75", {"rate": 0.75}),
        ("smoothness 300", {"smoothness": 300.0}),
    ):
        variants[f"reused, half of each random, {label}"] = Variant(
            Mixed, "reuse", **arguments
        )
    variants["fresh, training mode"] = Variant(FlowInTrainingMode)
    for target in ("random", "most_confident_wrong"):
        variants[f"fresh, target {target}"] = Variant(
            ksa.AdversarialFlow, target=target
        )
    return variants


def _recoloring_variants() -> dict:
    variants = {"none": None}
    for name, kind, gradient in (
        ("jitter", ColourJitter, "fresh"),
        ("random", ksa.RandomRecoloring, "fresh"),
        ("fresh", ksa.AdversarialRecoloring, "fresh"),
        ("reused", ksa.AdversarialRecoloring, "reuse"),
    ):
        variants |= _variants_of(name, kind, gradient)
    for gradient, name in (("fresh", "fresh"), ("reuse", "reused")):
        for label, kind in (
            ("half of each random", RecoloringMixed),
            ("half of each jitter", RecoloringJittered),
            ("three in ten reversed", RecoloringSomeReversed),
        ):
            variants[f"{name}, {label}"] = Variant(kind, gradient)
        for coherence in (0.3, 10.0):
            variants[f"{name}, coherence {coherence:g}"] = Variant(
                ksa.AdversarialRecoloring, gradient, coherence=coherence
            )
    variants["fresh, training mode"] = Variant(RecoloringInTrainingMode)
    for target in ("random", "most_confident_wrong"):
        variants[f"fresh, target {target}"] = Variant(
            ksa.AdversarialRecoloring, target=target
        )
    return variants


def _mnist_variants() -> dict:
    """Random starts; where the gradient pass has the statistics from."""
    kinds = {
        "random": (ksa.RandomFlow, 0.5),
        MOVING: (FlowByMovingStatistics, 0.5),
        "statistics of the changed images": (ksa.AdversarialFlow, 0.5),
        "gradient through these": (FlowInTrainingMode, 0.5),
        "statistics of the whole batch": (FlowByWholeBatch, 1.0),
    }
    start = {"max_displacement": 4.0, "rate": 1.0, "random_start": True}
    starts = {
        "random": Variant(ksa.RandomFlow, max_displacement=10.0, rate=1.0),
        "fresh": Variant(ksa.AdversarialFlow, max_displacement=4.0, rate=1.0),
        "fresh, random start": Variant(ksa.AdversarialFlow, **start),
        "fresh, random start of U(0, 10) pixels": Variant(FlowFromAfar, **start),
        "fresh, random start of a part": Variant(FlowFromNearby, **start),
        "fresh, random start, U(0, 6) pixels": Variant(
            ksa.AdversarialFlow, **{**start, "max_displacement": 6.0}
        ),
        "fresh, three steps": Variant(
            ksa.AdversarialFlow, max_displacement=4.0, rate=1.0, steps=3
        ),
        "fresh, three steps, random start": Variant(
            ksa.AdversarialFlow, **start, steps=3
        ),
    }
    return starts | {
        f"{name}, momentum {momentum}": Variant(
            kind, momentum=momentum, max_displacement=4.0, rate=rate
        )
        for momentum in (0.9, 0.99, 0.999)
        for name, (kind, rate) in kinds.items()
    }


VARIANTS = {
    "mnist-200": _mnist_variants(),
    "digits": _flow_variants(),
    "glyphs": _flow_variants(),
    "colour-glyphs": _recoloring_variants(),
}
