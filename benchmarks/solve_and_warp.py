"""Times the cosine solve and the warp against their alternatives.

The solve of eq. 15 against the explicit inverse of the paper's Algorithm 1 and SciPy's
sparse factorisation; the warp against `keras.ops.image.map_coordinates`. All calls run
in turn in one process; times are medians over the rounds.

    python -m benchmarks.solve_and_warp [--rounds N] [--sizes 32 96 224 512] [--small]
"""

import argparse
import time
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import tensorflow as tf
from keras import ops

from benchmarks.timing import compiled, interleave, machine
from keras_structadv.operators import ScreenedPoisson
from keras_structadv.solvers import DENSE_LIMIT, solve_dct, solve_dense
from keras_structadv.warp import dense_image_warp

BATCH = {32: 128, 96: 128, 224: 32, 512: 8}
SMOOTHNESS = 100.0


def solves(size: int, batch: int) -> tuple[dict, dict]:
    """The calls to time, and the seconds to build their operators, by name."""
    operator = ScreenedPoisson(size, size, SMOOTHNESS)
    rng = np.random.default_rng(0)
    # d_y and d_x of each image are two systems.
    rhs = rng.normal(size=(2 * batch, size, size)).astype("float32")
    given = tf.constant(rhs)
    calls = {
        "dct": compiled(lambda r: solve_dct(operator, r), given, jit_compile=False),
        "dct, XLA": compiled(lambda r: solve_dct(operator, r), given, jit_compile=True),
    }
    build = {"dct": 0.0, "dct, XLA": 0.0}
    start = time.perf_counter()
    rows, columns, values = operator.to_coordinates()
    factors = scipy.sparse.linalg.splu(
        scipy.sparse.csc_matrix((values, (rows, columns)))
    )
    build["scipy splu"] = time.perf_counter() - start
    flat = np.ascontiguousarray(rhs.reshape(len(rhs), -1).T, "float64")
    calls["scipy splu"] = lambda: factors.solve(flat)
    if 4 * operator.size**2 <= DENSE_LIMIT:
        start = time.perf_counter()
        solve_dense(operator, given[:1])  # builds and caches the inverse
        build["dense inverse"] = time.perf_counter() - start
        # Eager: a graph would hold the inverse as a constant of hundreds of MB.
        calls["dense inverse"] = lambda: solve_dense(operator, given).numpy()
    return calls, build


def map_coordinates(images: Any, flow: Any) -> Any:
    """The warp by Keras' own function, one channel at a time."""
    batch, height, width, channels = images.shape
    y = ops.arange(height, dtype="float32")[:, None] - flow[..., 0]
    x = ops.arange(width, dtype="float32")[None, :] - flow[..., 1]
    image = ops.broadcast_to(
        ops.arange(batch, dtype="float32")[:, None, None], (batch, height, width)
    )
    at = ops.stack([image, y, x])
    planes = [
        ops.image.map_coordinates(images[..., c], at, order=1, fill_mode="nearest")
        for c in range(channels)
    ]
    return ops.stack(planes, axis=-1)


def warps(size: int, batch: int) -> dict:
    """The calls to time, by name; checks that both warps agree."""
    rng = np.random.default_rng(0)
    images = tf.constant(rng.uniform(size=(batch, size, size, 3)), "float32")
    flow = tf.constant(rng.normal(size=(batch, size, size, 2)), "float32")
    error = np.abs(dense_image_warp(images, flow) - map_coordinates(images, flow)).max()
    assert error < 1e-4, error
    return {
        f"{name}{', XLA' if jit else ''}": compiled(f, images, flow, jit_compile=jit)
        for name, f in (
            ("warp", dense_image_warp),
            ("map_coordinates", map_coordinates),
        )
        for jit in (False, True)
    }


def report(calls: dict, build: dict, base: str, rounds: int, place: str) -> None:
    """Prints one row for each call."""
    seconds = interleave(calls, rounds)
    for name, values in seconds.items():
        ratio = np.median(values / seconds[base])
        made = f"{build[name]:.2f} s" if build.get(name) else ""
        print(
            f"| {place} | {name} | {1e3 * np.median(values):.1f} ms | {ratio:.1f} "
            f"| {made} |",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(BATCH), choices=BATCH
    )
    parser.add_argument("--small", action="store_true", help="4 images, one round")
    options = parser.parse_args(arguments)
    if options.small:
        options.rounds, options.sizes = 1, [min(BATCH)]
    print(f"\n{machine()}; median of {options.rounds} rounds\n")
    print("| images | what | a batch | ratio | to build |\n|---|---|---|---|---|")
    for size in options.sizes:
        batch = 4 if options.small else BATCH[size]
        place = f"{size}x{size} x {batch}"
        calls, build = solves(size, batch)
        report(calls, build, "dct", options.rounds, place)
        report(warps(size, batch), {}, "warp", options.rounds, place)


if __name__ == "__main__":
    main()
