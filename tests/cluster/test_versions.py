"""Versions stand in constraints.txt, and nowhere else with another number."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib

import pytest

from cluster.check import FOLDER, RULES
from cluster.rules import common

INSTALLS = re.compile(r"(?:pip install|node\.sh \w+)([^&|;<#]*?)(?:&&|$)", re.MULTILINE)


def test_named_versions_are_those_of_constraints() -> None:
    """Would catch a launch file left behind when a version changes."""
    pinned = common.versions()
    seen = set()
    for name in RULES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert list(common._check_versions(text)) == [], name
        seen |= {package for package in ("ray", "mgdm-ray") if pinned[package] in text}
    assert seen == {"ray", "mgdm-ray"}  # else there is nothing that this compares


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rayVersion: 2.59.0", "ray 2.59.0, but constraints.txt has"),
        ("rayVersion: '2.59.0'", "ray 2.59.0"),
        ("image: rayproject/ray:2.59.0-py311-gpu", "ray 2.59.0"),
        ("RUN pip install torch==2.0.0", "torch 2.0.0"),
        ("RUN pip install torchvision==0.1 mlflow==1.0", "mlflow 1.0"),
        ("ARG PYTHON=3.12", "python 3.12"),
        ("FROM python3.12", "python 3.12"),
        ("image: mgdm-ray:9.9", "mgdm-ray 9.9"),
        ("pip install mistletoe==1.0", "not in constraints.txt"),
        ("image: postgres", "no fixed version"),
        ("image: postgres:latest", "no fixed version"),
        ("FROM ubuntu", "no fixed version"),
    ],
)
def test_another_version_is_refused(line: str, said: str) -> None:
    """Would catch a pattern that reads past a version."""
    assert any(said in problem for problem in common._check_versions(line))


def test_constraints_are_what_is_tested() -> None:
    """Would catch a cluster that gets other versions than those the tests ran with."""
    pinned = common.versions()
    project = tomllib.loads((common.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pinned["python"] == project["tool"]["mypy"]["python_version"]
    for name in ("ray", "torch", "torchvision", "mlflow", "optuna", "monai"):
        assert pinned[name] == importlib.metadata.version(name)


def test_what_nodes_install_is_pinned() -> None:
    """Would catch a package that a launch file installs at whatever version is the newest."""
    pinned = common.versions()
    found = set()
    for name in RULES:
        text = (FOLDER / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for match in INSTALLS.finditer(text):
            for word in match[1].split():
                package = word.strip("'\"\\")
                if re.fullmatch(r"[a-z][a-z0-9-]+(\[\w+\])?", package):
                    found.add(package.partition("[")[0])
    found -= {"gcs"}
    assert {"boto3", "google-api-python-client", "mlflow", "psycopg2-binary", "uv"} <= found
    assert found <= set(pinned), found - set(pinned)


def test_one_python_in_all_places() -> None:
    """Would catch an image with another Python than the nodes of `ray up` get."""
    node = (FOLDER / "node.sh").read_text(encoding="utf-8")
    assert "s/^# python==//p" in node
    text = (common.ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert len(re.findall(r"^# python==\d+\.\d+$", text, re.MULTILINE)) == 1
