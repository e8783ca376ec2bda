"""``python cluster/check.py [FILE...]``: one line per launch file, exit code 1 if one is wrong.

Without a cloud or a docker daemon: Ray's own validator for what ``ray up`` reads, Kubernetes' own
schemas and ``kuberay.schema.yaml`` for what ``kubectl`` reads, a parser of the Compose
specification, shellcheck and hadolint; then own rules: versions as in constraints.txt, nothing
published beyond this machine, a token on every node, no secret in a file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where run as a script

from cluster.rules import common, compose, kubernetes, ray_up, tools

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
    "mlflow.sh": ("MLflow", (common.check_contents, tools.check_shell)),
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


def main(paths: list[str]) -> int:
    wrong = False
    for path in [Path(p) for p in paths] or [FOLDER / name for name in RULES]:
        found = problems(path)
        shown = os.path.relpath(path)
        if found:
            wrong = True
            print("\n".join(f"{shown}: {problem}" for problem in found))
        else:
            print(f"ok {shown}: {RULES[path.name][0]}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
