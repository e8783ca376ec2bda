"""Train a denoiser or a guide on Ray Train, on one worker or many."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointConsistencyMode,
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.train.torch.config import _TorchBackend

from mgdm_ray.config import ResourcesConfig
from mgdm_ray.pipeline.tasks.base import JobError, Progress, TrainingTask, reason_of
from mgdm_ray.pipeline.tasks.fit import in_smaller_parts
from mgdm_ray.runtime.job_task import device_here
from mgdm_ray.storage.records import OUT_OF_MEMORY, WORKER_DIED
from mgdm_ray.storage.remote.objects import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgdm_ray.diffusion.parallel import Workers
    from mgdm_ray.diffusion.train_state import TrainState


START_WITHIN_S, STARTS = 30, 1000
"""How long elastic training waits for the workers it requested, and how often."""
RESIZE_EVERY_S = 60.0
"""How often elastic training looks for more machines, to which it resumes from a checkpoint."""


def launch(task: TrainingTask, progress: Progress, resources: ResourcesConfig) -> Path:
    """Train on Ray Train and return the folder of the final state (see ``TrainState.save``).

    The run is named by the job's key and its storage outlives a crash: the same call continues
    from the last checkpoint. Short of memory: ``in_smaller_parts``. Raises JobError with the reason
    if training ends without a result.
    """

    def run(micro_batch: int | None) -> Path:
        return _launch(task, progress, resources.model_copy(update={"micro_batch": micro_batch}))

    least = resources.least_train_workers
    return in_smaller_parts(run, task, progress, resources.micro_batch, least)


def _launch(task: TrainingTask, progress: Progress, resources: ResourcesConfig) -> Path:
    """As ``launch``, without a retry after MemoryError."""
    elastic = resources.least_train_workers < resources.most_train_workers
    try:
        with _starting_within(START_WITHIN_S) if elastic else nullcontext():
            result = _trainer(task, progress, resources, STARTS if elastic else 1).fit()
    except (TrainingFailedError, RayActorError) as error:
        if cause := _out_of_memory(error):
            raise MemoryError(cause.removeprefix(f"{OUT_OF_MEMORY}: ")) from error
        if _is_death(error):
            raise JobError(f"{WORKER_DIED}: {error}") from error
        raise
    if result.return_value and result.return_value.get("error"):
        raise JobError(result.return_value["error"])
    if result.checkpoint is None:
        raise JobError("training ended without a checkpoint")
    if is_url(task.storage):
        return Path(result.checkpoint.to_directory(str(task.work / "final")))
    return Path(result.checkpoint.path)


def _trainer(
    task: TrainingTask, progress: Progress, resources: ResourcesConfig, starts: int
) -> TorchTrainer:
    path, file_system = task.store.ray_storage(task.kind, task.key)
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return TorchTrainer(
        _worker,
        train_loop_config={"task": task, "progress": progress, "resources": resources},
        torch_config=_BackendOfDevice(),
        scaling_config=ScalingConfig(
            num_workers=resources.train_workers,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in wanted.items() if amount},
        ),
        run_config=RunConfig(
            name=task.key,
            storage_path=path,
            storage_filesystem=file_system,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            # By default a deterministic bug is retried without end.
            failure_config=FailureConfig(
                max_failures=resources.max_retries, controller_failure_limit=starts
            ),
        ),
    )


class _ChooseBackend(_TorchBackend):  # type: ignore[misc]
    """NCCL where all workers have a GPU that torch can use, else gloo."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        devices = set(worker_group.execute(device_here))
        backend = "nccl" if devices == {"cuda"} else "gloo"
        super().on_start(worker_group, replace(backend_config, backend=backend))


class _BackendOfDevice(TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[_ChooseBackend]:
        return _ChooseBackend


@contextmanager
def _starting_within(seconds: int) -> Iterator[None]:
    """Make Ray Train give up a start that takes longer and count the machines again.

    With ``environment.QUIET`` it would wait without end for machines that were lost.
    """
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    before = os.environ.get(name)
    os.environ[name] = str(seconds)
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({name: before} if before is not None else {})


def _out_of_memory(error: Exception) -> str:
    """The error of a worker that had too little memory; empty if none had.

    The others then fail as well, in an exchange with one that left.
    """
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    reasons = [reason_of(getattr(failure, "_base_exc", failure)) for failure in failures]
    return next((reason for reason in reasons if reason.startswith(OUT_OF_MEMORY)), "")


def _is_death(error: Exception) -> bool:
    """Whether processes or machines died too often, and not our code failed."""
    if isinstance(error, WorkerGroupError):
        return all(isinstance(e, RayActorError) for e in error.worker_failures.values())
    if isinstance(error, ControllerError):
        return isinstance(error.controller_failure, RayActorError)
    return isinstance(error, RayActorError)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """The loop of every worker: resume, train, report checkpoints."""
    # Imported here: the controller process does not need MONAI.
    from mgdm_ray.diffusion.train import Hooks, NonFiniteLoss
    from mgdm_ray.pipeline.tasks.fit import train_model

    task: TrainingTask = config["task"]
    progress: Progress = config["progress"]
    workers = _workers(config["resources"])

    def on_step(step: int, loss: float) -> None:
        if workers.rank == 0:
            progress(step, task.config.steps, f"loss {loss:.3f}")

    def on_checkpoint(state: TrainState) -> None:
        _report(state, workers)

    checkpoint = ray.train.get_checkpoint()
    try:
        # A local copy if the checkpoint is in an object store.
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            hooks = Hooks(on_step, on_checkpoint, _will_be_preempted)
            train_model(task, hooks, workers, Path(folder) if folder else None)
    except NonFiniteLoss as error:
        # Returned, not raised: a retry would end the same.
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


def _workers(resources: ResourcesConfig) -> Workers:
    import torch

    from mgdm_ray.diffusion.parallel import Workers

    context = ray.train.get_context()
    several = context.get_world_size() > 1
    # Ray names a CUDA device for any GPU in its books.
    device = str(get_device()) if device_here() == "cuda" else "cpu"
    wrap = partial(
        prepare_model,
        move_to_device=torch.device(device),
        # Gradients are kept once, in the buffers that the workers exchange.
        parallel_strategy_kwargs={"gradient_as_bucket_view": True},
    )
    return Workers(
        context.get_world_rank(),
        context.get_world_size(),
        device,
        micro_batch=resources.micro_batch,
        activation_checkpointing=resources.activation_checkpointing,
        wrap=wrap if several and resources.sharding == "none" else None,
        sharded=several and resources.sharding == "fsdp",
        compile=resources.compile_training,
    )


def _will_be_preempted() -> bool:
    """Whether Ray knows that a machine of this training will be preempted.

    Waits for all workers; all get the same answer.
    """
    return ray.train.get_preemption_info() is not None


def _report(state: TrainState, workers: Workers) -> None:
    """Every worker reports; the first one with the files, including the history."""
    metrics = {"step": state.step}
    first = workers.rank == 0
    tensors = state.tensors(keep=first) if workers.sharded or first else None
    if workers.rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder), tensors)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
    # The report only queues it: until it is committed a worker that dies would start over.
    ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
