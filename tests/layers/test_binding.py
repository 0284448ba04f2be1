"""The model that a layer attacks."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_structadv.layers.binding import layers_inside
from tests.hosts import Subclassed, flow_layer
from tests.models import numpy, small_model


def test_the_live_weights_are_read(bound, images, labels):
    model = small_model()
    layer = bound(model, strength=1)
    before = numpy(layer(images, labels)[0])
    model.set_weights([w + 0.3 for w in model.get_weights()])
    after = numpy(layer(images, labels)[0])
    assert np.abs(after - before).max() > 0.01


def test_an_unbound_layer_says_what_to_do(kind, images):
    with pytest.raises(
        ValueError, match="before it was bound.*bind.*AdversarialTraining"
    ):
        kind(rate=1.0)(images * 255)


def test_an_uncompiled_model_says_what_to_do(bound, images, labels):
    layer = bound(small_model(compiled=False))
    with pytest.raises(ValueError, match="no compiled loss.*Compile"):
        layer(images, labels)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    layer.bind(small_model(compiled=False), loss=loss)
    assert np.abs(numpy(layer(images, labels)[0]) - images).max() > 0


def test_layers_are_found_however_deep():
    class Block(layers.Layer):
        def __init__(self, deep):
            super().__init__()
            self.named = {"deep": deep}

    flows = [flow_layer() for _ in range(4)]
    pipeline = layers.Pipeline([layers.RandomFlip(), flows[0]])
    inner = keras.Sequential([keras.Input((8, 8, 1)), flows[1]])
    model = Subclassed(flows[2], keras.Sequential([pipeline, inner, Block(flows[3])]))
    assert sorted(map(id, layers_inside(model))) == sorted(map(id, flows))
