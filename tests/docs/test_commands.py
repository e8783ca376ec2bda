"""Every command of README and docs/: run as it stands, or known to exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mgdm_ray.config import StudyConfig
from tests.docs import options
from tests.docs.blocks import (
    LANGUAGES,
    SHELL,
    VERDICT,
    Block,
    all_blocks,
    blocks,
    inline_commands,
    pages,
)
from tests.docs.workshop import Workshop

BLOCKS = all_blocks()
VERDICTS = r"run( slow| long)?(, exit \d)?|serve|parse \(.+\)|output|file [\w./-]+"
A_COMMAND = re.compile(r"^\$ |^(python|make|pip|mlflow|ray|bash|cluster/\S+\.sh)\b", re.MULTILINE)
CHANGING = re.compile(r"\s*(\d+:\d\d |warning:|train:|search:|resolve:|widen:)")
BASE = {"name": "base", "datasets": ["phantom-fundus"], "networks": ["alexnet"]}


def named(found: list[Block]) -> list[object]:
    """As parameters; a slow block's test is marked so."""
    return [pytest.param(b, id=b.name, marks=b.marks) for b in found]


@pytest.mark.parametrize("block", named(BLOCKS))
def test_every_block_says_how_it_is_tested(block: Block) -> None:
    """Would catch a new command that no test runs: one without a verdict, or in a text block."""
    assert block.language in LANGUAGES, f"{block.name}: name the language: {LANGUAGES}"
    assert not block.verdict or re.fullmatch(VERDICTS, block.verdict), block.verdict
    if block.language in SHELL:
        assert re.match("run|serve|parse", block.verdict), f"{block.name}: say if it is run"
    if block.language == "text":
        assert block.verdict in ("", "output")
        hidden = A_COMMAND.search(block.text) and block.verdict != "output"
        assert not hidden, f"{block.name}: a command in a text block is not tested"


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)
def test_a_verdict_stands_above_a_block(page: Path) -> None:
    """Would catch a verdict that a blank line or a typing error has cut off from its block."""
    written = len(VERDICT.findall(page.read_text(encoding="utf-8")))
    assert written == sum(bool(block.verdict) for block in blocks(page))


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.is_run]))
def test_commands_run(block: Block, workshop: Workshop) -> None:
    """Would catch a command that a reader copies and that fails, or prints something else."""
    done = workshop.run(block)
    assert done.returncode == block.exit_code, done.stdout
    assert "Traceback" not in done.stdout
    after = BLOCKS[BLOCKS.index(block) + 1 :][:1]
    shown = [line for b in after if b.verdict == "output" for line in b.text.splitlines()]
    assert not missing([*block.output, *shown], done.stdout), done.stdout


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.verdict == "serve"]))
def test_servers_answer(block: Block, workshop: Workshop) -> None:
    """Would catch a server that does not start with what a study leaves."""
    assert workshop.serve(block), (workshop.folder / "server.log").read_text()


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.language in SHELL]))
def test_programs_and_options_exist(block: Block) -> None:
    """Would catch an option that was renamed in a command that cannot be run here."""
    found = options.commands(block.script)
    assert found
    assert not [problem for words in found if (problem := options.mistake(words))]


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)
def test_commands_in_running_text_exist(page: Path) -> None:
    """Would catch the same in a sentence or a table."""
    for code in inline_commands(page):
        for words in options.commands(code):
            assert not options.mistake(words), code


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.language == "yaml"]))
def test_study_files_are_valid(block: Block) -> None:
    """Would catch a key that was renamed or a value that is refused."""
    part = yaml.safe_load(block.text)
    StudyConfig.model_validate({**BASE, **part})


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.language == "python"]))
def test_python_compiles(block: Block) -> None:
    """Would catch a typing error in code that is only shown."""
    compile(block.text, block.name, "exec")


def missing(expected: list[str], printed: str) -> list[str]:
    """The expected lines whose fixed words, in their order, stand in no printed line.

    Numbers, paths and ``...`` may be anything. Progress depends on how fast this machine is,
    warnings and advice on how small the study is here: such lines are not looked for.
    """
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    wanted = [line for line in expected if line.strip(" .-") and not CHANGING.match(line)]
    return [w for w in wanted if not any(_pattern(w).fullmatch(line) for line in lines)]


def _pattern(line: str) -> re.Pattern[str]:
    anything = r"\.\.\.|sqlite:/\S+|https?://\S+|/\S+|[+\u2212-]?\d[\d.]*%?|±"
    parts = re.split(f"({anything})", " ".join(line.split()))
    made = [".*" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return re.compile("".join(made))
