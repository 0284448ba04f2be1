"""Makes tfa_arrays.npz: what TensorFlow Addons' dense_image_warp returns.

TensorFlow Addons is at its end of life, so this runs in an environment of its own,
Python 3.11 with `pip install tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0`:

    python tests/parity/make_tfa_arrays.py tests/parity/tfa_arrays.npz

The slow test in test_parity.py builds that environment and checks the stored file.

TensorFlow Addons takes max(0, fraction) of a coordinate, and TensorFlow gives the
gradient of a tie to the first argument, here the constant. So its gradient with respect
to the flow is 0 wherever a coordinate inside the image is exactly an integer, all of
zero flow included, although the warped image does move with the flow there. The last
row and column are the exception: their fraction is 1, not 0. The arrays hold these
zeros; test_parity.py does not compare with them.
"""

import sys

import numpy as np
import tensorflow as tf

# name: (shape of the image, largest flow in pixels, is dy an integer, is dx)
CASES = {
    "subpixel_2x2x1": ((4, 2, 2, 1), 0.9, False, False),
    "subpixel_5x9x3": ((2, 5, 9, 3), 0.4, False, False),
    "subpixel_16x16x3": ((2, 16, 16, 3), 0.9, False, False),
    "leaving_2x2x3": ((4, 2, 2, 3), 2.0, False, False),
    "leaving_9x5x1": ((1, 9, 5, 1), 6.0, False, False),
    "leaving_16x16x3": ((2, 16, 16, 3), 12.0, False, False),
    "zero_5x9x3": ((1, 5, 9, 3), 0.0, True, True),
    "integer_5x9x3": ((3, 5, 9, 3), 4.0, True, True),
    "integer_dy_9x5x1": ((2, 9, 5, 1), 4.0, True, False),
    "integer_dx_5x9x3": ((2, 5, 9, 3), 4.0, False, True),
}


def make_inputs(seed, shape, largest, integer_dy, integer_dx):
    # Uniform numbers: the same bits on every machine, unlike normal ones.
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1.0, 1.0, shape)
    flow = rng.uniform(-largest, largest, shape[:3] + (2,))
    flow = np.where([integer_dy, integer_dx], np.round(flow), flow)
    cotangent = rng.uniform(-1.0, 1.0, shape)
    return {
        "image": image.astype("float32"),
        "flow": flow.astype("float32"),
        "cotangent": cotangent.astype("float32"),
    }


def warp(image, flow, cotangent):
    # Here and not above, for pytest looks for doctests where it is not installed.
    from tensorflow_addons.image import dense_image_warp

    image, flow = tf.constant(image), tf.constant(flow)
    with tf.GradientTape() as tape:
        tape.watch([image, flow])
        warped = dense_image_warp(image, flow)
    gradients = tape.gradient(warped, [image, flow], output_gradients=cotangent)
    return {
        "warped": warped.numpy(),
        "image_gradient": gradients[0].numpy(),
        "flow_gradient": gradients[1].numpy(),
    }


def main(path):
    arrays = {}
    for seed, (name, case) in enumerate(CASES.items()):
        inputs = make_inputs(seed, *case)
        for key, array in {**inputs, **warp(**inputs)}.items():
            arrays[f"{name}.{key}"] = array
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
