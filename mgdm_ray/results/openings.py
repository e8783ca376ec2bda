"""Who opened the test split: one file per opening, ``STORAGE/openings/TIME-STUDY-RANDOM.json``.

Written before jobs start and before a report shows their results, so that no opening is lost, and
never changed, so that studies and machines need no lock. No artefact has a time: it is here only.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal

from mgdm_ray.config import StudyConfig
from mgdm_ray.pipeline.job import OPENS_TEST, Job
from mgdm_ray.pipeline.plan import Plan
from mgdm_ray.storage.files import replacing, sync
from mgdm_ray.storage.store import Store

log = logging.getLogger(__name__)

FOLDER = "openings"


@dataclass(frozen=True)
class Opening:
    """``jobs``: the study started these, keys by kind. ``report``: it showed test results."""

    study: str
    when: str
    """ISO 8601, UTC."""
    event: Literal["jobs", "report"]
    plan: str
    """Key of the study's plan."""
    datasets: Mapping[str, str]
    """Fingerprint by name."""
    networks: Sequence[str]
    seeds: Sequence[int]
    jobs: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @staticmethod
    def of(
        config: StudyConfig, plan: Plan, fingerprints: Mapping[str, str], jobs: Iterable[Job] = ()
    ) -> Opening:
        """Now; of a report without ``jobs``."""
        keys: dict[str, list[str]] = {}
        for job in jobs:
            if job.kind in OPENS_TEST:
                keys.setdefault(job.kind, []).append(job.key)
        return Opening(
            config.name,
            datetime.now(UTC).isoformat(timespec="microseconds"),
            "jobs" if keys else "report",
            plan.key,
            {dataset.name: fingerprints[dataset.name] for dataset in config.datasets},
            list(config.networks),
            list(config.seeds),
            keys,
        )


def record(store: Store, opening: Opening) -> None:
    """Keep ``opening`` in the storage, visible to all machines."""
    stamp = re.sub("[^0-9T]", "", opening.when[:-6])
    path = store.root / FOLDER / f"{stamp}-{opening.study}-{uuid.uuid4().hex[:8]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asdict(opening), sort_keys=True), encoding="utf-8")
    sync(store.root)  # the folder may be new
    store.share(path)


def read_openings(store: Store) -> list[Opening]:
    """Of all studies in the storage, the first ones first; damaged files are skipped."""
    folder = store.root / FOLDER
    store.bring(folder)
    found = []
    for path in sorted(path for path in folder.glob("*.json") if ".tmp." not in path.name):
        try:
            found.append(Opening(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            log.warning("%s: skipped a damaged record: %s", path, error)
    return sorted(found, key=lambda opening: opening.when)


def of_datasets(found: Iterable[Opening], fingerprints: Iterable[str]) -> list[Opening]:
    """Those that opened a test split of these datasets."""
    wanted = set(fingerprints)
    return [one for one in found if wanted.intersection(one.datasets.values())]


def added_after_a_look(found: Sequence[Opening], study: str) -> tuple[str, dict[str, list[str]]]:
    """When ``study`` first showed test results, and what it has had since: by ``seed``,
    ``network`` and ``dataset`` the names that its latest opening has and that look had not.

    Empty without an earlier look.
    """
    mine = [one for one in found if one.study == study]
    looks = [one for one in mine if one.event == "report"]
    if not looks:
        return "", {}
    first, last = looks[0], mine[-1]
    parts = {
        "seed": (first.seeds, last.seeds),
        "network": (first.networks, last.networks),
        "dataset": (list(first.datasets), list(last.datasets)),
    }
    late = {
        what: [str(name) for name in now if name not in before]
        for what, (before, now) in parts.items()
    }
    return first.when, {what: names for what, names in late.items() if names}


def table_rows(found: Iterable[Opening]) -> list[list[str]]:
    """Per study and plan: name, plan, first and last opening, jobs by kind, reports."""
    groups: dict[tuple[str, str], list[Opening]] = {}
    for one in found:
        groups.setdefault((one.study, one.plan), []).append(one)
    rows = []
    for (study, plan), openings in groups.items():
        keys = {(kind, key) for one in openings for kind, keys in one.jobs.items() for key in keys}
        jobs = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(k for k, _ in keys).items()))
        reports = sum(one.event == "report" for one in openings)
        first, last = openings[0].when[:19], openings[-1].when[:19]
        rows.append([study, plan[:8], first, last, jobs, str(reports)])
    return rows
