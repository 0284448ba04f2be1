"""The arguments of the callback."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_structadv as ksa
from tests.models import build, layer, loss_from_logits, recolor, reuse


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


def test_one_callback_serves_several_models(images, labels):
    callback = ksa.AdversarialTraining(layer(rate=1.0))
    first, second = build("sequential"), build("subclassed")
    for model in (first, second, first):
        history = model.fit(images, labels, verbose=0, callbacks=[callback]).history
        assert history["adversarial_loss_gain"][0] > 0


def test_bad_arguments_are_named(images, labels):
    with pytest.raises(ValueError, match="layer='flow'.*AdversarialFlow"):
        ksa.AdversarialTraining("flow")
    with pytest.raises(ValueError, match="gradient='stale'.*fresh"):
        ksa.AdversarialTraining(layer(), gradient="stale")
    with pytest.raises(ValueError, match="gradient=array.*fresh"):
        ksa.AdversarialTraining(layer(), gradient=np.zeros(2))
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
    with pytest.raises(ValueError, match=r"shape \(None, 4\).*rank 4"):
        flat.fit(
            np.zeros((6, 4)),
            labels,
            verbose=0,
            callbacks=[ksa.AdversarialTraining(layer())],
        )


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"target": "random"}, "target='random'"),
        ({"steps": 2}, "steps=2"),
        ({"step_size": 0.5}, "step_size=0.5"),
        ({"random_start": True}, "random_start=True"),
        ({"loss": "mse"}, "loss='mse'"),
        ({"alpha": 1.0}, "alpha=1.0"),
    ],
)
def test_what_cannot_be_reused_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message + '.*gradient="fresh"'):
        reuse(ksa.AdversarialFlow(**kwargs))


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
