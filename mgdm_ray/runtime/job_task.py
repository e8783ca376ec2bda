"""One job as a Ray task: device and threads, Ray's launchers, and progress on a board."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import LocalRayletDiedError, OutOfMemoryError, RayError, RayTaskError

from mgdm_ray.config import LimitsConfig, ResourcesConfig
from mgdm_ray.environment import StartError, cores, nvidia_hardware
from mgdm_ray.pipeline.job import FITS, SAMPLINGS, Job
from mgdm_ray.pipeline.tasks import base
from mgdm_ray.pipeline.tasks.base import (
    Context,
    JobError,
    JobFunction,
    Outcome,
    Progress,
    TrainingTask,
)
from mgdm_ray.runtime.capacity import FIXED, Growth
from mgdm_ray.storage.records import WORKER_DIED, Record


@dataclass(frozen=True)
class RunOptions:
    """What all jobs of a run share."""

    resources: ResourcesConfig
    max_concurrent: int | None
    """Trials of one search that run at the same time; None: as many as the cluster holds."""
    limits: LimitsConfig | None = None
    """Limits that refuse cells."""
    fail_fast: bool = False
    growth: Growth = FIXED
    alone: bool = False
    """A training runs in its job's process, see ADR 128."""

    def trials_at_once(self) -> int:
        """Trials of one search at the same time, on the cluster as it is now."""
        if self.max_concurrent is not None:
            return self.max_concurrent
        ask = self.resources.cpus_per_task, self.resources.gpus_per_task
        return max(1, self.growth.could_be(ray.cluster_resources(), ask))


@dataclass(frozen=True)
class Live:
    """Progress of a running job."""

    label: str
    done: int
    total: int
    note: str


class Board:
    """The actor that holds the progress of all running jobs, by key."""

    def __init__(self) -> None:
        self.rows: dict[str, Live] = {}

    def write(self, key: str, live: Live) -> None:
        self.rows[key] = live

    def clear(self, key: str) -> None:
        self.rows.pop(key, None)

    def read(self) -> dict[str, Live]:
        return self.rows


class _Reporter:
    """A job's Progress: writes to the board, at most four times a second."""

    def __init__(self, board: Any, job: Job) -> None:
        self.board, self.key, self.label = board, job.key, job.label
        self.last = 0.0

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self.last > 0.25 or done >= total:
            self.last = now
            self.board.write.remote(self.key, Live(self.label, done, total, note))


def task_options(job: Job, resources: ResourcesConfig, *, alone: bool = False) -> dict[str, Any]:
    """Ray's options; a job that only waits for its own workers requests no resources."""
    fits = job.kind in FITS
    waits = job.kind == "search" or (fits and not alone)
    waits |= job.kind in SAMPLINGS and resources.sampling_workers > 1
    return {
        "num_cpus": 0 if waits else resources.cpus_per_worker if fits else resources.cpus_per_task,
        "num_gpus": 0 if waits or fits else resources.gpus_per_task,
        "max_retries": resources.max_retries,
        "name": job.label,
    }


def task_function(body: Callable[..., Any], resources: ResourcesConfig) -> Any:
    """``body`` as a Ray task, in a process of its own if it may get a GPU.

    CUDA keeps the GPU on which a process opened it, while Ray hands a reused process another one
    (ray#47767). Without GPUs the imports of seconds are kept.
    """
    return ray.remote(max_calls=1)(body) if resources.gpus_per_task else ray.remote(body)


def run_job(
    job: Job,
    context: Context,
    options: RunOptions,
    board: Any,
    functions: Mapping[str, JobFunction],
) -> Record:
    """The body of the task. ``functions`` replace those of some kinds."""
    resources = options.resources
    _set_threads(resources)
    reporter = _Reporter(board, job)
    reporter(0, 0, "started")

    def launch(task: TrainingTask, progress: Progress) -> Path:
        if options.alone:
            return _train_alone(task, progress, resources, smaller=context.smaller)
        from mgdm_ray.runtime import training

        return training.launch(task, progress, resources)

    def run_search(job: Job, context: Context, folder: Path) -> Outcome:
        from mgdm_ray.runtime import search

        return search.search(
            job, context, folder, resources=resources, max_concurrent=options.trials_at_once
        )

    def spread(job: Job, context: Context, parts: Sequence[Sequence[range]]) -> None:
        _spread(job, context, parts, resources, board)

    share = resources.gpus_per_task or resources.cpus_per_task / cores()
    context = replace(
        context,
        progress=reporter,
        launch=launch,
        spread=spread if resources.sampling_workers > 1 else context.spread,
        device=device_here(),
        memory_share=min(1.0, share) / (2 if context.smaller else 1),
    )
    return base.run(job, context, {"search": run_search, **functions})


def _train_alone(
    task: TrainingTask, progress: Progress, resources: ResourcesConfig, *, smaller: bool
) -> Path:
    """As one worker of Ray Train would, in this process."""
    import torch

    from mgdm_ray.diffusion.parallel import Workers
    from mgdm_ray.pipeline.tasks.fit import in_smaller_parts, train_here

    def run(micro_batch: int | None) -> Path:
        workers = Workers(
            micro_batch=micro_batch,
            activation_checkpointing=resources.activation_checkpointing,
            compile=resources.compile_training,
        )
        return train_here(task, progress, workers)

    first, threads = resources.micro_batch, torch.get_num_threads()
    if smaller:  # the last process was killed for memory
        first = max(1, min(first or task.config.batch_size, task.config.batch_size) // 2)
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    try:
        return in_smaller_parts(run, task, progress, first)
    finally:
        torch.set_num_threads(threads)


def _set_threads(resources: ResourcesConfig) -> None:
    # Ray gives each process one OpenMP thread by default.
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(resources.cpus_per_task)))


def device_here() -> str:
    """``cuda`` where Ray gave this process a GPU; ``cpu`` if that GPU exists in Ray's books only.

    Raises JobError if this machine has NVIDIA hardware that torch cannot use.
    """
    if not ray.get_gpu_ids():
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if nvidia_hardware():
        raise JobError(
            f"Ray gave this job a GPU that torch {torch.__version__} cannot use: install the "
            f"driver that CUDA {torch.version.cuda} needs (check: python -m mgdm_ray.doctor)"
        )
    return "cpu"


def _spread(
    job: Job,
    context: Context,
    parts: Sequence[Sequence[range]],
    resources: ResourcesConfig,
    board: Any,
) -> None:
    """Run each part of a sampling job as a task of its own. Raises the error of the first failure.

    A part whose worker died starts again and skips the shards that exist.
    """
    task = task_function(_sample_part, resources)
    plain = replace(context, progress=base.silent, launch=None, spread=None)
    own = [
        replace(job, key=f"{job.key} {name}", detail=f"{job.detail} {name}".strip())
        for name in (f"part {i} of {len(parts)}" for i in range(1, len(parts) + 1))
    ]
    refs = [
        task.options(
            name=shown.label,
            num_cpus=resources.cpus_per_task,
            num_gpus=resources.gpus_per_task,
            max_retries=resources.max_retries,
        ).remote(job, plain, part, shown, resources, board)
        for shown, part in zip(own, parts, strict=True)
    ]
    try:
        ray.get(refs)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    finally:
        for ref, shown in zip(refs, own, strict=True):
            ray.cancel(ref)  # has no effect on finished ones
            board.clear.remote(shown.key)


def _sample_part(
    job: Job,
    context: Context,
    shards: Sequence[range],
    shown: Job,
    resources: ResourcesConfig,
    board: Any,
) -> None:
    """The body of such a task; ``shown`` is the job as the board names the part."""
    _set_threads(resources)
    from mgdm_ray.pipeline.tasks.sampling import sample_shards

    context = replace(context, progress=_Reporter(board, shown), device=device_here())
    context.set_up_device(job.kind)
    sample_shards(job, context, shards)


def outcome(ref: Any, job: Job, context: Context) -> Record:
    """The record of a finished task; a failed one if Ray could not run the task to its end.

    Raises StartError if Ray itself has stopped on this machine.
    """
    try:
        record: Record = ray.get(ref)
        return record
    except LocalRayletDiedError as error:
        raise StartError(
            "Ray stopped on this machine: finished jobs are kept; run the same command again"
        ) from error
    except RayError as error:
        base.write_log(context.store, job, str(error))
        reason = base.reason_of(error)
        # Ray's other errors come from this engine's code around the job or from a lost process.
        if not isinstance(error, (OutOfMemoryError, RayTaskError)):
            reason = f"{WORKER_DIED}: {reason}"
        return base.failed(job, reason[:500])
