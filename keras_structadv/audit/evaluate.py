"""How far images can move before a model fails."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_structadv.audit.audit import Audit
from keras_structadv.audit.report import RobustnessReport
from keras_structadv.checks import check_count
from keras_structadv.layers.base import StructuredAdversary


def evaluate_robustness(
    model: keras.Model,
    x: Any,
    y: Any = None,
    perturbation: StructuredAdversary | None = None,
    *,
    strengths: Sequence[float],
    steps: int = 10,
    restarts: int = 1,
    random: int = 16,
    metric: Callable[[Any, Any], Any] | None = None,
    batch_size: int = 64,
    seed: int | None = None,
    verbose: int = 1,
) -> RobustnessReport:
    """Measures the accuracy of a model under structured attacks of growing strength.

    At each strength, each image is attacked by random fields and by steepest steps from
    random starts. The image is lost as soon as one attempt fools the model, and stays
    lost at larger strengths: what is within a small budget is within a large one. The
    model does not change.

    Args:
        model: the model, with a compiled loss, or with `loss` in the perturbation.
        x: inputs of the model: arrays, (n, height, width, channels) in the
            `value_range` of the perturbation, or a dict or a list of arrays. Or batches
            `(inputs, labels)`: a `tf.data.Dataset`, a `PyDataset` or a generator.
        y: labels of arrays, as the loss takes them. Masks move with the image. `None`
            for the answers of the model: the report then tells how many change.
        perturbation: an unbound or bound `AdversarialFlow` (the default) or
            `AdversarialRecoloring`. Its `rate`, its own strength, `steps` and
            `random_start` do not count.
        strengths: the budgets, >= 0, ascending, in the unit of the perturbation: pixels
            of the longest displacement, or root mean squares as fractions of the value
            range.
        steps: number of steepest steps after a start, >= 1. The n-th step has
            1/sqrt(n) of the strength, or the `step_size` of the perturbation. More
            steps go on where fewer stop.
        restarts: number of random starts, >= 1.
        random: number of random fields, >= 1.
        metric: a function `(labels, predictions) -> scores` in [0, 1], one for each
            image, or for each of its pixels. `None` for the accuracy of one output with
            a class for each image.
        batch_size: number of images that are attacked at once. It bounds the memory.
        seed: integer; `None` for a random one, which the report holds.
        verbose: 0 for silence, 1 for a progress bar.

    Returns:
        The `RobustnessReport`.

    Raises:
        TypeError: if `model` is not a Keras model, or `perturbation` no layer.
        ValueError: if an argument is out of its range, or the data do not fit.

    Example:
    >>> import numpy as np
    >>> keras.utils.set_random_seed(0)
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((8, 8, 1)),
    ...         keras.layers.Rescaling(1 / 255),
    ...         keras.layers.Flatten(),
    ...         keras.layers.Dense(2),
    ...     ]
    ... )
    >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(True))
    >>> x = np.random.default_rng(0).uniform(0, 255, (20, 2, 2, 1))
    >>> x = x.repeat(4, axis=1).repeat(4, axis=2)
    >>> y = np.argmax(model.predict(x, verbose=0), axis=-1)
    >>> report = evaluate_robustness(
    ...     model, x, y, strengths=(0, 1, 2), random=4, seed=0, verbose=0
    ... )
    >>> report.adversarial[0].item()
    1.0
    >>> bool(report.adversarial[2] <= report.adversarial[1])
    True

    Reference: after Luo, Mobahi, Bengio (2020), section 6.3, with a budget, random
        starts and random fields beside.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Received model={model!r} of type {type(model).__name__}. Pass a "
            "keras.Model."
        )
    if isinstance(y, StructuredAdversary):
        raise TypeError(
            f"Received y={y!r}. Pass the layer as perturbation=, and labels as y."
        )
    seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
    check_count("random", random)
    audit = Audit(
        perturbation,
        strengths=strengths,
        steps=steps,
        restarts=restarts,
        random=random,
        metric=metric,
        batch_size=batch_size,
        seed=seed,
    )
    begin = time.perf_counter()
    report = audit.run(model, x, y, verbose=verbose)
    report.settings["seconds"] = round(time.perf_counter() - begin, 1)
    _warn_of(report)
    return report


def _warn_of(report: RobustnessReport) -> None:
    """Warns of what makes the numbers mean less than they seem to."""
    about, clean = report.settings, report.clean.mean()
    if about["labeled"] and about["classes"] and clean < 1 / about["classes"]:
        warnings.warn(
            f"The accuracy is {clean:.3f} before any attack, less than guessing. "
            "Scale the images and number the classes as in training.",
            stacklevel=3,
        )
    if about["flat"] > 0.1:
        warnings.warn(
            f"The gradient of {about['flat']:.0%} of the images is zero: nothing "
            "can be said of their worst case. Usual causes: a saturated softmax "
            "(compile logits with from_logits=True), images that are not scaled as "
            "in training.",
            stacklevel=3,
        )
    gap = report.of_images("adversarial") - report.of_images("random_worst")
    error = gap.std(axis=0) / np.sqrt(len(gap))
    worse = np.flatnonzero(gap.mean(axis=0) > 2 * error)
    if len(worse):
        place = worse[-1]
        name = "accuracy" if about["metric"] is None else "score"
        warnings.warn(
            f"At strength {report.strengths[place]:g}, the {name} is "
            f"{report.adversarial[place]:.3f} under the adversarial fields and "
            f"{report.random_worst[place]:.3f} under the worst of "
            f"{about['random']} random ones: the gradient misleads, and the model "
            "is weaker than it looks. Usual causes: a saturated softmax (compile "
            "logits with from_logits=True), integer inputs, a metric that the loss "
            "does not follow, too few `steps` or `restarts`.",
            stacklevel=3,
        )
