"""What we need of Keras beyond its public API. Each function gives the reason."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import backend, ops

from keras_structadv.backends.train_step import replaced


def is_nested_call(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer's `call`, which asks, runs inside another layer's call.

    Only Keras' private call context knows the layer at which a call began. The scope of
    variables of a `stateless_call`, which begins no context, tells the same.
    """
    asker = _asker()
    entry = asker._get_call_context().entry_layer
    if entry is asker:  # no layer is being called, but `call` itself
        asker._maybe_reset_call_context()
        entry = layer
    return entry is not layer or _stateless_scope() is not None


@functools.cache
def _asker() -> keras.layers.Layer:
    """Returns a layer whose only use is to ask for the call context.

    Asking begins a context where there is none; the layer that asked must end it.
    """
    return keras.layers.Layer(name="asks_for_the_call_context")


def infers_shapes() -> bool:
    """Returns whether Keras runs a call only to learn the shapes of its outputs.

    It does so for layers made of others that do not tell their output shape. Nothing
    public tells; a new scope knows the scope around it.
    """
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def current_values(variables: list[keras.Variable]) -> list[tuple]:
    """Returns variables with the values that they have in a stateless scope around.

    Inside such a scope (a train step on JAX, `stateless_call`) the weights are in the
    scope, not in the variables, and nothing public returns the scope.

    Args:
        variables: the variables of a model.

    Returns:
        `(variable, value)` for each variable that the scope knows; empty without a
        scope. No gradient flows to the values.

    Raises:
        ValueError: if JAX has taken the variables out of the model in `fit`.
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
    """Raises an error for a variable that JAX has taken out of a model in `fit`."""
    try:
        variable.value  # noqa: B018
    except TypeError as error:
        raise ValueError(
            f"The weight {variable.path!r} is not there: on the "
            f"{backend.backend()} backend `fit` keeps the weights of a model elsewhere "
            "while it is trained. Let AdversarialTraining(layer) call the layer, or "
            "call it before or after `fit`."
        ) from error


def compiled_loss_weights(model: keras.Model) -> Any:
    """Returns the `loss_weights` that a model was compiled with, `None` without any.

    Keras keeps them in private attributes only. The public `get_compile_config` fails
    where a loss or metric has no config.
    """
    config = getattr(getattr(model, "_compile_config", None), "config", None)
    return (config or {}).get("loss_weights")


@contextlib.contextmanager
def one_more_state(model: keras.Model) -> Iterator[None]:
    """Lets the train step of a model on JAX carry one entry more in its state.

    With a distribution, Keras compiles the step with the layout of its four states. It
    asks this private method for it; the layout of the fifth is left to JAX.
    """
    name = "_get_state_sharding_spec"
    spec = getattr(model, name, None)
    if spec is None or keras.distribution.distribution() is None:
        yield
        return

    def sharding() -> tuple:
        return (*spec(), None)

    with replaced(model, name, sharding):
        yield


def forced_train_function(model: keras.Model) -> Callable:
    """Returns a new train function of a model, which keeps the one that it has.

    `make_train_function` only writes to the attribute `train_function`.
    """
    with replaced(model, "train_function", None):
        model.make_train_function(force=True)
        return model.train_function


def has_replicas(model: keras.Model) -> bool:
    """Returns whether a model is trained under a distribution strategy of TensorFlow.

    Its replicas each see a part of a batch. JAX shows a distributed array as a whole.
    Every model on TensorFlow has a strategy; the name of its class tells the default.
    """
    strategy = getattr(model, "distribute_strategy", None)
    default = "_DefaultDistributionStrategy"
    return strategy is not None and type(strategy).__name__ != default


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """Returns the scope in which variables for the train step of a model are made.

    Only models on TensorFlow have the attribute, which Keras does not document.
    """
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()
