import json
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import PIL.Image
import pytest

import keras_structadv as ksa
from keras_structadv import files as files_of_package
from keras_structadv.audit import command
from keras_structadv.audit.command import main
from keras_structadv.backends import keras_version
from tests.audit.cases import answers, linear, smooth_images
from tests.damage import Evil, bomb, damaged, npz_by_hand, peak_memory

QUICK = ["--steps", "2", "--random", "2", "--strengths", "0", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A saved model, and data that it gets right."""
    folder = tmp_path_factory.mktemp("audit")
    model, x = linear(channels=3), smooth_images(24, channels=3)
    y = answers(model, x)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=y)
    for name in ("ape", "bee"):
        (folder / "pictures" / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(x, y)):
        name = ("ape", "bee")[label]
        picture = PIL.Image.fromarray(image.astype("uint8"))
        picture.resize((48, 48)).save(folder / "pictures" / name / f"{number}.png")
    return folder


def audit(files, *arguments, out, data="data.npz", model="model.keras"):
    return main(
        ["audit", str(files / model), str(files / data), "--out", str(out), *arguments]
    )


def test_the_report_of_arrays(files, tmp_path, capsys):
    assert audit(files, *QUICK, out=tmp_path / "out") == 0
    out = capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "curves.png",
        "report.json",
        "report.md",
        "report.npz",
        "worst.png",
    ]
    report = ksa.RobustnessReport.load(tmp_path / "out")
    assert (tmp_path / "out/report.md").read_text() == report.table() + "\n"
    assert report.table() in out
    model = keras.saving.load_model(files / "model.keras")
    data = np.load(files / "data.npz")
    same = ksa.evaluate_robustness(
        model,
        data["x"],
        data["y"],
        strengths=(0, 1),
        steps=2,
        random=2,
        seed=0,
        verbose=0,
    )
    np.testing.assert_array_equal(report.of_images("worst"), same.of_images("worst"))
    with PIL.Image.open(tmp_path / "out/curves.png") as picture:
        assert min(picture.size) > 300 and np.unique(picture.convert("L")).size > 9


@pytest.mark.parametrize("numbered", [False, True])
def test_folders_of_pictures(files, tmp_path, numbered):
    data = "pictures"
    if numbered:
        data = "numbered"
        for number, name in enumerate(("ape", "bee")):
            target = files / data / str(number)
            target.mkdir(parents=True)
            for path in (files / "pictures" / name).iterdir():
                (target / path.name).write_bytes(path.read_bytes())
    arguments = [*QUICK, "--perturbation", "recoloring", "--limit", "10"]
    assert audit(files, *arguments, out=tmp_path, data=data) == 0
    report = ksa.RobustnessReport.load(tmp_path)
    assert len(report.clean) == 10 and report.clean.mean() > 0.7
    assert report.images.shape == (10, 16, 16, 3)
    assert report.settings["perturbation"] == "AdversarialRecoloring"


def test_a_model_without_a_loss(files, tmp_path, capsys):
    model = keras.saving.load_model(files / "model.keras")
    keras.Model(model.inputs, model.outputs).save(files / "bare.keras")
    assert audit(files, *QUICK, out=tmp_path, model="bare.keras") == 1
    assert "--from-logits" in capsys.readouterr().err
    arguments = (*QUICK, "--from-logits")
    assert audit(files, *arguments, out=tmp_path, model="bare.keras") == 0


def test_one_hot_labels_where_the_loss_takes_them(files, tmp_path):
    model = keras.saving.load_model(files / "model.keras")
    model.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    model.save(files / "hot.keras")
    assert audit(files, *QUICK, out=tmp_path, model="hot.keras", data="pictures") == 0
    assert ksa.RobustnessReport.load(tmp_path).clean.mean() > 0.7


def test_pictures_are_scaled_to_the_range_that_the_model_takes(files, tmp_path):
    plain = keras.saving.load_model(files / "model.keras")
    scaled = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Rescaling(255.0), plain]
    )
    scaled.compile(loss=plain.loss)
    scaled.save(files / "scaled.keras")
    reports = []
    for model, arguments in (("model", ()), ("scaled", ("--value-range", "0", "1"))):
        out = tmp_path / model
        given = (*QUICK, *arguments)
        assert (
            audit(files, *given, out=out, model=f"{model}.keras", data="pictures") == 0
        )
        reports.append(ksa.RobustnessReport.load(out))
    first, second = reports
    assert second.clean.mean() > 0.7 and second.images.max() <= 1
    np.testing.assert_array_equal(first.of_images("worst"), second.of_images("worst"))


def broken(files, name, content=b"nothing"):
    (files / name).write_bytes(content)
    return name


def scalars(files):
    np.savez(files / "scalars.npz", x=5, y=1)
    return "scalars.npz"


def folders(files, *names, broken=False):
    folder = files / "-".join(names)
    for name in names:
        (folder / name).mkdir(parents=True)
        shutil.copy(next((files / "pictures/ape").glob("*.png")), folder / name)
    if broken:
        (folder / names[0] / "bad.png").write_bytes(b"nothing")
    return folder.name


def saved(files, shape=(16, 16, 3), outputs=1):
    """Saves a model of two classes; returns its name, with a folder as data."""
    inputs = keras.Input(shape)
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    logits = [keras.layers.Dense(2)(pooled) for _ in range(outputs)]
    model = keras.Model(inputs, logits if outputs > 1 else logits[0])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(files / "other.keras")
    return {"model": "other.keras", "data": "pictures"}


def empty(files):
    for name in ("0", "1"):
        (files / "empty" / name).mkdir(parents=True)
    return "empty"


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (lambda f: saved(f, (None, None, 3)), [], "cannot be resized"),
        (lambda f: saved(f, (16, 16, 2)), [], "takes 2 channels"),
        (lambda f: saved(f, outputs=2), [], "one output of classes"),
        (lambda f: {"data": empty(f)}, [], "empty has no pictures (.bmp"),
        (lambda f: {"model": "none.keras"}, [], "There is no model"),
        (lambda f: {"model": broken(f, "bad.keras")}, [], "could not be loaded"),
        (lambda f: {"data": "none.npz"}, [], "There are no data"),
        (lambda f: {"data": broken(f, "bad.npz")}, [], "no .npz file"),
        (lambda f: {"data": "model.keras"}, [], "lacks"),
        (
            lambda f: {"data": "pictures/ape"},
            [],
            "0 folders for a model",
        ),
        (lambda f: {}, ["--limit", "0"], "--limit 0"),
        (lambda f: {"data": scalars(f)}, [], "no .npz file"),
        (lambda f: {"data": folders(f, "1", "2")}, [], "Name the folders 0 to 1"),
        (lambda f: {"data": folders(f, "0", "1", ".x", broken=True)}, [], "no picture"),
        (lambda f: {"out": f / "model.keras"}, [], "is a file"),
        (lambda f: {}, ["--value-range", "1", "0"], "low < high"),
        (lambda f: {}, ["--steps", "0"], "steps=0"),
    ],
)
def test_errors_say_what_to_do(files, tmp_path, capsys, make, arguments, message):
    assert audit(files, *arguments, **{"out": tmp_path / "out", **make(files)}) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_missing_matplotlib_is_named(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert audit(files, *QUICK, out=tmp_path / "out") == 1
    assert "pip install matplotlib" in capsys.readouterr().err


def test_where_the_accuracy_falls_to_a_half(files, tmp_path, capsys):
    with np.load(files / "data.npz") as data:
        x, y = data["x"], np.array(data["y"])
    y[::2] = 1 - y[::2]
    np.savez(files / "half.npz", x=x, y=y)
    for name, told in (
        ("data.npz", "accuracy falls to 0.5 at"),
        ("half.npz", "accuracy is not above 0.5 at the smallest strength."),
    ):
        arguments = ("--strengths", "0.1", "16", "--steps", "2", "--random", "2")
        assert audit(files, *arguments, out=tmp_path, data=name) == 0
        assert told in capsys.readouterr().out
    arguments = ("--strengths", "0", "--steps", "1", "--random", "1")
    assert audit(files, *arguments, out=tmp_path) == 0
    assert "accuracy stays above 0.5." in capsys.readouterr().out


def test_objects_in_data_are_not_run(files, tmp_path, capsys):
    np.savez(files / "objects.npz", x=np.array([print]), y=np.zeros(1))
    assert audit(files, out=tmp_path / "out", data="objects.npz") == 1
    assert "no .npz file of plain arrays" in capsys.readouterr().err


def test_wrong_arguments_end_with_two():
    for arguments in (
        [],
        ["audit"],
        ["audit", "a", "b", "--steps", "many"],
        ["audit", "a", "b", "--strengths", "2", "1"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_help_teaches():
    command = [sys.executable, "-m", "keras_structadv", "audit", "--help"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    for text in ("examples:", "pixels", "exit codes", "report.npz", "numpy.savez"):
        assert text in done.stdout


def test_rows_are_valid_json(files, tmp_path):
    audit(files, *QUICK, out=tmp_path)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["strength"] for row in rows] == [0, 1]


def test_a_damaged_model_is_refused_or_is_the_same(files, tmp_path):
    whole = (files / "model.keras").read_bytes()
    wanted = keras.saving.load_model(files / "model.keras").get_weights()
    path, refused = tmp_path / "model.keras", 0
    for content in damaged(whole, cuts=6, flips=24):
        path.write_bytes(content)
        try:
            found = command._model(path, None)
        except command.CommandError as error:
            assert "model.keras could not be loaded" in str(error)
            refused += 1
            continue
        for one, other in zip(found.get_weights(), wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    assert refused > 15


def test_a_flipped_weight_is_refused(files, tmp_path):
    whole = bytearray((files / "model.keras").read_bytes())
    model = keras.saving.load_model(files / "model.keras")
    place = whole.find(model.get_weights()[0].tobytes()[:64])
    assert place > 0
    whole[place] ^= 64
    (tmp_path / "model.keras").write_bytes(whole)
    with pytest.raises(command.CommandError, match="model.weights.h5 in it is damaged"):
        command._model(tmp_path / "model.keras", None)


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_no_code_of_a_model_is_run(tmp_path, ending, monkeypatch):
    inputs = keras.Input((4, 4, 1))
    outputs = keras.layers.Lambda(lambda x: x + 1)(inputs)
    path = tmp_path / f"model.{ending}"
    keras.Model(inputs, outputs).save(path)
    refused = r"(?s)could not be loaded.*[Ll]ambda"
    held_back = "may hold code.*keras>=3.11.3"
    safe = keras_version() >= (3, 11, 3)
    with pytest.raises(
        command.CommandError, match=refused if ending == "keras" or safe else held_back
    ):
        command._model(path, None)
    monkeypatch.setattr(keras, "__version__", "3.11.2")
    with pytest.raises(
        command.CommandError, match=refused if ending == "keras" else held_back
    ):
        command._model(path, None)
    path = path.rename(tmp_path / f".{ending}")
    with pytest.raises(command.CommandError, match="could not be loaded|may hold code"):
        command._model(path, None)


def test_a_good_model_of_the_older_format_is_loaded(files, tmp_path, monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.11.3")
    keras.saving.load_model(files / "model.keras").save(tmp_path / "model.h5")
    assert command._model(tmp_path / "model.h5", None).loss is not None


def test_a_model_that_fills_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files_of_package, "_SMALL", 2**20)  # a quick bomb
    bomb(tmp_path / "model.keras", ["config", "model.weights"], 2**24)
    with peak_memory() as peak, pytest.raises(command.CommandError, match="unpacks to"):
        command._model(tmp_path / "model.keras", None)
    assert peak.bytes < 2**22


def test_damaged_data_are_refused_or_mean_the_same(tmp_path):
    path = tmp_path / "data.npz"
    x, y = smooth_images(8), np.arange(8) % 2
    np.savez(path, x=x, y=y)
    whole, refused = path.read_bytes(), 0
    for content in damaged(whole):
        path.write_bytes(content)
        try:
            found = command._data(path, None, None, (0, 255))
        except command.CommandError as error:
            assert "data.npz" in str(error) and "Save it by" in str(error)
            refused += 1
            continue
        np.testing.assert_array_equal(found[0], x)
        np.testing.assert_array_equal(found[1], y)
    assert refused > 45


def test_hostile_data_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    label = ((1,), "<i8", bytes(8))
    for shape, dtype in (((10**13,), "<f4"), ((1,), "|O"), ((), "<f4"), ((1,), "V4")):
        npz_by_hand(path, x=(shape, dtype, bytes(4)), y=label)
        with pytest.raises(command.CommandError, match="no .npz file of plain arrays"):
            command._data(path, None, None, (0, 255))
    np.savez(path, x=np.array([Evil(tmp_path / "evil")], object), y=np.zeros(1))
    with pytest.raises(command.CommandError, match="neither numbers nor text"):
        command._data(path, None, None, (0, 255))
    assert not (tmp_path / "evil").exists()
    monkeypatch.setattr(files_of_package, "_SMALL", 2**20)
    bomb(path, ["x", "y"], 2**24)
    with peak_memory() as peak, pytest.raises(command.CommandError, match="at most"):
        command._data(path, None, None, (0, 255))
    assert peak.bytes < 2**22


def test_an_interrupted_command_leaves_the_old_report(files, tmp_path, monkeypatch):
    assert audit(files, *QUICK, out=tmp_path) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(report):
        raise OSError("no space left on device")

    monkeypatch.setattr(ksa.RobustnessReport, "plot", fails)
    assert audit(files, *QUICK, "--seed", "1", out=tmp_path) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
