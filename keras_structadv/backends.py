"""What differs between TensorFlow, JAX and PyTorch.

The only module that imports one of them, but for the sparse forms in `operators`. A
backend is a `Framework`; `framework()` is the one in use.
"""

import contextlib
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import backend, ops


class Framework:
    """What each of them has to do."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        """Returns the gradient of an objective by the images.

        Args:
            objective: from images to `(scalar, extra)`.
            images: float32, (batch, ...).

        Returns:
            `(gradients, extra)`; the gradients are `None`, or zero, where the scalar
            does not depend on the images.

        Raises:
            NotImplementedError: on a backend without gradients.
        """
        raise NotImplementedError(
            f"Gradients are not available on the {backend.backend()} backend. Set "
            'KERAS_BACKEND to "tensorflow", "jax" or "torch".'
        )

    def train_function(
        self,
        model: keras.Model,
        augmented: Callable[[Callable[[Any], Any]], Callable[[Any], Any]],
        variables: Callable[[], list[keras.Variable]],
        look_at: Callable[[Any], None],
    ) -> Callable:
        """Returns the compiled train function of a model, with an augmented step.

        The model keeps its own step and function.

        Args:
            model: a compiled model.
            augmented: from the train step, a function of the data, to one that may also
                read and write `variables`.
            variables: returns those variables, which are not the model's.
            look_at: to be called with the data of the first batch before the step is
                traced, where the step itself cannot make variables.

        Returns:
            A function that `fit` can call as its train function.
        """
        with replaced(model, "train_step", augmented(model.train_step)):
            model.make_train_function(force=True)
        return model.train_function

    def step_with_gradients(
        self,
        model: keras.Model,
        train_step: Callable[[Any], Any],
        pack: Callable[[Any], Any],
        images: Any,
    ) -> tuple[Any, Any]:
        """Runs a train step, and returns its gradient by the images as well.

        It is that of the loss of the batch, with its sample weights, times the number
        of images: that of each image, if the loss is a mean over the batch.

        Args:
            model: the model whose step it is.
            train_step: the step, a function of the data, as `train_function` gives it.
            pack: from images to data.
            images: float, (batch, ...).

        Returns:
            `(logs, gradients)`: what the step returned; float32, the shape of the
            images, or `None` where the loss does not depend on them.

        Raises:
            ValueError: if the step does not compute its loss as Keras' own step does.
        """
        raise NotImplementedError

    def bits(self, x: Any) -> Any:
        """Returns the bits of a float32 array as int32, in its shape."""
        raise NotImplementedError

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        """Returns rows of a table, without copying the table.

        Args:
            table: (size, ...).
            rows: int32, (count,).

        Returns:
            (count, ...), of the dtype of the table.
        """
        raise NotImplementedError

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        """Writes rows of a table in place, without copying the table.

        Args:
            table: (size, ...).
            rows: int32, (count,); where two are equal, either value is written.
            values: (count, ...), of the dtype of the table.
        """
        raise NotImplementedError

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        """Returns a function of arrays as one kernel, also in a step of many.

        The many small operations on a batch of images around a solve take two to three
        times as long one by one. In eager execution they stay so, for debugging.

        Args:
            function: from arrays to arrays.
            in_eager: whether to compile it also where every operation runs by itself.

        Returns:
            The compiled function, or `function` itself where that is not wanted.
        """
        raise NotImplementedError

    def apart(self, function: Callable) -> Callable:
        """Returns a function that a compiler leaves alone, if it cannot take it."""
        return function

    def kept(self, function: Callable, constants: tuple[str, ...]) -> Callable:
        """Returns a function whose program is kept, where calls would compile anew.

        Args:
            function: from arrays and constants to arrays.
            constants: the names of the arguments that are no arrays.
        """
        return function

    def visible(self, x: Any) -> np.ndarray | None:
        """Returns an array as one of NumPy, `None` while a program is traced."""
        raise NotImplementedError

    def full_precision(self) -> contextlib.AbstractContextManager:
        """Returns the scope in which matrix products of float32 are not shortened."""
        return contextlib.nullcontext()

    def is_single_batch(self, batches: Any) -> bool:
        """Returns whether a train function was called by `train_on_batch`, if known."""
        return False

    def is_nested_call(self, layer: keras.layers.Layer) -> bool:
        """Returns whether a layer's `call`, from which this is asked, is in another."""
        # A `stateless_call` calls what is in the layer as if it were by itself.
        nested = layer._get_call_context().entry_layer is not layer
        return nested or _stateless_scope() is not None


class TensorFlow(Framework):
    """The methods for TensorFlow."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        """See `Framework`."""
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            value, extra = objective(images)
        return tape.gradient(value, images), extra

    def step_with_gradients(
        self,
        model: keras.Model,
        train_step: Callable[[Any], Any],
        pack: Callable[[Any], Any],
        images: Any,
    ) -> tuple[Any, Any]:
        """See `Framework`."""
        import tensorflow as tf

        # The tape here lies around that of the step. Its backward pass is the one that
        # the step makes for the weights, but for the first layer; graph compilers merge
        # the two.
        losses = []
        compute_loss = model.compute_loss

        def recording(*args: Any, **kwargs: Any) -> Any:
            losses.append(compute_loss(*args, **kwargs))
            return losses[-1]

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            with replaced(model, "compute_loss", recording):
                logs = train_step(pack(images))
            _check_calls(model, "compute_loss", len(losses))
            # As the step does it, so that float16 does not lose small gradients, and
            # that the two backward passes are the same.
            loss = model.optimizer.scale_loss(losses[0])
        gradients = tape.gradient(loss, images)
        return logs, _of_each_image(gradients, model.optimizer.scale_loss(1.0), images)

    def bits(self, x: Any) -> Any:
        """See `Framework`."""
        import tensorflow as tf

        return tf.bitcast(x, tf.int32)

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        """See `Framework`."""
        return table.value.sparse_read(rows)

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        """See `Framework`."""
        import tensorflow as tf

        table.value.scatter_update(tf.IndexedSlices(values, rows))

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        """See `Framework`."""
        if sys.platform == "darwin":  # Metal devices do not have XLA
            return function
        import tensorflow as tf

        compiled = tf.function(function, jit_compile=True, autograph=False)

        def call(*arguments: Any) -> Any:
            plain = tf.executing_eagerly() and not in_eager
            return (function if plain else compiled)(*arguments)

        return call

    def visible(self, x: Any) -> np.ndarray | None:
        """See `Framework`."""
        import tensorflow as tf

        return ops.convert_to_numpy(x) if tf.executing_eagerly() else None

    def is_single_batch(self, batches: Any) -> bool:
        """See `Framework`. `fit` gives an iterator of `tf.data`."""
        return inspect.isgenerator(batches)

    def is_nested_call(self, layer: keras.layers.Layer) -> bool:
        """See `Framework`."""
        import tensorflow as tf

        return "/" in tf.get_current_name_scope()  # of which each layer has one


class JAX(Framework):
    """The methods for JAX, whose train steps take and return all that changes."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        """See `Framework`."""
        import jax

        return jax.grad(objective, has_aux=True)(images)

    def train_function(
        self,
        model: keras.Model,
        augmented: Callable[[Callable[[Any], Any]], Callable[[Any], Any]],
        variables: Callable[[], list[keras.Variable]],
        look_at: Callable[[Any], None],
    ) -> Callable:
        """See `Framework`."""
        plain = model.train_step
        ours = None

        def step(state: Any, data: Any) -> tuple[Any, Any]:
            *state, values = state
            run = _StatefulStep(plain, state)
            theirs = (*model.trainable_variables, *model.non_trainable_variables)
            known = zip(theirs, itertools.chain(*state[:2]))
            with keras.StatelessScope([*known, *zip(ours, values)]) as scope:
                logs = augmented(run)(data)
                values = [scope.get_current_value(variable) for variable in ours]
            return logs, (*run.state, values)

        def sharding() -> tuple:
            return (*spec(), None)

        # With a distribution, the step is compiled with the layout of its state, to
        # which ours is added.
        name = "_get_state_sharding_spec"
        spec = getattr(model, name, None)
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced(model, "train_step", step))
            if spec is not None and keras.distribution.distribution() is not None:
                stack.enter_context(replaced(model, name, sharding))
            model.make_train_function(force=True)
        compiled = model.train_function

        def train_function(state: tuple, batches: Iterator) -> tuple[Any, tuple]:
            nonlocal ours
            try:
                if ours is None:
                    first = next(batches)
                    look_at(first)
                    batches = itertools.chain([first], batches)
                    ours = variables()
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
        """See `Framework`."""
        # The images are handed to the step as one more weight, and taken out again
        # where the model is called and where the optimizer gets the gradients.
        data = pack(images)
        given = _inputs(data)
        compute, optimizer = model.compute_loss_and_updates, model.optimizer
        apply, found, places = optimizer.stateless_apply, [], []

        def compute_at(weights: Any, state: Any, metrics: Any, x: Any, *args, **kwargs):
            *weights, at = weights
            new = _inputs(pack(at))
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
                    _check_calls(model, "compute_loss_and_updates", 0)
                raise
        _check_calls(model, "compute_loss_and_updates", len(places))
        _check_calls(model, "optimizer.stateless_apply", len(found))
        if not places[0]:
            raise ValueError(
                f"The train step of model {model.name!r} changes the images before it "
                "calls `compute_loss_and_updates`. Their gradients can be reused only "
                "where it gets them as they are: change them in the model, or pass "
                'gradient="fresh".'
            )
        return logs, _of_each_image(found[0], scale, images)

    def bits(self, x: Any) -> Any:
        """See `Framework`."""
        import jax

        return jax.lax.bitcast_convert_type(x, "int32")

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        """See `Framework`."""
        return table.value[rows]

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        """See `Framework`."""
        table.assign(table.value.at[rows].set(values))  # in place, once compiled

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        """See `Framework`. A train step is one program of XLA already."""
        import jax

        return jax.jit(function) if in_eager else function

    def kept(self, function: Callable, constants: tuple[str, ...]) -> Callable:
        """See `Framework`. A loop would be compiled in each call outside a program."""
        import jax

        return jax.jit(function, static_argnames=constants)

    def visible(self, x: Any) -> np.ndarray | None:
        """See `Framework`."""
        import jax

        return None if isinstance(x, jax.core.Tracer) else ops.convert_to_numpy(x)

    def full_precision(self) -> contextlib.AbstractContextManager:
        """See `Framework`."""
        import jax

        return jax.default_matmul_precision("highest")


class PyTorch(Framework):
    """The methods for PyTorch."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        """See `Framework`."""
        import torch

        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            value, extra = objective(images)
            if not value.requires_grad:
                return None, extra
            (gradients,) = torch.autograd.grad(value, images, allow_unused=True)
        return gradients, extra

    def train_function(
        self,
        model: keras.Model,
        augmented: Callable[[Callable[[Any], Any]], Callable[[Any], Any]],
        variables: Callable[[], list[keras.Variable]],
        look_at: Callable[[Any], None],
    ) -> Callable:
        """See `Framework`."""
        # Where it is compiled, it is the plain step that is.
        model.make_train_function(force=True)
        plain = model.train_function
        step = augmented(lambda data: plain([data]))
        return lambda batches: step(batches[0])

    def step_with_gradients(
        self,
        model: keras.Model,
        train_step: Callable[[Any], Any],
        pack: Callable[[Any], Any],
        images: Any,
    ) -> tuple[Any, Any]:
        """See `Framework`."""
        images = images.detach().requires_grad_(True)
        for variable in model.trainable_variables:
            variable.value.grad = None
        scale = model.optimizer.scale_loss(1.0)
        # Not the compiled step: PyTorch's compiler fails where an input has a gradient.
        logs = model.train_step(pack(images))
        weights = model.trainable_variables
        if images.grad is None and all(x.value.grad is None for x in weights):
            _check_calls(model, "loss.backward", 0)
        return logs, _of_each_image(images.grad, scale, images)

    def bits(self, x: Any) -> Any:
        """See `Framework`."""
        import torch

        return x.view(torch.int32)

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        """See `Framework`."""
        return table.value.detach()[rows]

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        """See `Framework`."""
        table.value.detach()[rows] = values.detach()

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        """See `Framework`. Nothing is compiled, as Keras does by default."""
        return function

    def apart(self, function: Callable) -> Callable:
        """See `Framework`. Layers made within a step confuse PyTorch's compiler."""
        import torch

        return torch.compiler.disable(function)

    def visible(self, x: Any) -> np.ndarray | None:
        """See `Framework`."""
        return ops.convert_to_numpy(x)


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


@functools.cache
def framework() -> Framework:
    """Returns the methods for the backend of Keras."""
    known = {"tensorflow": TensorFlow, "jax": JAX, "torch": PyTorch}
    return known.get(backend.backend(), Framework)()


def fused(function: Callable, in_eager: bool = False) -> Callable:
    """See `Framework.fused`."""
    return framework().fused(function, in_eager)


def kept_program(*constants: str) -> Callable[[Callable], Callable]:
    """Returns a decorator for functions of arrays; see `Framework.kept`."""
    return lambda function: framework().kept(function, constants)


def full_precision(function: Callable) -> Callable:
    """Returns a function whose matrix products are of float32, not shortened.

    Accelerators may compute them in TF32 or bfloat16, to three digits. TensorFlow has
    no switch for single products; PyTorch shortens them only where it is told to.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with framework().full_precision():
            return function(*args, **kwargs)

    return call


def largest(
    x: Any, axis: int | tuple[int, ...], keepdims: bool = False, least: float = 0.0
) -> Any:
    """Returns the maximum along axes that are not empty, also of no images at all.

    Args:
        x: an array, whose other axes may be empty.
        axis: along which axes.
        keepdims: whether they stay, with length one.
        least: no value is below it.
    """
    if backend.backend() == "tensorflow":  # `amax` raises for no images
        return ops.max(x, axis=axis, keepdims=keepdims, initial=least)
    # With `initial`, PyTorch's would mix the CPU with the device of the array.
    return ops.amax(x, axis=axis, keepdims=keepdims)


def has_replicas(model: keras.Model) -> bool:
    """Returns whether a model is trained under a distribution strategy of TensorFlow.

    Its replicas each see a part of a batch. JAX shows a distributed array as a whole.
    """
    strategy = getattr(model, "distribute_strategy", None)
    default = "_DefaultDistributionStrategy"
    return strategy is not None and type(strategy).__name__ != default


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """Returns the scope in which variables for the train step of a model are made."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def infers_shapes() -> bool:
    """Returns whether Keras runs a call only to learn the shapes of its outputs.

    It does so for layers made of others that do not tell their output shape.
    """
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def _stateless_scope() -> keras.StatelessScope | None:
    with keras.StatelessScope(initialize_variables=False) as scope:
        return scope.original_scope


def current_values(variables: list[keras.Variable]) -> list[tuple]:
    """Returns variables with the values that they have in a stateless scope around.

    Those that the scope does not know are left out. No gradient flows to the values.
    """
    outer = _stateless_scope()
    if outer is None:
        for variable in variables[:1]:
            _check_is_there(variable)
        return []
    values = [(variable, outer.get_current_value(variable)) for variable in variables]
    return [(k, ops.stop_gradient(x)) for k, x in values if x is not None]


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


def check_native(data: Any) -> None:
    """Raises an error for tensors of `tf.data` on another backend than TensorFlow."""
    if backend.backend() == "tensorflow":
        return
    for x in keras.tree.flatten(data):
        if type(x).__module__.startswith("tensorflow.") and not hasattr(x, "numpy"):
            raise ValueError(
                f"Received a TensorFlow tensor ({type(x).__name__}) on the "
                f"{backend.backend()} backend. A `tf.data` map computes with "
                "TensorFlow, and cannot take the gradient of a model of another "
                "backend: train with callbacks=[AdversarialTraining(layer)] instead, "
                "to which the data may come from `tf.data`, or set "
                'KERAS_BACKEND="tensorflow".'
            )


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of an instance, and afterwards gives it its own back."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if own is not None:
            setattr(owner, name, own)


def _inputs(data: Any) -> list:
    return keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(data)[0])


def _check_calls(model: keras.Model, name: str, times: int) -> None:
    if times != 1:
        raise ValueError(
            f"The train step of model {model.name!r} called `{name}` {times} times. "
            "Its gradients can be reused only where it calls it once: call it in your "
            '`train_step`, or pass gradient="fresh".'
        )


def _of_each_image(gradients: Any, scale: Any, images: Any) -> Any:
    """Returns the gradients of a mean, times its number, without the loss scale."""
    if gradients is None:
        return None
    scale = scale / ops.cast(ops.shape(images)[0], "float32")
    return ops.cast(gradients, "float32") / scale
