"""Times training steps on the accelerator with each form of augmentation."""

import functools
import itertools
import math
import sys
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_structadv as ksa
from benchmarks.timing import interleave
from benchmarks.training_step import fit_step, prepare, repeated
from experiments.models import small_cnn, wide_resnet

MODELS = {
    # name: size of the images, batch, model
    "wide-resnet": (32, 128, lambda: wide_resnet((32, 32, 3), 10, depth=28, width=10)),
    "efficientnet": (224, 64, lambda: application("EfficientNetB0")),
    "resnet": (224, 64, lambda: application("ResNet50")),
    "small": (16, 32, lambda: small_cnn((16, 16, 3), 10)),
}


def application(name: str) -> keras.Model:
    """A model of `keras.applications` with random weights, for raw pixels."""
    build = getattr(keras.applications, name)
    shape = (224, 224, 3)
    return build(
        weights=None, input_shape=shape, classes=10, classifier_activation=None
    )


class GradientOnly(ksa.AdversarialRecoloring):
    """The fast gradient sign method: costs the gradient and next to nothing else."""

    def make_field(
        self, images: Any, gradients: Any, strength: Any, basis: Any = None
    ) -> Any:
        """The sign of the gradient, times the strength."""
        strength = 255.0 * strength[:, None, None, None]
        return strength * ops.sign(gradients)


def steps(name: str, precision: str, rounds: int, brief: bool = False) -> None:
    """Prints the table of a model's training steps.

    Args:
        name: one of `MODELS`.
        precision: dtype policy.
        rounds: rounds that count.
        brief: whether to leave out recolourings and the rate of one half.
    """
    size, count, build = MODELS[name]
    keras.config.set_dtype_policy(precision)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (count, size, size, 3)).astype("float32")
    batch = images, rng.integers(0, 10, count).astype("int32")
    training = ksa.AdversarialTraining
    kinds = {"flow": ksa.AdversarialFlow, "recolouring": ksa.AdversarialRecoloring}
    if brief:
        del kinds["recolouring"]
    callbacks = {
        "plain": keras.callbacks.Callback(),
        "gradient only (FGSM), rate 1": training(GradientOnly(rate=1.0)),
    }
    for (kind, layer), gradient in itertools.product(kinds.items(), ("fresh", "reuse")):
        for rate in (1.0,) if brief else (1.0, 0.5):
            suffix = ", reused" if gradient == "reuse" else ""
            callbacks[f"{kind}, rate {rate:g}{suffix}"] = training(
                layer(rate=rate), gradient=gradient
            )
    calls = {}
    for label, callback in callbacks.items():
        print(f"{label} is compiled ...", file=sys.stderr, flush=True)
        step = fit_step(prepare(build(), batch), callback)
        calls[label] = functools.partial(step, repeated(batch))
        calls[label]()
    seconds = interleave(calls, rounds)
    plain = seconds["plain"]
    only = seconds["gradient only (FGSM), rate 1"]
    print(f"\n{name}, {count} of {size} px, {precision}, {rounds} rounds\n")
    print("| step | ms | to plain | to gradient only | of the extra of rate 1 |")
    print("|---|---|---|---|---|")
    for label, values in seconds.items():
        median = 1e3 * np.median(values)
        to_plain = np.median(values / plain)
        row = f"| {label} | {median:.1f} | {to_plain:.3f} "
        row += f"| {np.median(values / only):.3f} |"
        whole = seconds.get(label.replace("0.5", "1"))
        if "rate 0.5" in label and whole is not None:
            extra = np.median(values - plain) / np.median(whole - plain)
            row += f" {extra:.2f}" if math.isfinite(extra) else ""
        print(f"{row} |", flush=True)
    keras.config.set_dtype_policy("float32")
    del calls
    keras.backend.clear_session()
