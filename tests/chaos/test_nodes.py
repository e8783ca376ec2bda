"""Machines that share no folder: raylets with a cache each, and a bucket."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from ray._private.node import Node
from ray.cluster_utils import Cluster

from mgdm_ray.storage.records import read_records
from mgdm_ray.storage.remote.store import RemoteStore
from tests.chaos.storm import PATIENCE_S, PHASES, Storm, check_results, processes, quick_head
from tests.conftest import TINY

pytestmark = [pytest.mark.long, pytest.mark.cluster]


class Machines:
    """A head that computes nothing and nodes of one core, each with a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0
        self.cluster: Cluster = quick_head()
        self.caches: dict[Node, Path] = {}

    def add(self) -> None:
        self.made += 1
        cache = self.folder / f"node{self.made}"
        node = self.cluster.add_node(num_cpus=1, env_vars={"MGDM_CACHE_DIR": str(cache)})
        self.caches[node] = cache

    def kill_one(self, phase: str, driver: subprocess.Popen[bytes]) -> None:
        """Switch off the machine of a process of ``phase``, as soon as there is one."""
        raylets = {n.all_processes["raylet"][0].process.pid: n for n in self.cluster.worker_nodes}
        while driver.poll() is None:
            workers = [w for raylet in raylets for w in processes(raylet, PHASES[phase])]
            for worker in workers:
                try:
                    node = raylets[worker.ppid()]
                except (psutil.NoSuchProcess, KeyError):
                    continue
                self.cluster.remove_node(node, allow_graceful=False)
                shutil.rmtree(self.caches.pop(node), ignore_errors=True)  # its disk is gone, too
                return
            time.sleep(0.05)
        raise AssertionError(f"the study ended without a {phase}")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path / "caches")
    for _ in range(2):
        made.add()
    yield made
    made.cluster.shutdown()


def start(
    study: Path, storage: str, address: str, folder: Path, *options: str
) -> subprocess.Popen[bytes]:
    """A driver with a cache of its own, as on a laptop that only steers."""
    command = [sys.executable, "-m", "mgdm_ray.study", str(study), "--storage", storage]
    command += ["--address", address, *options]
    env = {**os.environ, "MGDM_CACHE_DIR": str(folder / "driver")}
    with (folder / f"{study.stem}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)


def local_copy(url: str, cache: Path) -> Path:
    """All of the storage, as the folder of a storage without URL would be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGDM_CACHE_DIR", str(cache))
        store = RemoteStore(url)
        for kind, key in store.done():
            store.here(kind, key)
        store.bring(store.root / "studies")
    return store.root


def test_machines_that_go_change_nothing(
    storm: Storm, bucket: str, machines: Machines, tmp_path: Path
) -> None:
    """Would catch whatever is only on the machine that is switched off: a checkpoint, a trial, a
    shard, a result. In training, search, sampling and evaluation one goes and another one comes;
    a driver is killed as well."""
    url, log = f"{bucket}/storm", tmp_path / f"{storm.study.stem}.log"
    driver = start(storm.study, url, machines.cluster.address, tmp_path)
    for phase in ("train worker", "tune actor", "sampling task", "evaluation task"):
        machines.kill_one(phase, driver)
        machines.add()
        if phase == "sampling task":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            shutil.rmtree(tmp_path / "driver")
            driver = start(storm.study, url, machines.cluster.address, tmp_path)
    codes = [driver.wait(timeout=PATIENCE_S * 2)]
    if codes == [1]:  # one job met two of the dead machines, which is more often than allowed
        codes.append(
            start(storm.study, url, machines.cluster.address, tmp_path).wait(timeout=PATIENCE_S)
        )
    assert codes[-1] == 0, log.read_text()
    check_results(local_copy(url, tmp_path / "all"), storm.calm)
    assert machines.made == 6
    left = set(RemoteStore(url).objects.sizes(""))
    assert not [name for name in left if name.startswith(("work/", "claims/", "drivers/"))]


def test_two_studies_share_a_cluster(bucket: str, machines: Machines, tmp_path: Path) -> None:
    """Would catch a study that waits until the other one is through: half of the first one's
    cells must not be over before the second one has any."""
    drivers, storages = [], []
    for name in ("first", "second"):
        study = {**TINY, "name": name, "seeds": 3, "search": None, "seed": len(name)}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(study))
        storages.append(f"{bucket}/{name}")
        drivers.append(
            start(tmp_path / f"{name}.yaml", storages[-1], machines.cluster.address, tmp_path)
        )
    ended: dict[int, list[int]] = {}
    while len(ended) < 2:
        for index, driver in enumerate(drivers):
            if driver.poll() is not None and index not in ended:
                ended[index] = [
                    sum(1 for kind, _ in RemoteStore(url).done() if kind == "fit_downstream")
                    for url in storages
                ]
        time.sleep(0.2)
    logs = {p.name: p.read_text() for p in tmp_path.glob("*.log")}
    assert [driver.returncode for driver in drivers] == [0, 0], logs
    first = min(ended, key=lambda index: sum(ended[index]))
    cells = len(TINY["networks"]) * len(TINY["arms"]) * 3
    assert ended[first][first] == cells
    assert ended[first][1 - first] > cells // 4, f"when one was through: {ended[first]}"
    for name, url in zip(("first", "second"), storages, strict=True):
        copy = local_copy(url, tmp_path / "copies")
        records = read_records(copy / "studies" / name / "records.jsonl")
        assert sum(r.is_cell and r.status == "done" for r in records) == cells
