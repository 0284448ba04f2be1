"""The state of an unfinished run on disk, from which it goes on as if uninterrupted."""

import json
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_structadv.files import whole_file


class Progress(keras.callbacks.Callback):
    """Saves all that a run depends on after each epoch, in one file.

    Beside the weights these are the optimizer, the states of all random draws and the
    history, which `keras.callbacks.BackupAndRestore` leaves out. A kill leaves the
    state of one epoch or of the next. The gradients of a `GradientStore` with the same
    folder belong to it if this callback is the last.

    Args:
        folder: where the file is; it is made if it is not there.
        layers: the layers outside of the model that draw random numbers.
    """

    def __init__(self, folder: pathlib.Path, layers: Iterable[keras.layers.Layer]):
        super().__init__()
        self._path = pathlib.Path(folder, "progress.npz")
        self._layers = list(layers)
        self._begin = time.time()
        self.epochs = 0
        self.history: dict[str, list[float]] = {}
        self.seconds = 0.0

    def restore(self, model: keras.Model) -> int:
        """Restores the state of an interrupted run; returns its number of epochs.

        Raises:
            ValueError: if the file is damaged, or belongs to another model.
        """
        if not self._path.exists():
            return 0
        model.optimizer.build(model.trainable_variables)
        variables = self._variables(model)
        try:
            with np.load(self._path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                values = [file[f"v{i}"] for i in range(about["variables"])]
            shapes = [tuple(x.shape) for x in variables]
            if [x.shape for x in values] != shapes:
                raise ValueError(f"it holds {len(values)} other variables")
        except Exception as error:
            raise ValueError(
                f"{self._path} is no state of this run ({error}). Delete the folder: "
                "the run then begins anew."
            ) from error
        for variable, value in zip(variables, values):
            variable.assign(value)
        self.epochs = about["epochs"]
        self.history = about["history"]
        self.seconds = about["seconds"]
        return self.epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Saves the state."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        values = [keras.ops.convert_to_numpy(x) for x in self._variables(self.model)]
        about = {
            "epochs": epoch + 1,
            "variables": len(values),
            "history": self.history,
            "seconds": self.elapsed(),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self._path) as file:
            arrays = {f"v{i}": value for i, value in enumerate(values)}
            np.savez(file, about=json.dumps(about), **arrays)

    def elapsed(self) -> float:
        """Returns the seconds of the run, those before an interruption too."""
        return self.seconds + time.time() - self._begin

    def _variables(self, model: keras.Model) -> list[Any]:
        kept = [*model.variables, *model.optimizer.variables]
        kept += [x for layer in self._layers for x in layer.variables]
        return list({id(x): x for x in kept}.values())
