"""A whole study on GPU nodes that the autoscaler starts, with one that is lost; GPUs are fake."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mgdm_ray.config.file import shipped_studies
from tests.chaos.autoscaler import AutoscaledCluster
from tests.chaos.storm import PHASES, STUDY, check_results, processes
from tests.chaos.test_nodes import local_copy, start

pytestmark = [pytest.mark.long, pytest.mark.cluster]

LONGEST_S = 3600.0
SPREAD = ("--set", "resources.sampling_workers=2")
RESOURCES = ("cpus_per_worker=0.5", "gpus_per_worker=1", "cpus_per_task=0.5", "gpus_per_task=0.5")
"""Those of grid.yaml, for nodes of 1 CPU instead of 8, and two tasks on a GPU instead of four."""


STUDIES = {
    "tiny": STUDY,
    "quickstart": yaml.safe_load((shipped_studies() / "quickstart.yaml").read_text()),
}


@pytest.fixture(params=list(STUDIES))
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The smallest that has all kinds of jobs, in minutes; the quickstart, in half an hour."""
    path = tmp_path / f"{request.param}.yaml"
    path.write_text(yaml.safe_dump({**STUDIES[request.param], "deterministic": True}))
    return path


@pytest.fixture
def undisturbed(study: Path, tmp_path: Path) -> Path:
    """With as many images in each part of a sampling job: their number changes the round-off."""
    command = [sys.executable, "-m", "mgdm_ray.study", str(study), *SPREAD]
    with (tmp_path / "undisturbed.log").open("wb") as log:
        subprocess.run(
            [*command, "--storage", str(tmp_path / "undisturbed")],
            stdout=log, stderr=log, check=True, timeout=LONGEST_S,
        )  # fmt: skip
    return tmp_path / "undisturbed"


@pytest.fixture
def two_nodes(bucket: str, tmp_path: Path) -> Iterator[AutoscaledCluster]:
    """None at the start, two at most; both see the bucket."""
    assert bucket
    made = AutoscaledCluster({"CPU": 1, "GPU": 1}, 2, MGDM_CACHE_DIR=str(tmp_path / "nodes"))
    yield made
    made.shutdown()


def lose_a_node(cluster: AutoscaledCluster, phase: str, driver: subprocess.Popen[bytes]) -> None:
    """Kill the raylet of a process of ``phase``, as soon as there is one."""
    while driver.poll() is None:
        for raylet in cluster.raylets():
            if processes(raylet.pid, PHASES[phase]):
                raylet.kill()
                return
        time.sleep(0.1)
    raise AssertionError(f"the study ended without a {phase}")


def test_a_study_ends_on_nodes_that_come_and_go(
    study: Path, undisturbed: Path, bucket: str, two_nodes: AutoscaledCluster, tmp_path: Path
) -> None:
    """Would catch a study that asks for nothing, or for too little, of the autoscaler, that cannot
    compute where only Ray's books have GPUs, and one that the loss of a training's node changes."""
    url, log = f"{bucket}/autoscaled", tmp_path / f"{study.stem}.log"
    options = [word for value in RESOURCES for word in ("--set", f"resources.{value}")]
    driver = start(study, url, two_nodes.address, tmp_path, *options, *SPREAD)
    try:
        lose_a_node(two_nodes, "train worker", driver)
        code = driver.wait(timeout=LONGEST_S)
    finally:
        if driver.poll() is None:
            driver.kill()
    said = log.read_text()
    assert code == 0, said
    assert "waiting for the autoscaler: fit_" in said
    assert "the cluster has 1 CPU and 1 GPU now" in said or "has 2 CPU and 2 GPU now" in said
    check_results(local_copy(url, tmp_path / "all"), undisturbed, study.stem)
    assert len(two_nodes.raylets()) == 2, "the lost node was replaced"
