"""A store of gradients, one short code for each image, found by the image's content."""

import os
import pathlib
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_structadv.backends import framework
from keras_structadv.checks import check_count
from keras_structadv.files import remove_leftovers
from keras_structadv.training.store_file import (
    Table,
    epochs_of,
    read_table,
    write_table,
)

_WAYS = 4
_MOST_PLACES = 2**30  # which int32 can count
_FILE = "gradient_store.npz"


class GradientStore:
    """Keeps one code for each training image, in a table of bounded size.

    The table finds an image by a fingerprint of its content, so that images may be
    shuffled, repeated and re-batched without sample ids. Each place holds the whole
    fingerprint beside the code: an image never gets the code of another.

    A fingerprint belongs to a set of four places. If all four are taken, one is
    overwritten. With a capacity of twice the number of training images, about one image
    in eighteen is overwritten; with four times, one in 150; with eight times, one in
    2000.

    The content outlasts `fit`, so that training can go on. A callback clears its store
    for another model. Do not share a store between models that must stay independent.

    Args:
        capacity: number of places, rounded up to a multiple of 4.
        size: k; the store keeps the k x k lowest cosine coefficients of each component.
            A place takes 16 bytes, plus `4 * size**2` for `AdversarialFlow` and
            `2 * channels * size**2` for `AdversarialRecoloring`. `None` for the k that
            the fields need, at least 8, in at most 256 MiB for the table. A warning
            says where that, or a number, is too small.
        backup_dir: `None`, or the `backup_dir` of `keras.callbacks.BackupAndRestore`, a
            local folder. The store is saved there after each epoch, beside that of the
            epoch before. A run that resumes reads the one of its epoch, whenever it was
            killed, if `AdversarialTraining` comes before `BackupAndRestore` in the list
            of callbacks. Both are removed when the run ends.
        delete_checkpoint: `False` to keep the backup when the run ends, as the argument
            of `BackupAndRestore`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    >>> from keras_structadv import AdversarialFlow, AdversarialTraining
    >>> store = GradientStore(capacity=200_000)  # for 100,000 training images
    >>> callback = AdversarialTraining(AdversarialFlow(), gradient=store)
    """

    def __init__(
        self,
        capacity: int = 65536,
        size: int | None = None,
        backup_dir: str | os.PathLike | None = None,
        delete_checkpoint: bool = True,
    ):
        capacity = check_count("capacity", capacity, most=_MOST_PLACES)
        self.capacity = -(-capacity // _WAYS) * _WAYS
        self.size = None if size is None else check_count("size", size)
        self.backup_dir = backup_dir
        self.delete_checkpoint = delete_checkpoint
        self._keys: keras.Variable | Any = None
        self._codes: keras.Variable | Any = None
        self._layout = ""
        self._epochs = -1  # at whose end the table was saved; -1: not known

    @property
    def length(self) -> int:
        """How many numbers a code has; 0 before the table exists."""
        return self._codes.shape[1] if self.built else 0

    def bytes_for(self, length: int) -> int:
        """Returns the bytes of the table for codes of `length` numbers."""
        return (self.capacity + 1) * (4 * 4 + 2 * length)

    def length_for(self, size: int) -> int:
        """Returns the length of the codes whose table takes this many bytes."""
        return (size // (self.capacity + 1) - 4 * 4) // 2

    @property
    def built(self) -> bool:
        """Whether the table exists."""
        return self._codes is not None

    def build(self, length: int, layout: str = "") -> None:
        """Creates the empty table, for codes of `length` numbers.

        Args:
            length: how many numbers a code has.
            layout: describes the numbers, so that codes of other layers are refused.

        Raises:
            ValueError: if the table exists, for other codes.
        """
        if self.built:
            held = (self._codes.shape[1], self._layout)
            if held != (length, layout):
                raise ValueError(
                    f"The store holds codes of {held[0]} numbers ({held[1]}), and "
                    f"{length} ({layout}) are needed: it was made with another `size`, "
                    "for other images or for other layers. Pass the `size` that it was "
                    "made with, or use a new GradientStore."
                )
            return
        self._layout = layout
        # One extra place takes what must not be written. Keys are whole numbers below
        # 2**16 in float32, which every accelerator can hold.
        self._keys = keras.Variable(
            np.full((self.capacity + 1, 4), -1.0, "float32"),
            trainable=False,
            dtype="float32",
            name="keys",
        )
        self._codes = keras.Variable(
            np.zeros((self.capacity + 1, length), "float16"),
            trainable=False,
            dtype="float16",
            name="codes",
        )

    @property
    def variables(self) -> list[keras.Variable]:
        """The table."""
        return [self._keys, self._codes] if self.built else []

    def clear(self) -> None:
        """Empties the table."""
        if self.built:
            self._keys.assign(ops.full(self._keys.shape, -1.0))

    def read(self, keys: Any) -> tuple[Any, Any]:
        """Returns `(codes, found)` for the keys of a batch.

        Args:
            keys: float32, (batch, 4), as `fingerprint` makes them.

        Returns:
            codes: float32, (batch, length), zero where nothing was found.
            found: bool, (batch,).
        """
        places, match = self._lookup(keys)
        found = ops.any(match, axis=1)
        place = ops.sum(ops.where(match, places, 0), axis=1)
        codes = ops.cast(framework().read_rows(self._codes, place), "float32")
        return ops.where(found[:, None], codes, 0.0), found

    def write(self, keys: Any, codes: Any) -> None:
        """Stores the codes of a batch, except those that are zero or not finite.

        Args:
            keys: float32, (batch, 4), as `fingerprint` makes them.
            codes: float16 or float32, (batch, length), in [-1, 1].
        """
        places, match = self._lookup(keys)
        empty = framework().read_rows(self._keys, ops.reshape(places, (-1,)))[:, 0] < 0
        empty = ops.reshape(empty, ops.shape(places))
        # The image's own place; else an empty one; else the one that its key names.
        # The key's place is also the first empty one to try, so that new images spread.
        way = ops.arange(_WAYS, dtype="int32")[None, :]
        away = (way - ops.cast(keys[:, :1], "int32")) % _WAYS
        score = (
            ops.cast(match, "int32") * 4 * _WAYS
            + ops.cast(empty, "int32") * 2 * _WAYS
            - away
        )
        way = ops.argmax(score, axis=1)[:, None]
        place = ops.cast(ops.take_along_axis(places, way, axis=1)[:, 0], "int32")
        usable = ops.all(ops.isfinite(codes), axis=1) & ops.any(codes != 0, axis=1)
        place = ops.where(usable, place, self.capacity)
        # Several images may want one place. Only the last is written, because key and
        # code are two tables and must not mix two images.
        order = ops.argsort(place)  # stable
        ranked = ops.take(place, order)
        last = ops.concatenate([ranked[1:] != ranked[:-1], ranked[:1] == ranked[:1]])
        last = ops.take(last, ops.argsort(order))
        place = ops.where(last, place, self.capacity)
        dropped = (place == self.capacity)[:, None]
        framework().write_rows(self._keys, place, ops.where(dropped, -1.0, keys))
        codes = ops.cast(ops.where(dropped, 0.0, codes), "float16")
        framework().write_rows(self._codes, place, codes)

    def back_up(self, epochs: int) -> None:
        """Saves the table to `backup_dir`, if there is one.

        The backup of the epoch before stays: a run that is killed before the model is
        saved resumes with the older ones of both.

        Args:
            epochs: the number of epochs that are done.
        """
        if self._backup is not None and self.built:
            self._epochs = epochs
            # Where an epoch is done again, the older backup is still that of the model.
            if self._backup.exists() and epochs_of(self._backup) < epochs:
                os.replace(self._backup, _older(self._backup))
            self.save(self._backup)

    def restore(self, epochs: int | None = None) -> None:
        """Loads the table of an interrupted run from `backup_dir`, if it is there.

        Args:
            epochs: the number of epochs that the model has trained; `None` for the
                newest table. Warns if all tables are older than the model.
        """
        if self._backup is None or (epochs is not None and epochs == self._epochs):
            return
        found = [x for x in (self._backup, _older(self._backup)) if x.exists()]
        if epochs is None:
            for path in found[:1]:
                self.load(path)
            return
        for path in found:
            if epochs_of(path) == epochs:
                self.load(path)
                return
        if found and 0 <= self._epochs < epochs:
            warnings.warn(
                f"{self._backup} holds the gradients after epoch {self._epochs}, and "
                f"the run resumes after epoch {epochs}. The first epoch augments with "
                "these older gradients. To resume exactly, put AdversarialTraining "
                "before BackupAndRestore in the list of callbacks.",
                stacklevel=4,
            )

    def remove_backup(self) -> None:
        """Removes the backup of a finished run, unless `delete_checkpoint=False`."""
        if self._backup is not None:
            remove_leftovers(self._backup)
            if self.delete_checkpoint:
                self._backup.unlink(missing_ok=True)
                _older(self._backup).unlink(missing_ok=True)

    @property
    def _backup(self) -> pathlib.Path | None:
        return None if self.backup_dir is None else pathlib.Path(self.backup_dir, _FILE)

    def save(self, path: str | os.PathLike) -> None:
        """Saves the table to an `.npz` file, atomically."""
        if not self.built:
            raise ValueError("The store is empty: it was not built. Train first.")
        keys, codes = (ops.convert_to_numpy(x) for x in self.variables)
        about = np.array(self._layout), np.array(self._epochs, "int64")
        write_table(path, Table(keys, codes, *about))

    def load(self, path: str | os.PathLike) -> None:
        """Loads a table that `save` wrote. Nothing in it is run.

        Raises:
            ValueError: if the file is damaged, or its capacity or codes differ.
        """
        keys, codes, layout, epochs = read_table(path)
        if len(keys) != self.capacity + 1:
            raise ValueError(
                f"The table in {path} has {len(keys) - 1} places, and this store "
                f"{self.capacity}. Make the store with capacity={len(keys) - 1}."
            )
        self.build(codes.shape[1], str(layout))
        self._keys.assign(keys)
        self._codes.assign(codes)
        self._epochs = int(epochs)

    def _lookup(self, keys: Any) -> tuple[Any, Any]:
        """Returns the places of each key's set, and which of them hold the key."""
        sets = self.capacity // _WAYS
        # By the upper halves of the two sums. The lower ones depend on the lower bits
        # of the pixels only, which in many images are all alike.
        one, two = ops.cast(keys[:, 0], "int32"), ops.cast(keys[:, 2], "int32")
        first = ops.mod(one * 65536 + two, sets) * _WAYS
        places = first[:, None] + ops.arange(_WAYS, dtype="int32")[None, :]
        held = framework().read_rows(self._keys, ops.reshape(places, (-1,)))
        held = ops.reshape(held, (-1, _WAYS, 4))
        return places, ops.all(held == keys[:, None, :], axis=-1)


def _older(path: pathlib.Path) -> pathlib.Path:
    """Returns the name of the backup of the epoch before, as Keras forms it."""
    return path.with_name(f"{path.name}.bkp")
