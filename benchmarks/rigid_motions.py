"""Attacks by rotations and translations: a grid of our own, and that of ART."""

import itertools
import math
import time

import numpy as np

from benchmarks.attacked import Attacked, Found, roughness_of


def rigid_flows(
    shape: tuple[int, int], limit: float, angles: int, distances: int
) -> np.ndarray:
    """All rotations and translations of a grid within a bound, (k, height, width, 2).

    Args:
        shape: height and width.
        limit: the longest displacement of any pixel, pixels.
        angles: of the grid, from the largest that the bound allows to its negative.
        distances: of the grid along y and along x, likewise.
    """
    centre = (np.array(shape) - 1) / 2
    places = np.stack(np.indices(shape), axis=-1) - centre
    flows = []
    along = np.linspace(-limit, limit, distances)
    for angle in np.linspace(-1, 1, angles) * largest_angle(shape, limit):
        turn = np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        rotation = places @ turn - places
        for shift in itertools.product(along, along):
            flow = rotation + shift
            if np.linalg.norm(flow, axis=-1).max() <= limit * (1 + 1e-6):
                flows.append(flow)
    return np.array(flows, "float32")


def largest_angle(shape: tuple[int, int], limit: float) -> float:
    """The rotation that moves the corners by a number of pixels, radians."""
    corner = np.linalg.norm((np.array(shape) - 1) / 2)
    return 2 * math.asin(limit / (2 * corner))


def rigid(
    attacked: Attacked, limit: float, angles: int = 11, distances: int = 9
) -> Found:
    """Tries all `rigid_flows` on each image, and keeps the one of the highest loss."""
    flows = rigid_flows(attacked.x.shape[1:3], limit, angles, distances)
    count = len(attacked.y)
    attacked.logits(attacked.warped(np.repeat(flows[:1], count, 0)))  # compiles
    highest, best = np.full(count, -1.0, "float32"), np.zeros(count, int)
    begin = time.perf_counter()
    for place, flow in enumerate(flows):
        logits = attacked.logits(attacked.warped(np.repeat(flow[None], count, 0)))
        losses = attacked.cross_entropy(logits).numpy()
        better = losses > highest
        highest[better], best[better] = losses[better], place
    seconds = time.perf_counter() - begin
    kept = flows[best]
    return attacked.found(
        attacked.warped(kept), roughness_of(kept).numpy(), len(flows), seconds
    )


def by_art(attacked: Attacked, limit: float, angles: int = 11) -> Found | None:
    """Attacks each image by ART's `SpatialTransformation`; `None` if ART is missing.

    ART shifts by whole pixels, equally far along y and x, and rotates; it keeps the
    first pair that fools the model. Each largest shift within the bound is tried,
    with the rotations that the rest of the bound allows the corners, and the result of
    the highest loss is kept.
    """
    try:
        from art.attacks.evasion import SpatialTransformation
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork
    except ImportError:
        return None
    height, width = shape = attacked.x.shape[1:3]
    passes = 0

    def predict(images: np.ndarray) -> np.ndarray:
        nonlocal passes
        passes += len(images)
        return attacked.logits(images.astype("float32")).numpy()

    classifier = BlackBoxClassifierNeuralNetwork(
        predict,
        attacked.x.shape[1:],
        attacked.model.output_shape[-1],
        channels_first=False,
        clip_values=(0, 255),
    )
    settings = []
    for pixels in range(math.floor(limit / math.sqrt(2)) + 1):
        rest = limit - pixels * math.sqrt(2)
        settings.append(
            {
                "max_translation": 100 * pixels / max(height, width),
                "num_translations": 2 * pixels + 1,
                "max_rotation": math.degrees(largest_angle(shape, rest)),
                "num_rotations": angles,
                "verbose": False,
            }
        )
    predict(attacked.x[:1])  # compiles
    passes, begin = 0, time.perf_counter()
    tried = []
    for arguments in settings:
        images, turns = [], []
        for image in attacked.x:  # a fresh attack: it keeps what it found
            attack = SpatialTransformation(classifier, **arguments)
            images.append(attack.generate(image[None])[0])
            turns.append(math.radians(attack.attack_rot))
        roughness = 4 * np.sin(np.array(turns) / 2) ** 2  # of a rotation
        tried.append((np.array(images, "float32"), roughness))
    seconds = time.perf_counter() - begin
    each = [attacked.found(*pair, passes, seconds) for pair in tried]
    order = np.argmax([one.losses for one in each], axis=0)
    images, roughness = (
        np.stack(values)[order, np.arange(len(order))] for values in zip(*tried)
    )
    return attacked.found(images, roughness, passes / len(order), seconds)
