"""What a finished Ray task becomes; no Ray is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import LocalRayletDiedError, WorkerCrashedError

from mgdm_ray.environment import StartError
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.tasks.base import Context
from mgdm_ray.runtime import job_task
from mgdm_ray.storage.records import WORKER_DIED


def test_the_end_of_ray_is_no_failed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a failure of every running job, in Ray's words, where Ray itself has died."""
    job = Job("decode", "0123456789", {}, {}, "d")
    context = Context(storage=str(tmp_path), study_folder=str(tmp_path), datasets={})

    def ends_with(error: Exception) -> None:
        def get(_: Any) -> None:
            raise error

        monkeypatch.setattr(job_task.ray, "get", get)

    ends_with(LocalRayletDiedError())
    with pytest.raises(StartError) as stopped:
        job_task.outcome(None, job, context)
    assert "RayletDied" not in str(stopped.value)
    ends_with(WorkerCrashedError())
    assert job_task.outcome(None, job, context).reason.startswith(WORKER_DIED)
