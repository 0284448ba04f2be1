"""The lower bounds of the dependencies, and what `make test-oldest` runs with."""

import importlib.metadata
import pathlib
import re
import sys

import pytest

from tests.oldest import oldest, requirements

ROOT = pathlib.Path(__file__).parents[1]
NEEDED = ("tensorflow", "keras", "numpy", "jax", "keras-cv")  # by the package itself
ROW = r"^\| \*{0,2}(\d\.\d+)\*{0,2} \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|"

pytestmark = pytest.mark.backends("tensorflow")


def same(version, other):
    """Returns whether two versions are equal, as 3.9 and 3.9.0 are."""
    one, two = ([int(x) for x in v.split(".")] for v in (version, other))
    size = max(len(one), len(two))
    return [*one, *[0] * (size - len(one))] == [*two, *[0] * (size - len(two))]


def test_what_the_package_needs_has_a_lower_bound():
    assert set(NEEDED) <= set(oldest())


def test_each_bound_is_read():
    bounded = {name for name in requirements() if re.search(r"[<>~]", name)}
    assert bounded == {f"{name}>={version}" for name, version in oldest().items()}


@pytest.mark.parametrize("page", ["README.md", "docs/getting_started.md"])
def test_the_pages_name_the_bounds(page):
    text = " ".join((ROOT / page).read_text().split())
    names = {"tensorflow": "TensorFlow", "keras": "Keras", "numpy": "NumPy"}
    for name, written in names.items():
        assert f"{written} {oldest()[name]}" in text


def test_the_first_row_of_the_table_is_that_of_the_bounds():
    page = (ROOT / "docs/getting_started.md").read_text()
    first = re.search(ROW, page, re.M).groups()
    bounds = [oldest()[name] for name in ("tensorflow", "keras", "jax", "numpy")]
    for written, bound in zip(first[1:], bounds):
        assert same(written, bound)


@pytest.mark.skipif(".venv-oldest" not in sys.prefix, reason="is for the oldest")
def test_the_oldest_versions_are_installed():
    for name, version in oldest().items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            assert name not in NEEDED
            continue
        assert same(found, version), name
