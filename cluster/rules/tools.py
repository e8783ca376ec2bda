"""Other linters: shellcheck and hadolint, both from PyPI."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def check_shell(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if "\nset -euo pipefail\n" not in text:
        yield "no `set -euo pipefail`: continues after a failed command"
    yield from _run("shellcheck", "--format=gcc", str(path))


def check_dockerfile(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    users = re.findall(r"^USER +(\S+)", text, re.MULTILINE)
    if not users or users[-1] in ("root", "0"):
        yield "USER: the last one must not be root"
    if "-c constraints.txt" not in text:
        yield "packages are installed without `-c constraints.txt`"
    yield from _run("hadolint", "--no-color", "--format=gnu", str(path))


def _run(tool: str, *arguments: str) -> Iterator[str]:
    found = shutil.which(tool, path=str(Path(sys.executable).parent)) or shutil.which(tool)
    if found is None:
        yield f"{tool} is not installed: make setup"
        return
    run = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    for line in run.stdout.splitlines():
        # hadolint's begin with its name, then both: PATH:LINE: ...
        yield f"{tool}: line {line.partition(f'{arguments[-1]}:')[2] or line}"
    if run.returncode and not run.stdout.strip():
        yield f"{tool}: {run.stderr.strip()}"
