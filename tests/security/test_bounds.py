"""No lower bound admits a version with a known hole."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.conftest import ROOT

BOUNDS = {
    "ray": ((2, 54), "holes of the dashboard, and no token"),
    "mlflow": ((3, 10), "paths of artefacts that lead out of their folder"),
    "monai": ((1, 5, 2), "CVE-2025-58756 and CVE-2026-21851: loaders of bundles and Auto3DSeg"),
    "torch": ((2, 10), "CVE-2025-32434 and CVE-2026-24747: weights_only runs code"),
    "pillow": ((11, 3), "CVE-2025-48379: a buffer overflow in writing DDS"),
    "pyarrow": ((17,), "CVE-2023-47248: before 14.0.1 Parquet files could run code"),
}
"""Package -> (least version, what is wrong before it)."""


@pytest.mark.parametrize("package", BOUNDS)
def test_the_lower_bound_stands(package: str) -> None:
    """Would catch a bound that is lowered, or lost, to please an old installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (line,) = [d for d in project["dependencies"] if re.match(rf"{package}(\[|>|$)", d)]
    found = re.search(r">=([0-9.]+)", line)
    assert found is not None, line
    given = tuple(int(part) for part in found[1].split("."))
    least, reason = BOUNDS[package]
    assert given >= least, f"{line}: {reason}"
