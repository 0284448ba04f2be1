"""The same on every backend: values that are kept in a file, and what `fit` does.

`python -m tests.test_backends` writes the file anew, on the backend in use.
"""

import pathlib
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from keras import backend, layers, ops

import keras_structadv as ksa
from keras_structadv.backends import framework
from keras_structadv.backends.train_step import recorded
from keras_structadv.training.fingerprint import fingerprint
from keras_structadv.warp import move_boxes, move_points
from tests.models import bind_as_fit_does

STORED = pathlib.Path(__file__).with_name("stored_values.npz")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(channels=1, pooling=layers.GlobalAveragePooling2D, **compiled):
    """Returns a network whose weights are the same on every backend."""
    model = keras.Sequential(
        [
            keras.Input((16, 16, channels)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", activation="tanh"),
            pooling(),
            layers.Dense(10),
        ]
    )
    random = np.random.default_rng(7)
    for variable in model.trainable_variables:
        if variable.path.endswith("kernel"):
            fan_in = np.prod(variable.shape[:-1])
            value = random.normal(size=variable.shape) / np.sqrt(fan_in)
            variable.assign(value.astype("float32"))
    model.compile(keras.optimizers.SGD(0.1), LOSS, metrics=["accuracy"], **compiled)
    return model


def digits(count=8, channels=1):
    (x, y), _ = ksa.datasets.load_digits(200)
    x = x[:count].astype("float32")
    if channels == 3:
        x = np.concatenate([x, 255 - x, 0.5 * x[::-1] + 64], axis=-1)
    return x, y[:count].astype("int32")


def fixed(kind, **arguments):
    """Returns a layer that draws nothing."""
    if kind is ksa.AdversarialFlow:
        return kind((2.0, 2.0), 100.0, rate=1.0, **arguments)
    return kind((0.1, 0.1), damping=1e-3, rate=1.0, **arguments)


def values():
    """Returns what is held against the file, by name."""
    x, y = digits()
    gradients = ksa.per_image_gradients(network(), x, y)
    form = {"smoothness": 100.0, "max_displacement": 2.0}
    flow = ksa.adversarial_flow(x, gradients, **form)
    colours, _ = digits(channels=3)
    colour_gradients = ksa.per_image_gradients(network(3), colours, y)
    recolor = {"magnitude": 0.1, "damping": 1e-3, "max_iterations": 200}
    boxes = np.array([[[2.0, 3.0, 9.0, 12.0]]] * len(x), "float32")
    found = {
        "gradients": gradients,
        "most confident wrong": ksa.per_image_gradients(
            network(), x, y, target="most_confident_wrong"
        ),
        "flow": flow,
        "flow, alpha": ksa.adversarial_flow(x, gradients, alpha=1.0, **form),
        "warped": ksa.dense_image_warp(x, flow),
        "nearest": ksa.dense_image_warp(x, flow, interpolation="nearest"),
        "boxes": move_boxes(boxes, flow),
        "points": move_points(boxes.reshape(len(x), 2, 2), flow),
        "recolouring": ksa.adversarial_recoloring(colours, colour_gradients, **recolor),
        "recolouring, solved": ksa.adversarial_recoloring(
            colours, colour_gradients, **recolor, rtol=1e-4
        ),
        "recolouring, rank 6": ksa.adversarial_recoloring(
            colours[:2, :8, :8], colour_gradients[:2, :8, :8], damping=1e-3, rank=6
        ),
        "fingerprints": fingerprint(ops.convert_to_tensor(x)),
        "layer, three steps": ksa.AdversarialFlow(
            (6.0, 6.0), 100.0, rate=1.0, steps=3, step_size=1 / 3
        ).bind(network())(x, y)[0],
        "layer, recolouring": fixed(ksa.AdversarialRecoloring).bind(network(3))(
            colours, y
        )[0],
    }
    for gradient in ("fresh", "reuse"):
        for kind, channels in (
            (ksa.AdversarialFlow, 1),
            (ksa.AdversarialRecoloring, 3),
        ):
            name = f"losses, {kind.__name__}, {gradient}"
            found[name] = losses(kind, gradient, channels)
    found["audit, flow"] = audited(network(), digits(40)[0], ksa.AdversarialFlow())
    found["audit, recolouring"] = audited(
        network(3), digits(40, 3)[0], ksa.AdversarialRecoloring(), (0, 0.05, 0.2)
    )
    inside = keras.Sequential([fixed(ksa.AdversarialFlow), network()])
    inside.compile(keras.optimizers.SGD(0.1), LOSS)
    found["losses, inside"] = fit(inside, *digits(), ksa.AdversarialTraining())["loss"]
    return {name: ops.convert_to_numpy(x) for name, x in found.items()}


def audited(model, x, layer, strengths=(0, 0.5, 1, 2)):
    """Returns the columns of a report: how many of the model's answers hold."""
    report = ksa.evaluate_robustness(
        model, x, None, layer, strengths=strengths, steps=5, random=4, seed=1, verbose=0
    )
    return np.array([[*row.values()] for row in report])


def fit(model, x, y, callback, **arguments):
    arguments = {"batch_size": 4, "epochs": 3, "shuffle": False} | arguments
    return model.fit(x, y, verbose=0, callbacks=[callback], **arguments).history


def losses(kind, gradient, channels):
    callback = ksa.AdversarialTraining(fixed(kind), gradient=gradient)
    return fit(network(channels), *digits(channels=channels), callback)["loss"]


@pytest.fixture(scope="module")
def computed():
    return values()


EXPECTED = dict(np.load(STORED)) if STORED.exists() else {}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_values_are_those_of_every_backend(computed, name):
    of_images = any(x in name for x in ("recolouring", "warped", "nearest", "layer"))
    of_images = of_images and "audit" not in name
    atol = 1e-4 * (255 if of_images else max(1.0, np.abs(EXPECTED[name]).max()))
    np.testing.assert_allclose(computed[name], EXPECTED[name], rtol=0, atol=atol)


def test_every_value_is_in_the_file(computed):
    assert set(computed) == set(EXPECTED)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_step_sees_the_weights_of_that_very_step(channels, jit_compile):
    if backend.backend() == "torch" and jit_compile:
        pytest.skip("PyTorch's compiler takes minutes")
    kind = {1: ksa.AdversarialFlow, 3: ksa.AdversarialRecoloring}[channels]
    x, y = digits(8, channels)
    model = network(channels, jit_compile=jit_compile)
    fit(model, x, y, ksa.AdversarialTraining(fixed(kind)), batch_size=2, epochs=2)
    by_hand = network(channels)
    layer = bind_as_fit_does(fixed(kind), by_hand)
    for start in (*range(0, 8, 2), *range(0, 8, 2)):
        batch = slice(start, start + 2)
        by_hand.train_on_batch(*layer(x[batch], y[batch]))
    for ours, theirs in zip(model.variables, by_hand.variables):
        np.testing.assert_allclose(
            *map(ops.convert_to_numpy, (ours, theirs)), rtol=1e-3, atol=1e-4
        )


KEYS = {"loss", "accuracy", "val_loss", "val_accuracy", "adversarial_loss_gain"}


@pytest.mark.parametrize("gradient", ["fresh", "reuse", "inside"])
@pytest.mark.parametrize("kind", [ksa.AdversarialFlow, ksa.AdversarialRecoloring])
def test_fit_lowers_the_loss_and_tells_what_it_did(kind, gradient):
    layer = kind(seed=0)
    x, y = digits(200)
    keras.utils.set_random_seed(0)
    model = network(pooling=layers.Flatten)
    if gradient == "inside":
        model = keras.Sequential([layer, model])
        callback = ksa.AdversarialTraining()
    else:
        callback = ksa.AdversarialTraining(layer, gradient=gradient)
    model.compile(keras.optimizers.Adam(1e-2), LOSS, metrics=["accuracy"])
    before = model.evaluate(x, y, verbose=0)[0]
    history = fit(
        model, x, y, callback, batch_size=20, epochs=6, validation_data=(x, y)
    )
    hits = {"gradient_hit_rate"} if gradient == "reuse" else set()
    assert set(history) == KEYS | {layer.measure_name} | hits
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert model.evaluate(x, y, verbose=0)[0] < 0.9 * before
    assert history["adversarial_loss_gain"][-1] > 0
    assert history[layer.measure_name][-1] > 0
    if hits:
        assert history["gradient_hit_rate"][0] == 0
        assert history["gradient_hit_rate"][-1] == 1


@pytest.mark.parametrize("gradient", ["fresh", "reuse"])
def test_the_step_is_traced_once(gradient):
    calls = []

    class Counting(ksa.AdversarialFlow):
        def apply(self, images, field):
            calls.append(images.shape)
            return super().apply(images, field)

    x, y = digits(16)
    callback = ksa.AdversarialTraining(Counting(), gradient=gradient)
    model = network()
    model.train_on_batch(x[:4], y[:4])  # TensorFlow traces twice where one is made
    fit(model, x, y, callback, epochs=3, validation_data=(x, y))
    batches = 12 if backend.backend() == "torch" else 1  # PyTorch traces nothing
    assert len(calls) == batches


def test_a_model_that_is_fitted_is_the_plain_one_again():
    x, y = digits()
    model = network()
    fit(model, x, y, ksa.AdversarialTraining(ksa.AdversarialFlow(), gradient="reuse"))
    assert not {"train_step", "compute_loss_and_updates"} & set(vars(model))
    assert "stateless_apply" not in vars(model.optimizer)
    history = fit(model, x, y, keras.callbacks.Callback())
    assert set(history) == {"loss", "accuracy"}


def test_a_loss_scale_does_not_enter_what_is_reused():
    x, y = digits()
    gains = []
    for optimizer in (
        keras.optimizers.SGD(1e-3),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3), 1024.0),
    ):
        model = network()
        model.compile(optimizer, LOSS)
        layer = fixed(ksa.AdversarialFlow)
        callback = ksa.AdversarialTraining(layer, gradient="reuse")
        gains.append(fit(model, x, y, callback)["adversarial_loss_gain"])
    np.testing.assert_allclose(*gains, rtol=1e-2, atol=1e-4)
    assert gains[0][-1] > 0.01


def test_ids_beside_the_images():
    x, y = digits()
    model = network()
    if backend.backend() != "tensorflow":  # which does not call the model beforehand
        model.evaluate(x, y, verbose=0)
    callback = ksa.AdversarialTraining(fixed(ksa.AdversarialFlow), gradient="reuse")
    history = fit(model, {"images": x, "ids": np.arange(8)}, y, callback)
    assert history["gradient_hit_rate"] == [0, 1, 1]


@pytest.mark.skipif(backend.backend() == "tensorflow", reason="is at home there")
def test_a_pipeline_of_tensorflow_is_told_what_to_do():
    tf = pytest.importorskip("tensorflow")
    x, y = digits()
    layer = ksa.AdversarialFlow().bind(network())
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    with pytest.raises(ValueError, match=r"on the \w+ backend.*AdversarialTraining"):
        data.map(layer)
    with pytest.raises(NotImplementedError, match="snapshot=True on the"):
        layer.bind(network(), snapshot=True)
    warped = layer(tf.constant(x), y)[0]  # an array like any other
    assert warped.shape == x.shape
    assert len(fit(network(), data, None, ksa.AdversarialTraining(layer))["loss"]) == 3


class OwnStep(keras.Model):
    """With a step of its own, as Keras' guide has it for JAX."""

    def train_step(self, state, data):
        import jax

        weights, others, optimizer, metrics = state
        x, y = data[0], data[1]
        step = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
        (loss, aux), gradients = step(
            weights,
            others,
            metrics,
            x,
            y,
            None,
            training=True,
            optimizer_variables=optimizer,
        )
        weights, optimizer = self.optimizer.stateless_apply(
            optimizer, gradients, weights
        )
        return {"loss": loss}, (weights, aux[2], optimizer, aux[3])


class OwnLoss(keras.Model):
    """With a step that does not ask the model for its loss."""

    def train_step(self, state, data):
        import jax

        weights, others, optimizer, metrics = state

        def loss(weights):
            predictions, _ = self.stateless_call(weights, others, data[0])
            return ops.mean(LOSS(data[1], predictions))

        value, gradients = jax.value_and_grad(loss)(weights)
        weights, optimizer = self.optimizer.stateless_apply(
            optimizer, gradients, weights
        )
        return {"loss": value}, (weights, others, optimizer, metrics)


class ScaledStep(OwnStep):
    """With a step that changes the images first."""

    def train_step(self, state, data):
        return super().train_step(state, (0.5 * data[0], *data[1:]))


def test_after_an_error_in_the_first_step_the_model_can_be_trained():
    x, y = digits()
    model = network()
    callback = ksa.AdversarialTraining(ksa.AdversarialFlow(), gradient="reuse")
    with pytest.raises(ValueError, match="ids of dtype"):
        model.evaluate(x, y, verbose=0)
        fit(model, {"images": x, "ids": x[:, 0, 0, 0]}, y, callback)
    assert np.isfinite(fit(model, x, y, callback)["loss"]).all()


class CountingStep:
    """An augmented step that changes nothing, and counts what is asked of it."""

    def __init__(self):
        self.steps = keras.Variable(0, trainable=False, dtype="int32")
        self.variables = [self.steps]
        self.prepared, self.traced = 0, 0

    def prepare(self, data):
        self.prepared += 1

    def __call__(self, train_step, data):
        self.traced += 1
        self.steps.assign(self.steps + 1)
        return {**train_step(data), "steps": self.steps + 0}


@pytest.mark.parametrize("own", ["none", "made", "set"])
def test_a_train_function_serves_every_fit_and_the_model_keeps_its_own(own):
    x, y = digits()
    model, by_hand = network(), network()
    if own == "set":
        model.train_step = model.train_step
    if own != "none":
        model.make_train_function()
    attributes = {key: vars(model).get(key) for key in ("train_step", "train_function")}
    step = CountingStep()
    train_function = framework().train_function(model, step)
    assert {key: vars(model).get(key) for key in attributes} == attributes
    assert ("train_step" in vars(model)) == (own == "set")

    def run(**arguments):
        class Install(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                model.train_function = train_function

        history = fit(model, x, y, Install(), epochs=2, **arguments)
        model.train_function = None
        return history["steps"]

    model.train_on_batch(x[:4], y[:4])  # TensorFlow traces twice where one is made
    by_hand.train_on_batch(x[:4], y[:4])
    model.train_function = None
    assert run() == [2, 4]
    traced = step.traced
    assert run() == [6, 8]
    if backend.backend() != "torch":
        assert step.traced == traced <= 2
    assert step.prepared == (backend.backend() == "jax")
    fit(by_hand, x, y, keras.callbacks.Callback(), epochs=4)
    for ours, theirs in zip(model.variables, by_hand.variables):
        np.testing.assert_allclose(
            *map(ops.convert_to_numpy, (ours, theirs)), rtol=1e-4, atol=1e-6
        )


@pytest.mark.backends("jax")
def test_a_call_in_the_middle_of_fit_says_why_it_cannot_be():
    x, y = digits()
    model = network()
    layer = ksa.AdversarialFlow(rate=1.0).bind(model)

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return layer(x, y)

    with pytest.raises(ValueError, match="keeps the weights of a model elsewhere"):
        model.fit(Data(), epochs=2, verbose=0)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("kind", [OwnStep, OwnLoss, ScaledStep])
def test_steps_of_their_own_on_jax(kind):
    def train(gradient):
        inputs = keras.Input((16, 16, 1))
        model = kind(inputs, network()(inputs))
        model.compile(keras.optimizers.SGD(0.1), LOSS)
        layer = fixed(ksa.AdversarialFlow)
        callback = ksa.AdversarialTraining(layer, gradient=gradient)
        return fit(model, *digits(), callback)

    assert train("fresh")["adversarial_loss_gain"][-1] > 0
    if kind is OwnStep:
        assert train("reuse")["gradient_hit_rate"] == [0, 1, 1]
    else:
        says = {OwnLoss: "called `compute_loss_and_updates` 0", ScaledStep: "changes"}
        with pytest.raises(ValueError, match=f"{says[kind]}.*fresh"):
            train("reuse")


@pytest.mark.backends("jax")
@pytest.mark.parametrize(
    "compiled", [{"steps_per_execution": 2}, {"run_eagerly": True}]
)
def test_ways_to_run_on_jax(compiled):
    def losses(**compiled):
        layer = fixed(ksa.AdversarialFlow)
        callback = ksa.AdversarialTraining(layer, gradient="reuse")
        return fit(network(**compiled), *digits(16), callback)["loss"]

    np.testing.assert_allclose(losses(**compiled), losses(), rtol=1e-3)


TRAINS = """
import importlib.machinery
import sys
import threading

class Missing:  # as if it were not installed
    def find_spec(self, name, *_):
        return importlib.machinery.ModuleSpec(name, self) if name == TF else None

    def create_module(self, spec):
        raise ImportError(spec.name)

    exec_module = create_module

TF = "tensorflow"
sys.meta_path.insert(0, Missing())
import numpy as np
import keras
import keras_structadv as ksa

x = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 3))
y = np.arange(8) % 2
for layer in (ksa.AdversarialFlow(), ksa.AdversarialRecoloring()):
    for gradient in ("fresh", "reuse"):
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(),
            keras.layers.Rescaling(1 / 255), keras.layers.Dense(2)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        callback = ksa.AdversarialTraining(layer, gradient=gradient)
        model.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
"""


@pytest.mark.skipif(backend.backend() == "tensorflow", reason="needs itself")
def test_tensorflow_is_not_needed():
    subprocess.run([sys.executable, "-c", TRAINS], check=True)


if __name__ == "__main__":
    np.savez_compressed(STORED, **values())


def test_a_method_is_recorded_for_each_thread():
    # As replicas do: each enters before the others have left.
    model = network()
    own = model.compute_loss
    entered, left = threading.Barrier(2), []

    def replica(number):
        with recorded(model, "summary") as results:
            entered.wait()
            for _ in range(number):
                model.summary(print_fn=lambda line: None)
            entered.wait()
            left.append((number, len(results)))

    threads = [threading.Thread(target=replica, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(left) == [(1, 1), (2, 2)]
    assert "summary" not in vars(model)
    assert model.compute_loss == own
