"""Running a study: compute what the storage lacks, then write records, MLflow and report."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mgdm_ray.classifiers import weights
from mgdm_ray.cli.opened_study import OpenedStudy
from mgdm_ray.cli.signals import catch_signals, stop_if_interrupted
from mgdm_ray.config import InputError
from mgdm_ray.config.resolved import RESOLVED_FILE, changes, resolved_text
from mgdm_ray.environment import StartError
from mgdm_ray.pipeline.job import OPENS_TEST, Job
from mgdm_ray.pipeline.requests import fixed_trials
from mgdm_ray.pipeline.staging import share_notes
from mgdm_ray.results.finalize import RECORDS_FILE, REPORT_FILE, Finalizer
from mgdm_ray.storage.records import Record, append_record
from mgdm_ray.storage.remote.objects import is_url

if TYPE_CHECKING:
    from mgdm_ray.cli.progress import Display
    from mgdm_ray.results.mlflow import Mirror
    from mgdm_ray.runtime.job_task import Live

SHARE_EVERY_S = 30.0
"""Between two copies of the records to a remote storage."""
CHANGES_SHOWN = 3
HEADLINES = "balanced_accuracy fd best_score fresh_score balanced_accuracy_over_t loss".split()
"""The first of these that a record has is shown when its job ends."""


@dataclass(frozen=True)
class Invocation:
    command: str
    """The command line, for MLflow and for what to do next."""
    address: str | None = None
    """An existing Ray cluster; None starts a local one."""
    fail_fast: bool = False
    retry_failed: bool = False
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))


def run(study: OpenedStudy, call: Invocation) -> bool:
    """Run the study and write its report; False if a job failed or has not run."""
    started = time.monotonic()
    weights.require_timm(study.config)
    study.check_data()
    study.check_draws()
    study.store.sweep()
    if study.leads():
        write_inputs(study)
    else:
        print(f"{study.leader()} runs this study too and writes its report", flush=True)
    known = study.known(retry_failed=call.retry_failed)
    todo = {key: job for key, job in study.plan.jobs.items() if key not in known}
    print(
        f"study {study.config.name}: {len(study.plan.jobs)} jobs, {len(known)} finished, "
        f"{len(todo)} to do; storage {study.store.location}",
        flush=True,
    )
    if todo:
        compute(study, call, todo, known)
    stop_if_interrupted()
    if not study.leads():
        print(f"nothing left to do here; {study.leader()} writes the report", flush=True)
        while not study.leads():
            time.sleep(1)
    return _finish(study, call, known, time.monotonic() - started)


def report_only(study: OpenedStudy, call: Invocation) -> bool:
    """Rebuild records, MLflow and report from the storage; False if a job failed."""
    if study.absent:
        raise InputError(
            f"--report-only: dataset {', '.join(study.absent)} not found; it is needed to identify "
            "finished jobs; set data_dir or MGDM_DATA_DIR"
        )
    study.check_draws()
    known = {**study.status.failures(), **study.status.finished()}
    if not known:
        raise InputError(f"--report-only: {study.store.location} holds nothing of this study")
    known = study.status.with_limits(known, study.config.limits)
    if not study.leads():
        raise StartError(f"{study.folder} is in use by {study.leader()}; wait until it has ended")
    study.prepare_data()
    _finish(study, call, known, 0.0, anew=True)
    # A job that has not run is no failure here.
    return all(record.status != "failed" for record in known.values())


def _finish(
    study: OpenedStudy,
    call: Invocation,
    known: dict[str, Record],
    seconds: float,
    *,
    anew: bool = False,
) -> bool:
    from mgdm_ray.cli.summary import summary

    finalizer = _finalizer(study, call)
    finalizer.close(known, seconds, anew=anew)
    share_notes(study.store, study.folder)
    return summary(finalizer, known)


def _finalizer(study: OpenedStudy, call: Invocation) -> Finalizer:
    return Finalizer(
        study.config,
        study.read.datasets,
        study.plan,
        study.store,
        study.fingerprints,
        call.command,
        call.started,
    )


def write_inputs(study: OpenedStudy) -> None:
    """Write the resolved study, the plan, and the splits of own images."""
    from mgdm_ray.data.sources.source import own_listing
    from mgdm_ray.data.sources.splits import splits_csv

    folder, config = study.folder, study.config
    folder.mkdir(parents=True, exist_ok=True)
    resolved = folder / RESOLVED_FILE
    replaces = (folder / REPORT_FILE).is_file() and resolved.is_file()
    if changed := changes(resolved.read_text(encoding="utf-8"), config) if replaces else []:
        more = f" and {len(changed) - CHANGES_SHOWN} more" if changed[CHANGES_SHOWN:] else ""
        print(
            f"note: the report in {folder} will be replaced: it is of a study of this name with "
            f"another {', '.join(changed[:CHANGES_SHOWN])}{more} (--set name=... keeps both)",
            flush=True,
        )
    resolved.write_text(resolved_text(config, study.source), encoding="utf-8")
    rows = [
        {"key": j.key, "kind": j.kind, "label": j.label, "needs": j.needs}
        for j in study.plan.jobs.values()
    ]
    (folder / "plan.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for dataset in config.datasets:
        listing = own_listing(dataset, config.data_dir)
        if listing is not None:
            path = folder / f"splits-{dataset.origin}.csv"
            path.write_text(splits_csv(listing), encoding="utf-8")


def compute(
    study: OpenedStudy, call: Invocation, todo: dict[str, Job], known: dict[str, Record]
) -> None:
    """Run ``todo`` on Ray; records go to ``known``, to disk and to MLflow as they come."""
    from rich.console import Console

    from mgdm_ray import environment

    local = call.address is None
    environment.prepare(local=local)  # before anything imports ray

    from mgdm_ray.cli.progress import Display
    from mgdm_ray.results.mlflow import Mirror
    from mgdm_ray.runtime import capacity, engine
    from mgdm_ray.runtime.job_task import RunOptions
    from mgdm_ray.runtime.proposals import require_optuna_takes

    require_optuna_takes(todo.values())
    config, busy = study.config, environment.Busy()
    finalizer = _finalizer(study, call)
    leads, kinds = study.leads(), [job.kind for job in todo.values()]
    with (
        engine.cluster(call.address),
        Mirror(finalizer.connect_mlflow if leads else None) as mirror,
        Display(len(study.plan.jobs) - len(todo), kinds, Console()) as display,
    ):
        catch_signals()
        take = _Records(study, finalizer, known, display, mirror, leads)
        growth = capacity.FIXED if local else capacity.growth()
        waits = None if local else take
        engine.require_resources(todo.values(), config.resources, growth, waits)
        trials = fixed_trials(config)
        alone = local and config.resources.trains_alone and not is_url(study.store.location)
        options = RunOptions(config.resources, trials, config.limits, call.fail_fast, growth, alone)
        if opening := [job for job in todo.values() if job.kind in OPENS_TEST]:
            finalizer.opens_test(opening)
        engine.run_plan(todo, known, study.context(), options, study.locks, take)
        if local:
            display.say(f"computed in {busy}")


@dataclass
class _Records:
    """Shows each record as it comes, and keeps it; the leader writes it to disk and MLflow."""

    study: OpenedStudy
    finalizer: Finalizer
    known: dict[str, Record]
    display: Display
    mirror: Mirror
    leads: bool
    shared: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        self.display.say(text)

    def live(self, rows: Mapping[str, Live]) -> None:
        stop_if_interrupted()
        self.display.live(rows)

    def ended(self, job: Job, record: Record) -> None:
        self.known[job.key] = record
        done = record.status == "done"
        jobs = self.study.plan.jobs.values()
        note = _headline(record) if done else with_labels(record.reason, jobs)
        self.display.job_ended(job.kind, job.label, record.status, record.seconds, note)
        if not self.leads:
            return
        path = self.study.folder / RECORDS_FILE
        for row in self.finalizer.with_trials(record):
            append_record(path, row)
            self.mirror.log(row, self.finalizer.artefact(row))
        if time.monotonic() - self.shared > SHARE_EVERY_S:
            self.study.store.share(path)
            self.shared = time.monotonic()


def with_labels(reason: str, jobs: Iterable[Job]) -> str:
    """The reason of a blocked job, with the labels of the jobs that it needs."""
    labels = {job.key[:8]: job.label for job in jobs}
    return re.sub(
        r"needs \w+ (\w+)(?=, which )",
        lambda need: f"needs {labels[need[1]]}" if need[1] in labels else need[0],
        reason,
    )


def _headline(record: Record) -> str:
    name = next((name for name in HEADLINES if name in record.metrics), None)
    return f"{name.replace('_', ' ')} {record.metrics[name]:.3f}" if name else ""
