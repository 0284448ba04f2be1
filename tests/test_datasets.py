import sys

import numpy as np
import pytest

from keras_structadv import datasets


def test_digits():
    (x, y), (x_test, y_test) = datasets.load_digits()
    assert x.shape == (200, 16, 16, 1) and x_test.shape == (1597, 16, 16, 1)
    assert x.dtype == np.uint8 and y.dtype == np.int32
    assert x.min() == 0 and x.max() == 255
    assert set(y_test) == set(range(10))
    again = datasets.load_digits()
    np.testing.assert_array_equal(again[0][0], x)
    (other, _), _ = datasets.load_digits(200, seed=1)
    assert not np.array_equal(other, x)
    (x, y), (x_test, _) = datasets.load_digits(train_size=500)
    assert len(x) == len(y) == 500 and len(x_test) == 1297


def test_glyphs():
    (x, y), (x_test, y_test) = datasets.load_glyphs()
    assert x.shape == (6 * 47, 28, 28, 1) and x_test.shape == (15 * 47, 28, 28, 1)
    assert x.dtype == np.uint8 and y.dtype == np.int32
    assert np.all(np.bincount(y) == 6) and np.all(np.bincount(y_test) == 15)
    drawn = np.concatenate([x, x_test])
    # Every glyph is there, whole: nothing touches the border.
    assert drawn.max(axis=(1, 2, 3)).min() > 150
    border = np.concatenate([drawn[:, [0, -1]].ravel(), drawn[:, :, [0, -1]].ravel()])
    assert (border > 0).mean() < 0.001
    assert len({glyph.tobytes() for glyph in drawn}) == len(drawn)
    # Characters resemble themselves in other typefaces more than others do.
    mean = np.stack([x[y == k].mean(axis=0) for k in range(47)]).reshape(47, -1)
    mean = mean - mean.mean(axis=0)
    score = (x_test.reshape(len(x_test), -1) / 255.0) @ mean.T
    assert (score.argmax(axis=1) == y_test).mean() > 0.3
    (other, _), _ = datasets.load_glyphs(seed=1)
    assert not np.array_equal(other, x)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="train_size=1797.*1796"):
        datasets.load_digits(1797)
    with pytest.raises(ValueError, match="train_typefaces=0"):
        datasets.load_glyphs(0)


@pytest.mark.parametrize(
    "load,package",
    [(datasets.load_digits, "sklearn.datasets"), (datasets.load_glyphs, "PIL")],
)
def test_a_missing_package_is_named(load, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install.*\[experiments\]"):
        load()
