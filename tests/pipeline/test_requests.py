"""What jobs request, and which clusters have it."""

from __future__ import annotations

from typing import Any

import pytest

from mgdm_ray.config import ResourcesConfig, StudyConfig
from mgdm_ray.pipeline.requests import request_of, shortages, trials_at_once
from tests.conftest import TINY
from tests.pipeline.test_cost_model import of_kind, plan_of


def test_what_jobs_hold() -> None:
    """Would catch a training of four workers that counts as one, and a search as one trial."""
    plan = plan_of()
    resources = ResourcesConfig(
        train_workers=4, cpus_per_worker=2, gpus_per_worker=1, cpus_per_task=3, sampling_workers=2
    )

    def held(kind: str) -> tuple[int, float, float]:
        found = request_of(of_kind(plan, kind), resources, trials_at_once=5)
        return found.lanes, found.cpus, found.gpus

    assert held("fit_denoiser") == held("fit_guide") == (1, 8, 4)
    assert held("generate") == held("encode") == held("decode") == (2, 3, 0)
    assert held("search") == (3, 3, 0)  # it has three trials only
    assert held("fit_downstream") == (1, 3, 0)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"cpus_per_task": 4}, []),
        ({"train_workers": 6}, []),  # together more than a node has, but not more than both
        ({"train_workers": 7}, ["resources.train_workers", "7 CPU", "cluster has 6", "fit_denoi"]),
        ({"cpus_per_worker": 5}, ["resources.cpus_per_worker", "5 CPU", "node has 4", "fit_denoi"]),
        ({"cpus_per_task": 5}, ["resources.cpus_per_task", "5 CPU", "node has 4", "real seed 0"]),
        ({"gpus_per_task": 2}, ["resources.gpus_per_task", "2 GPU", "node has 1", "real seed 0"]),
        ({"gpus_per_worker": 1, "train_workers": 2}, ["train_workers", "2 GPU", "has 1"]),
    ],
)
def test_a_shortage_names_the_job_the_resource_and_the_key(
    resources: dict[str, Any], expected: list[str]
) -> None:
    """Would catch a worker that is spread over two nodes, and a refusal that says too little."""
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}]
    found = shortages(plan_of().jobs.values(), ResourcesConfig(**resources), nodes)
    assert len(found) == bool(expected)
    for part in expected:
        assert part in str(found[0])


def test_what_is_not_to_be_run_cannot_be_short_of_anything() -> None:
    """Would catch a study refused for the GPUs of trainings that are done."""
    cells = plan_of().cells()
    assert shortages(cells, ResourcesConfig(train_workers=1000), [{"CPU": 1.0}]) == []
    [found] = shortages(cells, ResourcesConfig(cpus_per_task=9), [{"CPU": 1.0}])
    assert "and 9 more" in found.text
    assert "10 more" not in found.text
    assert shortages([], ResourcesConfig(cpus_per_task=9), []) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4),
        ({"resources": {"cpus_per_task": 3}}, 1),
        ({"resources": {"cpus_per_task": 9}}, 1),
        ({"resources": {"cpus_per_task": 0.5, "gpus_per_task": 0.5}}, 2),
        ({"search": {**TINY["search"], "max_concurrent": 7}}, 7),
        ({"search": {**TINY["search"], "max_concurrent": 7}, "deterministic": True}, 1),
    ],
)
def test_how_many_trials_run_at_the_same_time(changes: dict[str, Any], expected: int) -> None:
    """Would catch a plan that counts other trials at once than the run."""
    config = StudyConfig.model_validate({**TINY, **changes})
    assert trials_at_once(config, {"CPU": 4.0, "GPU": 1.0}) == expected
