"""Checks and times solves, warps and training steps on any accelerator and backend.

First it checks the solve, the warp and the recolouring on this device. Then it times
each at several sizes and compares with a floor: the time to move the bytes at the
bandwidth of a copy, or to do the operations at the rate of a large matrix product,
whichever is longer. Both rates are measured here. Last come whole training steps. All
that is compared runs in turn in one process.

    KERAS_BACKEND=jax python -m benchmarks.accelerator [--sizes 32 ... 1024]
        [--pixels N] [--models wide-resnet efficientnet resnet] [--rounds N]
        [--precision float32 mixed_bfloat16] [--brief] [--small]

`--small` checks the script itself on a CPU, in a minute or two. Compiling the steps
takes long: if time is short, pass one model and one precision; `--brief` leaves out the
recolourings and the rate of one half. Without values, `--sizes` and `--models` leave
their part out. The products of the models have the precision of the backend, on a GPU
mostly TF32; those of the fields have full precision.
"""

import argparse
import itertools
from collections.abc import Callable

import numpy as np
import scipy.fft
from keras import backend, ops

import keras_structadv as ksa
from benchmarks.accelerator_steps import MODELS, steps
from benchmarks.devices import compiled, device, per_call, rates
from benchmarks.timing import machine
from keras_structadv.backends import framework
from keras_structadv.dct import laplacian_eigenvalues
from keras_structadv.operators import EdgePreserving, ScreenedPoisson
from keras_structadv.solvers import solve_dct, solve_edge_preserving
from keras_structadv.solvers.screened_poisson import _dense_inverse

SMOOTHNESS = 100.0


def check() -> None:
    """Prints the errors of this device against float64 on the CPU; fails if large."""
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
    moved = images[:, :-2, 3:]  # was at (y - 2, x + 3)
    errors["warp, of 255"] = np.abs(found[:, 2:, :-3] - moved).max()

    pictures = np.linspace(0, 0.3, 64)[:, None, None] * rng.uniform(size=(4, 1, 64, 3))
    pictures = np.cumsum(pictures, axis=2) / 64
    for number in range(4):  # with edges
        row, column = rng.integers(0, 40, 2)
        pictures[number, row : row + 20, column : column + 20] = rng.uniform(size=3)
    pictures = pictures.astype("float32")
    gradients = rng.normal(size=pictures.shape).astype("float32")

    def residual(x: object, g: object) -> object:
        operator = EdgePreserving(x, damping=1e-3)
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


def field_calls(size: int, batch: int) -> tuple[dict, dict]:
    """The calls to time, and the bytes and operations that each needs."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (batch, size, size, 3)).astype("float32")
    rhs = rng.normal(size=(2 * batch, size, size)).astype("float32")
    flow = rng.normal(size=(batch, size, size, 2)).astype("float32")
    gradients = rng.normal(size=images.shape).astype("float32")
    operator = ScreenedPoisson(size, size, SMOOTHNESS)
    numbers = 4 * batch * size**2  # bytes of one plane of every image
    half = -(-size // 2)

    def iterations() -> int:
        def solve(x: object, g: object) -> object:
            return ops.max(
                solve_edge_preserving(EdgePreserving(x, damping=1e-3), g)[1].iterations
            )

        return int(ops.convert_to_numpy(compiled(solve, images, gradients)()))

    def recolor(x: object, g: object) -> object:
        return ksa.adversarial_recoloring(x, g, damping=1e-3, value_range=(0, 1))

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
        # Images and gradients in, images out; nothing between has to be stored.
        "flow and warp": (9 * numbers, products),
        # In each iteration x, r, p, z and A p in and out, and the operator in.
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
    """A call of kornia's random elastic transform, or `None` without kornia."""
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
            torch.cuda.synchronize()  # `wait` waits for Keras' backend only
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


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[32, 64, 96, 224, 512, 1024]
    )
    parser.add_argument("--pixels", type=int, default=2**22, help="of a batch")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", nargs="*", default=list(MODELS)[:3], choices=MODELS)
    parser.add_argument("--precision", nargs="+", default=["float32", "mixed_bfloat16"])
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    if options.small:
        options.sizes, options.pixels = [32], 2**12
        options.models, options.rounds, options.brief = ["small"], 2, True
    print(f"\n{device()}; {machine()}; median of {options.rounds} rounds")
    check()
    if options.sizes:
        fields(options.sizes, options.pixels, options.rounds, options.small)
    for name, precision in itertools.product(options.models, options.precision):
        steps(name, precision, options.rounds, options.brief)


if __name__ == "__main__":
    main()
