"""Each error and warning of the package stands on its page, letter for letter."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
VALUE = "…"  # where a message has a value
TELLS = re.compile(r"(Error|Exception|Warning|warn)$")  # what is called with a message

pytestmark = pytest.mark.backends("tensorflow")


def plain(text):
    """Returns one line, with one mark for values that follow one another."""
    return re.sub(f"{VALUE}+", VALUE, " ".join(text.split()))


def text_of(node, constants):
    """Returns the fixed parts of an expression, and a mark for each value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, constants) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left, constants) + text_of(node.right, constants)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
        return constants.get(node.value.id, VALUE)
    return VALUE


def messages_in(path):
    """Yields (message, place) for what a module raises or warns of."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    constants = {
        node.targets[0].id: node.value.value
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
    for node in nodes:
        if isinstance(node, ast.Call) and TELLS.search(ast.unparse(node.func)):
            # `str(error)` passes the message of another package on.
            if node.args and ast.unparse(node.args[0]) != "str(error)":
                text = plain(text_of(node.args[0], constants))
                yield text, f"{path.relative_to(ROOT)}:{node.lineno}"


MESSAGES = {
    text: place
    for path in sorted((ROOT / "keras_structadv").rglob("*.py"))
    for text, place in messages_in(path)
}
BLOCKS = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
CELLS = re.findall(r"^\| *(`+) ?(.*?) ?\1 *\|", PAGE, re.M)
HEADINGS = re.findall(r"^#+ (`+) ?(.*?) ?\1$", PAGE, re.M)
QUOTED = {plain(text) for text in (*BLOCKS, *(cell for _, cell in CELLS))}


def test_each_message_has_an_entry():
    missing = {text: place for text, place in MESSAGES.items() if text not in QUOTED}
    assert not missing


def test_each_entry_is_a_message():
    assert QUOTED - set(MESSAGES) == set()
    starts = {plain(text) for _, text in HEADINGS}
    assert {x for x in starts if not any(x in text for text in MESSAGES)} == set()
