"""All uses of Keras beyond its public API. Each function gives its reason.

`tests/test_keras_state.py` says with which versions of Keras each was tried.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import backend, ops

from keras_structadv.backends.train_step import replaced


@functools.cache
def check_keras() -> None:
    """Raises a `RuntimeError` if Keras lacks what layers and callbacks need."""
    nnx = getattr(keras.config, "is_nnx_enabled", None)  # since Keras 3.11
    if backend.backend() == "jax" and nnx is not None and nnx():
        raise RuntimeError(
            "Keras keeps its variables in Flax NNX, with which keras_structadv does "
            "not work. Start with KERAS_NNX_ENABLED=false."
        )
    try:
        is_inside_model()
        infers_shapes()
        is_built(_asker())
    except Exception as error:
        raise _changed(str(error)) from error


def _changed(what: str) -> RuntimeError:
    return RuntimeError(
        f"Keras {keras.__version__} has changed what keras_structadv needs ({what}). "
        "Install a version that it was tried with: keras>=3.10,<3.16."
    )


def keras_version() -> tuple[int, ...]:
    """Returns the version of Keras, such as (3, 15, 1); some behave differently."""
    return tuple(int(part) for part in re.findall(r"\d+", keras.__version__)[:3])


def is_inside_model() -> bool:
    """Returns whether a model, not the user, calls the layer that asks from its `call`.

    Only Keras' call context knows the outermost layer of a call. Other layers than
    models (`Pipeline`, KerasCV's) are called to augment. A `stateless_call` opens no
    such context; its variable scope tells.
    """
    asker = _asker()
    entry = asker._get_call_context().entry_layer  # opens a context where none is
    asker._maybe_reset_call_context()  # and closes it again, if it is its own
    return isinstance(entry, keras.Model) or _stateless_scope() is not None


@functools.cache
def _asker() -> keras.layers.Layer:
    return keras.layers.Layer(name="asks_for_the_call_context")


def infers_shapes() -> bool:
    """Returns whether Keras runs a call only to infer output shapes.

    It does so for composite layers without `compute_output_shape`. No public function
    returns the scope; a new scope knows the one around it.
    """
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def current_values(variables: list[keras.Variable]) -> list[tuple]:
    """Returns variables with their values in the current stateless scope.

    In a train step on JAX or a `stateless_call` the scope holds the weights, and the
    variables do not. No public function returns the scope.

    Args:
        variables: the variables of a model.

    Returns:
        `(variable, value)` for each variable in the scope; empty without a scope. No
        gradient flows to the values.

    Raises:
        ValueError: during `fit` on JAX, which takes the weights out of the model.
    """
    outer = _stateless_scope()
    if outer is None:
        for variable in variables[:1]:
            _check_is_there(variable)
        return []
    values = [(variable, outer.get_current_value(variable)) for variable in variables]
    return [(k, ops.stop_gradient(x)) for k, x in values if x is not None]


def _stateless_scope() -> keras.StatelessScope | None:
    with keras.StatelessScope(initialize_variables=False) as scope:
        return scope.original_scope


def _check_is_there(variable: keras.Variable) -> None:
    """Raises a `ValueError` if `fit` on JAX has taken a variable out of its model."""
    try:
        variable.value  # noqa: B018
    except TypeError as error:
        raise ValueError(
            f"The weight {variable.path!r} has no value now: on the "
            f"{backend.backend()} backend `fit` keeps the weights of a model elsewhere "
            "while it trains. Let AdversarialTraining(layer) call the layer, or call "
            "it before or after `fit`."
        ) from error


def compiled_loss_weights(model: keras.Model) -> Any:
    """Returns the `loss_weights` of a compiled model, `None` without any.

    Keras keeps them in a private attribute. The public `get_compile_config` fails where
    a loss or a metric has no config; it serves where there is no such attribute.
    """
    try:
        config = model._compile_config.config
    except AttributeError:
        config = model.get_compile_config()
    return (config or {}).get("loss_weights")


@contextlib.contextmanager
def one_more_state(model: keras.Model) -> Iterator[None]:
    """Adds a fifth entry to the state of a model's train step on JAX.

    With a distribution, Keras since 3.12 compiles the step with the layouts of its four
    entries, which a private method returns. JAX chooses the layout of the fifth.

    Raises:
        RuntimeError: with a distribution, if a newer Keras has no such method.
    """
    name = "_get_state_sharding_spec"
    spec = getattr(model, name, None)
    if keras.distribution.distribution() is None or keras_version() < (3, 12):
        yield
        return
    if spec is None:
        raise _changed(f"no `Model.{name}`")

    def sharding() -> tuple:
        return (*spec(), None)

    with replaced(model, name, sharding):
        yield


def forced_train_function(model: keras.Model) -> Callable:
    """Makes a new train function; the model keeps the one that it has.

    `make_train_function` returns nothing and writes to `model.train_function`.

    Raises:
        RuntimeError: if it wrote nothing there.
    """
    with replaced(model, "train_function", None):
        model.make_train_function(force=True)
        if model.train_function is None:
            raise _changed("`make_train_function` sets no `train_function`")
        return model.train_function


def is_built(model: keras.layers.Layer) -> bool:
    """Returns whether a model and all that is inside it have their variables.

    Keras has no public list of all layers, and `model.built` is true after
    `model.build` although the parts of a subclassed model are not.
    """
    return all(layer.built for layer in model._flatten_layers())


def has_replicas(model: keras.Model) -> bool:
    """Returns whether a model trains under a TensorFlow distribution strategy.

    Each replica sees a part of the batch; on JAX a step sees the whole batch. Every
    model on TensorFlow has a strategy; TensorFlow does not count its default.
    """
    if backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    with strategy_scope(model):
        return tf.distribute.has_strategy()


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """Returns the scope in which to make variables for a model's train step.

    Keras does not document the attribute, which only models on TensorFlow have.
    """
    if backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    return model.distribute_strategy.scope()
