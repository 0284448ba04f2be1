"""Sphinx configuration of the documentation site; `make docs` builds it."""

import inspect
import pathlib
import shutil
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the links to source lines alone

import keras_structadv as ksa  # noqa: E402

# Sphinx follows links to the notebooks' folder out of its own: their links would break.
shutil.copytree(ROOT / "notebooks", ROOT / "docs/notebooks", dirs_exist_ok=True)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]

project = "keras_structadv"
author = PYPROJECT["project"]["authors"][0]["name"]
copyright = f"2026, {author}"
version = release = ksa.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.linkcode",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(keras|tensorflow|numpy|collections|pathlib).*")]

# Pages: Markdown with definition lists and formulas; notebooks with stored outputs.
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_url_schemes = {
    "http": None,
    "https": None,
    "mailto": None,
    # [text](repo:benchmarks/results/x.txt) is a file of the repository.
    "repo": {"url": REPOSITORY + "/blob/main/{{path}}"},
}
nb_execution_mode = "off"
nb_merge_streams = True

default_role = "code"  # `x` in docstrings
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give types with shapes and units
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Input shape", "Output shape", ("Reference", "notes_style")]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "keras_structadv"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "github_url": REPOSITORY,
    "navbar_align": "left",
    "header_links_before_dropdown": 5,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
html_sidebars = {  # pages without pages below them
    name: []
    for name in (
        *("index", "getting_started", "should_i_use_it", "how_it_works", "evidence"),
        *("benchmarks", "troubleshooting", "changelog", "contributing", "citing"),
    )
}

_LAYER = ["bind", "fields", "apply"]
# The other methods are hooks of Keras, for subclasses or for the rest of the package.
_METHODS = {
    "AdversarialFlow": _LAYER,
    "AdversarialRecoloring": _LAYER,
    "RandomFlow": _LAYER[1:],
    "RandomRecoloring": _LAYER[1:],
    "GradientStore": ["save", "load", "clear"],
    "RobustnessReport": [
        "table",
        "strength_at",
        "plot",
        "plot_worst",
        "band",
        "of_images",
        "lost",
        "save",
        "load",
    ],
}
autosummary_context = {
    "methods_of": {f"keras_structadv.{name}": x for name, x in _METHODS.items()}
}


def linkcode_resolve(domain: str, info: dict) -> str | None:
    """Returns the address of the source of an object."""
    value = sys.modules.get(info["module"])
    for part in info["fullname"].split("."):
        value = getattr(value, part, None)
    value = inspect.unwrap(value) if callable(value) else None
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return None
    path = pathlib.Path(inspect.getsourcefile(value) or "")
    if not path.is_relative_to(ROOT / "keras_structadv"):
        return None
    lines, first = inspect.getsourcelines(value)
    place = f"{path.relative_to(ROOT)}#L{first}-L{first + len(lines) - 1}"
    return f"{REPOSITORY}/blob/main/{place}"


def signature_of(
    app: object, what: str, name: str, value: type, *rest: object
) -> tuple:
    """Returns the signature of `__init__`; layers of Keras show that of `__new__`."""
    options, signature, returns = rest
    if what == "class" and signature == "(*args, **kwargs)":
        given = inspect.signature(value.__init__)
        bare = [p.replace(annotation=p.empty) for p in given.parameters.values()]
        signature = str(
            given.replace(parameters=bare[1:], return_annotation=given.empty)
        )
    return signature, returns


def setup(app: object) -> None:
    """Connects to Sphinx."""
    app.connect("autodoc-process-signature", signature_of)
