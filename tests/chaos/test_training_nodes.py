"""Training while machines come and go: fewer workers, more workers, and one last checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import cloudpickle
from ray._private.node import Node
from ray.cluster_utils import Cluster

from mgdm_ray.config import ResourcesConfig
from mgdm_ray.diffusion import STATE_FILE
from mgdm_ray.pipeline.tasks import fit
from mgdm_ray.pipeline.tasks.base import TrainingTask, silent
from mgdm_ray.runtime import training
from tests.chaos.storm import quick_head
from tests.runtime.test_training import task, weights

pytestmark = [pytest.mark.long, pytest.mark.cluster]
cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS = 120


class Slow:
    """A Progress that takes its time, and writes down each step and the first worker's node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, done: int, *_: object) -> None:
        workers = ray.train.get_context().get_world_size()
        node = ray.get_runtime_context().get_node_id()
        with (self.folder / "steps").open("a") as file:
            file.write(f"{done} {workers} {node}\n")
        time.sleep(0.15)


def steps(folder: Path) -> list[tuple[int, int, str]]:
    path = folder / "steps"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(step), int(workers), node) for step, workers, node in lines]


def wait_until(happened: Callable[[], bool], patience: float = 120) -> None:
    deadline = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes of one core; Ray Train listens to what Ray says of machines that will go."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    made = quick_head()
    made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def in_background(the_task: TrainingTask, folder: Path, resources: ResourcesConfig) -> list[Path]:
    """Training in a thread, for a cluster is changed from the main one; the result once there."""
    result: list[Path] = []

    def run() -> None:
        result.append(training.launch(the_task, Slow(folder), resources))

    threading.Thread(target=run, daemon=True).start()
    return result


def calm_task(folder: Path) -> TrainingTask:
    return task(folder / "calm", steps=STEPS)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in json.loads((folder / STATE_FILE).read_text())["history"]]


def node_of(cluster: Cluster, node_id: str) -> Node:
    return next(node for node in cluster.nodes if node.node_id == node_id)


def test_training_goes_on_with_the_machines_there_are(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch elastic training that waits for a lost machine, starts over, does not use a new
    one, or comes to other weights."""
    monkeypatch.setattr(training, "RESIZE_EVERY_S", 5.0)
    monkeypatch.setattr(training, "START_WITHIN_S", 10)
    the_task = task(tmp_path / "runs", steps=STEPS, checkpoint_every=10)
    resources = ResourcesConfig(train_workers=(1, 2), max_retries=3)
    result = in_background(the_task, tmp_path, resources)
    wait_until(lambda: any(step > 20 and workers == 2 for step, workers, _ in steps(tmp_path)))
    first = steps(tmp_path)[-1][2]
    gone = next(node for node in cluster.nodes if node.node_id != first)
    cluster.remove_node(gone, allow_graceful=False)
    wait_until(lambda: steps(tmp_path)[-1][1] == 1)
    again = next(step for step, workers, _ in steps(tmp_path) if workers == 1)
    assert again > 1, "from a checkpoint"
    cluster.add_node(num_cpus=1)
    wait_until(lambda: steps(tmp_path)[-1][1] == 2 or bool(result))
    wait_until(lambda: bool(result))
    assert steps(tmp_path)[-1][1] == 2, "the new machine took part"
    # Losses: Adam blows up the round-off in weights that have no gradient, as biases of keys.
    ours, calm = losses(result[0]), losses(fit.train_here(calm_task(tmp_path), silent))
    assert ours == pytest.approx(calm, rel=0.02)


def test_a_machine_that_will_go_leaves_a_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    """Would catch a warning of two minutes that is not used: training started over, or from the
    last regular checkpoint."""
    the_task = task(tmp_path / "runs", steps=STEPS, checkpoint_every=STEPS)
    result = in_background(the_task, tmp_path, ResourcesConfig())
    wait_until(lambda: len(steps(tmp_path)) > 10)
    at, _, node = steps(tmp_path)[-1]
    command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
    command += ["--address", cluster.address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", "10"]
    subprocess.run(command, check=True, capture_output=True)
    wait_until(lambda: steps(tmp_path)[-1][2] != node, 90)
    cluster.remove_node(node_of(cluster, node), allow_graceful=False)
    wait_until(lambda: bool(result))
    seen = steps(tmp_path)
    resumed = next(step for step, _, where in seen if where != node)
    assert resumed > at, "after what was done when the warning came"
    calm = fit.train_here(calm_task(tmp_path), silent)
    assert losses(result[0]) == losses(calm)
    for name, value in weights(calm).items():
        np.testing.assert_array_equal(weights(result[0])[name], value, err_msg=name)
