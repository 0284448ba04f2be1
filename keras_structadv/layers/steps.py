"""The steps of a field within its budget, and the random start before them."""

import dataclasses
from typing import Any

from keras_structadv.checks import check_count, check_number

# Steps are unrolled: a configuration from elsewhere must not fill the memory.
MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Steps:
    """How a field of a given strength is made.

    Attributes:
        count: number of steps, >= 1.
        share: the size of each step, as a fraction of the strength.
        random_start: whether a random field comes first.
    """

    count: int
    share: float
    random_start: bool

    @classmethod
    def checked(cls, steps: Any, step_size: Any, random_start: Any) -> "Steps":
        """Returns the steps for the arguments of a layer.

        Raises:
            ValueError: if one is out of its range.
        """
        count = check_count("steps", steps, most=MOST_STEPS)
        if step_size is not None:
            advice = ", a fraction of the strength, or None"
            check_number("step_size", step_size, positive=True, advice=advice)
        # Steps that add up to more than the budget can turn on their way.
        share = 1.0 if count == 1 else 2.5 / count
        share = share if step_size is None else float(step_size)
        if not isinstance(random_start, bool):
            raise ValueError(
                f"Received random_start={random_start!r}. Pass True or False."
            )
        return cls(count, share, random_start)

    @property
    def is_single(self) -> bool:
        """Whether a field is one step of exactly its strength."""
        return self.count == 1 and self.share == 1 and not self.random_start
