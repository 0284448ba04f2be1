"""A small share of the kill runs: at each renaming of files."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_nothing_is_lost_at_a_renaming():
    # In a process of its own: this one has threads, which do not survive a fork.
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.kills", "--moments"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "16 kills, nothing lost"
