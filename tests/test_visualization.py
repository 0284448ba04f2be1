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
