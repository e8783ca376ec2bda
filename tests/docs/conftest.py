"""The folder in which pages' commands run, and the site: each made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgdm_ray.config import load_study
from mgdm_ray.data.load import data_source
from mgdm_ray.pipeline.plan import make_plan
from tests.conftest import ROOT
from tests.docs.workshop import Workshop, make_workshop
from tests.finished import compute_here

STUDY = ["python", "-m", "mgdm_ray.study", "studies/mine.yaml"]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """With the study that the how-to pages speak of, finished: what needs Ray on Ray."""
    made = make_workshop(tmp_path_factory.mktemp("workshop"))
    config, data = load_study(made.folder / "studies" / "mine.yaml"), str(made.data)
    plan = make_plan(config, {d.name: data_source(d, data).fingerprint() for d in config.datasets})
    compute_here(config, plan, made.folder / "runs", data)
    done = subprocess.run(
        STUDY, cwd=made.folder, env=made.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built strictly: a broken link or anchor ends with an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
