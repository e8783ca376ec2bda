"""``python -m mgdm_ray.study doctor [STUDY.yaml]``: whether a study can run here, line by line.

Every check stands on its own, so that a broken environment is told as far as it can be.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from mgdm_ray.config import InputError, StudyConfig, load_study

GB = 1e9
LITTLE_DISK, SOME_DISK = 1 * GB, 10 * GB
LITTLE_MEMORY, SOME_MEMORY = 2 * GB, 8 * GB
SHARED_MEMORY = Path("/dev/shm")
RAY_STARTS_IN_S = 120.0
SERVER_ANSWERS_IN_S = 5.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
RAY_TASK = """
from mgdm_ray import environment
environment.prepare(local=True)
from mgdm_ray.runtime import engine
import ray
with engine.cluster(None):
    print("computed", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


class Trouble(Exception):
    """What would stop a study: what was found, and what to do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}: {advice}")


class Caution(Trouble):
    """What makes a study slow or small, and does not stop it."""


class Line(NamedTuple):
    """``ok``, ``note`` (nothing that stops a study) or ``no``; and what was found."""

    word: str
    text: str


@dataclass(frozen=True)
class Place:
    """What is examined: a study where one was named, and its storage."""

    config: StudyConfig | None
    storage: str


def main(argv: Sequence[str]) -> int:
    """0: a study can run here, 1: something would stop it, 2: wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m mgdm_ray.study doctor",
        description="Say whether a study can run here; starts Ray for a moment, changes nothing.",
    )
    parser.add_argument("study", metavar="STUDY.yaml", nargs="?", help="look at its data as well")
    parser.add_argument("--storage", metavar="DIR|URL", help="where everything would go")
    arguments = parser.parse_args(argv)
    try:
        config = load_study(arguments.study) if arguments.study else None
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    place = Place(config, arguments.storage or (config.storage if config else "runs"))
    stopped = False
    for check in CHECKS:
        for line in examine(check, place):
            print(f"{line.word:<4} {line.text}", flush=True)
            stopped |= line.word == "no"
    return int(stopped)


def examine(check: Callable[[Place], Iterator[str]], place: Place) -> Iterator[Line]:
    """The lines of one check; whatever it raises is its last one."""
    try:
        for text in check(place):
            yield Line("ok", text)
    except Caution as caution:
        yield Line("note", str(caution))
    except Trouble as trouble:
        yield Line("no", str(trouble))
    except Exception as error:  # noqa: BLE001 - in a broken environment anything may be raised
        name = check.__name__.replace("_", " ")
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield Line("no", f"{name} cannot be examined: {found}")


def python_version(_: Place, version: str = platform.python_version()) -> Iterator[str]:
    from packaging.specifiers import SpecifierSet

    needed = SpecifierSet(metadata.metadata("mgdm-ray")["Requires-Python"] or "")
    if not needed.contains(version, prereleases=True):
        raise Trouble(f"python {version}", f"{needed} is needed")
    yield f"python {version}"


def packages(_: Place) -> Iterator[str]:
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires("mgdm-ray") or []
    except metadata.PackageNotFoundError:
        raise Trouble("mgdm-ray is not installed", "make setup, or pip install -e .") from None
    needed = [Requirement(text) for text in texts]
    wrong = [fault for one in needed if _applies(one) and (fault := package_fault(one.name, one))]
    if wrong:
        raise Trouble("; ".join(wrong), "pip install -c constraints.txt -e . (or make setup)")
    yield f"packages: {sum(map(_applies, needed))} as pyproject.toml asks"


def _applies(requirement: object) -> bool:
    """Whether it is needed here and without extras."""
    marker = getattr(requirement, "marker", None)
    return marker is None or bool(marker.evaluate({"extra": ""}))


def package_fault(name: str, requirement: object) -> str:
    """What is wrong with the installed package; empty where nothing is."""
    specifier = getattr(requirement, "specifier", None)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    if specifier is not None and not specifier.contains(version, prereleases=True):
        return f"{name} {version} is not {specifier}"
    return ""


def computing(_: Place) -> Iterator[str]:
    import torch

    from mgdm_ray.environment import cores, gpus
    from mgdm_ray.precision import has_bfloat16

    cuda = torch.cuda.is_available()
    half = "bfloat16" if has_bfloat16(torch.device("cuda" if cuda else "cpu")) else "float32"
    if cuda:
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield f"torch {torch.__version__} computes in {half} on {names}"
        return
    yield f"torch {torch.__version__} computes in {half} on {cores()} cores"
    if gpus():
        raise Trouble(f"{gpus()} GPUs, which torch cannot use", "install torch for their driver")
    raise Caution("no GPU", "small studies only (28 px, hours); larger ones need one")


def ray_starts(_: Place, seconds: float = RAY_STARTS_IN_S, task: str = RAY_TASK) -> Iterator[str]:
    """In a process of its own, which can be ended when it hangs."""
    with subprocess.Popen(
        [sys.executable, "-c", task],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _none = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _none = process.communicate()
            raise Trouble(
                f"Ray did not run a task within {seconds:.0f} s",
                "is the machine overloaded? look into /tmp/ray/session_latest/logs",
            ) from None
    if process.returncode or "computed 42" not in said:
        last = (said.strip().splitlines() or ["it said nothing"])[-1][:300]
        raise Trouble(f"Ray did not run a task ({last})", "see /tmp/ray/session_latest/logs")
    yield "Ray starts on 127.0.0.1 and runs a task"


def disk(place: Place) -> Iterator[str]:
    folder = _nearest(place.storage) or Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.1f} GB free at {folder}"
    if free < LITTLE_DISK:
        raise Trouble(found, "make room, or give another --storage")
    if free < SOME_DISK:
        raise Caution(found, "enough for small studies; --plan says what one writes")
    yield found


def memory(_: Place) -> Iterator[str]:
    import psutil

    total = psutil.virtual_memory().total
    found = f"{total / GB:.1f} GB of memory"
    if total < LITTLE_MEMORY:
        raise Trouble(found, "2 GB are the least")
    if total < SOME_MEMORY:
        raise Caution(found, "small networks only: resources.cpus_per_task: 2 runs fewer at once")
    yield found


def shared_memory(_: Place, folder: Path = SHARED_MEMORY) -> Iterator[str]:
    """Ray's object store lies there; without it on the disk, slower."""
    if not folder.is_dir():
        raise Caution(f"no {folder}", "Ray keeps its objects on the disk instead, slower")
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.1f} GB free in {folder}"
    if free < 0.2 * GB:
        raise Caution(found, "Ray takes the disk instead; in a container give --shm-size=2g")
    yield found


def data_folder(place: Place) -> Iterator[str]:
    from mgdm_ray.data.load import resolve_data_dir
    from mgdm_ray.storage.remote.objects import Objects, is_url

    location = resolve_data_dir(place.config.data_dir if place.config else None)
    advice = "name the folder of your .npz files in MGDM_DATA_DIR (or data_dir of the study)"
    if is_url(location):
        names = sorted(Objects(location).sizes(""))
    elif Path(location).is_dir():
        names = sorted(path.name for path in Path(location).glob("*.npz"))
    elif Path(location).exists() or "MGDM_DATA_DIR" in os.environ:
        raise Trouble(f"the data folder {location} is no folder", advice)
    else:
        raise Caution(f"no data folder {location}", f"phantoms need none; else {advice}")
    shown = ", ".join(names[:8]) + (f", and {len(names) - 8} more" if len(names) > 8 else "")
    yield f"data folder {location}: {shown or 'no .npz'}"


def datasets(place: Place) -> Iterator[str]:
    from mgdm_ray.data.load import check_source, fingerprint
    from mgdm_ray.data.sources.source import own_listing

    config = place.config
    absent, wrong = [], []
    for dataset in config.datasets if config else ():
        try:
            found = fingerprint(dataset, config.data_dir if config else None)
            listing = own_listing(dataset, config.data_dir if config else None)
            if found == "absent" and dataset.path is None:
                absent.append(dataset.name)
                continue
            if listing is None:
                check_source(dataset, config.data_dir if config else None)
        except InputError as error:
            wrong.append(str(error))
        else:
            what = f" ({len(listing.items)} own images, not opened)" if listing else ""
            yield f"dataset {dataset.name}{what}"
    if wrong:
        raise Trouble("; ".join(wrong), "mend the file or its entry in the study")
    if absent:
        raise Caution(f"{', '.join(absent)} not here", "downloaded at the start of the study")


def storage(place: Place) -> Iterator[str]:
    from mgdm_ray.pipeline.staging import open_storage

    advice = "give a folder that can be written with --storage"
    folder = _nearest(place.storage)
    if folder is None:
        try:
            open_storage(place.storage, write=True)
        except InputError as error:
            raise Trouble(str(error), "see docs/cluster.md") from None
    else:
        if not folder.is_dir():
            raise Trouble(f"storage {place.storage}: {folder} is a file", advice)
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"mgdm")
        except OSError as error:
            raise Trouble(f"storage {place.storage}: {error.strerror}", advice) from None
    yield f"storage {place.storage} can be written"


def _nearest(location: str) -> Path | None:
    """What there is of the storage's path; None for a URL."""
    from mgdm_ray.storage.remote.objects import is_url

    if is_url(location):
        return None
    path = Path(location).expanduser().absolute()
    return next(there for there in (path, *path.parents) if there.exists())


def mlflow(place: Place) -> Iterator[str]:
    uri = place.config.tracking.uri if place.config else None
    if uri and not uri.startswith("sqlite:"):
        _server_answers(uri)
        yield f"MLflow: {uri} answers"
        return
    from mgdm_ray.results.mlflow import Tracker

    with tempfile.TemporaryDirectory(prefix="mgdm-doctor-") as folder:
        database = f"sqlite:///{folder}/mlflow.db"
        tracker = Tracker(database, f"{folder}/artifacts", "doctor", "doctor", "key")
    if not tracker.active:
        raise Trouble("MLflow cannot keep runs in a database file", "the warning above says why")
    yield "MLflow keeps runs in a database file"


def _server_answers(uri: str) -> None:
    """Trouble unless the server answers within seconds, whatever it says of the login."""
    parts = urlsplit(uri)
    advice = "start it, or mend tracking.uri"
    try:
        if parts.scheme.startswith("http"):
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_ANSWERS_IN_S).close()
        else:
            scheme = parts.scheme.partition("+")[0]
            address = (parts.hostname or "127.0.0.1", parts.port or PORTS[scheme])
            socket.create_connection(address, timeout=SERVER_ANSWERS_IN_S).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise Trouble(f"MLflow: {uri} answers {error.code}", advice) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Trouble(f"MLflow: {uri} does not answer ({reason})", advice) from None


CHECKS: tuple[Callable[[Place], Iterator[str]], ...] = (
    python_version,
    packages,
    computing,
    ray_starts,
    disk,
    memory,
    shared_memory,
    data_folder,
    datasets,
    storage,
    mlflow,
)
