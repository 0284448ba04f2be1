"""Times an audit of many images, and measures its memory.

    python -m benchmarks.audit_time [--images 10000] [--small]

A small CNN, digits of MNIST (each of 5,000 twice), five strengths, ten steps, sixteen
random fields. Memory is the growth of the peak of the process; each batch size
runs in a process of its own.
"""

import argparse
import resource

import keras
import numpy as np

import keras_structadv as ksa
from benchmarks.timing import in_own_process, machine
from experiments.models import mnist_cnn

STRENGTHS = (0.5, 1, 1.5, 2, 3)
BATCH_SIZES = (64, 256)


def measure(images: int, batch_size: int, steps: int) -> tuple[float, float, float]:
    """Audits a model of its own.

    Args:
        images: number of images.
        batch_size: of the audit.
        steps: of the audit.

    Returns:
        Seconds, the growth of the peak of the memory in MiB, and the accuracy at the
        smallest strength.
    """
    (x, y), (more, labels) = ksa.datasets.load_mnist_5k(train_size=3000)
    model = mnist_cnn((28, 28, 1), 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, epochs=3, batch_size=64, verbose=0)
    x, y = np.concatenate([x, more]), np.concatenate([y, labels])
    places = np.arange(images) % len(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = ksa.evaluate_robustness(
        model,
        x[places],
        y[places],
        strengths=STRENGTHS,
        steps=steps,
        batch_size=batch_size,
        seed=0,
    )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return report.settings["seconds"], (after - before) / 1024, report.worst[0]


def main(arguments: list[str] | None = None) -> None:
    """Prints a table, a row for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--small", action="store_true", help="few images and steps")
    options = parser.parse_args(arguments)
    images, steps = (20, 1) if options.small else (options.images, 10)
    print(
        f"\n{machine()}; {len(STRENGTHS)} strengths, {steps} steps, 16 random fields\n"
    )
    print(
        "| images | batch_size | minutes | peak memory | left at the first strength |"
    )
    print("|---|---|---|---|---|")
    for batch_size in BATCH_SIZES:
        # The peak of an earlier audit would hide that of a later.
        seconds, grown, left = in_own_process(measure, images, batch_size, steps)
        print(
            f"| {images} | {batch_size} | {seconds / 60:.1f} | +{grown:.0f} MiB | "
            f"{left:.3f} |"
        )


if __name__ == "__main__":
    main()
