"""A step with the gradients of the epoch before."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from tests.models import (
    KINDS,
    OwnStep,
    Recorder,
    Subclassed,
    assert_same_weights,
    build,
    layer,
    loss_from_logits,
    recolor,
    reuse,
    small_model,
    two_inputs,
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


@pytest.mark.parametrize("side", [32, 64, 96, 128, 224, 384, 512])
def test_a_code_holds_the_flow_at_every_size(side):
    _, (images, labels) = ksa.datasets.load_photographs(side, crops=1)
    images, labels = images[1::5].astype("float32"), labels[1::5]
    keras.utils.set_random_seed(0)
    convolutions = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            layers.Rescaling(1 / 127.5, -1),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    gradients = ksa.per_image_gradients(convolutions, images, labels, loss=loss)
    noise = np.random.default_rng(0).normal(size=images.shape)
    for smoothness in (None, 1000.0, 100.0):
        flow = ksa.AdversarialFlow(smoothness=smoothness)
        needed = flow.code_size(images)
        for given in (gradients, noise):
            assert cosines(flow, images, given, max(8, needed)).min() > 0.95
            enough = cosines(flow, images, given, max(8, -(-2 * needed // 3)))
            assert enough.min() > 0.9
    few = cosines(ksa.AdversarialFlow(smoothness=100.0), images, gradients, 8)
    assert side < 224 or few.max() < 0.9  # what a fixed size would lose


def cosines(layer, images, gradients, size):
    """Returns the cosine between the flow from the code and that of the gradient."""
    strength = np.ones(len(images), "float32")
    images, gradients = map(ops.convert_to_tensor, (images, gradients))
    codes = layer.code_of(images, gradients, size)
    one, other = (
        ops.convert_to_numpy(flow).reshape(len(images), -1)
        for flow in (
            layer.make_field(images, gradients, strength),
            layer.decode(images, codes, size, strength),
        )
    )
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / norms


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_every_dtype_of_images_can_be_reused(images, labels, dtype):
    model = build("sequential")
    given = (images * 255).astype(dtype)
    fit = {"batch_size": 2, "epochs": 2, "verbose": 0}
    history = model.fit(given, labels, **fit, callbacks=[reuse(layer())]).history
    assert history["gradient_hit_rate"] == [0, 1]


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


class Counting(layers.Layer):
    """Counts how often it is traced, and how often its gradient is."""

    forward = backward = 0

    def call(self, x):
        import tensorflow as tf

        def gradient(rise):
            self.backward += 1
            return rise

        @tf.custom_gradient
        def identity(x):
            self.forward += 1
            return x + 0, gradient

        return identity(x)


@pytest.mark.parametrize("batches", ["arrays", "of one size"])
def test_there_is_one_backward_pass(images, labels, batches):
    import tensorflow as tf

    counting = Counting()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(2, 3), counting, layers.Flatten()]
    )
    model.compile("sgd", loss_from_logits, jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.batch(3, drop_remainder=batches == "of one size")
    before, tape = counting.forward, tf.GradientTape
    history = model.fit(data, epochs=2, verbose=0, callbacks=[reuse()]).history
    assert history["gradient_hit_rate"] == [0, 1]
    assert counting.backward == counting.forward - before > 0
    assert tf.GradientTape is tape
