"""Trains under a distribution strategy, in the process that `test_distribution` starts.

    python distribution_worker.py mirrored <file>    two devices in one process
    python distribution_worker.py workers <file>     one of the workers of TF_CONFIG
    python distribution_worker.py parallel <file>    four devices in one process, on JAX
    python distribution_worker.py process <file> <address> <number>  one of two, JAX

The results, or the traceback, of each case are pickled into the file.
"""

import contextlib
import pickle
import sys
import tempfile
import traceback

import keras
import numpy as np
import tensorflow as tf

import keras_structadv as ksa
from tests.models import small_model

BATCH = 4
EPOCHS = 2


def data(count=8):
    y, x = np.mgrid[:8, :8] / 8
    waves = [np.sin(3 * y + k) * np.cos((2 + k) * x / 2 - k) for k in range(count)]
    images = (0.5 + 0.5 * np.stack(waves)[..., None]).astype("float32")
    return images, np.arange(count) % 3


def flow(rate=1.0):
    return ksa.AdversarialFlow(rate=rate, max_displacement=(2.0, 2.0), seed=1)


def recoloring():
    # The range is wide, so that nothing is clipped.
    return ksa.AdversarialRecoloring(
        rate=1.0, magnitude=(0.05, 0.05), max_iterations=5, value_range=(-1, 3), seed=1
    )


def sgd():
    return keras.optimizers.SGD(0.05, momentum=0.9)


def scaled():
    return keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=256.0)


def build(*inside, kind=keras.Sequential, optimizer=sgd, **arguments):
    """Returns a model without BatchNormalization, which sees but its own replica."""
    keras.utils.set_random_seed(0)
    conv, norm, *rest = small_model(compiled=False).layers
    model = kind([keras.Input((8, 8, 1)), *inside, conv, *rest])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = optimizer()
    if keras.backend.backend() == "tensorflow":
        arguments = {"jit_compile": False, **arguments}
    model.compile(optimizer, loss, metrics=["accuracy"], **arguments)
    return model


class Subclassed(keras.Model):
    """Does not tell the size of its images."""

    def __init__(self, layers):
        super().__init__()
        self.parts = [x for x in layers if isinstance(x, keras.Layer)]

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def trained(model, callbacks, count=8, **kwargs):
    kwargs = {"batch_size": BATCH, "shuffle": False, "epochs": EPOCHS, **kwargs}
    history = model.fit(*data(count), verbose=0, callbacks=callbacks, **kwargs).history
    return model.get_weights(), history


# Two devices in one process. Each case is run without and with the strategy.


def plain(strategy, scope):
    with scope():
        model = build()
    return trained(model, [])


def outside(layers):
    def case(strategy, scope):
        with scope():
            model = build()
        return trained(model, [ksa.AdversarialTraining(layers())])

    return case


def inside(layer):
    def case(strategy, scope):
        with scope():
            model = build(layer())
        return trained(model, [ksa.AdversarialTraining()])

    return case


def orders(count, epochs):
    """Returns the images in another order in each epoch, in batches."""
    random = np.random.default_rng(0)
    order = np.concatenate([random.permutation(count) for _ in range(epochs)])
    rows = tuple(array[order] for array in data(count))
    return tf.data.Dataset.from_tensor_slices(rows).batch(BATCH)


def shuffled(adversary, **arguments):
    """Trains on shuffled images: layers inside and a callback, as `adversary` returns.

    A device meets images that another one had in the epoch before.
    """

    def case(strategy, scope):
        with scope():
            inside, callback = adversary()
            model = build(*inside, **arguments)
        epochs = {"epochs": 4, "steps_per_epoch": 2, "verbose": 0}
        history = model.fit(orders(8, 4), callbacks=[callback], **epochs).history
        store = callback.gradient
        tables = [copies(x) for x in getattr(store, "variables", ())]
        return model.get_weights(), history, tables

    return case


def reused(layers, **arguments):
    def adversary():
        store = ksa.GradientStore(capacity=64)
        return [], ksa.AdversarialTraining(layers(), gradient=store)

    return shuffled(adversary, **arguments)


def resumed(strategy, scope):
    """Trains two epochs, and one more from the backup of the store."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for epochs in (2, 1):
            with scope():
                model = build()
            store = ksa.GradientStore(64, backup_dir=folder, delete_checkpoint=False)
            callback = ksa.AdversarialTraining(flow(), gradient=store)
            _, history = trained(model, [callback], epochs=epochs)
            found += history["gradient_hit_rate"]
        return found, [len(copies(x)) for x in store.variables]


def copies(variable):
    """Returns what each device of this process holds of a variable."""
    value = variable.value
    if keras.backend.backend() == "jax":
        return [np.asarray(shard.data) for shard in value.addressable_shards]
    return [np.asarray(x) for x in getattr(value, "values", [value])]


def a_replica_without_images(strategy, scope):
    with scope():
        model = build()
    return trained(model, [ksa.AdversarialTraining(flow())], count=5)


def each_replica(layer):
    def case(strategy, scope):
        with scope():
            model = build()
        bound = layer().bind(model)
        images, labels = data()
        if strategy is None:
            return [np.asarray(bound(images, labels)[0])]
        batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
        batch = next(iter(strategy.experimental_distribute_dataset(batches)))
        run = tf.function(lambda x, y: strategy.run(bound, args=(x, y)))
        return [
            np.asarray(x) for x in strategy.experimental_local_results(run(*batch)[0])
        ]

    return case


def pipeline(bind_inside):
    def case(strategy, scope):
        with scope():
            model = build()
            if bind_inside:
                layer = flow().bind(model, snapshot=True)
        if not bind_inside:
            layer = flow().bind(model, snapshot=True)
        batches = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH).map(layer)
        seen = [np.concatenate([np.asarray(x) for x, _ in batches])]
        refresh = ksa.RefreshSnapshot(layer, every="epoch")
        model.fit(batches, epochs=3, verbose=0, callbacks=[refresh])
        seen += [np.concatenate([np.asarray(x) for x, _ in batches])]
        refresh.on_epoch_begin(3)
        seen += [np.concatenate([np.asarray(x) for x, _ in batches])]
        copies = getattr(layer.binding.snapshot._bytes, "values", ())
        return model.get_weights(), seen, len(copies)

    return case


def both():
    return [
        recoloring(),
        ksa.AdversarialFlow(rate=1.0, max_displacement=(2, 2), seed=5),
    ]


MIRRORED = {
    "plain": plain,
    "reused": reused(both),
    "reused, size unknown": reused(flow, kind=Subclassed),
    "reused, resumed": resumed,
    "reused, compiled": reused(flow, jit_compile=True),
    "reused, loss scale": reused(flow, optimizer=scaled),
    "flow": outside(flow),
    "recoloring": outside(recoloring),
    "flow inside": inside(flow),
    "half of the images": outside(lambda: flow(rate=0.5)),
    "a replica without images": a_replica_without_images,
    "each replica": each_replica(flow),
    "pipeline, bound inside": pipeline(True),
    "pipeline, bound outside": pipeline(False),
}


ALONE = (
    *("half of the images", "pipeline, bound inside"),
    *("reused, compiled", "reused, resumed"),
)


def mirrored():
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], two
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for name, case in MIRRORED.items():
        if name not in ALONE:
            yield f"{name}, one", lambda case=case: case(None, contextlib.nullcontext)
        yield f"{name}, two", lambda case=case: case(strategy, strategy.scope)


# One worker of several.


def loop(strategy, make_step, *inside, batches=None):
    """Trains by a loop of one's own, `step = make_step(model)` for each replica."""
    if batches is None:
        batches = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH).repeat(EPOCHS)
    with strategy.scope():
        model = build(*(layer() for layer in inside))
        model.optimizer.build(model.trainable_variables)
        step = make_step(model)

    @tf.function
    def run(x, y):
        strategy.run(step, args=((x, y),))

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    batches = batches.with_options(options)
    for x, y in strategy.experimental_distribute_dataset(batches):
        run(x, y)
    return model.get_weights()


def plain_step(model):
    return model.train_step


def augmenting_step(layer):
    def make_step(model):
        bound = layer().bind(model)
        return lambda batch: model.train_step(bound(*batch))

    return make_step


def step_of(callback):
    def make_step(model):
        callback.set_model(model)
        callback.set_params({})
        callback.on_train_begin()
        callback.on_epoch_begin(0)
        step = model.train_function.step
        return lambda batch: step(model.train_step, batch)

    return make_step


def fit(strategy, *callbacks):
    with strategy.scope():
        model = build()
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH)
    model.fit(batches, epochs=EPOCHS, verbose=0, callbacks=list(callbacks))
    return model.get_weights()


def workers():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    yield "replicas", lambda: strategy.num_replicas_in_sync
    steps = {
        "plain": (plain_step,),
        "flow": (augmenting_step(flow),),
        "callback": (step_of(ksa.AdversarialTraining()), flow),
    }
    for name, (make_step, *inside) in steps.items():
        yield name, lambda a=make_step, b=inside: loop(strategy, a, *b)
    step = step_of(ksa.AdversarialTraining(both(), gradient="reuse"))
    yield "reused", lambda: loop(strategy, step, batches=orders(8, 4))
    # Last, because an error in a step may leave the workers at odds.
    yield "fit", lambda: fit(strategy)
    yield "fit with callback", lambda: fit(strategy, ksa.AdversarialTraining(flow()))


# On JAX: each step sees the whole batch, and the compiler spreads it.


PARALLEL = {
    "reused": reused(both),
    "flow": shuffled(lambda: ([], ksa.AdversarialTraining(flow()))),
    "flow inside": shuffled(lambda: ([flow()], ksa.AdversarialTraining())),
}


def model_parallel():
    """Splits the filters among two devices, and the batch among two pairs of these."""
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*conv2d.*kernel"] = (None, None, None, "model")
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


def distributed(case, distribution):
    with distribution.scope():
        return case(None, contextlib.nullcontext)


def parallel():
    halves = keras.distribution.list_devices()[:2]
    halves = keras.distribution.DataParallel(devices=halves)
    split = model_parallel()
    for name, case in PARALLEL.items():
        yield f"{name}, one", lambda x=case: x(None, contextlib.nullcontext)
        yield f"{name}, two", lambda x=case: distributed(x, halves)
        yield f"{name}, split", lambda x=case: distributed(x, split)


def process(address, number):
    keras.distribution.initialize(address, 2, int(number))
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    yield "devices", lambda: len(keras.distribution.list_devices())
    for name, case in PARALLEL.items():
        yield name, lambda x=case: x(None, contextlib.nullcontext)


KINDS = {"mirrored": mirrored, "workers": workers, "parallel": parallel}


def main(kind, path, *arguments):
    results = {}
    for name, case in {**KINDS, "process": process}[kind](*arguments):
        try:
            results[name] = case()
        except Exception:
            results[name] = traceback.format_exc()
        with open(path, "wb") as file:
            pickle.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
