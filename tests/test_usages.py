"""The three ways to use the library, letter for letter as they are documented."""

import pathlib
import runpy

import pytest

FOLDER = pathlib.Path(__file__).parent / "usages"


@pytest.mark.parametrize("name", ["callback", "layer", "pipeline"])
def test_it_runs_and_trains(name):
    ran = runpy.run_path(str(FOLDER / f"{name}.py"))
    assert ran["after"] < 0.98 * ran["before"]
    history = ran["model"].history.history
    if name == "pipeline":
        images, labels = next(iter(ran["ds"]))
        plain = {image.tobytes() for image in ran["x"].astype("float32")}
        kept = [image.numpy().tobytes() in plain for image in images]
        assert 0 < sum(kept) < len(kept)  # half of them were moved
    else:
        assert history["adversarial_loss_gain"][0] > 0
        assert 1 < history["mean_displacement"][0] < 2  # U(0, 3)
