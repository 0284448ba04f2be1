import numpy as np
import pytest

from keras_structadv.checks import check_count


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3)])
def test_a_count_becomes_an_integer_of_python(value):
    assert check_count("size", value) == 3
    assert type(check_count("size", value)) is int


@pytest.mark.parametrize("value", [0, -1, True, np.True_, 2.0, "2", None])
def test_what_is_no_count_is_named(value):
    with pytest.raises(ValueError, match="size=.*Pass an integer >= 1"):
        check_count("size", value)


def test_a_count_may_have_another_bound():
    assert check_count("size", 0, least=0) == 0
    with pytest.raises(ValueError, match="size=1.*Pass an integer >= 2"):
        check_count("size", 1, least=2)
