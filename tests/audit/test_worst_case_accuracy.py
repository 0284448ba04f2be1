import pickle

import keras
import numpy as np
import pytest

import keras_structadv as ksa
from keras_structadv.audit.attack import Attack
from tests.audit.cases import LOGITS, answers, linear, smooth_images


@pytest.fixture
def case():
    model, x = linear(), smooth_images(40)
    y = answers(model, x).astype("int32")
    model.compile(keras.optimizers.SGD(1e-7), LOGITS, metrics=["accuracy"])
    return model, x, y


def test_it_is_the_audit_at_the_end_of_each_epoch(case):
    model, x, y = case
    seen = []

    class Audit(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            report = ksa.evaluate_robustness(
                model, x, y, strengths=(1,), steps=3, random=1, seed=4, verbose=0
            )
            seen.append((report.adversarial[0], logs["val_worst_case_accuracy"]))

    worst = ksa.WorstCaseAccuracy(x, y, strength=1.0, steps=3, seed=4)
    history = model.fit(
        x, 1 - y, epochs=3, verbose=0, callbacks=[worst, Audit()]
    ).history
    assert len(seen) == 3 and all(a == b for a, b in seen)
    assert history["val_worst_case_accuracy"] == [b for _, b in seen]
    assert len({*history["val_worst_case_accuracy"]}) > 1  # of the weights of then


def test_other_callbacks_follow_it(case, tmp_path):
    model, x, y = case
    worst = ksa.WorstCaseAccuracy(x, y, strength=1.0, steps=2)
    path = tmp_path / "best.weights.h5"
    callbacks = [
        worst,
        keras.callbacks.EarlyStopping("val_worst_case_accuracy", mode="max"),
        keras.callbacks.ModelCheckpoint(
            path,
            "val_worst_case_accuracy",
            mode="max",
            save_best_only=True,
            save_weights_only=True,
        ),
    ]
    history = model.fit(x, 1 - y, epochs=9, verbose=0, callbacks=callbacks).history
    values = history["val_worst_case_accuracy"]
    assert 1 < len(values) < 9 and values[-1] <= max(values[:-1])
    assert path.exists()


def test_beside_adversarial_training_and_validation(case):
    model, x, y = case
    worst = ksa.WorstCaseAccuracy(
        x, y, ksa.AdversarialFlow(smoothness=50.0), strength=3.0, steps=2
    )
    for gradient in ("fresh", "reuse"):
        training = ksa.AdversarialTraining(ksa.AdversarialFlow(), gradient=gradient)
        history = model.fit(
            x,
            y,
            epochs=2,
            verbose=0,
            validation_data=(x, y),
            callbacks=[worst, training],
        ).history
        lost, clean = history["val_worst_case_accuracy"], history["val_accuracy"]
        assert np.all(np.array(lost) < np.array(clean) + 1e-6)
        assert sum(lost) < sum(clean)
        assert "adversarial_loss_gain" in history or gradient == "reuse"


def test_arguments_are_checked_before_training(case):
    model, x, y = case
    for arguments, message in (
        ({"strength": 0.0}, "strength=0.0"),
        ({"steps": 0}, "steps=0"),
        ({"seed": "a"}, "seed='a'"),
        ({"restarts": 0}, "restarts=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"metric": "accuracy"}, "metric='accuracy'"),
        ({"y": y[:5]}, r"lengths \[5, 40\]"),
        ({"y": None}, "no labels"),
        ({"x": (x for _ in range(2)), "y": None}, "a generator"),
        ({"x": (x, y), "y": None}, "no labels"),
    ):
        with pytest.raises(ValueError, match=message):
            ksa.WorstCaseAccuracy(**{"x": x, "y": y, "strength": 1.0, **arguments})
    with pytest.raises(TypeError, match="perturbation=3"):
        ksa.WorstCaseAccuracy(x, y, 3, strength=1.0)


def test_two_of_them_and_a_second_fit_compile_once(case, monkeypatch):
    model, x, y = case
    traced = []
    plain = Attack._stepped
    monkeypatch.setattr(
        Attack, "_stepped", lambda *args: traced.append(1) or plain(*args)
    )
    both = [
        ksa.WorstCaseAccuracy(x, y, strength=s, steps=1, name=f"val_{s}px")
        for s in (0.5, 2.0)
    ]
    pickle.dumps(both)
    for _ in range(2):
        history = model.fit(x, y, epochs=2, verbose=0, callbacks=both).history
        assert history["val_2.0px"][-1] <= history["val_0.5px"][-1]
    if keras.backend.backend() != "torch":  # which compiles nothing
        assert len(traced) == 2


def test_data_without_labels_are_refused(case):
    model, x, y = case
    worst = ksa.WorstCaseAccuracy(Unlabeled(x), strength=1.0, steps=1)
    with pytest.raises(ValueError, match="without labels"):
        model.fit(x, y, verbose=0, callbacks=[worst])


class Unlabeled(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 1

    def __getitem__(self, place):
        return (self.x,)


def test_lists_of_labels_and_batches_that_are_all_wrong(case):
    model, x, y = case
    model.optimizer.learning_rate = 0.0
    y[:8] = 1 - y[:8]  # the first batch needs no attack
    y = y.tolist()
    worst = ksa.WorstCaseAccuracy(x, y, strength=2.0, steps=1, batch_size=8)
    history = model.fit(x, np.array(y), verbose=0, callbacks=[worst]).history
    report = ksa.evaluate_robustness(
        model, x, y, strengths=(2.0,), steps=1, random=1, seed=0, verbose=0
    )
    assert history["val_worst_case_accuracy"] == [report.adversarial[0]]
    assert 0 < report.adversarial[0] and not report.clean[:8].any()
