"""The code on the pages runs as it stands, block after block."""

import pathlib
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_structadv as ksa

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "```python\n" in path.read_text()
]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.M | re.S)

pytestmark = [pytest.mark.backends("tensorflow"), pytest.mark.slow]


def network(activation=None):
    return keras.Sequential(
        [
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation=activation),
        ]
    )


@pytest.fixture(scope="module")
def photographs():
    (x, y), _ = ksa.datasets.load_photographs(size=32, crops=4)
    return x, y


@pytest.fixture(scope="module")
def weights(photographs):
    keras.utils.set_random_seed(0)
    model = compiled()
    model.fit(*photographs, epochs=40, verbose=0)
    return model.get_weights()


def compiled():
    model = keras.Sequential([keras.Input((32, 32, 3)), network()])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


@pytest.fixture
def names(photographs, weights):
    """What the pages take for granted."""
    import tensorflow as tf

    x, y = photographs
    model = compiled()
    model.set_weights(weights)
    images, labels = x[:4], y[:4]
    corners = np.array([[4, 6, 20, 22], [8, 8, 30, 24]], "float32")
    return {
        "keras": keras,
        "ksa": ksa,
        "tf": tf,
        "model": model,
        "backbone": network("softmax"),
        "x": x,
        "y": y,
        "x_test": x,
        "y_test": y,
        "ds": tf.data.Dataset.from_tensor_slices((x, y)),
        "images": images,
        "labels": labels,
        "masks": (images[..., 0] > 127).astype("uint8"),
        "boxes": np.stack([corners] * 4),
        "ids": np.zeros((4, 2), "int32"),
        "points": np.stack([corners[:, :2]] * 4),
    }


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python\n")
    for block in blocks:
        code = "\n".join(line[len(block[1]) :] for line in block[2].splitlines())
        code = code.replace("epochs=20", "epochs=2")
        line = text[: block.start(2)].count("\n")
        exec(compile("\n" * line + code, str(ROOT / page), "exec"), names)
