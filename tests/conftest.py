"""What all tests share: quiet, short time-outs for Ray, no network, tiny studies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before any test imports ray: its workers inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("MPLBACKEND", "Agg")

from mgdm_ray import environment

environment.prepare(local=True)

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

TINY: dict[str, Any] = {
    "name": "tiny",
    "datasets": [{"name": "phantom-ultrasound", "phantom": {"train": 40, "val": 20, "test": 20}}],
    "image_size": 16,
    "networks": ["squeezenet1_1", "alexnet"],
    "arms": ["real", "duplicate", "generate", "roundtrip", "disturb"],
    "judge": None,  # tests of it say so: it would double what the others take
    "seeds": 1,
    "denoiser": {
        "unet": {"channels": [16, 16], "attention": [False, False]},
        "steps": 6,
        "batch_size": 8,
        "checkpoint_every": 3,
    },
    "guide": {
        "unet": {"channels": [16, 16], "attention": [False, False]},
        "steps": 4,
        "batch_size": 8,
    },
    "sampling": {"num_inference_steps": 3, "batch_size": 16},
    "synthetic": {"ratio": 0.5},
    "search": {"trials": 3, "networks": ["squeezenet1_1"], "images": 8},
    "downstream": {"steps": 2, "batch_size": 8},
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A study of seconds, as a mapping that a test may change."""
    return yaml.safe_load(yaml.safe_dump(TINY))  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests: a second Playwright in one process is refused."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install playwright"
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, as which tests run in containers.
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket of a real server with S3's interface; processes see it, too."""
    from tests.storage.remote.server import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture
def write_study(tmp_path: Path) -> Any:
    """Writes a mapping as a study file and returns its path."""

    def write(study: dict[str, Any], name: str = "study.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
        return path

    return write
