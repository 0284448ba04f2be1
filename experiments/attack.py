"""The worst case of a trained model, by the library's own audit."""

from collections.abc import Sequence

import keras
import numpy as np

import keras_structadv as ksa

_KINDS = {"flow": ksa.AdversarialFlow, "recoloring": ksa.AdversarialRecoloring}


def worst_case(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    kind: str = "flow",
    strengths: Sequence[float] = (1.0, 2.0),
    count: int = 400,
    steps: int = 10,
    restarts: int = 2,
    random: int = 64,
    smoothness: float | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Measures the accuracy under attack on the first images.

    Unless told otherwise, the fields have the default smoothness of their layer,
    however the model was trained.

    Args:
        model: from images to logits.
        images: (n, height, width, channels), 0 to 255.
        labels: integers, (n,).
        kind: `"flow"` or `"recoloring"`.
        strengths: budgets, ascending: pixels, or root mean squares as fractions of the
            value range.
        count: images to attack.
        steps: as in `evaluate_robustness`.
        restarts: as in `evaluate_robustness`.
        random: as in `evaluate_robustness`.
        smoothness: of the flows, in squared pixels.
        seed: seed of the fields.

    Returns:
        The accuracies by the name of the attack and the strength: `"gradient"`,
        `"random"`, and `"both"` together.
    """
    arguments = {} if smoothness is None else {"smoothness": smoothness}
    report = ksa.evaluate_robustness(
        model,
        images[:count],
        labels[:count],
        _KINDS[kind](**arguments),
        strengths=strengths,
        steps=steps,
        restarts=restarts,
        random=random,
        batch_size=100,
        seed=seed,
        verbose=0,
    )
    columns = {
        "gradient": report.adversarial,
        "random": report.random_worst,
        "both": report.worst,
    }
    return {
        name: {
            f"{strength:g}": round(float(value), 6)
            for strength, value in zip(strengths, column)
        }
        for name, column in columns.items()
    }
