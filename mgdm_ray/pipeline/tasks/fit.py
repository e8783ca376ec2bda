"""Jobs ``fit_denoiser`` and ``fit_guide``.

The process that runs them mostly waits for a launcher's workers, so it imports the models only
where it needs them: MONAI takes seconds.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import load_file, save_file

from mgdm_ray.config import DatasetConfig
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import load_split, to_tensor
from mgdm_ray.diffusion import STATE_FILE, TENSORS_FILE
from mgdm_ray.evaluation.chance import chance_limit
from mgdm_ray.pipeline.tasks.base import (
    WEIGHTS,
    Context,
    Outcome,
    Progress,
    TrainingTask,
    info_of,
    open_split,
    save_json,
    training_config,
)
from mgdm_ray.pipeline.tasks.images import draw_grid

if TYPE_CHECKING:
    import torch

    from mgdm_ray.diffusion.train import TrainResult
    from mgdm_ray.pipeline.plan import Job


ACCURACY_TIMESTEPS = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
ACCURACY_FILE = "accuracy_over_t.json"
SPEED_FILE = "speed.json"
"""Seconds of the optimiser steps alone: those of the record hold the wait for workers too."""


class _Clock:
    """Passes every step on and notes when it ended."""

    def __init__(self, on_step: Callable[[int, float], None] | None) -> None:
        self.on_step = on_step
        self.ends: list[float] = []

    def __call__(self, step: int, loss: float) -> None:
        self.ends.append(time.monotonic())
        if self.on_step is not None:
            self.on_step(step, loss)

    def save(self, folder: Path, workers: int) -> None:
        """The first step is left out: it holds what is done once."""
        if len(self.ends) < 2:
            return  # resumed at the end, or trained for one step
        folder.mkdir(parents=True, exist_ok=True)
        seconds = round(self.ends[-1] - self.ends[0], 4)
        facts = {"steps": len(self.ends) - 1, "seconds": seconds, "workers": workers}
        save_json(folder / SPEED_FILE, facts)


def train_model(task: TrainingTask, **options: Any) -> TrainResult:
    """Train as ``task`` says; ``options`` are those of ``diffusion.train.train``.

    Every worker calls this: each loads the data itself, so no images travel. The first one also
    measures how fast it trained and a guide's accuracy, into ``task.work``: it has the model, its
    imports and the GPU.
    """
    import torch

    from mgdm_ray.diffusion.published_faults import respaced
    from mgdm_ray.diffusion.schedule import make_schedule
    from mgdm_ray.diffusion.train import ALONE, train

    schedule = make_schedule(task.schedule)
    if "guide_timesteps" in task.reference and task.num_inference_steps:
        schedule = respaced(schedule, task.num_inference_steps)
    dataset = DatasetConfig.model_validate(task.dataset)
    split = load_split(dataset, "train", task.data_dir)
    clock = _Clock(options.get("on_step"))
    result = train(
        task.model,
        training_config(task),
        to_tensor(split.images),
        torch.from_numpy(split.labels),
        dataset_info(dataset, task.data_dir).num_classes,
        task.seed,
        schedule=schedule,
        whole_batch_dropout="label_dropout" in task.reference,
        **{**options, "on_step": clock},
    )
    workers = options.get("workers", ALONE)
    first = workers.rank == 0
    if first:
        clock.save(task.work, workers.world_size)
    if task.model == "guide" and first:
        _measure_guide(task, result.state.model, options.get("device", "cpu"))
    for path in (task.work / SPEED_FILE, task.work / ACCURACY_FILE):
        if first and path.exists():
            task.store.share(path)
    return result


def _measure_guide(task: TrainingTask, guide: torch.nn.Module, device: str) -> None:
    """Accuracy and calibration on noisy validation images over t: can guidance work at all?"""
    from mgdm_ray.classifiers.metrics import score
    from mgdm_ray.diffusion.schedule import make_schedule
    from mgdm_ray.diffusion.train import guide_probabilities

    dataset = DatasetConfig.model_validate(task.dataset)
    val = load_split(dataset, "val", task.data_dir)
    info, images = dataset_info(dataset, task.data_dir), to_tensor(val.images)
    schedule = make_schedule(task.schedule)
    scores = [
        score(
            guide_probabilities(guide, images, schedule, task.seed, t, device=device).numpy(),
            val.labels,
            info.task,
        )
        for t in ACCURACY_TIMESTEPS
    ]
    curve = {
        "t": list(ACCURACY_TIMESTEPS),
        **{name: [row[name] for row in scores] for name in ("balanced_accuracy", "ece")},
        "chance_below": chance_limit(val.labels),
    }
    task.work.mkdir(parents=True, exist_ok=True)
    save_json(task.work / ACCURACY_FILE, curve)


def train_here(task: TrainingTask, progress: Progress) -> Path:
    """Train in this process and return the folder with the final state: a Launcher without Ray."""
    config = training_config(task)
    folder = task.work / "final"
    result = train_model(
        task, on_step=lambda step, loss: progress(step, config.steps, f"loss {loss:.3f}")
    )
    result.state.save(folder)
    return folder


def _fit(job: Job, context: Context, folder: Path, model: Literal["denoiser", "guide"]) -> None:
    """Train; save ``weights.safetensors``, ``model.json`` and ``history.json``."""
    dataset = context.datasets[job.dataset]
    info = info_of(job, context)
    config = {
        **job.inputs["train"],
        "checkpoint_every": context.checkpoint_every.get(model, job.inputs["train"]["steps"]),
    }
    work = context.store.work(job.kind, job.key)
    task = TrainingTask(
        model=model,
        key=job.key,
        config=config,
        dataset=dataset.model_dump(mode="json"),
        data_dir=context.data_dir,
        seed=job.inputs["seed"],
        schedule=job.inputs["schedule"],
        storage=context.storage,
        reference=tuple(job.inputs.get("reference", ())),
        num_inference_steps=job.inputs.get("num_inference_steps"),
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


def _trained_weights(final: Path) -> dict[str, np.ndarray]:
    """The denoiser's averaged weights; the guide has no average, so its own."""
    tensors = load_file(final / TENSORS_FILE)
    prefix = "ema." if any(name.startswith("ema.") for name in tensors) else "model."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _last_loss(folder: Path) -> dict[str, float]:
    history = json.loads((folder / "history.json").read_text())
    tail = [row["loss"] for row in history[-max(1, len(history) // 10) :]]
    return {"loss": float(np.mean(tail))} if tail else {}


def fit_denoiser(job: Job, context: Context, folder: Path) -> Outcome:
    _fit(job, context, folder, "denoiser")
    real = open_split(job, context, "train")
    draw_grid(
        folder / "real.png", to_tensor(real.images), real.labels, info_of(job, context).num_classes
    )
    return {"metrics": _last_loss(folder)}


def fit_guide(job: Job, context: Context, folder: Path) -> Outcome:
    _fit(job, context, folder, "guide")
    measured = context.store.work(job.kind, job.key) / ACCURACY_FILE
    curve = json.loads(measured.read_text(encoding="utf-8"))
    save_json(folder / ACCURACY_FILE, curve)
    accuracy = np.array(curve["balanced_accuracy"])
    metrics = {
        **_last_loss(folder),
        "balanced_accuracy_over_t": float(accuracy.mean()),
        "ece_over_t": float(np.mean(curve["ece"])),
        "share_of_t_at_chance": float((accuracy <= curve["chance_below"]).mean()),
    }
    return {"metrics": metrics, "split": "val"}
