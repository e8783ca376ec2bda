"""Each check of the doctor, in a sound setup and in a broken one."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from mgdm_ray.cli import doctor_checks as doctor
from mgdm_ray.cli.doctor_checks import Line, Setup, examine
from mgdm_ray.config import StudyConfig
from tests.conftest import TINY
from tests.data.sources.files import tree


def setup(storage: Path | str = "runs", **changes: Any) -> Setup:
    return Setup(StudyConfig.model_validate({**TINY, **changes}), str(storage))


def last(check: Callable[[Setup], Iterator[str]], where: Setup) -> Line:
    return list(examine(check, where))[-1]


@pytest.mark.parametrize("name", ["python_version", "packages", "computing", "disk", "memory"])
def test_a_sound_environment_passes(name: str) -> None:
    """Would catch a check that finds fault with the machine that runs the tests."""
    assert last(getattr(doctor, name), setup()).word in ("ok", "note")


def test_an_old_python_is_refused() -> None:
    line = last(lambda given: doctor.python_version(given, "3.10.9"), setup())
    assert line.word == "no"
    assert {"3.10.9", ">=3.11"} <= set(re.split(r"[ :]+", line.text))


@pytest.mark.parametrize(
    ("needed", "named"),
    [
        ("pydantic>=2.9", []),
        ("pydantic>=99", ["pydantic", ">=99"]),
        ("no-such-thing", ["no-such-thing"]),
    ],
)
def test_a_missing_or_old_package_is_named(needed: str, named: list[str]) -> None:
    """Would catch a comparison of texts, in which 10 comes before 9."""
    fault = doctor.package_fault(Requirement(needed))
    assert bool(fault) == bool(named)
    assert all(word in fault.split() for word in named)


def test_a_broken_check_becomes_a_line() -> None:
    """Would catch a broken library that hides what else is wrong."""

    def torch_works(_: Setup) -> Iterator[str]:
        yield "first"
        raise ImportError("libcudart.so.13:\n cannot open")

    first, broken = examine(torch_works, setup())
    assert first == Line("ok", "first")
    assert broken.word == "no"
    assert "torch works" in broken.text
    assert broken.text.endswith("ImportError: libcudart.so.13: cannot open")


@pytest.mark.parametrize(
    ("task", "named"),
    [
        ("import time; time.sleep(60)", "2 s"),
        ("raise SystemExit('no port')", "(no port)"),
        ("pass", "Ray"),
    ],
)
def test_a_ray_that_hangs_or_dies_is_reported(task: str, named: str) -> None:
    """Would catch waiting for ever, or taking a silent end for success."""
    line = last(lambda given: doctor.ray_starts(given, 2, task), setup())
    assert line.word == "no"
    assert named in line.text


def test_the_storage_is_tried_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a file in place of the folder, and a doctor that leaves traces."""
    monkeypatch.chdir(tmp_path)
    line = last(doctor.storage, setup("new/runs"))
    assert line.word == "ok"
    assert f"{tmp_path}/new/runs" in line.text
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for storage in (tmp_path / "file", tmp_path / "file" / "runs"):
        line = last(doctor.storage, setup(storage))
        assert line.word == "no"
        assert str(tmp_path / "file") in line.text
    assert last(doctor.storage, setup("s4://bucket/x")).word == "no"


def test_shared_memory_that_is_absent_is_a_note(tmp_path: Path) -> None:
    line = last(lambda given: doctor.shared_memory(given, tmp_path / "shm"), setup())
    assert line.word == "note"
    assert last(lambda given: doctor.shared_memory(given, tmp_path), setup()).word == "ok"


def test_the_data_folder_and_what_is_in_it(tmp_path: Path, monkeypatch: Any) -> None:
    """Would catch a folder that MGDM_DATA_DIR names in vain."""
    (tmp_path / "own.npz").write_bytes(b"no zip")
    found = last(doctor.data_folder, setup(data_dir=str(tmp_path)))
    assert found == Line("ok", f"data folder {tmp_path}: own.npz")
    assert last(doctor.data_folder, setup(data_dir=str(tmp_path / "own.npz"))).word == "no"
    monkeypatch.setenv("MGDM_DATA_DIR", str(tmp_path / "absent"))
    assert last(doctor.data_folder, setup()).word == "no"


def test_datasets_are_looked_at(tmp_path: Path) -> None:
    """Would catch a study whose own file is absent or damaged, told only when it starts."""
    assert last(doctor.datasets, setup()) == Line("ok", "dataset phantom-ultrasound")
    own = [{"name": "own", "path": "own.npz", "task": "binary"}]
    where = setup(datasets=own, data_dir=str(tmp_path))
    assert last(doctor.datasets, where).word == "no"
    (tmp_path / "own.npz").write_bytes(b"no zip")
    assert last(doctor.datasets, where).word == "no"
    tree(tmp_path / "scans", {"a": 6, "b": 6})
    scans = setup(datasets=[{"name": "scans", "path": "scans"}], data_dir=str(tmp_path))
    line = Line("ok", "dataset scans (12 own images, not opened)")
    assert last(doctor.datasets, scans) == line
    known = setup(datasets=["breastmnist"], image_size=28, data_dir=str(tmp_path))
    assert last(doctor.datasets, known).word == "note"


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers with the status that the address names."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Server) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.mark.parametrize(("status", "word"), [(200, "ok"), (401, "ok"), (503, "no")])
def test_a_server_that_answers(server: str, status: int, word: str) -> None:
    """Would catch taking a login page for a dead server."""
    assert last(doctor.mlflow, setup(tracking={"uri": f"{server}/{status}"})).word == word


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_port_where_nobody_listens(scheme: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but not listening
        uri = f"{scheme}://127.0.0.1:{held.getsockname()[1]}"
        line = last(doctor.mlflow, setup(tracking={"uri": uri}))
    assert line.word == "no"
    assert uri in line.text
