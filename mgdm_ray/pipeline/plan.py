"""The plan of a study: all its jobs, from its configuration and the content of its data.

Pure: reads no file, imports neither torch nor ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mgdm_ray.config import StartPoint, StudyConfig
from mgdm_ray.pipeline.dataset_jobs import DatasetJobs
from mgdm_ray.pipeline.job import KINDS, Job
from mgdm_ray.seeding import content_key


@dataclass(frozen=True)
class Plan:
    """Jobs by key; each comes after those it needs."""

    jobs: dict[str, Job]

    def counts(self) -> dict[str, int]:
        found = Counter(job.kind for job in self.jobs.values())
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def key(self) -> str:
        return content_key(sorted(self.jobs))

    def cells(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.kind == "fit_downstream"]


def make_plan(
    config: StudyConfig,
    fingerprints: Mapping[str, str],
    warm: Mapping[str, Sequence[StartPoint]] | None = None,
) -> Plan:
    """All jobs of a study.

    ``fingerprints`` identify the content of each dataset by its name, and of each file of
    pretrained weights as ``weights/NETWORK``. ``warm`` are the start points from
    ``search.warm_start``, by dataset.
    """
    jobs: dict[str, Job] = {}
    for dataset in config.datasets:
        start = (warm or {}).get(dataset.name, ())
        DatasetJobs(config, dataset, fingerprints, start, jobs).build()
    return Plan(jobs)
