import keras
import numpy as np
import pytest
from conftest import small_model
from keras import layers, ops

import keras_structadv as ksa

LOSS = "sparse_categorical_crossentropy"


def loss_from_logits(y, p):
    return keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

    def call(self, x):
        return self.dense(self.flatten(x))


class OwnStep(Subclassed):
    """Steps with half of the gradient, and reports so."""

    def train_step(self, data):
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), sample_weight)
        variables = self.trainable_variables
        halves = [0.5 * g for g in tape.gradient(loss, variables)]
        self.optimizer.apply(halves, variables)
        return {"loss": loss, "own": 1.0}


def functional():
    inputs = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


KINDS = {
    "sequential": lambda: small_model(compiled=False),
    "functional": functional,
    "subclassed": Subclassed,
    "own train_step": OwnStep,
}


def layer(**kwargs):
    return ksa.AdversarialFlow(
        **{"rate": 0.5, "seed": 1, "max_displacement": (1, 2), **kwargs}
    )


def build(kind, loss=loss_from_logits, metrics=("accuracy",), **compile_arguments):
    keras.utils.set_random_seed(0)
    model = KINDS[kind]()
    if kind != "own train_step":
        compile_arguments = {"metrics": list(metrics), **compile_arguments}
    model.compile(keras.optimizers.SGD(0.05), loss, **compile_arguments)
    model(np.zeros((1, 8, 8, 1)))
    return model


def one_step_by_hand(model, images, labels, sample_weight=None, **kwargs):
    """Trains on a batch that the layer augmented outside of the train step."""
    moved = layer(**kwargs).bind(model)(images, labels)[0]
    model.train_on_batch(ops.convert_to_numpy(moved), labels, sample_weight)


def assert_same_weights(a, b, atol=1e-5):
    for x, y in zip(a.get_weights(), b.get_weights()):
        np.testing.assert_allclose(x, y, atol=atol)


def assert_plain(model):
    assert "train_step" not in vars(model)
    assert model.train_function is None


def assert_matches_by_hand(
    kind, images, labels, sample_weight=None, **compile_arguments
):
    model = build(kind, **compile_arguments)
    history = model.fit(
        images,
        labels,
        sample_weight=sample_weight,
        batch_size=6,
        shuffle=False,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(layer())],
    ).history
    by_hand = build(kind, **compile_arguments)
    start = by_hand.get_weights()
    one_step_by_hand(by_hand, images, labels, sample_weight)
    assert_same_weights(model, by_hand)
    plain = build(kind, **compile_arguments)
    plain.train_on_batch(images, labels, sample_weight)
    assert np.abs(plain.get_weights()[0] - model.get_weights()[0]).max() > 1e-4
    assert np.abs(start[0] - model.get_weights()[0]).max() > 1e-4
    assert history["adversarial_loss_gain"][0] > 0
    assert_plain(model)
    return history


@pytest.mark.parametrize(
    "execution", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_on_what_the_layer_makes(kind, execution, images, labels):
    history = assert_matches_by_hand(kind, images, labels, **execution)
    assert ("own" in history) == (kind == "own train_step")


@pytest.mark.parametrize("kind", KINDS)
def test_sample_weights(kind, images, labels):
    weights = np.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], "float32")
    assert_matches_by_hand(kind, images, labels, weights)


@pytest.mark.parametrize("kind", KINDS)
def test_one_hot_labels(kind, images, labels):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    one_hot = keras.utils.to_categorical(labels, 3)
    assert_matches_by_hand(kind, images, one_hot, loss=loss)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_per_execution(kind, images, labels, jit_compile):
    def train(steps_per_execution):
        model = build(
            kind, steps_per_execution=steps_per_execution, jit_compile=jit_compile
        )
        callback = ksa.AdversarialTraining(layer())
        fit = {"batch_size": 2, "epochs": 3, "shuffle": False, "verbose": 0}
        history = model.fit(images, labels, **fit, callbacks=[callback]).history
        assert_plain(model)
        return model, history

    (one, first), (three, second) = train(1), train(3)
    assert_same_weights(one, three)
    np.testing.assert_allclose(
        first["adversarial_loss_gain"], second["adversarial_loss_gain"], rtol=1e-4
    )


def test_the_weights_in_the_middle_of_an_epoch_are_used(images, labels):
    model = build("sequential")
    fit = {"batch_size": 2, "shuffle": False, "verbose": 0}
    callback = ksa.AdversarialTraining(layer(rate=1.0, max_displacement=(2, 2)))
    model.fit(images, labels, **fit, callbacks=[callback])
    by_hand = build("sequential")
    for k in range(0, 6, 2):
        one_step_by_hand(
            by_hand,
            images[k : k + 2],
            labels[k : k + 2],
            rate=1.0,
            max_displacement=(2, 2),
        )
    assert_same_weights(model, by_hand)


def test_a_last_batch_that_is_smaller(images, labels):
    for jit_compile in (False, True):
        model = build("sequential", jit_compile=jit_compile)
        callback = ksa.AdversarialTraining(layer())
        fit = {"batch_size": 4, "epochs": 2, "verbose": 0}
        history = model.fit(images, labels, **fit, callbacks=[callback]).history
        assert np.all(np.isfinite(history["loss"]))


def test_without_labels_in_the_data(images):
    class Confident(Subclassed):
        """Is pulled towards its own answer."""

        def train_step(self, data):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            return super().train_step((x, ops.argmax(self(x), axis=-1)))

    model = Confident()
    model.compile("sgd", loss_from_logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    callback = ksa.AdversarialTraining(layer(loss=loss))
    history = model.fit(images, verbose=0, callbacks=[callback]).history
    assert history["adversarial_loss_gain"][0] > 0


def test_the_step_is_traced_once(images, labels):
    traces = []

    class Counting(Subclassed):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    def fit(callbacks):
        traces.clear()
        model = Counting()
        model.compile("sgd", loss_from_logits)
        model(images)
        model.optimizer.build(model.trainable_variables)
        arguments = {"batch_size": 3, "epochs": 4, "verbose": 0}
        model.fit(images, labels, **arguments, callbacks=callbacks)
        return len(traces)

    callback = ksa.AdversarialTraining(layer(), schedule=lambda epoch: epoch / 4)
    assert fit([callback]) == fit([]) == 1


def test_the_gain_is_the_mean_over_the_augmented_images(images, labels):
    model = build("subclassed", metrics=())
    model.optimizer.learning_rate = 0.0
    fit = {"batch_size": 2, "epochs": 2, "shuffle": False, "verbose": 0}
    history = model.fit(
        images, labels, **fit, callbacks=[ksa.AdversarialTraining(layer())]
    ).history
    by_hand = layer().bind(build("subclassed"))
    for epoch in range(2):
        gains = [
            float(by_hand.augment(images[k : k + 2], labels[k : k + 2]).gain[0])
            for k in range(0, 6, 2)
        ]
        np.testing.assert_allclose(
            history["adversarial_loss_gain"][epoch], np.mean(gains), rtol=1e-3
        )


def test_the_schedule_scales_the_displacement(images, labels):
    seen = []

    class Recorder(ksa.AdversarialFlow):
        def make_field(self, images, gradients, strength):
            flow = super().make_field(images, gradients, strength)
            seen.append(ops.convert_to_numpy(flow))
            return flow

    recorder = Recorder(max_displacement=(2, 2), rate=1.0)
    model = build("sequential", run_eagerly=True)
    callback = ksa.AdversarialTraining(
        recorder, schedule=lambda epoch: [0, 0.5, 1][epoch]
    )
    fit = {"batch_size": 6, "epochs": 3, "verbose": 0}
    history = model.fit(images, labels, **fit, callbacks=[callback]).history
    longest = [np.linalg.norm(flow, axis=-1).max(axis=(1, 2)) for flow in seen]
    for actual, expected in zip(longest, (0.0, 1.0, 2.0)):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert history["adversarial_loss_gain"][0] == 0
    assert history["adversarial_loss_gain"][2] > 0


def test_a_schedule_starts_at_the_initial_epoch(images, labels):
    epochs = []
    model = build("sequential")
    callback = ksa.AdversarialTraining(
        layer(), schedule=lambda epoch: epochs.append(epoch) or 1.0
    )
    fit = {"epochs": 7, "initial_epoch": 4, "verbose": 0}
    model.fit(images, labels, **fit, callbacks=[callback])
    assert epochs == [4, 5, 6]


def test_validation_and_evaluation_are_plain(images, labels):
    model = build("sequential")
    model.optimizer.learning_rate = 0.0
    validation = (images, labels)
    model.layers[1].trainable = False
    history = model.fit(
        images,
        labels,
        verbose=0,
        validation_data=validation,
        callbacks=[ksa.AdversarialTraining(layer(rate=1.0))],
    ).history
    assert "val_adversarial_loss_gain" not in history
    np.testing.assert_allclose(
        history["val_loss"][0], model.evaluate(images, labels, verbose=0)[0], rtol=1e-6
    )


def test_afterwards_the_model_is_the_plain_one(images, labels, tmp_path):
    model = build("functional")
    names = [w.path for w in model.weights]
    plain = build("functional")
    plain.fit(images, labels, verbose=0)
    callback = ksa.AdversarialTraining(layer())
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "during.keras")
    model.fit(images, labels, verbose=0, callbacks=[callback, checkpoint])
    assert [w.path for w in model.weights] == names
    assert set(vars(model)) == set(vars(plain))
    assert model.metrics_names == plain.metrics_names
    assert_plain(model)
    custom = {"loss_from_logits": loss_from_logits}
    saved = keras.saving.load_model(tmp_path / "during.keras", custom_objects=custom)
    assert_same_weights(saved, model, atol=0)
    history = model.fit(images, labels, verbose=0).history
    assert "adversarial_loss_gain" not in history


def test_a_train_step_of_the_instance_is_kept(images, labels):
    model = build("sequential")
    calls = []
    plain = model.train_step

    def own(data):
        calls.append(1)
        return plain(data)

    model.train_step = own
    model.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining(layer())])
    assert calls and model.train_step is own


class Stop(keras.callbacks.Callback):
    def __init__(self, place):
        super().__init__()
        setattr(self, place, self.stop)

    def stop(self, *_, **__):
        raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        """Keeps Keras from running the callbacks in another thread."""


def assert_trains_plainly(model, images, labels):
    assert "train_step" not in vars(model)
    reference = build("sequential")
    reference.set_weights(model.get_weights())
    fit = {"shuffle": False, "epochs": 2, "verbose": 0}
    history = model.fit(images, labels, **fit).history
    expected = reference.fit(images, labels, **fit).history
    assert set(history) == set(expected)
    assert_same_weights(model, reference, atol=1e-6)


@pytest.mark.parametrize("place", ["on_epoch_end", "on_train_batch_end"])
@pytest.mark.parametrize("first", [False, True])
def test_a_fit_that_is_interrupted_leaves_a_plain_model(images, labels, place, first):
    model = build("sequential")
    callbacks = [ksa.AdversarialTraining(layer()), Stop(place)]
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            images, labels, verbose=0, callbacks=callbacks[::-1] if first else callbacks
        )
    assert_trains_plainly(model, images, labels)


def test_data_of_unknown_length(images, labels):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    data = data.filter(lambda x, y: True)
    for arguments in ({}, {"run_eagerly": True}, {"steps_per_execution": 2}):
        model = build("sequential", **arguments)
        callback = ksa.AdversarialTraining(layer())
        history = model.fit(data, epochs=3, verbose=0, callbacks=[callback]).history
        assert np.all(np.abs(history["adversarial_loss_gain"]) > 0)
        assert_plain(model)


def test_a_layer_that_was_bound_before_is_so_afterwards(images, labels):
    calls = []

    def own(y, p):
        calls.append(1)
        return loss_from_logits(y, p)

    model, teacher = build("sequential"), build("subclassed")
    bound = layer().bind(model, loss=own)
    model.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining(bound)])
    assert calls and bound.binding.model is model and bound.binding.loss is own
    bound.bind(teacher)
    model.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining(bound)])
    assert bound.binding.model is teacher
    free = layer()
    model.fit(images, labels, verbose=0, callbacks=[ksa.AdversarialTraining(free)])
    assert free.binding.model is None


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_rate_zero_is_plain_training(images, labels, run_eagerly):
    model, plain = (build("functional", run_eagerly=run_eagerly) for _ in range(2))
    callback = ksa.AdversarialTraining(layer(rate=0.0))
    fit = {"shuffle": False, "verbose": 0}
    history = model.fit(images, labels, **fit, callbacks=[callback]).history
    plain.fit(images, labels, **fit)
    assert_same_weights(model, plain, atol=0)
    assert history["adversarial_loss_gain"] == [0]


def test_one_input_in_a_list_or_a_dict(images, labels):
    def fit(x):
        inputs = keras.Input((8, 8, 1), name="im")
        keras.utils.set_random_seed(0)
        structure = {"im": inputs} if isinstance(x, dict) else inputs
        x_out = layers.Dense(3, name="out")(layers.Flatten()(inputs))
        model = keras.Model(structure, x_out)
        model.compile("sgd", [loss_from_logits])
        callback = ksa.AdversarialTraining(layer())
        model.fit(x, labels, shuffle=False, verbose=0, callbacks=[callback])
        return model

    bare = fit(images)
    assert_same_weights(fit([images]), bare)
    assert_same_weights(fit({"im": images}), bare)


def test_labels_that_are_masks_move_with_the_images(images):
    """Exactly where the image is 1: what the model sees shows whether they fit."""
    seen = []

    def keep(labels, predictions):
        seen.append((labels, predictions))
        return ops.mean(ops.square(predictions - ops.cast(labels, "float32")), -1)

    def fit(gradient, masks):
        seen.clear()
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(1, 1)])
        model.layers[0].set_weights([np.ones((1, 1, 1, 1)), np.zeros(1)])
        model.compile(keras.optimizers.SGD(0.0), keep, run_eagerly=True)
        mover = ksa.AdversarialFlow(max_displacement=(2, 2), rate=0.5, seed=1)
        callback = ksa.AdversarialTraining(mover, gradient=gradient)
        fit = {"shuffle": False, "epochs": 2, "verbose": 0, "callbacks": [callback]}
        model.fit(images, masks, **fit)
        return tuple(map(ops.convert_to_numpy, seen[-1]))

    for gradient in ("fresh", "reuse"):
        masks = (images > 0.5).astype("int32")
        moved, image = fit(gradient, masks)
        assert moved.shape == masks.shape and set(np.unique(moved)) == {0, 1}
        assert (moved != masks).mean() > 0.01
        assert ((image > 0.5) != moved).mean() < 0.05
        assert ((image > 0.5) != masks).mean() > ((image > 0.5) != moved).mean()
        flat, _ = fit(gradient, masks[..., 0])
        np.testing.assert_array_equal(np.ravel(flat), np.ravel(moved))


def test_an_error_inside_the_step_leaves_a_plain_model(images, labels):
    tf = pytest.importorskip("tensorflow")

    def broken():
        yield images, labels
        raise RuntimeError("the disk is gone")

    data = tf.data.Dataset.from_generator(
        broken,
        output_signature=(
            tf.TensorSpec((6, 8, 8, 1)),
            tf.TensorSpec((6,), "int64"),
        ),
    )
    model = build("sequential")
    with pytest.raises(tf.errors.OpError, match="the disk is gone"):
        model.fit(data, verbose=0, callbacks=[ksa.AdversarialTraining(layer())])
    assert_trains_plainly(model, images, labels)


def test_one_callback_serves_several_models(images, labels):
    callback = ksa.AdversarialTraining(layer(rate=1.0))
    first, second = build("sequential"), build("subclassed")
    for model in (first, second, first):
        history = model.fit(images, labels, verbose=0, callbacks=[callback]).history
        assert history["adversarial_loss_gain"][0] > 0


def test_a_bad_image_does_not_spoil_the_gain(images, labels):
    images[1] = np.nan
    model = build("sequential")
    seen = []

    class Watch(ksa.AdversarialFlow):
        def augment(self, *args, **kwargs):
            augmented = super().augment(*args, **kwargs)
            seen.append(ops.convert_to_numpy(augmented.gain))
            return augmented

    model.compile("sgd", loss_from_logits, run_eagerly=True)
    callback = ksa.AdversarialTraining(Watch(rate=1.0))
    model.fit(images, labels, shuffle=False, verbose=0, callbacks=[callback])
    assert np.isfinite(seen[0]).all() and seen[0][1] == 0


def test_bad_arguments_are_named(images, labels):
    with pytest.raises(ValueError, match="layer='flow'.*AdversarialFlow"):
        ksa.AdversarialTraining("flow")
    with pytest.raises(ValueError, match="gradient='stale'.*fresh"):
        ksa.AdversarialTraining(layer(), gradient="stale")
    with pytest.raises(ValueError, match="schedule=0.5.*function"):
        ksa.AdversarialTraining(layer(), schedule=0.5)
    model = build("sequential")
    callback = ksa.AdversarialTraining(layer(), schedule=lambda epoch: 2)
    with pytest.raises(ValueError, match=r"schedule\(0\) returned 2"):
        model.fit(images, labels, verbose=0, callbacks=[callback])
    model = build("sequential")
    with pytest.raises(ValueError, match="two AdversarialTraining"):
        model.fit(
            images,
            labels,
            verbose=0,
            callbacks=[ksa.AdversarialTraining(layer()) for _ in range(2)],
        )
    flat = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    flat.compile("sgd", loss_from_logits)
    with pytest.raises(ValueError, match=r"images of rank 4.*\(None, 4\)"):
        flat.fit(
            np.zeros((6, 4)),
            labels,
            verbose=0,
            callbacks=[ksa.AdversarialTraining(layer())],
        )


@pytest.mark.parametrize("rank", [3, 4])
def test_weights_of_pixels_move_with_the_masks(rank, images):
    """They are where the mask is: so they have to be afterwards."""
    seen = []

    class Watch(keras.Model):
        def __init__(self):
            super().__init__()
            self.pixels = layers.Conv2D(2, 1)

        def call(self, x, training=None):
            return self.pixels(x)

        def train_step(self, data):
            seen.append(keras.tree.map_structure(ops.convert_to_numpy, data))
            return super().train_step(data)

    masks = (images > 0.5).astype("int32")
    masks = masks if rank == 4 else masks[..., 0]
    for gradient in ("fresh", "reuse"):
        model = Watch()
        model.compile("sgd", loss_from_logits, run_eagerly=True)
        mover = ksa.AdversarialFlow(max_displacement=(2, 2), rate=1.0, seed=1)
        callback = ksa.AdversarialTraining(mover, gradient=gradient)
        weights = 1.0 + masks.astype("float32").reshape(6, 8, 8)
        fit = {"shuffle": False, "epochs": 2, "verbose": 0, "callbacks": [callback]}
        model.fit(images, masks, sample_weight=weights, **fit)
        _, labels, weights = seen[-1]
        assert (labels != masks).any()
        np.testing.assert_array_equal(weights, 1 + labels.reshape(6, 8, 8))


def test_the_history_has_the_means_of_the_training(images, labels):
    """Validation comes before the end of the epoch, and has means of its own."""
    model = build("functional")
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.F1Score(average=None)],
    )
    y = np.eye(3, dtype="float32")[labels]
    history = model.fit(
        images,
        y,
        verbose=0,
        validation_data=(images, np.roll(y, 1, axis=0)),
        callbacks=[ksa.AdversarialTraining(layer(rate=0.0))],
    ).history
    assert np.shape(history["f1_score"]) == (1, 3)  # one for each class
    expected = build("functional")  # with the same weights
    expected.compile(keras.optimizers.SGD(0.0), model.loss)
    logs = expected.fit(images, y, verbose=0).history
    np.testing.assert_allclose(history["loss"], logs["loss"], rtol=1e-5)
    assert abs(history["loss"][0] - history["val_loss"][0]) > 1e-3


def test_losses_without_a_config(images, labels):
    class Own:
        def __call__(self, y_true, y_pred):
            return loss_from_logits(y_true, y_pred)

    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(inputs)
    model = keras.Model(inputs, [layers.Dense(3)(x), layers.Dense(3)(x)])
    model.compile("sgd", [Own(), loss_from_logits], loss_weights=[1.0, 0.5])
    callback = ksa.AdversarialTraining(layer())
    history = model.fit(images, [labels, labels], verbose=0, callbacks=[callback])
    assert history.history["adversarial_loss_gain"][0] > 0


def test_labels_of_another_size_are_not_left_behind(images):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 2, strides=2)])
    model.compile("sgd", loss_from_logits)
    masks = np.zeros((6, 4, 4, 1), "int32")
    with pytest.raises(ValueError, match="have another size: resize them"):
        model.fit(
            images, masks, verbose=0, callbacks=[ksa.AdversarialTraining(layer())]
        )


def two_inputs():
    """Returns a model whose gradient depends on what is given beside the images."""
    keras.utils.set_random_seed(0)
    inputs = {
        "images": keras.Input((8, 8, 1), name="images"),
        "scale": keras.Input((1,), name="scale"),
    }
    scale = layers.Reshape((1, 1, 1))(inputs["scale"])
    x = layers.Flatten()(ops.tanh(inputs["images"] * scale))
    x = layers.Dense(8, activation="tanh")(x)
    outputs = {
        "kind": layers.Dense(3, name="kind")(x),
        "size": layers.Dense(1, name="size")(x),
    }
    model = keras.Model(inputs, outputs)
    loss = {"kind": loss_from_logits, "size": "mse"}
    weights = {"kind": 1.0, "size": 0.3}
    model.compile(keras.optimizers.SGD(0.05), loss, loss_weights=weights)
    return model


@pytest.mark.parametrize("execution", ["dict", "lists", "inside"])
def test_several_inputs_and_outputs(execution, images, labels):
    scale = np.array([[0.1], [1], [4], [-1], [2], [3]], "float32")
    x = {"images": images, "scale": scale}
    y = {"kind": labels, "size": np.linspace(0, 1, 6)[:, None].astype("float32")}
    x_plain, y_plain = x, y
    gradients = ksa.per_image_gradients(two_inputs(), x, y)
    mover = layer(rate=0.5).bind(two_inputs())
    by_hand = two_inputs()
    moved = mover({**x, "labels": y})["images"]
    by_hand.train_on_batch({**x, "images": ops.convert_to_numpy(moved)}, y)
    model, callback = two_inputs(), ksa.AdversarialTraining(layer(rate=0.5))
    if execution == "lists":
        model = keras.Model(list(model.input.values()), list(model.output.values()))
        model.compile(
            keras.optimizers.SGD(0.05),
            [loss_from_logits, "mse"],
            loss_weights=[1.0, 0.3],
        )
        x, y = list(x.values()), list(y.values())
        again = ksa.per_image_gradients(model, x, y)
        np.testing.assert_allclose(again, gradients, rtol=1e-3, atol=1e-6)
    if execution == "inside":
        inputs = {k: keras.Input(v.shape[1:], name=k) for k, v in model.input.items()}
        inner = model
        passed = {**inputs, "images": layer(rate=0.5)(inputs["images"])}
        model = keras.Model(inputs, inner(passed))
        model.compile(keras.optimizers.SGD(0.05), inner.loss, loss_weights=[1.0, 0.3])
        callback = ksa.AdversarialTraining()
    fit = {"batch_size": 6, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, callbacks=[callback], **fit).history
    assert history["adversarial_loss_gain"][0] > 0
    assert_same_weights(model, by_hand)
    plain = two_inputs()
    plain.train_on_batch(x_plain, y_plain)
    assert np.abs(plain.get_weights()[0] - model.get_weights()[0]).max() > 1e-5


def test_several_outputs_can_be_reused(images, labels):
    scale = np.ones((6, 1), "float32")
    x = {"images": images, "scale": scale}
    y = {"kind": labels, "size": np.zeros((6, 1), "float32")}
    callback = ksa.AdversarialTraining(layer(), gradient="reuse")
    history = (
        two_inputs()
        .fit({**x, "ids": np.arange(6)}, y, epochs=3, verbose=0, callbacks=[callback])
        .history
    )
    assert history["gradient_hit_rate"] == [0, 1, 1]
    assert history["adversarial_loss_gain"][1] > 0


def test_class_weights_count_and_do_not_turn_the_field(images, labels):
    weights = {0: 1.0, 1: 0.0, 2: 3.0}
    model = build("functional")
    fit = {"batch_size": 6, "shuffle": False, "verbose": 0}
    callback = ksa.AdversarialTraining(layer())
    model.fit(images, labels, class_weight=weights, callbacks=[callback], **fit)
    by_hand = build("functional")
    of_each = np.array([weights[k] for k in labels], "float32")
    one_step_by_hand(by_hand, images, labels, of_each)
    assert_same_weights(model, by_hand)


def test_a_model_that_adds_losses(images, labels):
    class Adds(layers.Layer):
        def call(self, x):
            self.add_loss(1e-3 * ops.sum(ops.square(x)))
            return x

    def make():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 1))
        x = layers.Dense(
            8, kernel_regularizer="l2", activity_regularizer="l2", activation="tanh"
        )(layers.Flatten()(Adds()(inputs)))
        model = keras.Model(inputs, layers.Dense(3)(x))
        model.compile(keras.optimizers.SGD(0.05), loss_from_logits)
        return model

    for gradient in ("fresh", "reuse"):
        callback = ksa.AdversarialTraining(
            layer(max_displacement=0.0), gradient=gradient
        )
        fit = {"batch_size": 3, "epochs": 2, "shuffle": False, "verbose": 0}
        model, plain = make(), make()
        history = model.fit(images, labels, callbacks=[callback], **fit).history
        expected = plain.fit(images, labels, **fit).history
        np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
        assert_same_weights(model, plain)
    model = make()
    model.fit(images, labels, callbacks=[ksa.AdversarialTraining(layer())], **fit)
    assert np.abs(model.get_weights()[0] - plain.get_weights()[0]).max() > 1e-4


@pytest.mark.parametrize("mix", [layers.MixUp(seed=1), layers.CutMix(seed=1)])
def test_soft_labels(mix, images, labels):
    tf = pytest.importorskip("tensorflow")
    soft = np.eye(3, dtype="float32")[labels]
    data = tf.data.Dataset.from_tensor_slices({"images": images, "labels": soft})
    data = data.batch(6).map(mix).map(lambda d: (d["images"], d["labels"])).cache()
    x, y = next(iter(data))
    assert ((y > 0.01) & (y < 0.99)).numpy().any()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model = build("functional", loss)
    callbacks = [ksa.AdversarialTraining(layer())]
    model.fit(data, verbose=0, callbacks=callbacks)
    by_hand = build("functional", loss)
    one_step_by_hand(by_hand, x, y)
    assert_same_weights(model, by_hand)


def test_classes_that_are_ignored(images, labels):
    """An image without a label has no gradient, and so stays as it is."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    some = np.where(labels == 1, -1, labels)
    seen = []

    class Watch(ksa.AdversarialFlow):
        def augment(self, *args, **kwargs):
            seen.append(super().augment(*args, **kwargs))
            return seen[-1]

    model = build("functional", loss, run_eagerly=True)
    watch = Watch(max_displacement=(2, 2), rate=1.0)
    fit = {"shuffle": False, "verbose": 0}
    model.fit(images, some, callbacks=[ksa.AdversarialTraining(watch)], **fit)
    sizes = ops.convert_to_numpy(seen[0].sizes)
    np.testing.assert_array_equal(sizes, np.where(labels == 1, 0, 2))


# Reused gradients.


class Recorder(ksa.AdversarialFlow):
    """Keeps the images and the flows of every batch; for eager steps."""

    def __init__(self, **kwargs):
        super().__init__(max_displacement=(1, 1), rate=1.0, seed=1, **kwargs)
        self.seen = []

    def decode(self, images, codes, size, strength):
        flow = super().decode(images, codes, size, strength)
        self.seen.append((ops.convert_to_numpy(images), ops.convert_to_numpy(flow)))
        return flow


def reuse(layer=None, **kwargs):
    return ksa.AdversarialTraining(
        layer or ksa.AdversarialFlow(1.0, seed=1), gradient="reuse", **kwargs
    )


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_epoch_is_plain_training_bit_for_bit(
    kind, jit_compile, images, labels
):
    def train(callbacks, epochs=1):
        model = build(kind, jit_compile=jit_compile)
        fit = {"batch_size": 2, "epochs": epochs, "verbose": 0}
        history = model.fit(images, labels, **fit, callbacks=callbacks).history
        return model.get_weights(), history

    (plain, expected), (reused, history) = train([]), train([reuse()])
    if jit_compile:  # XLA fuses two programs in two ways: equal up to rounding
        for x, y in zip(plain, reused):
            np.testing.assert_allclose(x, y, atol=1e-6)
    else:
        for x, y in zip(plain, reused):
            np.testing.assert_array_equal(x, y)
        assert history["loss"] == expected["loss"]
    assert history["gradient_hit_rate"] == [0]
    assert history["adversarial_loss_gain"] == [0]
    assert history["mean_displacement"] == [0]
    (plain, _), (reused, history) = train([], epochs=2), train([reuse()], epochs=2)
    assert np.abs(plain[0] - reused[0]).max() > 1e-6
    assert history["gradient_hit_rate"][1] == 1


def test_the_flow_is_the_one_of_the_epoch_before(images, labels):
    # Other images and batches in each epoch; every gradient of the first one by hand.
    tf = pytest.importorskip("tensorflow")
    by_hand = {}

    class Watched(OwnStep):
        def train_step(self, data):
            x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
            with tf.GradientTape() as tape:
                tape.watch(x)
                mean = ops.mean(loss_from_logits(y, self(x, training=True)))
            gradients = ops.convert_to_numpy(tape.gradient(mean, x))
            if len(by_hand) < 6:  # the first epoch, in which no image is changed
                for image, gradient in zip(ops.convert_to_numpy(x), gradients):
                    by_hand[image.tobytes()] = gradient
            return super().train_step(data)

    model = Watched()
    model.compile(keras.optimizers.SGD(0.05), loss_from_logits, run_eagerly=True)
    recorder = Recorder()
    store = ksa.GradientStore(size=8)  # all the frequencies of 8x8 images
    callback = ksa.AdversarialTraining(recorder, gradient=store)
    model.fit(images, labels, batch_size=4, verbose=0, callbacks=[callback])
    order = [5, 2, 0, 3, 1, 4]
    recorder.seen.clear()
    fit = {"batch_size": 3, "shuffle": False, "verbose": 0}
    model.fit(images[order], labels[order], **fit, callbacks=[callback])
    assert len(by_hand) == 6
    batch, flows = (np.concatenate(parts) for parts in zip(*recorder.seen))
    np.testing.assert_array_equal(batch, images[order])
    gradients = np.stack([by_hand[image.tobytes()] for image in batch])
    expected = ops.convert_to_numpy(
        ksa.adversarial_flow(batch, gradients, max_displacement=1.0)
    )
    np.testing.assert_allclose(flows, expected, atol=5e-3)  # float16 was between


@pytest.mark.fused
def test_a_few_frequencies_hold_most_of_the_flow(trained):
    model, x, y = trained
    layer = ksa.AdversarialFlow(rate=1.0).bind(model)
    gradients = ksa.per_image_gradients(model, x[:64], y[:64])
    exact = ops.convert_to_numpy(layer.make_field(x[:64], gradients, 2.0))
    agreement = []
    for size in (2, 4, 8):
        codes = layer.code_of(x[:64], gradients, size)
        assert codes.shape == (64, 2 * size**2)
        flow = ops.convert_to_numpy(layer.decode(x[:64], codes, size, 2.0))
        inner = (flow * exact).sum(axis=(1, 2, 3))
        norms = np.sqrt((flow**2).sum(axis=(1, 2, 3)) * (exact**2).sum(axis=(1, 2, 3)))
        agreement.append((inner / norms).mean())
    assert 0.8 < agreement[0] < agreement[1] < agreement[2]
    assert agreement[2] > 0.99


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_every_dtype_of_images_can_be_reused(images, labels, dtype):
    model = build("sequential")
    given = (images * 255).astype(dtype)
    fit = {"batch_size": 2, "epochs": 2, "verbose": 0}
    history = model.fit(given, labels, **fit, callbacks=[reuse(layer())]).history
    assert history["gradient_hit_rate"] == [0, 1]


@pytest.mark.fused
def test_history_tells_the_hits_and_the_displacement(images, labels):
    model = build("sequential")
    layer = ksa.AdversarialFlow(max_displacement=(0.7, 0.7), rate=0.5)
    fit = {"batch_size": 2, "epochs": 3, "verbose": 0}
    history = model.fit(images, labels, **fit, callbacks=[reuse(layer)]).history
    assert history["gradient_hit_rate"] == [0, 1, 1]
    np.testing.assert_allclose(history["mean_displacement"], [0, 0.7, 0.7], rtol=1e-5)
    assert history["adversarial_loss_gain"][0] == 0
    assert history["adversarial_loss_gain"][1] > 0
    assert_plain(model)


def test_equal_images_share_the_gradient_of_the_last(images, labels):
    # Also where their labels differ: the store knows images, not samples.
    images[4] = images[1]
    model = build("subclassed", run_eagerly=True)
    recorder = Recorder()
    fit = {"batch_size": 6, "epochs": 2, "shuffle": False, "verbose": 0}
    before = build("subclassed")
    model.fit(images, labels, **fit, callbacks=[reuse(recorder)])
    flows = recorder.seen[1][1]
    np.testing.assert_array_equal(flows[4], flows[1])
    gradient = ksa.per_image_gradients(before, images, labels)
    expected = ops.convert_to_numpy(
        ksa.adversarial_flow(images, gradient, max_displacement=1.0)
    )
    np.testing.assert_allclose(flows[4], expected[4], atol=5e-3)
    assert labels[4] == labels[1]  # and where they differ:
    labels[4] = 2
    model, recorder = build("subclassed", run_eagerly=True), Recorder()
    model.fit(images, labels, **fit, callbacks=[reuse(recorder)])
    gradient = ksa.per_image_gradients(before, images, labels)
    expected = ops.convert_to_numpy(
        ksa.adversarial_flow(images, gradient, max_displacement=1.0)
    )
    for k in (1, 4):  # both as the one with the label 2
        np.testing.assert_allclose(recorder.seen[1][1][k], expected[4], atol=5e-3)


def noisy(images, labels):
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)

    def generate():
        for k in range(6):
            yield (
                images[k] + rng.uniform(0, 0.01, images[k].shape),
                labels[k],
                k * 10**6,
            )

    signature = (
        tf.TensorSpec((8, 8, 1)),
        tf.TensorSpec((), "int64"),
        tf.TensorSpec((), "int64"),
    )
    data = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return data.batch(3)


def test_images_that_are_new_each_epoch_are_warned_of_once(images, labels):
    model = build("sequential")
    with pytest.warns(UserWarning, match="hardly any image was met again") as warned:
        model.fit(
            noisy(images, labels).map(lambda x, y, _: (x, y)),
            epochs=4,
            verbose=0,
            callbacks=[reuse(layer())],
        )
    ours = [w for w in warned if "met again" in str(w.message)]
    assert len(ours) == 1


@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed"])
def test_ids_find_images_that_change(kind, images, labels):
    model = build(kind)
    data = noisy(images, labels).map(lambda x, y, i: ({"images": x, "ids": i}, y))
    history = model.fit(data, epochs=2, verbose=0, callbacks=[reuse(layer())]).history
    assert history["gradient_hit_rate"] == [0, 1]


def test_ids_that_are_no_integers_are_named(images, labels):
    x = {"images": images, "ids": np.linspace(0, 1, 6)}
    with pytest.raises(ValueError, match="ids of dtype.*one integer"):
        build("subclassed").fit(x, labels, verbose=0, callbacks=[reuse(layer())])


def test_random_layers_inside_the_model(images, labels):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.RandomTranslation(0.1, 0.1),
            layers.GaussianNoise(0.1),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", loss_from_logits)
    fit = {"batch_size": 3, "epochs": 2, "verbose": 0}
    history = model.fit(images, labels, **fit, callbacks=[reuse(layer())]).history
    assert history["gradient_hit_rate"] == [0, 1]
    assert history["mean_displacement"][1] > 0.9


def test_reuse_under_mixed_precision(images, labels):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = small_model(compiled=False)
        model.compile(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)),
            lambda y, p: 1e-5 * loss_from_logits(y, ops.cast(p, "float32")),
        )
    finally:
        keras.config.set_dtype_policy("float32")
    fit = {"batch_size": 3, "epochs": 2, "verbose": 0}
    history = model.fit(images, labels, **fit, callbacks=[reuse(layer())]).history
    assert history["gradient_hit_rate"] == [0, 1]
    assert 0 < history["adversarial_loss_gain"][1] < 1e-4


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_step_without_compute_loss_says_what_to_do(images, labels, run_eagerly):
    class Silent(Subclassed):
        def train_step(self, data):
            return {"loss": 0.0}

    model = Silent()
    model.compile("sgd", loss_from_logits, run_eagerly=run_eagerly)
    with pytest.raises(ValueError, match='`compute_loss` 0 times.*gradient="fresh"'):
        model.fit(images, labels, verbose=0, callbacks=[reuse(layer())])
    assert "compute_loss" not in vars(model) and "train_step" not in vars(model)


class Fail(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise RuntimeError("power cut")


def test_a_resumed_run_goes_on_with_the_stored_gradients(images, labels, tmp_path):
    def train(folder, *others):
        model = build("functional")
        steady = ksa.AdversarialFlow((0.5, 0.5), rate=1.0)
        store = ksa.GradientStore(64, backup_dir=folder)
        callbacks = [
            keras.callbacks.BackupAndRestore(folder),
            ksa.AdversarialTraining(steady, gradient=store),
            *others,
        ]
        fit = {"batch_size": 2, "epochs": 4, "shuffle": False, "verbose": 0}
        return model, model.fit(images, labels, **fit, callbacks=callbacks).history

    whole, expected = train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "cut", Fail())
    assert (tmp_path / "cut" / "gradient_store.npz").exists()
    resumed, history = train(tmp_path / "cut")
    assert history["gradient_hit_rate"] == [1, 1]  # epochs 2 and 3
    np.testing.assert_allclose(history["loss"], expected["loss"][2:], rtol=1e-5)
    assert_same_weights(whole, resumed, atol=1e-6)
    assert not (tmp_path / "cut" / "gradient_store.npz").exists()


def test_train_on_batch_in_a_callback_is_plain_and_ends_nothing(images, labels):
    class Extra(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.train_on_batch(images, labels)

    fit = {"batch_size": 2, "epochs": 3, "verbose": 0}
    history = (
        build("sequential")
        .fit(images, labels, **fit, callbacks=[reuse(layer()), Extra()])
        .history
    )
    assert history["gradient_hit_rate"] == [0, 1, 1]


def test_another_model_starts_with_an_empty_store(images, labels):
    callback = reuse(layer())
    fit = {"epochs": 2, "verbose": 0, "callbacks": [callback]}
    first = build("sequential")
    for model, hits in (
        (first, [0, 1]),
        (first, [1, 1]),
        (build("functional"), [0, 1]),
    ):
        history = model.fit(images, labels, **fit).history
        assert history["gradient_hit_rate"] == hits


def test_a_store_without_use_is_no_obstacle(images, labels, tmp_path):
    store = ksa.GradientStore(64, backup_dir=tmp_path)
    callback = ksa.AdversarialTraining(layer(rate=0.0), gradient=store)
    model = Subclassed()
    model.compile("sgd", loss_from_logits)
    model.fit(images, labels, verbose=0, callbacks=[callback])
    assert not list(tmp_path.iterdir())
    kept = ksa.GradientStore(64, backup_dir=tmp_path, delete_checkpoint=False)
    callback = ksa.AdversarialTraining(layer(), gradient=kept)
    build("sequential").fit(images, labels, verbose=0, callbacks=[callback])
    assert [path.name for path in tmp_path.iterdir()] == ["gradient_store.npz"]


def test_integer_inputs_are_warned_of_with_reuse(images, labels):
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile("sgd", loss_from_logits)
    given = (images * 255).astype("uint8")
    with pytest.warns(UserWarning, match="does not depend on the images"):
        model.fit(given, labels, verbose=0, callbacks=[reuse(layer())])


@pytest.mark.fused
def test_a_step_that_reuses_is_traced_once(images, labels):
    traces = []

    class Counting(keras.Sequential):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    model = Counting([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", loss_from_logits)
    model.optimizer.build(model.trainable_variables)
    fit = {"batch_size": 3, "epochs": 3, "verbose": 0}
    model.fit(images, labels, **fit, callbacks=[reuse(layer())])
    assert len(traces) == 1


def test_where_gradients_cannot_be_reused_is_named(images, labels):
    tf = pytest.importorskip("tensorflow")
    model = build("sequential")
    bound = layer().bind(model, loss=loss_from_logits)
    with pytest.raises(ValueError, match='loss=<function.*gradient="fresh"'):
        model.fit(images, labels, verbose=0, callbacks=[reuse(bound)])
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        model = build("sequential")
    with pytest.raises(NotImplementedError, match='distribution.*gradient="fresh"'):
        model.fit(images, labels, verbose=0, callbacks=[reuse(layer())])
    inputs = keras.Input((None, None, 1))
    x = layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile("sgd", loss_from_logits)
    signature = (tf.TensorSpec((None, None, 8, 1)), tf.TensorSpec((None,), "int64"))
    data = tf.data.Dataset.from_generator(
        lambda: [(images, labels)], output_signature=signature
    )
    with pytest.raises(ValueError, match="size must be known"):
        model.fit(data, verbose=0, callbacks=[reuse(layer())])


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"target": "random"}, "target='random'"),
        ({"steps": 2}, "steps=2"),
        ({"loss": "mse"}, "loss='mse'"),
        ({"alpha": 1.0}, "alpha=1.0"),
    ],
)
def test_what_cannot_be_reused_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message + '.*gradient="fresh"'):
        reuse(ksa.AdversarialFlow(**kwargs))


# Several layers, and recolouring.


def recolor(**kwargs):
    return ksa.AdversarialRecoloring(
        **{"value_range": (0, 1), "rate": 0.5, "seed": 2, **kwargs}
    )


@pytest.mark.fused
@pytest.mark.parametrize("execution", [{}, {"jit_compile": True}], ids=str)
def test_layers_act_one_after_the_other(execution, images, labels):
    model = build("functional", **execution)
    both = [layer(), recolor()]
    history = model.fit(
        images,
        labels,
        batch_size=6,
        shuffle=False,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(both)],
    ).history
    by_hand = build("functional")
    moved = layer().bind(by_hand)(images, labels)[0]
    moved = recolor().bind(by_hand)(moved, labels)[0]
    by_hand.train_on_batch(ops.convert_to_numpy(moved), labels)
    assert_same_weights(model, by_hand)
    assert 1 < history["mean_displacement"][0] < 2
    assert 0 < history["mean_magnitude"][0] < 0.1
    assert history["adversarial_loss_gain"][0] > 0
    assert_plain(model)
    assert all(x.binding.model is None for x in both)


@pytest.mark.fused
@pytest.mark.parametrize("execution", [{}, {"jit_compile": True}], ids=str)
def test_one_store_serves_several_layers(execution, images, labels):
    both = [layer(rate=1.0), recolor(rate=1.0, magnitude=(0.05, 0.1))]
    store = ksa.GradientStore(64, size=6)
    callback = ksa.AdversarialTraining(both, gradient=store)
    model = build("functional", **execution)
    history = model.fit(
        images, labels, batch_size=6, epochs=3, verbose=0, callbacks=[callback]
    ).history
    # Of the flow two components, of the recolouring one channel.
    assert store._codes.shape == (65, 3 * 6 * 6)
    assert history["gradient_hit_rate"] == [0, 1, 1]
    assert history["mean_displacement"][0] == history["mean_magnitude"][0] == 0
    assert 1 < history["mean_displacement"][1] < 2
    assert 0.05 < history["mean_magnitude"][1] < 0.1
    assert history["adversarial_loss_gain"][1] > 0
    # 72 and 36 numbers are as many as 36 and 72, and are not to be taken for them.
    callback = ksa.AdversarialTraining(both[::-1], gradient=store)
    with pytest.raises(ValueError, match="72 of AdversarialFlow, 36 of Adv.*36 of"):
        model.fit(images, labels, verbose=0, callbacks=[callback])


def test_reused_recolouring_is_that_of_the_last_gradient(images, labels):
    """What the second epoch trains on, made by hand from the first one's gradient."""
    import tensorflow as tf

    model = build("subclassed")
    start = model.get_weights()
    adversary = recolor(rate=1.0, magnitude=(0.1, 0.1))
    model.fit(
        images,
        labels,
        batch_size=6,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(adversary, gradient="reuse")],
    )
    by_hand = build("subclassed")
    by_hand.set_weights(start)
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = loss_from_logits(labels, by_hand(x))
    gradient = tape.gradient(loss, x)  # 8x8 pixels: all frequencies are kept
    by_hand.train_on_batch(images, labels)
    change = ksa.adversarial_recoloring(
        images, gradient, magnitude=0.1, value_range=(0, 1)
    )
    changed = np.clip(images + ops.convert_to_numpy(change), 0, 1)
    by_hand.train_on_batch(changed, labels)
    assert_same_weights(model, by_hand, atol=1e-4)


def test_recolouring_from_a_basis_in_the_data(images, labels, tmp_path):
    basis = ksa.precompute_basis(
        images, tmp_path / "basis.npy", rank=4, value_range=(0, 1), verbose=0
    )
    model = build("functional")
    data = {"images": images, "basis": np.asarray(basis)}
    model.fit(
        data,
        labels,
        batch_size=6,
        shuffle=False,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(recolor(rate=1.0))],
    )
    by_hand = build("functional")
    moved = recolor(rate=1.0).bind(by_hand)({**data, "labels": labels})["images"]
    by_hand.train_on_batch(ops.convert_to_numpy(moved), labels)
    assert_same_weights(model, by_hand, atol=1e-4)
    model = build("functional")
    history = model.fit(
        {**data, "ids": np.arange(6)},
        labels,
        epochs=2,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(recolor(rate=1.0), gradient="reuse")],
    ).history
    assert history["gradient_hit_rate"] == [0, 1]
    assert history["mean_magnitude"][1] > 0
    with pytest.raises(ValueError, match="inputs .*basis.* for a model with 1"):
        build("functional").fit(
            data, labels, verbose=0, callbacks=[ksa.AdversarialTraining(layer())]
        )
    both = ksa.AdversarialTraining([layer(), recolor()])
    with pytest.raises(ValueError, match="moves the images.*first in the list"):
        build("functional").fit(data, labels, verbose=0, callbacks=[both])


@pytest.mark.parametrize("gradient", ["fresh", "reuse"])
def test_ids_are_unpacked_where_nothing_is_augmented(gradient, images, labels):
    model, plain = build("functional"), build("functional")
    model.fit(
        {"images": images, "ids": np.arange(6)},
        labels,
        batch_size=6,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[ksa.AdversarialTraining(layer(rate=0.0), gradient=gradient)],
    )
    plain.fit(images, labels, batch_size=6, epochs=2, shuffle=False, verbose=0)
    assert_same_weights(model, plain, atol=1e-6)


@pytest.mark.fused
@pytest.mark.parametrize("gradient", ["fresh", "reuse"])
def test_the_gain_stays_positive_and_the_seeds_reproduce(gradient):
    (x, y), _ = ksa.datasets.load_colour_glyphs(train_typefaces=1)
    x, y = x[: 3 * 47], y[: 3 * 47]

    def train(seed):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((28, 28, 3)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(8, 3, strides=2, activation="relu"),
                layers.Flatten(),
                layers.Dense(47),
            ]
        )
        model.compile(keras.optimizers.Adam(1e-3), loss_from_logits)
        adversary = ksa.AdversarialRecoloring(0.2, seed=seed)
        callback = ksa.AdversarialTraining(adversary, gradient=gradient)
        return model.fit(x, y, 47, 4, verbose=0, callbacks=[callback]).history

    first = train(1)
    start = 0 if gradient == "fresh" else 1
    assert np.all(np.array(first["adversarial_loss_gain"][start:]) > 0)
    np.testing.assert_allclose(train(1)["loss"], first["loss"], rtol=1e-4)
    assert abs(train(2)["loss"][-1] - first["loss"][-1]) > 1e-4


def test_a_value_range_that_is_not_that_of_the_images_is_named(images, labels):
    callback = ksa.AdversarialTraining(recolor(value_range=(0, 255)))
    model = build("functional")
    with pytest.warns(UserWarning, match=r"value_range=\(0, 255\).*\(0, 1\)"):
        model.fit(images, labels, verbose=0, callbacks=[callback])
    model.fit(images, labels, verbose=0, callbacks=[callback])  # once is enough
    images[0] = np.nan  # and then nothing is known of the first batch
    callback = ksa.AdversarialTraining(recolor(value_range=(0, 255)))
    with pytest.warns(UserWarning, match=r"value_range=\(0, 255\)"):
        data = (
            np.concatenate([images, images[1:]]),
            np.concatenate([labels, labels[1:]]),
        )
        model.fit(*data, 6, shuffle=False, verbose=0, callbacks=[callback])


def test_lists_that_make_no_sense_are_named():
    one = layer()
    with pytest.raises(ValueError, match="occurs twice.*steps=2"):
        ksa.AdversarialTraining([one, one])
    with pytest.raises(ValueError, match=r"layer=\[\]"):
        ksa.AdversarialTraining([])
    with pytest.raises(ValueError, match="list of them"):
        ksa.AdversarialTraining([one, "flow"])
    with pytest.raises(ValueError, match="lam=1.0.*leave lam=None"):
        ksa.AdversarialTraining([one, recolor(lam=1.0)], gradient="reuse")
