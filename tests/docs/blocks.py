"""The fenced blocks of the documentation, and what each says of how it is tested.

A comment above a block, which no reader sees, is its verdict:

    <!-- test: run -->              each command is run; where the block shows output, it must come
    <!-- test: run slow -->         the same, in a test that is marked slow (or: run long)
    <!-- test: run, exit 2 -->      the same, for commands that are meant to fail
    <!-- test: serve -->            the last command is a server: it must answer
    <!-- test: parse (reason) -->   not run here: programs and options must exist
    <!-- test: output -->           of a text block: the run block before it printed this
    <!-- test: file PATH -->        of a yaml or python block: what the commands find there

A shell block without a verdict is an error. A yaml block without one must fit into a study file, a
python block must compile, and a text block must hold no command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import ROOT

SHELL = ("sh", "console")
LANGUAGES = (*SHELL, "yaml", "python", "text", "html")
VERDICT = re.compile(r"<!-- test: (?P<verdict>.*) -->")
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\s*$")
INLINE = re.compile(r"(?<!`)`(?P<code>[^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and the comment above the first."""

    page: Path
    line: int
    """Of the opening fence, from 1."""
    language: str
    verdict: str
    text: str = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.verdict.startswith("run")

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """Of the test that runs it: ``slow``, ``long`` or none."""
        word = self.verdict.removeprefix("run ").partition(",")[0]
        return [getattr(pytest.mark, word)] if word in ("slow", "long") else []

    @property
    def exit_code(self) -> int:
        found = re.search(r"exit (\d+)", self.verdict)
        return int(found[1]) if found else 0

    @property
    def path(self) -> str | None:
        """Where the block is a file of the reader's."""
        kind, _, path = self.verdict.partition(" ")
        return path if kind == "file" else None

    @property
    def script(self) -> str:
        """The commands without what they print."""
        if self.language == "sh":
            return self.text
        lines = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                lines.append(line.removeprefix("$ "))
            elif lines and lines[-1].endswith("\\"):
                lines.append(line)
        return "\n".join(lines)

    @property
    def output(self) -> list[str]:
        """The lines that the block says its commands print."""
        if self.language != "console":
            return []
        commands = self.script.splitlines()
        lines = [line.removeprefix("$ ") for line in self.text.splitlines()]
        return [line for line in lines if line.strip() and line not in commands]


def pages() -> list[Path]:
    """README and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """In their order; AssertionError where a fence is not closed."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        opening = FENCE.match(lines[at])
        if opening is None:
            at += 1
            continue
        closing = f"{opening['indent']}```"
        assert closing in lines[at + 1 :], f"{page}:{at + 1}: this fence is not closed"
        end = lines.index(closing, at + 1)
        above = VERDICT.search(lines[at - 1]) if at else None
        body = "\n".join(line.removeprefix(opening["indent"]) for line in lines[at + 1 : end])
        verdict = above["verdict"] if above else ""
        found.append(Block(page, at + 1, opening["language"], verdict, body))
        at = end + 1
    return found


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page)]


def inline_commands(page: Path) -> list[str]:
    """Commands in running text: ``python -m ...``, ``make ...``, ``mlflow ...``."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        text = text.replace(block.text, "")
    spans = [found["code"] for found in INLINE.finditer(text)]
    programs = "python -m|make|mlflow|ray|mgdm-ray"
    return [code for code in spans if re.match(rf"(\w+=\S+ )*({programs}) \w", code)]
