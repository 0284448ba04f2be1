"""Programs for accelerators that are not here: lowered on this machine, not run.

On JAX, the train step of `fit` and the functions are lowered for CUDA and TPU; on
TensorFlow, the step is compiled by XLA, and each of its operations has to be known to
XLA for GPUs. `benchmarks.compile_ahead` goes on from there, to the compilers of both.
"""

import functools
import re

import keras
import numpy as np
import pytest
from keras import backend, layers, ops

import keras_structadv as ksa
from benchmarks import compile_ahead
from benchmarks.training_step import Catching, step_of_fit
from keras_structadv.operators import EdgePreserving
from keras_structadv.solvers import conjugate_gradients, recoloring_basis
from keras_structadv.training.fingerprint import fingerprint
from keras_structadv.warp import compose_flows, move_boxes, move_points

pytestmark = pytest.mark.backends("tensorflow", "jax")

# The eigenpairs of small matrices: the first is part of JAX's plugin for CUDA, the
# second of the compiler for TPUs.
EIGENPAIRS = {"cusolver_syevd_ffi", "Eigh"}

STEPS = {
    "fresh": ("fresh", {}),
    "random start, three steps, targeted": (
        "fresh",
        {"random_start": True, "steps": 3, "target": "most_confident_wrong"},
    ),
    "reused": ("reuse", {}),
    "inside": (None, {}),
}
POLICIES = ("float32", "mixed_bfloat16")


@functools.cache
def step(name, policy):
    """Returns a step of `fit` with a flow and a recolouring, and its arguments."""
    gradient, arguments = STEPS[name]
    keras.utils.set_random_seed(0)
    kinds = (ksa.AdversarialFlow, ksa.AdversarialRecoloring)
    given = [kind(seed=1, dtype=policy, **arguments) for kind in kinds]
    images = keras.Input((8, 8, 3))
    rest = keras.Sequential(
        [
            layers.Rescaling(1 / 255, dtype=policy),
            layers.Conv2D(4, 3, padding="same", dtype=policy),
            layers.BatchNormalization(dtype=policy),
            layers.ReLU(dtype=policy),
            layers.Dropout(0.1, dtype=policy),
            layers.GlobalAveragePooling2D(dtype=policy),
            layers.Dense(3, dtype=policy),
        ]
    )
    inside = given if gradient is None else []
    model = Catching(images, keras.Sequential([*inside, rest])(images))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    callback = ksa.AdversarialTraining()
    if gradient is not None:
        callback = ksa.AdversarialTraining(given, gradient=gradient)
    x = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    return step_of_fit(model, callback, (x, np.arange(4) % 3))


IMAGES, FLOW = ("float32", 2, 8, 8, 3), ("float32", 2, 8, 8, 2)


def stateless(layer):
    layer.build(IMAGES[1:])
    state = [variable.value for variable in layer.non_trainable_variables]
    return lambda x: layer.stateless_call([], state, x, training=True)[0]


def cg_of(x):
    return conjugate_gradients(EdgePreserving(x).matvec, ops.transpose(x, (1, 2, 3, 0)))


# Of each function its arguments. The first ones hold no product at all.
WITHOUT_PRODUCTS = {
    "fingerprint": (fingerprint, IMAGES),
    "fingerprint of integers": (fingerprint, ("int32", 2, 8, 8, 3)),
    "warp": (ksa.dense_image_warp, IMAGES, FLOW),
    "warp, nearest": (
        functools.partial(ksa.dense_image_warp, interpolation="nearest"),
        ("int32", 2, 8, 8, 1),
        FLOW,
    ),
    "composed flows": (compose_flows, FLOW, FLOW),
    "points": (move_points, ("float32", 2, 5, 2), FLOW),
    "boxes": (move_boxes, ("float32", 2, 5, 4), FLOW),
    "conjugate gradients": (cg_of, IMAGES),
}
WITH_PRODUCTS = {
    "flow": (ksa.adversarial_flow, IMAGES, IMAGES),
    "flow, dense": (
        functools.partial(ksa.adversarial_flow, solver="dense"),
        *(IMAGES, IMAGES),
    ),
    "flow, sparse": (
        functools.partial(ksa.adversarial_flow, solver="sparse"),
        *(IMAGES, IMAGES),
    ),
    "recolouring": (ksa.adversarial_recoloring, IMAGES, IMAGES),
    "basis": (lambda x: recoloring_basis(EdgePreserving(x), 4), IMAGES),
    "random flow": (functools.partial(ksa.random_flow, seed=0), IMAGES),
}
RANDOM_LAYERS = {
    "RandomFlow": functools.partial(ksa.RandomFlow, seed=0),
    "RandomRecoloring": functools.partial(ksa.RandomRecoloring, seed=0),
}
FUNCTIONS = WITHOUT_PRODUCTS | WITH_PRODUCTS


def function(name):
    if name in RANDOM_LAYERS:
        return stateless(RANDOM_LAYERS[name]()), IMAGES
    return FUNCTIONS[name]


if backend.backend() == "tensorflow":
    import tensorflow as tf
if backend.backend() == "jax":
    import jax
    import jax.export

    def lowered(function, *arguments):
        """Returns the StableHLO of a function, without the places in the source."""
        program = jax.export.export(jax.jit(function), platforms=["cuda", "tpu"])
        text = program(*arguments).mlir_module()
        return re.sub(r"(?m)^#loc.*$| loc\(.*\)", "", text)

    def shapes(name):
        run, *given = function(name)
        return run, *(jax.ShapeDtypeStruct(shape, x) for x, *shape in given)

    def products_in(program):
        """Returns the lines with a sum of products; others are done one by one."""
        found = re.findall(r".*stablehlo\.(?:dot\w*|convolution).*", program)
        return [line for line in found if "contracting_dims = [] x []" not in line]

    def assert_is_for_both(program, calls=frozenset()):
        assert set(re.findall(r"custom_call @([\w.$]+)", program)) == calls
        assert "f64" not in program
        assert not re.search(r"\?x|x\?|<\?", program)
        dynamic = set(re.findall(r"\w*dynamic_\w+", program))
        assert dynamic <= {"dynamic_slice", "dynamic_update_slice"}


def of_jax(test):
    """Runs a test on JAX, unless it is one that lowers in another way."""
    old = backend.backend() == "jax" and not hasattr(jax, "enable_x64")
    skip = pytest.mark.skipif(old, reason="is of newer versions of JAX")
    return pytest.mark.backends("jax")(skip(test))


@of_jax
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", STEPS)
def test_the_step_of_fit_is_lowered(name, policy):
    run, arguments = step(name, policy)
    program = lowered(run, *arguments)
    assert len(program) > 100_000
    assert_is_for_both(program)
    assert ("bf16" in program) == (policy == "mixed_bfloat16")
    # What is float32 under this policy is ours.
    ours = [x for x in products_in(program) if "bf16" not in x]
    assert len(ours) >= 8
    if policy == "mixed_bfloat16":
        assert all("HIGHEST, HIGHEST" in line for line in ours)


@of_jax
@pytest.mark.parametrize("name", [*FUNCTIONS, *RANDOM_LAYERS])
def test_the_function_is_lowered(name):
    program = lowered(*shapes(name))
    assert_is_for_both(program, EIGENPAIRS if name == "basis" else set())
    products = products_in(program)
    assert bool(products) == (name not in {*WITHOUT_PRODUCTS, "flow, sparse"})
    assert all("HIGHEST, HIGHEST" in line for line in products)


@of_jax
@pytest.mark.parametrize("name", ["warp", "flow", "recolouring", "basis"])
def test_no_array_is_float64_where_64_bits_are_on(name):
    with jax.enable_x64(True):
        program = lowered(*shapes(name))
    assert "tensor<f64>" in program  # numbers of Python
    assert not re.findall(r".*tensor<[\dx]+xf64>.*", program)


@pytest.mark.rare
@pytest.mark.backends("jax")
def test_the_compiler_for_tpus_takes_the_steps(capsys):
    pytest.importorskip("libtpu")
    compile_ahead.main(["--small", "--devices", "tpu"])
    printed = capsys.readouterr().out
    for name in compile_ahead.STEPS:
        assert f"| TPU v5 lite | {name} | mixed_bfloat16 |" in printed


INPUTS = ("Placeholder", "NoOp")


def nodes_of(graph):
    """Returns the nodes of a graph and of the functions that it calls."""
    definition = graph.as_graph_def()
    called = [x for f in definition.library.function for x in f.node_def]
    return [x for x in (*definition.node, *called) if x.op not in INPUTS]


def has_kernel(node, device):
    """Returns whether an operation has a kernel on a device, for its dtypes."""
    from tensorflow.python.framework import kernels

    def fits(kernel):
        return all(
            {*(node.attr[x.name].list.type or [node.attr[x.name].type])}
            <= {*x.allowed_values.list.type}
            for x in kernel.constraint
        )

    found = kernels.get_registered_kernels_for_op(node.op).kernel
    return any(x.device_type == device and fits(x) for x in found)


def compiled(run, *arguments):
    """Returns the operations of a function on TensorFlow, and its HLO.

    Fails if XLA for CPUs or GPUs has no kernel for an operation and its dtypes.
    """
    program = tf.function(run, jit_compile=True)
    nodes = nodes_of(program.get_concrete_function(*arguments).graph)
    hlo = program.experimental_get_compiler_ir(*arguments)(stage="hlo")
    for device in ("XLA_CPU_JIT", "XLA_GPU_JIT"):  # `hlo` has registered them
        assert {x.op for x in nodes if not has_kernel(x, device)} == set()
    dtypes = [y for x in nodes for a in x.attr.values() for y in (a.type, *a.list.type)]
    assert tf.float64.as_datatype_enum not in dtypes and "f64[" not in hlo
    assert "<=" not in hlo  # as the bound of a dynamic shape
    return nodes, hlo


@pytest.mark.fused
@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize(
    "name, policy",
    [
        *((name, "mixed_bfloat16") for name in STEPS),
        *((name, "float32") for name in ("fresh", "reused")),
    ],
)
def test_xla_knows_every_operation_of_the_step(name, policy):
    run, data = step(name, policy)
    nodes, hlo = compiled(run, *data)
    assert len(nodes) > 1000 and "custom-call" not in hlo
    assert ("bf16[" in hlo) == (policy == "mixed_bfloat16")
    # With float32 other tests train.
    if name in ("fresh", "reused") and policy == "mixed_bfloat16":
        logs = tf.function(run, jit_compile=True)(*data)
        assert np.isfinite([float(value) for value in logs.values()]).all()


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize(
    "name",
    [
        *sorted({*FUNCTIONS} - {"basis", "points", "flow, sparse"}),
        pytest.param("basis", marks=pytest.mark.rare),
    ],
)
def test_xla_knows_every_operation_of_the_function(name):
    run, *given = function(name)
    given = [tf.zeros(shape, dtype) for dtype, *shape in given]
    _, hlo = compiled(lambda *arguments: run(*arguments), *given)
    products = bool(re.search(r"\b(dot|convolution)\(", hlo))
    assert products == (name not in WITHOUT_PRODUCTS)


@pytest.mark.backends("tensorflow")
def test_xla_does_not_know_the_sparse_product():
    run, *given = FUNCTIONS["flow, sparse"]
    given = [tf.zeros(shape, dtype) for dtype, *shape in given]
    graph = tf.function(lambda *x: run(*x)).get_concrete_function(*given).graph
    assert not all(has_kernel(x, "XLA_GPU_JIT") for x in nodes_of(graph))
