"""What reused gradients add to a step on two devices, where they share what they keep.

    python -m benchmarks.several_devices [--rounds N] [--small]

Two logical devices on the CPU, `MirroredStrategy`, the network and the batch of
`step_overhead`, without XLA. Each row is the median over the rounds of the ratio to the
plain step on as many devices in the same round. The devices are cores of one processor:
the table shows the work of sharing, not the time on a network. The size of the batch is
not known when the step is traced, as in `fit` with arrays; `step_overhead` fixes it.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

import keras_structadv as ksa
from benchmarks.step_overhead import BATCH, small_resnet
from benchmarks.timing import in_own_process, interleave, machine, ratios
from benchmarks.training_step import Batch, fit_step, prepare

VARIANTS = ("plain", "flow, fresh", "flow, reused")


def step(
    variant: str,
    batch: Batch,
    strategy: tf.distribute.Strategy | None,
    store: ksa.GradientStore,
) -> Callable[[], dict]:
    """The step of a variant in its second epoch, which waits until it is done."""
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = prepare(small_resnet(), batch, jit_compile=False)
    callback = keras.callbacks.Callback()
    if variant != "plain":
        gradient = store if "reused" in variant else "fresh"
        flow = ksa.AdversarialFlow(rate=1.0)
        callback = ksa.AdversarialTraining(flow, gradient=gradient)
    train = fit_step(model, callback)
    batches = data(batch, strategy)
    for _ in range(2):  # compiles, and stores the gradients to reuse
        train(batches)
    callback.on_epoch_begin(1)
    return lambda: train(batches)


def data(batch: Batch, strategy: tf.distribute.Strategy | None) -> Iterator:
    """The batch without an end, one part of it for each device.

    Its size is not known when the step is traced, as in `fit` with arrays.
    """
    whole = tf.data.Dataset.from_tensor_slices(batch).batch(len(batch[0])).repeat()
    if strategy is None:
        return iter(whole)
    return iter(strategy.experimental_distribute_dataset(whole))


def measure(rounds: int, size: int) -> tuple[dict, int]:
    """Times all steps; needs a process in which TensorFlow has not begun.

    Args:
        rounds: rounds that count.
        size: images in a batch.

    Returns:
        The seconds of each step in each round by (variant, number of devices), and the
        bytes that the table keeps of an image.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    strategies = {1: None, 2: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}
    (images, labels), _ = ksa.datasets.load_photographs(32, crops=-(-size // 10))
    order = np.random.default_rng(0).permutation(len(images))[:size]
    batch = images[order].astype("float32"), labels[order]
    stores = {devices: ksa.GradientStore() for devices in strategies}
    steps = {
        (name, devices): step(name, batch, strategy, stores[devices])
        for name in VARIANTS
        for devices, strategy in strategies.items()
    }
    seconds = interleave(steps, rounds)
    store = stores[2]
    return seconds, store.bytes_for(store.length) // (store.capacity + 1)


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, and the bytes that the devices exchange."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="4 images, one round")
    options = parser.parse_args(arguments)
    rounds, size = (1, 4) if options.small else (options.rounds, BATCH)
    seconds, place = in_own_process(measure, rounds, size)
    print(f"\n{machine()}; batch {size}, 32x32x3")
    print(f"Ratio within a round: median of {rounds} rounds (quartile range)")
    print("\n| step | one device | two devices |\n|---|---|---|")
    one, two = (ratios(seconds, ("plain", devices)) for devices in (1, 2))
    for name in VARIANTS:
        cells = ["{:.2f} ({:.2f})".format(*x[name, i]) for i, x in ((1, one), (2, two))]
        print(f"| {name} | {cells[0]} | {cells[1]} |")
    weights = small_resnet().count_params()
    print(
        f"\nIn each step a device hands on {place * size // 2:,} bytes of keys and "
        f"codes, and the gradients of {weights:,} weights, {4 * weights:,} bytes."
    )


if __name__ == "__main__":
    main()
