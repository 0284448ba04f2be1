"""Arrays and arguments to fuzz with: in range, at its borders, and out of it."""

import dataclasses
import fractions

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from keras import backend

NARROW = backend.backend() == "jax"  # no 64 bits
FLOATS = ["float32", "float32", "float32", "float64", "float16", "bfloat16"]
INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "bool"]
VALUES = [
    *("unit", "bytes", "normal", "huge", "largest", "tiny", "subnormal"),
    *("constant", "zero", "nan", "inf", "all nan"),
]


@dataclasses.dataclass(frozen=True)
class Array:
    """An array by its description, so that a failure can be read.

    Attributes:
        shape: (batch, ...).
        dtype: of NumPy, or bfloat16.
        values: one of `VALUES`.
        seed: of the numbers.
    """

    shape: tuple
    dtype: str
    values: str
    seed: int

    def make(self):
        rng = np.random.default_rng(self.seed)
        dtype = ml_dtypes.bfloat16 if self.dtype == "bfloat16" else np.dtype(self.dtype)
        x = rng.normal(size=self.shape)
        if self.values == "unit":
            x = rng.uniform(size=self.shape)
        elif self.values == "bytes":
            x = rng.integers(0, 256, self.shape).astype("float64")
        elif self.values in ("huge", "largest", "tiny", "subnormal"):
            x = (
                x
                * {
                    "huge": 1e30,
                    "largest": 1e38,
                    "tiny": 1e-30,
                    "subnormal": 1e-41,
                }[self.values]
            )
            x = np.clip(x, -3.4e38, 3.4e38)
        elif self.values in ("constant", "zero"):
            x = np.full(self.shape, rng.normal() if self.values == "constant" else 0.0)
        elif self.values == "all nan":
            x = np.full(self.shape, np.nan)
        elif self.values in ("nan", "inf") and x.size:
            first = x[self.seed % len(x) :].reshape(-1) if x.ndim else x.reshape(-1)
            first[rng.integers(first.size)] = np.nan
            if self.values == "inf":
                x[np.isnan(x)] = rng.choice([-np.inf, np.inf])
        if self.dtype == "bool":
            return x > 0
        if self.dtype in INTEGERS:
            limits = np.iinfo(dtype)
            x = np.nan_to_num(x, nan=0, posinf=1e9, neginf=-1e9)
            return np.clip(x, limits.min, limits.max // 2).astype(dtype)
        with np.errstate(over="ignore"):
            return x.astype(dtype)


def image_shapes():
    """Shapes from 1 to 40; few where each shape has to be compiled."""
    if backend.backend() == "jax":
        return st.sampled_from([(0, 5, 5, 1), (1, 1, 1, 1), (3, 6, 5, 2)])
    side = st.one_of(st.integers(1, 6), st.integers(1, 40))
    return st.tuples(st.integers(0, 9), side, side, st.integers(1, 5))


@st.composite
def arrays(draw, shape, dtypes=FLOATS + INTEGERS, values=VALUES):
    """Draws an `Array` of a shape."""
    return Array(
        shape,
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(values)),
        draw(st.integers(0, 2**32 - 1)),
    )


# Arguments: what is valid, and what is not.

NO_NUMBERS = ["1", "", [], (1,), {}, 1j, np.nan, np.inf, -np.inf, b"1", np.ones(2)]


def one_of(*values):
    return st.sampled_from(values)


def numbers(least, most):
    """Numbers in a range, of several types."""
    inside = st.floats(least, most, allow_subnormal=False)
    typed = one_of(float, float, np.float64, fractions.Fraction)
    return st.one_of(
        one_of(least, most, np.float32(most / 2), int(max(most // 2, least))),
        st.builds(lambda kind, x: kind(x), typed, inside),
    )


NUMBER = (
    st.one_of(numbers(0, 100), one_of(0, 1e30, 1e-30, 1e-45)),
    one_of(-1, -1e-9, 1.1e30, 10**400, True, *NO_NUMBERS),
)
NUMBER_OR_NONE = (st.one_of(st.none(), NUMBER[0]), NUMBER[1])
POSITIVE = (
    st.one_of(numbers(0.001, 100), one_of(1e30, 1e-30)),
    one_of(0, 0.0, -1, 1e-31, 1.1e30, True, *NO_NUMBERS),
)
POSITIVE_OR_NONE = (st.one_of(st.none(), POSITIVE[0]), POSITIVE[1])
FRACTION = (numbers(0, 1), one_of(-0.01, 1.01, 10**400, None, *NO_NUMBERS))
COUNT = (one_of(1, 2, np.int32(3)), one_of(0, -1, 1.0, True, None, *NO_NUMBERS))
COUNT_OR_NONE = (
    one_of(None, 1, 2, np.int64(3)),
    one_of(0, -1, 1.5, False, *NO_NUMBERS),
)
FLAG = (st.booleans(), one_of(0, 1, None, "True", np.True_, *NO_NUMBERS))
PAIR = (
    one_of((0, 1), (0, 255), [-1, 1], (-1e-3, 1e-3), (0.0, 1e30), np.array([0, 1])),
    one_of(
        (1, 0),
        (0, 0),
        (0, np.nan),
        (0, np.inf),
        (0,),
        (0, 1, 2),
        1,
        "01",
        None,
        (0, 1e39),
        (0, 10**400),
    ),
)
STRENGTH = (
    st.one_of(
        numbers(0, 10),
        one_of(0, (0, 0), (1, 1), [0.5, 2], (1, 1e30)),
    ),
    one_of(-1, (2, 1), (-1, 1), (0, np.inf), (1, 2, 3), 1e39, 10**400, *NO_NUMBERS),
)
LAYOUT = (
    one_of(None, "channels_last", "channels_first"),
    one_of("last", "CHANNELS_LAST", 1, ("channels_last",)),
)
SEED = (one_of(None, 0, 1, 12345), one_of("1", 1.5, [1], np.nan))


@st.composite
def arguments(draw, **spec):
    """Draws arguments, at most one of them out of its range.

    Args:
        **spec: `(valid, invalid)` for each argument.

    Returns:
        `(arguments, wrong)`: the arguments by name; the name of the one that is out of
        its range, or `None`.
    """
    names = list(spec)
    given = draw(st.integers(0, 2 ** len(names) - 1))
    wrong = draw(st.sampled_from([*[None] * (2 * len(names)), *names]))
    values = {
        name: draw(spec[name][name == wrong])
        for place, name in enumerate(names)
        if name == wrong or given >> place & 1
    }
    return values, wrong
