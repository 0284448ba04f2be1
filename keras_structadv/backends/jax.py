"""The methods for JAX; see `Framework` for what each has to do.

A train step of Keras on JAX takes and returns all that changes, its state: the values
of the trainable, the other, the optimizer's and the metrics' variables.
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
    """The methods for JAX, whose train steps take and return all that changes."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        import jax

        return jax.grad(objective, has_aux=True)(images)

    def train_function(self, model: keras.Model, step: AugmentedStep) -> Callable:
        plain = model.train_step
        ours: list[keras.Variable] | None = None

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
            nonlocal ours
            try:
                if ours is None:
                    first = next(batches)
                    step.prepare(first)
                    batches = itertools.chain([first], batches)
                    ours = list(step.variables)
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
        train_step: "_StatefulStep",
        pack: Callable[[Any], Any],
        images: Any,
    ) -> tuple[Any, Any]:
        # The images are handed to the step as one more weight, and taken out again
        # where the model is called and where the optimizer gets the gradients.
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
                if not places:  # it met a weight too many on another way
                    check_calls(model, "compute_loss_and_updates", 0)
                raise
        check_calls(model, "compute_loss_and_updates", len(places))
        check_calls(model, "optimizer.stateless_apply", len(found))
        if not places[0]:
            raise ValueError(
                f"The train step of model {model.name!r} changes the images before it "
                "calls `compute_loss_and_updates`. Their gradients can be reused only "
                "where it gets them as they are: change them in the model, or pass "
                'gradient="fresh".'
            )
        return logs, of_each_image(found[0], scale, images)

    def bits(self, x: Any) -> Any:
        import jax

        return jax.lax.bitcast_convert_type(x, "int32")

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        return table.value[rows]

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        table.assign(table.value.at[rows].set(values))  # in place, once compiled

    def sparse_matrix(
        self, indices: np.ndarray, values: np.ndarray, shape: tuple[int, int]
    ) -> Any:
        from jax.experimental import sparse

        return sparse.BCOO((values, indices), shape=shape)

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        import jax

        # A train step is one program of XLA already.
        return jax.jit(function) if in_eager else function

    def kept(self, function: Callable, constants: tuple[str, ...]) -> Callable:
        import jax

        # A loop would be compiled in each call outside a program.
        return jax.jit(function, static_argnames=constants)

    def visible(self, x: Any) -> np.ndarray | None:
        import jax

        return None if isinstance(x, jax.core.Tracer) else ops.convert_to_numpy(x)

    def full_precision(self) -> contextlib.AbstractContextManager:
        import jax

        return jax.default_matmul_precision("highest")


class _StatefulStep:
    """A train step of JAX as a function of the data, which keeps the state itself."""

    def __init__(self, step: Callable[[Any, Any], tuple[Any, Any]], state: list):
        self._step = step
        self.state = list(state)

    def __call__(self, data: Any) -> Any:
        logs, state = self._step(tuple(self.state), data)
        self.state = list(state)
        return logs


def _give_back(model: keras.Model, state: tuple) -> None:
    """Puts a state that `fit` has taken out of a model back into it.

    After an error in its first step `fit` does not do so itself.
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
