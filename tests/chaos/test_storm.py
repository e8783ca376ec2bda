"""Ten kills at random, and a machine that goes: the same study in the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.chaos.storm import PHASES, Storm, check_results, processes, small_cluster


@pytest.mark.long
def test_ten_kills_change_nothing(storm: Storm) -> None:
    """Would catch whatever is lost, doubled or different after a death of any of the study's
    processes: a byte of the records, a file of an artefact, a run in MLflow, a trial in Optuna."""
    storm.blow()
    assert storm.done.total() == 10


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = small_cluster()
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_node_that_goes_changes_nothing(storm: Storm, cluster: Cluster, tmp_path: Path) -> None:
    """Would catch a study that hangs, fails or comes to something else when the machine of one of
    its workers is switched off, and the others share a folder (test_nodes.py: a bucket)."""
    phase = "evaluation task"
    storage = tmp_path / "runs"
    driver = storm.start(storage, ["--address", cluster.address])
    raylets = {n.all_processes["raylet"][0].process.pid: n for n in cluster.worker_nodes}
    victim = None
    while victim is None and driver.poll() is None:
        workers = [w for raylet in raylets for w in processes(raylet, PHASES[phase])]
        victim = next((p for w in workers if (p := w.ppid()) in raylets), None)
        time.sleep(0.1)
    assert victim is not None, Path(f"{storage}.log").read_text()
    cluster.remove_node(raylets[victim], allow_graceful=False)
    assert driver.wait(timeout=600) == 0, Path(f"{storage}.log").read_text()
    check_results(storage, storm.calm)
