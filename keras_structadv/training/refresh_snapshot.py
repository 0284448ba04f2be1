"""The callback that updates the snapshot of a `tf.data` pipeline."""

from collections.abc import Sequence

import keras

from keras_structadv.checks import check_count, is_one_of
from keras_structadv.layers.base import StructuredAdversary, as_layers


class RefreshSnapshot(keras.callbacks.Callback):
    """Updates the copy of the weights that a `tf.data` pipeline attacks.

    The update is atomic and retraces nothing. A batch that is under way keeps the
    weights with which it began; prefetched batches were made with older ones.

    Args:
        layer: the layer in the pipeline, bound with `snapshot=True`, or a list of them.
        every: `"epoch"` to update at the begin of each epoch, or a number of batches.
            The begin of the training always updates.

    Raises:
        ValueError: if `layer` or `every` has no meaning here.

    Example:
    >>> from keras_structadv import AdversarialFlow
    >>> model = keras.Sequential(
    ...     [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    ... )
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    >>> flow = AdversarialFlow().bind(model, snapshot=True)
    >>> refresh = RefreshSnapshot(flow, every="epoch")
    """

    def __init__(
        self,
        layer: StructuredAdversary | Sequence[StructuredAdversary],
        *,
        every: str | int = "epoch",
    ):
        super().__init__()
        if not is_one_of(every, ("epoch",)):
            try:
                every = check_count("every", every)
            except ValueError as error:
                raise ValueError(
                    f'Received every={every!r}. Pass "epoch" or a number of batches '
                    ">= 1."
                ) from error
        self.layers = as_layers(layer, "the adversarial layer of the pipeline")
        self.every = every
        self._seen = self._seen_before = self._refreshed_at = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Starts to count batches."""
        self._seen = self._seen_before = self._refreshed_at = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Updates the copy at the begin of the training or of an epoch."""
        self._seen_before = self._seen
        if self.every == "epoch" or self._seen == 0:
            self._refresh()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Updates the copy if enough batches have passed."""
        # One call may run several steps: the number of the last one counts.
        self._seen = self._seen_before + batch + 1
        passed = self._seen - self._refreshed_at
        if isinstance(self.every, int) and passed >= self.every:
            self._refresh()
            self._refreshed_at = self._seen

    def _refresh(self) -> None:
        for layer in self.layers:
            if layer.binding.snapshot is None:
                raise ValueError(
                    f"Layer {layer.name!r} has no snapshot to update. Bind it with "
                    "layer.bind(model, snapshot=True)."
                )
            layer.binding.snapshot.refresh()
