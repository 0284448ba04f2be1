"""The attacks of an audit on one batch: random fields, and steepest steps."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_structadv.audit.metrics import answers_of, check_class_ids, metric_for
from keras_structadv.backends import framework, is_built
from keras_structadv.gradients import Inference, gradients_of, images_among
from keras_structadv.gradients.inputs import split_inputs
from keras_structadv.gradients.labels import as_labels, most_likely, random_wrong
from keras_structadv.gradients.outputs import by_output
from keras_structadv.layers.base import StructuredAdversary


class Attempt(NamedTuple):
    """What a batch got by one field for each image.

    Attributes:
        scores: float32, (batch,), 1 where the model is right, 0 where it is fooled.
        answers: int32, (batch,), the class that the model names, or -1.
        field: the fields, on the device; `None` for the images as they are.
    """

    scores: np.ndarray
    answers: np.ndarray
    field: Any


class _Batch(NamedTuple):
    """A batch on the device.

    Attributes:
        inputs: of the model, a structure of arrays.
        y: the labels.
        extra: the data that only the layer takes, by key.
        draws: int32, (batch, classes), for random targets; `None` for another rule.
    """

    inputs: Any
    y: Any
    extra: dict
    draws: Any


class Attack:
    """Attacks batches of one model by the fields of one layer.

    Args:
        model: the model; each call reads its weights anew.
        layer: the layer, not bound. Its strength, rate, steps and random start do not
            count.
        metric: see `metric_for`.

    Attributes:
        model: the model.
        loss: that it was compiled with.
        images: those of the batch that was begun, channels last.
        code_length: how many random numbers make a field for one of them.
        flat: bool, (batch,), whether the first gradient of an image was zero; `None`
            before the first step.
        classes: the number of classes, if the score is the accuracy.
    """

    images: Any
    code_length: int
    flat: np.ndarray | None
    classes: int | None

    def __init__(
        self, model: keras.Model, layer: StructuredAdversary, metric: Callable | None
    ):
        self.model, self._layer = model, layer
        self.loss = getattr(model, "loss", None)
        self._score = metric_for(metric, model, layer.loss)
        self._is_accuracy = metric is None
        self.classes = None
        program = functools.partial(framework().program, model=model)
        self._predict = program(self._predictions)
        self._draw = program(self._field)
        self._try_random = program(self._random)
        self._try_field = program(self._judged_with)
        self._step = program(self._stepped)
        self._code_size = 0

    def begin(self, x: Any, y: Any, streams: list[np.random.Generator]) -> Attempt:
        """Takes the next batch.

        Args:
            x: the inputs, a structure of arrays, (batch, ...).
            y: the labels; `None` for the answers of the model.
            streams: random numbers of each image, for random targets.

        Returns:
            The attempt without a field.

        Raises:
            ValueError: if the model cannot take the batch.
        """
        x, y = keras.tree.map_structure(_tensor, (x, y))
        inputs, extra = split_inputs(self.model, x, set(self._layer.extra_keys))
        images, _ = images_among(inputs)
        if len(images.shape) != 4:
            raise ValueError(
                f"Received images of shape {tuple(images.shape)}. Pass batches of "
                "images with a channel axis, of rank 4."
            )
        if not is_built(self.model):
            self.model(inputs, training=False)  # variables are made here, not compiled
        self.images = self._layer.layout.channels_last(images)
        if not self._code_size:
            self._layer.check_layout(images)
            self._layer.check_visible_values(images)
            # Twice what reused gradients keep: less than 1 % of the energy is missing.
            self._code_size = 2 * self._layer.code_size(self.images)
            self.code_length = self._layer.code_length(images, self._code_size)
        predictions = self._predict(inputs)
        self.flat = None
        if self._is_accuracy:
            self.classes = check_class_ids(y, predictions, self.model, self._layer.loss)
        if y is None:
            y = _most_likely(self.model, self._layer.loss, predictions)
        draws = None
        if self._layer.target == "random":  # one target for all steps
            most = max(x.shape[-1] for x in keras.tree.flatten(predictions))
            drawn = [stream.integers(2**24, size=most) for stream in streams]
            draws = _tensor(np.array(drawn, "int32"))
        self._batch = _Batch(inputs, y, extra, draws)
        return _attempt(None, *self._judged(y, predictions))

    def end(self) -> None:
        """Frees the batch; the programs stay."""
        del self._batch, self.images

    def random(self, codes: np.ndarray, strength: float) -> Attempt:
        """Tries random fields.

        Args:
            codes: float32, (batch, `code_length`), normal draws.
            strength: the size of each field.
        """
        sizes = np.full(len(codes), strength, "float32")
        tried = self._try_random(self._batch, _tensor(codes), _tensor(sizes))
        return _attempt(*tried)

    def steepest(
        self, codes: np.ndarray, sizes: np.ndarray, strength: float, shares: list
    ) -> Iterator[Attempt]:
        """Tries the field of a random start, and that after each steepest step.

        Args:
            codes: float32, (batch, `code_length`), normal draws for the start.
            sizes: float32, (batch,), of the start, as fractions of the strength.
            strength: the budget of the whole field.
            shares: the size of each step, as a fraction of the strength.
        """
        budget = _tensor(np.full(len(codes), strength, "float32"))
        start = _tensor((strength * sizes).astype("float32"))
        field = self._draw(self._batch, _tensor(codes), start)
        for share in shares:
            after, flat, *judged = self._step(
                self._batch, field, budget, _tensor(np.float32(share))
            )
            if self.flat is None:
                self.flat = ops.convert_to_numpy(flat)
            yield _attempt(field, *judged)
            field = after
        yield _attempt(field, *self._try_field(self._batch, field))

    # What is compiled: functions of the `values` of `Inference` and of arrays.

    def _predictions(self, values: Any, inputs: Any) -> Any:
        return Inference(self.model, values)(inputs)

    def _field(self, values: Any, batch: _Batch, codes: Any, sizes: Any) -> Any:
        images, _ = self._images_in(batch)
        return self._layer.decode(images, codes, self._code_size, sizes, **batch.extra)

    def _random(self, values: Any, batch: _Batch, codes: Any, sizes: Any) -> tuple:
        field = self._field(values, batch, codes, sizes)
        return field, *self._judged_with(values, batch, field)

    def _judged_with(self, values: Any, batch: _Batch, field: Any) -> tuple[Any, Any]:
        images, pack = self._images_in(batch)
        changed, y = self._changed(images, batch.y, field)
        return self._judged(y, Inference(self.model, values)(pack(changed)))

    def _stepped(
        self, values: Any, batch: _Batch, field: Any, budget: Any, share: Any
    ) -> tuple:
        images, pack = self._images_in(batch)
        current, y = self._changed(images, batch.y, field)
        inference = Inference(self.model, values)
        target: Any = self._layer.target
        if batch.draws is not None:
            target = functools.partial(random_wrong, draws=batch.draws)
        gradients, predictions = gradients_of(
            self.model,
            lambda z: inference(pack(z)),
            current,
            y,
            loss=self._layer.loss,
            target=target,
        )
        rise = self._layer.make_field(current, gradients, share * budget, **batch.extra)
        after = self._layer.within_budget(self._layer.compose(field, rise), budget)
        flat = ops.logical_not(ops.any(gradients, axis=(1, 2, 3)))
        return after, flat, *self._judged(y, predictions)

    def _images_in(self, batch: _Batch) -> tuple[Any, Callable]:
        """Returns channels-last images, and a function from them to the inputs."""
        images, pack = images_among(batch.inputs)
        layout = self._layer.layout
        whole = layout.channels_last(ops.cast(images, "float32"))
        return whole, lambda x: pack(layout.restored(x))

    def _changed(self, images: Any, y: Any, field: Any) -> tuple[Any, Any]:
        """Returns the changed images, and labels that move with the pixels."""
        if self._layer.moves_pixels:
            given = self._layer.layout.restored(images)
            y = self._layer.move({"labels": y}, field, given)["labels"]
        return self._layer.apply(images, field), y

    def _judged(self, y: Any, predictions: Any) -> tuple[Any, Any]:
        predictions = keras.tree.map_structure(ops.stop_gradient, predictions)
        answers = answers_of(predictions, self.model, self._layer.loss)
        return self._score(y, predictions), answers


def _tensor(x: Any) -> Any:
    return None if x is None else ops.convert_to_tensor(x)


def _attempt(field: Any, scores: Any, answers: Any) -> Attempt:
    scores = ops.convert_to_numpy(scores)
    if not np.all((scores >= 0) & (scores <= 1)):
        raise ValueError(
            f"The metric returned scores from {scores.min()} to {scores.max()}. Return "
            "scores in [0, 1], 1 where the model is right."
        )
    return Attempt(scores, ops.convert_to_numpy(answers), field)


def _most_likely(model: keras.Model, loss: Any, predictions: Any) -> Any:
    """Returns the answers of a model as the labels that its loss takes."""
    rows = by_output(model, loss, predictions)
    if len(rows) != 1:
        raise ValueError(
            f"Received no labels for a model with {len(rows)} outputs. Pass y."
        )
    _, one, only = rows[0]
    return as_labels(most_likely(only, one), only, one)
