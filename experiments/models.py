"""The models of the experiments, from raw pixels (0 to 255) to logits."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from experiments.imagenet import efficientnet_lite0


def small_cnn(
    shape: tuple[int, int, int],
    classes: int,
    *,
    head: type = layers.Flatten,
    normalization: Callable = layers.BatchNormalization,
) -> keras.Model:
    """Builds three blocks of convolution, normalization and pooling.

    Args:
        shape: height, width and channels of the images.
        classes: number of logits.
        head: layer that turns the last feature maps into vectors.
        normalization: function of `momentum` that makes a normalization layer.
    """
    model = keras.Sequential([keras.Input(shape), layers.Rescaling(1 / 255)])
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(normalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(head())
    model.add(layers.Dense(classes))
    return model


def mnist_cnn(
    shape: tuple[int, int, int], classes: int, *, momentum: float = 0.9
) -> keras.Model:
    """Builds two blocks of two normalized convolutions and a pooling.

    Args:
        shape: height, width and channels of the images.
        classes: number of logits.
        momentum: of the moving statistics of `BatchNormalization`.
    """
    model = keras.Sequential([keras.Input(shape), layers.Rescaling(1 / 255)])
    for filters in (16, 32):
        for _ in range(2):
            model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
            model.add(layers.BatchNormalization(momentum=momentum))
            model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(classes))
    return model


def wide_resnet(
    shape: tuple[int, int, int], classes: int, *, depth: int = 32, width: int = 10
) -> keras.Model:
    """Builds a pre-activated wide residual network without dropout.

    Args:
        shape: height, width and channels of the images.
        classes: number of logits.
        depth: 6 n + 4 for n blocks in each of the three groups, as the authors count
            (Wide-ResNet-28), or 6 n + 2 without the convolutions of the shortcuts
            (Wide-ResNet-32).
        width: factor on the 16, 32 and 64 filters of the groups.

    Raises:
        ValueError: if `depth` is neither.

    Reference: Zagoruyko and Komodakis (2016), Wide Residual Networks.
    """
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest not in (0, 2):
        raise ValueError(
            f"Received depth={depth}. Pass 6 n + 4 or 6 n + 2, e.g. 28 or 32."
        )

    def convolution(filters: int, kernel: int, strides: int = 1) -> layers.Layer:
        return layers.Conv2D(
            filters,
            kernel,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
        )

    def activated(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    inputs = keras.Input(shape)
    x = layers.Rescaling(1 / 127.5, -1)(inputs)
    x = convolution(16, 3)(x)
    for group, filters in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range(blocks):
            strides = 2 if group > 0 and block == 0 else 1
            before = activated(x)
            if x.shape[-1] != filters or strides > 1:
                x = convolution(filters, 1, strides)(before)
            y = activated(convolution(filters, 3, strides)(before))
            x = layers.Add()([x, convolution(filters, 3)(y)])
    x = layers.GlobalAveragePooling2D()(activated(x))
    return keras.Model(inputs, layers.Dense(classes)(x), name="wide_resnet")


def efficientnet_b0(
    shape: tuple[int, int, int],
    classes: int,
    *,
    weights: str | None = "imagenet",
    size: int = 224,
) -> keras.Model:
    """Builds EfficientNet-B0 behind a layer that resizes the images.

    Args:
        shape: height, width and channels of the images; 3 channels.
        classes: number of logits.
        weights: `"imagenet"`, a file, or `None` or `""` for random ones.
        size: height and width to which the images are resized.

    Raises:
        RuntimeError: if the weights cannot be loaded.
    """
    try:
        backbone = keras.applications.EfficientNetB0(
            include_top=False,
            weights=weights or None,
            input_shape=(size, size, 3),
            pooling="avg",
        )
    except Exception as error:  # no connection, no such file, wrong content
        raise RuntimeError(
            f"The weights {weights!r} of EfficientNet-B0 could not be loaded "
            f"({type(error).__name__}: {error}). Their first use downloads them: "
            "connect to the internet, or pass a file with --set "
            "'model.weights=\"FILE\"'. Random weights, --set 'model.weights=\"\"', are "
            "another experiment."
        ) from error
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Resizing(size, size),
            backbone,
            layers.Dropout(0.2),
            layers.Dense(classes),
        ],
        name="efficientnet_b0",
    )


def fitted_small_cnn(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    *,
    batch_size: int,
    epochs: int,
    seed: int = 0,
    head: type = layers.GlobalAveragePooling2D,
) -> keras.Model:
    """Trains a small CNN by Adam; the pictures and measures of benchmarks attack it.

    Args:
        x: images, (n, height, width, channels), 0 to 255.
        y: integer labels, (n,).
        classes: number of classes.
        batch_size: images in a batch.
        epochs: epochs of the training.
        seed: seed of the initial weights and the batches.
        head: as in `small_cnn`.
    """
    keras.utils.set_random_seed(seed)
    model = small_cnn(x.shape[1:], classes, head=head)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size, epochs, verbose=0)
    return model


def confidences(model: keras.Model, images: Any) -> np.ndarray:
    """The probability of each class by a model with logits, (batch, classes)."""
    softmax = keras.Sequential([model, layers.Softmax()])
    return softmax.predict(images, 256, verbose=0)


MODELS = {
    "small-cnn": small_cnn,
    "mnist-cnn": mnist_cnn,
    "wide-resnet": wide_resnet,
    "efficientnet-b0": efficientnet_b0,
    "efficientnet-lite0": efficientnet_lite0,
}
