"""What holds for every case."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops


def numpy(x):
    return ops.convert_to_numpy(x)


def same_bits(a, b):
    """Returns whether two arrays are the same to the bit."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@contextlib.contextmanager
def unchanged(*structures):
    """Asserts that nothing that was passed is mutated."""
    leaves = [x for x in keras.tree.flatten(structures) if isinstance(x, np.ndarray)]
    before = [x.copy() for x in leaves]
    yield
    for x, y in zip(leaves, before):
        assert same_bits(x, y)


def state_of(model):
    """Returns all that a model remembers."""
    variables = {id(v): v for v in model.variables}
    if getattr(model, "optimizer", None) is not None:
        variables |= {id(v): v for v in model.optimizer.variables}
    for metric in model.metrics:
        variables |= {id(v): v for v in metric.variables}
    return [numpy(v) for v in variables.values()]


@contextlib.contextmanager
def untouched(model):
    """Asserts that a model stays as it is: weights, seeds, metrics, compiled step."""
    before = state_of(model)
    compiled = (model.train_function, model.test_function, model.predict_function)
    names = set(vars(model))
    yield
    after = state_of(model)
    assert len(before) == len(after)
    assert all(same_bits(a, b) for a, b in zip(before, after))
    assert compiled == (
        model.train_function,
        model.test_function,
        model.predict_function,
    )
    assert set(vars(model)) == names


def own_words(error):
    """Returns the message without what Keras adds, which names all arguments."""
    return str(error).split("Arguments received by")[0]


@contextlib.contextmanager
def refuses(*names):
    """Asserts that an error names an argument and says what was received.

    Args:
        *names: of the argument; any of them will do. None for no error.
    """
    if not names:
        yield
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        yield
    message = own_words(caught.value)
    assert any(name in message for name in names), message
    assert "eceived" in message or "returned" in message, message


class Refused(Exception):
    """A refusal that the backend is free to make."""


@contextlib.contextmanager
def may_refuse(name):
    """Turns any error that names an argument into `Refused`."""
    try:
        yield
    except Exception as error:
        assert name in own_words(error)
        raise Refused from error


def assert_array(x, shape, dtype):
    assert tuple(x.shape) == tuple(shape)
    assert keras.backend.standardize_dtype(x.dtype) == dtype


def finite_images(*arrays):
    """Returns which images are finite in all arrays, as float32, bool, (batch,)."""
    good = True
    for x in arrays:
        with np.errstate(over="ignore"):
            x = np.asarray(x).astype("float32")
        good = good & np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    return good


def with_nan(x, place):
    """Returns a copy of floats with one image of NaN."""
    x = np.array(x)
    x[place] = np.nan
    return x
