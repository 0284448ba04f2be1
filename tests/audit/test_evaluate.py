import random
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from keras_structadv.audit import audit
from keras_structadv.audit.attack import Attack
from keras_structadv.gradients import per_image_gradients
from keras_structadv.gradients.labels import random_wrong
from tests.audit.cases import LOGITS, answers, linear, smooth_images
from tests.models import numpy, small_model

# The same on every backend; each evaluation is compiled anew.
of_one_backend = pytest.mark.backends("tensorflow")


def evaluate(model, x, y=None, perturbation=None, **arguments):
    given = {"strengths": (0, 0.5, 1, 2), "steps": 4, "random": 4, "seed": 0}
    return ksa.evaluate_robustness(
        model, x, y, perturbation, verbose=0, **{**given, **arguments}
    )


@pytest.fixture(scope="module")
def case():
    """A linear model, images that it gets right, and some that it does not."""
    model, x = linear(), smooth_images()
    y = answers(model, x)
    y[::10] = 1 - y[::10]
    return model, x, y


def test_the_curve_of_a_linear_model_is_that_of_the_worst_translation():
    # An endless smoothness leaves translations. The loss of a linear model rises
    # fastest along the sum of the gradients: to first order, an image is lost where
    # its margin is below the strength times the length of this sum.
    model, x = linear(seed=1), smooth_images(200, seed=1)
    y = answers(model, x)
    strengths = (0.0, 0.1, 0.2, 0.4, 0.8)
    logits = numpy(model(x))
    margin = np.abs(logits[:, 0] - logits[:, 1])
    row = model.layers[-1].get_weights()[0]
    of_margin = np.broadcast_to((row[:, 0] - row[:, 1]).reshape(1, 16, 16, 1), x.shape)
    slopes = np.stack(
        [(of_margin * np.gradient(x, axis=axis)).sum(axis=(1, 2, 3)) for axis in (1, 2)]
    )
    lost_at = margin / np.linalg.norm(slopes, axis=0)
    report = evaluate(
        model,
        x,
        y,
        ksa.AdversarialFlow(smoothness=1e9),
        strengths=strengths,
        steps=10,
    )
    expected = np.mean(lost_at[:, None] > np.array(strengths), axis=0)
    assert 0.95 > expected[2] > 0.8 > expected[4] > 0.2
    np.testing.assert_allclose(report.adversarial, expected, atol=0.03)
    clear = np.abs(np.log(lost_at[:, None] / np.maximum(strengths, 1e-9))) > 0.2
    found, closed = report.of_images("adversarial") > 0, lost_at[:, None] > strengths
    np.testing.assert_array_equal(found[clear], closed[clear])


@of_one_backend
def test_no_single_structured_step_of_a_linear_model_is_stronger(case):
    model, x, y = case
    report = evaluate(model, x, y, steps=10, strengths=(1.0,), random=16)
    flow = ksa.adversarial_flow(
        x, per_image_gradients(model, x, y), max_displacement=1.0
    )
    one_step = np.mean(answers(model, ksa.dense_image_warp(x, flow)) == y)
    assert report.adversarial[0] <= one_step < report.random_mean[0]
    assert report.adversarial[0] < report.random_worst[0]


@of_one_backend
def test_accuracies_never_rise_with_the_strength_the_steps_the_fields(case):
    few, more = (evaluate(*case, steps=steps) for steps in (2, 5))
    for name in ("random_worst", "adversarial", "worst"):
        scores = few.of_images(name)
        assert np.all(np.diff(scores, axis=1) <= 0), name
    assert np.all(more.of_images("adversarial") <= few.of_images("adversarial"))
    assert more.adversarial[-1] < few.adversarial[0]
    np.testing.assert_array_equal(
        few.worst,
        np.minimum(few.of_images("adversarial"), few.of_images("random_worst")).mean(
            axis=0
        ),
    )


@of_one_backend
def test_restarts_and_more_random_fields_only_add_attempts(case):
    once, restarted, more_random = (
        evaluate(*case, restarts=restarts, random=fields)
        for restarts, fields in ((1, 2), (3, 2), (1, 24))
    )
    for name, more in (("adversarial", restarted), ("random_worst", more_random)):
        assert np.all(more.of_images(name) <= once.of_images(name)), name
        assert more.of_images(name).mean() < once.of_images(name).mean(), name
    np.testing.assert_array_equal(restarted.random_mean, once.random_mean)
    np.testing.assert_array_equal(more_random.adversarial, once.adversarial)


def test_strength_zero_alone_is_saved_and_loaded(case, tmp_path):
    report = evaluate(*case, strengths=(0,))
    report.save(tmp_path)
    assert ksa.RobustnessReport.load(tmp_path).table() == report.table()


def test_at_strength_zero_all_are_the_clean_accuracy(case):
    report = evaluate(*case)
    for name in ("random_mean", "random_worst", "adversarial", "worst"):
        assert getattr(report, name)[0] == pytest.approx(0.9)
    np.testing.assert_array_equal(report.clean[:11], [0, *[1] * 9, 0])


@of_one_backend
def test_a_constant_model_has_a_flat_curve():
    model = linear(scale=0.0)
    model.layers[-1].set_weights([np.zeros((256, 2)), np.array([1.0, 0.0])])
    x = smooth_images(20)
    with pytest.warns(UserWarning, match="gradient of 100% of the images is zero"):
        report = evaluate(model, x, np.arange(20) % 2)
    assert [*report.worst] == [0.5] * 4 == [*report.random_mean]
    assert len(report.lost()) == 0
    with pytest.raises(ValueError, match="larger strengths"):
        report.plot_worst()


def test_a_saturated_softmax_is_warned_of():
    model, x = linear(scale=1e4, activation="softmax"), smooth_images()
    y = answers(model, x)
    with pytest.warns(UserWarning, match="the gradient misleads"):
        evaluate(model, x, y, random=32)
    honest = linear(scale=30.0)  # logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(honest, x, y, random=32)


def test_what_fooled_an_image_is_kept(case):
    model, x, y = case
    report = evaluate(model, x, y)
    lost = report.lost()
    assert len(lost) == np.sum(report.worst[-1] < report.worst[0]) * np.sum(
        report.of_images("worst")[:, -1] < report.clean
    )
    assert np.all(np.diff(report.place[lost]) >= 0)
    warped = ksa.dense_image_warp(report.images[lost], report.fields[lost])
    found = answers(model, warped)
    np.testing.assert_array_equal(found, report.answers[lost, 1])
    assert np.all(found != y[lost])
    np.testing.assert_array_equal(report.answers[:, 0], answers(model, x))
    longest = np.linalg.norm(report.fields, axis=-1).max(axis=(1, 2))
    budget = np.where(report.place < 0, 0, report.strengths[report.place])
    assert np.all(longest <= budget * (1 + 1e-4))
    # At no smaller strength was it lost.
    first = np.argmax(report.of_images("worst") == 0, axis=1)
    np.testing.assert_array_equal(report.place[lost], first[lost])


@of_one_backend
def test_an_image_gets_the_same_in_batches_of_any_size(case):
    first, second = (evaluate(*case, batch_size=size) for size in (7, 64))
    for name in first.scores:
        np.testing.assert_array_equal(first.scores[name], second.scores[name])
    np.testing.assert_allclose(first.fields, second.fields, atol=1e-3)


@of_one_backend
def test_the_seed_is_all_that_is_random(case):
    first, second, other = (evaluate(*case, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(
        first.scores["random_mean"], second.scores["random_mean"]
    )
    assert np.any(first.scores["random_mean"] != other.scores["random_mean"])
    model, x, y = case
    unseeded = ksa.evaluate_robustness(
        model, x, y, strengths=(1,), steps=1, random=2, verbose=0
    )
    again = evaluate(
        model, x, y, strengths=(1,), steps=1, random=2, seed=unseeded.settings["seed"]
    )
    np.testing.assert_array_equal(unseeded.of_images("worst"), again.of_images("worst"))


def test_recolourings_and_other_layouts():
    model, x = linear(channels=3, seed=3), smooth_images(24, channels=3)
    y = answers(model, x)
    report = evaluate(
        model, x, y, ksa.AdversarialRecoloring(), strengths=(0, 0.02, 0.1)
    )
    assert report.adversarial[-1] < 0.5 < report.random_mean[-1]
    size = np.sqrt(np.mean(np.square(report.fields), axis=(1, 2, 3))) / 255
    assert np.all(size <= 0.1 * (1 + 1e-4))
    first = keras.Sequential(
        [keras.Input((3, 16, 16)), layers.Permute((2, 3, 1)), *model.layers]
    )
    first.compile(loss=LOGITS)
    layer = ksa.AdversarialRecoloring(data_format="channels_first")
    same = evaluate(first, x.transpose(0, 3, 1, 2), y, layer, strengths=(0, 0.02, 0.1))
    np.testing.assert_allclose(same.adversarial, report.adversarial, atol=1e-6)
    assert same.images.shape == x.shape


def test_flows_of_channels_first_images():
    model, x = linear(), smooth_images(12)
    y = answers(model, x)
    first = keras.Sequential(
        [keras.Input((1, 16, 16)), layers.Permute((2, 3, 1)), *model.layers]
    )
    first.compile(loss=LOGITS)
    layer = ksa.AdversarialFlow(data_format="channels_first")
    same = evaluate(first, x.transpose(0, 3, 1, 2), y, layer)
    report = evaluate(model, x, y)
    np.testing.assert_allclose(same.of_images("worst"), report.of_images("worst"))
    np.testing.assert_array_equal(same.images, x)


@of_one_backend
def test_values_scaled_to_one(case):
    model, x, y = case
    scaled = keras.Sequential([keras.Input((16, 16, 1)), layers.Rescaling(255), model])
    scaled.compile(loss=LOGITS)
    layer = ksa.AdversarialFlow(value_range=(0, 1))
    report, same = evaluate(scaled, x / 255, y, layer), evaluate(model, x, y)
    np.testing.assert_allclose(report.random_mean, same.random_mean, atol=0.01)
    np.testing.assert_allclose(report.adversarial, same.adversarial, atol=0.04)


def test_the_model_and_the_layer_stay_as_they_were():
    model = small_model(shape=(16, 16, 1))
    layer = ksa.AdversarialFlow(max_displacement=3.0, rate=0.2, steps=2, seed=5)
    x, y = smooth_images(20), np.arange(20) % 3
    weights, config = model.get_weights(), layer.get_config()
    given = x.copy(), y.copy()
    evaluate(model, x, y, layer)
    for before, after in zip(weights, model.get_weights()):
        np.testing.assert_array_equal(before, after)
    assert layer.get_config() == config and layer.binding.model is None
    np.testing.assert_array_equal(given[0], x)
    np.testing.assert_array_equal(given[1], y)


@of_one_backend
def test_targets_are_approached(case):
    x = smooth_images(30)
    model = small_model(shape=(16, 16, 1), classes=5)
    y = answers(model, x)
    for target in ("most_confident_wrong", "random"):
        report = evaluate(model, x, y, ksa.AdversarialFlow(target=target))
        assert report.adversarial[-1] < report.adversarial[0]


def test_a_random_target_is_an_image_s_own():
    x = smooth_images(12)
    model = small_model(shape=(16, 16, 1), classes=5)
    y, layer = answers(model, x), ksa.AdversarialFlow(target="random")
    first, again, other = (
        evaluate(model, x, y, layer, batch_size=size, seed=seed, strengths=(2.0,))
        for size, seed in ((12, 0), (5, 0), (12, 1))
    )
    np.testing.assert_array_equal(first.fields, again.fields)
    assert not np.allclose(first.fields, other.fields)


def test_random_targets_are_wrong_classes_of_the_draws():
    draws = np.arange(40, dtype="int32").reshape(8, 5)
    labels, predictions = np.arange(8) % 3, np.zeros((8, 3), "float32")
    wrong = numpy(random_wrong(labels, predictions, draws=ops.convert_to_tensor(draws)))
    np.testing.assert_array_equal(wrong, (labels + 1 + draws[:, 0] % 2) % 3)
    hot = np.eye(3, dtype="float32")[labels]
    wrong = numpy(random_wrong(hot, predictions, draws=ops.convert_to_tensor(draws)))
    assert np.all(wrong != labels) and np.all((0 <= wrong) & (wrong < 3))
    one = random_wrong(
        labels[:, None] % 2, predictions[:, :1], draws=ops.convert_to_tensor(draws)
    )
    np.testing.assert_array_equal(numpy(one)[:, 0], 1 - labels % 2)


@of_one_backend
def test_the_scale_of_the_layer_does_not_count(case):
    plain = evaluate(*case)
    scaled = evaluate(*case, ksa.AdversarialFlow(alpha=1e6))
    np.testing.assert_array_equal(plain.adversarial, scaled.adversarial)


def test_a_built_model_whose_parts_are_not():
    class Parts(keras.Model):
        def __init__(self):
            super().__init__()
            self.flat, self.dense = layers.Flatten(), layers.Dense(3)

        def call(self, images):
            return self.dense(self.flat(images))

    model, x = Parts(), smooth_images(6)
    model.compile("sgd", LOGITS)
    model.build((None, 16, 16, 1))
    report = evaluate(model, x, np.arange(6) % 3)
    found = model.predict(x, verbose=0).argmax(-1) == np.arange(6) % 3
    np.testing.assert_array_equal(report.clean, found)


@of_one_backend
def test_no_random_state_of_others_is_touched(case):
    keras.utils.set_random_seed(3)
    before = random.getstate(), np.random.get_state()[1].copy()
    evaluate(*case)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


@of_one_backend
def test_images_without_a_label_are_no_error(case):
    _, x, y = case
    model = linear()
    loss = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=-1)
    model.compile(loss=loss)
    y = np.where(np.arange(len(y)) == 3, -1, y)
    report = evaluate(model, x, y)
    assert report.clean[3] == 0 and report.clean.mean() > 0.8


@of_one_backend
def test_less_than_guessing_is_warned_of(case):
    model, x, y = case
    with pytest.warns(UserWarning, match="less than guessing"):
        evaluate(model, x, 1 - y)


@of_one_backend
def test_a_regression_has_no_answers(case):
    model = small_model(shape=(16, 16, 1), classes=4)
    model.compile(loss="mse")
    y = np.zeros((60, 4), "float32")
    with pytest.raises(ValueError, match="Pass metric=function"):
        evaluate(model, case[1], y)
    near = evaluate(model, case[1], y, metric=lambda a, b: ops.exp(-ops.abs(a - b)))
    assert np.all(near.answers == -1)


@of_one_backend
def test_a_metric_of_numpy_is_told_what_to_do(case):
    model, x, y = case
    with pytest.raises(Exception) as caught:
        evaluate(model, x, y, metric=lambda a, b: np.asarray(b)[:, 0] > 0)
    assert "keras.ops, not NumPy" in caught.value.__notes__[0]


@of_one_backend
def test_without_labels_the_answers_count(case):
    model, x, _ = case
    report, same = evaluate(model, x), evaluate(model, x, answers(model, x))
    np.testing.assert_array_equal(report.of_images("worst"), same.of_images("worst"))
    assert report.clean.min() == 1


@of_one_backend
def test_one_hot_labels_and_one_output(case):
    model, x, y = case
    report = evaluate(model, x, y)
    hot = keras.models.clone_model(model)
    hot.set_weights(model.get_weights())
    hot.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    same = evaluate(hot, x, np.eye(2)[y])
    np.testing.assert_allclose(report.worst, same.worst, atol=0.02)
    kernel = model.layers[-1].get_weights()[0]
    binary = keras.Sequential(
        [keras.Input((16, 16, 1)), layers.Flatten(), layers.Dense(1)]
    )
    binary.layers[-1].set_weights([kernel[:, 1:] - kernel[:, :1], np.zeros(1)])
    binary.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    for labels in (y, y[:, None].astype("float32")):
        same = evaluate(binary, x, labels)
        np.testing.assert_allclose(report.worst, same.worst, atol=0.02)
        np.testing.assert_array_equal(same.answers[:, 0], answers(model, x))


def test_one_output_without_an_axis(case):
    inputs = keras.Input((16, 16, 1))
    model = keras.Model(inputs, ops.mean(inputs, axis=(1, 2, 3)) - 127.0)
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    x = case[1]
    y = (x.mean(axis=(1, 2, 3)) > 127).astype("int32")
    report = evaluate(model, x, y)
    assert report.clean.min() == 1 and 0 < y.mean() < 1
    np.testing.assert_array_equal(report.answers[:, 0], y)
    with pytest.warns(UserWarning, match="less than guessing"):
        evaluate(model, x, 1 - y)


def test_masks_move_with_the_image():
    # The model answers for each pixel whether it is bright: a motion does not change
    # that where the mask moves along, and does where it stays.
    inputs = keras.Input((16, 16, 1))
    bright = layers.Rescaling(1 / 20, offset=-127 / 20)(inputs)
    model = keras.Model(inputs, layers.Concatenate()([-bright, bright]))
    model.compile(loss=LOGITS)
    x = smooth_images(12)
    masks = (x[..., 0] > 127).astype("int32")
    report = evaluate(
        model,
        x,
        masks,
        metric=keras.metrics.sparse_categorical_accuracy,
        strengths=(0, 2),
    )
    assert report.worst[0] == 1 and report.worst[1] > 0.9
    still = np.mean(masks[:, 2:] == masks[:, :-2])
    assert report.worst[1] > still
    assert np.all(report.answers == -1)
    with pytest.raises(ValueError, match="Pass metric="):
        evaluate(model, x, masks)


@of_one_backend
def test_many_labels_with_a_metric():
    model = keras.Sequential(
        [keras.Input((16, 16, 1)), layers.Flatten(), layers.Dense(3)]
    )
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    x = smooth_images(20)
    y = (numpy(model(x)) > 0).astype("float32")

    def hits(labels, predictions):
        return ops.cast((predictions > 0) == (labels > 0.5), "float32")

    report = evaluate(model, x, y, metric=hits)
    assert report.clean.min() == 1 and report.adversarial[-1] < report.random_mean[-1]
    assert report.settings["metric"] == "hits"
    with pytest.raises(ValueError, match="Pass metric="):
        evaluate(model, x, y)


def test_inputs_beside_the_images():
    image, number = keras.Input((16, 16, 1), name="images"), keras.Input((1,), name="n")
    logits = layers.Add()([linear()(image), number])
    model = keras.Model({"images": image, "n": number}, logits)
    model.compile(loss=LOGITS)
    x = {"images": smooth_images(20), "n": np.zeros((20, 1), "float32")}
    y = np.argmax(numpy(model(x)), axis=-1)
    report = evaluate(model, x, y, batch_size=8)
    assert report.adversarial[-1] < 1 == report.adversarial[0]


def test_several_outputs_need_a_metric():
    inputs = keras.Input((16, 16, 1))
    flat = layers.Flatten()(inputs)
    outputs = {name: layers.Dense(2, name=name)(flat) for name in ("a", "b")}
    model = keras.Model(inputs, outputs)
    model.compile(loss={"a": LOGITS, "b": LOGITS})
    x = smooth_images(20)
    found = model(x)
    y = {
        name: np.argmax(numpy(found[name]), axis=-1).astype("int32") for name in outputs
    }

    def both(labels, predictions):
        right = [ops.argmax(predictions[k], axis=-1) == labels[k] for k in ("a", "b")]
        return ops.cast(ops.logical_and(*right), "float32")

    report = evaluate(model, x, y, metric=both)
    assert report.clean.min() == 1 and report.adversarial[-1] < 1
    with pytest.raises(ValueError, match="Pass metric="):
        evaluate(model, x, y)
    with pytest.raises(ValueError, match="no labels for a model with 2 outputs"):
        evaluate(model, x, metric=both)


def test_a_subclassed_model_that_was_never_called():
    class Flat(keras.Model):
        def __init__(self):
            super().__init__()
            self.flatten, self.dense = layers.Flatten(), layers.Dense(2)

        def call(self, x):
            return self.dense(self.flatten(x))

    model = Flat()
    model.compile(loss=LOGITS)
    assert len(evaluate(model, smooth_images(5)).clean) == 5


@of_one_backend
def test_pictures_are_bounded(case, monkeypatch):
    monkeypatch.setattr(audit, "KEPT_BYTES", 25 * 16 * 16 * 3 * 4)
    report = evaluate(*case, batch_size=10)
    assert len(report.images) == len(report.fields) == 25 and len(report.clean) == 60
    assert np.all(report.lost() < 25)


@of_one_backend
def test_a_program_is_traced_once(case, monkeypatch):
    model, x, y = case
    traced = []
    plain = Attack._stepped
    monkeypatch.setattr(
        Attack, "_stepped", lambda *args: traced.append(1) or plain(*args)
    )
    evaluate(model, x, y, batch_size=16)  # the last batch is filled up
    assert len(traced) == 1


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"strengths": (2, 1)}, ValueError, "ascending"),
        ({"strengths": ()}, ValueError, "ascending"),
        ({"strengths": (-1, 1)}, ValueError, "ascending"),
        ({"strengths": 2.0}, ValueError, "ascending"),
        ({"strengths": (1, np.inf)}, ValueError, "ascending"),
        ({"strengths": ("a",)}, ValueError, "ascending"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"restarts": 0}, ValueError, "restarts=0"),
        ({"random": 0}, ValueError, "random=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"metric": "accuracy"}, ValueError, "metric='accuracy'"),
        ({"metric": keras.metrics.BinaryAccuracy()}, ValueError, "one score"),
        ({"metric": lambda y, p: 2.0 * p[:, 0] + 9}, ValueError, r"in \[0, 1\]"),
        ({"metric": lambda y, p: ops.mean(p)}, ValueError, "one score for each"),
        ({"metric": lambda y, p: y[:, None] == y}, ValueError, r"shape \(8, 8\)"),
        ({"perturbation": "flow"}, TypeError, "perturbation='flow'"),
        ({"perturbation": ksa.RandomFlow()}, ValueError, "RandomFlow"),
    ],
)
def test_bad_arguments(case, arguments, error, message):
    model, x, y = case
    with pytest.raises(error, match=message):
        evaluate(model, x[:8], y[:8], **arguments)


def test_bad_data(case):
    model, x, y = case
    with pytest.raises(TypeError, match="keras.Model"):
        evaluate("model", x, y)
    with pytest.raises(ValueError, match="lengths"):
        evaluate(model, x, y[:5])
    with pytest.raises(ValueError, match="no images"):
        evaluate(model, x[:0], y[:0])
    with pytest.raises(ValueError, match="rank 4"):
        evaluate(model, x[..., 0], y)
    with pytest.raises(TypeError, match="as perturbation="):
        evaluate(model, x, ksa.AdversarialFlow())
    with pytest.raises(ValueError, match="2 arrays for a model with 1 input"):
        evaluate(model, (x, y))
    with pytest.raises(ValueError, match=r"x\[None\]"):
        evaluate(model, x[0], y[0])
    with pytest.raises(ValueError, match="without a batch axis"):
        evaluate(model, ((a, b) for a, b in zip(x, y)))
    with pytest.raises(ValueError, match="no images.*read only once"):
        evaluate(model, iter(()))
    with pytest.raises(ValueError, match="a batch with 4 entries"):
        evaluate(model, iter([(x, y, y, y)]))
    for batches in ([(x, y)], [(x, y), (x, y)]):
        with pytest.raises(ValueError, match="arrays for a model.*not a list"):
            evaluate(model, batches)
    with pytest.raises(ValueError, match="labels from 1 to 2"):
        evaluate(model, x, y + 1)
    with pytest.raises(ValueError, match=r"labels of shape \(60, 2\)"):
        evaluate(model, x, np.eye(2)[y])
    with pytest.raises(ValueError, match="dtype <U"):
        evaluate(model, x, y.astype(str))
    with pytest.raises(ValueError, match=r"pass numbers in \[0, 1\]"):
        evaluate(model, x, y, ksa.AdversarialRecoloring())
    uncompiled = keras.Model(model.inputs, model.outputs)
    with pytest.raises(ValueError, match="no compiled loss"):
        evaluate(uncompiled, x, y)
    layer = ksa.AdversarialFlow(loss=LOGITS)
    same = evaluate(uncompiled, x, y, layer)
    np.testing.assert_array_equal(same.worst, evaluate(model, x, y).worst)
