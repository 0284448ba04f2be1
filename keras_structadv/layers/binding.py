"""The model that a layer attacks, and its forward pass from the layer's images on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_structadv.backends import WeightSnapshot
from keras_structadv.gradients import Inference
from keras_structadv.gradients.inference import parts_of
from keras_structadv.gradients.inputs import only_input, stand_in_input
from keras_structadv.layers.contract import ImageLayer
from keras_structadv.layers.passes import Probe, during_probe, in_train_step


@dataclasses.dataclass(frozen=True)
class Binding:
    """Holds the model where Keras does not track its weights.

    Attributes:
        model: the model, `None` for a layer that is not bound.
        loss: overrides the loss of the layer and of the model.
        snapshot: the copy of the weights that is used instead of the live ones.
        before: of a layer that a `fit` has bound, the binding to go back to.
    """

    model: keras.Model | None = None
    loss: Any = None
    snapshot: WeightSnapshot | None = None
    before: "Binding | None" = None

    def forward(
        self, layer: ImageLayer, inputs: Callable[[Any], Any] | None
    ) -> Callable[[Any], Any]:
        """Returns the forward pass from images at a layer to predictions.

        A layer inside the model emits the images itself in this pass, so that the
        gradient is that of the rest of the model.

        Args:
            layer: the layer.
            inputs: from images to the inputs of the model; `None` where the images are
                its only input.

        Raises:
            ValueError: if the layer is not bound. The function raises one if the model
                calls the layer more than once.
        """
        model = self.model
        if model is None:
            raise ValueError(
                f"Layer {layer.name!r} was called with training=True before it was "
                "bound to a model. Call layer.bind(model), or train with "
                "callbacks=[AdversarialTraining(layer)], or, if the layer is inside "
                "the model, with callbacks=[AdversarialTraining()]. For inference, "
                "pass training=False."
            )
        inside = is_inside(layer, model)
        if inputs is None:
            given = stand_in_input if inside else only_input
            inputs = functools.partial(given, model)
        values = () if self.snapshot is None else self.snapshot.values()
        # All steps see the same weights.
        inference = Inference(model, values, in_train_step())

        def forward(images: Any) -> Any:
            given = inputs(images)
            if not (model.built or inside or keras.tree.is_nested(given)):
                model.build(given.shape)
            probe = Probe(layer, images)
            with during_probe(probe):
                predictions = inference(given)
            if probe.calls > 1:
                raise ValueError(
                    f"Layer {layer.name!r} is called {probe.calls} times in model "
                    f"{model.name!r}. Use one layer for each call."
                )
            return predictions

        return forward


def is_inside(layer: ImageLayer, model: keras.Model) -> bool:
    """Returns whether a layer is a part of a model, however deep."""
    return any(one is layer for one in layers_inside(model))


def layers_inside(model: keras.layers.Layer) -> list[ImageLayer]:
    """Returns the layers of this package inside a model, however deep."""
    return parts_of(model, ImageLayer)
