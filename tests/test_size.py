"""The lengths of files and functions, in lines with a token beside comments and docstrings."""

import ast
import io
import tokenize
from pathlib import Path

import ncsn_cli

PACKAGE = Path(ncsn_cli.__file__).parent
MOST_OF_A_FILE, MOST_OF_A_FUNCTION = 300, 40
LONGER = {
    "training/loop.py:fit": "the table of what happens between two steps; parts would share state",
    "runs/workers.py:run_in_processes": "the loop that holds every fork, and its one cleanup",
    "core/expectation.py:moments_by_draws": "one estimator and its error, line by line",
}
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def lines_of_code(text, tree):
    """The numbers of the lines that hold code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            lines -= {*range(node.lineno, node.end_lineno + 1)}
    return lines


def test_files_and_functions_are_short():
    too_long = set()
    for path in PACKAGE.rglob("*.py"):
        name, text = path.relative_to(PACKAGE).as_posix(), path.read_text()
        lines = lines_of_code(text, tree := ast.parse(text))
        if len(lines) > MOST_OF_A_FILE:
            too_long.add(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                length = len(lines & {*range(node.lineno, node.end_lineno + 1)})
                if length > MOST_OF_A_FUNCTION:
                    too_long.add(f"{name}:{node.name}")
    assert too_long == set(LONGER)
    assert len(LONGER) <= 5


def test_an_adapter_to_another_library_is_short():
    text = (PACKAGE / "samplers/foreign.py").read_text()
    lines = lines_of_code(text, tree := ast.parse(text))
    adapters = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(adapters) == 4  # three, and their base class
    for node in adapters:
        assert len(lines & {*range(node.lineno, node.end_lineno + 1)}) <= MOST_OF_A_FUNCTION
