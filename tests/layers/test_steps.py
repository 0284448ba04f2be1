"""Steps within a budget, and the random start before them."""

import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from keras_structadv.layers.steps import Steps
from tests.models import numpy, small_model


@pytest.fixture(params=[ksa.AdversarialFlow, ksa.AdversarialRecoloring])
def kind(request):
    return request.param


def unit(kind):
    return 1.0 if kind is ksa.AdversarialFlow else 0.1


def made(kind, **arguments):
    size = unit(kind)
    given = {"rate": 1.0, "seed": 1, "value_range": (0, 1), **arguments}
    return kind((size, size), **given).bind(small_model())


def sizes(layer, fields):
    return numpy(layer.size_of(fields))


@pytest.mark.parametrize(
    "steps,step_size,share", [(1, None, 1), (5, None, 0.5), (1, 2, 2), (5, 0.2, 0.2)]
)
def test_the_size_of_a_step(steps, step_size, share):
    assert Steps.checked(steps, step_size, False).share == share


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": 4},
        {"steps": 4, "step_size": 1.0},
        {"step_size": 3.0},
        {"random_start": True},
        {"random_start": True, "steps": 3},
    ],
    ids=str,
)
def test_the_strength_bounds_the_whole_field(kind, arguments, images, labels):
    layer = made(kind, **arguments)
    found = sizes(layer, layer.fields(images, labels))
    assert found.max() <= unit(kind) * (1 + 1e-5)
    assert found.min() > 0


def test_small_steps_add_up(kind, images, labels):
    """Three thirds of the strength are three steps of full strength, as in figure 3."""
    layer, size = made(kind, steps=3, step_size=1 / 3), unit(kind) / 3
    one = kind((size, size), rate=1.0, value_range=(0, 1)).bind(layer.binding.model)
    field, changed = None, ops.convert_to_tensor(images)
    for _ in range(3):
        step = one.fields(changed, labels)
        field = step if field is None else one.compose(field, step)
        changed = one.apply(ops.convert_to_tensor(images), field)
    np.testing.assert_allclose(layer.fields(images, labels), field, atol=1e-4)


def test_the_gradient_is_taken_at_the_start(kind, images, labels):
    layer = made(kind, random_start=True)
    twin = made(kind, random_start=True).bind(layer.binding.model)
    actual = layer.fields(images, labels)
    x = ops.convert_to_tensor(images)
    strength = twin.draw_strength(x)
    first = twin.random_field(x, strength)
    started = twin.apply(x, first)
    expected = []
    for place in (started, x):
        gradients = ksa.per_image_gradients(layer.binding.model, place, labels)
        both = twin.compose(first, twin.make_field(place, gradients, strength))
        expected.append(numpy(twin.within_budget(both, strength)))
    np.testing.assert_allclose(actual, expected[0], atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * unit(kind)


def test_fields_of_one_image_differ_from_call_to_call(kind, images, labels):
    plain, started = made(kind), made(kind, random_start=True)
    for layer, differ in ((plain, False), (started, True)):
        one, other = (numpy(layer.fields(images, labels)) for _ in range(2))
        assert (np.abs(one - other).max() > 0.1 * np.abs(one).max()) == differ


def test_images_that_are_not_chosen_stay(kind, images, labels):
    layer = made(kind, random_start=True, rate=0.5)
    augmented = layer.augment(images, labels)
    changed = np.abs(numpy(augmented.images) - images).max(axis=(1, 2, 3)) > 0
    places = numpy(augmented.selection.places)
    assert changed.sum() == 3 and changed[places].all()
    nothing = layer.augment(images, labels, strength=0.0)
    np.testing.assert_array_equal(nothing.images, images)


def test_only_what_exceeds_the_budget_is_scaled(kind, images, labels):
    layer = made(kind)
    field = numpy(layer.fields(images, labels))
    field[1] = 0
    size = unit(kind)
    limits = np.array([0.5, 0.5, 2, 2, 0, 1.5], "float32") * size
    given = (ops.convert_to_tensor(x) for x in (field, limits))
    out = numpy(layer.within_budget(*given))
    np.testing.assert_array_equal(out[[2, 3, 5]], field[[2, 3, 5]])
    np.testing.assert_allclose(out[0], field[0] / 2, rtol=1e-4)
    assert not out[[1, 4]].any()
