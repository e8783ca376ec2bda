"""What all tests share: quiet, short time-outs for Ray, no network, tiny studies."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.finished import Finished

# Before any test imports ray: its workers inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("MPLBACKEND", "Agg")

from mgdm_ray import environment

environment.prepare(local=True)

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

ON_ONE_RAY = tuple(f"runtime/test_{name}.py" for name in "search engine training allocator".split())
"""They share ``local_ray``, which each worker would start for itself."""
APART = ("classifiers/test_networks.py", "data/test_phantoms.py", "storage/test_store_crashes.py")
"""Modules of slow tests that share nothing: one by one at the end, they keep both workers busy."""
HEAVY = {"browser", "bucket", "site", "workshop"}
"""Fixtures that take so long that the tests that use them are slow ones."""


FIRST = (
    "test_study.py",
    *ON_ONE_RAY,
    "docs/test_commands.py",
    "test_study_runs.py",
    "test_leases.py",
    "test_optuna_storage.py",
    "test_listening.py",
    "test_mlflow.py",
    "test_mlflow_pages.py",
    "test_api.py",
    "test_probe.py",
    "test_finalize.py",
    "test_earlier_storage.py",
)
"""Modules that take longest: started last, one of two workers would wait for the other."""


def pytest_configure() -> None:
    """Without Hypothesis' limit of 200 ms an example: a busy machine is no failure."""
    from hypothesis import settings  # here, for workers of Ray import this module, too

    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A module goes to one worker, those of ON_ONE_RAY together, tests of APART one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::", 1)[0]
            if module.endswith(ON_ONE_RAY):
                return "one Ray"
            return nodeid if module.endswith(APART) else module

    return Scheduling(config, log) if config.getoption("dist") == "loadscope" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HEAVY.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: place_of(str(item.path)))


def place_of(path: str) -> int:
    """FIRST in its order, then the others, then APART."""
    for place, name in enumerate(FIRST):
        if path.endswith(f"/{name}"):
            return place
    return len(FIRST) + path.endswith(APART)


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


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def mgdm(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Said]]:
    """Runs ``python -m mgdm_ray.study`` in this process: seconds less than a process of its own."""
    from mgdm_ray import study

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def command(*words: str | Path) -> Said:
        capsys.readouterr()
        try:
            code = study.main([*map(str, words)])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        return Said(code, *capsys.readouterr())

    yield command
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One tiny finished study for all tests: read it, change nothing."""
    from tests.finished import finish

    return finish(tmp_path_factory)


@pytest.fixture
def finished_copy(finished_study: Finished, tmp_path: Path) -> Finished:
    """A copy that a test may change; it replaces files of artefacts, for they are hard links."""
    return finished_study.copy(tmp_path / "finished")


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
