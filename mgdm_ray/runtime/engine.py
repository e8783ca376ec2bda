"""Runs a plan on Ray: every job is a task, given to Ray once its needs are in the store."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from mgdm_ray.config import InputError, LimitsConfig, ResourcesConfig, StudyConfig
from mgdm_ray.environment import QUIET, StartError, StudyStopped, cores, plugins
from mgdm_ray.pipeline.cost_model import shortages
from mgdm_ray.pipeline.plan import CELLS, FITS, SAMPLINGS, Job
from mgdm_ray.pipeline.scheduler import Scheduler, group_of
from mgdm_ray.pipeline.tasks import base
from mgdm_ray.pipeline.tasks.base import Context, JobFunction, Outcome, Progress, TrainingTask
from mgdm_ray.storage.locks import Locks
from mgdm_ray.storage.records import NO_SPACE, OUT_OF_MEMORY, WORKER_DIED, Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Live:
    """How far a running job is."""

    label: str
    done: int
    total: int
    note: str


SHRINKABLE = (*SAMPLINGS, *CELLS)
"""Kinds that can work on fewer images at a time."""
HOLD_S = 60.0
"""How long other tasks wait for a training to find its workers."""

OnRecord = Callable[[Job, Record], None]
OnLive = Callable[[Mapping[str, Live]], None]


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A Ray cluster for one study: one of our own on this machine, or an existing one.

    Our own listens on 127.0.0.1 only and, with ``environment.prepare``, asks for a token that
    nobody else knows. Raises InputError where the given address does not answer, StartError
    where a local Ray does not come up.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # "local": without it Ray would join any cluster that was started on this machine.
        options |= {"address": "local", "include_dashboard": False}
        # One computing thread per task: two busy processes of two threads each on two cores run
        # several times slower than two of one.
        options["num_cpus"] = cores()
    else:
        # A local cluster's workers inherit this environment; those of another must be told.
        options |= {"address": address, "runtime_env": {"env_vars": {**QUIET, **plugins()}}}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises many kinds, and plain ones: "node timed out"
        if address is None:
            raise StartError(
                f"a local Ray did not start ({error}); is the machine overloaded or its disk full? "
                "The same command tries again"
            ) from error
        raise InputError(f"--address {address}: no Ray cluster answers there: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


class _Board:
    """Where running jobs write how far they are."""

    def __init__(self) -> None:
        self.rows: dict[str, Live] = {}

    def write(self, key: str, live: Live) -> None:
        self.rows[key] = live

    def clear(self, key: str) -> None:
        self.rows.pop(key, None)

    def read(self) -> dict[str, Live]:
        return self.rows


class _Reporter:
    """A job's Progress: tells the board, at most four times a second."""

    def __init__(self, board: Any, job: Job) -> None:
        self.board, self.key, self.label = board, job.key, job.label
        self.last = 0.0

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self.last > 0.25 or done >= total:
            self.last = now
            self.board.write.remote(self.key, Live(self.label, done, total, note))


@dataclass(frozen=True)
class Limits:
    """What the whole run shares."""

    resources: ResourcesConfig
    max_concurrent: int
    """Trials of one search at once."""
    gates: LimitsConfig | None = None
    """Over which cells are refused."""


def _run_job(
    job: Job, context: Context, limits: Limits, board: Any, functions: Mapping[str, JobFunction]
) -> Record:
    """The body of a Ray task: a plain job with Ray's launchers put in."""
    _set_threads(limits.resources)
    reporter = _Reporter(board, job)
    reporter(0, 0, "started")

    def launch(task: TrainingTask, progress: Progress) -> Path:
        from mgdm_ray.runtime import training

        return training.launch(task, progress, limits.resources)

    def run_search(job: Job, context: Context, folder: Path) -> Outcome:
        from mgdm_ray.runtime import search

        return search.search(
            job, context, folder, resources=limits.resources, max_concurrent=limits.max_concurrent
        )

    def spread(job: Job, context: Context, parts: Sequence[Sequence[range]]) -> None:
        _spread(job, context, parts, limits, board)

    share = limits.resources.gpus_per_task or limits.resources.cpus_per_task / cores()
    context = replace(
        context,
        progress=reporter,
        launch=launch,
        device=_device(),
        memory_share=min(1.0, share) / (2 if context.smaller else 1),
    )
    if limits.resources.sampling_workers > 1:
        context = replace(context, spread=spread)
    return base.run(job, context, {"search": run_search, **functions})


def _set_threads(resources: ResourcesConfig) -> None:
    # Ray gives each process one OpenMP thread unless it is told otherwise.
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(resources.cpus_per_task)))


def _device() -> str:
    return "cuda" if ray.get_gpu_ids() else "cpu"


def _spread(
    job: Job, context: Context, parts: Sequence[Sequence[range]], limits: Limits, board: Any
) -> None:
    """Each part of a sampling job in a task of its own. Raises what the first failed one raised.

    A part whose worker died starts again, and goes on after the shards that are there.
    """
    resources = limits.resources
    task = ray.remote(_sample_part)
    plain = replace(context, progress=base.silent, launch=None, spread=None)
    names = [f"part {i} of {len(parts)}" for i in range(1, len(parts) + 1)]
    refs = [
        task.options(
            name=f"{job.label} {name}",
            num_cpus=resources.cpus_per_task,
            num_gpus=resources.gpus_per_task,
            max_retries=resources.max_retries,
        ).remote(job, plain, part, name, limits, board)
        for name, part in zip(names, parts, strict=True)
    ]
    try:
        ray.get(refs)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    finally:
        for ref in refs:
            ray.cancel(ref)  # of finished ones nothing is left to cancel
        for name in names:
            board.clear.remote(f"{job.key} {name}")


def _sample_part(
    job: Job, context: Context, shards: Sequence[range], name: str, limits: Limits, board: Any
) -> None:
    """The body of a Ray task: some shards of a sampling job."""
    _set_threads(limits.resources)
    from mgdm_ray.pipeline.tasks.sampling import sample_shards

    reporter = _Reporter(
        board, replace(job, key=f"{job.key} {name}", detail=f"{job.detail} {name}".strip())
    )
    sample_shards(job, replace(context, progress=reporter, device=_device()), shards)


def _task_options(job: Job, resources: ResourcesConfig) -> dict[str, Any]:
    """Jobs that only wait for workers of their own ask for nothing themselves."""
    waits = job.kind == "search" or job.kind in FITS
    if waits or (job.kind in SAMPLINGS and resources.sampling_workers > 1):
        return {"num_cpus": 0, "num_gpus": 0}
    return {"num_cpus": resources.cpus_per_task, "num_gpus": resources.gpus_per_task}


def require_resources(jobs: Iterable[Job], resources: ResourcesConfig) -> None:
    """Raises InputError where one of ``jobs`` asks for more than the cluster has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    missing = shortages(jobs, resources, nodes)
    if missing:
        raise InputError("\n".join(missing))


def trials_at_once(config: StudyConfig) -> int:
    """How many trials of one search run at the same time on the cluster as it is now."""
    if config.deterministic:
        return 1  # what a sampler knows when it is asked depends on which trials have ended
    if config.search and config.search.max_concurrent:
        return config.search.max_concurrent
    have: dict[str, float] = ray.cluster_resources()
    resources = config.resources
    fit = have.get("CPU", 1) / resources.cpus_per_task
    if resources.gpus_per_task:
        fit = min(fit, have.get("GPU", 0) / resources.gpus_per_task)
    return max(1, int(fit))


def run_plan(
    todo: Mapping[str, Job],
    known: Mapping[str, Record],
    context: Context,
    limits: Limits,
    locks: Locks,
    on_record: OnRecord,
    on_live: OnLive,
    *,
    fail_fast: bool = False,
    functions: Mapping[str, JobFunction] | None = None,
) -> None:
    """Run ``todo`` (in plan order); ``known`` holds the records of jobs that are finished.

    Calls ``on_record`` once per job as it ends and ``on_live`` about once a second. A job that
    another driver has claimed is waited for, and done here if that one dies or fails.
    ``functions`` replace those of some kinds. Raises StudyStopped where the disk is full.
    """
    scheduler = Scheduler(todo, known, limits.gates)
    run = _Run(scheduler, context, limits, locks, on_record, on_live, functions or {})
    try:
        run.until_done(fail_fast)
    finally:
        for attempt in run.running.values():
            locks.release(attempt.job.kind, attempt.job.key)


@dataclass(frozen=True)
class _Attempt:
    job: Job
    smaller: bool


class _Run:
    """One run of a plan. The driver gives a job to Ray once its needs are there.

    Few more jobs are in Ray's hands than can compute at once: with tens of thousands of cells the
    driver's memory stays small, and several drivers share what is left.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        context: Context,
        limits: Limits,
        locks: Locks,
        on_record: OnRecord,
        on_live: OnLive,
        functions: Mapping[str, JobFunction],
    ) -> None:
        self.scheduler, self.context, self.limits, self.locks = scheduler, context, limits, locks
        self.on_record, self.on_live = on_record, on_live
        # It may be on a node that dies: what it shows is not worth more than a new start.
        self.board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        # A process that has steered a training or a search keeps their actors alive: it ends.
        self.steer, self.task = ray.remote(max_calls=1)(_run_job), ray.remote(_run_job)
        self.usual, self.smaller = ray.put(context), ray.put(replace(context, smaller=True))
        self.shared = ray.put(limits), self.board, ray.put(dict(functions))
        self.running: dict[Any, _Attempt] = {}
        self.in_hand: Counter[str] = Counter()
        self.elsewhere: dict[str, Job] = {}
        self.starting: dict[str, float] = {}
        self.cluster: Mapping[str, float] = {}
        self.ticked = -math.inf
        self.failed = False

    def until_done(self, fail_fast: bool) -> None:
        self._tell(self.scheduler.start())
        while not (fail_fast and self.failed):
            self._tick()
            self._submit_what_fits()
            if not self.running and not self.elsewhere:
                return
            for ref in self._finished():
                attempt = self.running.pop(ref)
                self.in_hand[group_of(attempt.job)] -= 1
                self._ended(attempt, _outcome(ref, attempt.job, self.context))

    def _tick(self) -> None:
        """Once a second: the display, the size of the cluster, what other drivers came to."""
        now = time.monotonic()
        if now - self.ticked < 1:
            return
        self.ticked = now
        self.cluster = ray.cluster_resources()
        live: Mapping[str, Live] = {}
        with contextlib.suppress(RayError):  # the picture of the progress may be late or lost
            live = ray.get(self.board.read.remote(), timeout=5)
        for key in [k for k in self.starting if k in live and live[k].total]:
            del self.starting[key]
        self.on_live(live)
        for job in list(self.elsewhere.values()):
            if self.locks.take(job.kind, job.key):  # its holder finished it, failed or died
                del self.elsewhere[job.key]
                self._start(job)

    def _finished(self) -> list[Any]:
        if not self.running:
            time.sleep(1)  # all that is left is computed by other drivers
            return []
        refs = list(self.running)
        found, _ = ray.wait(refs, num_returns=1, timeout=1.0)
        if found:
            found, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return list(found)

    def _submit_what_fits(self) -> None:
        for group in ("fit", "search", "task"):
            while self.scheduler.waiting(group) and self.in_hand[group] < self._room(group):
                job = self.scheduler.pop(group)
                if self.locks.take(job.kind, job.key):
                    self._start(job)
                else:
                    self.elsewhere[job.key] = job

    def _room(self, group: str) -> int:
        """How many jobs of a group to have in Ray's hands.

        As many trainings and searches as find workers, for each costs processes while it waits.
        The workers of a training come as a group, and tasks would take every core or GPU before
        they can: none starts while a training looks for its workers (but one that finds no room
        for long must not stop all the rest), and beside trainings only as many as fit. Otherwise
        twice as many as can run, so that none waits for the driver, and a cluster that grows with
        demand sees some.
        """
        ask, trainings = self.limits.resources, self.in_hand["fit"]
        cpus, gpus = self.cluster.get("CPU", 0.0), self.cluster.get("GPU", 0.0)
        workers = ask.least_train_workers
        train = workers * ask.cpus_per_worker, workers * ask.gpus_per_worker
        task = ask.cpus_per_task, ask.gpus_per_task
        if group == "fit":
            return max(1, _fit((cpus, gpus), train))
        if group == "search":
            return max(1, _fit((cpus, gpus), task) // self.limits.max_concurrent)
        now = time.monotonic()
        if any(now - began < HOLD_S for began in self.starting.values()):
            return 0
        if not trainings:
            return 2 * _fit((cpus, gpus), task) + 4
        free = cpus - trainings * train[0], gpus - trainings * train[1]
        # A training that has waited for too long has no workers: its room is free.
        return max(len(self.starting), _fit(free, task))

    def _start(self, job: Job) -> None:
        """``job`` is claimed: compute it, unless its last holder has done so."""
        store = self.context.store
        if store.is_done(job.kind, job.key):
            self._came_to(job, base.stored_record(store, job.kind, job.key))
        else:
            self._submit(job)

    def _submit(self, job: Job, *, smaller: bool = False) -> None:
        task = self.task if group_of(job) == "task" else self.steer
        ref = task.options(
            **_task_options(job, self.limits.resources),
            max_retries=self.limits.resources.max_retries,
            name=job.label,
        ).remote(job, self.smaller if smaller else self.usual, *self.shared)
        self.running[ref] = _Attempt(job, smaller)
        self.in_hand[group_of(job)] += 1
        if job.kind in FITS:
            self.starting[job.key] = time.monotonic()

    def _ended(self, attempt: _Attempt, record: Record) -> None:
        job = attempt.job
        self.starting.pop(job.key, None)
        self.board.clear.remote(job.key)  # here: a worker that died cannot
        if record.reason.startswith(NO_SPACE):
            log_file = base.log_path(self.context.store, job)
            raise StudyStopped(f"{NO_SPACE}: {job.label} could not write (log: {log_file})")
        if record.reason.startswith(OUT_OF_MEMORY) and job.kind in SHRINKABLE:
            if not attempt.smaller:
                log.warning("%s: %s; once more with half the images", job.label, record.reason)
                self._submit(job, smaller=True)
                return
            record = replace(record, reason=f"{record.reason} (with half the images at a time too)")
        self._came_to(job, record)

    def _came_to(self, job: Job, record: Record) -> None:
        self.locks.release(job.kind, job.key)
        self._tell(self.scheduler.end(job, record))

    def _tell(self, ended: Iterable[tuple[Job, Record]]) -> None:
        for job, record in ended:
            self.failed |= record.status == "failed"
            self.on_record(job, record)


def _fit(have: tuple[float, float], ask: tuple[float, float]) -> int:
    """How often ``ask`` (CPUs, GPUs) fits into ``have``."""
    return int(min(h / a for h, a in zip(have, ask, strict=True) if a))


def _outcome(ref: Any, job: Job, context: Context) -> Record:
    """The job's record; a task that Ray could not run to its end is a failed record too."""
    try:
        record: Record = ray.get(ref)
        return record
    except RayError as error:
        base.write_log(context.store, job, str(error))
        reason = base.reason_of(error)
        # Ray's other errors are of our own code around the job, or of a process that is gone.
        if not isinstance(error, (OutOfMemoryError, RayTaskError)):
            reason = f"{WORKER_DIED}: {reason}"
        return base.failed(job, reason[:500])
