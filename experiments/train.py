"""Trains the cells of a table, several seeds each, and keeps what came out.

    python -m experiments.train --config table1/cifar10-flow-base [...] [--seeds 10]
        [--held-out test] [--results FILE] [--set KEY=VALUE ...] [--workers 1] [--smoke]

A cell is a file below `experiments/configs`, or several, where it has lists; see
`Cell`. Each run is a line of JSON in the results. Runs whose line is there are not
repeated, and a run that was interrupted goes on with the epoch in which it was.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import pathlib
import shutil
import time
import tomllib
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

import keras_structadv as ksa
from experiments import controls, datasets
from experiments.models import MODELS
from experiments.policies import AutoAugment, RandAugment, base_augmentation
from experiments.table import append_record, markdown, read_records

CONFIGS = pathlib.Path(__file__).parent / "configs"
# The layer, the table of its arguments, and the kind of gradient.
ADVERSARIES = {
    "none": None,
    "flow": (ksa.AdversarialFlow, "flow", "fresh"),
    "flow-reused": (ksa.AdversarialFlow, "flow", "reuse"),
    "random-flow": (controls.RandomFlow, "flow", "fresh"),
    "recoloring": (ksa.AdversarialRecoloring, "recoloring", "fresh"),
    "recoloring-reused": (ksa.AdversarialRecoloring, "recoloring", "reuse"),
    "random-recoloring": (controls.RandomRecoloring, "recoloring", "fresh"),
    "colour-jitter": (controls.ColourJitter, "recoloring", "fresh"),
}
POLICIES = ("none", "base", "autoaugment", "randaugment")
_AXES = ("data", "adversary", "policy")
_SMOKE_BATCH = 4
_TASKS = 25  # of a worker process
_CAPACITY = 65536


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a table: what is trained, on what, and how.

    Attributes:
        protocol: the table, the first part of the name.
        data: a name of `datasets.DESCRIPTIONS`.
        adversary: a name of `ADVERSARIES`; it acts first, on the raw image.
        policy: names of `POLICIES` joined by "+", in the order in which they act.
        model: its name in `models.MODELS` and the arguments of that function.
        epochs: how many.
        batch_size: images in a batch.
        optimizer: its name in `keras.optimizers` and its arguments; the learning rate
            decays along a cosine to zero.
        flow: arguments of `AdversarialFlow`.
        recoloring: arguments of `AdversarialRecoloring`.
        randaugment: arguments of `RandAugment`.
        precision: dtype policy, `"mixed_bfloat16"` for instance.
        resumable: whether the state is kept after each epoch, on disk.
        paper: the accuracy that the paper reports, in percent.
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
        """Raises a `ValueError` for a name that is not known."""
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
        """`protocol/data/adversary+policy`, without what is "none"."""
        parts = [x for x in (self.adversary, self.policy) if x != "none"]
        return f"{self.protocol}/{self.data}/{'+'.join(parts) or 'none'}"

    def digest(self) -> str:
        """Returns a short hash of all that may change the result."""
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
    """Returns the cells of a configuration file.

    Args:
        config: a TOML file, or its name below `experiments/configs` without the ending.
            `extends = "FILE"` takes what it does not have itself from another file;
            lists of data, adversaries or policies make a cell of each combination, and
            so do those of each `[[grid]]`.
        changes: `KEY=VALUE`, the value in TOML, e.g. `flow.smoothness=30`; a key with
            dots is of a table in the file.

    Returns:
        The cells, in the order of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a key or a value has no meaning.
    """
    path = pathlib.Path(config)
    if not path.exists():
        path = CONFIGS / f"{config}.toml"
    if not path.exists():
        raise FileNotFoundError(
            f"Received --config {config}, which is no file, and neither is {path}."
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
            pass  # a bare word is a string
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
                f"Received the keys {sorted(unknown)} in {path} or --set. Pass some "
                f"of {sorted(field.name for field in dataclasses.fields(Cell))}."
            )
        required = {f.name for f in dataclasses.fields(Cell) if _is_required(f)}
        if missing := required - set(given):
            raise ValueError(
                f"Received no {sorted(missing)} in {path}. A file named common.toml "
                "is what others extend, and no cell."
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


def augmentation(cell: Cell, seed: int) -> list[keras.layers.Layer]:
    """Returns the layers of a cell's policy, which come after the input of the model.

    There the adversary, which changes what goes into the model, comes before them.
    """
    data = datasets.DESCRIPTIONS[cell.data]
    made = []
    for part in cell.policy.split("+"):
        if part == "autoaugment":
            made.append(AutoAugment(fill=data.fill, seed=seed))
        elif part == "randaugment":
            made.append(RandAugment(**cell.randaugment, fill=data.fill, seed=seed))
        elif part == "base":
            made += base_augmentation(data.flip, data.padding, data.cutout, seed=seed)
    return made


def build(cell: Cell, seed: int, **arguments: Any) -> keras.Model:
    """Returns the model of a cell, from raw images through its policy to logits."""
    data = datasets.DESCRIPTIONS[cell.data]
    arguments = {**cell.model, **arguments}
    model = MODELS[arguments.pop("name")](data.shape, data.classes, **arguments)
    layers = augmentation(cell, seed)
    if not layers:
        return model
    return keras.Sequential([keras.Input(data.shape), *layers, model])


def adversarial(cell: Cell, seed: int, **store: Any) -> list[keras.callbacks.Callback]:
    """Returns the callback of a cell's adversary, in a list that is empty without one.

    Args:
        cell: the cell.
        seed: seed of the fields.
        **store: arguments of the `GradientStore`, where gradients are reused.
    """
    if ADVERSARIES[cell.adversary] is None:
        return []
    kind, table, gradient = ADVERSARIES[cell.adversary]
    layer = kind(**getattr(cell, table), seed=seed)
    if gradient == "reuse":
        gradient = ksa.GradientStore(**store)
    return [ksa.AdversarialTraining(layer, gradient=gradient)]


def train(
    cell: Cell,
    seed: int,
    *,
    held_out: str = "test",
    smoke: bool = False,
    verbose: int | str = 0,
    state: pathlib.Path | None = None,
    callbacks: Callable[..., list] = adversarial,
    **model: Any,
) -> tuple[keras.Model, dict]:
    """Returns a trained model and the record of its training.

    The seed sets the split, the initial weights, the order of the batches and all
    random augmentation; cells share all that is not theirs.

    Args:
        cell: what to train.
        seed: the seed.
        held_out: what to measure on, after the training: `"test"` or `"validation"`.
        smoke: whether to make but two steps, on a few made-up images.
        verbose: as in `model.fit`.
        state: the folder in which the state is kept, `None` for none.
        callbacks: makes the callbacks of the adversary; see `adversarial`.
        **model: further arguments of the function that makes the model.

    Returns:
        The model; and a record that JSON can hold: the cell, what was measured on each
        set, and the last entry of everything in `History`.
    """
    begin = time.time()
    if smoke:
        weights = {"weights": None} if "weights" in cell.model else {}
        cell = dataclasses.replace(
            cell, epochs=1, batch_size=_SMOKE_BATCH, model={**cell.model, **weights}
        )
    (x, y), sets = datasets.load(cell.data, seed, held_out, made_up=smoke)
    if smoke:
        x, y = x[: 2 * _SMOKE_BATCH], y[: 2 * _SMOKE_BATCH]
        sets = {k: tuple(a[:_SMOKE_BATCH] for a in v) for k, v in sets.items()}
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(cell.precision)
    built = build(cell, seed, **model)
    optimizer = dict(cell.optimizer)
    name = optimizer.pop("name")
    steps = cell.epochs * -(-len(x) // cell.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(optimizer.pop("learning_rate"), steps)
    built.compile(
        getattr(keras.optimizers, name)(rate, **optimizer),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    store = {"capacity": max(_CAPACITY, 4 * len(x))}
    called = []
    if state is not None:
        # The folder is removed with the record in its place, not before.
        kept = {"delete_checkpoint": False}
        store |= {"backup_dir": state, **kept}
        called = [
            keras.callbacks.BackupAndRestore(state, double_checkpoint=True, **kept)
        ]
    called += callbacks(cell, seed, **store)
    batches = shuffled(x, y, cell.batch_size, seed)
    history = built.fit(
        batches, epochs=cell.epochs, verbose=verbose, callbacks=called, shuffle=False
    ).history
    measured = {
        key: built.evaluate(*arrays, max(cell.batch_size, 256), verbose=0)[1]
        for key, arrays in sets.items()
    }
    return built, {
        "cell": cell.name,
        "seed": seed,
        "held_out": held_out,
        "accuracy": measured,
        "history": {k: v[-1] for k, v in history.items() if v},
        "paper": cell.paper,
        "digest": cell.digest(),
        "settings": dataclasses.asdict(cell),
        "seconds": round(time.time() - begin, 1),
        "versions": {"keras": keras.__version__, "backend": keras.backend.backend()},
    }


def shuffled(x: np.ndarray, y: np.ndarray, batch_size: int, seed: int) -> Any:
    """Returns batches in another order in each epoch, the same for the same seed.

    `fit` with arrays takes the same batches in every epoch once
    `keras.utils.set_random_seed` was called.
    """
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, y))
    data = data.shuffle(len(x), seed=seed, reshuffle_each_iteration=True)
    return data.batch(batch_size).prefetch(2)


def run_all(
    jobs: list,
    measure: Callable[[Any], Any],
    workers: int = 1,
    tasks: int | None = _TASKS,
) -> Iterable[tuple[Any, Any]]:
    """Yields each job and what it measured, as they end, with a progress bar.

    Args:
        jobs: arguments of `measure`, one for each call.
        measure: a function of a module, so that another process can call it.
        workers: processes; of several, each has a core of its own.
        tasks: jobs of a process, after which a new one takes its place, since Keras
            and TensorFlow let go of little; `None` to let this process do them all, if
            there is but one worker.
    """
    progress = keras.utils.Progbar(len(jobs), unit_name="training")
    if workers == 1 and tasks is None:
        for number, job in enumerate(jobs):
            yield job, measure(job)
            progress.update(number + 1)
        return
    ended, tasks = 0, tasks or _TASKS
    for first in range(0, len(jobs), workers * tasks):
        with concurrent.futures.ProcessPoolExecutor(
            max_workers=workers,
            mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not fork
            initializer=_one_thread if workers > 1 else None,
        ) as pool:
            some = jobs[first : first + workers * tasks]
            running = {pool.submit(measure, job): job for job in some}
            try:
                for future in concurrent.futures.as_completed(running):
                    yield running[future], future.result()
                    ended += 1
                    progress.update(ended)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _one_thread() -> None:
    """Keeps each worker to its own core; small models gain nothing from two."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _record(
    job: tuple[Cell, int], held_out: str, smoke: bool, verbose: int, folder: str
) -> dict:
    """Returns the record of a job, whose state is kept in a folder meanwhile."""
    cell, seed = job
    state = None
    if cell.resumable and not smoke:
        state = pathlib.Path(folder, f"{cell.digest()}-{held_out}-{seed}")
    record = train(
        cell, seed, held_out=held_out, smoke=smoke, verbose=verbose, state=state
    )[1]
    if state is not None:
        shutil.rmtree(state, ignore_errors=True)
    return record


def main(arguments: list[str] | None = None) -> None:
    """Trains what is missing, and prints the table of all that is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="+", required=True, help="cells to train")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each cell")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--held-out", default="test", choices=("test", "validation"))
    parser.add_argument("--results", type=pathlib.Path, default="results.jsonl")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=1, help="processes on CPUs")
    parser.add_argument("--verbose", type=int, default=1, help="of one process: 0 to 2")
    parser.add_argument("--smoke", action="store_true", help="two steps, few images")
    options = parser.parse_args(arguments)
    cells = [x for config in options.config for x in load_cells(config, options.set)]
    cells = list({cell.digest(): cell for cell in cells}.values())
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.smoke:
        seeds = seeds[:1]
    done = {
        (r["digest"], r["seed"], r["held_out"]): r
        for r in ([] if options.smoke else read_records(options.results))
    }
    # All cells of one seed, then the next seed: a table that grows evenly.
    jobs = [
        (cell, seed)
        for seed in seeds
        for cell in cells
        if (cell.digest(), seed, options.held_out) not in done
    ]
    wanted = {cell.digest() for cell in cells}
    records = [
        r
        for (digest, _, held), r in done.items()
        if digest in wanted and held == options.held_out
    ]
    print(f"{len(records)} runs are there, {len(jobs)} to do", flush=True)
    measure = functools.partial(
        _record,
        held_out=options.held_out,
        smoke=options.smoke,
        verbose=options.verbose if options.workers == 1 and not options.smoke else 0,
        folder=f"{options.results}.state",
    )
    large = any(cell.resumable for cell in cells)
    tasks = (5 if options.smoke else 1) if large else None
    for _, record in run_all(jobs, measure, options.workers, tasks):
        records.append(record)
        if options.smoke:
            values = [*record["accuracy"].values(), *record["history"].values()]
            if not np.all(np.isfinite(values)):
                raise ArithmeticError(f"{record['cell']}: not finite in {record}")
            print(f"\n{record['cell']}: two steps, {record['seconds']} s", flush=True)
        else:
            append_record(options.results, record)
    if not options.smoke:
        print(f"\n{markdown(records)}")


if __name__ == "__main__":
    main()
