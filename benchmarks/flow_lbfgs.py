"""L-BFGS over the flow of each image; stAdv (Xiao et al. 2018) is one case."""

import math
import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

import keras_structadv as ksa
from benchmarks.attacked import Attacked, Found, changes_of, roughness_of
from keras_structadv.dct import idct2, laplacian_eigenvalues
from keras_structadv.defaults import smoothness_of


class Bounded:
    """Bounds each displacement by itself, smoothly: u becomes u / sqrt(1 + |u / m|²).

    Args:
        limit: m, in pixels.
    """

    sharpnesses = (1.0,)  # any: there is one problem to solve

    def __init__(self, limit: float):
        self._limit = limit

    def __call__(self, flows: tf.Tensor, sharpness: tf.Tensor) -> tf.Tensor:
        """The bounded flows."""
        squares = tf.reduce_sum(tf.square(flows / self._limit), -1, keepdims=True)
        return flows / tf.sqrt(1 + squares)


class BoundedWithRoughness:
    """Scales each flow as a whole, to a longest displacement and a roughness.

    The largest of all that is bounded is a norm of order `sharpness` instead, which has
    a gradient that an optimiser can follow. It is never below the largest.

    Args:
        limit: the longest displacement, pixels.
        roughest: (n,), > 0, the largest roughness of each flow.
    """

    sharpnesses = (10.0, 40.0)  # each starts where the last ended

    def __init__(self, limit: float, roughest: np.ndarray):
        self._limit, self._roughest = limit, roughest

    def __call__(self, flows: tf.Tensor, sharpness: tf.Tensor) -> tf.Tensor:
        """The bounded flows."""
        lengths = tf.reduce_sum(tf.square(flows / self._limit), axis=-1)
        rough = roughness_of(flows) / self._roughest
        shares = tf.concat(
            [tf.reshape(lengths, (len(rough), -1)), rough[:, None]], axis=1
        )
        top = tf.stop_gradient(tf.reduce_max(shares, axis=1, keepdims=True))
        powers = tf.reduce_sum((shares / top) ** (sharpness / 2), axis=1)
        size = tf.sqrt(top[:, 0]) * powers ** (1 / sharpness)
        return flows / size[:, None, None, None]


def optimised(
    attacked: Attacked,
    bound: Bounded | BoundedWithRoughness,
    *,
    frequencies: int | None = None,
    confidence: float = math.inf,
    tau: float = 0.0,
    iterations: int = 100,
    seed: int = 0,
) -> Found:
    """Maximises the loss of each image over its flow, by L-BFGS.

    The objective is that of Xiao et al.: max(margin, -confidence) + tau * total
    variation, with the margin of the true logit over the highest other one. Kept is, as
    in the audit, the flow of the highest cross-entropy among all that were evaluated.

    Args:
        attacked: the images.
        bound: on the flows.
        frequencies: k, for the coefficients of the k x k lowest frequencies as
            unknowns, each times what the smooth solve leaves of it, from a random
            start; `None` for the displacements of all pixels, from none.
        confidence: kappa, the margin by which it is enough to fool the model.
        tau: weight of the flow loss.
        iterations: of L-BFGS, at most, for each sharpness of the bound.
        seed: of the start.
    """
    count, height, width = attacked.x.shape[:3]
    if frequencies is None:
        shape = (height, width, 2)
        unknowns = np.zeros((count, math.prod(shape)))
    else:
        shape = (2, frequencies, frequencies)
        rng = np.random.default_rng(seed)
        unknowns = rng.normal(size=(count, math.prod(shape)))

    def flows_of(points: tf.Tensor) -> tf.Tensor:
        whole = tf.reshape(points, (count, *shape))
        return whole if frequencies is None else _smooth(whole, (height, width))

    @tf.function(jit_compile=True)
    def evaluated(points: tf.Tensor, sharpness: tf.Tensor) -> tuple:
        with tf.GradientTape() as tape:
            tape.watch(points)
            flows = bound(flows_of(points), sharpness)
            images = ksa.dense_image_warp(attacked.x, flows)
            logits = attacked.model(images, training=False)
            true = tf.one_hot(attacked.y, logits.shape[-1])
            others = tf.reduce_max(logits - 1e9 * true, axis=-1)
            margins = tf.reduce_sum(logits * true, axis=-1) - others
            values = tf.maximum(margins, -confidence) + tau * total_variation(flows)
        gradients = tape.gradient(values, points)  # of the sum; rows do not mix
        return values, gradients, attacked.cross_entropy(logits), flows

    highest = np.full(count, -1.0, "float32")
    best = np.zeros((count, height, width, 2), "float32")
    sharpness = tf.constant(bound.sharpnesses[0])

    def evaluate(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, gradients, losses, flows = (
            x.numpy() for x in evaluated(tf.cast(points, "float32"), sharpness)
        )
        better = losses > highest
        highest[better], best[better] = losses[better], flows[better]
        return values, gradients

    evaluate(unknowns)  # compiles
    begin, passes = time.perf_counter(), 0.0
    for order in bound.sharpnesses:
        sharpness = tf.constant(order)
        unknowns, evaluations = minimise_each(evaluate, unknowns, iterations)
        passes += evaluations
    seconds = time.perf_counter() - begin
    roughness = roughness_of(tf.constant(best)).numpy()
    return attacked.found(attacked.warped(best), roughness, passes, seconds)


def _smooth(codes: tf.Tensor, shape: tuple[int, int]) -> tf.Tensor:
    """Flows from codes, (n, 2, k, k), as those of the audit's start before scaling."""
    rows, columns = codes.shape[2:]
    eigenvalues = laplacian_eigenvalues(*shape)[:rows, :columns]
    planes = idct2(codes / (1 + smoothness_of(None, *shape) * eigenvalues), shape)
    return tf.stack([planes[:, 0], planes[:, 1]], axis=-1)


def total_variation(fields: tf.Tensor) -> tf.Tensor:
    """The flow loss of Xiao et al., eq. 4, (n,): each pixel and its four neighbours."""
    return 2 * sum(
        tf.reduce_sum(tf.sqrt(tf.reduce_sum(tf.square(x), -1) + 1e-8), axis=(1, 2))
        for x in changes_of(fields)
    )


def minimise_each(
    evaluate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    starts: np.ndarray,
    iterations: int,
) -> tuple[np.ndarray, float]:
    """Minimises a function of each row, each by L-BFGS-B with history of its own.

    A thread for each row runs the optimiser and waits for its value; a batch is
    evaluated when all that still run wait.

    Args:
        evaluate: `points -> (values, gradients)`, (n, size) -> (n,), (n, size), row by
            row independent.
        starts: (n, size).
        iterations: of the optimiser, at most; twice as many evaluations.

    Returns:
        The last points, float64, (n, size), and the mean number of evaluations.
    """
    from scipy.optimize import minimize

    points = np.array(starts, "float64")
    ends = points.copy()
    requests: queue.SimpleQueue = queue.SimpleQueue()
    replies: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in points]
    # The default tolerances stop at once where a model is certain: its slope is tiny.
    options = {
        "maxiter": iterations,
        "maxfun": 2 * iterations,
        "ftol": 1e-12,
        "gtol": 1e-12,
    }

    def ask(point: np.ndarray, row: int) -> tuple[float, np.ndarray]:
        requests.put((row, point.copy()))
        return replies[row].get()

    def solve(row: int) -> None:
        try:
            ends[row] = minimize(
                ask, ends[row], (row,), "L-BFGS-B", jac=True, options=options
            ).x
        finally:
            requests.put((row, None))

    for row in range(len(points)):
        threading.Thread(target=solve, args=(row,), daemon=True).start()
    running, waiting, count = len(points), set(), 0
    while running:
        row, point = requests.get()
        if point is None:
            running -= 1
        else:
            points[row] = point
            waiting.add(row)
        if waiting and len(waiting) == running:
            values, gradients = evaluate(points)
            count += running
            for row in waiting:
                replies[row].put((float(values[row]), gradients[row].astype("float64")))
            waiting = set()
    return ends, count / len(points)
