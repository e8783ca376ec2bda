"""Which stage-1 candidate a job works on: the only one there is, or the one the search chose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mgdm_ray.pipeline.tasks.base import Context, JobError, stored_record

if TYPE_CHECKING:
    from mgdm_ray.pipeline.plan import Job


def _roles(job: Job, prefix: str) -> list[str]:
    """Keys of the needs ``prefix/0``, ``prefix/1``, ... in order."""
    found = {
        int(role.removeprefix(f"{prefix}/")): key
        for role, key in job.needs.items()
        if role.startswith(f"{prefix}/")
    }
    return [found[index] for index in sorted(found)]


def best_setting(job: Job, context: Context) -> dict[str, Any] | None:
    """What the search of this job found; None where the job needs no search."""
    if "search" not in job.needs:
        return None
    return dict(stored_record(context.store, "search", job.needs["search"]).setting)


def chosen_stage_one(job: Job, context: Context, role: str, best: dict[str, Any] | None) -> str:
    """The key among this job's stage-1 candidates that has the chosen stage-1 scales."""
    candidates, kind = _roles(job, role), {"latents": "encode", "images": "generate"}[role]
    if len(candidates) == 1:
        return candidates[0]
    if best is None:
        raise JobError("several stage-1 candidates and no search to choose one")
    for key in candidates:
        setting = stored_record(context.store, kind, key).setting
        if all(setting[name] == best[name] for name in setting):
            return key
    raise JobError(f"no stage-1 candidate with the searched setting {best}")
