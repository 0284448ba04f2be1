"""What makes an adversarial field better than a random one: searched for.

Every variant is measured on the validation set, with seeds other than those of the
tables, one change at a time from the plain form, for random fields as well: they, too,
get the settings that suit them.

    python -m experiments.variants --data digits [glyphs colour-glyphs] [--seeds 6]
        [--first-seed 100] [--only NAME ...] [--results FILE] [--workers 2]
"""

import argparse
import functools
import pathlib
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

import keras_structadv as ksa
from experiments.controls import ColourJitter, RandomFlow, RandomRecoloring
from experiments.table import append_record, comparison, read_records
from experiments.train import load_cells, run_all, train
from keras_structadv.flow import longest_displacement, random_flow
from keras_structadv.gradients import gradients_of

# What the variants change one thing of: the defaults of the flow, and a recolouring as
# strong as the controls want it on the colour glyphs.
PLAIN = (
    *("adversary=none", "policy=none", "flow.smoothness=100", "flow.rate=0.5"),
    *("recoloring.magnitude=0.5", "recoloring.rate=0.5"),
)


class Altered(ksa.AdversarialFlow):
    """A flow to which something random is done, fresh or reused."""

    def alter(self, flow, other, strength):
        """Returns another flow, for one and a random one of the same length."""
        raise NotImplementedError

    def make_field(self, images, gradients, strength):
        """Returns the altered flow of a fresh gradient."""
        flow = super().make_field(images, gradients, strength)
        return self.altered(images, flow, strength)

    def decode(self, images, codes, size, strength):
        """Returns the altered flow of a reused gradient, where there is one."""
        flow = super().decode(images, codes, size, strength)
        found = ops.any(codes != 0, axis=1)
        return self.altered(images, flow, ops.where(found, strength, 0.0))

    def altered(self, images, flow, strength):
        """Returns the altered flow, at its old length."""
        other = random_flow(
            images,
            smoothness=self.smoothness,
            max_displacement=strength,
            seed=self.seed_generator,
        )
        return self.alter(flow, other, strength)


class Mixed(Altered):
    """Half of the direction is random."""

    part = 0.5

    def alter(self, flow, other, strength):
        """Returns the weighted mean at its old length."""
        mixed = (1 - self.part) * flow + self.part * other
        scale = ops.divide_no_nan(strength, longest_displacement(mixed))
        return mixed * scale[:, None, None, None]


class SomeRandom(Altered):
    """For half of the images the whole direction is random."""

    def alter(self, flow, other, strength):
        """Returns one or the other."""
        random = self.draw_uniform(ops.shape(flow)[0]) < 0.5
        return ops.where(random[:, None, None, None], other, flow)


class SomeReversed(Altered):
    """For three images in ten the direction is reversed."""

    def alter(self, flow, other, strength):
        """Returns the flow or its negative."""
        reversed_ = self.draw_uniform(ops.shape(flow)[0]) < 0.3
        return ops.where(reversed_[:, None, None, None], -flow, flow)


class RecoloringSomeReversed(ksa.AdversarialRecoloring):
    """For three images in ten the direction is reversed."""

    def make_field(self, images, gradients, strength, basis=None):
        """Returns the perturbation or its negative."""
        field = super().make_field(images, gradients, strength, basis)
        reversed_ = self.draw_uniform(ops.shape(field)[0]) < 0.3
        return ops.where(reversed_[:, None, None, None], -field, field)


class RecoloringMixed(ksa.AdversarialRecoloring):
    """Half of the right-hand side is noise."""

    def make_field(self, images, gradients, strength, basis=None):
        """Returns the perturbation of the mean of the gradient and noise."""
        size = ops.sqrt(ops.mean(gradients**2, axis=(1, 2, 3), keepdims=True))
        noise = keras.random.normal(ops.shape(gradients), seed=self.seed_generator)
        return super().make_field(images, gradients + size * noise, strength, basis)


class RecoloringJittered(ColourJitter, ksa.AdversarialRecoloring):
    """Half of the change is a global jitter of the channels, half adversarial."""

    def gradient(self, forward, images, labels, targets):
        """Returns the adversarial gradient, not noise."""
        return ksa.AdversarialRecoloring.gradient(
            self, forward, images, labels, targets
        )

    def make_field(self, images, gradients, strength, basis=None):
        """Returns the mean of the two, at the old size."""
        jitter = ColourJitter.make_field(self, images, gradients, strength)
        field = ksa.AdversarialRecoloring.make_field(
            self, images, gradients, strength, basis
        )
        mixed = (jitter + field) / 2
        scale = ops.divide_no_nan(strength, self.size_of(mixed))
        return mixed * scale[:, None, None, None]


class InTrainingMode:
    """Takes the gradient of the model in training mode: statistics of the batch."""

    def gradient(self, forward, images, labels, targets):
        """Returns the gradient of each image, in its batch."""
        model = self.binding.model

        def in_training(images):
            with keras.StatelessScope():
                return model(images, training=True)

        return gradients_of(
            model, in_training, images, labels, loss=None, target=self.target
        )


class FlowInTrainingMode(InTrainingMode, ksa.AdversarialFlow):
    """The flow of the gradient in training mode."""


class RecoloringInTrainingMode(InTrainingMode, ksa.AdversarialRecoloring):
    """The recolouring of the gradient in training mode."""


class SplitBatchNormalization(layers.Layer):
    """Keeps statistics of its own for the first half of each batch.

    These are the images that are augmented; at inference the statistics are those of
    the others.

    Reference: Xie et al. (2020), Adversarial Examples Improve Image Recognition.
    """

    def __init__(self, **kwargs):
        super().__init__()
        self.plain = layers.BatchNormalization(**kwargs)
        self.augmented = layers.BatchNormalization(**kwargs)

    def build(self, input_shape):
        """Makes both sets of statistics."""
        self.plain.build(input_shape)
        self.augmented.build(input_shape)

    def call(self, x, training=False):
        """Returns normalized maps."""
        if not training:
            return self.plain(x, training=False)
        half = (ops.shape(x)[0] + 1) // 2
        return ops.concatenate(
            [
                self.augmented(x[:half], training=True),
                self.plain(x[half:], training=True),
            ]
        )


def first_half(kind: type) -> type:
    """Returns a layer that changes the first half of each batch, not a random one."""

    class FirstHalf(kind):
        def _choose(self, images):
            half = (ops.shape(images)[0] + 1) // 2
            return ops.arange(half, dtype="int32"), ops.ones((half,))

    return FirstHalf


class Variant:
    """One change to the plain form of an adversary.

    Args:
        kind: the layer.
        gradient: `"fresh"` or `"reuse"`.
        scale: factor on the strength.
        fixed: whether the strength is the mean of what is drawn else.
        schedule: from the fraction of the training that has passed to a factor on the
            strength.
        split: whether augmented images have statistics of their own.
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
        **arguments,
    ):
        self.kind = first_half(kind) if split else kind
        self.gradient = gradient
        self.scale = scale
        self.fixed = fixed
        self.schedule = schedule
        self.model = {"normalization": SplitBatchNormalization} if split else {}
        self.arguments = arguments

    def callbacks(self, cell, seed, **store):
        """Returns the callback that `train` asks for."""
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
    """Returns the changes that every kind of field can take."""
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
        ("random", RandomFlow, "fresh"),
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
    # What was best of these on digits and glyphs, in pairs.
    for name, kind, gradient in (
        ("random", RandomFlow, "fresh"),
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
        ("random", RandomRecoloring, "fresh"),
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


VARIANTS = {
    "digits": _flow_variants(),
    "glyphs": _flow_variants(),
    "colour-glyphs": _recoloring_variants(),
}


def measure(job: tuple[str, str, int]) -> dict:
    """Returns the record of a job, `(data, variant, seed)`, on the validation set."""
    data, name, seed = job
    (cell,) = load_cells(f"small/{data}", PLAIN)
    variant = VARIANTS[data][name]
    if variant is None:
        record = train(cell, seed, held_out="validation")[1]
    else:
        record = train(
            cell,
            seed,
            held_out="validation",
            callbacks=variant.callbacks,
            **variant.model,
        )[1]
    kept = ("digest", "seed", "accuracy", "history", "seconds", "versions")
    return {"data": data, "variant": name} | {key: record[key] for key in kept}


def report(records: list[dict], data: str) -> str:
    """Returns the tables of a data set, what beats the random form most first."""
    tables = {}
    for record in records:
        if record["data"] == data:
            for measured, accuracy in record["accuracy"].items():
                rows = tables.setdefault(measured, {})
                row = rows.setdefault((record["variant"],), {})
                row[record["seed"]] = accuracy
    bases = {
        "random": lambda labels: ("random",),
        "plain form": lambda labels: (labels[0].split(",")[0],),
    }
    return "\n\n".join(
        comparison(
            ", ".join(x for x in (data, measured, "validation set") if x),
            ("variant",),
            _sorted(rows),
            bases,
        )
        for measured, rows in tables.items()
    )


def _sorted(rows: dict) -> dict:
    """Returns rows by their paired difference to the random form: seeds differ."""
    random = rows.get(("random",), {})

    def gain(labels: tuple[str]) -> float:
        both = set(rows[labels]) & set(random)
        return float(np.mean([rows[labels][s] - random[s] for s in both] or [-1]))

    return {labels: rows[labels] for labels in sorted(rows, key=gain, reverse=True)}


def main(arguments: list[str] | None = None) -> None:
    """Measures what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--only", nargs="+", help="variants; all without it")
    parser.add_argument("--results", type=pathlib.Path, default="variants.jsonl")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    records = read_records(options.results)
    digests = {
        data: load_cells(f"small/{data}", PLAIN)[0].digest() for data in VARIANTS
    }
    done = {
        (r["data"], r["variant"], r["seed"])
        for r in records
        if r["digest"] == digests[r["data"]]
    }
    jobs = [
        (data, name, seed)
        for data in options.data
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for name in VARIANTS[data]
        if (options.only is None or name in options.only)
        and (data, name, seed) not in done
    ]
    for _, record in run_all(jobs, measure, options.workers, tasks=None):
        records.append(record)
        append_record(options.results, record)
    for data in options.data:
        print(f"\n{report(records, data)}")


if __name__ == "__main__":
    main()
