"""Arguments: complete signatures, hints for wrong names, warnings for wrong units."""

import inspect

import keras
import numpy as np
import pytest

import keras_structadv as ksa
from tests.models import small_model

ADVERSARIAL = [ksa.AdversarialFlow, ksa.AdversarialRecoloring]
RANDOM = [ksa.RandomFlow, ksa.RandomRecoloring]
COMMON = ["rate", "value_range", "seed", "data_format", "bounding_box_format"]


@pytest.mark.parametrize("kind", [*ADVERSARIAL, *RANDOM])
def test_the_signature_and_the_docstring_name_every_argument(kind):
    parameters = list(inspect.signature(kind).parameters)
    own = ["target", "steps", "step_size", "random_start", "loss"]
    expected = [*COMMON, *(own if kind in ADVERSARIAL else [])]
    assert set(expected) <= set(parameters)
    section = kind.__doc__.split("Args:")[1].split("Input shape:")[0]
    for name in parameters:
        assert f"        {name}: " in section or f"**{name}: " in section, name
    config = kind().get_config()
    assert set(parameters) - {"kwargs"} <= set(config)


@pytest.mark.parametrize("kind", [*ADVERSARIAL, *RANDOM])
@pytest.mark.parametrize(
    "wrong,hint", [("p", "rate"), ("rates", "rate"), ("valuerange", "value_range")]
)
def test_a_wrong_name_gets_a_hint(kind, wrong, hint):
    with pytest.raises(TypeError, match=f"no argument '{wrong}'.*Did you mean {hint}"):
        kind(**{wrong: 0.5})
    assert kind(trainable=False).trainable is False


def test_hints_name_arguments_that_the_layer_has():
    with pytest.raises(TypeError, match="Did you mean smoothness"):
        ksa.AdversarialFlow(gamma=10)
    with pytest.raises(TypeError, match="'gamma'. Pass some of"):
        ksa.AdversarialRecoloring(gamma=10)
    with pytest.raises(TypeError, match="Did you mean magnitude"):
        ksa.RandomRecoloring(eps=0.1)


@pytest.mark.parametrize("kind", ADVERSARIAL)
@pytest.mark.parametrize(
    "name,value",
    [
        ("target", np.zeros(2)),
        ("bounding_box_format", np.zeros(2)),
        ("rate", 10**400),
        ("value_range", (0, 10**400)),
        ("value_range", (0, 1e39)),
        (None, 10**400),
        (None, 1e39),
    ],
)
def test_values_that_no_comparison_can_take_are_named(kind, name, value):
    name = name or kind.strength_name
    with pytest.raises(ValueError, match=f"Received {name}="):
        kind(**{name: value})


def test_random_layers_have_no_target():
    with pytest.raises(TypeError, match="RandomFlow has no argument 'target'"):
        ksa.RandomFlow(target="random")


def test_strengths_in_another_unit_are_warned_of():
    with pytest.warns(UserWarning, match=r"magnitude=20.0.*fraction.*by 255"):
        ksa.AdversarialRecoloring(magnitude=20)
    with pytest.warns(UserWarning, match=r"max_displacement=0.1.*in pixels"):
        ksa.AdversarialFlow(max_displacement=0.1)
    with pytest.warns(UserWarning, match="in pixels"):
        ksa.RandomFlow((0.0, 0.1))
    ksa.AdversarialFlow(max_displacement=0)  # which is meant


def test_images_of_the_other_layout_are_warned_of(images, labels):
    layer = ksa.RandomFlow(rate=1.0, value_range=(0, 1))
    given = np.tile(images, (1, 1, 1, 3)).transpose(0, 3, 1, 2)
    with pytest.warns(UserWarning, match="8 channels.*'channels_first'"):
        layer(given)
    ksa.RandomFlow(rate=1.0, data_format="channels_first")(given)


@pytest.mark.parametrize("kind", [*ADVERSARIAL, *RANDOM])
def test_a_layer_among_the_callbacks_says_what_to_do(kind, images, labels):
    with pytest.raises(
        AttributeError, match="among the callbacks.*AdversarialTraining"
    ):
        small_model().fit(images, labels, verbose=0, callbacks=[kind()])
    assert not hasattr(kind(), "on_batch_end")
    with pytest.raises(AttributeError, match="nothing"):
        kind().nothing  # noqa: B018


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 5, 4), (6, 4, 4, 1)])
def test_labels_that_would_stay_behind_are_named(shape, images):
    model = small_model()
    layer = ksa.AdversarialFlow(rate=1.0, value_range=(0, 1)).bind(model)
    y = np.zeros(shape, "float32")
    with pytest.raises(ValueError, match=r"labels or weights of shape.*bounding_boxes"):
        layer.move({"labels": y}, np.zeros((6, 8, 8, 2)), images)
    boxes = {"boxes": np.zeros((6, 2, 4)), "labels": np.zeros((6, 2))}
    with pytest.raises(ValueError, match=r"\(6, 2, 4\).*bounding_boxes"):
        layer.move({"labels": boxes}, np.zeros((6, 8, 8, 2)), images)
    recolor = ksa.AdversarialRecoloring()
    assert recolor.move({"labels": y}, None, images) == {}


def test_boxes_as_labels_are_named_in_fit(images):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
            keras.layers.Reshape((2, 4)),
        ]
    )
    model.compile("sgd", "mean_squared_error")
    callback = ksa.AdversarialTraining(ksa.AdversarialFlow(value_range=(0, 1)))
    with pytest.raises(ValueError, match="labels or weights of shape.*bounding_boxes"):
        model.fit(images, np.zeros((6, 2, 4)), verbose=0, callbacks=[callback])


class Brief(ksa.AdversarialFlow):
    """Passes on what it does not know."""

    def __init__(self, own=1, **arguments):
        super().__init__(**arguments)
        self.own = own


class Private(ksa.AdversarialFlow):
    """Adds its argument to the configuration itself, as Keras' guide does."""

    def __init__(self, own=1, **arguments):
        super().__init__(**arguments)
        self._own = own

    def get_config(self):
        return {**super().get_config(), "own": self._own}


@pytest.mark.parametrize("kind", [Brief, Private])
def test_the_configuration_of_a_subclass_is_complete(kind, images, labels):
    layer = kind(own=3, rate=0.25, max_displacement=7.0)
    config = layer.get_config()
    assert (config["own"], config["rate"], config["max_displacement"]) == (3, 0.25, 7)
    assert kind.from_config(config).get_config() == config
    callback = ksa.AdversarialTraining(kind(rate=1.0, value_range=(0, 1)))
    small_model().fit(images, labels, verbose=0, callbacks=[callback])


@pytest.mark.backends("tensorflow")
def test_masks_of_unknown_size_are_asked_for_their_shape(images):
    import tensorflow as tf

    layer = ksa.RandomFlow(rate=1.0, value_range=(0, 1))
    masks = tf.function(
        lambda x, y: layer(x, y),
        input_signature=[
            tf.TensorSpec((None, 8, 8, 1)),
            tf.TensorSpec((None, None, None)),
        ],
    )
    with pytest.raises(ValueError, match="static shape.*ensure_shape"):
        masks(images, images[..., 0])


@pytest.mark.parametrize(
    "kind, changes",
    [
        (ksa.AdversarialFlow, {"steps": 10**9}),
        (ksa.AdversarialRecoloring, {"steps": 1001}),
        (ksa.AdversarialRecoloring, {"rank": 10**9}),
        (ksa.RandomRecoloring, {"max_iterations": 10**9}),
    ],
)
def test_a_configuration_that_never_ends_is_refused(kind, changes):
    (name,) = changes
    # Keras makes a TypeError of it, with the message.
    with pytest.raises(TypeError, match=f"Received {name}=.*Pass an integer <= "):
        kind.from_config({**kind().get_config(), **changes})


def test_a_configuration_runs_nothing(tmp_path):
    config = ksa.AdversarialFlow().get_config()
    made = tmp_path / "made"
    for loss in (
        {"module": "os", "class_name": "mkdir", "config": {"path": str(made)}},
        {"module": "builtins", "class_name": "function", "config": "eval"},
    ):
        with pytest.raises((TypeError, ValueError)):
            ksa.AdversarialFlow.from_config({**config, "loss": loss})
    assert not made.exists()


def test_a_store_beyond_int32_is_refused():
    with pytest.raises(ValueError, match="capacity=10*. Pass an integer <= 1073741824"):
        ksa.GradientStore(capacity=10**12)
