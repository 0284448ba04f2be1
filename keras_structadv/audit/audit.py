"""All attempts on all images, batch by batch."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.audit.attack import Attack
from keras_structadv.audit.data import Padded, batches_of, number_of_images
from keras_structadv.audit.report import RobustnessReport
from keras_structadv.audit.tally import Tally
from keras_structadv.checks import check_count
from keras_structadv.layers.adversarial_flow import AdversarialFlow
from keras_structadv.layers.base import StructuredAdversary

KEPT_BYTES = 2**28
_OVERRIDDEN = (
    "rate",
    "seed",
    "steps",
    "random_start",
    "max_displacement",
    "magnitude",
)
_PLAIN = (str, int, float, bool, type(None))


class Audit:
    """An attack that can be run again, compiled once.

    Args:
        model: the model; each run reads its weights anew.
        perturbation: as in `evaluate_robustness`.
        strengths: as in `evaluate_robustness`.
        steps: as in `evaluate_robustness`.
        restarts: as in `evaluate_robustness`.
        random: as in `evaluate_robustness`, or 0.
        metric: as in `evaluate_robustness`.
        batch_size: as in `evaluate_robustness`.
        seed: an integer.
    """

    def __init__(
        self,
        model: keras.Model,
        perturbation: StructuredAdversary | None,
        *,
        strengths: Sequence[float],
        steps: int,
        restarts: int,
        random: int,
        metric: Callable[[Any, Any], Any] | None,
        batch_size: int,
        seed: int,
    ):
        self.layer = _attacking(perturbation, seed)
        self.strengths = _ascending(strengths)
        self._restarts = check_count("restarts", restarts)
        self._random = check_count("random", random, least=0)
        self._batch_size = check_count("batch_size", batch_size)
        self._seed = seed
        self._metric = getattr(metric, "__name__", None if metric is None else "custom")
        self._attack = Attack(model, self.layer, metric)
        share = self.layer.step_size
        # A prefix of those of more steps: more steps are never weaker.
        self._shares = [
            number**-0.5 if share is None else share
            for number in range(1, check_count("steps", steps) + 1)
        ]

    def run(self, x: Any, y: Any, verbose: int = 0) -> RobustnessReport:
        """Attacks all images and returns the report."""
        if isinstance(y, (list, tuple)) and all(isinstance(v, numbers.Real) for v in y):
            y = np.asarray(y)
        total = number_of_images(x, y)
        size = self._batch_size if total is None else min(self._batch_size, total)
        bar = keras.utils.Progbar(total, unit_name="image") if verbose else None
        parts: list[dict[str, np.ndarray]] = []
        done, room = 0, KEPT_BYTES
        for batch in batches_of(x, y, size):
            part = self._attacked(batch, done).first(batch.valid, room)
            room -= part["images"].nbytes + part["fields"].nbytes
            parts.append(part)
            done += batch.valid
            if bar is not None:
                bar.update(done)
        if not parts:
            raise ValueError("Received no images. Pass at least one.")
        if bar is not None and total is None:
            bar.update(done, finalize=True)
        return RobustnessReport.of(parts, self.strengths, self._settings())

    def _attacked(self, batch: Padded, before: int) -> Tally:
        """Makes all attempts on a batch.

        Args:
            batch: the batch.
            before: number of images before it.
        """
        attack = self._attack
        clean = attack.begin(batch.x, batch.y)
        tally = Tally(ops.convert_to_numpy(attack.images), clean)
        # The draws of an image are its own, whatever the size of the batches.
        own = before + np.arange(len(tally.kind)) % batch.valid
        normal, uniform = self._draws(own, attack.code_length)
        for strength in self.strengths:
            if strength > 0:
                for start in range(self._restarts):
                    for attempt in attack.steepest(
                        normal[:, start], uniform[:, start], strength, self._shares
                    ):
                        tally.add("adversarial", attempt)
                        if tally.all_lost:
                            break
                for codes in np.moveaxis(normal[:, self._restarts :], 1, 0):
                    tally.add("random", attack.random(codes, strength))
            tally.end_strength()
        return tally

    def _draws(self, own: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns normal draws, (batch, fields, length), and uniform ones for starts.

        By NumPy, so that they are the same on all backends. Each start after the first
        has a stream of its own, so that more of them change no other field.
        """
        normal, uniform = [], []
        for number in own.tolist():
            key = np.array([self._seed, number], "uint64")
            starts = [
                np.random.Generator(np.random.Philox(counter=[0, 0, 0, k], key=key))
                for k in range(self._restarts)
            ]
            uniform.append([draw.random(dtype="float32") for draw in starts])
            fields = [draw.standard_normal((1, length), "float32") for draw in starts]
            others = (self._random, length)
            fields.append(starts[0].standard_normal(others, "float32"))
            normal.append(np.concatenate(fields))
        return np.stack(normal), np.asarray(uniform, "float32")

    def _settings(self) -> dict:
        layer = self.layer
        return {
            "perturbation": type(layer).__name__,
            "arguments": {
                key: value if isinstance(value, _PLAIN) else repr(value)
                for key, value in layer.arguments().items()
                if key not in _OVERRIDDEN
            },
            "strength": layer.strength_name,
            "moves_pixels": layer.moves_pixels,
            "value_range": list(layer.value_range),
            "steps": len(self._shares),
            "restarts": self._restarts,
            "random": self._random,
            "seed": self._seed,
            "metric": self._metric,
            "backend": keras.backend.backend(),
            "keras": keras.__version__,
        }


def _attacking(perturbation: Any, seed: int) -> StructuredAdversary:
    """Returns an unbound layer with the arguments that shape the fields."""
    given = AdversarialFlow() if perturbation is None else perturbation
    if not isinstance(given, StructuredAdversary):
        raise TypeError(
            f"Received perturbation={given!r}. Pass an AdversarialFlow or an "
            "AdversarialRecoloring."
        )
    if not given.takes_gradient:
        raise ValueError(
            f"Received a {type(given).__name__}, which has no gradient. Pass an "
            "AdversarialFlow or an AdversarialRecoloring: random fields are a part of "
            "each audit."
        )
    arguments = {
        **given.arguments(),
        "loss": given.loss_in_use,
        "random_start": False,
        "seed": seed,
    }
    return type(given)(**arguments)


def _ascending(strengths: Any) -> list[float]:
    numeric = np.asarray(strengths)
    real = numeric.ndim == 1 and numeric.size > 0 and numeric.dtype.kind in "fiu"
    if not (
        real
        and np.all(np.isfinite(numeric))
        and numeric[0] >= 0
        and np.all(np.diff(numeric) > 0)
    ):
        raise ValueError(
            f"Received strengths={strengths!r}. Pass one or more numbers >= 0, "
            "ascending, in the unit of the perturbation."
        )
    return [float(strength) for strength in numeric]
