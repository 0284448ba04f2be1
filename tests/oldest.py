"""The oldest versions that pyproject.toml allows, as constraints for pip.

`make test-oldest` runs this with a bare Python: `python tests/oldest.py`.
"""

import pathlib
import re
import tomllib

PYPROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"


def requirements() -> list[str]:
    """Returns what the package and its extras ask for, as pyproject.toml has it."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [*project["dependencies"], *(name for extra in extras for name in extra)]


def oldest() -> dict[str, str]:
    """Returns the lower bound of each package that has one."""
    bounded = {name for name in requirements() if ">=" in name}
    return dict(
        sorted(re.fullmatch(r"([\w-]+)>=([\d.]+)", x).groups() for x in bounded)
    )


if __name__ == "__main__":
    for name, version in oldest().items():
        print(f"{name}=={version}")
