"""All attempts on all images, batch by batch."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.audit.attack import Attack
from keras_structadv.audit.data import Padded, as_array, batches_of, number_of_images
from keras_structadv.audit.metrics import check_metric
from keras_structadv.audit.report import RobustnessReport
from keras_structadv.audit.tally import Tally
from keras_structadv.checks import check_count
from keras_structadv.defaults import damping_of, smoothness_of
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
    "alpha",
    "lam",
)
_TARGETS = 2**32  # the stream of random targets, beyond those of the starts
_MOST = 100_000  # attempts of a kind
_PLAIN = (str, int, float, bool, type(None))


class Audit:
    """An attack that can be run again, compiled once for a model.

    Args:
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
        self._seed = check_count("seed", seed, least=0)
        self.layer = _attacking(perturbation, self._seed)
        self.strengths = ascending(strengths)
        if not self.layer.moves_pixels and self.strengths[-1] > 1:
            raise ValueError(
                f"Received strengths={strengths!r}. Those of recolourings are fractions"
                " of the value range: pass numbers in [0, 1], such as (0, 0.02, 0.05)."
            )
        self._restarts = check_count("restarts", restarts, most=_MOST)
        self._random = check_count("random", random, least=0, most=_MOST)
        self._batch_size = check_count("batch_size", batch_size)
        self._metric = check_metric(metric)
        unnamed = None if metric is None else "custom"
        self._metric_name = getattr(metric, "__name__", unnamed)
        share = self.layer.step_size
        # A prefix of those of more steps: more steps are never weaker.
        self._shares = [
            number**-0.5 if share is None else share
            for number in range(1, check_count("steps", steps, most=_MOST) + 1)
        ]

        self._kept: Attack | None = None

    def _attack_on(self, model: keras.Model) -> Attack:
        """Returns the attack on a model, an earlier one if it is of this loss too."""
        kept, loss = self._kept, getattr(model, "loss", None)
        if kept is None or kept.model is not model or kept.loss is not loss:
            kept = self._kept = Attack(model, self.layer, self._metric)
        return kept

    def run(
        self,
        model: keras.Model,
        x: Any,
        y: Any,
        verbose: int = 0,
        kept_bytes: int | None = None,
    ) -> RobustnessReport:
        """Attacks all images and returns the report.

        Args:
            model: the model; each run reads its weights anew.
            x: as in `evaluate_robustness`.
            y: as in `evaluate_robustness`.
            verbose: as in `evaluate_robustness`.
            kept_bytes: how much memory the images and fields of the report may take;
                `None` for 256 MiB.
        """
        attack = self._attack_on(model)
        inputs = getattr(model, "inputs", None)
        if isinstance(x, (list, tuple)) and inputs:
            count = len(x)
            if count <= len(inputs):  # a long list of numbers takes long to flatten
                count = len(keras.tree.flatten(x))
            if count != len(inputs):
                raise ValueError(
                    f"Received x of {count} arrays for a model with {len(inputs)} "
                    "input(s). Pass the images as one array, and the labels as y; or "
                    "batches as a data set or a generator, not a list."
                )
        y = as_array(y)
        total = number_of_images(x, y)
        size = self._batch_size if total is None else min(self._batch_size, total)
        bar = keras.utils.Progbar(total, unit_name="image") if verbose else None
        parts: list[dict[str, np.ndarray]] = []
        done, flat, labeled = 0, 0, True
        room = KEPT_BYTES if kept_bytes is None else kept_bytes
        for batch in batches_of(x, y, size):
            tally = self._attacked(attack, batch, done)
            part = tally.first(batch.valid, room)
            labeled = labeled and batch.y is not None
            if attack.flat is not None:
                flat += int(np.sum(attack.flat[: batch.valid]))
            room -= part["images"].nbytes + part["fields"].nbytes
            parts.append(part)
            done += batch.valid
            if bar is not None:
                bar.update(done)
        if not parts:
            raise ValueError(
                "Received no images. Pass at least one. A generator can be read only "
                "once: pass arrays or a data set where that is not enough."
            )
        if bar is not None and total is None:
            bar.update(done, finalize=True)
        found = {"labeled": labeled, "flat": flat / done}
        settings = self._settings(attack) | found
        attack.end()
        return RobustnessReport.of(parts, self.strengths, settings)

    def _attacked(self, attack: Attack, batch: Padded, before: int) -> Tally:
        """Makes all attempts on a batch.

        Args:
            attack: the attack on the model.
            batch: the batch.
            before: number of images before it.
        """
        # The draws of an image are its own, whatever the size of the batches.
        own = before + np.arange(len(keras.tree.flatten(batch.x)[0])) % batch.valid
        clean = attack.begin(batch.x, batch.y, self._streams(own, _TARGETS))
        tally = Tally(ops.convert_to_numpy(attack.images), clean)
        length = attack.code_length
        for strength in self.strengths:
            if strength > 0:
                first = self._streams(own, 0)
                for start in range(self._restarts):
                    streams = self._streams(own, start) if start else first
                    sizes = [draw.random(dtype="float32") for draw in streams]
                    codes = _normal(streams, length)
                    if tally.fields is not None and tally.is_lost():
                        continue  # the first attempt gives the fields their shape
                    for attempt in attack.steepest(
                        codes, np.array(sizes), strength, self._shares
                    ):
                        tally.add("adversarial", attempt)
                        if tally.is_lost():
                            break
                for _ in range(self._random):
                    tally.add("random", attack.random(_normal(first, length), strength))
            tally.end_strength()
        return tally

    def _streams(self, own: np.ndarray, start: int) -> list[np.random.Generator]:
        """Returns random numbers for each image.

        By NumPy, so that they are the same on all backends. Each start has a stream of
        its own, so that more of them change no other field. Random fields come after
        the first start.
        """
        return [
            np.random.Generator(
                np.random.Philox(
                    counter=np.array([0, 0, 0, start], "uint64"),
                    key=np.array([self._seed, number], "uint64"),
                )
            )
            for number in own.tolist()
        ]

    def _settings(self, attack: Attack) -> dict:
        layer, size = self.layer, attack.images.shape[1:3]
        arguments = layer.arguments()
        for name, default in (("smoothness", smoothness_of), ("damping", damping_of)):
            if name in arguments:  # whose default goes with the size of the images
                arguments[name] = default(arguments[name], *size)
        return {
            "perturbation": type(layer).__name__,
            "arguments": {
                key: value if isinstance(value, _PLAIN) else repr(value)
                for key, value in arguments.items()
                if key not in _OVERRIDDEN
            },
            "strength": layer.strength_name,
            "moves_pixels": layer.moves_pixels,
            "value_range": list(layer.value_range),
            "steps": len(self._shares),
            "restarts": self._restarts,
            "random": self._random,
            "seed": self._seed,
            "metric": self._metric_name,
            "classes": attack.classes,
            "backend": keras.backend.backend(),
            "keras": keras.__version__,
        }


def _normal(streams: list[np.random.Generator], length: int) -> np.ndarray:
    """Draws float32, (batch, length)."""
    return np.stack([draw.standard_normal(length, "float32") for draw in streams])


def _attacking(perturbation: Any, seed: int) -> StructuredAdversary:
    """Returns an unbound layer with the arguments that shape the fields."""
    given = AdversarialFlow(seed=seed) if perturbation is None else perturbation
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
        given.scale_name: None,
    }
    return type(given)(**arguments)


def ascending(strengths: Any) -> list[float]:
    """Returns budgets as floats.

    Raises:
        ValueError: if they are no ascending numbers >= 0.
    """
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
