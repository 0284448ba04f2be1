"""Masks, boxes, points and labels in a dict: missing, extra, ragged, misshapen."""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import backend

import keras_structadv as ksa
from tests.fuzz import values as v
from tests.fuzz.harness import fuzz
from tests.fuzz.invariants import assert_array, numpy, refuses, unchanged

GOOD = {
    "segmentation_masks": lambda n, h, w: np.arange(n * h * w).reshape((n, h, w)) % 3,
    "keypoints": lambda n, h, w: np.full((n, 2, 3), 1.5),
    "bounding_boxes": lambda n, h, w: {
        "boxes": np.tile([0.0, 0.0, w / 2, h / 2], (n, 2, 1)),
        "labels": np.tile([1, -1], (n, 1)),
    },
    "labels": lambda n, h, w: np.arange(n) % 3,
}
BAD = {
    "segmentation_masks": [
        lambda n, h, w: np.zeros((n, h + 1, w)),
        lambda n, h, w: np.zeros((n,)),
    ],
    "keypoints": [
        lambda n, h, w: np.zeros((n, 2)),
        lambda n, h, w: np.zeros((n, 2, 1)),
    ],
    "bounding_boxes": [
        lambda n, h, w: {"boxes": np.zeros((n, 2, 4))},
        lambda n, h, w: {"labels": np.zeros((n, 2))},
        lambda n, h, w: {"boxes": np.zeros((n, 4)), "labels": np.zeros((n, 1))},
        lambda n, h, w: np.zeros((n, 2, 4)),
        lambda n, h, w: {"boxes": [[1, 2]], "labels": [[1], [2, 3]]},
        lambda n, h, w: ragged(n),
    ],
    "labels": [lambda n, h, w: np.zeros((n, h + 1, w + 1, 1))],
}


def ragged(count):
    if backend.backend() != "tensorflow":
        return {}
    import tensorflow as tf

    rows = [[[0.0, 0.0, 1.0, 1.0]] * (1 + k % 2) for k in range(count)]
    labels = [[1] * (1 + k % 2) for k in range(count)]
    boxes = tf.ragged.constant(rows, ragged_rank=1)
    return {"boxes": boxes, "labels": tf.ragged.constant(labels)}


@fuzz(
    0.008,
    batch=st.integers(1, 5) if backend.backend() != "jax" else st.just(3),
    size=v.one_of((6, 5), (1, 1), (12, 4)),
    keys=st.sets(st.sampled_from(list(GOOD))),
    wrong=st.sampled_from([None, None, *GOOD]),
    which=st.integers(0, 5),
    box_format=v.one_of("xyxy", "xywh", "rel_xyxy"),
)
def test_annotations(batch, size, keys, wrong, which, box_format):
    image = np.random.default_rng(0).uniform(0, 255, (batch, *size, 1))
    data = {key: GOOD[key](batch, *size) for key in sorted(keys)}
    if wrong is not None:
        data[wrong] = BAD[wrong][which % len(BAD[wrong])](batch, *size)
    data = {"images": image, "ids": "any", **data}
    layer = ksa.RandomFlow(
        max_displacement=2.0, rate=1.0, seed=which, bounding_box_format=box_format
    )
    with unchanged(data), refuses(*[wrong] if wrong else []):
        out = layer(data)
    if wrong:
        return
    assert list(out) == list(data) and out["ids"] == "any"
    for key in keys:
        entries = zip(*(keras.tree.flatten(x[key]) for x in (out, data)))
        for moved, given in entries:
            dtype = numpy(keras.ops.convert_to_tensor(given)).dtype.name
            assert_array(moved, given.shape, dtype)
            assert np.isfinite(numpy(moved)).all()
