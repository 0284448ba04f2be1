import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from PIL import Image, ImageEnhance, ImageOps

import keras_structadv as ksa
from experiments import policies
from experiments.base_augmentation import Cutout, PadAndCrop, base_augmentation
from experiments.operations import apply_operations
from experiments.policies import AutoAugment, RandAugment


def enhanced(kind):
    return lambda image, s: kind(image).enhance(1 + 0.9 * s)


COLOUR = {
    "AutoContrast": lambda image, s: ImageOps.autocontrast(image),
    "Equalize": lambda image, s: ImageOps.equalize(image),
    "Invert": lambda image, s: ImageOps.invert(image),
    "Posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * s)),
    "Solarize": lambda image, s: ImageOps.solarize(image, 256 - int(256 * s)),
    "Color": enhanced(ImageEnhance.Color),
    "Contrast": enhanced(ImageEnhance.Contrast),
    "Brightness": enhanced(ImageEnhance.Brightness),
    "Sharpness": enhanced(ImageEnhance.Sharpness),
}


def transformed(image, *coefficients):
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, fillcolor=(128,) * 3
    )


GEOMETRIC = {
    "ShearX": lambda image, s: transformed(image, 1, 0.3 * s, 0, 0, 1, 0),
    "ShearY": lambda image, s: transformed(image, 1, 0, 0, 0.3 * s, 1, 0),
    "TranslateX": lambda image, s: transformed(image, 1, 0, int(10 * s), 0, 1, 0),
    "TranslateY": lambda image, s: transformed(image, 1, 0, 0, 0, 1, int(10 * s)),
    "Rotate": lambda image, s: image.rotate(30 * s, fillcolor=(128,) * 3),
}


@pytest.fixture(scope="module")
def photographs():
    """Returns eight photographs, uint8, (8, 32, 32, 3), two of them of few levels."""
    (x, _), _ = ksa.datasets.load_photographs(32, 2)
    x = np.array(x[:: len(x) // 8][:8])
    x[6] = 7  # a single level
    x[7] = 60 + x[7] // 4
    return x


def applied(images, name, strength):
    which = np.zeros(len(images), "int32")
    images = ops.convert_to_tensor(images, "float32")
    return ops.convert_to_numpy(apply_operations(images, [(name, strength)], which))


def by_pillow(function, images, strength):
    gray = images.shape[-1] == 1
    pillow = [Image.fromarray(x[..., 0] if gray else x) for x in images]
    out = np.stack([np.asarray(function(x, strength)) for x in pillow])
    return (out[..., None] if gray else out).astype("float32")


def varied(images, copies):
    """Returns many copies of one image, so that what differs is the draw."""
    return np.repeat(images[:1], copies, axis=0)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", sorted(COLOUR))
def test_colours_are_those_of_pillow(name, strength, photographs):
    (digits, _), _ = ksa.datasets.load_digits(8)
    for images in (photographs, digits):
        expected = by_pillow(COLOUR[name], images, strength)
        actual = applied(images, name, strength)
        # Pillow computes in double precision in autocontrast: one level at ties.
        assert np.abs(actual - expected).max() <= 1
        assert (actual != expected).mean() < 0.01
    if strength == 1:
        changed = np.abs(applied(photographs, name, strength) - photographs)
        assert changed.max() >= 15


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancements_go_both_ways(name, photographs):
    expected = by_pillow(COLOUR[name], photographs, -0.7)
    actual = applied(photographs, name, -0.7)
    assert np.abs(actual - expected).max() <= 1
    assert (actual != expected).mean() < 0.01
    assert np.abs(actual - applied(photographs, name, 0.7)).max() > 30


@pytest.mark.parametrize("strength", [0.2, -0.5, 0.9, -1.0])
@pytest.mark.parametrize("name", sorted(GEOMETRIC))
def test_geometry_is_that_of_pillow(name, strength, photographs):
    actual = applied(photographs, name, strength)
    expected = by_pillow(GEOMETRIC[name], photographs, strength)
    np.testing.assert_array_equal(actual, expected)
    assert (actual == 128).all(-1).any()


def test_a_constant_choice_in_a_graph_is_as_exact(photographs):
    # TensorFlow folds it, and then divides by an approximate reciprocal.
    images = np.concatenate([photographs] * 3)
    for strength in (0.3, 0.6, 1.0):
        graph = tf.function(lambda x, s=strength: applied_in_graph(x, s))
        expected = by_pillow(COLOUR["Posterize"], images, strength)
        np.testing.assert_array_equal(graph(images.astype("float32")), expected)


def applied_in_graph(images, strength):
    which = np.zeros(images.shape[0], "int32")
    return apply_operations(images, [("Posterize", strength)], which)


def test_translations_are_parts_of_the_size(photographs):
    images = photographs[:, :16].astype("float32")
    moved = applied(images, "TranslateY", 1.0)
    np.testing.assert_array_equal(moved[:, :11], images[:, 5:])
    np.testing.assert_array_equal(moved[:, 11:], 128.0)


def test_each_image_gets_its_own_operation(photographs):
    strengths = {**dict.fromkeys(COLOUR, 0.6), **dict.fromkeys(GEOMETRIC, 0.6)}
    operations = [("Identity", 0.0), *strengths.items()]
    images = varied(photographs, len(operations)).astype("float32")
    which = np.arange(len(operations), dtype="int32")[::-1].copy()
    mixed = ops.convert_to_numpy(apply_operations(images, operations, which))
    for image, k in zip(mixed, which):
        alone = applied(images[:1], *operations[k])[0]
        np.testing.assert_array_equal(image, alone)
    assert len({x.tobytes() for x in mixed}) == len(operations)


def test_gradients_go_through_all_operations(photographs):
    names = [*COLOUR, *GEOMETRIC, "Identity"]
    images = tf.constant(varied(photographs, len(names)), "float32")
    with tf.GradientTape() as tape:
        tape.watch(images)
        out = apply_operations(
            images, [(name, 0.6) for name in names], np.arange(len(names))
        )
        loss = tf.reduce_sum(out * tf.reshape(tf.range(3.0) - 0.7, (1, 1, 1, 3)))
    gradients = tape.gradient(loss, images).numpy()
    assert np.isfinite(gradients).all()
    assert (np.abs(gradients).max(axis=(1, 2, 3)) > 0).all()
    np.testing.assert_allclose(gradients[-1, 0, 0], [-0.7, 0.3, 1.3], rtol=1e-5)
    np.testing.assert_array_equal(
        gradients[names.index("Invert")], -gradients[names.index("Identity")]
    )


def test_the_policy_is_one():
    assert len(policies.AUTO_AUGMENT) == 25
    for policy in policies.AUTO_AUGMENT:
        assert len(policy) == 2
        for name, probability, level in policy:
            assert name in {*COLOUR, *GEOMETRIC}
            assert round(10 * probability) == pytest.approx(10 * probability)
            assert 0 <= probability <= 1 and level in range(10)
    assert len(set(policies.RAND_AUGMENT)) == 14
    known = {"Identity", *COLOUR, *GEOMETRIC} - {"Invert"}
    assert set(policies.RAND_AUGMENT) == known


def counts_of(layer, batch=40_000):
    drawn = [ops.convert_to_numpy(x) for x in layer.draw_operations(batch)]
    return drawn, [np.bincount(x, minlength=len(layer.operations)) for x in drawn]


def test_autoaugment_draws_as_the_policy_says():
    layer = AutoAugment(seed=3)
    drawn, counts = counts_of(layer)
    for place in (0, 1):
        for k, policy in enumerate(policies.AUTO_AUGMENT):
            name, probability, level = policy[place]
            first = 1 + 4 * k + 2 * place
            for index in (first, first + 1):
                share = counts[place][index] / 40_000
                assert share == pytest.approx(probability / 25 / 2, abs=0.0025)
                assert layer.operations[index][0] == name
            strengths = [layer.operations[first + j][1] for j in (0, 1)]
            signed = (level / 10, -level / 10)
            if name in ("Color", "Contrast", "Brightness", "Sharpness"):
                assert 1 + 0.9 * strengths[0] == pytest.approx(0.1 + 0.18 * level)
                signed = (strengths[0],) * 2
            assert strengths == list(signed)
    # Both operations are of one sub-policy, and each is done or not by itself.
    both = (drawn[0] > 0) & (drawn[1] > 0)
    assert ((drawn[0] - 1) // 4 == (drawn[1] - 1) // 4)[both].all()
    at = (drawn[0] - 1) // 4 == 8  # Equalize, 0.6, and Equalize, 0.5
    assert (drawn[1][at & (drawn[0] > 0)] > 0).mean() == pytest.approx(0.5, abs=0.06)


def test_randaugment_draws_all_alike():
    layer = RandAugment(num_ops=3, magnitude=12, seed=3)
    drawn, counts = counts_of(layer)
    assert len(drawn) == 3
    for count in counts:
        np.testing.assert_allclose(count / 40_000, 1 / 28, atol=0.004)
    assert np.corrcoef(drawn[0], drawn[1])[0, 1] == pytest.approx(0, abs=0.02)
    assert {abs(strength) for _, strength in layer.operations} == {0.4}
    assert sum(strength > 0 for _, strength in layer.operations) == 14


def test_randaugment_of_no_magnitude_leaves_all_but_the_histogram(photographs):
    layer = RandAugment(magnitude=0)
    for name, strength in layer.operations:
        same = np.array_equal(applied(photographs, name, strength), photographs)
        assert same == (name not in ("AutoContrast", "Equalize"))


LAYERS = {
    "auto": lambda **kwargs: [AutoAugment(seed=1, **kwargs)],
    "rand": lambda **kwargs: [RandAugment(seed=1, **kwargs)],
    "base": lambda **kwargs: base_augmentation(True, 4, 8, seed=1),
}


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_draws_are_by_image_and_by_seed(kind, photographs):
    images = varied(photographs, 32)

    def run():
        x, parts = images, LAYERS[kind]()
        first = images
        for layer in parts:
            first = layer(first, training=True)
        second = images
        for layer in parts:
            second = layer(second, training=True)
            x = layer(x, training=False)
        return [ops.convert_to_numpy(y) for y in (first, second, x)]

    first, second, inference = run()
    assert first.shape == images.shape and first.dtype == "float32"
    assert 0 <= first.min() and first.max() <= 255
    assert len({x.tobytes() for x in first}) > 12
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(inference, images)
    assert inference.dtype == "float32"
    for again, before in zip(run(), (first, second, inference)):
        np.testing.assert_array_equal(again, before)


@pytest.mark.parametrize("make,channels", [(AutoAugment, 3), (RandAugment, 1)])
def test_xla_and_a_dynamic_batch_give_the_same(make, channels, photographs):
    signature = [tf.TensorSpec((None, 32, 32, channels), "uint8")]
    results = []
    for jit in (None, False, True):
        layer = make(seed=5)

        def call(x, layer=layer):
            return layer(x, training=True)

        if jit is not None:
            call = tf.function(call, signature, jit_compile=jit)
        sizes = (8,) if jit else (8, 3)
        results.append([call(photographs[:n, ..., :channels]) for n in sizes])
    eager, graph, fused = results
    for a, b in zip(eager, graph):
        np.testing.assert_array_equal(a, b)
    difference = np.abs(eager[0] - fused[0])
    assert difference.mean() < 0.05  # a grey level here and there
    assert (difference > 1).mean() < 0.01


@pytest.mark.parametrize("make", [AutoAugment, RandAugment])
def test_the_compute_dtype_is_kept(make, photographs):
    layer = make(seed=1, dtype="mixed_bfloat16")
    out = layer(photographs, training=True)
    assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
    exact = ops.convert_to_numpy(make(seed=1)(photographs, training=True))
    np.testing.assert_array_equal(np.asarray(ops.cast(out, "float32")), exact)


def test_fill_is_the_colour_beyond_the_border(photographs):
    images = np.maximum(varied(photographs, 64), 9).astype("float32")
    which = np.zeros(64, "int32")
    out = apply_operations(images, [("TranslateX", 1.0)], which, 3.0)
    np.testing.assert_array_equal(out[:, :, -10:], 3.0)
    layer = RandAugment(num_ops=1, magnitude=30, fill=3.0, seed=0)
    assert (np.asarray(layer(images, training=True)) == 3.0).all(-1).any()


def offsets_of(padding, batch, size=12):
    """Returns the offsets that crops of images of ones show, from their corners."""
    (layer,) = base_augmentation(False, padding, 0, seed=4)
    y, x = np.mgrid[:size, :size]
    image = (1 + size * y + x)[None, ..., None].astype("float32")
    out = np.asarray(layer(np.repeat(image, batch, axis=0), training=True))[..., 0]
    middle = out[:, size // 2, size // 2].astype(int) - 1
    assert (middle >= 0).all()
    return out, middle // size - size // 2, middle % size - size // 2


def test_crops_cover_all_offsets_and_pad_with_zeros():
    out, dy, dx = offsets_of(3, 600)
    for offset in (dy, dx):
        assert set(offset) == set(range(-3, 4))
        assert np.bincount(offset + 3).min() > 50
    assert len(set(zip(dy, dx))) == 49
    y, x = np.mgrid[:12, :12]
    for image, a, b in zip(out, dy, dx):
        inside = (y + a >= 0) & (y + a < 12) & (x + b >= 0) & (x + b < 12)
        expected = np.where(inside, 1 + 12 * (y + a) + x + b, 0)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("size", [4, 5])
def test_cutout_has_its_centre_anywhere(size):
    (layer,) = base_augmentation(False, 0, size, seed=4)
    out = np.asarray(layer(np.ones((3000, 10, 8, 3)), training=True))
    assert set(np.unique(out)) == {0.0, 1.0}
    expected = {
        (max(cy - size // 2, 0), min(cy - size // 2 + size, 10))
        + (max(cx - size // 2, 0), min(cx - size // 2 + size, 8))
        for cy in range(10)
        for cx in range(8)
    }
    seen = set()
    for image in out:
        y, x = np.nonzero(image[..., 0] == 0)
        box = y.min(), y.max() + 1, x.min(), x.max() + 1
        assert (image == 0).sum() == 3 * (box[1] - box[0]) * (box[3] - box[2])
        seen.add(tuple(int(k) for k in box))
    assert seen == expected


def test_base_augmentation_leaves_out_what_is_not_asked_for():
    assert base_augmentation(False, 0, 0) == []
    kinds = [type(layer) for layer in base_augmentation(True, 4, 16)]
    assert kinds == [layers.RandomFlip, PadAndCrop, Cutout]


def test_flips_are_by_image(photographs):
    (layer,) = base_augmentation(True, 0, 0, seed=2)
    images = varied(photographs, 400).astype("float32")
    out = np.asarray(layer(images, training=True))
    kept = (out == images).all(axis=(1, 2, 3))
    flipped = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ flipped).all() and 150 < kept.sum() < 250


@pytest.mark.parametrize(
    "layer",
    [
        AutoAugment(fill=7.0, seed=3, name="a"),
        RandAugment(num_ops=3, magnitude=20, fill=7.0, seed=3),
        PadAndCrop(3, seed=3),
        Cutout(5, seed=3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_config_round_trip(layer, photographs):
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"].startswith("experiments>")
    again = keras.saving.deserialize_keras_object(config)
    for key in layer.get_config():
        if key not in ("dtype", "trainable"):
            assert getattr(again, key) == getattr(layer, key)
    assert again.get_config() == layer.get_config()
    fresh = type(layer).from_config(layer.get_config())
    np.testing.assert_array_equal(
        again(photographs, training=True), fresh(photographs, training=True)
    )


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: RandAugment(magnitude=31), "magnitude=31"),
        (lambda: RandAugment(num_ops=0), "num_ops=0"),
        (lambda: base_augmentation(True, -1, 0), "padding=-1"),
        (lambda: AutoAugment()(np.ones((2, 8, 8, 2))), r"\(2, 8, 8, 2\)"),
        (lambda: AutoAugment()(keras.Input((None, 8, 3))), "None"),
        (lambda: Cutout(3)(np.ones((8, 8, 3))), r"\(8, 8, 3\)"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.rare
@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_trains_inside_a_model(jit_compile, adversarial, photographs):
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            RandAugment(seed=1) if jit_compile and adversarial else AutoAugment(seed=1),
            *base_augmentation(True, 4, 16, seed=2),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, strides=4, activation="tanh"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=jit_compile)
    callbacks = []
    if adversarial:
        layer = ksa.AdversarialFlow(rate=1.0, seed=0)
        callbacks = [ksa.AdversarialTraining(layer, gradient="reuse")]
    before = [np.array(x) for x in model.get_weights()]
    x, y = photographs.astype("float32"), np.arange(8) % 2
    batch = 4 if jit_compile else 5  # with 5 the last one is smaller
    history = model.fit(x, y, batch, 2, callbacks=callbacks, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    if adversarial:
        assert history["mean_displacement"][-1] > 0
    changed = [np.abs(a - b).max() for a, b in zip(before, model.get_weights())]
    assert np.isfinite(changed).all() and max(changed) > 0
    np.testing.assert_array_equal(model.predict(x, verbose=0).shape, (8, 2))
