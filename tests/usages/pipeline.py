"""The third of the three ways to use the library, as its documentation has it."""

import keras
import tensorflow as tf
from keras import layers

import keras_structadv as ksa

(x, y), _ = ksa.datasets.load_photographs(size=32)
ds = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0)
model = keras.Sequential(
    [
        keras.Input((32, 32, 3)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(8, 3, strides=2, activation="relu"),
        layers.Flatten(),
        layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss)
before = model.evaluate(x, y, verbose=0)

flow = ksa.AdversarialFlow().bind(model, snapshot=True)
ds = ds.batch(128).map(flow, num_parallel_calls=tf.data.AUTOTUNE)   # (images, labels) -> (images, labels)
model.fit(ds, callbacks=[ksa.RefreshSnapshot(flow, every="epoch")])

after = model.evaluate(x, y, verbose=0)
