"""Ray Train: one launcher for denoiser and guide, on one worker or many."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
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

from mgdm_ray.config import ResourcesConfig
from mgdm_ray.pipeline.tasks.base import JobError, Progress, TrainingTask, training_config
from mgdm_ray.storage.records import WORKER_DIED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgdm_ray.diffusion.parallel import Workers
    from mgdm_ray.diffusion.train import TrainState


START_WITHIN_S, STARTS = 30, 1000
"""How long elastic training waits for the workers it counted on, and how often."""
RESIZE_EVERY_S = 60.0
"""How often elastic training looks for more machines; to take them it goes back to its last
checkpoint."""


def launch(task: TrainingTask, progress: Progress, resources: ResourcesConfig) -> Path:
    """Train on Ray and return the folder of the final state (what ``TrainState.save`` wrote).

    The run's name is the job's key and its storage outlives a crash, so the same call after any
    kind of death goes on from the last checkpoint. Raises JobError where training ends without
    a result, with the reason.
    """
    elastic = resources.least_train_workers < resources.most_train_workers
    path, file_system = task.store.ray_storage(task.kind, task.key)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": asdict(task), "progress": progress, "resources": resources},
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.train_workers,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=_per_worker(resources),
        ),
        run_config=RunConfig(
            name=task.key,
            storage_path=path,
            storage_filesystem=file_system,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            # A deterministic bug would be retried for ever by default.
            failure_config=FailureConfig(
                max_failures=resources.max_retries,
                controller_failure_limit=STARTS if elastic else 1,
            ),
        ),
    )
    try:
        with _starting_within(START_WITHIN_S) if elastic else nullcontext():
            result = trainer.fit()
    except (TrainingFailedError, RayActorError) as error:
        if _is_death(error):
            raise JobError(f"{WORKER_DIED}: {error}") from error
        raise
    if result.return_value and result.return_value.get("error"):
        raise JobError(result.return_value["error"])
    if result.checkpoint is None:
        raise JobError("training ended without a checkpoint")
    if file_system is None:
        return Path(result.checkpoint.path)
    return Path(result.checkpoint.to_directory(str(task.work / "final")))


@contextmanager
def _starting_within(seconds: int) -> Iterator[None]:
    """Ray Train gives up a start that takes longer, and counts the machines again.

    The ones it counted on may just have been lost, and by default of ours it waits for ever.
    """
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    before = os.environ.get(name)
    os.environ[name] = str(seconds)
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({name: before} if before is not None else {})


def _is_death(error: Exception) -> bool:
    """Whether processes or machines went, more often than allowed, rather than our code failed."""
    if isinstance(error, WorkerGroupError):
        return all(isinstance(e, RayActorError) for e in error.worker_failures.values())
    if isinstance(error, ControllerError):
        return isinstance(error.controller_failure, RayActorError)
    return isinstance(error, RayActorError)


def _per_worker(resources: ResourcesConfig) -> dict[str, float]:
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {name: amount for name, amount in wanted.items() if amount}


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker runs: resume, train, report checkpoints."""
    # Only here: the controller process, which runs none of this, must not pay for MONAI.
    from mgdm_ray.diffusion.parallel import Workers
    from mgdm_ray.diffusion.train import NonFiniteLoss
    from mgdm_ray.pipeline.tasks.fit import train_model

    task = TrainingTask(**config["task"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    steps = training_config(task).steps
    progress: Progress = config["progress"]

    def on_step(step: int, loss: float) -> None:
        if rank == 0:
            progress(step, steps, f"loss {loss:.3f}")

    def on_checkpoint(state: TrainState, _history: object) -> None:
        _report(state, workers)

    resources: ResourcesConfig = config["resources"]
    workers = Workers(
        rank,
        world_size,
        micro_batch=resources.micro_batch,
        activation_checkpointing=resources.activation_checkpointing,
        wrap=prepare_model if world_size > 1 and resources.sharding == "none" else None,
        sharded=resources.sharding == "fsdp" and world_size > 1,
    )
    checkpoint = ray.train.get_checkpoint()
    try:
        # A copy, for as long as it is needed, where the checkpoint is in an object store.
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            train_model(
                task,
                folder_for_resume=Path(folder) if folder else None,
                workers=workers,
                device=str(get_device()),
                on_step=on_step,
                on_checkpoint=on_checkpoint,
                must_stop=_will_be_taken_away,
            )
    except NonFiniteLoss as error:
        # Returned, not raised: it would be the same again at every retry.
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


def _will_be_taken_away() -> bool:
    """Whether a machine of this training gets taken back soon, as far as Ray has been told.

    Waits for all workers, and all get the same answer.
    """
    return ray.train.get_preemption_info() is not None


def _report(state: TrainState, workers: Workers) -> None:
    """Every worker reports; the first one brings the files, which hold the history too."""
    metrics = {"step": state.step}
    tensors = state.tensors() if workers.sharded or workers.rank == 0 else None
    if workers.rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder), tensors)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
    # The report only queues it: a worker that died before the controller looked would start over.
    ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
