"""Training on several devices, by several workers, with optimizers that do more."""

import json
import os
import pathlib
import pickle
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_structadv as ksa
from tests.models import bind_as_fit_does, small_model

pytest.importorskip("tensorflow")

WORKER = pathlib.Path(__file__).with_name("distribution_worker.py")


def start(kind, path, *arguments, **environment):
    root = str(WORKER.parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        # On some CPUs the oneDNN convolutions of TensorFlow 2.21 fail on no images.
        "TF_ENABLE_ONEDNN_OPTS": "0",
        **environment,
    }
    command = [sys.executable, str(WORKER), kind, str(path), *arguments]
    with open(f"{path}.log", "w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(processes, paths):
    try:
        for process in processes:
            process.wait(timeout=900)
    finally:
        for process in processes:
            process.kill()
    logs = [pathlib.Path(f"{path}.log").read_text()[-3000:] for path in paths]
    if "Multiprocess computations aren't implemented on the CPU" in "".join(logs):
        pytest.skip("This JAX has no several processes on CPUs.")
    assert all(process.returncode == 0 for process in processes), logs
    return [pickle.loads(path.read_bytes()) for path in paths]


def result(results, name):
    """Returns the result of a case, unless it is a traceback."""
    assert not isinstance(results[name], str), results[name]
    return results[name]


def assert_close(a, b, atol=1e-5):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_allclose(x, y, atol=atol)


def distance(a, b):
    return max(np.abs(x - y).max() for x, y in zip(a, b))


# Two devices in one process.


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    path = tmp_path_factory.mktemp("mirrored") / "results"
    return finish([start("mirrored", path)], [path])[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "flow", "recoloring", "flow inside"])
def test_two_devices_train_as_one(mirrored, case):
    (one, expected), (two, history) = (
        result(mirrored, f"{case}, {count}") for count in ("one", "two")
    )
    assert_close(one, two)
    assert set(history) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4)
    if case != "plain":
        assert distance(two, result(mirrored, "plain, two")[0]) > 1e-3
        assert np.all(np.array(history["adversarial_loss_gain"]) > 0)


@pytest.mark.slow
def test_the_means_are_over_the_images_of_all_devices(mirrored):
    for case, names in {
        "flow": {"mean_displacement": 2},
        "recoloring": {"mean_magnitude": 0.05},
        "flow inside": {"mean_displacement": 2},
        "half of the images": {"mean_displacement": 2},
    }.items():
        history = result(mirrored, f"{case}, two")[1]
        for name, size in names.items():
            np.testing.assert_allclose(history[name], [size, size], rtol=1e-4)


@pytest.mark.slow
def test_half_of_the_images_of_each_device(mirrored):
    weights, history = result(mirrored, "half of the images, two")
    assert all(gain > 0 for gain in history["adversarial_loss_gain"])
    assert distance(weights, result(mirrored, "flow, two")[0]) > 1e-4
    assert distance(weights, result(mirrored, "plain, two")[0]) > 1e-4


@pytest.mark.slow
def test_a_last_batch_without_images_for_one_device(mirrored):
    (one, expected), (two, history) = (
        result(mirrored, f"a replica without images, {count}")
        for count in ("one", "two")
    )
    assert all(np.isfinite(w).all() for w in two)
    for name in ("mean_displacement", "adversarial_loss_gain"):
        assert np.isfinite(history[name]).all()
    # The first step is the same; the second one weighs its image by half.
    assert 1e-4 < distance(one, two) < 0.1
    np.testing.assert_allclose(history["mean_displacement"], 2, rtol=1e-4)


@pytest.mark.slow
def test_the_means_of_devices_with_unequal_numbers_of_images(mirrored):
    (_, expected), (_, history) = (
        result(mirrored, f"a replica without images, {count}")
        for count in ("one", "two")
    )
    # In the first epoch both steps start from the same weights on both sides.
    for name in ("accuracy", "adversarial_loss_gain"):
        np.testing.assert_allclose(history[name][0], expected[name][0], rtol=1e-3)


@pytest.mark.slow
def test_each_device_changes_its_images_as_one_device_does(mirrored):
    (whole,) = result(mirrored, "each replica, one")
    parts = result(mirrored, "each replica, two")
    assert [len(part) for part in parts] == [4, 4]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_pipeline_follows_a_mirrored_model(mirrored, where):
    (one, expected, _), (two, seen, _) = (
        result(mirrored, f"pipeline, bound {case}")
        for case in ("outside, one", f"{where}, two")
    )
    assert_close(one, two)
    assert_close(expected, seen)
    before, during, after = seen
    assert np.abs(during - before).max() > 1e-3  # refreshed at the begin of an epoch
    assert np.abs(after - during).max() > 1e-3  # and once more by hand


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        "inside",
        "outside",
    ],
)
def test_a_snapshot_is_one_copy(mirrored, where):
    assert result(mirrored, f"pipeline, bound {where}, two")[2] == 0


def assert_trained_as_one(alone, together, devices):
    """Holds that several devices find what any of them kept, and train as one does."""
    (one, expected, (table, *_)), (two, history, tables) = alone, together
    assert_close(one, two)
    assert history["gradient_hit_rate"] == [0, 1, 1, 1]
    assert set(history) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-3)
    for copies in tables:
        assert len(copies) == devices
        assert all(np.array_equal(copy, copies[0]) for copy in copies)
    keys = tables[0][0]
    np.testing.assert_array_equal(keys, table[0])
    assert (keys[:, 0] >= 0).sum() == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["reused", "reused, size unknown", "reused, loss scale"]
)
def test_a_replica_finds_the_gradients_of_the_others(mirrored, case):
    one, two = (result(mirrored, f"{case}, {count}") for count in ("one", "two"))
    assert_trained_as_one(one, two, devices=2)
    assert distance(two[0], result(mirrored, "plain, two")[0]) > 1e-3


@pytest.mark.slow
def test_replicas_find_the_gradients_of_a_backup(mirrored):
    assert result(mirrored, "reused, resumed, two") == ([0, 1, 1], [2, 2])


@pytest.mark.slow
def test_reuse_by_replicas_that_xla_compiles_is_refused(mirrored):
    assert (
        "Compile the model with jit_compile=False" in mirrored["reused, compiled, two"]
    )


@pytest.mark.parametrize("name", ["OneDeviceStrategy", "CentralStorageStrategy"])
def test_reuse_under_other_strategies(name, images, labels):
    import tensorflow as tf

    callback = ksa.AdversarialTraining(flow(), gradient="reuse")
    if name == "OneDeviceStrategy":
        with tf.distribute.OneDeviceStrategy("CPU:0").scope():
            model = build()
        history = model.fit(images, labels, callbacks=[callback], **FIT).history
        assert history["gradient_hit_rate"] == [0, 1]
        return
    with tf.distribute.experimental.CentralStorageStrategy().scope():
        model = build()
    with pytest.raises(NotImplementedError, match=f"{name}.*Use MirroredStrategy"):
        model.fit(images, labels, callbacks=[callback], **FIT)


# Two workers, each a process.


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Returns the results of each of two workers."""
    folder = tmp_path_factory.mktemp("workers")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    paths = [folder / name for name in ("first", "second")]
    processes = []
    for index, path in enumerate(paths):
        task = {"type": "worker", "index": index}
        config = {"cluster": {"worker": addresses}, "task": task}
        processes.append(start("workers", path, TF_CONFIG=json.dumps(config)))
    return finish(processes, paths)


@pytest.mark.rare
@pytest.mark.parametrize(
    "case,alone", [("plain", "plain"), ("flow", "flow"), ("callback", "flow")]
)
def test_two_workers_train_as_one(mirrored, workers, case, alone):
    first, second = (result(results, case) for results in workers)
    assert [result(results, "replicas") for results in workers] == [2, 2]
    assert_close(first, second, atol=0)
    assert_close(first, result(mirrored, f"{alone}, one")[0])
    if case != "plain":
        assert distance(first, result(workers[0], "plain")) > 1e-3


@pytest.mark.rare
def test_a_worker_finds_the_gradients_of_the_other(mirrored, workers):
    first, second = (result(results, "reused") for results in workers)
    assert_close(first, second, atol=0)
    assert_close(first, result(mirrored, "reused, one")[0])


@pytest.mark.rare
@pytest.mark.xfail(
    reason="Keras 3 cannot fit a plain model under MultiWorkerMirroredStrategy "
    "(github.com/tensorflow/tensorflow/issues/72388); try the callback when it can",
)
@pytest.mark.parametrize(
    "case,alone", [("fit", "plain"), ("fit with callback", "flow")]
)
def test_two_workers_fit_as_one(mirrored, workers, case, alone):
    first, second = (result(results, case) for results in workers)
    assert_close(first, second, atol=0)
    assert_close(first, result(mirrored, f"{alone}, one")[0])


# Several devices in one process, and two processes, on JAX.


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    path = tmp_path_factory.mktemp("parallel") / "results"
    flags = "--xla_force_host_platform_device_count=4"
    started = start("parallel", path, KERAS_BACKEND="jax", XLA_FLAGS=flags)
    return finish([started], [path])[0]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (port,) = free_ports(1)
    paths = [folder / name for name in ("first", "second")]
    started = [
        start("process", path, f"127.0.0.1:{port}", str(number), KERAS_BACKEND="jax")
        for number, path in enumerate(paths)
    ]
    return finish(started, paths)


@pytest.mark.slow
@pytest.mark.parametrize("split,devices", [("two", 2), ("split", 4)])
def test_a_device_of_jax_finds_the_gradients_of_the_others(parallel, split, devices):
    one, all_ = (result(parallel, f"reused, {x}") for x in ("one", split))
    assert_trained_as_one(one, all_, devices)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["two", "split"])
@pytest.mark.parametrize("case", ["flow", "flow inside"])
def test_several_devices_of_jax_train_as_one(parallel, case, split):
    (one, expected, _), (all_, history, _) = (
        result(parallel, f"{case}, {x}") for x in ("one", split)
    )
    assert_close(one, all_)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-3)
    assert min(history["adversarial_loss_gain"]) > 0


@pytest.mark.rare
def test_a_process_of_jax_finds_the_gradients_of_the_other(parallel, processes):
    assert [result(results, "devices") for results in processes] == [2, 2]
    one = result(parallel, "reused, one")
    first, second = (result(results, "reused") for results in processes)
    assert_trained_as_one(one, first, devices=1)
    assert_trained_as_one(one, second, devices=1)
    assert_close(first[0], second[0], atol=0)


@pytest.mark.rare
@pytest.mark.parametrize("case", ["flow", "flow inside"])
def test_two_processes_of_jax_train_as_one(parallel, processes, case):
    one = result(parallel, f"{case}, one")[0]
    first, second = (result(results, case)[0] for results in processes)
    assert_close(first, second, atol=0)
    assert_close(first, one)


# Several steps in one call, and optimizers that do more than a step.


def flow(strength=2.0, **kwargs):
    strengths = (strength, strength)
    return ksa.AdversarialFlow(
        **{"rate": 1.0, "max_displacement": strengths, "seed": 1, **kwargs}
    )


def recoloring():
    return ksa.AdversarialRecoloring(
        rate=1.0, magnitude=(0.1, 0.1), max_iterations=5, value_range=(0, 1), seed=2
    )


OPTIMIZERS = {
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.05), dynamic_growth_steps=4
    ),
    "average": lambda: keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.7),
}
FIT = {"batch_size": 2, "epochs": 2, "shuffle": False, "verbose": 0}


def build(*inside, optimizer=None, **kwargs):
    keras.utils.set_random_seed(0)
    model = small_model(compiled=False)
    if inside:
        model = keras.Sequential([keras.Input((8, 8, 1)), *inside, *model.layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = optimizer or keras.optimizers.SGD(0.05)
    model.compile(optimizer, loss, **{"jit_compile": False, **kwargs})
    return model


def state(model):
    variables = [ops.convert_to_numpy(v) for v in model.optimizer.variables]
    return [*model.get_weights(), *variables]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_does_more(name, images, labels):
    def fitted(*callbacks):
        model = build(optimizer=OPTIMIZERS[name]())
        model.fit(images, labels, callbacks=list(callbacks), **FIT)
        return model

    plain = fitted()
    without = fitted(ksa.AdversarialTraining(flow(0.0)))
    assert_close(state(without), state(plain), atol=1e-6)
    model = fitted(ksa.AdversarialTraining(flow()))
    by_hand = build(optimizer=OPTIMIZERS[name]())
    layer = bind_as_fit_does(flow(), by_hand)
    for start in (0, 2, 4, 0, 2, 4):
        moved, true = layer(images[start : start + 2], labels[start : start + 2])
        by_hand.train_on_batch(ops.convert_to_numpy(moved), true)
    by_hand.optimizer.finalize_variable_values(by_hand.trainable_variables)
    assert_close(state(model), state(by_hand))
    assert distance(model.get_weights(), plain.get_weights()) > 1e-3


LAYERS = {
    "flow inside": lambda: ([flow()], None),
    "both inside": lambda: ([flow(), recoloring()], None),
    "both outside": lambda: ([], [flow(), recoloring()]),
}


@pytest.mark.parametrize("case", LAYERS)
def test_several_steps_in_one_call(case, images, labels):
    def fitted(steps_per_execution, augmented=True):
        inside, outside = LAYERS[case]() if augmented else ([], [])
        model = build(*inside, steps_per_execution=steps_per_execution)
        callbacks = [ksa.AdversarialTraining(outside)] if augmented else []
        history = model.fit(images, labels, callbacks=callbacks, **FIT).history
        return model, history

    (one, expected), (three, history) = fitted(1), fitted(3)
    assert_close(state(one), state(three))
    assert set(history) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-3)
    plain, _ = fitted(3, augmented=False)
    assert distance(three.get_weights(), plain.get_weights()) > 1e-3
