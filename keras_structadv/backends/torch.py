"""The methods of `Framework` on PyTorch."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.backends.base import AugmentedStep, Framework
from keras_structadv.backends.keras_state import forced_train_function
from keras_structadv.backends.train_step import check_calls, of_each_image


class PyTorch(Framework):
    """Keras on PyTorch."""

    def gradients(
        self, objective: Callable[[Any], tuple[Any, Any]], images: Any
    ) -> tuple[Any, Any]:
        import torch

        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            value, extra = objective(images)
            if not value.requires_grad:
                return None, extra
            (gradients,) = torch.autograd.grad(value, images, allow_unused=True)
        return gradients, extra

    def train_function(self, model: keras.Model, step: AugmentedStep) -> Callable:
        # If the model is compiled, only the plain step is.
        plain = forced_train_function(model)

        def train_step(data: Any) -> Any:
            return plain([data])

        return lambda batches: step(train_step, batches[0])

    def step_with_gradients(
        self,
        model: keras.Model,
        train_step: Callable[[Any], Any],
        pack: Callable[[Any], Any],
        images: Any,
    ) -> tuple[Any, Any]:
        images = images.detach().requires_grad_(True)
        for variable in model.trainable_variables:
            variable.value.grad = None
        scale = model.optimizer.scale_loss(1.0)
        # Not the compiled step: the compiler fails if an input requires a gradient.
        logs = model.train_step(pack(images))
        weights = model.trainable_variables
        if images.grad is None and all(x.value.grad is None for x in weights):
            check_calls(model, "loss.backward", 0)
        return logs, of_each_image(images.grad, scale, len(images))

    def bits(self, x: Any) -> Any:
        import torch

        return x.view(torch.int32)

    def read_rows(self, table: keras.Variable, rows: Any) -> Any:
        return table.value.detach()[rows]

    def write_rows(self, table: keras.Variable, rows: Any, values: Any) -> None:
        table.value.detach()[rows] = values.detach()

    def fused(self, function: Callable, in_eager: bool = False) -> Callable:
        return function  # Keras compiles nothing by default either

    def apart(self, function: Callable) -> Callable:
        import torch

        # PyTorch's compiler fails on layers that are made within a step.
        return torch.compiler.disable(function)

    def program(self, function: Callable, model: keras.Model) -> Callable:
        import torch

        return torch.no_grad()(functools.partial(function, ()))

    def visible(self, x: Any) -> np.ndarray | None:
        return ops.convert_to_numpy(x)
