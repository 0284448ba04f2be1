"""What the package uses of Keras beyond its public API, one test for each function.

All passed with the versions in `TRIED`, on TensorFlow and on JAX. To try another one:
`pip install keras==VERSION`, then `pytest tests/test_keras_state.py`.
"""

import ast
import contextlib
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import backend, layers, ops

import keras_structadv as ksa
from keras_structadv.backends import keras_state
from tests.models import Subclassed, numpy, small_model
from tests.oldest import oldest

TRIED = ("3.10.0", "3.11.3", "3.12.4", "3.13.2", "3.14.1", "3.15.1")
ROOT = pathlib.Path(__file__).parents[1]
IMAGES = np.zeros((2, 8, 8, 1), "float32")


@contextlib.contextmanager
def needs(what):
    """Says in plain words what Keras has changed."""
    try:
        yield
    except Exception as error:
        pytest.fail(
            f"Keras {keras.__version__} has changed {what}, which keras_state.py uses "
            f"(tried with {TRIED[0]} to {TRIED[-1]}): {error!r}"
        )


class Asking(layers.Layer):
    """Keeps the answers that it gets in its calls."""

    def __init__(self, ask, **kwargs):
        super().__init__(**kwargs)
        self.ask, self.answers = ask, []

    def call(self, x):
        self.answers.append(self.ask())
        return x + 0


class Composite(layers.Layer):
    """Calls another layer, as a pipeline of augmentation does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def test_is_inside_model():
    inner = Asking(keras_state.is_inside_model)
    with needs("`Layer._get_call_context` or `Layer._maybe_reset_call_context`"):
        assert not keras_state.is_inside_model()
        inner(IMAGES)
        Composite(inner)(IMAGES)
        assert inner.answers == [False, False]
        model = keras.Sequential([keras.Input((8, 8, 1)), Composite(inner)])
        inner.answers.clear()
        model(IMAGES)
        model.stateless_call([], [], IMAGES)
        assert inner.answers == [True, True]
        inner.answers.clear()
        inner(IMAGES)  # no context of another call is left
        assert inner.answers == [False]


def test_infers_shapes():
    inner = Asking(keras_state.infers_shapes)
    with needs("`SymbolicScope.original_scope`"):
        inner(IMAGES)
        assert inner.answers == [False]
        inner.answers.clear()
        inner(keras.Input((8, 8, 1)))  # JAX calls twice
        assert inner.answers and all(inner.answers)
        inner.answers.clear()
        inner(IMAGES)
        assert inner.answers == [False]


def test_current_values():
    one, other = keras.Variable(np.ones(2)), keras.Variable(np.ones(2))
    with needs("`StatelessScope.original_scope` or `get_current_value`"):
        assert keras_state.current_values([one, other]) == []
        with keras.StatelessScope([(one, ops.zeros(2))]):
            ((variable, value),) = keras_state.current_values([one, other])
        assert variable is one
        np.testing.assert_array_equal(numpy(value), [0, 0])


@pytest.mark.backends("jax")
def test_weights_that_fit_has_taken_out_of_the_model():
    model = small_model()

    class Asks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            keras_state.current_values(model.variables)

    with needs("how `fit` on JAX takes the weights out of a model"):
        with pytest.raises(ValueError, match="has no value now"):
            model.fit(IMAGES, np.zeros(2), verbose=0, callbacks=[Asks()])


def two_outputs(**arguments):
    x = keras.Input((4,))
    outputs = [layers.Dense(1)(x), layers.Dense(1)(x)]
    model = keras.Model(x, outputs)
    model.compile("sgd", ["mse", "mae"], **arguments)
    return model


def test_compiled_loss_weights():
    with needs("`Trainer._compile_config`"):
        assert keras_state.compiled_loss_weights(two_outputs()) is None
        assert keras_state.compiled_loss_weights(keras.Model()) is None
        metrics = [[lambda y, p: ops.mean(p)], []]
        model = two_outputs(loss_weights=[0.5, 2.0], metrics=metrics)
        assert list(keras_state.compiled_loss_weights(model)) == [0.5, 2.0]
        assert model._compile_config.config["loss_weights"] is not None


def test_compiled_loss_weights_without_the_private_attribute():
    model = two_outputs(loss_weights=[0.5, 2.0])
    public = model.get_compile_config()
    del model._compile_config
    model.get_compile_config = lambda: public
    assert keras_state.compiled_loss_weights(model) == [0.5, 2.0]


@pytest.mark.backends("jax")
def test_one_more_state(monkeypatch):
    new = keras_state.keras_version() >= (3, 12)
    distribution = keras.distribution.DataParallel(
        devices=keras.distribution.list_devices()[:1]
    )
    model = small_model()
    with keras_state.one_more_state(model):  # no distribution: nothing to do
        assert "_get_state_sharding_spec" not in vars(model)
    with distribution.scope():
        model = small_model()
        with needs("`JAXTrainer._get_state_sharding_spec`"):
            with keras_state.one_more_state(model):
                if new:
                    *four, fifth = model._get_state_sharding_spec()
                    assert len(four) == 4 and fifth is None
        x = np.zeros((2, 8, 8, 1))
        callback = ksa.AdversarialTraining(ksa.AdversarialFlow(), gradient="reuse")
        model.fit(x, np.zeros(2), verbose=0, callbacks=[callback])
        if new:  # a newer Keras without it
            owner = next(
                kind
                for kind in type(model).__mro__
                if "_get_state_sharding_spec" in vars(kind)
            )
            monkeypatch.delattr(owner, "_get_state_sharding_spec")
            with pytest.raises(RuntimeError, match="has changed.*_sharding_spec"):
                with keras_state.one_more_state(model):
                    pass


def test_forced_train_function():
    model = small_model()
    with needs("`make_train_function` or `model.train_function`"):
        model.make_train_function()
        own = model.train_function
        made = keras_state.forced_train_function(model)
        assert callable(made) and made is not own
        assert model.train_function is own


def test_a_train_function_that_is_kept_elsewhere():
    model = small_model()
    model.make_train_function = lambda force=False: None
    with pytest.raises(RuntimeError, match="has changed.*sets no `train_function`"):
        keras_state.forced_train_function(model)


def test_is_built():
    with needs("`Layer._flatten_layers`"):
        model = Subclassed()
        model.built = True  # as `model.build` leaves it
        assert not keras_state.is_built(model)
        model(IMAGES)
        assert keras_state.is_built(model)


def test_has_replicas_and_strategy_scope():
    model = small_model()
    with needs("`TensorFlowTrainer.distribute_strategy`"):
        assert not keras_state.has_replicas(model)
        with keras_state.strategy_scope(model):
            pass
        if backend.backend() != "tensorflow":
            return
        import tensorflow as tf

        strategy = tf.distribute.MirroredStrategy(["CPU:0"])
        with strategy.scope():
            model = small_model()
        assert keras_state.has_replicas(model)
        assert not tf.distribute.has_strategy()
        with keras_state.strategy_scope(model):
            assert tf.distribute.get_strategy() is strategy


@pytest.mark.parametrize(
    "name", ["_get_call_context", "_maybe_reset_call_context", "_flatten_layers"]
)
def test_another_keras_is_refused_where_something_is_made(name, monkeypatch):
    flow, model = ksa.AdversarialFlow(), small_model()
    monkeypatch.delattr(layers.Layer, name)
    keras_state.check_keras.cache_clear()
    for make in (
        ksa.AdversarialFlow,
        ksa.RandomRecoloring,
        lambda: ksa.AdversarialTraining(flow),
        lambda: ksa.per_image_gradients(model, IMAGES, np.zeros(2)),
    ):
        with pytest.raises(RuntimeError, match=rf"Keras \S+ has changed.*{name}"):
            make()


def test_variables_of_nnx_are_refused_on_jax(monkeypatch):
    flow, model = ksa.AdversarialFlow(), small_model()
    monkeypatch.setattr(keras.config, "is_nnx_enabled", lambda: True, raising=False)
    keras_state.check_keras.cache_clear()
    if backend.backend() != "jax":
        assert ksa.RandomFlow()(IMAGES, training=True).shape == IMAGES.shape
        return
    for make in (
        ksa.RandomFlow,
        lambda: ksa.AdversarialTraining(flow),
        lambda: ksa.per_image_gradients(model, IMAGES, np.zeros(2)),
        lambda: ksa.evaluate_robustness(model, IMAGES, np.zeros(2), strengths=(1,)),
    ):
        with pytest.raises(RuntimeError, match="in Flax NNX.*KERAS_NNX_ENABLED=false"):
            make()


def test_keras_version(monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.16.0.dev20261101")
    assert keras_state.keras_version() == (3, 16, 0) > (3, 11, 3)


def test_the_message_names_the_versions_that_were_tried():
    with pytest.raises(RuntimeError) as raised:
        raise keras_state._changed("something")
    first, last = (".".join(v.split(".")[:2]) for v in (TRIED[0], TRIED[-1]))
    major, minor = last.split(".")
    assert f"keras>={first},<{major}.{int(minor) + 1}." in str(raised.value)
    assert oldest()["keras"] == first


def test_each_function_has_a_test():
    tests = " ".join(name for name in globals() if name.startswith("test_"))
    for name, value in vars(keras_state).items():
        if getattr(value, "__module__", "") == keras_state.__name__:
            assert name.startswith("_") or name == "check_keras" or name in tests


def test_nothing_private_is_used_elsewhere():
    """Private attributes of others are read in `keras_state.py` only."""
    sources = {
        path: ast.parse(path.read_text())
        for folder in ("keras_structadv", "experiments")
        for path in (ROOT / folder).rglob("*.py")
    }
    nodes = [(path, node) for path, tree in sources.items() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, DEFINES)} | OURS
    own |= {
        node.attr
        for _, node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    own |= {
        node.target.id
        for _, node in nodes
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
        for path, node in nodes
        for name in names_in(node)
        if (is_private(name) and name not in own) or name.startswith(FOREIGN)
    ]
    there = [line for line in found if "backends/keras_state.py" in line]
    assert set(found) == set(there)
    assert len(there) >= 5  # the search finds those that are known


DEFINES = (ast.FunctionDef, ast.ClassDef)
# Documented (named tuples, `os._exit`), and one that the package sets by `setattr`.
OURS = {"_replace", "_asdict", "_fields", "_exit", "_kept_adversarial_steps"}
FOREIGN = ("keras.src", "tensorflow.python", "jax._src", "jax.interpreters", "torch._")


def names_in(node):
    """Returns what a node reads of others: attributes, modules, names in strings."""
    if isinstance(node, ast.Attribute):
        return [node.attr, ast.unparse(node)]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
        return [str(getattr(node.args[1], "value", ""))]
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
        return [node.value.value] if isinstance(node.value.value, str) else []
    return []


def is_private(name):
    return re.fullmatch(r"_[a-z]\w*", name) is not None
