"""The doctor's checks, each in a place that is well and in one that is not."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from mgdm_ray import doctor
from mgdm_ray.config import StudyConfig
from mgdm_ray.doctor import Line, Place, examine
from tests.conftest import ROOT, TINY
from tests.data.sources.files import tree


def place(storage: Path | str = "runs", **changes: Any) -> Place:
    return Place(StudyConfig.model_validate({**TINY, **changes}), str(storage))


def last(check: Callable[[Place], Iterator[str]], where: Place) -> Line:
    return list(examine(check, where))[-1]


def test_what_any_machine_of_the_tests_has() -> None:
    """Would catch a check that finds fault with a sound environment."""
    checks = (doctor.python_version, doctor.packages, doctor.disk, doctor.memory)
    for check in checks:
        line = last(check, place())
        assert line.word in ("ok", "note"), line


def test_a_python_that_is_too_old_is_refused() -> None:
    line = last(lambda where: doctor.python_version(where, "3.10.9"), place())
    assert line == Line("no", "python 3.10.9: >=3.11 is needed")


def test_a_package_that_is_absent_or_too_old_is_named() -> None:
    """Would catch a comparison of texts, in which 10 comes before 9."""
    fault = doctor.package_fault
    assert fault("pydantic", Requirement("pydantic>=2.9")) == ""
    assert fault("pydantic", Requirement("pydantic>=99")).endswith("is not >=99")
    assert fault("no-such-thing", Requirement("no-such-thing")) == "no-such-thing is not installed"


def test_a_check_that_breaks_is_a_line_and_not_the_end() -> None:
    """Would catch a broken library that hides what else is wrong."""

    def torch_works(_: Place) -> Iterator[str]:
        yield "first"
        raise ImportError("libcudart.so.13:\n cannot open")

    lines = list(examine(torch_works, place()))
    assert lines == [
        Line("ok", "first"),
        Line("no", "torch works cannot be examined: ImportError: libcudart.so.13: cannot open"),
    ]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("import time; time.sleep(60)", "Ray did not run a task within 2 s"),
        ("raise SystemExit('no port')", "Ray did not run a task (no port)"),
        ("pass", "Ray did not run a task (it said nothing)"),
    ],
)
def test_a_ray_that_hangs_or_dies_is_told(task: str, said: str) -> None:
    """Would catch waiting for ever, or taking a silent end for success."""
    line = last(lambda where: doctor.ray_starts(where, 2, task), place())
    assert line.word == "no"
    assert line.text.startswith(said)


def test_the_storage_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    """Would catch a file in place of the folder, and a doctor that leaves traces."""
    assert last(doctor.storage, place(tmp_path / "new" / "runs")).word == "ok"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for storage in (tmp_path / "file", tmp_path / "file" / "runs"):
        line = last(doctor.storage, place(storage))
        assert line.word == "no"
        assert "is a file" in line.text
    assert last(doctor.storage, place("s4://bucket/x")).word == "no"


def test_shared_memory_that_is_absent_is_a_note(tmp_path: Path) -> None:
    line = last(lambda where: doctor.shared_memory(where, tmp_path / "shm"), place())
    assert line.word == "note"
    assert last(lambda where: doctor.shared_memory(where, tmp_path), place()).word == "ok"


def test_the_data_folder_and_what_is_in_it(tmp_path: Path, monkeypatch: Any) -> None:
    """Would catch a folder that MGDM_DATA_DIR names in vain."""
    (tmp_path / "own.npz").write_bytes(b"no zip")
    found = last(doctor.data_folder, place(data_dir=str(tmp_path)))
    assert found == Line("ok", f"data folder {tmp_path}: own.npz")
    assert last(doctor.data_folder, place(data_dir=str(tmp_path / "own.npz"))).word == "no"
    monkeypatch.setenv("MGDM_DATA_DIR", str(tmp_path / "absent"))
    assert last(doctor.data_folder, place()).word == "no"


def test_datasets_are_looked_at(tmp_path: Path) -> None:
    """Would catch a study whose own file is absent or damaged, told only when it starts."""
    assert last(doctor.datasets, place()) == Line("ok", "dataset phantom-ultrasound")
    own = [{"name": "own", "path": "own.npz", "task": "binary"}]
    where = place(datasets=own, data_dir=str(tmp_path))
    assert last(doctor.datasets, where).word == "no"
    (tmp_path / "own.npz").write_bytes(b"no zip")
    assert last(doctor.datasets, where).word == "no"
    tree(tmp_path / "scans", {"a": 6, "b": 6})
    scans = place(datasets=[{"name": "scans", "path": "scans"}], data_dir=str(tmp_path))
    line = Line("ok", "dataset scans (12 own images, not opened)")
    assert last(doctor.datasets, scans) == line
    known = place(datasets=["breastmnist"], image_size=28, data_dir=str(tmp_path))
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
    assert last(doctor.mlflow, place(tracking={"uri": f"{server}/{status}"})).word == word


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_port_where_nobody_listens(scheme: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but not listening
        uri = f"{scheme}://127.0.0.1:{held.getsockname()[1]}"
        line = last(doctor.mlflow, place(tracking={"uri": uri}))
    assert line.word == "no"
    assert "does not answer" in line.text


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mgdm_ray.study", "doctor", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)


def test_wrong_arguments_end_with_2(tmp_path: Path) -> None:
    """Would catch a missing study that is examined as if none were named."""
    for arguments in (("--nonsense",), (str(tmp_path / "absent.yaml"),)):
        done = command(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    """Would catch a check that does not work with the real Ray, torch and MLflow."""
    study = ROOT / "studies" / "quickstart.yaml"
    done = command(str(study), "--storage", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("ok   torch", "ok   Ray starts", "ok   dataset phantom-fundus", "ok   MLflow"):
        assert words in done.stdout
    (tmp_path / "file").write_text("")
    spoilt = command(str(study), "--storage", str(tmp_path / "file"))
    assert spoilt.returncode == 1
    assert "no   storage" in spoilt.stdout
