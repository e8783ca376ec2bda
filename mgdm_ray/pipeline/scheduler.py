"""Which jobs of a plan can run now: those whose needs are done and whose gate is within limits.

No Ray, no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from mgdm_ray.config import LimitsConfig
from mgdm_ray.pipeline.job import FITS, Job
from mgdm_ray.pipeline.limits import refusal
from mgdm_ray.pipeline.tasks import base
from mgdm_ray.storage.records import Record


class Scheduler:
    """Releases the jobs of ``todo`` (in plan order) once their needs are done.

    ``known`` holds the records of finished jobs. A job whose gate is not within ``limits`` is
    refused. Time is linear in the edges of the plan.
    """

    def __init__(
        self,
        todo: Mapping[str, Job],
        known: Mapping[str, Record],
        limits: LimitsConfig | None = None,
    ) -> None:
        self.records = dict(known)
        self.limits = limits or LimitsConfig()
        self._jobs = list(todo.values())
        self._order = {job.key: index for index, job in enumerate(self._jobs)}
        self._ready: dict[str, list[int]] = {}
        self._open: dict[str, int] = {}
        self._dependents: dict[str, list[Job]] = {}
        for job in self._jobs:
            missing = [key for key in job.waits_for if key not in self.records]
            self._open[job.key] = len(missing)
            for need in missing:
                self._dependents.setdefault(need, []).append(job)

    def start(self) -> list[tuple[Job, Record]]:
        """Release jobs without needs; returns as ``end``."""
        ended: list[tuple[Job, Record]] = []
        for job in self._jobs:
            if not self._open[job.key] and job.key not in self.records:
                ended += self._release(job)
        return ended

    def waiting(self, group: str) -> int:
        """How many jobs of a group (see ``group_of``) can start now."""
        return len(self._ready.get(group, ()))

    def pop(self, group: str) -> Job:
        """The first of them in plan order; IndexError if there is none."""
        return self._jobs[heapq.heappop(self._ready[group])]

    def end(self, job: Job, record: Record) -> list[tuple[Job, Record]]:
        """``job`` ended with ``record``: it, and all jobs that can therefore never run."""
        ended = [(job, record)]
        self.records[job.key] = record
        for dependent in self._dependents.pop(job.key, ()):
            self._open[dependent.key] -= 1
            if not self._open[dependent.key]:
                ended += self._release(dependent)
        return ended

    def _release(self, job: Job) -> list[tuple[Job, Record]]:
        found = (self.records[key] for key in job.waits_for)
        bad = next((record for record in found if record.status != "done"), None)
        if bad is not None:
            return self.end(job, base.held_up(job, bad))
        reason = refusal(self.records[job.gate], self.limits) if job.gate else ""
        if reason:
            return self.end(job, base.refused(job, reason))
        heapq.heappush(self._ready.setdefault(group_of(job), []), self._order[job.key])
        return []


def group_of(job: Job) -> str:
    """``fit`` and ``search`` wait for their own workers; a ``task`` is a worker."""
    return "fit" if job.kind in FITS else "search" if job.kind == "search" else "task"
