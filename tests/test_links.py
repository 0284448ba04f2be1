"""Links of the pages lead somewhere, and the repository has one address."""

import json
import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "benchmarks/README.md",
    ROOT / "experiments/README.md",
    *(ROOT / "notebooks").glob("*.ipynb"),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
OWN = re.compile(r"(?:github\.com/|github\.io/|colab\S+github/)[\w./-]*keras_structadv")

pytestmark = pytest.mark.backends("tensorflow")


def text_of(page):
    """Returns the Markdown of a page, without blocks of code."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join(
            "".join(x["source"]) for x in cells if x["cell_type"] != "code"
        )
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)


def anchors_of(page):
    """Returns the anchors of the headings of a page, as GitHub and MyST name them."""
    for heading in re.findall(r"^#+ (.*)$", text_of(page), re.M):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        yield plain.strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda x: str(x.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(text_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        if path.startswith("repo:"):
            found = ROOT / path.removeprefix("repo:")
        else:
            found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors_of(found), target


def test_the_repository_has_one_address():
    owner = re.fullmatch(r"https://github\.com/([\w-]+/[\w-]+)", URLS["Repository"])[1]
    user, name = owner.split("/")
    allowed = {f"github.com/{owner}", f"github.io/{name}"}
    for path in [*PAGES, ROOT / "CITATION.cff", ROOT / "pyproject.toml"]:
        for found in OWN.findall(path.read_text()):
            colab = re.sub(r"^colab\S*?github/", "github.com/", found)
            assert colab in allowed, f"{path.name}: {found}"
    assert URLS["Documentation"] == f"https://{user}.github.io/{name}"
    assert URLS["Repository"] in (ROOT / "CITATION.cff").read_text()
