"""Jobs ``fit_denoiser`` and ``fit_guide``.

The process mostly waits for the launcher's workers and imports MONAI only where it needs it.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from mgdm_ray.config import DenoiserConfig, GuideConfig
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import data_source, to_tensor
from mgdm_ray.data.pixels import to_pixels
from mgdm_ray.diffusion import STATE_FILE, TENSORS_FILE
from mgdm_ray.evaluation.chance import chance_limit
from mgdm_ray.pipeline.tasks.base import (
    ACCURACY_FILE,
    WEIGHTS,
    Context,
    Outcome,
    Progress,
    TrainingTask,
    info_of,
    open_split,
    reason_of,
    save_json,
)
from mgdm_ray.pipeline.tasks.images import draw_grid
from mgdm_ray.storage.files import sync
from mgdm_ray.storage.records import OUT_OF_MEMORY

if TYPE_CHECKING:
    import torch

    from mgdm_ray.diffusion.parallel import Workers
    from mgdm_ray.diffusion.train import Hooks
    from mgdm_ray.diffusion.train_state import TrainState
    from mgdm_ray.pipeline.job import Job


log = logging.getLogger(__name__)

ACCURACY_TIMESTEPS = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
SPEED_FILE = "speed.json"
"""Seconds of the optimiser steps alone; the record's include waiting for workers."""
MEMORY_FILE = "memory.json"
"""Beside the final state of a training that ran out of memory: its ``micro_batch`` in the end."""


class _Clock:
    """An ``on_step`` that notes when each step ended, and passes it on."""

    def __init__(self, on_step: Callable[[int, float], None] | None) -> None:
        self.on_step = on_step
        self.ends: list[float] = []

    def __call__(self, step: int, loss: float) -> None:
        self.ends.append(time.monotonic())
        if self.on_step is not None:
            self.on_step(step, loss)

    def save(self, path: Path, workers: int) -> None:
        """Write the seconds of all steps but the first, which holds what is done once."""
        if len(self.ends) < 2:
            return  # resumed at the end, or trained for one step
        seconds = round(self.ends[-1] - self.ends[0], 4)
        facts = {"steps": len(self.ends) - 1, "seconds": seconds, "workers": workers}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, facts)


def train_model(
    task: TrainingTask, hooks: Hooks, workers: Workers, resume: Path | None = None
) -> TrainState:
    """Train ``task`` as one of ``workers``.

    Every worker loads the data itself. The first one also measures the speed, and the accuracy of
    a guide, into ``task.work``.
    """
    import torch

    from mgdm_ray.diffusion.batches import TrainingData
    from mgdm_ray.diffusion.published_faults import respaced
    from mgdm_ray.diffusion.schedule import make_schedule
    from mgdm_ray.diffusion.train import train
    from mgdm_ray.precision import set_up_gpu

    set_up_gpu(workers.device, deterministic=task.deterministic, benchmark=True)
    workers = replace(workers, compile=workers.compile and not task.deterministic)
    schedule = make_schedule(task.schedule)
    if "guide_timesteps" in task.reference and task.num_inference_steps:
        schedule = respaced(schedule, task.num_inference_steps)
    split = data_source(task.dataset, task.data_dir).load("train")
    classes = dataset_info(task.dataset, task.data_dir).num_classes
    clock = _Clock(hooks.on_step)
    state = train(
        task.config,
        TrainingData(to_pixels(split.images), torch.from_numpy(split.labels), classes),
        task.seed,
        schedule,
        workers=workers,
        resume=resume,
        hooks=replace(hooks, on_step=clock),
        whole_batch_dropout="label_dropout" in task.reference,
    )
    if workers.rank == 0:
        clock.save(task.work / SPEED_FILE, workers.world_size)
        if task.kind == "fit_guide":
            _measure_guide(task, state.model, workers.device)
        for path in (task.work / SPEED_FILE, task.work / ACCURACY_FILE):
            if path.exists():
                task.store.share(path)
    return state


def _measure_guide(task: TrainingTask, guide: torch.nn.Module, device: str) -> None:
    """Write balanced accuracy and calibration on noisy validation images over t."""
    from mgdm_ray.classifiers.metrics import score
    from mgdm_ray.diffusion.schedule import make_schedule
    from mgdm_ray.diffusion.train import guide_probabilities

    val = data_source(task.dataset, task.data_dir).load("val")
    info, images = dataset_info(task.dataset, task.data_dir), to_tensor(val.images)
    schedule = make_schedule(task.schedule)
    scores = []
    for t in ACCURACY_TIMESTEPS:
        answers = guide_probabilities(guide, images, schedule, task.seed, t, device=device)
        scores.append(score(answers.numpy(), val.labels, info.task))
    curve = {
        "t": list(ACCURACY_TIMESTEPS),
        **{name: [row[name] for row in scores] for name in ("balanced_accuracy", "ece")},
        "chance_below": chance_limit(val.labels),
    }
    task.work.mkdir(parents=True, exist_ok=True)
    save_json(task.work / ACCURACY_FILE, curve)


def train_here(task: TrainingTask, progress: Progress, workers: Workers | None = None) -> Path:
    """Train in this process and return the folder with the final state: a Launcher without Ray.

    The same call after a crash goes on from the last checkpoint. ``workers``: how this process
    computes, a single one. Raises MemoryError if memory ran out.
    """
    from mgdm_ray.diffusion.parallel import ALONE
    from mgdm_ray.diffusion.train import Hooks

    steps = task.config.steps
    kept = sorted(task.work.glob("step-*"))

    def save(state: TrainState) -> None:
        kept.append(_save_checkpoint(state, task.work))
        for folder in kept[:-1]:
            shutil.rmtree(folder, ignore_errors=True)

    hooks = Hooks(lambda step, loss: progress(step, steps, f"loss {loss:.3f}"), save)
    try:
        train_model(task, hooks, workers or ALONE, kept[-1] if kept else None)
    except Exception as error:
        if reason_of(error).startswith(OUT_OF_MEMORY):
            raise MemoryError(str(error)) from error
        raise
    return kept[-1]


def _save_checkpoint(state: TrainState, work: Path) -> Path:
    """A folder that is there whole or not at all."""
    new, folder = work / "new", work / f"step-{state.step:09d}"
    state.save(new)
    for path in (*new.iterdir(), new):
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return folder


def in_smaller_parts(
    train: Callable[[int | None], Path],
    task: TrainingTask,
    progress: Progress,
    micro_batch: int | None,
    workers: int = 1,
) -> Path:
    """``train(micro_batch)``; out of memory, it continues with half the images, down to 1, and
    MEMORY_FILE in its folder says so. Raises MemoryError if not even single images fit.
    """
    asked, whole = micro_batch, math.ceil(task.config.batch_size / workers)
    while True:
        try:
            final = train(micro_batch)
        except MemoryError as error:
            now = min(micro_batch or whole, whole)
            if now == 1:
                raise
            micro_batch = now // 2
            progress(0, 0, f"out of memory; retrying with micro_batch {micro_batch}")
            log.warning("%s: %s; retrying with micro_batch %d", task.kind, error, micro_batch)
        else:
            if micro_batch != asked:
                save_json(final / MEMORY_FILE, {"micro_batch": micro_batch})
            return final


def _fit(
    job: Job, context: Context, folder: Path, kind: type[DenoiserConfig | GuideConfig]
) -> dict[str, float]:
    """Train; save ``weights.safetensors``, ``model.json`` and ``history.json``. Returns metrics."""
    dataset = context.datasets[job.dataset]
    info = info_of(job, context)
    model, train = job.kind.removeprefix("fit_"), job.inputs["train"]
    config = {**train, "checkpoint_every": context.checkpoint_every.get(model, train["steps"])}
    work = context.store.work(job.kind, job.key)
    task = TrainingTask(
        key=job.key,
        config=kind.model_validate(config),
        dataset=dataset,
        data_dir=context.data_dir,
        seed=job.inputs["seed"],
        schedule=job.inputs["schedule"],
        storage=context.storage,
        reference=tuple(job.inputs.get("reference", ())),
        num_inference_steps=job.inputs.get("num_inference_steps"),
        deterministic=context.deterministic,
    )
    final = (context.launch or train_here)(task, context.progress)
    context.store.bring(work)
    shape = [info.channels, dataset.size, dataset.size]
    state = json.loads((final / STATE_FILE).read_text(encoding="utf-8"))
    facts = {"config": config, "shape": shape, "num_classes": info.num_classes}
    save_json(folder / "model.json", {**facts, "precision": state["precision"]})
    save_file(_trained_weights(final), folder / WEIGHTS)
    save_json(folder / "history.json", state["history"])
    if (work / SPEED_FILE).exists():
        shutil.copyfile(work / SPEED_FILE, folder / SPEED_FILE)
    memory: dict[str, float] = {}
    if (final / MEMORY_FILE).exists():
        memory = json.loads((final / MEMORY_FILE).read_text(encoding="utf-8"))
    if state.get("micro_batch"):  # halved by a worker itself
        memory = {"micro_batch": state["micro_batch"]}
    return {**_last_loss(state["history"]), **memory}


def _trained_weights(final: Path) -> dict[str, np.ndarray]:
    """The denoiser's averaged weights; the guide's own."""
    tensors = load_file(final / TENSORS_FILE)
    prefix = "ema." if any(name.startswith("ema.") for name in tensors) else "model."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _last_loss(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    tail = [row["loss"] for row in history[-max(1, len(history) // 10) :]]
    return {"loss": float(np.mean(tail))} if tail else {}


def fit_denoiser(job: Job, context: Context, folder: Path) -> Outcome:
    metrics = _fit(job, context, folder, DenoiserConfig)
    real = open_split(job, context, "train")
    draw_grid(
        folder / "real.png", to_tensor(real.images), real.labels, info_of(job, context).num_classes
    )
    return {"metrics": metrics}


def fit_guide(job: Job, context: Context, folder: Path) -> Outcome:
    metrics = _fit(job, context, folder, GuideConfig)
    measured = context.store.work(job.kind, job.key) / ACCURACY_FILE
    curve = json.loads(measured.read_text(encoding="utf-8"))
    save_json(folder / ACCURACY_FILE, curve)
    accuracy = np.array(curve["balanced_accuracy"])
    metrics |= {
        "balanced_accuracy_over_t": float(accuracy.mean()),
        "ece_over_t": float(np.mean(curve["ece"])),
        "share_of_t_at_chance": float((accuracy <= curve["chance_below"]).mean()),
    }
    return {"metrics": metrics, "split": "val"}
