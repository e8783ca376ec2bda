"""The status of a study: which of its jobs are finished, failed or refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mgdm_ray.config import InputError, LimitsConfig
from mgdm_ray.pipeline.job import CELLS, Job
from mgdm_ray.pipeline.limits import refusal
from mgdm_ray.pipeline.plan import Plan
from mgdm_ray.pipeline.tasks.base import held_up, refused, stored_record
from mgdm_ray.storage.records import Record, read_records
from mgdm_ray.storage.store import Store


@dataclass(frozen=True)
class StudyStatus:
    """The jobs of ``plan``, by ``store`` and the file ``rows`` of earlier records."""

    plan: Plan
    store: Store
    rows: Path

    def finished(self) -> dict[str, Record]:
        """Records of the plan's jobs whose artefacts are in the store and undamaged.

        Damaged ones are moved aside with a warning. Checksums are compared of what will be used:
        cells, and what unfinished jobs need.
        """
        found, needed, done = {}, set[str](), set(self.store.done())
        for key, job in reversed(self.plan.jobs.items()):
            used = job.kind in CELLS or key in needed
            wrong = self.store.check(job.kind, key, "all" if used else "changed")
            if wrong:
                print(f"warning: {job.label}: damaged, will run again: {wrong}", flush=True)
            if not wrong and (job.kind, key) in done:
                found[key] = self._stored(job)
            else:
                needed |= set(job.needs.values())
        return {key: found[key] for key in self.plan.jobs if key in found}

    def _stored(self, job: Job) -> Record:
        try:
            return stored_record(self.store, job.kind, job.key)
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(
                f"{self.store.folder(job.kind, job.key)}: this manifest was not written by "
                f"mgdm-ray ({error}); remove this folder and run the study again"
            ) from None

    def failures(self) -> dict[str, Record]:
        """Records of the plan's jobs that failed and are not done since."""
        return {
            r.key: r
            for r in read_records(self.rows)
            if r.status == "failed"
            and r.key in self.plan.jobs
            and not self.store.is_done(r.kind, r.key)
        }

    def lasting_failures(self) -> dict[str, Record]:
        """Those that run again only with --retry-failed: they would fail the same way."""
        return {key: r for key, r in self.failures().items() if not r.is_transient}

    def with_limits(self, known: dict[str, Record], limits: LimitsConfig) -> dict[str, Record]:
        """``known``, with the jobs that the study's limits refuse.

        Limits are not part of keys: a stored cell is refused or shown by the present ones. A job
        is not known before its gate is.
        """
        found = dict(known)
        for key, job in self.plan.jobs.items():
            if job.gate is None:
                continue
            gate = known.get(job.gate)
            if gate is None:
                found.pop(key, None)
            elif gate.status != "done":
                found |= {key: held_up(job, gate)} if key in known else {}
            elif reason := refusal(gate, limits):
                found[key] = refused(job, reason)
        return found
