import keras
import numpy as np
import pytest
from keras import backend, ops

from keras_structadv.audit.data import batches_of, number_of_images

X, Y = np.arange(10 * 4).reshape(10, 2, 2, 1), np.arange(10)


class Data(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, place):
        rows = slice(3 * place, 3 * place + 3)
        return X[rows], Y[rows]


def tf_data():
    tf = pytest.importorskip("tensorflow")
    if backend.backend() != "tensorflow":
        pytest.skip("loads TensorFlow")
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)


SOURCES = {
    "arrays": lambda: (X, Y),
    "tensors": lambda: (ops.convert_to_tensor(X), ops.convert_to_tensor(Y)),
    "PyDataset": lambda: (Data(), None),
    "tf.data": lambda: (tf_data(), None),
    "generator": lambda: (((X[i : i + 5], Y[i : i + 5]) for i in (0, 5)), None),
    "iterator": lambda: (iter([(X[:7], Y[:7]), (X[7:], Y[7:])]), None),
    "weighted": lambda: (iter([(X, Y, np.ones(10))]), None),
}


@pytest.mark.parametrize("size", [1, 4, 10, 16])
@pytest.mark.parametrize("source", SOURCES)
def test_every_image_comes_once_and_batches_are_full(source, size):
    found = [*batches_of(*SOURCES[source](), size)]
    assert {len(batch.x) for batch in found} == {min(size, 10)}
    x = np.concatenate([batch.x[: batch.valid] for batch in found])
    y = np.concatenate([batch.y[: batch.valid] for batch in found])
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_structures_and_no_labels():
    data = {"images": X, "n": Y[:, None]}
    found = [*batches_of(data, None, 4)]
    assert [batch.valid for batch in found] == [4, 4, 2]
    assert found[2].y is None
    np.testing.assert_array_equal(found[2].x["n"][:, 0], [8, 9, 8, 9])
    alone = [*batches_of(iter([X[:3], (X[3:],)]), None, 5)]
    assert alone[1].y is None and alone[1].valid == 5


def test_numbers_of_images():
    assert number_of_images(X, Y) == number_of_images({"a": X}, {"b": Y}) == 10
    assert number_of_images(Data(), None) is None
    with pytest.raises(ValueError, match=r"lengths \[9, 10\]"):
        number_of_images(X, Y[:9])
    with pytest.raises(ValueError, match="arrays only"):
        number_of_images(Data(), Y)
    with pytest.raises(ValueError, match="x=3"):
        number_of_images(3, None)


@pytest.mark.backends("tensorflow")
def test_endless_data_are_refused():
    with pytest.raises(ValueError, match="endless"):
        number_of_images(tf_data().repeat(), None)
