"""The worst case as a metric of each epoch."""

from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_structadv.audit.audit import Audit
from keras_structadv.audit.data import as_array, number_of_images
from keras_structadv.checks import check_number
from keras_structadv.layers.base import StructuredAdversary


class WorstCaseAccuracy(keras.callbacks.Callback):
    """Adds `val_worst_case_accuracy` to the logs at the end of each epoch.

    It is the accuracy under steepest steps from random starts, as in
    `evaluate_robustness`, with the same starts in each epoch. Put it before the
    callbacks that follow the value, such as `EarlyStopping` and `ModelCheckpoint`, and
    give those `mode="max"`. It works beside `AdversarialTraining` and without it.

    Args:
        x: images to attack; see `evaluate_robustness`. A few hundred validation images
            are enough, for an error of some .02.
        y: their labels.
        perturbation: as in `evaluate_robustness`.
        strength: the budget, > 0, in the unit of the perturbation.
        steps: number of steepest steps after each start.
        restarts: number of random starts.
        metric: as in `evaluate_robustness`.
        batch_size: number of images that are attacked at once.
        seed: integer, of the starts.
        name: of the value in the logs. Two of these callbacks need two names.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    >>> import numpy as np
    >>> x = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 1))
    >>> y = np.arange(8) % 2
    >>> model = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    ... )
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    >>> worst = WorstCaseAccuracy(x, y, strength=1.0, steps=2)
    >>> history = model.fit(x, y, callbacks=[worst], verbose=0).history
    >>> 0 <= history["val_worst_case_accuracy"][0] <= 1
    True
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        perturbation: StructuredAdversary | None = None,
        *,
        strength: float,
        steps: int = 10,
        restarts: int = 1,
        metric: Callable[[Any, Any], Any] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        name: str = "val_worst_case_accuracy",
    ):
        super().__init__()
        y = as_array(y)
        if number_of_images(x, y) is not None and y is None:
            raise ValueError(
                "Received no labels. Pass x and y, or a data set that holds both."
            )
        if isinstance(x, Iterator):
            raise ValueError(
                "Received a generator, which one epoch would use up. Pass arrays or a "
                "data set."
            )
        check_number("strength", strength, positive=True)
        self.name = name
        self._data = (x, y)
        self._audit = Audit(
            perturbation,
            strengths=(strength,),
            steps=steps,
            restarts=restarts,
            random=0,
            metric=metric,
            batch_size=batch_size,
            seed=seed,
        )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Attacks the images and logs the accuracy."""
        if logs is not None:
            report = self._audit.run(self.model, *self._data, kept_bytes=0)
            if not report.settings["labeled"]:
                raise ValueError(
                    "WorstCaseAccuracy received data without labels. Pass batches "
                    "(inputs, labels)."
                )
            logs[self.name] = float(report.adversarial[0])
