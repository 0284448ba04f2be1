"""The audit as a command: a saved model and data in, tables and pictures out."""

import argparse
import functools
import importlib.util
import pathlib
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_structadv.audit.evaluate import evaluate_robustness
from keras_structadv.audit.report import RobustnessReport
from keras_structadv.gradients.loss import per_image_loss
from keras_structadv.layers.adversarial_flow import AdversarialFlow
from keras_structadv.layers.adversarial_recoloring import AdversarialRecoloring

_KINDS = {"flow": AdversarialFlow, "recoloring": AdversarialRecoloring}
_STRENGTHS = {"flow": (0, 1, 2, 4), "recoloring": (0, 0.02, 0.05, 0.1)}
_PICTURES = (".bmp", ".jpeg", ".jpg", ".png")
_DESCRIPTION = """\
Measures how far images can move before a finished model fails.

Each image is attacked within growing budgets, by smooth motions of its pixels (flow) or
by changes of its colours that keep the contours (recoloring): random ones, and those
that the gradient of the loss points to.
"""
_EPILOG = """\
examples:
  python -m keras_structadv audit model.keras test.npz --out report
      test.npz holds the arrays x, (n, height, width, channels), and y, as the loss of
      the model takes it: numpy.savez("test.npz", x=x, y=y)
  python -m keras_structadv audit model.keras photographs/ --perturbation recoloring
      a folder with a folder of pictures for each class, resized to the input of the
      model; the folders are named by the numbers of the classes, or there is one for
      each class of the model, in the order of the names
  python -m keras_structadv audit model.keras test.npz --value-range 0 1
      images that are scaled to [0, 1]

what --out holds afterwards:
  report.md, report.json    the table; the rows and the settings
  report.npz                all of it: keras_structadv.RobustnessReport.load(OUT)
  curves.png, worst.png     accuracy over strength; the images that were lost first

exit codes: 0 done; 1 the model or the data do not fit; 2 wrong arguments.
"""


class _Error(Exception):
    """What was received, and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code.

    Args:
        arguments: as on the command line; `None` for those of the process.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    strengths = options.strengths or _STRENGTHS[options.perturbation]
    try:
        if importlib.util.find_spec("matplotlib") is None:
            raise _Error("The pictures need Matplotlib: pip install matplotlib pillow.")
        model = _model(options.model, options.from_logits)
        x, y, names = _data(options.data, model, options.limit)
        report = evaluate_robustness(
            model,
            x,
            y,
            _KINDS[options.perturbation](value_range=tuple(options.value_range)),
            strengths=strengths,
            steps=options.steps,
            restarts=options.restarts,
            random=options.random,
            batch_size=options.batch_size,
            seed=options.seed,
        )
        _write(report, options.out, names)
    except (_Error, ValueError, TypeError, OSError) as error:
        print(f"{parser.prog} audit: {error}", file=sys.stderr)
        return 1
    print(f"\n{report.table()}\n\nsaved in {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keras_structadv",
        description="Structured adversarial perturbations for Keras.",
    )
    commands = parser.add_subparsers(required=True, metavar="audit")
    audit = commands.add_parser(
        "audit",
        help="measures how far images can move before a model fails",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    audit.add_argument("model", type=pathlib.Path, help="a saved model, .keras or .h5")
    audit.add_argument(
        "data",
        type=pathlib.Path,
        help="an .npz file with x and y, or a folder with a folder for each class",
    )
    audit.add_argument("--perturbation", choices=[*_KINDS], default="flow")
    audit.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        metavar="S",
        help="ascending; of flows the longest displacement in pixels (default: 0 1 2 "
        "4), of recolourings the root mean square as a fraction of the value range "
        "(default: 0 0.02 0.05 0.1)",
    )
    audit.add_argument("--steps", type=int, default=10, help="steepest steps (10)")
    audit.add_argument("--restarts", type=int, default=1, help="random starts (1)")
    audit.add_argument("--random", type=int, default=16, help="random fields (16)")
    audit.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        default=(0, 255),
        metavar=("LOW", "HIGH"),
        help="of the images (0 255)",
    )
    audit.add_argument(
        "--from-logits",
        action=argparse.BooleanOptionalAction,
        help="whether the model returns logits, if it was saved without a loss; "
        "otherwise the loss tells",
    )
    audit.add_argument("--limit", type=int, help="audit this many images only")
    audit.add_argument("--batch-size", type=int, default=64, help="bounds memory (64)")
    audit.add_argument("--seed", type=int, default=0, help="of the random fields (0)")
    audit.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("audit"),
        help="folder for the results (audit)",
    )
    return parser


def _model(path: pathlib.Path, from_logits: bool | None) -> keras.Model:
    """Loads a model, and compiles it where it was saved without a loss."""
    if not path.exists():
        raise _Error(f"There is no model {path}. Pass a file that model.save() wrote.")
    try:
        model = keras.saving.load_model(path)
    except Exception as error:
        raise _Error(
            f"{path} could not be loaded: {error}\nPass a file that model.save() "
            "wrote. For a model with classes of your own, call evaluate_robustness "
            "from Python."
        ) from error
    if getattr(model, "loss", None) is None:
        if from_logits is None:
            raise _Error(
                f"{path} was saved without a loss. Pass --from-logits if the model "
                "returns logits, or --no-from-logits if it ends in a softmax."
            )
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits))
    return model


def _data(
    path: pathlib.Path, model: keras.Model, limit: int | None
) -> tuple[Any, Any, list[str] | None]:
    """Returns inputs, labels and the names of the classes, where there are some."""
    if limit is not None and limit < 1:
        raise _Error(f"Received --limit {limit}. Pass a number >= 1.")
    if path.is_dir():
        return _pictures(path, model, limit)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"x", "y"} - set(file.files)
            if missing:
                raise _Error(
                    f"{path} holds {file.files}, and lacks {sorted(missing)}. Save it "
                    'by numpy.savez("test.npz", x=images, y=labels).'
                )
            return file["x"][:limit], file["y"][:limit], None
    except FileNotFoundError as error:
        raise _Error(
            f"There are no data {path}. Pass an .npz file or a folder."
        ) from error
    except (zipfile.BadZipFile, ValueError, AttributeError, EOFError) as error:
        raise _Error(
            f"{path} is no .npz file of plain arrays ({error}). Save it by "
            'numpy.savez("test.npz", x=images, y=labels).'
        ) from error


def _pictures(
    folder: pathlib.Path, model: keras.Model, limit: int | None
) -> tuple[Iterator, None, list[str] | None]:
    """Reads a folder with a folder for each class."""
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
        raise _Error(
            f"The model takes inputs of shape {shape}, for which pictures cannot be "
            "resized. Pass an .npz file."
        )
    names = sorted(x.name for x in folder.iterdir() if x.is_dir())
    numbered = bool(names) and all(name.isdecimal() for name in names)
    classes = max(2, model.output_shape[-1])
    if not numbered and len(names) != classes:
        raise _Error(
            f"{folder} has {len(names)} folders for a model with {classes} classes. "
            "Pass a folder for each class, or name them by the numbers of the classes."
        )
    files = [
        (file, int(name) if numbered else place)
        for place, name in enumerate(names)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in _PICTURES
    ]
    if not files:
        raise _Error(
            f"{folder} has no pictures ({', '.join(_PICTURES)}) in its folders. Pass "
            "a folder with a folder of pictures for each class."
        )
    channels = {1: "grayscale", 3: "rgb", 4: "rgba"}.get(shape[-1])
    if channels is None:
        raise _Error(
            f"The model takes {shape[-1]} channels, which pictures do not have. Pass "
            "an .npz file."
        )
    if limit is not None:  # of all classes alike
        order = np.random.default_rng(0).permutation(len(files))[:limit]
        files = [files[i] for i in sorted(order)]
    read = functools.partial(
        keras.utils.load_img,
        color_mode=channels,
        target_size=shape[1:3],
        interpolation="bilinear",
        keep_aspect_ratio=True,
    )

    one_hot = model.output_shape[-1] > 1 and not per_image_loss(model).takes_class_ids
    labels = np.eye(classes, dtype="float32") if one_hot else np.arange(classes)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for file, label in files:
            image = np.asarray(read(file), "float32").reshape(1, *shape[1:])
            yield image, labels[[label]]

    return batches(), None, None if numbered else names


def _write(
    report: RobustnessReport, folder: pathlib.Path, names: list[str] | None
) -> None:
    report.save(folder)
    (folder / "report.md").write_text(report.table() + "\n")
    report.plot().savefig(folder / "curves.png", dpi=120)
    if len(report.lost()):
        report.plot_worst(8, names).savefig(folder / "worst.png", dpi=120)
    else:
        (folder / "worst.png").unlink(missing_ok=True)  # of an earlier audit
