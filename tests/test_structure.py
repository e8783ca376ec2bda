"""Package and tests stay readable: short files; in the package short functions, few arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

FILES = sorted((ROOT / "mgdm_ray").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES, MOST_IN_ALL, MOST_ARGUMENTS = 400, 26_700, 8
LONG_FUNCTION, MOST_LONG = 40, 0.03

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[Path, Function]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield path.relative_to(ROOT), node


def lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def arguments(function: Function) -> int:
    """Those that a caller gives: not self or cls."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_files_are_short() -> None:
    every = (*FILES, *TESTS)
    assert {str(p.relative_to(ROOT)): n for p in every if (n := lines(p)) > MOST_LINES} == {}
    assert sum(map(lines, FILES)) <= MOST_IN_ALL


def test_functions_take_few_arguments() -> None:
    found = {f"{path}: {node.name}": arguments(node) for path, node in functions()}
    assert {name: count for name, count in found.items() if count > MOST_ARGUMENTS} == {}


def test_long_functions_are_rare() -> None:
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, node in functions()
    }
    long = {name: length for name, length in lengths.items() if length > LONG_FUNCTION}
    assert len(long) <= MOST_LONG * len(lengths), long
