"""Commands that are not run: whether their programs, modules and options exist."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import click

from tests.conftest import ROOT

ELSEWHERE = {"aws", "cp", "docker", "export", "kubectl", "optuna-dashboard", "pip", "sbatch",
             "sed", "source", "ssh"}  # fmt: skip
"""Programs that are not ours and need not be here."""
OURS = {"mlflow": "mlflow.cli", "ray": "ray.scripts.scripts"}
"""Programs that come with what we install, and where Click has their options."""
HEAVY = ("benchmarks.", "docs.", "tests.")
"""Modules whose --help takes an import of seconds: their options are looked up in the source."""


def commands(script: str) -> list[list[str]]:
    """The words of each simple command of a shell script, without what is set before it."""
    found: list[list[str]] = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                found += [words] if words else []
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)
    return found


def mistake(words: list[str]) -> str:
    """What does not exist of this command; empty where all does."""
    program, *rest = words
    if program == "make":
        return _make(rest)
    if program == "mgdm-ray":
        return _python(["-m", f"mgdm_ray.{rest[0]}", *rest[1:]])
    if program == "python":
        return _python(rest)
    if program in OURS:
        return _subcommands(program, rest)
    if program in ELSEWHERE:
        return ""
    path = ROOT / program
    if "/" in program and path.is_file():
        return "" if os.access(path, os.X_OK) else f"{program} cannot be executed"
    return f"unknown program {program!r}"


def _make(targets: list[str]) -> str:
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    missing = [t for t in targets if "=" not in t and t not in known]
    return f"make has no target {missing[0]!r}" if missing else ""


def _python(rest: list[str]) -> str:
    if rest[:1] == ["-c"]:
        return ""
    if rest[:1] != ["-m"] or len(rest) < 2:
        return f"python is called without -m: {shlex.join(rest)}"
    module, *options = rest[1:]
    if module == "pytest":
        return ""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    package = ROOT.joinpath(*module.split("."), "__main__.py")
    source = path if path.is_file() else package
    if not source.is_file():
        return f"there is no module {module}"
    if module.startswith(HEAVY):
        return _unknown(options, source.read_text(encoding="utf-8"), module)
    subcommand = next((o for o in options if re.fullmatch(r"[a-z]+", o)), None)
    name = module if source == path else f"{module}.__main__"
    told = _help_here(name)
    if subcommand and re.search(rf"\b{subcommand}\b", told):
        told += _help_here(name, subcommand)
    return _unknown(options, told, module)


def _subcommands(program: str, rest: list[str]) -> str:
    if shutil.which(program, path=str(Path(sys.executable).parent)) is None:
        return f"{program} is not installed"
    named = []
    while rest and re.fullmatch(r"[a-z-]+", rest[0]) and not rest[0].startswith("-"):
        named.append(rest.pop(0))
    mine = rest[: rest.index("--")] if "--" in rest else rest
    depth = 2 if named[:1] == ["job"] else 1
    command = importlib.import_module(OURS[program]).cli
    for word in named[:depth]:
        command = command.get_command(click.Context(command), word)
        if command is None:
            return f"{program} has no command {word}"
    told = " ".join(name for p in command.params for name in (*p.opts, *p.secondary_opts))
    problem = _unknown(mine, f"{told} --help", " ".join([program, *named]))
    theirs = rest[len(mine) + 1 :]
    return problem or (mistake(theirs) if theirs else "")


def _unknown(options: list[str], told: str, what: str) -> str:
    for option in options:
        name = option.partition("=")[0].strip("[]")
        if name.startswith("-") and not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", told):
            return f"{what} has no option {name}"
    return ""


@functools.cache
def _help_here(module: str, *words: str) -> str:
    """In this process, which has imported most of it: a second less than one of its own."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        importlib.import_module(module).main([*words, "--help"])
    return told.getvalue()
