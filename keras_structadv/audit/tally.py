"""What the attempts on a batch did to each of its images."""

from typing import Any

import numpy as np
from keras import ops

from keras_structadv.audit.attack import Attempt

KINDS = ("clean", "adversarial", "random")


class Tally:
    """The lowest score of each image so far, and the field that gave it.

    Args:
        images: (batch, height, width, channels).
        clean: the attempt without a field.

    Attributes:
        clean: float32, (batch,), the score of each image as it is.
        kind: int8, (batch,), place in `KINDS` of the attempt with the lowest score:
            the first one, if several share it.
        place: int32, (batch,), the place of its strength; -1 for a clean image.
        answers: int32, (batch, 2), the classes named before and under that attempt.
        images: the images.
        fields: float32, the field of that attempt; zero for a clean image.
    """

    def __init__(self, images: Any, clean: Attempt):
        size = len(clean.scores)
        self.clean = clean.scores
        self.images = images
        self.fields: np.ndarray | None = None
        self.kind = np.zeros(size, "int8")
        self.place = np.full(size, -1, "int32")
        self.answers = np.stack([clean.answers] * 2, axis=1)
        self._columns: dict[str, list] = {
            "adversarial": [],
            "random_worst": [],
            "random_mean": [],
        }
        self._lowest = clean.scores.copy()
        self._worst = {name: clean.scores.copy() for name in KINDS[1:]}
        self._random: list[np.ndarray] = []

    def is_lost(self) -> bool:
        """Whether no steepest step can find anything worse."""
        return not self._worst["adversarial"].any()

    def add(self, name: str, attempt: Attempt) -> None:
        """Takes an attempt of a kind at the current strength."""
        worst = self._worst[name]
        np.minimum(worst, attempt.scores, out=worst)
        if name == "random":
            self._random.append(attempt.scores)
        if self.fields is None:
            self.fields = np.zeros(tuple(attempt.field.shape), "float32")
        lower = attempt.scores < self._lowest
        if not lower.any():
            return  # most fields stay on the device
        self.fields[lower] = ops.convert_to_numpy(attempt.field)[lower]
        self._lowest[lower] = attempt.scores[lower]
        self.kind[lower] = KINDS.index(name)
        self.place[lower] = len(self._columns["adversarial"])
        self.answers[lower, 1] = attempt.answers[lower]

    def end_strength(self) -> None:
        """Goes on to the next strength."""
        mean = np.mean(self._random, axis=0) if self._random else self.clean
        self._random = []
        self._columns["adversarial"].append(self._worst["adversarial"].copy())
        self._columns["random_worst"].append(self._worst["random"].copy())
        self._columns["random_mean"].append(mean)

    def first(self, count: int, kept_bytes: int) -> dict[str, np.ndarray]:
        """Returns the arrays of the first images, by name.

        Args:
            count: the number of images that count.
            kept_bytes: how much memory their pictures and fields may take. Those of the
                images that come last are left out.
        """
        fields = self.fields
        if fields is None:  # no attempt was made
            fields = np.zeros((count, 0, 0, 0), "float32")
        pictures = {"images": self.images[:count], "fields": fields[:count]}
        size = sum(x.nbytes for x in pictures.values())
        kept = count if size <= kept_bytes else max(0, count * kept_bytes // size)
        return {
            "clean": self.clean[:count],
            "kind": self.kind[:count],
            "place": self.place[:count],
            "answers": self.answers[:count],
            **{name: np.stack(x, 1)[:count] for name, x in self._columns.items()},
            # Copies: a view would keep the whole batch.
            **{name: x[:kept].copy() for name, x in pictures.items()},
        }
