"""Runs a plan on Ray: every job a task whose needs are object refs, so that Ray schedules."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from mgdm_ray.config import InputError, ResourcesConfig
from mgdm_ray.environment import QUIET, StartError, cores, plugins
from mgdm_ray.jobs import base
from mgdm_ray.jobs.base import Context, Outcome, Progress, TrainingTask
from mgdm_ray.plan import Job
from mgdm_ray.records import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Live:
    """How far a running job is."""

    label: str
    done: int
    total: int
    note: str


FITS = ("fit_denoiser", "fit_guide")
SAMPLINGS = ("generate", "encode", "decode")

OnRecord = Callable[[Job, Record], None]
OnLive = Callable[[Mapping[str, Live]], None]


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A Ray cluster for one study: one of our own on this machine, or an existing one.

    Our own listens on 127.0.0.1 only and, with ``environment.prepare``, asks for a token that
    nobody else knows. Raises InputError where the given address does not answer, StartError
    where a local Ray does not come up.
    """
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
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
    except (ConnectionError, ValueError, RuntimeError) as error:
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


def _run_job(job: Job, context: Context, limits: Limits, board: Any, *needs: Record) -> Record:
    """The body of a Ray task: a plain job with Ray's launchers put in."""
    _set_threads(limits.resources)
    reporter = _Reporter(board, job)
    reporter(0, 0, "started")

    def launch(task: TrainingTask, progress: Progress) -> Path:
        from mgdm_ray import training

        return training.launch(task, progress, limits.resources)

    def run_search(job: Job, context: Context, folder: Path) -> Outcome:
        from mgdm_ray import search

        return search.search(
            job,
            context,
            folder,
            resources=limits.resources,
            max_concurrent=limits.max_concurrent,
        )

    def spread(job: Job, context: Context, parts: Sequence[Sequence[range]]) -> None:
        _spread(job, context, parts, limits, board)

    share = limits.resources.gpus_per_task or limits.resources.cpus_per_task / cores()
    context = replace(
        context,
        progress=reporter,
        launch=launch,
        device=_device(),
        memory_share=min(1.0, share),
    )
    if limits.resources.sampling_workers > 1:
        context = replace(context, spread=spread)
    return base.run(job, needs, context, {"search": run_search})


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
    from mgdm_ray.jobs.sampling import sample_shards

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
    """Raises InputError where one of ``jobs`` asks for more than there is.

    A task or worker must fit on one node, all workers of a training on the whole cluster.
    """
    kinds = {job.kind for job in jobs}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asks: list[tuple[str, str, float, float]] = []
    for name, per_worker, per_task in (
        ("CPU", resources.cpus_per_worker, resources.cpus_per_task),
        ("GPU", resources.gpus_per_worker, resources.gpus_per_task),
    ):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        field = name.lower() + "s_per"
        if kinds & set(FITS):
            together = sum(node.get(name, 0.0) for node in nodes)
            asks.append((f"{field}_worker", name, per_worker, most))
            asks.append(("train_workers", name, resources.train_workers * per_worker, together))
        if kinds - set(FITS):
            asks.append((f"{field}_task", name, per_task, most))
    for place, name, amount, have in asks:
        if amount > have:
            where = "cluster" if place == "train_workers" else "largest node"
            raise InputError(
                f"resources.{place}: a job asks for {amount:g} {name}, but the {where} has "
                f"{have:g}; lower it (e.g. --set resources.{place}=...) or use a larger cluster"
            )


def run_plan(
    todo: Mapping[str, Job],
    known: Mapping[str, Record],
    context: Context,
    limits: Limits,
    on_record: OnRecord,
    on_live: OnLive,
    *,
    fail_fast: bool = False,
) -> None:
    """Run ``todo`` (in plan order); ``known`` holds the records of jobs that are finished.

    Calls ``on_record`` once per job as it ends and ``on_live`` about once a second.
    """
    board = ray.remote(num_cpus=0)(_Board).remote()
    task = ray.remote(_run_job)
    shared = ray.put(context), ray.put(limits)
    refs: dict[str, Any] = {}
    waiting: dict[Any, Job] = {}
    records = dict(known)

    def submit(job: Job) -> None:
        needs = [refs.get(need, known.get(need)) for need in dict.fromkeys(job.needs.values())]
        options = _task_options(job, limits.resources)
        retries = limits.resources.max_retries
        ref = task.options(**options, max_retries=retries, name=job.label).remote(
            job, *shared, board, *needs
        )
        refs[job.key], waiting[ref] = ref, job

    # Cells that need nothing would take every core or GPU before the workers of a fit, which come
    # as a group, can; and the fits are what most of the study waits for.
    unstarted = {job.key for job in todo.values() if job.kind in FITS}
    late = [job for job in todo.values() if unstarted and not job.needs and job.kind not in FITS]
    for job in todo.values():
        if job not in late:
            submit(job)
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
        live: Mapping[str, Live] = {}
        with contextlib.suppress(RayError):  # the picture of the progress may be late or lost
            live = ray.get(board.read.remote(), timeout=5)
        on_live(live)
        for ref in ready:
            job = waiting.pop(ref)
            unstarted.discard(job.key)
            board.clear.remote(job.key)  # here: a worker that died cannot
            records[job.key] = record = _outcome(ref, job, context, records)
            on_record(job, record)
            if fail_fast and record.status == "failed":
                return
        unstarted -= {key for key, row in live.items() if row.total}
        if late and not unstarted:
            for job in late:
                submit(job)
            late = []


def _outcome(ref: Any, job: Job, context: Context, records: Mapping[str, Record]) -> Record:
    """The job's record; a task that Ray could not run to its end is a failed record too."""
    try:
        record: Record = ray.get(ref)
        return record
    except RayError as error:
        # Ray passes the death of a worker on to all who need its result: name the root.
        known = (records.get(need) for need in job.needs.values())
        bad = next((need for need in known if need and need.status != "done"), None)
        if bad is not None:
            return base.held_up(job, bad)
        base.write_log(context.store, job, str(error))
        return base.failed(job, base.reason_of(error))
