"""What the edge-preserving solve costs, and how far it is from the floor.

On crops of photographs with noise as gradients, with XLA. The floor of an iteration is
the longer of two times: to move its arrays once, at the rate of a copy of that size,
and to do its matrix products, at the rate of a large one. For comparison, SciPy
factorises the same sparse operator for one image.

    python -m benchmarks.recoloring_solve [--rounds N] [--sizes 32 64 224] [--small]
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import tensorflow as tf

import keras_structadv as ksa
from benchmarks.timing import compiled, interleave, machine
from keras_structadv.operators import EdgePreserving
from keras_structadv.solvers import solve_edge_preserving

BATCH = {32: 128, 64: 64, 224: 16}
# Numbers read and written in an iteration, for each number of the fields:
# the product with the operator 3 + 2/3 and 1 (two directions and the field, two ties of
# a third), three updates of 2 and 1, the preconditioner 2 (residual twice) + 1
# (diagonal) and 1. Inner products are free, since their factors are read anyway.
MOVED = 3 + 2 / 3 + 1 + 3 * 3 + 3 + 1


def solve(images: Any, rhs: Any, rtol: float, iterations: int) -> tuple[Any, Any]:
    """The solution and the iterations of each image."""
    x, info = solve_edge_preserving(
        EdgePreserving(images, damping=1e-3), rhs, rtol=rtol, max_iterations=iterations
    )
    return x, info.iterations


def repeated(body: Callable, start: Any, times: int = 20) -> Callable[[], object]:
    """A call that runs `body` many times inside one kernel."""

    def loop(x: Any) -> Any:
        return tf.while_loop(lambda i, x: i < times, lambda i, x: (i + 1, body(x)), x)

    return compiled(loop, (0, start))


def there_and_back(tall: Any, wide: Any) -> Any:
    """Transforms one axis to half of its frequencies, and back."""
    return tf.matmul(tall, tf.matmul(tall, wide), transpose_a=True)


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(BATCH), choices=BATCH
    )
    parser.add_argument("--small", action="store_true", help="4 images, one round")
    options = parser.parse_args(arguments)
    if options.small:
        options.rounds, options.sizes = 1, [min(BATCH)]
    print(f"\n{machine()}; median of {options.rounds} rounds, with XLA")
    print(
        "| images | solve | iterations, mean and most | an iteration | moving alone "
        "| products alone | of the floor | SciPy, an image |\n" + "|---" * 8 + "|"
    )
    for size in options.sizes:
        batch = 4 if options.small else BATCH[size]
        (images, _), _ = ksa.datasets.load_photographs(size, -(-batch // 10))
        order = np.random.default_rng(0).permutation(len(images))[:batch]
        images = tf.constant(images[order] / 255, "float32")
        rhs = tf.random.stateless_normal(images.shape, (0, 1))
        half = size // 2
        tall = tf.random.stateless_normal((half, size), (0, 2))
        wide = tf.random.stateless_normal((size, size * 3 * batch), (0, 3))
        calls = {
            "solve": compiled(lambda x, g: solve(x, g, 0.1, 50), images, rhs),
            "short": compiled(lambda x, g: solve(x, g, 0.0, 2), images, rhs),
            "long": compiled(lambda x, g: solve(x, g, 0.0, 12), images, rhs),
            "copy": repeated(lambda x: x * 1.01, rhs),
            "product": repeated(functools.partial(there_and_back, tall), wide),
        }
        seconds = interleave(calls, options.rounds)
        middle = {name: np.median(values) for name, values in seconds.items()}
        each = np.median(seconds["long"] - seconds["short"]) / 10
        moving = MOVED * middle["copy"] / 20 / 2
        # The whole array along one axis, the remaining half along the other.
        products = 1.5 * middle["product"] / 20
        iterations = calls["solve"]()[1]

        rows, columns, values = EdgePreserving(images[:1], damping=1e-3).to_coordinates(
            0
        )
        matrix = scipy.sparse.coo_array((values, (rows, columns))).tocsc()
        start = time.perf_counter()
        scipy.sparse.linalg.spsolve(matrix, rhs[0].numpy().ravel())
        scipy_seconds = time.perf_counter() - start
        print(
            f"| {size}x{size} x {batch} | {1e3 * middle['solve']:.1f} ms "
            f"| {iterations.mean():.1f}, {iterations.max()} | {1e3 * each:.2f} ms "
            f"| {1e3 * moving:.2f} ms | {1e3 * products:.2f} ms "
            f"| {max(moving, products) / each:.0%} | {1e3 * scipy_seconds:.0f} ms |",
            flush=True,
        )


if __name__ == "__main__":
    main()
