"""`ray up`, a study by `ray job submit`, `ray down`: for real, over ssh, on two machines of a lab.

Opt-in, because it needs root, sshd and rsync, and takes minutes: MGDM_TEST_RAY_UP=1. The commands
are those of docs/cluster.md. What differs from cluster/onprem.yaml as it is shipped: addresses,
user and key, and packages that are not downloaded again but are those that run the tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.rules import common
from mgdm_ray.storage.records import read_records
from tests.cluster.lab import Lab, missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.skipif(
        "MGDM_TEST_RAY_UP" not in os.environ, reason="opt-in: set MGDM_TEST_RAY_UP=1"
    ),
]
LAUNCHER = "cluster/onprem.yaml"


class Site:
    """A checkout of the project, and the machines of its cluster/onprem.yaml."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.project = folder / "project"
        self.storage = folder / "storage"
        self._check_out()
        for name in lab.addresses:
            self._install(lab.home(name))
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.project / "cluster/secrets/ray_token"),
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
            "RAY_UP_enable_autoscaler_v2": "0",
        }

    def _check_out(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=common.ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in listed.stdout.split("\0"):
            source = common.ROOT / name
            if source.is_file() and not source.is_symlink():
                target = self.project / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        subprocess.run([str(self.project / "cluster/secrets.sh")], check=True)
        path = self.project / LAUNCHER
        head, *workers = self.lab.addresses.values()
        text = path.read_text(encoding="utf-8")
        many = len(workers)
        for old, new in (
            ("head_ip: EDIT", f"head_ip: {head}"),
            ("worker_ips: [EDIT, EDIT]", f"worker_ips: [{', '.join(workers)}]"),
            ("\nmax_workers: 2\nmin_workers: 2", f"\nmax_workers: {many}\nmin_workers: {many}"),
            ("ssh_user: EDIT", "ssh_user: root"),
            ("ssh_private_key: ~/.ssh/mgdm", f"ssh_private_key: {self.lab.key}"),
        ):
            assert old in text
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")

    def _install(self, home: Path) -> None:
        """As if node.sh had been there: it finds its packages, and installs none."""
        (home / "mgdm-env").symlink_to(sys.prefix)
        text = b"".join(
            (self.project / name).read_bytes() for name in ("constraints.txt", "pyproject.toml")
        )
        line = hashlib.sha256(text + b"s3\n").hexdigest() + "  -\n"
        (home / ".mgdm-node").write_text(line)

    def run(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """A command in the checkout, beside the machines."""
        done = self.lab.run(*words, cwd=self.project, env={**self.environment, **changes})
        print("$", *words, f"\n{done.stdout}", flush=True)
        return done

    def tunnel(self) -> Any:
        options = ("-N", "-L", "8265:127.0.0.1:8265", "-L", "5000:127.0.0.1:5000")
        return subprocess.Popen(self.lab.command(*self.lab.ssh_words("head", *options)))

    def submit(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return self.run("ray", "job", "submit", "--working-dir", ".", *words, **changes)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if lacks := missing():
        pytest.fail(f"MGDM_TEST_RAY_UP=1 needs {lacks}")
    with Lab(tmp_path / "lab", ("head", "worker")) as lab:
        yield Site(lab, tmp_path)


def wait(what: str, test: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s: not {what}"
        time.sleep(1)


def listening(site: Site, name: str) -> dict[int, set[str]]:
    """Port to the addresses it listens on."""
    found: dict[int, set[str]] = {}
    for line in site.lab.ssh(name, "ss -ltnH").stdout.splitlines():
        if line.startswith("LISTEN"):
            address, _, port = line.split()[3].rpartition(":")
            found.setdefault(int(port), set()).add(address)
    return found


def raylets(site: Site, name: str) -> int:
    return int(site.lab.ssh(name, "pgrep -c -x raylet").stdout.split()[-1])


def test_up_study_down(site: Site, tiny: dict[str, Any]) -> None:
    """Would catch a launch file that starts nothing, a token that does not arrive or is not asked
    for, a job that dies on a node started over ssh, and Ray left running after `ray down`."""
    ready = site.run("python", "-m", "cluster.check", "--ready", LAUNCHER)
    assert ready.returncode == 0
    up = site.run("ray", "up", "-y", LAUNCHER)
    assert up.returncode == 0
    assert "node: packages are up to date" in up.stdout
    token = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.ray/auth_token"
    status = f"{token} ~/mgdm-env/bin/ray status"

    def both() -> bool:
        return "2 local.cluster.node" in site.lab.ssh("head", status).stdout

    wait("two nodes", both, 180)
    for name in site.lab.addresses:
        there = site.lab.home(name) / ".ray" / "auth_token"
        assert stat.S_IMODE(there.stat().st_mode) == 0o600
        assert not (site.lab.home(name) / "mgdm-ray/cluster/secrets").exists()
    tunnel = site.tunnel()
    try:
        check_access(site)
        run_study(site, tiny)
    finally:
        tunnel.kill()
    down = site.run("ray", "down", "-y", LAUNCHER)
    assert down.returncode == 0
    wait("the head's Ray stopped", lambda: raylets(site, "head") == 0, 30)
    # `ray down` does not go to the workers of a local provider: they stop when the head is gone.
    wait("the worker's Ray stopped", lambda: raylets(site, "worker") == 0, 180)


def check_access(site: Site) -> None:
    ports = listening(site, "head")
    wait("MLflow", lambda: 5000 in listening(site, "head"), 120)
    ports = listening(site, "head")
    assert ports[8265] == {"127.0.0.1"}
    assert ports[5000] == {"127.0.0.1"}
    refused = site.submit("--", "true", RAY_AUTH_TOKEN_PATH="/dev/null", RAY_AUTH_TOKEN="wrong")
    assert refused.returncode != 0
    assert "token" in refused.stdout.lower()


def run_study(site: Site, tiny: dict[str, Any]) -> None:
    path = site.project / "studies" / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny), encoding="utf-8")
    sent = site.submit(
        "--submission-id", "grid", "--no-wait", "--",
        "python", "-m", "mgdm_ray.study", "studies/tiny.yaml", "--address", "auto",
        "--storage", str(site.storage), "--set", "tracking.uri=http://127.0.0.1:5000",
    )  # fmt: skip
    assert sent.returncode == 0
    followed = site.run("ray", "job", "logs", "--follow", "grid")
    assert followed.returncode == 0
    assert "report:" in followed.stdout
    assert "succeeded" in site.run("ray", "job", "status", "grid").stdout
    folder = site.storage / "studies" / "tiny"
    records = read_records(folder / "records.jsonl")
    assert records
    assert {record.status for record in records} == {"done"}
    assert (folder / "report.html").stat().st_size > 10_000
    login = (site.lab.home("head") / "mgdm-mlflow" / "password").read_text()
    runs = site.run(
        "curl", "-s", "-u", f"mgdm:{login}", "-H", "content-type: application/json",
        "-d", '{"experiment_ids": ["1"], "max_results": 100}',
        "http://127.0.0.1:5000/api/2.0/mlflow/runs/search",
    )  # fmt: skip
    assert len(json.loads(runs.stdout)["runs"]) > 5
