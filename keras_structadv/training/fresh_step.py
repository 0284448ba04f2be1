"""Training steps that take the gradient of the weights of that very step."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_structadv.backends import framework
from keras_structadv.gradients.inputs import pack_of_real_inputs
from keras_structadv.layers.base import StructuredAdversary
from keras_structadv.layers.passes import Step, during_step, during_train_step
from keras_structadv.layers.selection import Augmented
from keras_structadv.training.batch import Batch, unpack
from keras_structadv.training.measures import Measures


class TrainStep:
    """Base of the augmented steps; see `backends.AugmentedStep`.

    A step gets the model, never the callback: on JAX, `callback.model` holds the
    training up to copy the weights.

    Args:
        model: the model that is trained.
        layers: the layers that augment.

    Attributes:
        strength: factor in [0, 1] on the drawn strengths, a variable.
        measures: the means for `History`.
    """

    reuses = False

    def __init__(self, model: keras.Model, layers: Sequence[StructuredAdversary]):
        self.model = model
        self.layers = tuple(layers)
        self.strength = keras.Variable(1.0, trainable=False, name="strength")
        self.measures = Measures(self.layers, self.reuses)

    @property
    def own_variables(self) -> list[keras.Variable]:
        """The strength and the means."""
        return [self.strength, *self.measures.variables]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the step beside those of the model."""
        seeds = [variable for layer in self.layers for variable in layer.variables]
        return [*self.own_variables, *seeds]

    def prepare(self, data: Any) -> None:
        """Makes the variables that depend on the data: none."""

    def __call__(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        """Runs the model's step on augmented data; returns its logs and the means."""
        raise NotImplementedError


class FreshStep(TrainStep):
    """Augments the batch before the model's own step."""

    def __call__(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        """Runs the model's step on augmented data; returns its logs and the means."""
        batch = Batch.unpacked(data, self.model, self.layers)
        for layer in self.layers:
            self.measures.look_at(layer, batch.images)
            layer.check_layout(batch.images)
            if layer.rate > 0:
                with during_train_step():
                    augmented = layer.augment(
                        batch.images,
                        batch.labels,
                        strength=self.strength,
                        extra=batch.extra_for(layer),
                        pack=batch.pack,
                    )
                self.measures.count(layer, augmented)
                batch = batch.moved(layer, augmented)
        data = batch.packed(batch.images, self.layers[0].compute_dtype)
        return self.measures.joined(framework().in_own_graph(train_step)(data))


class InsideStep(TrainStep):
    """Gives the layers inside the model the true labels; they augment by themselves."""

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the step; the layers are the model's own."""
        return self.own_variables

    def __call__(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        """Runs the model's step with its layers at work; returns logs and means."""
        x, labels, _, extra = unpack(data, self.model, self.layers)
        if extra:
            raise ValueError(
                f"Received {sorted(extra)} beside the images. Layers inside a model "
                "take images only: pass the layer to AdversarialTraining instead."
            )
        reports = []

        def report(
            layer: StructuredAdversary, images: Any, augmented: Augmented
        ) -> None:
            # On JAX the model's step can neither write our variables nor hand out what
            # has a gradient: keep the values, count them after the step.
            values = keras.tree.map_structure(
                lambda x: None if x is None else ops.stop_gradient(x),
                (images, augmented),
            )
            reports.append((layer, *values))

        step = Step(
            self.model,
            pack_of_real_inputs(x),
            labels,
            ops.convert_to_tensor(self.strength),  # that of this very step
            report,
        )
        with during_step(step), during_train_step():
            logs = train_step(data)
        for layer, images, augmented in reports:
            self.measures.look_at(layer, images)
            self.measures.count(layer, augmented)
        return self.measures.joined(logs)
