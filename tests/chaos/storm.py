"""Kills a study at random moments and compares what it comes to with an undisturbed one.

    python -m tests.chaos.storm --seed 0 --kills 100 --folder /somewhere

A study of ``conftest.TINY`` in deterministic mode runs once in peace. After that it runs in new
storages while processes are killed: the driver (SIGKILL, SIGTERM, Ctrl-C twice), a Train worker, a
sampling task, the search job, a Tune actor, an evaluation task, the MLflow server, and with
``--nodes`` the raylet of a node, on which another node joins. The same command
is run until it ends with 0. Then records.jsonl must be the same to the byte (seconds aside), every
artefact whole, MLflow and Optuna without doubles and without runs that still run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import yaml

from mgdm_ray.storage.records import Record, read_records
from mgdm_ray.storage.store import Store
from tests.conftest import TINY

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

STUDY = {
    **TINY,
    "deterministic": True,
    "networks": ["squeezenet1_1"],
    "arms": ["real", "generate", "disturb"],
    "judge": {"network": "alexnet", "steps": 20, "batch_size": 8},
    "limits": {"copies": 1.0},
    "denoiser": {**TINY["denoiser"], "steps": 30, "checkpoint_every": 5},
    "search": {**TINY["search"], "trials": 4, "steps": 10},
    "downstream": {"steps": 20, "batch_size": 8},
}
PHASES = {
    "training job": r"^ray::fit_(denoiser|guide) ",
    "train worker": r"^ray::RayTrainWorker",
    "sampling task": r"^ray::(generate|encode|decode) ",
    "search job": r"^ray::search ",
    "tune actor": r"^ray::(ResourceTrainable|_Trial)",
    "judge": r"^ray::(fit_judge|assess) ",
    "evaluation task": r"^ray::fit_downstream ",
}
"""What a process is called while it works on that."""
DRIVER_SIGNALS = ("SIGKILL", "SIGTERM", "Ctrl-C twice")
PATIENCE_S = 300.0


def plain_records(storage: Path, study: str = "tiny") -> bytes:
    """records.jsonl without times."""
    lines = (storage / "studies" / study / "records.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "seconds": 0} for line in lines]
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()


def processes(driver: int, pattern: str) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if re.match(pattern, " ".join(process.cmdline())):
                    found.append(process)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """A server that can be killed and started again on the same database."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "server-artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            command,
            env=env,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.2)
        raise TimeoutError("the MLflow server did not start")

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def quick_head() -> Cluster:
    """A head that computes nothing, and misses its nodes within seconds."""
    from ray.cluster_utils import Cluster  # after conftest has set what Ray reads when imported

    quick = {
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,
        "health_check_timeout_ms": 500,
    }
    return Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick})


def small_cluster() -> Cluster:
    """A quick head and two nodes of one core."""
    made = quick_head()
    for _ in range(2):
        made.add_node(num_cpus=1)
    return made


@dataclass
class Storm:
    """Kills spread over as many storages as they take."""

    folder: Path
    random: random.Random
    kills: int
    nodes: bool = False
    """On a cluster of two nodes, of which one is taken away now and then."""
    done: Counter[str] = field(default_factory=Counter)

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def blow(self) -> None:
        """Kill, storage after storage, until all kills are done."""
        number = 0
        while self.done.total() < self.kills:
            number += 1
            self.storage(self.folder / f"storm{number}")
        self.say(f"{self.done.total()} kills in {number} storages, all equal to the undisturbed:")
        for what, count in sorted(self.done.items()):
            self.say(f"  {count:3d} {what}")

    def rest(self, *options: str) -> None:
        """The undisturbed study."""
        self.folder.mkdir(parents=True, exist_ok=True)
        calm = self.folder / "calm"
        self.study = self.folder / "tiny.yaml"
        self.study.write_text(yaml.safe_dump(STUDY, sort_keys=False))
        started = time.monotonic()
        if self.start(calm, [*options]).wait(timeout=PATIENCE_S * 2) != 0:
            raise AssertionError(f"the undisturbed study failed, see {calm}.log")
        self.say(f"undisturbed: {time.monotonic() - started:.0f} s")
        self.calm = calm
        self.check(calm, None)

    def start(self, storage: Path, options: list[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mgdm_ray.study", str(self.study)]
        command += ["--storage", str(storage), *options]
        with Path(f"{storage}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def storage(self, storage: Path) -> None:
        """One study, disturbed until it is through."""
        server = None
        if self.random.random() < 0.34:
            storage.mkdir(parents=True)
            server = MlflowServer(storage)
        options = ["--set", f"tracking.uri={server.uri}"] if server else []
        cluster = small_cluster() if self.nodes else None
        if cluster is not None:
            options += ["--address", cluster.address]
        try:
            codes = []
            while True:
                driver = self.start(storage, options)
                while driver.poll() is None and self.done.total() < self.kills:
                    self.disturb(driver, server, cluster, storage.name)
                codes.append(driver.wait(timeout=PATIENCE_S * 2))
                if codes[-1] == 0:
                    break
                # 1: a job lost its workers more often than allowed; others: the driver was killed.
                allowed = (1, 130, signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
                assert codes[-1] in allowed, f"exit code {codes[-1]}, see {storage}.log"
                assert len(codes) < 60, f"no end, see {storage}.log"
            if server is not None:  # what MLflow missed is written by --report-only
                server.kill()
                server.start()
                code = self.start(storage, [*options, "--report-only"]).wait(timeout=PATIENCE_S)
                assert code == 0, f"--report-only failed, see {storage}.log"
            self.check(storage, server)
            self.say(f"{storage.name}: equal after exit codes {codes}")
        finally:
            if server is not None:
                server.kill()
            if cluster is not None:
                cluster.shutdown()

    def disturb(
        self,
        driver: subprocess.Popen[bytes],
        server: MlflowServer | None,
        cluster: Cluster | None,
        where: str,
    ) -> None:
        """Wait for a random phase, then a little, and kill something of it."""
        # A cluster's processes are children of this one.
        root = driver.pid if cluster is None else os.getpid()
        # On this machine alone a training is its job's process.
        named = [name for name in PHASES if cluster or name != "train worker"]
        phase = self.random.choice([*named, "any", "any"])
        targets = [f"driver {name}" for name in DRIVER_SIGNALS]
        targets += [phase] * 3 if phase != "any" else []
        targets += ["mlflow server"] * 2 if server else []
        targets += ["raylet of a node"] * 4 if cluster else []
        target = self.random.choice(targets)
        self.sleep(driver, self.random.uniform(0, 20))
        if phase != "any":
            self.wait_for(driver, root, PHASES[phase])
            self.sleep(driver, self.random.expovariate(1 / 0.7))
        if driver.poll() is not None:
            return  # the study was through before
        if target == "mlflow server":
            assert server is not None
            server.kill()
        elif target == "raylet of a node":
            assert cluster is not None
            node = self.random.choice(sorted(cluster.worker_nodes, key=lambda n: n.unique_id))
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1)
        elif target.startswith("driver"):
            self.kill_driver(driver, target.removeprefix("driver "))
        else:
            victims = processes(root, PHASES[target])
            if not victims:
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                self.random.choice(sorted(victims, key=lambda p: p.pid)).kill()
        self.done[target] += 1
        self.say(f"{where}: kill {self.done.total()}: {target} during {phase}")

    def kill_driver(self, driver: subprocess.Popen[bytes], how: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            if how == "Ctrl-C twice":
                os.kill(driver.pid, signal.SIGINT)
                time.sleep(self.random.uniform(0, 0.5))
                os.kill(driver.pid, signal.SIGINT)
            else:
                os.kill(driver.pid, signal.Signals[how])

    def wait_for(self, driver: subprocess.Popen[bytes], root: int, pattern: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while driver.poll() is None and time.monotonic() < deadline:
            if processes(root, pattern):
                return
            time.sleep(0.05)

    def sleep(self, driver: subprocess.Popen[bytes], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)

    def check(self, storage: Path, server: MlflowServer | None) -> None:
        """Records, artefacts, MLflow and Optuna of a study that is through."""
        check_results(storage, self.calm)
        records = read_records(storage / "studies" / "tiny" / "records.jsonl")
        check_mlflow(server.uri if server else f"sqlite:///{storage}/mlflow.db", records)
        check_optuna(storage / "studies" / "tiny")


def check_results(storage: Path, calm: Path, study: str = "tiny") -> None:
    """The same records and the same files as in the undisturbed storage."""
    assert plain_records(storage, study) == plain_records(calm, study), f"{storage}: records differ"
    ours, theirs = Store(storage), Store(calm)
    assert list(ours.done()) == list(theirs.done())
    for kind, key in ours.done():
        found, expected = (hashes(store, kind, key) for store in (ours, theirs))
        assert found == expected, f"{storage}: {kind} {key} differs"


def hashes(store: Store, kind: str, key: str) -> dict[str, str]:
    """Of an artefact's files, as they are, but for those that hold seconds."""
    named = store.manifest(kind, key)["files"]
    folder = store.folder(kind, key)
    on_disk = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in named
        if kind != "search" and name != "speed.json"
    }
    assert all(named[name]["sha256"] == value for name, value in on_disk.items()), folder
    return on_disk


def check_mlflow(uri: str, records: list[Record]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mgdm-ray")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = Counter(run.data.tags["mgdm.key"] for run in runs)
    assert max(keys.values()) == 1, f"runs stand twice: {keys.most_common(3)}"
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    arms = {run.info.run_name for run in children if run.data.tags["kind"] == "arm"}
    assert arms == set(STUDY["arms"])
    logged = {run.data.tags["mgdm.key"] for run in children if run.data.tags["kind"] != "arm"}
    assert logged == {r.key for r in records}
    assert {run.info.status for run in runs} == {"FINISHED"}


def check_optuna(folder: Path) -> None:
    import optuna

    for storage in _optuna_storages(folder):
        for name in optuna.get_all_study_names(storage):
            trials = optuna.load_study(study_name=name, storage=storage).trials
            assert len(trials) == STUDY["search"]["trials"], f"{len(trials)} trials in {name}"
            assert {t.state for t in trials} == {optuna.trial.TrialState.COMPLETE}
            assert len({str(t.params) for t in trials}) == len(trials)


def _optuna_storages(folder: Path) -> Iterator[str]:
    files = sorted((folder / "optuna").glob("*.db"))
    assert files, f"no Optuna storage in {folder}"
    for path in files:
        yield f"sqlite:///{path}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, required=True, help="for storages and logs")
    parser.add_argument("--nodes", action="store_true", help="on a cluster; nodes go as well")
    options = parser.parse_args()
    storm = Storm(options.folder, random.Random(options.seed), options.kills, options.nodes)
    storm.rest()
    storm.blow()


if __name__ == "__main__":
    main()
