"""A plan and all imports of a study work where there is no network at all."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

MODULES = (
    "mgdm_ray.study, mgdm_ray.pipeline.plan, mgdm_ray.data.load, mgdm_ray.results.mlflow, "
    "mgdm_ray.results.report"
)


def test_a_plan_needs_no_network(tiny: dict[str, Any], write_study: Any, tmp_path: Any) -> None:
    """Would catch a statistic that is sent, or a look-up at import: the kernel refuses both."""
    without = ["unshare", "--net"]
    if subprocess.run([*without, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a network namespace (root)")
    plan = ["-m", "mgdm_ray.study", str(write_study(tiny)), "--plan", "--storage", str(tmp_path)]
    for what in (["-c", f"import {MODULES}"], plan):
        done = subprocess.run(
            [*without, sys.executable, *what], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
