"""What a layer has to know about the pass it is called in: a train step, a probe."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from keras_structadv.layers.selection import Augmented


class Step(NamedTuple):
    """The train step in which the layers inside a model are called.

    Attributes:
        model: the model that is trained.
        pack: `(images, chosen) -> inputs` of the model: its real inputs, whatever the
            images, because a layer inside the model replaces the images itself.
        labels: the true labels of the batch.
        strength: factor in [0, 1] on the drawn strengths.
        report: takes `(layer, images, augmented)`: the images that reached a layer, and
            what it made of them.
    """

    model: keras.Model
    pack: Callable[..., Any]
    labels: Any
    strength: Any
    report: Callable[[Any, Any, Augmented], None]


@dataclasses.dataclass
class Probe:
    """The images that a layer inside a model emits during its own gradient pass."""

    layer: Any
    images: Any
    calls: int = 0


# One value for each thread: replicas are traced in threads that take turns.
_STEP: contextvars.ContextVar[Step | None] = contextvars.ContextVar(
    "step", default=None
)
_TRAINS: contextvars.ContextVar[bool] = contextvars.ContextVar("trains", default=False)
_PROBE: contextvars.ContextVar[Probe | None] = contextvars.ContextVar(
    "probe", default=None
)


def current_step(model: keras.Model | None) -> Step | None:
    """Returns the step that trains a model, if one is being traced or run."""
    step = _STEP.get()
    return step if step is not None and step.model is model else None


def in_train_step() -> bool:
    """Returns whether a callback's training step is being traced or run."""
    return _TRAINS.get()


def current_probe(layer: keras.layers.Layer) -> Probe | None:
    """Returns the gradient pass of a layer, if one is being traced or run."""
    probe = _PROBE.get()
    return probe if probe is not None and probe.layer is layer else None


@contextlib.contextmanager
def _during(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def during_step(step: Step) -> contextlib.AbstractContextManager:
    """Tells the layers that are called meanwhile which step they are in."""
    return _during(_STEP, step)


def during_train_step() -> contextlib.AbstractContextManager:
    """Makes gradient passes take the statistics of the batch meanwhile."""
    return _during(_TRAINS, True)


def during_probe(probe: Probe) -> contextlib.AbstractContextManager:
    """Makes the layer of a probe emit the images of the probe meanwhile."""
    return _during(_PROBE, probe)
