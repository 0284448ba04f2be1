"""The first of the three ways to use the library, as its documentation has it."""

import keras
from keras import layers

import keras_structadv as ksa

(x, y), _ = ksa.datasets.load_photographs(size=32)
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

model.fit(x, y, callbacks=[ksa.AdversarialTraining(ksa.AdversarialFlow(rate=0.5))])

after = model.evaluate(x, y, verbose=0)
