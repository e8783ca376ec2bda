"""Which stage-1 candidate a job works on: the only one, or the one that the search chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mgdm_ray.pipeline.tasks.base import Context, JobError, stored_record

if TYPE_CHECKING:
    from mgdm_ray.pipeline.plan import Job


def candidate_index(stage_one: Sequence[Sequence[float]], setting: Mapping[str, Any]) -> int:
    """The place of the candidate that has the scales of ``setting``; ValueError if none has."""
    scales = (setting["guidance_scale"], setting["classifier_scale"])
    return [tuple(candidate) for candidate in stage_one].index(scales)


def best_setting(job: Job, context: Context) -> dict[str, Any] | None:
    """The setting that the search of this job found; None if the job needs no search."""
    if "search" not in job.needs:
        return None
    return dict(stored_record(context.store, "search", job.needs["search"]).setting)


def chosen_stage_one(job: Job, context: Context, role: str) -> str:
    """The key of the job whose ``role`` (``images`` or ``latents``) this job uses."""
    if f"{role}/1" not in job.needs:
        return job.needs[f"{role}/0"]
    if "search" not in job.needs:
        raise JobError("several stage-1 candidates and no search to choose one")
    search = context.store.manifest("search", job.needs["search"])
    index = candidate_index(search["inputs"]["stage_one"], search["record"]["setting"])
    return job.needs[f"{role}/{index}"]
