"""cluster/mlflow.sh: a real server, closed to who has no login."""

from __future__ import annotations

import http.client
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.check import FOLDER

CLIENT = """
import mlflow
mlflow.set_tracking_uri(f"http://127.0.0.1:{PORT}")
with mlflow.start_run() as run:
    mlflow.log_metric("score", 0.5)
    mlflow.log_text("words", "notes.txt")
assert mlflow.get_run(run.info.run_id).data.metrics == {"score": 0.5}
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home folder and a port of its own; the server is stopped at the end."""
    new = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "MGDM_MLFLOW"))}
    new["HOME"] = str(tmp_path)
    new["PATH"] = f"{Path(sys.executable).parent}:{new['PATH']}"
    new["MGDM_MLFLOW_PORT"] = str(free_port())
    yield new
    subprocess.run([str(FOLDER / "mlflow.sh"), "stop"], env=new, check=True)


def start(environment: dict[str, str]) -> int:
    """Its port, once it answers."""
    port = int(environment["MGDM_MLFLOW_PORT"])
    subprocess.run([str(FOLDER / "mlflow.sh"), "start"], env=environment, check=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if status(port, "/health") == 200:
                return port
        except OSError:
            time.sleep(0.5)
    log = Path(environment["HOME"], "mgdm-mlflow", "server.log").read_text(encoding="utf-8")
    raise AssertionError(f"MLflow did not start:\n{log}")


def status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.mark.slow
def test_login_is_asked_for_and_known_to_clients_here(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Would catch a server open to every user of the head, and a study's driver locked out."""
    port = start(environment)
    assert status(port, SEARCH) == 401
    for path in (tmp_path / ".mlflow" / "credentials", *(tmp_path / "mgdm-mlflow").glob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, path
    code = CLIENT.replace("{PORT}", str(port))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    pid = tmp_path / "mgdm-mlflow" / "pid"
    first = pid.read_text()
    subprocess.run([str(FOLDER / "mlflow.sh"), "start"], env=environment, check=True)
    assert pid.read_text() == first, "a second start leaves the server alone"
    with socket.socket() as one:
        # The address this machine has elsewhere, if it has one: nothing listens there.
        address = socket.gethostbyname(socket.gethostname())
        if not address.startswith("127."):
            assert one.connect_ex((address, port)) != 0


@pytest.mark.slow
def test_login_can_be_switched_off(environment: dict[str, str]) -> None:
    """Would catch an option that is not read."""
    port = start({**environment, "MGDM_MLFLOW_AUTH": "off"})
    assert status(port, SEARCH) == 200
