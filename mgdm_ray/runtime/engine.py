"""Run a plan on Ray: each job is a task, submitted once its needs are in the store."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from mgdm_ray.config import InputError, ResourcesConfig
from mgdm_ray.environment import QUIET, StartError, StudyStopped, cores, plugins
from mgdm_ray.pipeline import requests
from mgdm_ray.pipeline.job import CELLS, FITS, SAMPLINGS, Job
from mgdm_ray.pipeline.requests import how_many_fit
from mgdm_ray.pipeline.scheduler import Scheduler, group_of
from mgdm_ray.pipeline.tasks import base
from mgdm_ray.pipeline.tasks.base import Context, JobFunction
from mgdm_ray.runtime import capacity
from mgdm_ray.runtime.capacity import FIXED, TASKS_AHEAD, TRAININGS_AHEAD, Growth
from mgdm_ray.runtime.job_task import (
    Board,
    Live,
    RunOptions,
    outcome,
    run_job,
    task_function,
    task_options,
)
from mgdm_ray.storage.locks import Locks
from mgdm_ray.storage.records import NO_SPACE, OUT_OF_MEMORY, Record

SHRINKABLE = (*SAMPLINGS, *CELLS)
"""Kinds that can work on fewer images at a time."""
HOLD_S = 60.0
"""Longest time for which other tasks wait while a training looks for its workers."""

NODES_WITHIN_S = 900.0
"""How long a study waits for a node that someone adds to a cluster without autoscaler."""
SAY_EVERY_S = 300.0
"""Between two lines about the same missing node."""


class Observer(Protocol):
    """Is told what happens in a run."""

    def ended(self, job: Job, record: Record) -> None:
        """Once per job."""

    def live(self, rows: Mapping[str, Live]) -> None:
        """About once a second: the progress of running jobs."""

    def say(self, text: str) -> None:
        """A line for the console."""


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at ``address``, or start one on this machine for this study.

    The latter listens on 127.0.0.1 only and, after ``environment.prepare``, requires a token made
    for it. Raises InputError if the address does not answer, StartError if Ray does not start.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # "local": without it Ray would join any cluster that was started on this machine.
        options |= {"address": "local", "include_dashboard": False}
        # One computing thread per task: more threads than cores are several times slower.
        options["num_cpus"] = cores()
    else:
        # A local cluster's workers inherit this environment; those of another must be told.
        options |= {"address": address, "runtime_env": {"env_vars": {**QUIET, **plugins()}}}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises many types, also plain Exception: "node timed out"
        if address is None:
            raise StartError(
                f"Ray did not start on this machine ({error}); check its load and free disk space, "
                "then run the same command again"
            ) from error
        raise InputError(f"--address {address}: cannot reach a Ray cluster: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def require_resources(
    jobs: Iterable[Job],
    resources: ResourcesConfig,
    growth: Growth = FIXED,
    observer: Observer | None = None,
) -> None:
    """Raises InputError if one of ``jobs`` needs more than the cluster can ever have.

    What an autoscaler may add counts. On a cluster without one, a node that is missing may still
    join: with an ``observer``, waits for it for NODES_WITHIN_S.
    """
    todo, began = list(jobs), time.monotonic()
    said = False
    while missing := requests.shortages(todo, resources, capacity.nodes()):
        if growth.scales:
            _require_types(todo, resources, growth)
            return
        left = NODES_WITHIN_S - (time.monotonic() - began)
        if observer is None or left <= 0:
            raise InputError("\n".join(map(str, missing)))
        if not said:
            observer.say(f"waiting {left / 60:.0f} min for a node: {_texts(missing)}")
            said = True
        observer.live({})
        time.sleep(1)


def _texts(missing: Iterable[requests.Shortage]) -> str:
    return "; ".join(shortage.text for shortage in missing)


def _require_types(jobs: list[Job], resources: ResourcesConfig, growth: Growth) -> None:
    """Raises InputError if no machine that the autoscaler may start can hold one of ``jobs``."""
    if growth.machines is None:
        return
    could_be = [*capacity.nodes(), *growth.machines]
    if never := requests.shortages(jobs, resources, could_be, "could have"):
        raise InputError("\n".join(map(str, never)))


def run_plan(
    todo: Mapping[str, Job],
    known: Mapping[str, Record],
    context: Context,
    options: RunOptions,
    locks: Locks,
    observer: Observer,
    functions: Mapping[str, JobFunction] | None = None,
) -> None:
    """Run ``todo`` (in plan order); ``known`` holds the records of finished jobs.

    Waits for a job that another driver has locked, and runs it if that driver dies or the job
    fails there. ``functions`` replace those of some kinds. Raises StudyStopped if the disk is full,
    StartError if Ray stops on this machine.
    """
    scheduler = Scheduler(todo, known, options.limits)
    run = _Run(scheduler, context, options, locks, observer, functions or {})
    try:
        run.until_done()
    finally:
        for attempt in run.running.values():
            locks.release(attempt.job.kind, attempt.job.key)


@dataclass(frozen=True)
class _Attempt:
    job: Job
    smaller: bool


class _Run:
    """One run of a plan.

    Only a few more jobs are submitted than can run at once, so that the driver's memory stays
    small with tens of thousands of cells and several drivers share what is left.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        context: Context,
        options: RunOptions,
        locks: Locks,
        observer: Observer,
        functions: Mapping[str, JobFunction],
    ) -> None:
        self.scheduler, self.context, self.options, self.locks = scheduler, context, options, locks
        self.observer = observer
        # If its node dies it starts again, empty.
        self.board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        # The process of a training or a search must end with it, or it keeps their actors alive.
        self.steer = ray.remote(max_calls=1)(run_job)
        self.task = task_function(run_job, options.resources)
        self.usual, self.smaller = ray.put(context), ray.put(replace(context, smaller=True))
        self.shared = ray.put(options), self.board, ray.put(dict(functions))
        self.running: dict[Any, _Attempt] = {}
        self.submitted: Counter[str] = Counter()
        self.elsewhere: dict[str, Job] = {}
        self.starting: dict[str, float] = {}
        self.cluster: Mapping[str, float] = {}
        self.grew = self.ticked = self.said = -math.inf
        self.failed = False

    def until_done(self) -> None:
        self._tell(self.scheduler.start())
        while not (self.options.fail_fast and self.failed):
            self._tick()
            self._submit_what_fits()
            if not self.running and not self.elsewhere:
                return
            # All outcomes first: none is recorded as a failure if Ray itself has stopped.
            jobs = {ref: self.running[ref].job for ref in self._finished()}
            records = {ref: outcome(ref, job, self.context) for ref, job in jobs.items()}
            for ref, record in records.items():
                attempt = self.running.pop(ref)
                self.submitted[group_of(attempt.job)] -= 1
                self._ended(attempt, record)

    def _tick(self) -> None:
        """Once a second: update the display, the cluster's size and the jobs of other drivers."""
        now = time.monotonic()
        if now - self.ticked < 1:
            return
        self.ticked = now
        before, self.cluster = self.cluster, ray.cluster_resources()
        if any(self.cluster.get(name, 0) > before.get(name, 0) for name in ("CPU", "GPU")):
            self.grew = now
        if self.options.growth.scales:
            self._say_what_is_missing(now)
        live: Mapping[str, Live] = {}
        with contextlib.suppress(RayError):  # progress may be late or lost
            live = ray.get(self.board.read.remote(), timeout=5)
        for key in [k for k in self.starting if k in live and live[k].total]:
            del self.starting[key]
        self.observer.live(live)
        for job in list(self.elsewhere.values()):
            if self.locks.take(job.kind, job.key):  # its holder finished, failed or died
                del self.elsewhere[job.key]
                self._start(job)

    def _finished(self) -> list[Any]:
        if not self.running:
            time.sleep(1)  # other drivers run all that is left
            return []
        refs = list(self.running)
        found, _ = ray.wait(refs, num_returns=1, timeout=1.0)
        if found:
            found, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return list(found)

    def _submit_what_fits(self) -> None:
        for group in ("fit", "search", "task"):
            while self.scheduler.waiting(group) and self.submitted[group] < self._room(group):
                job = self.scheduler.pop(group)
                if self.locks.take(job.kind, job.key):
                    self._start(job)
                else:
                    self.elsewhere[job.key] = job

    def _say_what_is_missing(self, now: float) -> None:
        """Say which node submitted jobs wait for, seldom, and when it is there."""
        jobs = (attempt.job for attempt in self.running.values())
        missing = requests.shortages(jobs, self.options.resources, capacity.nodes())
        if missing and now - self.said > SAY_EVERY_S:
            self.observer.say(f"waiting for the autoscaler: {_texts(missing)}")
            self.said = now
        elif not missing and self.said > -math.inf:
            cpus, gpus = (self.cluster.get(name, 0.0) for name in ("CPU", "GPU"))
            self.observer.say(f"the cluster has {cpus:g} CPU and {gpus:g} GPU now")
            self.said = -math.inf

    def _room(self, group: str) -> int:
        """How many jobs of a group may be submitted at the same time.

        Trainings and searches keep processes while they wait: as many as find workers, and some
        more where an autoscaler starts machines for them.
        """
        ask, growth = self.options.resources, self.options.growth
        workers = ask.least_train_workers
        train = workers * ask.cpus_per_worker, workers * ask.gpus_per_worker
        task = ask.cpus_per_task, ask.gpus_per_task
        if group == "fit":
            return max(1, growth.could_be(self.cluster, train, TRAININGS_AHEAD))
        if group == "search":
            could_be = growth.could_be(self.cluster, task)
            return max(1, could_be // self.options.trials_at_once())
        return self._room_of_tasks(train, task)

    def _room_of_tasks(self, train: tuple[float, float], task: tuple[float, float]) -> int:
        """None while a training looks for its workers, which start as a group (at most for HOLD_S),
        and beside trainings only as many as fit. Else twice as many as can run: none waits for the
        driver, and an autoscaling cluster sees the demand."""
        trainings, starting = self.submitted["fit"], len(self.starting)
        have = capacity.cpus_and_gpus([self.cluster])
        if not trainings:
            return 2 * how_many_fit(have, task) + 4
        scales, now = self.options.growth.scales, time.monotonic()
        if scales:  # of those that look for workers, only as many as the nodes of now could hold
            running = trainings - starting
            starting = min(starting, max(0, how_many_fit(have, train) - running))
            trainings = running + starting
        held = (
            now - max(began, self.grew if scales else began) for began in self.starting.values()
        )
        if starting and any(seconds < HOLD_S for seconds in held):
            return 0
        room = how_many_fit((have[0] - trainings * train[0], have[1] - trainings * train[1]), task)
        if scales:
            return max(0, room) + (0 if self.starting else TASKS_AHEAD)
        # A training that has waited for longer has no workers: its room is free.
        return max(starting, room)

    def _start(self, job: Job) -> None:
        """Run ``job``, which is locked, unless its last holder has finished it."""
        store = self.context.store
        if store.is_done(job.kind, job.key):
            self._end(job, base.stored_record(store, job.kind, job.key))
        else:
            self._submit(job)

    def _submit(self, job: Job, *, smaller: bool = False) -> None:
        resources, alone = self.options.resources, self.options.alone
        computes = group_of(job) == "task" or (alone and job.kind in FITS)
        task = self.task if computes else self.steer
        ref = task.options(**task_options(job, resources, alone=alone)).remote(
            job, self.smaller if smaller else self.usual, *self.shared
        )
        self.running[ref] = _Attempt(job, smaller)
        self.submitted[group_of(job)] += 1
        if job.kind in FITS and not alone:
            self.starting[job.key] = time.monotonic()

    def _ended(self, attempt: _Attempt, record: Record) -> None:
        job = attempt.job
        self.starting.pop(job.key, None)
        self.board.clear.remote(job.key)  # a worker that died cannot do it
        if record.reason.startswith(NO_SPACE):
            log_file = base.log_path(self.context.store, job)
            raise StudyStopped(f"{NO_SPACE}: {job.label} could not write (log: {log_file})")
        shrinks = job.kind in SHRINKABLE or (self.options.alone and job.kind in FITS)
        if record.reason.startswith(OUT_OF_MEMORY) and shrinks:
            if not attempt.smaller:
                self.observer.say(
                    f"{job.label}: {record.reason}; retrying with half the images per batch"
                )
                self._submit(job, smaller=True)
                return
            record = replace(
                record, reason=f"{record.reason} (also with half the images per batch)"
            )
        self._end(job, record)

    def _end(self, job: Job, record: Record) -> None:
        self.locks.release(job.kind, job.key)
        self._tell(self.scheduler.end(job, record))

    def _tell(self, ended: Iterable[tuple[Job, Record]]) -> None:
        for job, record in ended:
            self.failed |= record.status == "failed"
            self.observer.ended(job, record)
