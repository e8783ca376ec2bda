"""How a study stands: which of its jobs the storage holds, which failed, and which are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mgdm_ray.config import InputError, LimitsConfig
from mgdm_ray.pipeline.limits import refusal
from mgdm_ray.pipeline.plan import CELLS, Job, Plan
from mgdm_ray.storage.records import Record, read_records
from mgdm_ray.storage.store import Store


@dataclass(frozen=True)
class StudyStatus:
    """What ``store`` and the file ``rows`` of earlier records say of the jobs of ``plan``."""

    plan: Plan
    store: Store
    rows: Path

    def finished(self) -> dict[str, Record]:
        """Records of the plan's jobs that the store holds undamaged.

        What is damaged is moved aside, with a warning. What will be used is compared by its
        checksums: the cells, and what a job that is left to do needs.
        """
        found, needed, done = {}, set[str](), set(self.store.done())
        for key, job in reversed(self.plan.jobs.items()):
            used = job.kind in CELLS or key in needed
            wrong = self.store.check(job.kind, key, "all" if used else "changed")
            if wrong:
                print(f"warning: damaged, to be computed again: {job.label}: {wrong}", flush=True)
            if not wrong and (job.kind, key) in done:
                found[key] = self._stored(job)
            else:
                needed |= set(job.needs.values())
        return {key: found[key] for key in self.plan.jobs if key in found}

    def _stored(self, job: Job) -> Record:
        """InputError where a manifest is whole by its checksum, and yet not what we write."""
        try:
            return Record.from_dict(self.store.manifest(job.kind, job.key)["record"])
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(
                f"{self.store.folder(job.kind, job.key)}: its manifest is none of ours ({error}); "
                "remove this folder, and the job is computed again"
            ) from None

    def failures(self) -> dict[str, Record]:
        """Records of the plan's jobs that failed before and are not done since."""
        return {
            r.key: r
            for r in read_records(self.rows)
            if r.status == "failed"
            and r.key in self.plan.jobs
            and not self.store.is_done(r.kind, r.key)
        }

    def lasting_failures(self) -> dict[str, Record]:
        """Those that will not go away by themselves: only --retry-failed tries them again."""
        return {key: r for key, r in self.failures().items() if not r.is_transient}

    def gated(self, known: dict[str, Record], limits: LimitsConfig) -> dict[str, Record]:
        """``known``, and in it what the study's limits say of each job that has a gate.

        Limits are no part of a key: what the store holds is refused, or shown again, as they
        say now. A job whose gate has not been judged yet is not known, whatever the store holds.
        """
        from mgdm_ray.pipeline.tasks.base import held_up, refused

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
