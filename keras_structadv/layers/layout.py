"""The layout of images: converted on the way in and on the way out, nowhere else."""

import warnings
from typing import Any, NamedTuple

import keras
from keras import ops

LAYOUTS = ("channels_last", "channels_first")


class Layout(NamedTuple):
    """Converts between the layout of the data and channels last.

    Attributes:
        data_format: `"channels_last"` or `"channels_first"`.
    """

    data_format: str

    @classmethod
    def named(cls, data_format: str | None) -> "Layout":
        """Returns the layout of that name; `None` stands for Keras' default.

        Raises:
            ValueError: if there is no such layout.
        """
        name = data_format or keras.config.image_data_format()
        if name not in LAYOUTS:
            raise ValueError(
                f"Received data_format={data_format!r}. Pass "
                '"channels_last" or "channels_first".'
            )
        return cls(name)

    def channels_last(self, x: Any) -> Any:
        """Returns (batch, height, width, channels) for a batch in this layout."""
        if self.data_format == "channels_first":
            return ops.transpose(x, (0, 2, 3, 1))
        return x

    def restored(self, x: Any) -> Any:
        """Returns a channels-last batch in this layout."""
        if self.data_format == "channels_first":
            return ops.transpose(x, (0, 3, 1, 2))
        return x

    def check(self, images: Any, name: str) -> bool:
        """Warns of images that seem to have the other layout.

        Args:
            images: a batch of rank 4.
            name: of the layer.

        Returns:
            Whether it warned.
        """
        ends = (images.shape[1], images.shape[3])
        if None in ends:
            return False
        last = self.data_format == "channels_last"
        other, channels = ends if last else ends[::-1]
        if other in (1, 3) and channels > 4 and other < images.shape[2 if last else 1]:
            right = "channels_first" if last else "channels_last"
            warnings.warn(
                f"Layer {name!r} has data_format={self.data_format!r} and received "
                f"images of shape {tuple(images.shape)}, that is {channels} channels. "
                f"If they have {other}, pass data_format={right!r}.",
                stacklevel=3,
            )
            return True
        return False

    def size(self, x: Any) -> tuple[int | None, ...] | None:
        """Returns height and width of images or masks; `None` for other ranks.

        Args:
            x: (batch, height, width), or a batch of rank 4 in this layout.
        """
        if len(x.shape) == 3:
            return tuple(x.shape[1:])
        first = 2 if self.data_format == "channels_first" else 1
        return tuple(x.shape[first : first + 2]) if len(x.shape) == 4 else None
