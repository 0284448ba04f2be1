"""What a layer tells the model around it."""

import keras
from keras import layers

from tests.models import small_model


def test_jit_compile_auto_of_the_host_stays(kind, images, labels):
    def host(with_layer):
        start = [kind()] if with_layer else []
        model = keras.Sequential([keras.Input((8, 8, 1)), *start, layers.Flatten()])
        model.compile(loss="mse", jit_compile="auto")
        return model

    assert host(True).jit_compile == host(False).jit_compile
    layer = host(True).layers[0]
    assert layer.supports_jit and all(x.supports_jit for x in layer._flatten_layers())


def test_the_model_is_neither_tracked_nor_saved(bound, images, labels):
    model = small_model()
    layer = bound(model)
    layer(images, labels)
    assert layer.weights == [] and layer.trainable_variables == []
    assert "model" not in str(layer.get_config())
