"""The tables of the pages are what their commands print from the records."""

import pathlib
import re
import shlex

import pytest

from experiments import table

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ("README.md", "experiments/README.md")
COMMAND = re.compile(r"`python -m experiments\.table ([^`]*--brief[^`]*)`")
TABLES = [
    (page, " ".join(arguments.split()))
    for page in PAGES
    for arguments in COMMAND.findall((ROOT / page).read_text())
]

pytestmark = pytest.mark.backends("tensorflow")


def test_there_are_tables():
    assert TABLES


@pytest.mark.parametrize("page, arguments", TABLES)
def test_the_table_is_that_of_the_records(page, arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    table.main(shlex.split(arguments))
    printed = capsys.readouterr().out.strip()
    assert printed.count("\n") > 3
    assert printed in (ROOT / page).read_text()


def test_the_audit_of_photographs_is_that_of_the_record():
    record = (ROOT / "benchmarks/results/photographs.txt").read_text()
    tables = [x.strip() for x in record.split("\n\n") if x.startswith("|")]
    assert len(tables) == 2
    for printed in tables:
        assert printed in (ROOT / "README.md").read_text()
