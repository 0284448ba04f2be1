"""Trains a cell with a seed: one run."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_structadv as ksa
from experiments import datasets
from experiments.adversaries import ADVERSARIES
from experiments.attack import worst_case
from experiments.base_augmentation import base_augmentation
from experiments.cells import Cell
from experiments.models import MODELS
from experiments.policies import AutoAugment, RandAugment
from experiments.progress import Progress
from keras_structadv.layers.base import StructuredAdversary

_SMOKE_BATCH = 4
_CAPACITY = 65536


def augmentation(cell: Cell, seed: int) -> list[keras.layers.Layer]:
    """The layers of a cell's policy, to be put behind the input of the model.

    The adversary changes the input, so it acts before them.
    """
    data = datasets.DESCRIPTIONS[cell.data]
    made = []
    for part in cell.policy.split("+"):
        if part == "autoaugment":
            made.append(AutoAugment(fill=data.fill, seed=seed))
        elif part == "randaugment":
            made.append(RandAugment(**cell.randaugment, fill=data.fill, seed=seed))
        elif part == "base":
            made += base_augmentation(data.flip, data.padding, data.cutout, seed=seed)
    return made


def build(cell: Cell, seed: int, **arguments: Any) -> keras.Model:
    """Builds the model of a cell: raw images, policy, network, logits."""
    data = datasets.DESCRIPTIONS[cell.data]
    arguments = {**cell.model, **arguments}
    model = MODELS[arguments.pop("name")](data.shape, data.classes, **arguments)
    layers = augmentation(cell, seed)
    if not layers:
        return model
    return keras.Sequential([keras.Input(data.shape), *layers, model])


def adversarial(cell: Cell, seed: int, **store: Any) -> list[keras.callbacks.Callback]:
    """A list with the callback of a cell's adversary, empty without one.

    Args:
        cell: the cell.
        seed: seed of the fields.
        **store: arguments of the `GradientStore`, if gradients are reused.
    """
    layer, adversary = layer_of(cell, seed), ADVERSARIES[cell.adversary]
    if not isinstance(layer, StructuredAdversary):
        return []
    gradient = adversary.gradient
    if gradient == "reuse":
        gradient = ksa.GradientStore(**store)
    return [ksa.AdversarialTraining(layer, gradient=gradient)]


def layer_of(cell: Cell, seed: int) -> keras.layers.Layer | None:
    """The layer of a cell's adversary."""
    adversary = ADVERSARIES[cell.adversary]
    if adversary is None:
        return None
    return adversary.kind(**{**adversary.fixed, **cell.arguments}, seed=seed)


def train(
    cell: Cell,
    seed: int,
    *,
    held_out: str = "test",
    smoke: bool = False,
    verbose: int | str = 0,
    state: pathlib.Path | None = None,
    callbacks: Callable[..., list] = adversarial,
    **model: Any,
) -> tuple[keras.Model, dict]:
    """Trains a cell and measures its accuracy.

    The seed sets the split, the initial weights, the order of the batches and all
    random augmentation. Cells with one seed share all of these that they can.

    Args:
        cell: what to train.
        seed: the seed.
        held_out: the set to measure on after training: `"test"` or `"validation"`.
        smoke: whether to take only two steps, on a few made-up images.
        verbose: as in `model.fit`.
        state: folder for the state of an unfinished run; `None` saves none.
        callbacks: makes the callbacks of the adversary, as `adversarial` does.
        **model: further arguments of the function that builds the model.

    Returns:
        The model, and its record as JSON holds it: the cell, the accuracy on each set,
        also under attack, the last and the third entry of each list in `History`.
    """
    begin = time.time()
    if smoke:
        weights = {"weights": None} if "weights" in cell.model else {}
        cell = dataclasses.replace(
            cell, epochs=1, batch_size=_SMOKE_BATCH, model={**cell.model, **weights}
        )
    (x, y), sets = datasets.load(cell.data, seed, held_out, made_up=smoke)
    if smoke:
        x, y = x[: 2 * _SMOKE_BATCH], y[: 2 * _SMOKE_BATCH]
        sets = {k: tuple(a[:_SMOKE_BATCH] for a in v) for k, v in sets.items()}
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(cell.precision)
    built = build(cell, seed, **model)
    optimizer = dict(cell.optimizer)
    name = optimizer.pop("name")
    steps = cell.epochs * -(-len(x) // cell.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(optimizer.pop("learning_rate"), steps)
    built.compile(
        getattr(keras.optimizers, name)(rate, **optimizer),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=_jit(),
    )
    store = {"capacity": max(_CAPACITY, 4 * len(x))}
    if state is not None:
        # Whoever writes the record deletes the folder afterwards.
        store |= {"backup_dir": state, "delete_checkpoint": False}
    called = callbacks(cell, seed, **store)
    change = mapped(cell, seed)
    done, progress = 0, None
    if state is not None:
        layers = [x for one in called for x in getattr(one, "layers", ())]
        layers += [] if change is None else [change.func]
        progress = Progress(state, layers)
        called.append(progress)  # the last, so that it marks the end of an epoch
        done = progress.restore(built)
    batches = shuffled(x, y, cell.batch_size, seed, change, done)
    history = built.fit(
        batches,
        initial_epoch=done,
        epochs=cell.epochs,
        verbose=verbose,
        callbacks=called,
        shuffle=False,
    ).history
    history = history if progress is None else progress.history
    measured = {
        key: built.evaluate(*arrays, max(cell.batch_size, 256), verbose=0)[1]
        for key, arrays in sets.items()
    }
    worst = {
        key: worst_case(built, *arrays, **cell.attack, seed=seed)
        for key, arrays in (sets if cell.attack else {}).items()
    }
    return built, {
        "cell": cell.name,
        "seed": seed,
        "held_out": held_out,
        "accuracy": measured,
        **({"worst_case": worst} if worst else {}),
        "history": {k: v[-1] for k, v in history.items() if v},
        "early": {k: v[min(2, len(v) - 1)] for k, v in history.items() if v},
        "paper": cell.paper,
        "digest": cell.digest(),
        "settings": dataclasses.asdict(cell),
        "seconds": round(
            time.time() - begin + (progress.seconds if progress else 0), 1
        ),
        "versions": {"keras": keras.__version__, "backend": keras.backend.backend()},
    }


def _jit() -> str | bool:
    """Whether to compile steps by XLA.

    On CPUs that takes as long as half of a small run, and TensorFlow's own kernels are
    faster.
    """
    tensorflow = keras.backend.backend() == "tensorflow"
    return (
        False if tensorflow and not keras.distribution.list_devices("gpu") else "auto"
    )


def mapped(cell: Cell, seed: int) -> Callable[[Any], Any] | None:
    """The layer of Keras that augments a cell's images one by one.

    For a batch, `RandomElasticTransform` draws one scale and `RandAugment` one list of
    operations.
    """
    layer = layer_of(cell, seed)
    if layer is None or isinstance(layer, StructuredAdversary):
        return None
    return functools.partial(layer, training=True)


def shuffled(
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    seed: int,
    change: Callable[[Any], Any] | None = None,
    done: int = 0,
) -> Any:
    """Batches in a new order in each epoch; the seed fixes the orders.

    After `keras.utils.set_random_seed`, `fit` with arrays repeats the same batches in
    every epoch.

    Args:
        x: images.
        y: labels.
        batch_size: images in a batch.
        seed: seed of the orders.
        change: what becomes of each image, if anything.
        done: the number of epochs whose orders are left out.
    """
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, y))
    data = data.shuffle(len(x), seed=seed, reshuffle_each_iteration=True)
    for _ in range(2 * done):  # `fit` makes two iterators an epoch, and uses one
        iter(data)  # draws an order
    if change is not None:
        # One after the other, so that the draws are those of the seed.
        data = data.map(lambda image, label: (change(image), label))
    return data.batch(batch_size).prefetch(2)
