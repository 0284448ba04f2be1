"""What a further `fit` costs, and what dropped models leave in memory.

A small CNN on 16x16 digits. Times: one model and one callback, three `fit(epochs=1)`
and a plain `fit` after them. Each is a ratio to the second `fit` of a plain model in
the same round. Memory: what stays resident for each model that is made, trained and
dropped, and for each further `fit` of one model. Each kind has a process of its own.
The backend is that of Keras (`KERAS_BACKEND`).

    python -m benchmarks.refit [--rounds N] [--models N] [--only SUBSTRING] [--small]
    python -m benchmarks.refit --memory "flow, fresh"
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import keras_structadv as ksa
from benchmarks.timing import machine, ratios

BATCH = 64
WARMUP = 3  # models, and fits of one model, before memory counts
FITS = ("first", "second", "third", "plain after")
LAYERS = {"flow": ksa.AdversarialFlow, "recolouring": ksa.AdversarialRecoloring}
KINDS = ("plain", *(f"{name}, {how}" for name in LAYERS for how in ("fresh", "reuse")))


def small_cnn() -> keras.Model:
    """Returns a compiled network of two convolutions."""
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def callbacks(kind: str) -> list[keras.callbacks.Callback]:
    """Returns new callbacks of a kind, none for the plain one."""
    if kind == "plain":
        return []
    name, gradient = kind.split(", ")
    return [ksa.AdversarialTraining(LAYERS[name](), gradient=gradient)]


def fit(model: keras.Model, used: list, data: tuple) -> float:
    """Returns the seconds of one epoch."""
    start = time.perf_counter()
    model.fit(*data, batch_size=BATCH, callbacks=used, verbose=0)
    return time.perf_counter() - start


def time_fits(kinds: list[str], rounds: int, data: tuple) -> dict[str, np.ndarray]:
    """Returns the seconds of each fit of each kind, all kinds in turn in a round."""
    seconds = {f"{kind}: {name}": [] for kind in kinds for name in FITS}
    for _ in range(rounds):
        for kind in kinds:
            model, used = small_cnn(), callbacks(kind)
            for name in FITS:
                took = fit(model, [] if name == "plain after" else used, data)
                seconds[f"{kind}: {name}"].append(took)
    return {name: np.array(values) for name, values in seconds.items()}


def resident() -> float:
    """Returns the resident memory in MB, without what the allocator only keeps."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(kind: str, models: int, warmup: int, data: tuple) -> tuple[float, float]:
    """Returns the MB that each dropped model leaves, and each further fit of one."""

    def train_one() -> None:
        fit(small_cnn(), callbacks(kind), data)
        keras.utils.clear_session()

    def per_call(call: Callable[[], object], times: int) -> float:
        for number in range(warmup + times):
            if number == warmup:
                before = resident()
            call()
        return (resident() - before) / times

    of_models = per_call(train_one, models)
    model, used = small_cnn(), callbacks(kind)
    return of_models, per_call(lambda: fit(model, used, data), models)


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument(
        "--warmup", type=int, default=WARMUP, help="before memory counts"
    )
    parser.add_argument("--only", default="", help="kinds whose name contains it")
    parser.add_argument("--memory", choices=KINDS, help="only the memory of this kind")
    parser.add_argument("--small", action="store_true", help="a try of the script")
    options = parser.parse_args(arguments)
    if options.small:
        options.rounds, options.models, options.warmup = 1, 1, 1
    (images, labels), _ = ksa.datasets.load_digits(64 if options.small else 200)
    data = images.astype("float32"), labels
    if options.memory:
        print(*growth(options.memory, options.models, options.warmup, data))
        return

    kinds = [x for x in KINDS if x == "plain" or options.only in x]
    kinds = kinds[:2] if options.small else kinds
    print(f"\n{machine()}; {len(images)} digits, 16x16x1, batch {BATCH}")
    print(
        f"Ratio to the second plain fit: median of {options.rounds} rounds (quartiles)"
    )
    seconds = time_fits(kinds, options.rounds, data)
    to_plain = ratios(seconds, "plain: second")
    base = np.median(seconds["plain: second"])
    print(f"The second plain fit takes {base:.2f} s.\n")
    print(f"| fit | {' | '.join(FITS)} |\n|---|{'---|' * len(FITS)}")
    for kind in kinds:
        row = ("{:.2f} ({:.2f})".format(*to_plain[f"{kind}: {name}"]) for name in FITS)
        print(f"| {kind} | {' | '.join(row)} |", flush=True)

    if sys.platform != "linux":
        print("\nMemory is read on Linux only.")
        return
    print(f"\nMB that stay resident, mean of {options.models}\n")
    print("| | for each model | to plain | for each further fit |\n|---|---|---|---|")
    command = [sys.executable, "-m", "benchmarks.refit"]
    command += ["--models", str(options.models), "--warmup", str(options.warmup)]
    command += ["--small"] if options.small else []
    plain = None
    for kind in kinds[:1] if options.small else kinds:
        out = subprocess.run(
            [*command, "--memory", kind], check=True, capture_output=True, text=True
        ).stdout
        of_models, of_fits = (float(x) for x in out.split()[-2:])
        plain = plain or of_models  # the first kind
        print(f"| {kind} | {of_models:.1f} | {of_models / plain:.2f} | {of_fits:.1f} |")


if __name__ == "__main__":
    main()
