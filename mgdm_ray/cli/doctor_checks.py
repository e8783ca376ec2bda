"""The checks of ``mgdm_ray.doctor``; each is independent, so one broken library hides nothing."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from mgdm_ray.config import InputError, StudyConfig

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GB = 1e9
SHARED_MEMORY = Path("/dev/shm")
RAY_STARTS_IN_S = 120.0
SERVER_ANSWERS_IN_S = 5.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
RAY_LOGS = "see /tmp/ray/session_latest/logs"
RAY_TASK = """
from mgdm_ray import environment
environment.prepare(local=True)
from mgdm_ray.runtime import engine
import ray
with engine.cluster(None):
    print("computed", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


class Problem(Exception):
    """Something that prevents a study: what was found, and what to do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}: {advice}")


class Limitation(Problem):
    """Something that slows or restricts a study without preventing it."""


class Line(NamedTuple):
    """``word``: ``ok``, ``note`` (a limitation) or ``no`` (a problem)."""

    word: str
    text: str


@dataclass(frozen=True)
class Setup:
    """A study, if one was named, and its storage."""

    config: StudyConfig | None
    storage: str

    @property
    def data_dir(self) -> str | None:
        return self.config.data_dir if self.config else None


def examine(check: Callable[[Setup], Iterator[str]], setup: Setup) -> Iterator[Line]:
    """Yield the lines of one check; an exception becomes the last one."""
    try:
        for text in check(setup):
            yield Line("ok", text)
    except Limitation as limitation:
        yield Line("note", str(limitation))
    except Problem as problem:
        yield Line("no", str(problem))
    except Exception as error:  # noqa: BLE001 - in a broken environment anything may be raised
        name = check.__name__.replace("_", " ")
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield Line("no", f"the check of {name} failed: {found}")


def python_version(_: Setup, version: str = platform.python_version()) -> Iterator[str]:
    from packaging.specifiers import SpecifierSet

    needed = SpecifierSet(metadata.metadata("mgdm-ray")["Requires-Python"] or "")
    if not needed.contains(version, prereleases=True):
        raise Problem(f"python {version}", f"install python {needed}")
    yield f"python {version}"


def packages(_: Setup) -> Iterator[str]:
    from packaging.requirements import Requirement

    try:
        known = [Requirement(text) for text in metadata.requires("mgdm-ray") or []]
    except metadata.PackageNotFoundError:
        raise Problem("mgdm-ray is not installed", "run make setup, or pip install -e .") from None
    needed = [r for r in known if r.marker is None or r.marker.evaluate({"extra": ""})]
    if wrong := [fault for fault in map(package_fault, needed) if fault]:
        raise Problem("; ".join(wrong), "run pip install -c constraints.txt -e . (or make setup)")
    yield f"{len(needed)} packages in the versions that pyproject.toml requires"


def package_fault(needed: Requirement) -> str:
    """What is wrong with the installed package; empty if nothing."""
    try:
        version = metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        return f"{needed.name} is not installed"
    fits = needed.specifier.contains(version, prereleases=True)
    return "" if fits else f"{needed.name} {version} is not {needed.specifier}"


def computing(_: Setup) -> Iterator[str]:
    from mgdm_ray.environment import gpus
    from mgdm_ray.precision import describe_device

    device, text = describe_device()
    yield text
    if wrong := _driver_faults(works=device == "cuda"):
        raise Problem("; ".join(wrong), "update NVIDIA's driver, or use a newer GPU")
    if device == "cuda":
        return
    if gpus():
        raise Problem(f"torch cannot use {gpus()} GPUs", "install torch for their driver")
    raise Limitation("no GPU", "fine for small studies (28 px, hours); larger ones need one")


def _driver_faults(*, works: bool) -> list[str]:
    """Why torch cannot use a GPU of this machine; ``works``: it accepts the driver."""
    from mgdm_ray.cli import gpu_driver
    from mgdm_ray.precision import built_for

    built = built_for()
    if built is None:
        return []
    try:
        gpus = gpu_driver.listed()
    except gpu_driver.DriverError as error:
        return [] if works else [str(error)]
    return gpu_driver.faults(gpus, *built, driver=not works)


def ray_starts(_: Setup, seconds: float = RAY_STARTS_IN_S, task: str = RAY_TASK) -> Iterator[str]:
    """Run a task in a process that can be killed when it hangs."""
    with subprocess.Popen(
        [sys.executable, "-c", task],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            found = f"Ray did not run a task within {seconds:.0f} s"
            raise Problem(found, f"is the machine overloaded? {RAY_LOGS}") from None
    if process.returncode or "computed 42" not in output:
        last = (output.strip().splitlines() or ["no output"])[-1][:300]
        raise Problem(f"Ray did not run a task ({last})", RAY_LOGS)
    yield "Ray starts on 127.0.0.1 and runs a task"


def disk(setup: Setup) -> Iterator[str]:
    folder = _nearest(setup.storage) or Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    few = (1, "free some space, or give another --storage")
    some = (10, "enough for small studies; --plan shows how much one writes")
    yield _enough(f"{free / GB:.1f} GB free at {folder}", free, few, some)


def memory(_: Setup) -> Iterator[str]:
    import psutil

    total = psutil.virtual_memory().total
    some = (8, "for small networks only; resources.cpus_per_task: 2 runs fewer at once")
    yield _enough(f"{total / GB:.1f} GB of memory", total, (2, "at least 2 GB are needed"), some)


def shared_memory(_: Setup, folder: Path = SHARED_MEMORY) -> Iterator[str]:
    """Ray keeps its object store there, or else on the disk."""
    if not folder.is_dir():
        raise Limitation(f"no {folder}", "Ray keeps its objects on the disk, which is slower")
    free = shutil.disk_usage(folder).free
    some = (0.2, "Ray uses the disk instead; in a container give --shm-size=2g")
    yield _enough(f"{free / GB:.1f} GB free in {folder}", free, (0, ""), some)


def _enough(found: str, free: float, few: tuple[float, str], some: tuple[float, str]) -> str:
    """``found``, unless ``free`` is below ``few`` or ``some`` (GB, advice)."""
    for kind, (limit, advice) in ((Problem, few), (Limitation, some)):
        if free < limit * GB:
            raise kind(found, advice)
    return found


def data_folder(setup: Setup) -> Iterator[str]:
    from mgdm_ray.data.npz import resolve_data_dir
    from mgdm_ray.storage.remote.objects import Objects, is_url

    location = resolve_data_dir(setup.data_dir)
    advice = "set MGDM_DATA_DIR (or data_dir of the study) to the folder of your .npz files"
    if is_url(location):
        names = sorted(Objects(location).sizes(""))
    elif Path(location).is_dir():
        names = sorted(path.name for path in Path(location).glob("*.npz"))
    elif Path(location).exists() or "MGDM_DATA_DIR" in os.environ:
        raise Problem(f"the data folder {location} is not a folder", advice)
    else:
        raise Limitation(f"no data folder {location}", f"phantoms need none; otherwise {advice}")
    shown = ", ".join(names[:8]) + (f", and {len(names) - 8} more" if len(names) > 8 else "")
    yield f"data folder {location}: {shown or 'no .npz'}"


def datasets(setup: Setup) -> Iterator[str]:
    from mgdm_ray.data.load import data_source
    from mgdm_ray.data.sources.source import own_listing

    absent, wrong = [], []
    for dataset in setup.config.datasets if setup.config else ():
        try:
            source = data_source(dataset, setup.data_dir)
            if source.fingerprint() == "absent" and dataset.path is None:
                absent.append(dataset.name)
                continue
            listing = own_listing(dataset, setup.data_dir)
            if listing is None:
                source.check()
        except InputError as error:
            wrong.append(str(error))
        else:
            what = f" ({len(listing.items)} own images, not opened)" if listing else ""
            yield f"dataset {dataset.name}{what}"
    if wrong:
        raise Problem("; ".join(wrong), "fix the file or its entry in the study")
    if absent:
        raise Limitation(f"{', '.join(absent)} not found", "downloaded when the study starts")


def storage(setup: Setup) -> Iterator[str]:
    from mgdm_ray.pipeline.staging import open_storage

    advice = "give a writable folder with --storage"
    folder = _nearest(setup.storage)
    if folder is None:
        try:
            open_storage(setup.storage, write=True)
        except InputError as error:
            raise Problem(str(error), "see docs/cluster.md") from None
    else:
        if not folder.is_dir():
            raise Problem(f"storage {setup.storage}: {folder} is a file", advice)
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"mgdm")
        except OSError as error:
            raise Problem(f"storage {setup.storage}: {error.strerror}", advice) from None
    shown = setup.storage if folder is None else Path(setup.storage).expanduser().absolute()
    yield f"storage {shown} is writable"


def _nearest(location: str) -> Path | None:
    """The deepest existing part of the storage's path; None for a URL."""
    from mgdm_ray.storage.remote.objects import is_url

    if is_url(location):
        return None
    path = Path(location).expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def mlflow(setup: Setup) -> Iterator[str]:
    uri = setup.config.tracking.uri if setup.config else None
    if uri and not uri.startswith("sqlite:"):
        _require_answer(uri)
        yield f"MLflow: {uri} answers"
        return
    from mgdm_ray.results.mlflow import Tracker

    with tempfile.TemporaryDirectory(prefix="mgdm-doctor-") as folder:
        database = f"sqlite:///{folder}/mlflow.db"
        tracker = Tracker(database, f"{folder}/artifacts", "doctor", "doctor", "key")
    if not tracker.active:
        raise Problem("MLflow cannot write runs to a database file", "see the warning above")
    yield "MLflow writes runs to a database file"


def _require_answer(uri: str) -> None:
    """Problem unless the server answers within seconds, even if only to ask for a login."""
    parts = urlsplit(uri)
    advice = "start it, or correct tracking.uri"
    try:
        if parts.scheme.startswith("http"):
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_ANSWERS_IN_S).close()
        else:
            port = parts.port or PORTS[parts.scheme.partition("+")[0]]
            address = (parts.hostname or "127.0.0.1", port)
            socket.create_connection(address, timeout=SERVER_ANSWERS_IN_S).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise Problem(f"MLflow: {uri} answers {error.code}", advice) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Problem(f"MLflow: {uri} does not answer ({reason})", advice) from None


Checks = tuple[Callable[[Setup], Iterator[str]], ...]
MACHINE: Checks = (python_version, packages, computing, ray_starts, disk, memory, shared_memory)
CHECKS: Checks = (*MACHINE, data_folder, datasets, storage, mlflow)
