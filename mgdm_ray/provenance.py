"""The code that computed a result: package versions and the commit."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "ray", "optuna", "monai", "mlflow", "numpy", "mgdm-ray")


def versions() -> dict[str, str]:
    """Installed versions by package name, without importing any of them."""
    return {package: _version(package) for package in PACKAGES}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@cache
def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` if files differ from it.

    None if the package is not at the top of a checkout, e.g. installed in another repository.
    """
    package = Path(__file__).resolve().parent
    try:
        if Path(_git(package, "rev-parse", "--show-toplevel")) != package.parent:
            return None
        commit = _git(package, "rev-parse", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.check_output(
        command, text=True, timeout=10, stderr=subprocess.DEVNULL
    ).strip()
