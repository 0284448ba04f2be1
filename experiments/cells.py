"""A cell of a table, and the file that describes it."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import statistics
import tomllib
from collections.abc import Iterable
from typing import Any

import keras

from experiments import datasets
from experiments.adversaries import ADVERSARIES
from experiments.models import MODELS
from experiments.records import read_records
from keras_structadv.checks import check_count

CONFIGS = pathlib.Path(__file__).parent / "configs"
RESULTS = pathlib.Path(__file__).parent / "results"
POLICIES = ("none", "base", "autoaugment", "randaugment")
_MOST = 100_000  # of the numbers of a model or an attack
_AXES = ("data", "adversary", "policy")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a table: what is trained, on what, and how.

    Attributes:
        protocol: the table, the first part of the name.
        data: a name of `datasets.DESCRIPTIONS`.
        adversary: a name of `ADVERSARIES`; acts first, on the raw image.
        policy: names of `POLICIES` joined by "+", in the order in which they act.
        model: a name of `models.MODELS` and the arguments of that function.
        epochs: epochs of the training.
        batch_size: images in a batch.
        optimizer: a name of `keras.optimizers` and its arguments; the learning rate
            follows a cosine to zero.
        flow: arguments of the layers of flows.
        recoloring: arguments of the layers of recolourings.
        pixel: arguments of the adversaries that a norm of the pixels bounds.
        elastic: arguments of `keras.layers.RandomElasticTransform`.
        keras_randaugment: arguments of `keras.layers.RandAugment`.
        randaugment: arguments of `RandAugment`.
        attack: arguments of `attack.worst_case`; empty for no attack.
        precision: dtype policy, e.g. `"mixed_bfloat16"`.
        resumable: whether each epoch saves the state to disk.
        paper: accuracy in the paper, in percent.
    """

    protocol: str
    data: str
    adversary: str
    policy: str
    model: dict
    epochs: int
    batch_size: int
    optimizer: dict
    flow: dict = dataclasses.field(default_factory=dict)
    recoloring: dict = dataclasses.field(default_factory=dict)
    pixel: dict = dataclasses.field(default_factory=dict)
    elastic: dict = dataclasses.field(default_factory=dict)
    keras_randaugment: dict = dataclasses.field(default_factory=dict)
    randaugment: dict = dataclasses.field(default_factory=dict)
    attack: dict = dataclasses.field(default_factory=dict)
    precision: str = "float32"
    resumable: bool = False
    paper: float | None = None

    def __post_init__(self):
        """Raises a `ValueError` for an unknown name or a value that cannot be."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (dict, str, bool) and not isinstance(value, field.type):
                raise ValueError(
                    f"Received {field.name}={value!r}. Pass a "
                    f"{'table' if field.type is dict else field.type.__name__}."
                )
        for key, value, known in (
            ("data", self.data, datasets.DESCRIPTIONS),
            ("adversary", self.adversary, ADVERSARIES),
            *(("policy", part, POLICIES) for part in self.policy.split("+")),
            ("model.name", self.model.get("name"), MODELS),
        ):
            if value not in known:
                raise ValueError(f"Received {key}={value!r}. Pass one of {[*known]}.")
        optimizer = self.optimizer.get("name")
        if not isinstance(getattr(keras.optimizers, str(optimizer), None), type):
            raise ValueError(
                f"Received optimizer.name={optimizer!r}. Pass the name of a class of "
                "keras.optimizers."
            )
        # A number that fills the memory or runs for years is none of a cell.
        check_count("epochs", self.epochs, most=100_000)
        check_count("batch_size", self.batch_size, most=1_000_000)
        for table in ("model", "attack"):
            for key, value in getattr(self, table).items():
                if isinstance(value, int) and value > _MOST:
                    raise ValueError(
                        f"Received {table}.{key}={value}. Pass a number <= {_MOST}."
                    )

    @property
    def name(self) -> str:
        """`protocol/data/adversary+policy`; parts that are "none" are left out."""
        parts = [x for x in (self.adversary, self.policy) if x != "none"]
        return f"{self.protocol}/{self.data}/{'+'.join(parts) or 'none'}"

    @property
    def table(self) -> str | None:
        """The field with the arguments of the adversary."""
        adversary = ADVERSARIES[self.adversary]
        return adversary and adversary.table

    @property
    def arguments(self) -> dict:
        """The arguments of the adversary, as the cell sets them."""
        return getattr(self, self.table) if self.table else {}

    def with_arguments(self, **arguments: Any) -> "Cell":
        """Returns the cell with these arguments of its adversary alone."""
        return dataclasses.replace(self, **{self.table: arguments})

    def to_search(self) -> "Cell":
        """Returns the cell as a search begins: no arguments, a quick attack."""
        attack = self.attack and {
            "kind": self.attack["kind"],
            "strengths": self.attack["strengths"][:1],
            "count": 200,
            "restarts": 1,
            "random": 1,
        }
        return dataclasses.replace(self.with_arguments(), attack=attack)

    def digest(self) -> str:
        """A short hash of every setting that affects the result; the key of a run."""
        settings = dataclasses.asdict(self)
        unused = {x.table for x in ADVERSARIES.values() if x} - {self.table}
        if "randaugment" not in self.policy:
            unused.add("randaugment")
        if not self.attack:
            unused.add("attack")
        for key in ("paper", "resumable", *unused):
            del settings[key]
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_cells(config: str, changes: Iterable[str] = ()) -> list[Cell]:
    """Reads the cells of a configuration file.

    Args:
        config: a TOML file, or its name below `experiments/configs` without ".toml".
            `extends = "FILE"` inherits the settings of another file. Lists of data,
            adversaries or policies give one cell for each combination; so do the
            lists of each `[[grid]]`. `searched = "FILE"`, below
            `experiments/results`, gives each adversary the arguments of its best trial
            in this record of `experiments.search`.
        changes: `KEY=VALUE` with the value in TOML, e.g. `flow.smoothness=30`, where
            the dot names a key of a table. `searched=` leaves the record out.

    Returns:
        The cells, in the order of the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a key or a value is unknown.
    """
    path = pathlib.Path(config)
    if not path.exists():
        path = CONFIGS / f"{config}.toml"
    if not path.exists():
        raise FileNotFoundError(
            f"Received --config {config}. Neither that file nor {path} exists. Pass a "
            "TOML file or its name below experiments/configs."
        )
    settings = _read(path)
    grids = settings.pop("grid", [{}])
    settings.setdefault("searched", "")
    for change in changes:
        key, mark, value = change.partition("=")
        if not mark:
            raise ValueError(f"Received --set {change}. Pass KEY=VALUE.")
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            pass  # no TOML: a string without quotes
        *tables, last = key.strip().split(".")
        entry = settings
        for name in tables:
            entry = entry.setdefault(name, {})
        entry[last] = value
        grids = [{k: v for k, v in grid.items() if k != key} for grid in grids]
    cells, searched = [], settings.pop("searched")
    trials = read_records(RESULTS / searched) if searched else []
    for grid in grids:
        given = {**settings, **grid}
        if unknown := set(given) - {field.name for field in dataclasses.fields(Cell)}:
            raise ValueError(
                f"Received the unknown keys {sorted(unknown)} in {path} or --set. Pass "
                f"keys of {sorted(field.name for field in dataclasses.fields(Cell))}."
            )
        required = {f.name for f in dataclasses.fields(Cell) if _is_required(f)}
        if missing := required - set(given):
            raise ValueError(
                f"Received no {sorted(missing)} in {path}. Pass a file that sets them; "
                "a common.toml holds what other files extend and is no cell."
            )
        values = [given[axis] for axis in _AXES]
        values = [x if isinstance(x, list) else [x] for x in values]
        cells += [
            Cell(**{**given, **dict(zip(_AXES, choice))})
            for choice in itertools.product(*values)
        ]
    if searched:
        cells = [
            cell.with_arguments(**best_trial(trials, cell)["settings"])
            if cell.table
            else cell
            for cell in cells
        ]
    return list({cell.name: cell for cell in cells}.values())


def best_trial(trials: list[dict], cell: Cell) -> dict:
    """Returns the best of the recorded trials of a cell, the first of equal ones.

    Raises:
        ValueError: if there is none.
    """
    own = trials_of(trials, cell)
    if not own:
        raise ValueError(
            f"Received no trial of {cell.name}. Run experiments.search with this "
            "configuration, or pass --set searched= for the defaults."
        )
    return max(own, key=objective)


def trials_of(trials: list[dict], cell: Cell) -> list[dict]:
    """Returns the recorded trials of a cell, whatever its adversary's arguments."""
    digest = cell.to_search().digest()
    own = [x for x in trials if (x["cell"], x["digest"]) == (cell.name, digest)]
    return sorted(own, key=lambda trial: trial["trial"])


def objective(trial: dict) -> float:
    """Returns what a search maximizes: the mean over the seeds of a trial.

    It is the accuracy, or half of it and half of the worst case where there is one.
    """
    measured = [trial["accuracies"], *([trial["worst"]] if trial.get("worst") else [])]
    return statistics.fmean(statistics.fmean(x.values()) for x in measured)


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _read(path: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> dict:
    if path.resolve() in above:
        raise ValueError(f"{path} extends itself. Take out one `extends`.")
    try:
        settings = tomllib.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML ({error}). Mend it.") from error
    base = settings.pop("extends", None)
    if base is None:
        return settings
    inherited = _read(path.parent / str(base), (*above, path.resolve()))
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(inherited.get(key), dict):
            value = {**inherited[key], **value}
        inherited[key] = value
    return inherited
