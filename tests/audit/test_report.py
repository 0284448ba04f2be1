import dataclasses
import json

import numpy as np
import pandas
import pytest

import keras_structadv as ksa
from keras_structadv.audit import report_file
from keras_structadv.audit.attack import Attempt
from keras_structadv.audit.tally import Tally
from tests.damage import Evil, bomb, damaged, peak_memory, small_files


def attempt(*scores, field=1.0):
    fields = np.full((len(scores), 4, 4, 2), field, "float32")
    return Attempt(
        np.array(scores, "float32"), np.arange(len(scores), dtype="int32"), fields
    )


def report(**changes):
    """Three images, strengths 0, 1, 2: one is never lost, two are."""
    tally = Tally(np.zeros((3, 4, 4, 1), "float32"), attempt(1, 1, 1, field=0.0))
    tally.end_strength()
    tally.add("adversarial", attempt(1, 0, 1, field=0.5))
    tally.add("random", attempt(1, 1, 1))
    tally.add("random", attempt(1, 0, 1))
    tally.end_strength()
    tally.add("adversarial", attempt(1, 1, 1))
    tally.add("random", attempt(1, 1, 0, field=2.0))
    tally.add("random", attempt(1, 1, 0))
    tally.end_strength()
    settings = {
        "strength": "max_displacement",
        "random": 2,
        "metric": None,
        "moves_pixels": True,
        "value_range": [0, 255],
        "labeled": True,
    }
    return ksa.RobustnessReport.of(
        [tally.first(3, 2**20)], (0, 1, 2), settings | changes
    )


def test_the_columns():
    found = report()
    third, two = pytest.approx([1, 2 / 3, 2 / 3]), pytest.approx([1, 2 / 3, 1 / 3])
    assert found.adversarial == third and found.random_worst == two
    assert found.worst == two
    assert found.random_mean == pytest.approx([1, 5 / 6, 2 / 3])


def test_what_is_kept_of_each_image():
    found = report()
    assert [*found.kind] == [0, 1, 2] and [*found.place] == [-1, 1, 2]
    assert [*found.lost()] == [1, 2]
    assert [*found.fields[:, 0, 0, 0]] == [0, 0.5, 2]


def test_rows_for_pandas():
    found = report()
    frame = pandas.DataFrame(list(found))
    assert len(found) == len(frame) == 3
    assert [*frame.columns] == [
        "strength",
        "random_mean",
        "random_worst",
        "adversarial",
        "worst",
    ]
    assert frame["worst"].iloc[2] == pytest.approx(1 / 3) == found[-1]["worst"]
    assert found[2] == [*found][2]
    with pytest.raises(IndexError):
        found[3]


def test_the_table():
    lines = report().table().splitlines()
    assert lines[0] == (
        "| max_displacement | random | worst of 2 random | adversarial | worst of all |"
    )
    assert lines[4].startswith("| 2 | 0.667 ± 0.272 |")
    assert len({line.count("|") for line in lines}) == 1
    assert repr(report()) == report().table()


def test_the_band_holds_the_mean_and_shrinks_with_more_images():
    rng = np.random.default_rng(0)

    def of(count):
        scores = (rng.uniform(size=(count, 1)) < 0.7).astype("float32")
        part = {
            "clean": scores[:, 0],
            "kind": np.zeros(count, "int8"),
            "place": np.full(count, -1),
            "answers": np.zeros((count, 2)),
            "images": np.zeros((0, 4, 4, 1)),
            "fields": np.zeros((0, 4, 4, 2)),
            "adversarial": scores,
            "random_worst": scores,
            "random_mean": scores,
        }
        return ksa.RobustnessReport.of([part], (1,), {})

    few, many = of(100), of(10000)
    widths = []
    for one in (few, many):
        (low,), (high,) = one.band("worst")
        assert low < one.worst[0] < high
        widths.append(high - low)
        # A binomial interval has 3.92 standard errors.
        error = np.sqrt(0.21 / len(one.clean))
        assert widths[-1] == pytest.approx(3.92 * error, rel=0.15)


def test_figures_are_drawn():
    found = report()
    figure = found.plot()
    (axes,) = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["random", "worst of 2 random", "adversarial", "worst of all"]
    assert axes.get_xlabel() == "longest displacement (pixels)"
    np.testing.assert_allclose(axes.lines[2].get_ydata(), found.adversarial)
    figure = found.plot_worst(class_names=["cat", "dog", "cow"])
    titles = [axes.get_title() for axes in figure.axes]
    assert (
        titles[0] == "dog" and titles[2] == "dog at 1 px" and titles[5] == "cow at 2 px"
    )
    assert len(report().plot_worst(1).axes) == 3
    colours = report(strength="magnitude", moves_pixels=False, metric="hits")
    assert colours.plot().axes[0].get_ylabel() == "score"
    own = report(labeled=False)
    assert own.plot().axes[0].get_ylabel() == "unchanged answers"
    assert own.table().endswith("own answers to the images as they are.")


def test_arguments_of_pictures_are_checked():
    for arguments, message in (
        ({"count": 0}, "count=0"),
        ({"class_names": ["cat", "dog"]}, "2 class_names.* class 2"),
    ):
        with pytest.raises(ValueError, match=message):
            report().plot_worst(**arguments)
    with pytest.raises(ValueError, match="name='random'"):
        report().band("random")
    strange = dataclasses.replace(report(), images=np.zeros((3, 4, 4, 2), "float32"))
    with pytest.raises(ValueError, match="2 channels"):
        strange.plot_worst()


def test_strengths_are_those_that_were_passed():
    columns = {name: np.ones((1, 2)) for name in report().scores}
    one = Tally(np.zeros((1, 4, 4, 1)), attempt(1))
    one.end_strength()
    found = ksa.RobustnessReport.of([one.first(1, 0) | columns], (0.02, 0.1), {})
    assert [row["strength"] for row in found] == [0.02, 0.1]


def test_the_strength_at_an_accuracy():
    found = report()  # 1, 2/3, 1/3 at 0, 1, 2
    assert found.strength_at() == pytest.approx(1.5)
    assert found.strength_at(2 / 3) == pytest.approx(1)
    assert found.strength_at(0.9) == pytest.approx(0.3)
    assert found.strength_at(1) == 0
    assert found.strength_at(0.2) == np.inf
    later = dataclasses.replace(found, strengths=np.array([1.0, 2.0, 4.0]))
    assert later.strength_at(0.5) == pytest.approx(3)
    with pytest.raises(ValueError, match="accuracy=2"):
        found.strength_at(2)


def test_save_and_load(tmp_path):
    found = report()
    found.save(tmp_path / "new" / "folder")
    again = ksa.RobustnessReport.load(tmp_path / "new" / "folder")
    assert again.settings == found.settings and again.table() == found.table()
    for name in ("strengths", "clean", "kind", "place", "answers", "images", "fields"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    about = json.loads((tmp_path / "new/folder/report.json").read_text())
    assert about["rows"] == [*found] and about["images"] == 3
    assert sorted(x.name for x in (tmp_path / "new/folder").iterdir()) == [
        "report.json",
        "report.npz",
    ]


def test_files_that_are_no_report(tmp_path):
    with pytest.raises(FileNotFoundError):
        ksa.RobustnessReport.load(tmp_path)
    path = tmp_path / "report.npz"
    report().save(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no report"):
        ksa.RobustnessReport.load(tmp_path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="no report"):
        ksa.RobustnessReport.load(tmp_path)
    path.write_bytes(whole)
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "clean": arrays["clean"][:2]})
    with pytest.raises(ValueError, match="do not fit"):
        ksa.RobustnessReport.load(tmp_path)
    for broken in ({"place": arrays["place"] + 9}, {"kind": arrays["kind"] - 5}):
        np.savez(path, **{**arrays, **broken})
        with pytest.raises(ValueError, match="do not fit"):
            ksa.RobustnessReport.load(path)
    about = json.loads(arrays["about"].item())
    empty = np.array(json.dumps({**about, "settings": {}}))
    np.savez(path, **{**arrays, "about": empty})
    with pytest.raises(ValueError, match="another version"):
        ksa.RobustnessReport.load(tmp_path)
    np.savez(path, **{**arrays, "clean": np.array([print, 1, 2], object)})
    with pytest.raises(ValueError, match="no report"):
        ksa.RobustnessReport.load(tmp_path)


def test_bands_of_hits_and_of_scores_agree():
    found = report()
    twice = {name: np.repeat(x, 30, axis=0) for name, x in found.scores.items()}
    parts = {"scores": twice, "clean": np.repeat(found.clean, 30)}
    many = dataclasses.replace(found, **parts)
    near = {name: np.where(x == 1, 1 - 1e-6, x) for name, x in twice.items()}
    scores = dataclasses.replace(found, scores=near, clean=parts["clean"])
    for hits, other in zip(many.band("worst"), scores.band("worst")):
        np.testing.assert_allclose(hits, other, atol=0.03)
    low, high = many.band("worst")
    assert np.all(low[1:] < many.worst[1:]) and np.all(many.worst[1:] < high[1:])


def test_pictures_beyond_the_bound_are_left_out():
    tally = Tally(np.zeros((8, 4, 4, 1), "float32"), attempt(*[1] * 8))
    tally.add("random", attempt(*[0] * 8))
    tally.end_strength()
    one = 4 * 4 * 3 * 4
    kept = [len(tally.first(6, bytes)["images"]) for bytes in (9 * one, 3 * one, 0, -1)]
    assert kept == [6, 3, 0, 0]
    assert len(tally.first(6, 0)["clean"]) == 6
    for name in ("images", "fields"):  # a view would keep all of them
        assert tally.first(6, 0)[name].base is None


def test_a_damaged_report_is_refused_or_means_the_same(tmp_path):
    report().save(tmp_path)
    path = tmp_path / "report.npz"
    whole, wanted = path.read_bytes(), report()
    refused = 0
    for content in damaged(whole):
        path.write_bytes(content)
        try:
            found = ksa.RobustnessReport.load(tmp_path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        assert found.table() == wanted.table() and found.settings == wanted.settings
        np.testing.assert_array_equal(found.fields, wanted.fields)
    assert refused > 45


def test_a_hostile_report_is_refused(tmp_path, monkeypatch):
    report().save(tmp_path)
    path = tmp_path / "report.npz"
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    scores = arrays["adversarial"]
    for change in (
        {"adversarial": np.where(scores == 0, np.nan, scores)},
        {"adversarial": scores * 7},
        {"clean": arrays["clean"].astype("U")},
        {"strengths": arrays["strengths"][::-1]},
        {"strengths": np.array([0, 1, np.inf])},
        {"strengths": np.zeros(())},
        {"about": np.array(json.dumps({**about, "images": "3"}))},
        {"about": np.array(json.dumps({**about, "settings": [*about["settings"]]}))},
        {"about": np.array("[" * 20_000)},
        {"about": np.array("5")},
    ):
        np.savez(path, **{**arrays, **change})
        with pytest.raises(ValueError, match="no report|do not fit"):
            ksa.RobustnessReport.load(tmp_path)
    np.savez(path, **{**arrays, "fields": np.array([Evil(tmp_path / "evil")], object)})
    with pytest.raises(ValueError, match="neither numbers nor text"):
        ksa.RobustnessReport.load(tmp_path)
    assert not (tmp_path / "evil").exists()
    assert report_file._MOST_BYTES == 2**30
    monkeypatch.setattr(report_file, "_MOST_BYTES", 2**26)  # a quick bomb
    bomb(path, [*arrays], 2**23)
    with peak_memory() as peak, pytest.raises(ValueError, match="at most 67108864"):
        ksa.RobustnessReport.load(tmp_path)
    assert peak.bytes < 2**22


@pytest.mark.parametrize("bytes_left", [50, 1000])
def test_a_full_disk_leaves_the_old_report(tmp_path, bytes_left):
    report().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with small_files(bytes_left), pytest.raises(OSError, match="too large"):
        report(strength="magnitude").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
