"""``python -m cluster.check [--ready] [FILE...]``: one line per launch file that is in order.

Without a cloud or a docker daemon: Ray's own validator for what ``ray up`` reads, Kubernetes' own
schemas and ``kuberay.schema.yaml`` for what ``kubectl`` reads, a parser of the Compose
specification, shellcheck and hadolint; then own rules: versions as in constraints.txt, nothing
published beyond this machine, a token on every node, no secret in a file, rights on AWS that are
listed. Files as shipped may contain EDIT, BUCKET and REGISTRY; ``--ready`` is for a file about to
be used, and names each that is left.

Exit code 0: all are in order; 1: a file is wrong; 2: ``--ready`` found something left to do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where run as a script

from cluster.rules import common, compose, iam, kubernetes, ray_up, tools
from cluster.rules import ready as ready_check

FOLDER = Path(__file__).resolve().parent

Rule = Callable[[Path], Iterator[str]]
"""Yields the errors of a file as ``where: what``."""

RULES: dict[str, tuple[str, tuple[Rule, ...]]] = {
    "gpu.yaml": ("ray up on AWS", (common.check, ray_up.check)),
    "gcp.yaml": ("ray up on Google Cloud", (common.check, ray_up.check)),
    "onprem.yaml": ("ray up on own machines", (common.check, ray_up.check)),
    "kuberay.yaml": ("Kubernetes", (common.check, kubernetes.check)),
    "slurm.sh": ("Slurm", (common.check, tools.check_shell, ray_up.check_script)),
    "Dockerfile": ("image", (common.check, tools.check_dockerfile)),
    "docker-compose.yaml": ("Compose", (common.check, compose.check)),
    "node.sh": ("a node's packages", (common.check_contents, tools.check_shell)),
    "clean.sh": ("a head before its image", (common.check_contents, tools.check_shell)),
    "mlflow.sh": ("MLflow", (common.check_contents, tools.check_shell)),
    "iam-head.json": ("rights of the head on AWS", (common.check_contents, iam.check)),
    "iam-worker.json": ("rights of a worker on AWS", (common.check_contents, iam.check)),
    "secrets.sh": ("secrets", (common.check_contents, tools.check_shell)),
}


def problems(path: Path) -> list[str]:
    """The errors of ``path``; its name determines its rules."""
    if path.name not in RULES:
        known = ", ".join(RULES)
        return [f"no rules for a file of this name; known: {known}"]
    if not path.is_file():
        return ["no such file"]
    return [problem for rule in RULES[path.name][1] for problem in rule(path)]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.check", description="Check launch files; starts nothing."
    )
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="default: all")
    parser.add_argument("--ready", action="store_true", help="also: is nothing left to edit?")
    arguments = parser.parse_args(argv)
    if arguments.ready and not arguments.files:
        parser.error("--ready needs the file that is about to be used")
    codes = [
        _show(path, ready=arguments.ready)
        for path in arguments.files or [FOLDER / name for name in RULES]
    ]
    return next((code for code in (1, 2) if code in codes), 0)


def _show(path: Path, *, ready: bool) -> int:
    """Print what is wrong, or else what is left to do; return the exit code for this file."""
    code, found = 1, problems(path)
    if ready and not found:
        code, found = 2, list(ready_check.check(path))
    shown = os.path.relpath(path)
    for problem in found:
        print(f"{shown}: {problem}")
    if not found:
        print(f"ok {shown}: {RULES[path.name][0]}")
    return code if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
