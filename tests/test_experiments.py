"""The experiments: data, models, cells, training, tables, searches."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import scipy.stats

import keras_structadv as ksa
from experiments import (
    attack,
    datasets,
    models,
    paired,
    runs,
    search,
    table,
    train,
    workers,
)
from experiments.adversaries import ADVERSARIES
from experiments.cells import CONFIGS, Cell, load_cells
from experiments.plans import PLAIN, VARIANTS
from experiments.records import append_record, read_records
from keras_structadv.layers.base import StructuredAdversary
from tests.damage import small_files

DATA = ("cifar10", "cifar100", "stl10")
# Tables 1 and 2 of the paper, in percent, in the order of `DATA`.
TABLE_1 = {
    ("none", "base"): (95.56, 77.41, 84.60),
    ("none", "autoaugment+base"): (95.70, 77.41, 84.46),
    ("none", "randaugment+base"): (94.95, 74.56, 88.75),
    ("flow", "base"): (95.79, 76.82, 85.41),
    ("flow", "autoaugment+base"): (95.77, 77.26, 85.39),
    ("flow", "randaugment+base"): (93.22, 70.14, 87.96),
    ("recoloring", "base"): (95.80, 77.45, 86.11),
    ("recoloring", "autoaugment+base"): (95.86, 76.97, 85.21),
    ("recoloring", "randaugment+base"): (94.78, 74.18, 88.84),
}
TABLE_2 = {
    ("none", "none"): (97.52, 85.68, 97.55),
    ("none", "autoaugment"): (97.44, 84.09, 97.32),
    ("none", "randaugment"): (96.39, 80.38, 97.14),
    ("flow", "none"): (97.60, 85.87, 97.61),
    ("recoloring", "none"): (97.34, 85.25, 97.61),
}


def paper_cells(name):
    files = sorted((CONFIGS / name).glob("*-*.toml"))
    return [cell for file in files for cell in load_cells(str(file))]


def tiny(cell_name, *changes):
    """Returns changes under which the model of a cell takes no time."""
    size = ("model.size=32",)
    if cell_name.startswith("small"):
        size += ("adversary=recoloring-reused", "attack.random=1", "attack.steps=1")
    if cell_name.startswith("table1"):
        size = ("model.depth=8", "model.width=1")
    return [*size, *changes]


@pytest.mark.parametrize("name, numbers", [("table1", TABLE_1), ("table2", TABLE_2)])
def test_every_cell_of_the_paper_has_a_file(name, numbers):
    cells = paper_cells(name)
    found = {(c.data, c.adversary, c.policy): c.paper for c in cells}
    assert found == {
        (data, *key): row[i]
        for key, row in numbers.items()
        for i, data in enumerate(DATA)
    }
    assert len(cells) == len({c.name for c in cells}) == 3 * len(numbers)
    for cell in cells:
        rates = {cell.flow["rate"], cell.recoloring["rate"]}
        if name == "table1":
            assert cell.model == {"name": "wide-resnet", "depth": 32, "width": 10}
            assert (cell.epochs, cell.batch_size, rates) == (200, 128, {0.5})
            assert cell.optimizer["learning_rate"] == 0.1
            # Of Keras' decay, outside of the momentum, ten times what it is inside.
            assert cell.optimizer["weight_decay"] == pytest.approx(5e-4 / (1 - 0.9))
        else:
            assert (cell.model["name"], cell.epochs) == ("efficientnet-b0", 350)
            assert rates == {1.0}


@pytest.mark.rare
@pytest.mark.parametrize(
    "cell",
    [
        "table1/cifar10-flow-autoaugment",
        "table1/stl10-recoloring-randaugment",
        "table2/cifar100-recoloring",
        "small/finetune-recoloring",
    ],
)
def test_cells_run(cell, capsys):
    train.main(["--config", cell, "--smoke", "--set", *tiny(cell)])
    assert "two steps" in capsys.readouterr().out


@pytest.mark.rare
@pytest.mark.parametrize("adversary", [x for x in ADVERSARIES if x != "none"])
def test_adversaries_run_with_a_policy(adversary, capsys):
    changes = [f"adversary={adversary}", "policy=base"]
    (cell,) = load_cells("small/colour-glyphs", changes)
    _, record = runs.train(cell, 0, smoke=True)
    kind = ADVERSARIES[adversary].kind
    measured = {"loss"}
    if issubclass(kind, StructuredAdversary):
        measured.add(kind.measure_name)
        measured |= {"adversarial_loss_gain"} if kind.takes_gradient else set()
    assert measured <= set(record["history"])
    assert set(record["accuracy"]) == {"same colours", "unseen colours"}
    assert json.loads(json.dumps(record)) == record


def test_finetuning_takes_the_arguments_that_were_searched_on_mnist():
    searched = {x.adversary: x.arguments for x in load_cells("small/mnist-200")}
    cells = load_cells("small/finetune")
    rows = ["none", "keras-randaugment", "random-flow", "flow-reused"]
    assert [cell.adversary for cell in cells] == rows
    for cell in cells:
        assert cell.arguments == searched[cell.adversary]


def test_the_adversary_sees_raw_images_and_the_policy_comes_after_it():
    changes = ["adversary=flow", "policy=randaugment+base", "flow.rate=1"]
    (cell,) = load_cells("small/digits", changes)
    model = runs.build(cell, 0)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["RandAugment", "PadAndCrop", "Cutout", "Sequential"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    (x, y), _ = datasets.load("digits")
    plain = model.layers[-1]
    plain.compile("sgd", loss)
    # The gradient is that of the images as they are: in inference no policy acts.
    np.testing.assert_allclose(
        *(ksa.per_image_gradients(m, x[:4], y[:4]) for m in (model, plain)), rtol=1e-5
    )
    images = x[:8].astype("float32")
    assert not np.allclose(model.layers[0](images, training=True), images)


@pytest.mark.parametrize(
    "config, changes, error, words",
    [
        ("table1/nothing", [], FileNotFoundError, "nothing"),
        ("small/digits", ["colour=red"], ValueError, "colour.*adversary"),
        ("small/digits", ["adversary=wind"], ValueError, "wind.*random-flow"),
        ("small/digits", ["policy=base+wind"], ValueError, "wind.*autoaugment"),
        ("small/digits", ["data=mnist"], ValueError, "mnist.*digits"),
        ("small/digits", ["model.name=vgg"], ValueError, "vgg.*small-cnn"),
        ("small/digits", ["epochs"], ValueError, "KEY=VALUE"),
        ("table1/common", [], ValueError, "no \\['data'\\].*no cell"),
    ],
)
def test_a_wrong_configuration_says_what_is_known(config, changes, error, words):
    with pytest.raises(error, match=words):
        load_cells(config, changes)


def test_changes_and_lists():
    changes = ["flow.smoothness=30", 'policy=["none", "base"]']
    cells = load_cells("small/glyphs", [*changes, 'adversary=["none", "flow"]'])
    assert [c.name for c in cells] == [
        "small/glyphs/none",
        "small/glyphs/base",
        "small/glyphs/flow",
        "small/glyphs/flow+base",
    ]
    # A table of a file is added to that of the file that it extends.
    assert cells[0].flow == {"max_displacement": 4.0, "smoothness": 30, "rate": 0.75}
    assert len({c.digest() for c in cells}) == 4


@pytest.mark.parametrize(
    "changes, same",
    [
        (["paper=90"], True),
        (["resumable=true"], True),
        (["recoloring.magnitude=0.9"], True),  # of a flow
        (["randaugment.magnitude=20"], True),  # of another policy
        (["flow.smoothness=30"], False),
        (["epochs=3"], False),
        (["policy=randaugment"], False),
    ],
)
def test_the_digest_is_of_what_changes_the_result(changes, same):
    plain = ["adversary=flow", "policy=base"]
    digests = [load_cells("small/digits", plain + x)[0].digest() for x in ([], changes)]
    assert (digests[0] == digests[1]) == same


def test_recorded_runs_are_still_found_by_their_digests():
    # Results are resumed by the digest: a change of it would train them all again.
    results = CONFIGS.parent / "results"
    for record in read_records(results / "small.jsonl"):
        assert Cell(**record["settings"]).digest() == record["digest"], record["cell"]
    recorded = {
        (record["data"], record["digest"])
        for record in read_records(results / "variants.jsonl")
    }
    assert recorded and recorded <= {
        (data, load_cells(f"small/{data}", PLAIN)[0].digest()) for data in VARIANTS
    }


def test_batches_change_from_epoch_to_epoch():
    x = np.arange(20)
    epochs = [
        [batch.numpy().tolist() for batch, _ in batches]
        for batches in [runs.shuffled(x, x, 8, seed=1)] * 3
    ]
    assert [len(batch) for batch in epochs[0]] == [8, 8, 4]
    assert all(sorted(sum(epoch, [])) == x.tolist() for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    again = runs.shuffled(x, x, 8, seed=1)
    assert [batch.numpy().tolist() for batch, _ in again] == epochs[0]


@pytest.mark.parametrize("name", datasets.DESCRIPTIONS)
def test_data(name):
    description = datasets.DESCRIPTIONS[name]
    (x, y), tests = datasets.load(name, seed=3, made_up=True)
    (x_rest, y_rest), validation = datasets.load(name, 3, "validation", made_up=True)
    assert set(tests) == set(validation)
    for images, labels in ((x, y), (x_rest, y_rest), *tests.values()):
        assert images.dtype == np.uint8 and images.shape[1:] == description.shape
        assert labels.dtype == np.int32 and labels.shape == images.shape[:1]
        assert 0 <= labels.min() and labels.max() < description.classes
    held_out = next(iter(validation.values()))[0]
    seen = {image.tobytes() for image in x_rest}
    assert not any(image.tobytes() in seen for image in held_out)
    if name in datasets._EMBEDDED:
        assert len(x) == description.train_size == len(x_rest)
        assert len(next(iter(tests.values()))[0]) == description.test_size
        tested = next(iter(tests.values()))[0]
        assert not any(image.tobytes() in seen for image in tested)
    else:
        assert len(x_rest) == 0.9 * len(x) and len(held_out) == 0.1 * len(x)
    (other, _), _ = datasets.load(name, 4, "validation", made_up=True)
    assert not np.array_equal(other, x_rest)


def test_the_digits_of_the_test_do_not_depend_on_the_seed():
    first, second = (datasets.load("digits", seed)[1][""][0] for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_no_digit_of_a_test_is_one_of_another_seed_s_choices():
    chosen, tested = set(), set()
    for seed in range(3):
        (x, _), sets = datasets.load("mnist-200", seed, "validation")
        chosen |= {image.tobytes() for image in (*x, *sets[""][0])}
        (again, _), sets = datasets.load("mnist-200", seed)
        np.testing.assert_array_equal(again, x)
        tested |= {image.tobytes() for image in sets[""][0]}
    assert len(chosen) == 2500 and 2000 < len(tested) <= 2500
    assert not chosen & tested


def test_cifar_comes_from_keras(monkeypatch):
    made = datasets._noise("cifar10")
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: made)
    (x, y), sets = datasets.load("cifar10")
    np.testing.assert_array_equal(x, made[0][0])
    np.testing.assert_array_equal(y, made[0][1][:, 0])
    np.testing.assert_array_equal(sets[""][0], made[1][0])


def test_what_cannot_be_downloaded_is_said(monkeypatch):
    def fail():
        raise OSError("no route")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    with pytest.raises(RuntimeError, match="cifar10.*no route.*internet"):
        datasets.load("cifar10")
    with pytest.raises(ValueError, match="mnist"):
        datasets.load("mnist")
    with pytest.raises(ValueError, match="train"):
        datasets.load("digits", held_out="train")


def test_wide_resnet():
    # The authors give 36.5 million weights for 28-10.
    model = models.wide_resnet((32, 32, 3), 10, depth=28, width=10)
    assert round(model.count_params() / 1e6, 1) == 36.5
    blocks = [
        sum(isinstance(x, keras.layers.Add) for x in model.layers)
        for model in (
            models.wide_resnet((8, 8, 3), 10, depth=depth, width=1)
            for depth in (28, 32, 34)
        )
    ]
    assert blocks == [12, 15, 15]
    with pytest.raises(ValueError, match="30"):
        models.wide_resnet((32, 32, 3), 10, depth=30)


def test_missing_weights_are_said(monkeypatch):
    def fail(**_):
        raise OSError("no route")

    monkeypatch.setattr(keras.applications, "EfficientNetB0", fail)
    with pytest.raises(RuntimeError, match="imagenet.*no route.*model.weights"):
        models.efficientnet_b0((32, 32, 3), 10)


def results_of(path, *arguments):
    common = ["--config", "small/digits", "--results", str(path), "--set", "epochs=2"]
    train.main([*common, "adversary=flow", "policy=none", *arguments])
    return read_records(path)


def test_runs_that_are_there_are_not_repeated(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    first = results_of(path, "--seeds", "2")
    assert [r["seed"] for r in first] == [0, 1]
    assert "0 runs are there, 2 to do" in capsys.readouterr().out
    with path.open("a") as file:
        file.write('{"cell": "small/digits/flow", "se')  # interrupted while it wrote
    assert results_of(path, "--seeds", "2") == first
    out = capsys.readouterr().out
    assert "2 runs are there, 0 to do" in out and "| flow | none | 2 |" in out
    # Another setting, and another set to measure on, are other runs.
    assert len(results_of(path, "flow.rate=1", "--seeds", "1")) == 3
    held_out = results_of(path, "--seeds", "1", "--held-out", "validation")
    assert len(held_out) == 4 and held_out[-1]["held_out"] == "validation"
    # The same seed gives the same result.
    path.unlink()
    assert results_of(path, "--seeds", "1")[0]["accuracy"] == first[0]["accuracy"]


def test_an_interrupted_run_is_the_uninterrupted_one(tmp_path):
    changes = ["adversary=flow-reused", "policy=none", "epochs=4"]
    (cell,) = load_cells("small/digits", changes)
    _, whole = runs.train(cell, 0)
    epochs = []

    class Interrupted(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            epochs.append(epoch)
            if len(epochs) == 3:
                raise RuntimeError("interrupted")

    def callbacks(*arguments, **store):
        return [*runs.adversarial(*arguments, **store), Interrupted()]

    with pytest.raises(RuntimeError, match="interrupted"):
        runs.train(cell, 0, state=tmp_path, callbacks=callbacks)
    _, record = runs.train(cell, 0, state=tmp_path, callbacks=callbacks)
    assert epochs == [0, 1, 2, 2, 3]
    assert record["history"]["gradient_hit_rate"] > 0.5  # the store came back too
    for name in ("accuracy", "history", "early"):
        assert record[name] == pytest.approx(whole[name], rel=1e-4)
    # Its record was not written, but nothing is left to train.
    _, again = runs.train(cell, 0, state=tmp_path, callbacks=callbacks)
    assert again["history"] == record["history"]
    path = tmp_path / "progress.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="progress.npz is no state.*Delete the folder"):
        runs.train(cell, 0, state=tmp_path)


def test_the_state_of_a_run_stays_until_it_is_recorded(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    common = ["resumable=true", "--seeds", "1"]
    monkeypatch.setattr(
        train, "run_all", lambda jobs, one, *_: workers.run_all(jobs, one, 1, None)
    )

    def fails(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(train, "append_record", fails)
        results_of(path, *common)
    (state,) = tmp_path.glob("results.jsonl.state/*")
    assert len(results_of(path, *common)) == 1 and not state.exists()
    state.mkdir()  # killed after the record
    assert len(results_of(path, *common)) == 1 and not state.exists()


PARENT = """
import sys, time
from experiments import workers
if __name__ == "__main__":
    dict(workers.run_all([300.0], time.sleep, workers=1, tasks=1))
"""


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], env={**os.environ, "PYTHONPATH": "."}
    ) as parent:
        try:
            wait_for(lambda: "spawn_main" in commands_below(parent.pid))
            below = children_of(parent.pid)
            time.sleep(1)
        finally:
            parent.kill()
    wait_for(lambda: not any(is_running(number) for number in below))


def children_of(number):
    return [int(x) for x in _read(f"/proc/{number}/task/{number}/children").split()]


def commands_below(number):
    return " ".join(_read(f"/proc/{x}/cmdline") for x in children_of(number))


def is_running(number):
    state = _read(f"/proc/{number}/stat").rpartition(")")[2].split()
    return bool(state) and state[0] != "Z"


def _read(path):
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_processes_lose_no_line(tmp_path):
    path, count = tmp_path / "results.jsonl", 200
    script = (
        "import pathlib, sys; from experiments.records import append_record\n"
        f"for n in range({count}):\n"
        f"    record = {{'who': sys.argv[1], 'n': n, 'long': 'x' * 30000}}\n"
        f"    append_record(pathlib.Path({str(path)!r}), record)"
    )
    both = [subprocess.Popen([sys.executable, "-c", script, who]) for who in "ab"]
    assert [one.wait() for one in both] == [0, 0]
    records = read_records(path)
    found = [(record["who"], record["n"]) for record in records]
    assert sorted(found) == [(who, n) for who in "ab" for n in range(count)]


def test_a_full_disk_leaves_whole_lines(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    append_record(path, {"n": 1})
    with small_files(100), pytest.raises(OSError, match="too large"):
        append_record(path, {"n": "x" * 30_000})
    assert path.read_text() == '{"n": 1}\n'
    with path.open("ab") as file:
        file.write(b"5\n" + b"[" * 20_000 + b"\n\xff\n")
    assert read_records(path) == [{"n": 1}]
    err = capsys.readouterr().err
    assert [f"line {n}: skipped" in err for n in (1, 2, 3, 4)] == [False, *[True] * 3]


@pytest.mark.parametrize(
    "text, words",
    [
        ("extends = 'own.toml'", "own.toml extends itself"),
        ("extends = 'digits", "own.toml is no TOML"),
        ("x = " + "[" * 20_000, "own.toml is no TOML"),
        ("epochs = 1000000000", "epochs=1000000000. Pass an integer <="),
        ("epochs = 'many'", "epochs='many'"),
        ("batch_size = 0", "batch_size=0"),
        ("model = 'small-cnn'", "model='small-cnn'. Pass a table"),
        ("model = {name = 'wide-resnet', depth = 1000000}", "model.depth=1000000"),
        ("attack = {steps = 1000000000}", "attack.steps=1000000000"),
        ("resumable = 1", "resumable=1. Pass a bool"),
        ("optimizer = {name = 'deserialize', learning_rate = 1}", "class of"),
        ("optimizer = {name = '__name__', learning_rate = 1}", "class of"),
    ],
)
def test_a_configuration_of_a_stranger_is_checked(tmp_path, text, words):
    path = tmp_path / "own.toml"
    base = "" if "extends" in text else f"extends = '{CONFIGS}/small/digits.toml'\n"
    path.write_text(base + text)
    with pytest.raises(ValueError, match=words):
        load_cells(str(path))


@pytest.mark.rare
def test_workers_are_renewed_and_no_job_is_lost():
    results = dict(workers.run_all([-3, -2, -1], abs, workers=2, tasks=1))
    assert results == {-3: 3, -2: 2, -1: 1}
    results = []
    with pytest.raises(TypeError, match="bad operand"):
        results.extend(workers.run_all(["no number", -2, -1], abs, workers=2))


def test_table():
    settings = {"protocol": "p", "data": "d", "policy": "base"}
    records = [
        {
            "cell": adversary,
            "digest": "one",
            "seed": seed,
            "paper": 95.5,
            "accuracy": {"": accuracy},
            "settings": {**settings, "adversary": adversary},
        }
        for adversary, row in {
            "none": (0.5, 0.6),
            "random-flow": (0.6, 0.7),
            "flow": (0.8, 0.7),
        }.items()
        for seed, accuracy in enumerate(row)
    ]
    rows = table.markdown(records).splitlines()
    assert rows[0] == "p, d" and "the paper's" in rows[2]
    assert (
        "| flow | base | 2 | 0.7500 ± 0.0500 | +0.2000 ± 0.1000 (t 2.0, p 0.590) |"
        in rows[-1]
    )
    assert "+0.1000 ± 0.1000 (t 1.0, p 0.590) | 0.9550 |" in rows[-1]
    # Seeds that only one of two rows has do not count.
    rows = table.markdown(records[:-1]).splitlines()
    assert "| flow | base | 1 | 0.8000 | +0.3000 | +0.2000 |" in rows[-1]
    # What was trained with other settings is another row.
    rows = table.markdown(
        [*records[:-1], {**records[-1], "digest": "two"}]
    ).splitlines()
    assert "| flow [one] | base | 1 | 0.8000 |" in rows[-2]
    assert "| flow [two] | base | 1 | 0.7000 |" in rows[-1]


def test_the_worst_case_stands_beside_the_clean_accuracy():
    records = [
        {
            "cell": adversary,
            "digest": "one",
            "seed": seed,
            "paper": None,
            "accuracy": {"": 0.9},
            "worst_case": {
                "": {
                    "gradient": {"1": worst + 0.1 * seed},
                    "random": {"1": 0.8},
                    "both": {"1": worst + 0.01 * seed},
                }
            },
            "settings": {
                "protocol": "p",
                "data": "d",
                "policy": "none",
                "adversary": adversary,
            },
        }
        for adversary, worst in (("none", 0.2), ("random-flow", 0.3), ("flow", 0.5))
        for seed in range(2)
    ]
    text = table.markdown(records, control="random-flow")
    both, apart = text.split("p, d, each attack")
    assert "| worst case, 1 | minus none | minus random-flow |" in both
    assert "| flow | none | 2 | 0.9000 ± 0.0000 | +0.0000 ± 0.0000 |" in both
    assert "| 0.5050 ± 0.0050 | +0.3000 ± 0.0000 | +0.2000 ± 0.0000 |" in both
    assert "| flow | none | 2 | 0.5500 ± 0.0500 | 0.8000 ± 0.0000 |" in apart


def test_holm():
    # Each p times the number of those that are not smaller, and never falling.
    corrected = paired.holm([0.04, 0.01, 0.03, 0.5])
    np.testing.assert_allclose(corrected, [0.09, 0.04, 0.09, 0.5])
    values = np.array([0.1, 0.3, 0.2, 0.2])
    expected = scipy.stats.ttest_1samp(values, 0)
    np.testing.assert_allclose(paired.t_and_p(values), [*expected])


def test_a_brief_table():
    records = [
        {
            "settings": {"adversary": adversary},
            "seed": seed,
            "accuracy": {"": 0.9 + 0.01 * seed + lead},
            "worst_case": {
                "": {
                    "both": {"1": 0.4 + 0.002 * seed + 5 * lead},
                    "random": {"1": 0.8 - lead},
                }
            },
        }
        for adversary, lead in (("flow-reused", 0.02), ("random-flow", 0.0))
        for seed in range(3)
    ]
    records[0]["worst_case"][""]["both"]["1"] += 0.003
    lines = table.brief(records, "random-flow").splitlines()
    assert lines[0].split(" | ")[2:] == [
        "clean",
        "minus control",
        "worst case, 1",
        "minus control |",
    ]
    assert lines[2] == "| random flow | 3 | .910 ± .006 |  | .402 ± .001 |  |"
    assert lines[3].startswith(
        "| adversarial flow, reused | 3 | .930 ± .006 | +.020 | .503 ± .001 | +.101 (t "
    )
    difference = paired.t_and_p(np.array([0.103, 0.1, 0.1]))
    assert f"(t {difference[0]:.1f})*" in lines[3]

    lines = table.brief(records, "random-flow", by="random").splitlines()
    assert " | .800 ± .000 |  |" in lines[2] and " | .780 ± .000 | -.020" in lines[3]

    # A table for each attack on the control; its name tells what is not in the others.
    others = [
        {
            **record,
            "settings": {**record["settings"], "attack": {"kind": "flow", **attack}},
        }
        for record, attack in itertools.product(records, ({}, {"steps": 50}))
    ]
    text = table.brief(others, "random-flow")
    assert text.count("| random flow | 3 |") == 2
    assert text.startswith("Attack with steps by default:\n\n| training")
    assert "\n\nAttack with steps 50:\n\n| training" in text
    reused = [r for r in others if r["settings"]["adversary"] == "flow-reused"]
    text = table.brief([*reused, *records[3:]], "random-flow")
    assert "random flow" in text and "reused" not in text


def test_search_repeats_no_trial_and_cells_take_the_best(tmp_path, capsys, monkeypatch):
    def trained(cell, seed, **_):  # the best displacement is 5 pixels
        strength = cell.arguments.get("max_displacement", 0)
        found = 1 / (1 + abs(strength - 5) + seed / 1e5)
        assert cell.attack["strengths"] == [1]
        # The other measure goes the other way, and weighs less.
        return None, {
            "accuracy": {"": 0.5 - 0.1 * found},
            "worst_case": {"": {"gradient": {"1": found}}},
        }

    monkeypatch.setattr(search, "train", trained)
    path = tmp_path / "search.jsonl"
    changes = ['adversary=["none", "flow", "fgm-l2"]']
    arguments = ["--config", "small/mnist-50", "--results", str(path)]
    arguments += ["--workers", "1", "--set", *changes, "--trials"]
    with pytest.raises(ValueError, match="no trial of small/mnist-50/flow.*search"):
        load_cells("small/mnist-50", [*changes, f"searched={path}"])
    search.main([*arguments, "1"])
    assert "trial 0: 4 runs to do" in capsys.readouterr().out
    search.main([*arguments, "9"])
    out = capsys.readouterr().out
    assert "trial 0: 0 runs to do" in out and "trial 8: 4 runs to do" in out
    records = read_records(path)
    flow, pixel = (records[i::2] for i in (0, 1))
    assert flow[0]["settings"] == pixel[0]["settings"] == {}
    assert set(flow[1]["settings"]) == {"max_displacement", "smoothness", "rate"}
    assert set(flow[1]["accuracies"]) == set(flow[1]["worst"]) == {"1000", "1001"}
    # A search that starts again where it was interrupted draws the same.
    path.write_text("".join(json.dumps(x) + "\n" for x in records[:5]))
    search.main([*arguments, "9"])
    assert read_records(path) == records
    # Rows with one space begin alike.
    rows = load_cells(
        "small/mnist-50", ["searched=", 'adversary=["flow", "random-flow"]']
    )
    first, second = (search.proposed(cell, flow[:1]) for cell in rows)
    assert first == second == flow[1]["drawn"]
    # The cells of a table take the best of each row.
    cells = load_cells("small/mnist-50", [*changes, f"searched={path}"])
    best = min(flow[1:], key=lambda x: abs(x["settings"]["max_displacement"] - 5))
    assert [x.arguments for x in cells] == [{}, best["settings"], {}]
    # Trials of another training are none of these.
    with pytest.raises(ValueError, match="no trial"):
        load_cells("small/mnist-50", [*changes, "epochs=2", f"searched={path}"])
    with pytest.raises(ValueError, match="no cell with an adversary"):
        search.main([*arguments, "1", "--set", "adversary=none"])


@pytest.mark.parametrize("adversary", [x for x in ADVERSARIES if x != "none"])
def test_what_a_search_draws_makes_an_adversary(adversary):
    (cell,) = load_cells("small/colour-glyphs", [f"adversary={adversary}"])[:1]
    cell = cell.to_search()
    trials, settings = [], []
    for number in range(8):
        drawn = search.proposed(cell, trials)
        tried = cell.with_arguments(**search.arguments_of(cell, drawn))
        settings.append(json.dumps(tried.arguments))
        assert runs.layer_of(tried, seed=1) is not None
        trials.append({"drawn": drawn, "accuracies": {"1000": number / 10}})
    assert settings[0] == "{}" and len(set(settings)) > 5


def test_layers_of_keras_change_each_image_by_itself_and_anew():
    (cell,) = load_cells("small/mnist-50", ["searched=", "adversary=elastic-transform"])
    x = np.repeat(datasets.load("mnist-50")[0][0][:1], 8, axis=0)
    first, second = (
        next(iter(batches))[0].numpy()
        for batches in [runs.shuffled(x, np.arange(8), 8, 1, runs.mapped(cell, 1))] * 2
    )
    changed = np.concatenate([first, second]).reshape(16, -1)
    apart = np.abs(changed[:, None] - changed[None]).max(axis=-1)
    assert np.mean(apart[np.triu_indices(16, 1)] > 1) > 0.8  # some hardly move
    np.testing.assert_allclose(changed.mean(), x.mean(), rtol=0.1)


@pytest.mark.parametrize(
    "kind, strengths", [("flow", [0, 1, 3]), ("recoloring", [0.3])]
)
def test_worst_case(kind, strengths, trained):
    model, x, y = trained
    clean = np.mean(np.argmax(model.predict(x[:60], verbose=0), axis=-1) == y[:60])
    weights = model.get_weights()
    found = attack.worst_case(
        model, x, y, kind=kind, strengths=strengths, count=60, steps=4, random=8
    )
    assert set(found) == {"gradient", "random", "both"}
    for accuracies in found.values():
        assert [*accuracies] == [f"{strength:g}" for strength in strengths]
        assert sorted(accuracies.values(), reverse=True) == [*accuracies.values()]
        assert all(0 <= value <= clean + 1e-6 for value in accuracies.values())
    last = f"{strengths[-1]:g}"
    assert found["gradient"][last] < found["random"][last] < clean
    assert found["both"][last] <= found["gradient"][last]
    if strengths[0] == 0:
        assert found["both"]["0"] == pytest.approx(clean)
    for after, before in zip(model.get_weights(), weights):
        np.testing.assert_array_equal(after, before)


def test_the_record_of_a_run_has_its_worst_case():
    changes = ["searched=", "adversary=random-flow", "attack.random=2"]
    (cell,) = load_cells("small/mnist-50", changes)
    record = runs.train(cell, 0, smoke=True)[1]
    assert set(record["worst_case"][""]["both"]) == {"1", "2"}
    (other,) = load_cells("small/mnist-50", [*changes, "attack.count=10"])
    assert other.digest() != cell.digest()
    assert other.to_search().digest() == cell.to_search().digest()
