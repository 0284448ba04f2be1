"""When a snapshot is renewed."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_structadv as ksa
from keras_structadv.gradients import WeightSnapshot
from tests.hosts import flow_layer
from tests.models import small_model

tf = pytest.importorskip("tensorflow")


def pipeline(layer, *data, batch=6):
    data = tf.data.Dataset.from_tensor_slices(data if len(data) > 1 else data[0])
    return data.batch(batch).map(layer, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)


@pytest.mark.parametrize("refreshed", [False, True])
def test_by_the_epoch(refreshed, images, labels):
    model = small_model()
    layer = flow_layer().bind(model, snapshot=True)
    data, traces, seen = pipeline(layer, images, labels), [], []

    def watched(x, y):
        traces.append(0)
        return layer(x, y)

    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(6)
    data = data.map(watched, num_parallel_calls=tf.data.AUTOTUNE)

    class Keep(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(np.array(next(iter(data))[0]))

    model.optimizer.learning_rate = 1.0
    callbacks = [ksa.RefreshSnapshot(layer)] if refreshed else []
    model.fit(data, epochs=4, verbose=0, callbacks=[*callbacks, Keep()])
    changes = [np.abs(b - a).max() for a, b in zip(seen, seen[1:])]
    assert min(changes) > 1e-3 if refreshed else max(changes) == 0
    assert len(traces) == 1


@pytest.mark.parametrize(
    "every,together,expected",
    [("epoch", 1, [0, 6]), (4, 1, [0, 4, 8, 12]), (4, 3, [0, 6, 12])],
)
def test_by_batches(every, together, expected, images, labels, monkeypatch):
    model = small_model()
    model.compile("sgd", model.loss, steps_per_execution=together)
    layer = flow_layer().bind(model, snapshot=True)
    done, at = [0], []
    monkeypatch.setattr(WeightSnapshot, "refresh", lambda self: at.append(done[0]))

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            done[0] += together

    callbacks = [Count(), ksa.RefreshSnapshot(layer, every=every)]
    model.fit(images, labels, batch_size=1, epochs=2, verbose=0, callbacks=callbacks)
    assert at == expected  # counted across the epochs


def test_what_makes_no_sense_is_named(images, labels):
    with pytest.raises(ValueError, match="no weights yet.*model.build"):
        unbuilt = keras.Sequential([layers.Flatten(), layers.Dense(3)])
        flow_layer().bind(unbuilt, snapshot=True)
    for every in ("batch", 0, 1.5, True, np.zeros(2)):
        with pytest.raises(ValueError, match="Received every="):
            ksa.RefreshSnapshot(flow_layer(), every=every)
    with pytest.raises(ValueError, match="Received layer="):
        ksa.RefreshSnapshot(None)
    model = small_model()
    with pytest.raises(ValueError, match="no snapshot to update.*snapshot=True"):
        refresh = ksa.RefreshSnapshot(flow_layer().bind(model))
        model.fit(images, labels, verbose=0, callbacks=[refresh])
    ragged = tf.ragged.stack([images[0], images[1][:5]])
    with pytest.raises(ValueError, match="ragged images.*resize or pad"):
        flow_layer().bind(model)(ragged)
