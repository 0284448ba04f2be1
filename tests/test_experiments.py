"""The experiments: data, models, cells, training, tables, searches."""

import json

import keras
import numpy as np
import pytest

import keras_structadv as ksa
from experiments import datasets, models, runs, search, table, train
from experiments.cells import ADVERSARIES, CONFIGS, Cell, load_cells
from experiments.plans import PLAIN, VARIANTS

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
    size = ("model.size=32",) if cell_name.startswith("table2") else ()
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


@pytest.mark.parametrize(
    "cell",
    [
        "table1/cifar10-flow-autoaugment",
        "table1/stl10-recoloring-randaugment",
        "table2/cifar100-recoloring",
    ],
)
def test_cells_run(cell, capsys):
    train.main(["--config", cell, "--smoke", "--set", *tiny(cell)])
    assert "two steps" in capsys.readouterr().out


@pytest.mark.parametrize("adversary", [x for x in ADVERSARIES if x != "none"])
def test_adversaries_run_with_a_policy(adversary, capsys):
    changes = [f"adversary={adversary}", "policy=base"]
    (cell,) = load_cells("small/colour-glyphs", changes)
    _, record = runs.train(cell, 0, smoke=True)
    kind = ADVERSARIES[adversary][0]
    measured = {"loss", kind.measure_name}
    measured |= {"adversarial_loss_gain"} if kind.takes_gradient else set()
    assert measured <= set(record["history"])
    assert set(record["accuracy"]) == {"same colours", "unseen colours"}
    assert json.loads(json.dumps(record)) == record


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
    for record in table.read_records(results / "small.jsonl"):
        assert Cell(**record["settings"]).digest() == record["digest"], record["cell"]
    recorded = {
        (record["data"], record["digest"])
        for record in table.read_records(results / "variants.jsonl")
    }
    assert recorded == {
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


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_the_test_set_does_not_depend_on_the_seed(name):
    first, second = (datasets.load(name, seed)[1][""][0] for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


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
    return table.read_records(path)


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


def test_an_interrupted_run_goes_on_with_its_epoch(tmp_path):
    changes = ["adversary=flow-reused", "policy=none", "epochs=3"]
    (cell,) = load_cells("small/digits", changes)
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
    assert epochs == [0, 1, 2, 2]
    assert record["history"]["gradient_hit_rate"] > 0.5  # the store came back too


@pytest.mark.slow
def test_workers_are_renewed_and_no_job_is_lost():
    results = dict(runs.run_all([-3, -2, -1], abs, workers=2, tasks=1))
    assert results == {-3: 3, -2: 2, -1: 1}
    results = []
    with pytest.raises(TypeError, match="bad operand"):
        results.extend(runs.run_all(["no number", -2, -1], abs, workers=2))


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
        "| flow | base | 2 | 0.7500 ± 0.0500 | +0.2000 ± 0.1000 (t 2.0) |" in rows[-1]
    )
    assert "+0.1000 ± 0.1000 (t 1.0) | 0.9550 |" in rows[-1]
    # Seeds that only one of two rows has do not count.
    rows = table.markdown(records[:-1]).splitlines()
    assert "| flow | base | 1 | 0.8000 | +0.3000 | +0.2000 |" in rows[-1]
    # What was trained with other settings is another row.
    rows = table.markdown(
        [*records[:-1], {**records[-1], "digest": "two"}]
    ).splitlines()
    assert "| flow [one] | base | 1 | 0.8000 |" in rows[-2]
    assert "| flow [two] | base | 1 | 0.7000 |" in rows[-1]


def test_search_keeps_its_trials(tmp_path, capsys):
    arguments = ["--config", "table1/cifar10-recoloring-base", "--smoke", "--storage"]
    arguments += [str(tmp_path / "study.db"), "--set", *tiny("table1")]
    search.main([*arguments, "--trials", "2"])
    out = capsys.readouterr().out
    assert "0 trials are there, 2 to do" in out
    best = out.split("--set ")[1].split()
    assert [x.split("=")[0] for x in best] == [
        f"recoloring.{key}" for key in ("magnitude", "coherence", "rate")
    ]
    load_cells("table1/cifar10-recoloring-base", best)
    search.main([*arguments, "--trials", "2"])
    assert "2 trials are there, 0 to do" in capsys.readouterr().out
    # The trials of a smoke test are none of the real search.
    real = [x for x in arguments if x != "--smoke"]
    with pytest.raises(ValueError, match="does not exist"):
        search.main([*real, "--trials", "0"])
    with pytest.raises(ValueError, match="no adversary"):
        search.main(["--config", "table1/cifar10-base", *arguments[2:]])
