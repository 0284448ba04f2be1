"""The variants among which the search chooses do what their names say."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from experiments import plans, variants
from experiments.altered import (
    FlowByMovingStatistics,
    FlowByWholeBatch,
    FlowFromAfar,
    FlowFromNearby,
    FlowInTrainingMode,
    Mixed,
    RecoloringInTrainingMode,
    RecoloringJittered,
    RecoloringMixed,
    RecoloringSomeReversed,
    SomeRandom,
    SomeReversed,
    SplitBatchNormalization,
    first_half,
)
from experiments.cells import load_cells
from experiments.controls import ColourJitter
from keras_structadv.flow import longest_displacement
from keras_structadv.layers.passes import during_train_step
from tests.models import small_model


def fields(kind, images, labels, **arguments):
    """Returns the fields of a layer, and those of the plain form with its draws."""
    model = small_model()
    return (
        kind(**arguments, rate=1.0, value_range=(0, 1), seed=1)
        .bind(model)
        .augment(images, labels)
        .fields
    )


@pytest.mark.parametrize("kind", [Mixed, SomeRandom, SomeReversed])
def test_altered_flows_keep_their_length(kind, images, labels):
    images, labels = np.tile(images, (8, 1, 1, 1)), np.tile(labels, 8)
    plain = fields(ksa.AdversarialFlow, images, labels, max_displacement=(1, 1))
    keras.utils.set_random_seed(0)
    altered = fields(kind, images, labels, max_displacement=(1, 1))
    np.testing.assert_allclose(longest_displacement(altered), 1, rtol=1e-4)
    products = ops.convert_to_numpy(ops.sum(plain * altered, axis=(1, 2, 3)))
    length = ops.convert_to_numpy(ops.sum(plain**2, axis=(1, 2, 3)))
    same = np.isclose(products, length, rtol=1e-3)
    if kind is Mixed:
        assert products.mean() > 0 and not same.any()
    elif kind is SomeRandom:
        assert 10 < same.sum() < 38
    else:
        reversed_ = np.isclose(products, -length, rtol=1e-3)
        assert np.all(same | reversed_) and 5 < reversed_.sum() < 25


@pytest.mark.parametrize(
    "kind",
    [
        RecoloringMixed,
        RecoloringJittered,
        RecoloringSomeReversed,
    ],
)
def test_altered_recolourings_keep_their_size(kind, images, labels):
    plain = fields(ksa.AdversarialRecoloring, images, labels, magnitude=(0.1, 0.1))
    keras.utils.set_random_seed(0)
    altered = fields(kind, images, labels, magnitude=(0.1, 0.1))
    size = np.sqrt(np.mean(np.square(altered), axis=(1, 2, 3)))
    np.testing.assert_allclose(size, 0.1, rtol=1e-4)
    assert not np.allclose(altered, plain)
    jitter = fields(ColourJitter, images, labels, magnitude=(0.1, 0.1))
    assert not np.allclose(altered, jitter)


def test_altered_reused_flows_leave_images_without_a_gradient(images):
    layer = Mixed(rate=1.0, seed=0)
    codes = np.random.default_rng(0).normal(size=(6, 128)).astype("float32")
    codes[2] = 0
    flow = layer.decode(images, codes, 8, np.full(6, 2.0, "float32"))
    lengths = ops.convert_to_numpy(longest_displacement(flow))
    np.testing.assert_allclose(lengths, [2, 2, 0, 2, 2, 2], rtol=1e-4)


@pytest.mark.parametrize("kind", [FlowInTrainingMode, RecoloringInTrainingMode])
def test_gradient_in_training_mode(kind, images, labels):
    model = small_model()
    before = [ops.convert_to_numpy(x).copy() for x in model.variables]
    gradients = [
        x(rate=1.0, value_range=(0, 1), seed=0)
        .bind(model)
        .gradient(
            lambda z: model(z, training=False),
            ops.convert_to_tensor(images),
            labels,
            None,
        )
        for x in (kind, kind.__bases__[1])
    ]
    assert np.abs(gradients[0]).max() > 0
    assert not np.allclose(*gradients, rtol=1e-2)  # statistics of the batch
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_random_starts(images, labels):
    images, labels = np.tile(images, (8, 1, 1, 1)), np.tile(labels, 8)
    longest = {}
    for kind in (ksa.AdversarialFlow, FlowFromAfar, FlowFromNearby):
        layer = kind((1, 1), rate=1.0, random_start=True, seed=1).bind(small_model())
        longest[kind] = ops.convert_to_numpy(
            longest_displacement(layer.fields(images, labels))
        )
        start = layer.random_field(images, np.ones(48, "float32"))
        longest[kind, "start"] = ops.convert_to_numpy(longest_displacement(start))
    assert longest[ksa.AdversarialFlow].max() < 1.001
    assert longest[FlowFromNearby].max() < 1.001
    assert 5 < longest[FlowFromAfar].max() < 11
    assert longest[FlowFromNearby, "start"].min() < 0.3
    np.testing.assert_allclose(longest[ksa.AdversarialFlow, "start"], 1, rtol=1e-4)


def test_the_statistics_of_a_gradient(images, labels):
    model = small_model()
    fields = {}
    for kind in (ksa.AdversarialFlow, FlowByMovingStatistics, FlowByWholeBatch):
        layer = kind((1, 1), rate=1.0, value_range=(0, 1), seed=1).bind(model)
        with during_train_step():
            fields[kind] = ops.convert_to_numpy(layer.augment(images, labels).fields)
    plain = ksa.AdversarialFlow((1, 1), rate=1.0, value_range=(0, 1), seed=1)
    plain = ops.convert_to_numpy(plain.bind(model).augment(images, labels).fields)
    np.testing.assert_allclose(fields[FlowByMovingStatistics], plain, atol=1e-5)
    assert np.abs(fields[ksa.AdversarialFlow] - plain).max() > 1e-3
    whole = fields[FlowByWholeBatch]
    still = ~whole.any(axis=(1, 2, 3))
    assert 0 < still.sum() < 6
    np.testing.assert_allclose(
        whole[~still], fields[ksa.AdversarialFlow][~still], atol=1e-5
    )


def test_split_statistics():
    layer = SplitBatchNormalization(momentum=0.0)
    x = np.random.default_rng(0).normal(size=(6, 4, 4, 2)).astype("float32")
    x[:3] += 5
    y = ops.convert_to_numpy(layer(x, training=True))
    assert y.shape == x.shape
    for half in (y[:3], y[3:]):
        np.testing.assert_allclose(half.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(layer.augmented.moving_mean, x[:3].mean((0, 1, 2)), 1e-4)
    np.testing.assert_allclose(
        layer.plain.moving_mean, x[3:].mean((0, 1, 2)), 1e-4, 1e-5
    )
    np.testing.assert_allclose(
        layer(x, training=False), layer.plain(x, training=False), rtol=1e-5
    )


def test_only_the_first_half_is_changed(images, labels):
    kind = first_half(ksa.AdversarialFlow)
    layer = kind((2.0, 2.0), rate=0.5, value_range=(0, 1), seed=0).bind(small_model())
    augmented = layer.augment(images, labels)
    changed = np.any(augmented.images != images, axis=(1, 2, 3))
    assert changed.tolist() == [True] * 3 + [False] * 3


def test_schedules():
    assert [plans._late(x) for x in (0.0, 0.2, 0.25, 1.0)] == [0, 0, 1, 1]
    assert [plans._warm_up(x) for x in (0.0, 0.25, 0.5, 1.0)] == [0, 0.5, 1, 1]
    assert [plans._cool_down(x) for x in (0.0, 0.5, 0.75, 1.0)] == [1, 1, 0.5, 0]


@pytest.mark.parametrize(
    "data, name, expected",
    [
        ("digits", "fresh, strength x 2", {"max_displacement": 6.0, "rate": 0.5}),
        ("digits", "random, rate 1", {"max_displacement": 3.0, "rate": 1.0}),
        ("glyphs", "reused, strength fixed", {"max_displacement": (2.0, 2.0)}),
        ("glyphs", "fresh, smoothness 30", {"smoothness": 30.0}),
        ("colour-glyphs", "reused, coherence 10", {"coherence": 10.0}),
    ],
)
def test_a_variant_changes_one_thing(data, name, expected):
    (cell,) = load_cells(f"small/{data}", plans.PLAIN)
    (callback,) = plans.VARIANTS[data][name].callbacks(cell, 0, capacity=8)
    config = callback.layers[0].get_config()
    plain = plans.VARIANTS[data][name.split(",")[0]]
    (unchanged,) = plain.callbacks(cell, 0, capacity=8)
    unchanged = {**unchanged.layers[0].get_config(), "name": config["name"]}
    assert config == {**unchanged, **expected} != unchanged
    assert (callback.gradient != "fresh") == name.startswith("reused")


@pytest.mark.rare
def test_a_search_keeps_its_records(tmp_path, monkeypatch, capsys):
    path = tmp_path / "variants.jsonl"
    arguments = ["--data", "digits", "--seeds", "2", "--workers", "1"]
    arguments += ["--only", "none", "random", "--results", str(path)]
    (cell,) = load_cells("small/digits", [*plans.PLAIN, "epochs=2"])
    monkeypatch.setattr(variants, "load_cells", lambda *_: [cell])
    variants.main(arguments)
    out = capsys.readouterr().out
    assert "| random | 2 |" in out and "digits, validation set" in out
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    variants.main(arguments)
    assert path.read_text().splitlines() == lines
