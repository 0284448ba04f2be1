"""A cell of a table, and the file that describes it."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import tomllib
from collections.abc import Iterable

import keras_structadv as ksa
from experiments import datasets
from experiments.controls import ColourJitter
from experiments.models import MODELS

CONFIGS = pathlib.Path(__file__).parent / "configs"
# Layer, the field of `Cell` with its arguments, kind of gradient.
ADVERSARIES = {
    "none": None,
    "flow": (ksa.AdversarialFlow, "flow", "fresh"),
    "flow-reused": (ksa.AdversarialFlow, "flow", "reuse"),
    "random-flow": (ksa.RandomFlow, "flow", "fresh"),
    "recoloring": (ksa.AdversarialRecoloring, "recoloring", "fresh"),
    "recoloring-reused": (ksa.AdversarialRecoloring, "recoloring", "reuse"),
    "random-recoloring": (ksa.RandomRecoloring, "recoloring", "fresh"),
    "colour-jitter": (ColourJitter, "recoloring", "fresh"),
}
POLICIES = ("none", "base", "autoaugment", "randaugment")
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
        flow: arguments of `AdversarialFlow`.
        recoloring: arguments of `AdversarialRecoloring`.
        randaugment: arguments of `RandAugment`.
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
    randaugment: dict = dataclasses.field(default_factory=dict)
    precision: str = "float32"
    resumable: bool = False
    paper: float | None = None

    def __post_init__(self):
        """Raises a `ValueError` for an unknown name."""
        for key, value, known in (
            ("data", self.data, datasets.DESCRIPTIONS),
            ("adversary", self.adversary, ADVERSARIES),
            *(("policy", part, POLICIES) for part in self.policy.split("+")),
            ("model.name", self.model.get("name"), MODELS),
        ):
            if value not in known:
                raise ValueError(f"Received {key}={value!r}. Pass one of {[*known]}.")

    @property
    def name(self) -> str:
        """`protocol/data/adversary+policy`; parts that are "none" are left out."""
        parts = [x for x in (self.adversary, self.policy) if x != "none"]
        return f"{self.protocol}/{self.data}/{'+'.join(parts) or 'none'}"

    def digest(self) -> str:
        """A short hash of every setting that affects the result; the key of a run."""
        settings = dataclasses.asdict(self)
        used = {"randaugment"} if "randaugment" in self.policy else set()
        if ADVERSARIES[self.adversary] is not None:
            used.add(ADVERSARIES[self.adversary][1])
        unused = {"flow", "recoloring", "randaugment"} - used
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
            lists of each `[[grid]]`.
        changes: `KEY=VALUE` with the value in TOML, e.g. `flow.smoothness=30`, where
            the dot names a key of a table.

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
    cells = []
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
    return list({cell.name: cell for cell in cells}.values())


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _read(path: pathlib.Path) -> dict:
    settings = tomllib.loads(path.read_text())
    base = settings.pop("extends", None)
    if base is None:
        return settings
    inherited = _read(path.parent / base)
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(inherited.get(key), dict):
            value = {**inherited[key], **value}
        inherited[key] = value
    return inherited
