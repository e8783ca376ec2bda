"""A local study's Ray: what listens where, and who may speak to it (CVE-2023-48022)."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from mgdm_ray.runtime import engine

JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
    print("joined", ray.get(ray.remote(lambda: 6 * 7).remote()))
except BaseException as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    """The address of a Ray started as a study starts it."""
    with engine.cluster(None):
        yield str(ray.get_runtime_context().gcs_address)


def ports() -> set[tuple[str, int]]:
    """(address, port) where Ray's processes of this cluster listen, and this process and its
    children. Ray's processes carry the folder of their run in their arguments."""
    session = ray.worker._global_node.get_session_dir_path()
    named = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(session in part for part in process.info["cmdline"] or ())
    ]
    found = [psutil.Process(), *psutil.Process().children(recursive=True), *named]
    return {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in found
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_all_of_it_listens_on_this_machine_only(running: str) -> None:
    """Catches a port that a stranger in the network can reach: of GCS, raylet, workers, agents."""
    host, port = running.split(":")
    there = ports()
    assert (host, int(port)) in there, "the processes were found"
    assert len(there) > 3
    assert not [ip for ip, _ in there if not ipaddress.ip_address(ip).is_loopback]


def test_nobody_takes_jobs(running: str, tmp_path: Path) -> None:
    """Catches Ray's interface for jobs, which runs what it is told, open on any port: a job is
    handed in at each of them, as the attacks of 2024 did."""
    assert running
    canary = tmp_path / "canary"
    job = json.dumps({"entrypoint": f"touch {canary}"}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    heard = 0
    for host, port in sorted(ports()):
        asked = urllib.request.Request(
            f"http://{host}:{port}/api/jobs/", job, {"Content-Type": "application/json"}
        )
        try:
            answer = opener.open(asked, timeout=3).read()
        except urllib.error.HTTPError as error:
            answer = error.read()
        except (OSError, http.client.HTTPException):
            continue  # it speaks no HTTP
        heard += 1
        assert b"submission_id" not in answer, f"port {port} took a job: {answer[:200]!r}"
    assert heard, "nothing was asked"
    time.sleep(2)
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "0" * 64], ids=["no token", "another token"])
def test_without_the_token_nobody_joins(running: str, token: str | None) -> None:
    """Catches a cluster that runs the code of whoever finds its port."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"}
    if token is None:
        environment["RAY_AUTH_MODE"] = "disabled"
    else:
        environment["RAY_AUTH_TOKEN"] = token
    asked = subprocess.run(
        [sys.executable, "-c", JOIN, running],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "joined" not in asked.stdout
    assert "uthenticat" in asked.stdout + asked.stderr, "it was the token that was missed"


def test_with_the_token_one_joins(running: str) -> None:
    """Catches a test above that passes for another reason than the token."""
    asked = subprocess.run(
        [sys.executable, "-c", JOIN, running],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "joined 42" in asked.stdout, asked.stdout + asked.stderr
