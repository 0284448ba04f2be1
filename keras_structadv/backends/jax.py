"""The methods of `Framework` on JAX.

On JAX a train step takes and returns its state: the values of the trainable, the
non-trainable, the optimizer's and the metrics' variables.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.backends.base import AugmentedStep, Framework
from keras_structadv.backends.keras_state import forced_train_function, one_more_state
from keras_structadv.backends.train_step import (
    check_calls,
    inputs_of,
    of_each_image,
    replaced,
)


class JAX(Framework):
    """Keras on JAX."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        import jax

        return jax.grad(objective, has_aux=True)(images)

    def train_function(self, model: keras.Model, step: AugmentedStep) -> Callable:
        plain = model.train_step
        ours: list[keras.Variable] = []
        prepared = False

        def train_step(state: Any, data: Any) -> tuple[Any, Any]:
            *state, values = state
            run = _StatefulStep(plain, state)
            theirs = (*model.trainable_variables, *model.non_trainable_variables)
            known = zip(theirs, itertools.chain(*state[:2]))
            with keras.StatelessScope([*known, *zip(ours, values)]) as scope:
                logs = step(run, data)
                values = [scope.get_current_value(variable) for variable in ours]
            return logs, (*run.state, values)

        with replaced(model, "train_step", train_step), one_more_state(model):
            compiled = forced_train_function(model)

        def train_function(state: tuple, batches: Iterator) -> tuple[Any, tuple]:
            nonlocal ours, prepared
            try:
                if not prepared:
                    first = next(batches)
                    step.prepare(first)
                    batches = itertools.chain([first], batches)
                    ours, prepared = list(step.variables), True
                values = [variable.value for variable in ours]
                logs, (*after, values) = compiled((*state, values), batches)
            except BaseException:
                _give_back(model, state)
                raise
            for variable, value in zip(ours, values):
                variable.assign(value)
            return logs, tuple(after)

        return train_function

    def step_with_gradients(
        self,
        model: keras.Model,
        train_step: Any,  # a `_StatefulStep`
        pack: Callable[[Any], Any],
        images: Any,
    ) -> tuple[Any, Any]:
        # The step gets the images as one more weight. They are taken out again where
        # the model is called and where the optimizer gets the gradients.
        data = pack(images)
        given = inputs_of(data)
        compute, optimizer = model.compute_loss_and_updates, model.optimizer
        apply, found, places = optimizer.stateless_apply, [], []

        def compute_at(
            weights: Any, state: Any, metrics: Any, x: Any, *args: Any, **kwargs: Any
        ) -> Any:
            *weights, at = weights
            new = inputs_of(pack(at))
            same = [a is b for a, b in zip(keras.tree.flatten(x), given)]
            places.append(len(same) == len(given) and all(same))
            x = keras.tree.pack_sequence_as(x, new) if places[-1] else x
            return compute(weights, state, metrics, x, *args, **kwargs)

        def apply_without(state: Any, gradients: Any, weights: Any) -> Any:
            found.append(gradients[-1])
            return apply(state, gradients[:-1], weights[:-1])

        mapping = zip(optimizer.variables, train_step.state[2])
        with keras.StatelessScope(mapping):
            scale = optimizer.scale_loss(1.0)
        train_step.state[0] = [*train_step.state[0], images]
        with (
            replaced(model, "compute_loss_and_updates", compute_at),
            replaced(optimizer, "stateless_apply", apply_without),
        ):
            try:
                logs = train_step(data)
            except Exception:
                if not places:  # another function met the extra weight
                    check_calls(model, "compute_loss_and_updates", 0)
                raise
        check_calls(model, "compute_loss_and_updates", len(places))
        check_calls(model, "optimizer.stateless_apply", len(found))
        if not places[0]:
            raise ValueError(
                f"The train step of model {model.name!r} changes the images before it "
                "calls `compute_loss_and_updates`; reused gradients need them "
                'unchanged. Change them inside the model, or pass gradient="fresh".'
            )
        return logs, of_each_image(found[0], scale, images.shape[0])

    def bits(self, x: Any) -> Any:
        import jax

        return jax.lax.bitcast_convert_type(x, "int32")

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        return table.value[rows]

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        table.assign(table.value.at[rows].set(values))  # in place where compiled

    def sparse_matrix(
        self, indices: np.ndarray, values: np.ndarray, shape: tuple[int, int]
    ) -> Any:
        from jax.experimental import sparse

        return sparse.BCOO((values, indices), shape=shape)

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        import jax

        # A compiled train step is one XLA program already.
        return jax.jit(function) if in_eager else function

    def kept(self, function: Callable, constants: tuple[str, ...]) -> Callable:
        import jax

        # Outside a program each call would compile the loops anew.
        return jax.jit(function, static_argnames=constants)

    def program(self, function: Callable, model: keras.Model) -> Callable:
        import jax

        @jax.jit
        def compiled(values: list, *arrays: Any) -> Any:
            return function([*zip(model.variables, values)], *arrays)

        return lambda *arrays: compiled([v.value for v in model.variables], *arrays)

    def visible(self, x: Any) -> np.ndarray | None:
        import jax

        return None if isinstance(x, jax.core.Tracer) else ops.convert_to_numpy(x)

    def full_precision(self) -> contextlib.AbstractContextManager:
        import jax

        return jax.default_matmul_precision("highest")


class _StatefulStep:
    """Makes a train step of JAX a function of the data alone; it keeps the state."""

    def __init__(self, step: Callable[[Any, Any], tuple[Any, Any]], state: list):
        self._step = step
        self.state = list(state)

    def __call__(self, data: Any) -> Any:
        logs, state = self._step(tuple(self.state), data)
        self.state = list(state)
        return logs


def _give_back(model: keras.Model, state: tuple) -> None:
    """Puts the state that `fit` took out of a model back into it.

    After an error in the first step `fit` does not do so.
    """
    owners = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    for variable, value in zip(itertools.chain(*owners), itertools.chain(*state)):
        if not value.is_deleted():
            variable.assign(value)
