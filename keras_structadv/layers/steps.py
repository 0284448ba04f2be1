"""The steps of a field within its budget, and the random start before them."""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_structadv.checks import check_count, check_number, strength_range

Start = bool | float | tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Steps:
    """How a field of a given strength is made.

    Attributes:
        count: number of steps, >= 1.
        share: the size of each step, as a fraction of the strength.
        start: `False` for no random start, `True` for one of the drawn strength, or
            the range from which its strength is drawn.
    """

    count: int
    share: float
    start: bool | tuple[float, float]

    @classmethod
    def checked(cls, steps: Any, step_size: Any, random_start: Any) -> "Steps":
        """Returns the steps for the arguments of a layer.

        Raises:
            ValueError: if one is out of its range.
        """
        count = check_count("steps", steps)
        if step_size is not None:
            advice = ", a fraction of the strength, or None"
            check_number("step_size", step_size, positive=True, advice=advice)
        # Steps that add up to more than the budget can turn on their way.
        share = 1.0 if count == 1 else 2.5 / count
        share = share if step_size is None else float(step_size)
        if not isinstance(random_start, bool):
            random_start = strength_range("random_start", random_start)
        return cls(count, share, random_start)

    def as_given(self, random_start: Any) -> Start:
        """Returns `random_start` as a bool, a float or a pair of floats."""
        pair = isinstance(random_start, (tuple, list))
        return self.start if pair or isinstance(self.start, bool) else self.start[1]

    @property
    def is_single(self) -> bool:
        """Whether a field is one step of exactly its strength."""
        return self.count == 1 and self.share == 1 and self.start is False

    def draw_start(self, strength: Any, factor: Any, draw: Callable[[Any], Any]) -> Any:
        """Returns the strength of each random start, float32, (batch,), or `None`.

        Args:
            strength: float32, (batch,), of the fields.
            factor: a number or (batch,), multiplies what is drawn from a range.
            draw: returns `count` draws from U(0, 1), float32, (count,).
        """
        if isinstance(self.start, bool):
            return strength if self.start else None
        low, high = self.start
        return factor * (low + (high - low) * draw(ops.shape(strength)[0]))

    def budget(self, strength: Any, start: Any) -> Any:
        """Returns the bound of each whole field, float32, (batch,).

        A start with a range of its own adds to the strength.
        """
        return strength if isinstance(self.start, bool) else strength + start
