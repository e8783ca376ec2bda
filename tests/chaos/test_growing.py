"""Clusters that grow while a study runs, by hand and by Ray's autoscaler; GPUs are fake."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from mgdm_ray.config import InputError, ResourcesConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.tasks.base import Context, JobFunction, Outcome
from mgdm_ray.runtime import capacity, engine, search
from mgdm_ray.runtime.capacity import FIXED, Growth
from mgdm_ray.runtime.job_task import RunOptions
from mgdm_ray.storage.locks import Locks
from mgdm_ray.storage.records import Record
from tests import search_example
from tests.chaos.autoscaler import AutoscaledCluster
from tests.chaos.storm import quick_head
from tests.runtime.test_engine import Watch

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENCE_S = 60.0


def run(
    folder: Path, todo: list[Job], resources: ResourcesConfig, growth: Growth, **functions: Any
) -> Watch:
    """What the engine makes of ``todo`` on the cluster that this process is connected to."""
    watch = Watch()
    engine.require_resources(todo, resources, growth, watch)
    engine.run_plan(
        {job.key: job for job in todo},
        {},
        replace(search_example.context_of(folder), study_folder=str(folder)),
        RunOptions(resources, None, growth=growth),
        Locks(folder),
        watch,
        functions,
    )
    return watch


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def head() -> Iterator[Cluster]:
    """A head that computes nothing, without autoscaler."""
    made = quick_head()
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_study_waits_for_a_node_that_joins_later(
    head: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a study that is refused because its node joins later, one that waits without
    saying for what, and one that waits for ever."""
    assert capacity.growth() == FIXED
    cells = [Job("fit_downstream", f"cell{i}", {}, {}, "d", "net", "real", i) for i in range(3)]
    resources = ResourcesConfig(gpus_per_task=1)

    def done(job: Job, context: Context, folder: Path) -> Outcome:  # noqa: ARG001
        return {"metrics": {"gpus": float(len(ray.get_gpu_ids()))}}

    watches: list[Watch] = []
    waiting = Watch()

    def study() -> None:
        engine.require_resources(cells, resources, FIXED, waiting)
        watches.append(run(tmp_path, cells, resources, FIXED, fit_downstream=done))

    thread = threading.Thread(target=study, daemon=True)
    thread.start()
    wait_until(lambda: bool(waiting.said))
    told = r"\b15 min\b.*\bfit_downstream .*\b1 GPU\b.*\b0\b"
    assert re.search(told, waiting.said[0], re.DOTALL), waiting.said
    head.add_node(num_cpus=1, num_gpus=1)
    thread.join(PATIENCE_S)
    assert len(waiting.said) == 1
    assert [record.metrics for record in watches[0].records.values()] == [{"gpus": 1.0}] * 3

    monkeypatch.setattr(engine, "NODES_WITHIN_S", 1.0)
    with pytest.raises(InputError, match=r"^resources\.gpus_per_task: .* needs 2 GPU"):
        engine.require_resources(cells, ResourcesConfig(gpus_per_task=2), FIXED, Watch())


def test_each_task_computes_on_the_gpu_it_was_given(tmp_path: Path) -> None:
    """Would catch a process that opened CUDA on one GPU and is handed another one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2})
    ray.init(address=cluster.address, log_to_driver=False)

    def write_down(job: Job, context: Context, folder: Path) -> Outcome:  # noqa: ARG001
        time.sleep(0.2)
        return {"metrics": {"pid": float(os.getpid()), "gpu": float(ray.get_gpu_ids()[0])}}

    cells = [Job("fit_downstream", f"cell{i}", {}, {}, "d", "net", "real", i) for i in range(15)]
    resources = ResourcesConfig(gpus_per_task=1)
    try:
        found = run(tmp_path, cells, resources, FIXED, fit_downstream=write_down)
    finally:
        ray.shutdown()
        cluster.shutdown()
    seen: dict[float, set[float]] = {}
    for record in found.records.values():
        seen.setdefault(record.metrics["pid"], set()).add(record.metrics["gpu"])
    assert {gpu for gpus in seen.values() for gpu in gpus} == {0.0, 1.0}
    assert all(len(gpus) == 1 for gpus in seen.values()), seen


@pytest.fixture
def three_nodes(version: int) -> Iterator[AutoscaledCluster]:
    """None at the start, three of one fake GPU at most."""
    made = AutoscaledCluster({"CPU": 1, "GPU": 1}, 3, version)
    with engine.cluster(made.address):
        yield made
    made.shutdown()


def meet(folder: Path, name: str, count: int = 3) -> None:
    """Return once ``count`` processes are here together."""
    (folder / f"{name}.here").touch()
    wait_until(lambda: len(list(folder.glob("*.here"))) >= count)


class Meeting(search_example.Formula):
    """The first three trials end only if they run at the same time."""

    def decode(self, setting: dict[str, Any]) -> dict[str, Any]:
        meet(self.folder, str(os.getpid()))
        return super().decode(setting)


def train(job: Job, context: Context, folder: Path) -> Outcome:  # noqa: ARG001
    """Asks for its worker as Ray Train does, and ends only if three run at the same time."""
    group = placement_group([{"CPU": 1, "GPU": 1}])
    ray.get(group.ready())
    context.progress(1, 2, "")
    meet(Path(context.storage), job.key)
    remove_placement_group(group)
    return {"metrics": {"trained": 1.0}}


def search_of(options: RunOptions) -> JobFunction:
    def run_search(job: Job, context: Context, folder: Path) -> Outcome:
        return search.search(
            job,
            context,
            folder,
            resources=options.resources,
            max_concurrent=options.trials_at_once,
            make_scorer=Meeting,
        )

    return run_search


GPU_EACH = ResourcesConfig(gpus_per_worker=1, gpus_per_task=1)


@pytest.mark.parametrize(("kind", "version"), [("trainings", 2), ("trials", 1)])
def test_the_autoscaler_sees_what_could_run(
    three_nodes: AutoscaledCluster, tmp_path: Path, kind: str
) -> None:
    """Would catch a study that is refused by a cluster of no nodes yet, one training or trial at a
    time where three nodes could start, and one that no node type can hold."""
    growth = capacity.growth()
    assert growth == Growth(True, ({"CPU": 1, "GPU": 1},) * 3)
    impossible = ResourcesConfig(gpus_per_worker=2)
    with pytest.raises(InputError, match=r"\b2 GPU\b.*\b1\b"):
        engine.require_resources([fit_job(0)], impossible, growth, Watch())
    todo = [fit_job(number) for number in range(3)]
    if kind == "trials":
        todo = [replace(search_example.search_job(trials=5), needs={}, gate=None)]
    functions = {"fit_guide": train, "search": search_of(RunOptions(GPU_EACH, None, growth=growth))}
    watch = run(tmp_path, todo, GPU_EACH, growth, **functions)
    records: list[Record] = list(watch.records.values())
    assert {record.status for record in records} == {"done"}, records
    assert len(three_nodes.raylets()) == 3
    assert re.search(r"\bautoscaler\b.*\b1 GPU\b.*\b0\b", watch.said[0], re.DOTALL), watch.said
    assert watch.said[1].endswith("GPU now")


def fit_job(number: int) -> Job:
    return Job("fit_guide", f"fit{number}", {}, {}, "d")
