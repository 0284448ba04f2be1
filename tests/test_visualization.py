import copy
import pickle
import sys
import types
import warnings

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from keras_structadv import visualization


def test_arrows_that_can_hardly_be_seen_are_enlarged():
    flows = np.zeros((2, 56, 56, 2), "float32")
    flows[0, ..., 0] = 0.5
    figure = visualization.plot_flow(np.zeros((2, 56, 56, 1)), flows)
    axes = np.reshape(figure.axes, (2, 3))
    assert axes[0, 1].get_title() == "flow, up to 0.5 px, arrows x8"
    assert axes[0, 1].collections[0].scale == 1 / 8  # 4 pixels to the next arrow
    assert axes[1, 1].get_title() == "flow, up to 0.0 px"


def test_plot_flow_draws_images_arrows_and_warped(tmp_path):
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (12, 12, 1)).astype("uint8"),
        rng.uniform(0, 255, (20, 16, 3)),
    ]
    flows = [np.full((12, 12, 2), [1.0, 0.0]), np.zeros((20, 16, 2))]
    figure = visualization.plot_flow(
        images, flows, before=["'a' 99%", "'b' 98%"], after=["'c' 51%", "'b' 98%"]
    )
    axes = np.reshape(figure.axes, (2, 3))
    titles = [[axis.get_title() for axis in row] for row in axes]
    assert titles[0] == ["'a' 99%", "flow, up to 1.0 px", "'c' 51%"]
    original, warped = (axes[0, k].images[0].get_array() for k in (0, 2))
    np.testing.assert_allclose(warped[1:], original[:-1], atol=1e-6)  # one pixel down
    quiver = axes[0, 1].collections[0]
    assert np.all(quiver.V == 1.0) and np.all(quiver.U == 0.0)
    figure.savefig(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 5000


def test_plot_flow_names_what_does_not_fit():
    with pytest.raises(ValueError, match="2 images, 1 flows"):
        visualization.plot_flow(np.zeros((2, 8, 8, 1)), np.zeros((1, 8, 8, 2)))


def test_plot_recoloring_draws_what_was_there_and_what_became_of_it(tmp_path):
    rng = np.random.default_rng(0)
    images = [np.full((12, 10, 3), 102.0), rng.uniform(0, 255, (8, 8, 1))]
    gradients = [rng.normal(size=image.shape) for image in images]
    changes = [np.full((12, 10, 3), 51.0), np.zeros((8, 8, 1))]
    figure = visualization.plot_recoloring(images, gradients, changes, after=["a", "b"])
    axes = np.reshape(figure.axes, (2, 4))
    titles = [axis.get_title() for axis in axes[0]]
    assert titles == ["image", "gradient", "change, RMS 0.20", "a"]
    shown = [axis.images[0].get_array() for axis in axes[0]]
    np.testing.assert_allclose(shown[0], 0.4, atol=1e-6)
    np.testing.assert_allclose(shown[2], 1.0)
    np.testing.assert_allclose(shown[3], 0.6, atol=1e-6)
    assert np.corrcoef(shown[1].ravel(), gradients[0].ravel())[0, 1] > 0.9
    np.testing.assert_allclose(axes[1, 2].images[0].get_array(), 0.5)  # no change
    figure.savefig(tmp_path / "recoloring.png")
    assert (tmp_path / "recoloring.png").stat().st_size > 5000


def test_plot_recoloring_names_what_does_not_fit():
    image = np.zeros((1, 8, 8, 1))
    with pytest.raises(ValueError, match="1 images, 2 gradients"):
        visualization.plot_recoloring(image, np.zeros((2, 8, 8, 1)), image)
    with pytest.raises(ValueError, match=r"gradient of shape \(4, 8, 1\)"):
        visualization.plot_recoloring(image, image[:, :4], image)


def plot(images, **kwargs):
    """Returns a figure of these images with a flow of zero."""
    return visualization.plot_flow(images, np.zeros((*images.shape[:3], 2)), **kwargs)


def recolor(images, **kwargs):
    change = np.zeros_like(images)
    return visualization.plot_recoloring(images, change, change, **kwargs)


@pytest.mark.parametrize("draw", [plot, recolor])
@pytest.mark.parametrize(
    "low,high,value_range,likely",
    [
        (0, 1, {}, r"\(0, 1\)"),
        (-1, 1, {}, r"\(-1, 1\)"),
        (0, 255, {"value_range": (0, 1)}, r"\(0, 255\)"),
        (-100, 300, {}, r"\(-100, 300\)"),
    ],
)
def test_images_out_of_their_range_get_a_warning(draw, low, high, value_range, likely):
    images = np.linspace(low, high, 2 * 8 * 8).reshape((2, 8, 8, 1))
    with pytest.warns(UserWarning, match=f"value_range={likely}") as caught:
        draw(images, **value_range)
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("draw", [plot, recolor])
def test_images_in_their_range_get_no_warning(draw):
    images = np.linspace(0, 1, 2 * 8 * 8).reshape((2, 8, 8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(images, value_range=(0, 1))
        draw(255 * images)
        draw(np.stack([images[0] * 0, images[1] * 255]))  # one of them black
        draw(0 * images)  # constant: nothing to tell from
        draw(np.full_like(images, np.nan))
        draw((200 * images).astype("uint8"))


@pytest.fixture
def backend():
    """Switches the backend of pyplot for one test, and closes its figures."""
    before = pyplot.get_backend()
    yield pyplot.switch_backend
    pyplot.close("all")
    pyplot.switch_backend(before)


def test_figures_stay_out_of_pyplot_until_they_are_shown(backend):
    backend("agg")
    images = np.linspace(0, 255, 64).reshape((1, 8, 8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [plot(images) for _ in range(25)]  # pyplot warns of more than 20
    assert not pyplot.get_fignums()
    assert pickle.loads(pickle.dumps(figures[0])).axes
    assert copy.deepcopy(figures[0]).show.args[0] is not figures[0]


def test_a_notebook_displays_figures_also_without_pyplot():
    figure = plot(np.linspace(0, 255, 64).reshape((1, 8, 8, 1)))
    data, _ = DisplayFormatter().format(figure)
    assert data["image/png"].startswith(b"\x89PNG")


def test_show_warns_where_there_is_no_window(backend, monkeypatch, tmp_path):
    backend("agg")
    monkeypatch.setenv("DISPLAY", ":0")  # without, Matplotlib has nothing to say
    figure = plot(np.linspace(0, 255, 64).reshape((1, 8, 8, 1)))
    for _ in range(2):
        with pytest.warns(UserWarning, match="FigureCanvasAgg is non-inter") as caught:
            figure.show()
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.show(warn=False)
    figure.savefig(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 1000


def test_show_opens_one_window(backend, monkeypatch):
    shown = []

    class Window(FigureManagerBase):
        def show(self):
            shown.append(self.canvas.figure)

    class Canvas(FigureCanvasAgg):
        manager_class = Window

    windows = types.ModuleType("windows")
    windows.FigureCanvas = Canvas
    monkeypatch.setitem(sys.modules, "windows", windows)
    backend("module://windows")
    images = np.linspace(0, 255, 64).reshape((1, 8, 8, 1))
    figures = plot(images), recolor(images)
    for figure in figures:
        figure.show()
    assert shown == list(figures)
    figures[0].show()
    assert shown == [*figures, figures[0]]
    assert pyplot.get_fignums() == [1, 2]  # where pyplot.show() waits for them
