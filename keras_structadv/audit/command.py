"""The audit as a command: a saved model and data in, tables and pictures out."""

import argparse
import importlib.util
import pathlib
import sys
import zipfile
from typing import Any

import keras

from keras_structadv.audit.audit import ascending
from keras_structadv.audit.evaluate import evaluate_robustness
from keras_structadv.audit.pictures import CommandError, pictures, some_of
from keras_structadv.audit.report import RobustnessReport
from keras_structadv.audit.report_file import FILE
from keras_structadv.backends import keras_version
from keras_structadv.files import check_archive, most_bytes, read_arrays, whole_files
from keras_structadv.layers.adversarial_flow import AdversarialFlow
from keras_structadv.layers.adversarial_recoloring import AdversarialRecoloring

_KINDS = {"flow": AdversarialFlow, "recoloring": AdversarialRecoloring}
_DERIVED = ("report.json", "report.md", "curves.png", "worst.png")
_STRENGTHS = {"flow": (0, 1, 2, 4), "recoloring": (0, 0.02, 0.05, 0.1)}
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
      model and scaled to --value-range; the folders are named by the numbers of the
      classes, or there is one for each class of the model, in the order of the names
  python -m keras_structadv audit model.keras test.npz --value-range 0 1
      images that are scaled to [0, 1]

what --out holds afterwards:
  report.md, report.json    the table; the rows and the settings
  report.npz                all of it: keras_structadv.RobustnessReport.load(OUT)
  curves.png, worst.png     accuracy over strength; the images that were lost first

exit codes: 0 done; 1 the model or the data do not fit; 2 wrong arguments.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code.

    Args:
        arguments: as on the command line; `None` for those of the process.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        strengths = ascending(options.strengths or _STRENGTHS[options.perturbation])
    except ValueError as error:
        parser.error(str(error))
    try:
        if importlib.util.find_spec("matplotlib") is None:
            raise CommandError("Matplotlib is missing: pip install matplotlib pillow.")
        if options.out.exists() and not options.out.is_dir():
            raise CommandError(f"--out {options.out} is a file. Pass a folder.")
        model = _model(options.model, options.from_logits)
        value_range = tuple(options.value_range)
        x, y, names = _data(options.data, model, options.limit, value_range)
        report = evaluate_robustness(
            model,
            x,
            y,
            _KINDS[options.perturbation](value_range=value_range),
            strengths=strengths,
            steps=options.steps,
            restarts=options.restarts,
            random=options.random,
            batch_size=options.batch_size,
            seed=options.seed,
        )
        _write(report, options.out, names)
    except (CommandError, ValueError, TypeError, OSError) as error:
        print(f"{parser.prog} audit: {error}", file=sys.stderr)
        return 1
    half = report.strength_at(0.5)
    where = f"falls to 0.5 at {half:.3g}"
    if half == strengths[0]:
        where = "is not above 0.5 at the smallest strength"
    elif half == float("inf"):
        where = "stays above 0.5"
    print(f"\n{report.table()}\n\nThe worst-case accuracy {where}.")
    print(f"saved in {options.out}")
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
        help="of the images that the model takes (0 255); pictures of a folder are "
        "scaled to it",
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
        raise CommandError(
            f"There is no model {path}. Pass a file that model.save() wrote."
        )
    if keras_version() < (3, 11, 3):  # CVE-2025-9905, CVE-2025-9906, CVE-2025-49655
        if path.name.endswith((".h5", ".hdf5")):
            raise CommandError(
                f"{path} may hold code, which Keras {keras.__version__} would run. "
                "Update to keras>=3.11.3, or pass a .keras file."
            )
        print(
            f"Keras {keras.__version__} may run code of a hostile file. Update to "
            "keras>=3.11.3 for models of strangers.",
            file=sys.stderr,
        )
    try:
        if zipfile.is_zipfile(path):
            # Keras itself loads weights whose checksum is wrong.
            check_archive(path)
        model = keras.saving.load_model(path)
    except Exception as error:
        raise CommandError(
            f"{path} could not be loaded: {error}\nPass a file that model.save() "
            "wrote. For a model with classes of your own, call evaluate_robustness "
            "from Python."
        ) from error
    if getattr(model, "loss", None) is None:
        if from_logits is None:
            raise CommandError(
                f"{path} was saved without a loss. Pass --from-logits if the model "
                "returns logits, or --no-from-logits if it ends in a softmax."
            )
        one = model.output_shape[-1:] == (1,)
        losses = keras.losses
        kind = (
            losses.BinaryCrossentropy if one else losses.SparseCategoricalCrossentropy
        )
        model.compile(loss=kind(from_logits))
    return model


def _data(
    path: pathlib.Path,
    model: keras.Model,
    limit: int | None,
    value_range: tuple[float, float],
) -> tuple[Any, Any, list[str] | None]:
    """Returns inputs, labels and the names of the classes, where there are some."""
    if limit is not None and limit < 1:
        raise CommandError(f"Received --limit {limit}. Pass a number >= 1.")
    if path.is_dir():
        return pictures(path, model, limit, value_range)
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
        missing = {"x", "y"} - set(held)
        if missing:
            raise CommandError(
                f"{path} holds {held[:9]}, and lacks {sorted(missing)}. Save it "
                'by numpy.savez("test.npz", x=images, y=labels).'
            )
        x, y = read_arrays(path, ("x", "y"), most_bytes(path)).values()
        places = some_of(len(x), limit)
        return x[places], y[places], None
    except FileNotFoundError as error:
        raise CommandError(
            f"There are no data {path}. Pass an .npz file or a folder."
        ) from error
    except (ValueError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise CommandError(
            f"{path} is no .npz file of plain arrays ({error}). Save it by "
            'numpy.savez("test.npz", x=images, y=labels).'
        ) from error


def _write(
    report: RobustnessReport, folder: pathlib.Path, names: list[str] | None
) -> None:
    with whole_files(folder, FILE, _DERIVED) as fresh:
        report.save(fresh)
        (fresh / "report.md").write_text(report.table() + "\n", encoding="utf-8")
        report.plot().savefig(fresh / "curves.png", dpi=120)
        if len(report.lost()) and report.images.shape[-1] in (1, 3):
            report.plot_worst(8, names).savefig(fresh / "worst.png", dpi=120)
