"""The store of a training: which images find a gradient, and for how long."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from keras_structadv.training.kept_gradients import KeptGradients
from tests.models import (
    Recorder,
    Subclassed,
    assert_same_weights,
    build,
    layer,
    loss_from_logits,
    numpy,
    reuse,
)


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


def kept_for(layer, side, **store):
    """Returns what a callback keeps for images of this size, with its table built."""
    kept = KeptGradients(ksa.GradientStore(**{"capacity": 65536, **store}))
    kept.build(ops.zeros((1, side, side, 3)), [layer])
    return kept


@pytest.mark.parametrize(
    "kind, arguments, side, size",
    [
        (ksa.AdversarialFlow, {}, 28, 8),
        (ksa.AdversarialFlow, {}, 512, 8),
        (ksa.AdversarialFlow, {"smoothness": 100.0}, 32, 8),
        (ksa.AdversarialFlow, {"smoothness": 100.0}, 96, 20),
        (ksa.AdversarialFlow, {"smoothness": 100.0}, 224, 31),  # of 45, and enough
        (ksa.AdversarialFlow, {"smoothness": 0.0}, 16, 16),
        (ksa.AdversarialRecoloring, {}, 224, 8),
        (ksa.AdversarialRecoloring, {"damping": 1e-3}, 28, 8),
        (ksa.AdversarialRecoloring, {"coherence": 0.0}, 16, 16),
    ],
)
def test_the_store_chooses_the_size_of_its_codes(kind, arguments, side, size):
    layer = kind(**arguments)
    kept = kept_for(layer, side)  # without a warning
    assert kept.sizes == {layer: size}
    components = 2 if kind is ksa.AdversarialFlow else 3
    assert kept.store._codes.shape == (65537, components * size**2)
    used = sum(numpy(x).nbytes for x in kept.store.variables)
    assert used == kept.store.bytes_for(components * size**2)
    assert used <= 2**28 or size == 8


@pytest.mark.parametrize(
    "kind, arguments, side, store, size, advice",
    [
        (ksa.AdversarialFlow, {"smoothness": 100.0}, 384, {}, 77, "smoothness=614"),
        (ksa.AdversarialFlow, {}, 28, {"size": 3}, 6, "smoothness=349"),
        (ksa.AdversarialRecoloring, {"damping": 1e-2}, 224, {}, 54, "damping=2.4e-03"),
        (ksa.AdversarialRecoloring, {"coherence": 0.0}, 16, {"size": 8}, 16, "coher"),
    ],
)
def test_codes_that_lose_the_field_are_warned_of(
    kind, arguments, side, store, size, advice
):
    layer = kind(**arguments)
    with pytest.warns(UserWarning, match=rf"lose much.*size={size}\).* MB.*{advice}"):
        kept_for(layer, side, **store)
    kept_for(layer, side, capacity=64, size=size)  # as it says
    name, _, value = advice.partition("=")
    if value:
        kept_for(kind(**{name: float(value)}), side, **store)


def test_the_bytes_of_the_warning_are_those_of_the_table():
    layer = ksa.AdversarialFlow(smoothness=100.0)
    with pytest.warns(UserWarning, match="65536 places take 1,555 MB"):
        kept_for(layer, 384)


def test_a_chosen_size_is_found_again_in_a_backup(tmp_path):
    layer = ksa.AdversarialFlow(smoothness=100.0)
    store = {"capacity": 64, "backup_dir": tmp_path}
    first = kept_for(layer, 96, **store)
    codes = np.random.default_rng(0).uniform(-1, 1, (3, 2 * 20**2)).astype("float32")
    keys = np.arange(12, dtype="float32").reshape(3, 4)
    first.store.write(ops.array(keys), ops.array(codes))
    first.store.back_up(1)
    again = KeptGradients(ksa.GradientStore(**store))
    model = build("subclassed")
    again.begin(model, [layer])
    again.build(ops.zeros((1, 96, 96, 3)), [layer])
    held, found = again.store.read(ops.array(keys))
    assert numpy(found).all() and again.sizes == {layer: 20}
    np.testing.assert_allclose(held, codes, atol=1e-3)


def test_a_store_serves_images_of_another_size():
    layer = ksa.AdversarialFlow(smoothness=100.0)
    kept = kept_for(layer, 32)
    assert kept.sizes == {layer: 8}
    kept.build(ops.zeros((1, 64, 64, 3)), [layer])  # would choose 13
    assert kept.sizes == {layer: 8}
    larger = kept_for(layer, 96)
    larger.build(ops.zeros((1, 64, 64, 3)), [layer])
    assert larger.sizes == {layer: 20}
    with pytest.raises(ValueError, match="800 numbers .* and 128 .*`size`"):
        larger.build(ops.zeros((1, 16, 16, 3)), [layer])


@pytest.mark.parametrize("shape", [(16, 4096, 1), (64, 2048, 3), (224, 224, 3)])
def test_a_chosen_table_is_bounded(shape):
    layers = [ksa.AdversarialFlow(smoothness=30.0), ksa.AdversarialRecoloring()]
    kept = KeptGradients(ksa.GradientStore())
    with pytest.warns(UserWarning, match="lose much"):
        lengths = kept.build(ops.zeros((1, *shape)), layers)
    assert 2**27 < kept.store.bytes_for(sum(lengths)) <= 2**28
