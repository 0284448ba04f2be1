"""What is killed: each job, its state on disk, and what it ends with."""

import functools
import importlib
import json
import os
import shutil

import h5py
import keras
import numpy as np

import keras_structadv as ksa
from experiments import runs, train
from experiments.records import read_records
from keras_structadv import basis
from keras_structadv.audit import command
from keras_structadv.audit.report import RobustnessReport
from keras_structadv.audit.report_file import ARRAYS
from keras_structadv.training import reuse_step
from keras_structadv.training.store_file import read_table
from tests.audit.cases import answers, linear, smooth_images

# Imported once, before the forks.
importlib.import_module("matplotlib.pyplot")
importlib.import_module("sklearn.datasets")


class Job:
    """Something that writes files.

    Attributes:
        name: what is printed.
        share: of the kills of its kind.
        moments: which calls of `os.replace` to die at, twice their number for before
            and one more for after.
    """

    name = ""
    share = 1.0
    moments = ()

    def prepare(self, folder):
        """Makes what is there before the first run."""
        folder.mkdir()

    def run(self, folder, ready):
        """Does the job, or what is left of it; calls `ready` where kills may come."""
        raise NotImplementedError

    def check(self, folder, reference):
        """Checks what a kill left; returns what to count."""
        raise NotImplementedError

    def compare(self, folder, reference):
        """Compares the end with that of a whole run; returns what to count."""
        raise NotImplementedError


def leftovers(folder):
    return [path for path in folder.rglob("*.new")]


def in_write(folder):
    return ["while a file was written"] if leftovers(folder) else []


class Fit(Job):
    name = "fit with BackupAndRestore and a GradientStore"
    epochs, steps = 24, 3

    def prepare(self, folder):
        super().prepare(folder)
        self.exact = True

    def run(self, folder, ready):
        keras.utils.set_random_seed(0)
        random = np.random.default_rng(0)
        x = random.uniform(size=(32 * self.steps, 8, 8, 1)).astype("float32")
        y = random.integers(0, 3, len(x))
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
        kept = {"backup_dir": folder / "state", "delete_checkpoint": False}
        flow = ksa.AdversarialFlow((1.0, 1.0), rate=1.0, value_range=(0, 1), seed=0)
        store = ksa.GradientStore(**kept)

        class Ready(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                ready()

        callbacks = [
            ksa.AdversarialTraining(flow, gradient=store),
            keras.callbacks.BackupAndRestore(**kept, double_checkpoint=True),
            Ready(),
        ]
        fit = {"batch_size": 32, "epochs": self.epochs, "shuffle": False, "verbose": 0}
        history = model.fit(x, y, **fit, callbacks=callbacks).history
        assert all(rate == 1 for rate in history.get("gradient_hit_rate", [])[1:])
        with open(folder / "result.tmp", "wb") as file:
            np.savez(file, *model.get_weights())
        os.replace(folder / "result.tmp", folder / "result.npz")

    def check(self, folder, reference):
        state, found = folder / "state", in_write(folder)
        tables = [
            int(read_table(path).epochs)
            for path in (
                state / "gradient_store.npz",
                state / "gradient_store.npz.bkp",
            )
            if path.exists()
        ]
        epoch, exact = self._of_keras(state)
        if not exact:
            # The model is an epoch ahead of its number, and Keras trains that twice.
            self.exact = False
            found.append("between the two files of BackupAndRestore")
        elif epoch:
            assert epoch in tables, f"the model is of epoch {epoch}, tables: {tables}"
        return found

    def _of_keras(self, state):
        """Returns the epoch that Keras resumes, and whether its files agree."""
        for end in ("", ".bkp"):
            try:
                with h5py.File(state / f"latest.weights.h5{end}") as file:
                    done = int(file["optimizer/vars/0"][()]) / self.steps
                about = (state / f"training_metadata.json{end}").read_text()
                epoch = json.loads(about)["epoch"]
                return epoch, epoch == done
            except OSError:
                continue
        return 0, True

    def compare(self, folder, reference):
        with np.load(folder / "result.npz") as found:
            with np.load(reference / "result.npz") as wanted:
                apart = max(
                    float(np.abs(found[name] - wanted[name]).max()) for name in wanted
                )
        assert apart < 1e-6 or not self.exact, apart
        return ["ends equal to 1e-6"] if apart < 1e-6 else ["ends an epoch further"]


class ShortFit(Fit):
    moments = (3, 5)  # after the table of an epoch moved aside, and after the new one
    epochs = 4


class Basis(Job):
    name = "precompute_basis"
    moments = tuple(range(10))
    images = np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 3))

    def run(self, folder, ready):
        def quick(operator, rank):
            values = keras.ops.transpose(operator.diagonal(), (3, 0, 1, 2))[..., None]
            return values * np.arange(1, rank + 1, dtype="float32")

        basis.recoloring_basis = quick  # the files matter, not the solve
        basis.fused = lambda function, in_eager=False: function
        images = np.resize(self.images, (self.count(), *self.images.shape[1:]))
        ready()
        ksa.precompute_basis(images, folder / "basis.npy", 8, batch_size=1, verbose=0)

    def count(self):
        return 3

    def check(self, folder, reference):
        path, wanted = folder / "basis.npy", np.load(reference / "basis.npy")
        found = in_write(folder)
        record = folder / "basis.npy.json"
        if not record.exists():
            return [*found, "before the first file"]
        done = json.loads(record.read_text())["done"]
        if path.exists():
            np.testing.assert_array_equal(np.load(path), wanted)
            return [*found, "at the end"]
        part = folder / "basis.npy.part"
        if done:
            held = np.load(part, mmap_mode="r")
            np.testing.assert_array_equal(held[:done], wanted[:done])
        return found

    def compare(self, folder, reference):
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["basis.npy", "basis.npy.json"], names
        for name in names:
            assert (folder / name).read_bytes() == (reference / name).read_bytes()
        return ["ends equal to the byte"]


class LongBasis(Basis):
    def count(self):
        return 60


class Train(Job):
    name = "experiments.train in one process"
    share = 0.9
    moments = ()
    arguments = (
        *("--config", "small/digits", "--seeds", "2", "--verbose", "0"),
        *("--set", "adversary=flow-reused", "policy=none", "epochs=3", "attack={}"),
        *("resumable=true", "flow.rate=0.5"),
    )

    def run(self, folder, ready):
        def on_train_batch_end(callback, batch, logs=None):
            ready()

        runs.Progress.on_train_batch_end = on_train_batch_end
        # Left to TensorFlow: the compilation by XLA takes longer than the run.
        reuse_step.fused = lambda function, in_eager=False: function
        reuse_step.shared = functools.partial
        plain = train.run_all
        train.run_all = lambda jobs, measure, workers, tasks: plain(
            jobs, measure, 1, None
        )
        train.main([*self.arguments, "--results", str(folder / "results.jsonl")])

    def check(self, folder, reference):
        found = in_write(folder)
        wanted = records_of(reference)
        have = records_of(folder)
        for seed, record in have.items():
            assert same(record, wanted[seed]), f"seed {seed}: {record}"
        for path in folder.rglob("progress.npz"):
            with np.load(path) as file:
                assert json.loads(str(file["about"]))["epochs"] >= 1
        return [*found, *(["between two runs"] if have and len(have) < 2 else [])]

    def compare(self, folder, reference):
        wanted, found = records_of(reference), records_of(folder)
        assert found.keys() == wanted.keys()
        for seed in wanted:
            assert same(found[seed], wanted[seed]), (found[seed], wanted[seed])
        assert not list(folder.glob("results.jsonl.state/*"))
        return ["ends with equal records"]


def records_of(folder):
    records = read_records(folder / "results.jsonl")
    by_seed = {record["seed"]: record for record in records}
    assert len(by_seed) == len(records)
    return by_seed


def same(one, other):
    """Whether two records agree in all but the time."""
    for name in ("accuracy", "history", "early"):
        if one[name].keys() != other[name].keys():
            return False
        for key, value in one[name].items():
            if not np.isclose(value, other[name][key], rtol=1e-4, atol=1e-6):
                return False
    return True


class TrainInWorker(Train):
    name = "experiments.train with its worker"
    share = 0.1
    moments = ()

    def run(self, folder, ready):
        ready()
        train.main([*self.arguments, "--results", str(folder / "results.jsonl")])


class AuditFiles(Job):
    """The command, with a report that is there in the place of model and attack."""

    name = "python -m keras_structadv audit, its files only"
    share = 0.6
    moments = (0, 1, 2, 3)

    def prepare(self, folder):
        old = folder.parent / "old"
        shutil.copytree(old, folder) if old.exists() else folder.mkdir()

    def run(self, folder, ready):
        if not (folder.parent / "old").exists():
            self._first(folder)
        new = RobustnessReport.load(folder.parent / "new")
        command._model = command._data = lambda *arguments: (None, None, None)
        command.evaluate_robustness = lambda *arguments, **options: new
        plain = command._write

        def write(*arguments):
            ready()
            plain(*arguments)

        command._write = write
        assert command.main(["audit", "model", "data", "--out", str(folder)]) == 0

    def _first(self, folder):
        """Audits twice: one report is the new one, the other the old one."""
        model, data = self._inputs(folder)
        for name, seed in (("new", 0), ("old", 1)):
            given = ["--out", str(folder.parent / name), "--seed", str(seed)]
            assert command.main([*self._arguments(model, data), *given]) == 0

    def _inputs(self, folder):
        model, data = folder.parent / "model.keras", folder.parent / "data.npz"
        if not data.exists():
            x = smooth_images(64)
            made = linear()
            np.savez(data, x=x, y=answers(made, x))
            made.save(model)
        return model, data

    def _arguments(self, model, data):
        quick = ("--strengths", "0", "1", "2", "--steps", "2", "--random", "4")
        return ["audit", str(model), str(data), *quick]

    def check(self, folder, reference):
        found = in_write(folder)
        report = contents(folder)
        assert report in (contents(folder.parent / "old"), contents(reference))
        kind = folder.parent / "old"
        if report == contents(reference):
            found.append("after the new report")
            kind = reference
        for name in ("report.json", "report.md", "curves.png", "worst.png"):
            if (folder / name).exists():
                self._match(folder / name, kind / name)
        return found

    def _match(self, one, other):
        if one.name == "report.json":
            one, other = (json.loads(path.read_text())["rows"] for path in (one, other))
            assert one == other
        else:
            assert one.read_bytes() == other.read_bytes(), one

    def compare(self, folder, reference):
        names = [sorted(x.name for x in path.iterdir()) for path in (folder, reference)]
        assert names[0] == names[1], names
        assert contents(folder) == contents(reference)
        for name in names[0]:
            if name != "report.npz":
                self._match(folder / name, reference / name)
        return ["ends with an equal report"]


class AuditCommand(AuditFiles):
    name = "python -m keras_structadv audit"
    share = 0.2
    moments = ()

    def run(self, folder, ready):
        if not (folder.parent / "old").exists():
            self._first(folder)
        plain = command.evaluate_robustness

        def evaluate(*arguments, **options):
            ready()
            return plain(*arguments, **options)

        command.evaluate_robustness = evaluate
        given = ["--out", str(folder), "--seed", "0"]
        assert command.main([*self._arguments(*self._inputs(folder)), *given]) == 0


class Report(AuditFiles):
    name = "evaluate_robustness(...).save()"
    share = 0.2
    moments = ()

    def run(self, folder, ready):
        if not (folder.parent / "old").exists():
            self._audit(folder, 1, folder.parent / "old", lambda: None)
        self._audit(folder, 0, folder, ready)

    def _audit(self, folder, seed, out, ready):
        model, data = self._inputs(folder)
        model, data = keras.saving.load_model(model), np.load(data)
        ready()
        attack = {"strengths": (0, 1, 2), "steps": 2, "random": 4, "seed": seed}
        ksa.evaluate_robustness(model, data["x"], data["y"], **attack, verbose=0).save(
            out
        )


def contents(folder):
    """Returns what a report holds, but for the seconds that it took."""
    report = RobustnessReport.load(folder)
    arrays = [getattr(report, name).tobytes() for name in ARRAYS]
    arrays += [report.scores[name].tobytes() for name in sorted(report.scores)]
    return arrays, {k: v for k, v in report.settings.items() if k != "seconds"}


JOBS = {
    "fit": [Fit()],
    "basis": [LongBasis()],
    "train": [Train(), TrainInWorker()],
    "audit": [AuditFiles(), AuditCommand(), Report()],
}
MOMENTS = {"fit": [ShortFit()], "basis": [Basis()], "audit": [AuditFiles()]}
