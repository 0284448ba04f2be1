import warnings

import numpy as np
import pytest

from keras_structadv import visualization


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
def test_images_out_of_their_range_raise_a_warning(
    draw, low, high, value_range, likely
):
    images = np.linspace(low, high, 2 * 8 * 8).reshape((2, 8, 8, 1))
    with pytest.warns(UserWarning, match=f"value_range={likely}") as caught:
        draw(images, **value_range)
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("draw", [plot, recolor])
def test_images_in_their_range_raise_no_warning(draw):
    images = np.linspace(0, 1, 2 * 8 * 8).reshape((2, 8, 8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(images, value_range=(0, 1))
        draw(255 * images)
        draw(np.stack([images[0] * 0, images[1] * 255]))  # one of them black
        draw(0 * images)  # constant: nothing to tell from
        draw(np.full_like(images, np.nan))
        draw((200 * images).astype("uint8"))
