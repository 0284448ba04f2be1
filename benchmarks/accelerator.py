"""Checks and times on whatever accelerator and backend Keras finds.

First that the solve, the warp and the recolouring are right on this device. Then each
of them at several sizes: milliseconds, and which part of the floor is reached. That is
the time that the bytes which have to be moved need at the bandwidth of a copy, or the
operations at the rate of a large matrix product, whichever is longer; both are measured
here. Then whole training steps. What is compared runs in turn, in one process.

    KERAS_BACKEND=jax python -m benchmarks.accelerator [--sizes 32 ... 1024]
        [--pixels N] [--models wide-resnet efficientnet resnet] [--rounds N]
        [--precision float32 mixed_bfloat16] [--small]

`--small` is a run of a minute or two on a CPU, to check the script itself. Each step of
each model is a program to compile, which takes long: where time is short, take one
model and one precision a run. Products of the models themselves are as the backend
makes them, on a GPU mostly in TF32; those of the fields are not shortened.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import scipy.fft
from keras import backend, ops

import keras_structadv as ksa
from benchmarks.timing import interleave, machine
from experiments.models import small_cnn, wide_resnet
from keras_structadv.backends import framework
from keras_structadv.dct import laplacian_eigenvalues
from keras_structadv.operators import EdgePreserving, ScreenedPoisson
from keras_structadv.solvers import solve_dct, solve_edge_preserving
from keras_structadv.solvers.screened_poisson import _dense_inverse

SMOOTHNESS = 100.0
MODELS = {
    # name: size of the images, batch, model
    "wide-resnet": (32, 128, lambda: wide_resnet((32, 32, 3), 10, depth=28, width=10)),
    "efficientnet": (224, 64, lambda: application("EfficientNetB0")),
    "resnet": (224, 64, lambda: application("ResNet50")),
    "small": (16, 32, lambda: small_cnn((16, 16, 3), 10)),
}


def application(name: str) -> keras.Model:
    """Returns a model of `keras.applications` without weights, for raw pixels."""
    build = getattr(keras.applications, name)
    shape = (224, 224, 3)
    return build(
        weights=None, input_shape=shape, classes=10, classifier_activation=None
    )


# The device.


def compiled(function: Callable, *inputs: object) -> Callable[[], object]:
    """Returns a call of the compiled function, which does not wait for the device."""
    inputs = [ops.convert_to_tensor(x) for x in inputs]
    name = backend.backend()
    if name == "jax":
        import jax

        function = jax.jit(function)
    elif name == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, jit_compile=True)
    else:
        import torch

        function = torch.no_grad()(function)
    return lambda: function(*inputs)


def per_call(calls: dict, rounds: int) -> dict[str, np.ndarray]:
    """Returns the seconds of one call in each round, many calls to a wait.

    So it is the device that is timed, not the way to it.
    """
    times, repeated = {}, {}
    for name, call in calls.items():
        wait(call())
        start = time.perf_counter()
        wait(call())
        once = time.perf_counter() - start
        times[name] = int(np.clip(0.02 / once, 1, 200))

        def many(call: Callable = call, count: int = times[name]) -> None:
            for _ in range(count):
                result = call()
            wait(result)

        repeated[name] = many
    seconds = interleave(repeated, rounds)
    return {name: values / times[name] for name, values in seconds.items()}


def wait(result: object) -> None:
    """Waits until the device has made a result."""
    if backend.backend() == "jax":
        import jax

        jax.block_until_ready(result)
    elif backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
    elif backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.test.experimental.sync_devices()


def device() -> str:
    """Returns the name of the accelerator."""
    name = backend.backend()
    if name == "jax":
        import jax

        return jax.devices()[0].device_kind
    if name == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    if not found:
        return "cpu"
    return tf.config.experimental.get_device_details(found[0])["device_name"]


def rates(rounds: int, small: bool) -> tuple[float, float]:
    """Returns the bytes a second of a copy, and the operations of a product."""
    numbers = 2**22 if small else 2**28
    size = 1024 if small else 8192
    rng = np.random.default_rng(0)
    array = np.zeros(numbers, "float32")
    matrix = rng.normal(size=(size, size)).astype("float32")
    calls = {
        "copy": compiled(lambda x: x + 1.0, array),
        "product": compiled(ops.matmul, matrix, matrix),
    }
    with framework().full_precision():
        seconds = {k: np.median(v) for k, v in per_call(calls, rounds).items()}
    return 8 * numbers / seconds["copy"], 2 * size**3 / seconds["product"]


# Right or wrong.


def check() -> None:
    """Prints the errors on this device, against float64 on the CPU; raises if large."""
    rng = np.random.default_rng(0)
    rhs = rng.normal(size=(4, 224, 224)).astype("float32")
    shifted = 1 + SMOOTHNESS * laplacian_eigenvalues(224, 224).astype("float64")
    spectrum = scipy.fft.dctn(rhs.astype("float64"), axes=(1, 2), norm="ortho")
    expected = scipy.fft.idctn(spectrum / shifted, axes=(1, 2), norm="ortho")
    operator = ScreenedPoisson(224, 224, SMOOTHNESS)
    found = ops.convert_to_numpy(compiled(lambda r: solve_dct(operator, r), rhs)())
    errors = {"solve, relative": np.abs(found - expected).max() / expected.max()}

    images = rng.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    flow = np.tile(np.array([2.0, -3.0], "float32"), (2, 64, 64, 1))
    found = ops.convert_to_numpy(compiled(ksa.dense_image_warp, images, flow)())
    moved = images[:, :-2, 3:]  # what was at (y - 2, x + 3)
    errors["warp, of 255"] = np.abs(found[:, 2:, :-3] - moved).max()

    pictures = np.linspace(0, 0.3, 64)[:, None, None] * rng.uniform(size=(4, 1, 64, 3))
    pictures = np.cumsum(pictures, axis=2) / 64
    for number in range(4):  # with edges
        row, column = rng.integers(0, 40, 2)
        pictures[number, row : row + 20, column : column + 20] = rng.uniform(size=3)
    pictures = pictures.astype("float32")
    gradients = rng.normal(size=pictures.shape).astype("float32")

    def residual(x: object, g: object) -> object:
        operator = EdgePreserving(x)
        solution, _ = solve_edge_preserving(operator, g, rtol=1e-4, max_iterations=300)
        back = operator.matvec(ops.transpose(solution, (1, 2, 3, 0)))
        back = ops.transpose(back, (3, 0, 1, 2))
        return ops.sqrt(ops.sum((back - g) ** 2) / ops.sum(g**2))

    found = compiled(residual, pictures, gradients)()
    errors["recolouring, relative residual"] = float(ops.convert_to_numpy(found))
    print("\n| check | error |\n|---|---|")
    for name, error in errors.items():
        print(f"| {name} | {error:.1e} |")
    assert max(errors.values()) < 5e-3, errors


# Fields.


def field_calls(size: int, batch: int) -> tuple[dict, dict]:
    """Returns the calls to time, and the bytes and operations that each needs."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (batch, size, size, 3)).astype("float32")
    rhs = rng.normal(size=(2 * batch, size, size)).astype("float32")
    flow = rng.normal(size=(batch, size, size, 2)).astype("float32")
    gradients = rng.normal(size=images.shape).astype("float32")
    operator = ScreenedPoisson(size, size, SMOOTHNESS)
    numbers = 4 * batch * size**2  # the bytes of one plane of every image
    half = -(-size // 2)

    def iterations() -> int:
        def solve(x: object, g: object) -> object:
            return ops.max(solve_edge_preserving(EdgePreserving(x), g)[1].iterations)

        return int(ops.convert_to_numpy(compiled(solve, images, gradients)()))

    def recolor(x: object, g: object) -> object:
        return ksa.adversarial_recoloring(x, g, value_range=(0, 1))

    def flow_and_warp(x: object, g: object) -> object:
        flow = ksa.adversarial_flow(x, g, smoothness=SMOOTHNESS)
        return ksa.dense_image_warp(x, flow)

    products = 2 * 2 * batch * 4 * size**3  # of two planes, by four matrices
    coarse = 2 * 2 * batch * 3 * (size**2 * half + size * half**2)
    rounds = iterations()
    calls = {
        "solve": compiled(lambda r: solve_dct(operator, r), rhs),
        "warp": compiled(ksa.dense_image_warp, images, flow),
        "flow and warp": compiled(flow_and_warp, images, gradients),
        f"recolouring ({rounds} iterations)": compiled(recolor, images, gradients),
    }
    needs = {
        "solve": (4 * numbers, products),
        "warp": (8 * numbers, 0),
        # Images and gradients in, images out; what lies between need not be stored.
        "flow and warp": (9 * numbers, products),
        # Of each iteration: x, r, p in and out, z and A p in and out, the operator in.
        f"recolouring ({rounds} iterations)": (
            rounds * (12 * 3 + 2) * numbers,
            rounds * coarse,
        ),
    }
    if size <= 96:
        inverse = _dense_inverse(size, size, SMOOTHNESS)
        flat = rhs.reshape(2 * batch, -1)
        calls["solve, the paper's dense inverse"] = compiled(ops.matmul, flat, inverse)
        needs["solve, the paper's dense inverse"] = (
            4 * numbers + inverse.nbytes,
            2 * 2 * batch * size**4,
        )
    if elastic := kornia_elastic(images):
        calls["kornia elastic_transform2d"] = elastic
        needs["kornia elastic_transform2d"] = (8 * numbers, 0)
    return calls, needs


def kornia_elastic(images: np.ndarray) -> Callable[[], object] | None:
    """Returns a call of kornia's random elastic transform, where it is installed."""
    try:
        import kornia
        import torch
    except ImportError:
        return None
    place = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.from_numpy(images).to(place).permute(0, 3, 1, 2).contiguous()

    def call() -> object:
        noise = torch.rand(len(x), 2, *x.shape[2:], device=place) * 2 - 1
        result = kornia.geometry.transform.elastic_transform2d(x, noise)
        if place == "cuda" and backend.backend() != "torch":
            torch.cuda.synchronize()  # for which `wait` does not know to wait
        return result

    return call


def fields(sizes: list[int], pixels: int, rounds: int, small: bool) -> None:
    """Prints the table of the fields."""
    bandwidth, rate = rates(rounds, small)
    print(
        f"\nA copy moves {bandwidth / 1e9:.0f} GB/s; a product of float32 makes ",
        end="",
    )
    print(f"{rate / 1e12:.2f} TFLOP/s.\n")
    print("| images | what | ms | floor by | of the floor |\n|---|---|---|---|---|")
    for size in sizes:
        batch = max(1, pixels // size**2)
        calls, needs = field_calls(size, batch)
        with framework().full_precision():
            seconds = per_call(calls, rounds)
        for name, values in seconds.items():
            median = np.median(values)
            moved, computed = needs[name][0] / bandwidth, needs[name][1] / rate
            by = "bytes" if moved > computed else "operations"
            print(
                f"| {batch} of {size} px | {name} | {1e3 * median:.3g} | {by} "
                f"| {max(moved, computed) / median:.2f} |",
                flush=True,
            )


# Training steps.


class GradientOnly(ksa.AdversarialRecoloring):
    """The fast gradient sign method: a gradient, and nothing else that costs."""

    def make_field(self, images, gradients, strength, basis=None):
        """Returns the sign of the gradient, at the strength."""
        strength = 255.0 * strength[:, None, None, None]
        return strength * ops.sign(gradients)


def stepper(
    build: Callable[[], keras.Model],
    batch: tuple[np.ndarray, np.ndarray],
    callback: keras.callbacks.Callback,
) -> Callable[[], object]:
    """Returns a call that makes one training step of `fit`, and waits for it."""
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss)
    model.optimizer.build(model.trainable_variables)
    model.evaluate(*(x[:2] for x in batch), verbose=0)  # makes what is made late
    model.make_train_function(force=True)
    callback.set_params({})
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    function = model.train_function
    images, labels = (ops.convert_to_tensor(x) for x in batch)
    if backend.backend() == "jax":
        parts = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        state = tuple([x.value for x in part] for part in parts)

        def repeated() -> Iterator:
            while True:
                yield images, labels

        iterator = repeated()

        def step() -> object:
            nonlocal state
            callback.on_train_batch_begin(0)
            logs, state = function(state, iterator)
            return float(logs["loss"])

        return step
    if backend.backend() == "tensorflow":
        import tensorflow as tf

        data = tf.data.Dataset.from_tensors((images, labels)).repeat()
        iterator = iter(data.prefetch(tf.data.AUTOTUNE))
    else:
        iterator = [(images, labels)]

    def step() -> object:
        callback.on_train_batch_begin(0)
        return float(function(iterator)["loss"])

    return step


def steps(name: str, precision: str, rounds: int) -> None:
    """Prints the table of a model's training steps."""
    size, count, build = MODELS[name]
    keras.config.set_dtype_policy(precision)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (count, size, size, 3)).astype("float32")
    batch = images, rng.integers(0, 10, count).astype("int32")
    training = ksa.AdversarialTraining
    kinds = {"flow": ksa.AdversarialFlow, "recolouring": ksa.AdversarialRecoloring}
    callbacks = {
        "plain": keras.callbacks.Callback(),
        "gradient only (FGSM), rate 1": training(GradientOnly(rate=1.0)),
    }
    for (kind, layer), gradient in itertools.product(kinds.items(), ("fresh", "reuse")):
        for rate in (1.0, 0.5):
            suffix = ", reused" if gradient == "reuse" else ""
            callbacks[f"{kind}, rate {rate:g}{suffix}"] = training(
                layer(rate=rate), gradient=gradient
            )
    calls = {}
    for label, callback in callbacks.items():
        print(f"{label} is compiled ...", file=sys.stderr, flush=True)
        calls[label] = stepper(build, batch, callback)
        calls[label]()
    seconds = interleave(calls, rounds)
    plain = seconds["plain"]
    only = seconds["gradient only (FGSM), rate 1"]
    print(f"\n{name}, {count} of {size} px, {precision}, {rounds} rounds\n")
    print("| step | ms | to plain | to gradient only | of the extra of rate 1 |")
    print("|---|---|---|---|---|")
    for label, values in seconds.items():
        median = 1e3 * np.median(values)
        to_plain = np.median(values / plain)
        row = f"| {label} | {median:.1f} | {to_plain:.3f} "
        row += f"| {np.median(values / only):.3f} |"
        whole = seconds.get(label.replace("0.5", "1"))
        if "rate 0.5" in label and whole is not None:
            extra = np.median(values - plain) / np.median(whole - plain)
            row += f" {extra:.2f}" if math.isfinite(extra) else ""
        print(f"{row} |", flush=True)
    keras.config.set_dtype_policy("float32")
    del calls
    keras.backend.clear_session()


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[32, 64, 96, 224, 512, 1024]
    )
    parser.add_argument("--pixels", type=int, default=2**22, help="of a batch")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", nargs="*", default=list(MODELS)[:3], choices=MODELS)
    parser.add_argument("--precision", nargs="+", default=["float32", "mixed_bfloat16"])
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.small:
        options.sizes, options.pixels = [32, 64], 2**14
        options.models, options.rounds = ["small"], 5
    print(f"\n{device()}; {machine()}; median of {options.rounds} rounds")
    check()
    fields(options.sizes, options.pixels, options.rounds, options.small)
    for name, precision in itertools.product(options.models, options.precision):
        steps(name, precision, options.rounds)


if __name__ == "__main__":
    main()
