"""Compiles training steps on JAX for a TPU and a GPU that need not be here.

Both compilers run on any CPU. That for TPUs is in the package libtpu, that for GPUs in
jax-cuda12-plugin with its extra `with-cuda`, each in the version that this JAX names. A
device whose compiler is missing is left out. Nothing is run on a device.

    JAX_PLATFORMS=cpu KERAS_BACKEND=jax python -m benchmarks.compile_ahead [--side 16]
        [--batch 8] [--devices tpu gpu] [--small]
"""

import argparse
import importlib.util
import itertools
import os
import pathlib
import re
from typing import Any

import keras
import numpy as np

import keras_structadv as ksa
from benchmarks.timing import machine
from benchmarks.training_step import Catching, step_of_fit
from experiments.models import small_cnn

# Of an H100, in the form of XLA's `GpuTargetConfigProto`.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
STEPS = {
    "fresh": ("fresh", {}),
    "fresh, random start, three steps": ("fresh", {"random_start": True, "steps": 3}),
    "reused": ("reuse", {}),
}
KINDS = (ksa.AdversarialFlow, ksa.AdversarialRecoloring)


def tpu() -> Any:
    """One TPU v5e, `None` without its compiler."""
    if importlib.util.find_spec("libtpu") is None:
        return None
    from jax.experimental import topologies

    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    os.environ |= {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}
    name = "v5e:2x2"
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]


def gpu() -> Any:
    """One NVIDIA H100, `None` without its compiler."""
    nvcc = importlib.util.find_spec("nvidia") and importlib.util.find_spec(
        "nvidia.cuda_nvcc"
    )
    if not (nvcc and importlib.util.find_spec("jax_cuda12_plugin")):
        return None
    folder = pathlib.Path(next(iter(nvcc.submodule_search_locations)))
    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 "
        f"--xla_gpu_cuda_data_dir={folder}"
    )
    from jax._src import xla_bridge
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=H100
    )
    # JAX asks for the name of a GPU's platform only where one is
    # (github.com/jax-ml/jax/issues/23971).
    known = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda x: "cuda" if x == "gpu" else known(x)
    return found.devices[0]


def compiled(step: Any, arguments: tuple, device: Any) -> Any:
    """Compiles a step as `fit` would on the device."""
    import jax

    place = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
    )
    return jax.jit(step, donate_argnums=0).lower(*shapes).compile()


def step_of(name: str, policy: str, side: int, count: int) -> tuple:
    """The step of a small CNN with a flow and a recolouring, and its arguments."""
    gradient, given = STEPS[name]
    keras.config.set_dtype_policy(policy)
    plain = small_cnn((side, side, 3), 10)
    model = Catching(plain.inputs, plain.outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    layers = [kind(seed=0, **given) for kind in KINDS]
    callback = ksa.AdversarialTraining(layers, gradient=gradient)
    keras.config.set_dtype_policy("float32")
    images = np.random.default_rng(0).uniform(0, 255, (count, side, side, 3))
    batch = images.astype("float32"), np.arange(count) % 10
    return step_of_fit(model, callback, batch)


def row(program: Any) -> str:
    """What is known of a compiled step."""
    text, memory = program.as_text(), program.memory_analysis()
    products = re.findall(r"= f32\S* (?:dot|convolution)\(.*", text)
    full = sum("operand_precision={highest,highest}" in x for x in products)
    calls = sorted(set(re.findall(r'custom_call_target="([^"]+)"', text)))
    assert "f64[" not in text
    return (
        f"{memory.temp_size_in_bytes / 2**20:.1f} MiB "
        f"| {memory.alias_size_in_bytes / 2**20:.1f} of "
        f"{memory.output_size_in_bytes / 2**20:.1f} MiB "
        f"| {full} of {len(products)} | {', '.join(calls)}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--devices", nargs="+", default=["tpu", "gpu"])
    parser.add_argument("--small", action="store_true", help="8 pixels, one policy")
    options = parser.parse_args(arguments)
    if keras.backend.backend() != "jax":
        parser.error("Only JAX compiles for other devices. Set KERAS_BACKEND=jax.")
    side, count, policies = options.side, options.batch, ["float32", "mixed_bfloat16"]
    if options.small:
        side, count, policies = 8, 4, policies[1:]
    devices = {"tpu": tpu, "gpu": gpu}
    devices = {name: devices[name]() for name in options.devices}
    print(f"\n{machine()}; {count} images of {side} pixels; compiled, not run\n")
    print(
        "| device | step | policy | temporary | written in place "
        "| float32 products at full precision | calls |\n" + "|" + "---|" * 7
    )
    for device in filter(None, devices.values()):
        for name, policy in itertools.product(STEPS, policies):
            program = compiled(*step_of(name, policy, side, count), device)
            print(
                f"| {device.device_kind} | {name} | {policy} | {row(program)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
