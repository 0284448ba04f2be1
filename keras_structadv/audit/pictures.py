"""Pictures of a folder, as the command reads them."""

import functools
import pathlib
from collections.abc import Iterator

import keras
import numpy as np

from keras_structadv.gradients.loss import per_image_loss

_PICTURES = (".bmp", ".jpeg", ".jpg", ".png")


class CommandError(Exception):
    """What was received, and what to do."""


def pictures(
    folder: pathlib.Path,
    model: keras.Model,
    limit: int | None,
    value_range: tuple[float, float],
) -> tuple[Iterator, None, list[str] | None]:
    """Reads a folder with a folder of pictures for each class.

    Args:
        folder: the folder.
        model: the model, for the sizes of its inputs and outputs.
        limit: how many pictures to read at most.
        value_range: the range to scale them to.

    Returns:
        Batches of one picture and its label, `None`, and the names of the classes,
        unless these are numbers.

    Raises:
        CommandError: if folder and model do not fit, or a file is no picture.
    """
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
        raise CommandError(
            f"The model takes inputs of shape {shape}, for which pictures cannot be "
            "resized. Pass an .npz file."
        )
    if not isinstance(model.output_shape, tuple) or not isinstance(
        model.output_shape[-1], int
    ):
        raise CommandError(
            f"The model has outputs of shape {model.output_shape}. Pass one with one "
            "output of classes, or call evaluate_robustness from Python."
        )
    names = sorted(
        x.name for x in folder.iterdir() if x.is_dir() and not x.name.startswith(".")
    )
    numbered = bool(names) and all(name.isdecimal() for name in names)
    classes = max(2, model.output_shape[-1])
    if not numbered and len(names) != classes:
        raise CommandError(
            f"{folder} has {len(names)} folders for a model with {classes} classes. "
            "Pass a folder for each class, or name them by the numbers of the classes."
        )
    if numbered and max(map(int, names)) >= classes:
        raise CommandError(
            f"{folder} has a folder {max(map(int, names))} for a model with {classes} "
            f"classes. Name the folders 0 to {classes - 1}."
        )
    files = [
        (file, int(name) if numbered else place)
        for place, name in enumerate(names)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in _PICTURES
        and file.is_file()
        and not file.name.startswith(".")
    ]
    if not files:
        raise CommandError(
            f"{folder} has no pictures ({', '.join(_PICTURES)}) in its folders. Pass "
            "a folder with a folder of pictures for each class."
        )
    channels = {1: "grayscale", 3: "rgb", 4: "rgba"}.get(shape[-1])
    if channels is None:
        raise CommandError(
            f"The model takes {shape[-1]} channels, which pictures do not have. Pass "
            "an .npz file."
        )
    files = [files[i] for i in some_of(len(files), limit)]
    for file, _ in files:
        _check_picture(file)
    read = functools.partial(
        keras.utils.load_img,
        color_mode=channels,
        target_size=shape[1:3],
        interpolation="bilinear",
        keep_aspect_ratio=True,
    )

    one_hot = model.output_shape[-1] > 1 and not per_image_loss(model).takes_class_ids
    labels = np.eye(classes, dtype="float32") if one_hot else np.arange(classes)

    if not numbered:
        print("classes:", ", ".join(f"{i} = {name}" for i, name in enumerate(names)))
    low, high = value_range

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for file, label in files:
            image = np.asarray(read(file), "float32").reshape(1, *shape[1:])
            yield low + image / 255 * (high - low), labels[[label]]

    return batches(), None, None if numbered else names


def some_of(count: int, limit: int | None) -> np.ndarray:
    """Returns places, in order; at most `limit` random ones."""
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[:limit])


def _check_picture(file: pathlib.Path) -> None:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            picture.verify()
    except Exception as error:
        raise CommandError(
            f"{file} is no picture ({error}). Replace or remove it."
        ) from error
