"""Jobs ``fit_denoiser`` and ``fit_guide``, and loading what they trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from mgdm_ray.config import DatasetConfig, DenoiserConfig, GuideConfig
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import load_split, to_tensor
from mgdm_ray.diffusion.schedule import NoiseSchedule, make_schedule
from mgdm_ray.diffusion.train import (
    STATE_FILE,
    TENSORS_FILE,
    TrainResult,
    guide_accuracy,
    train,
)
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.jobs.base import (
    Context,
    Outcome,
    Progress,
    TrainingTask,
    artefact,
    info_of,
    open_split,
    save_json,
    training_config,
)
from mgdm_ray.jobs.images import draw_grid

if TYPE_CHECKING:
    from mgdm_ray.plan import Job


@dataclass(frozen=True)
class Denoiser:
    model: torch.nn.Module
    config: DenoiserConfig
    schedule: NoiseSchedule
    num_classes: int
    shape: tuple[int, int, int]


def load_denoiser(context: Context, key: str) -> Denoiser:
    """The trained denoiser (EMA weights) of the job ``key``, in eval mode without gradients."""
    folder = artefact(context, "fit_denoiser", key)
    facts = json.loads((folder / "model.json").read_text())
    config = DenoiserConfig.model_validate(facts["config"])
    channels, height, width = facts["shape"]
    model = build_denoiser(config.unet, channels, facts["num_classes"], 0)
    _with_weights(model, folder, context.device)
    schedule = make_schedule(config.schedule)
    return Denoiser(model, config, schedule, facts["num_classes"], (channels, height, width))


def load_guide(context: Context, key: str) -> torch.nn.Module:
    """The trained noisy classifier of the job ``key``, in eval mode without gradients."""
    folder = artefact(context, "fit_guide", key)
    facts = json.loads((folder / "model.json").read_text())
    config = GuideConfig.model_validate(facts["config"])
    model = build_guide(config.unet, facts["shape"][0], facts["num_classes"], 0)
    return _with_weights(model, folder, context.device)


WEIGHTS = "weights.safetensors"


def _with_weights(model: torch.nn.Module, folder: Path, device: str) -> torch.nn.Module:
    weights = {k: torch.from_numpy(v) for k, v in load_file(folder / WEIGHTS).items()}
    model.load_state_dict(weights)
    return model.to(device).eval().requires_grad_(False)


def train_model(task: TrainingTask, **options: Any) -> TrainResult:
    """Train as ``task`` says; ``options`` are those of ``diffusion.train.train``.

    Every worker calls this: each loads the data itself, so no images travel.
    """
    dataset = DatasetConfig.model_validate(task.dataset)
    split = load_split(dataset, "train", task.data_dir)
    return train(
        task.model,
        training_config(task),
        to_tensor(split.images),
        torch.from_numpy(split.labels),
        dataset_info(dataset, task.data_dir).num_classes,
        task.seed,
        schedule=make_schedule(task.schedule),
        **options,
    )


def train_here(task: TrainingTask, progress: Progress) -> Path:
    """Train in this process and return the folder with the final state: a Launcher without Ray."""
    config = training_config(task)
    folder = Path(task.work) / "final"
    result = train_model(
        task, on_step=lambda step, loss: progress(step, config.steps, f"loss {loss:.3f}")
    )
    result.state.save(folder)
    return folder


def _fit(
    job: Job, context: Context, folder: Path, model: Literal["denoiser", "guide"]
) -> torch.nn.Module:
    """Train; save ``weights.safetensors``, ``model.json``, ``history.json``; return the model."""
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
        work=str(work),
    )
    final = (context.launch or train_here)(task, context.progress)
    shape = [info.channels, dataset.size, dataset.size]
    facts = {"config": config, "shape": shape, "num_classes": info.num_classes}
    save_json(folder / "model.json", facts)
    save_file(_trained_weights(final), folder / WEIGHTS)
    history = json.loads((final / STATE_FILE).read_text(encoding="utf-8"))["history"]
    save_json(folder / "history.json", history)
    build = build_denoiser if model == "denoiser" else build_guide
    network = build(training_config(task).unet, info.channels, info.num_classes, 0)
    return _with_weights(network, folder, context.device)


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


ACCURACY_TIMESTEPS = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)


def fit_guide(job: Job, context: Context, folder: Path) -> Outcome:
    """Also measures the guide's accuracy over t on validation data: can guidance work at all?"""
    guide = _fit(job, context, folder, "guide")
    val = open_split(job, context, "val")
    accuracy = guide_accuracy(
        guide,
        to_tensor(val.images),
        torch.from_numpy(val.labels),
        make_schedule(job.inputs["schedule"]),
        job.inputs["seed"],
        list(ACCURACY_TIMESTEPS),
        device=context.device,
    )
    curve = {"t": list(accuracy), "balanced_accuracy": list(accuracy.values())}
    save_json(folder / "accuracy_over_t.json", curve)
    mean = {"balanced_accuracy_over_t": float(np.mean(list(accuracy.values())))}
    return {"metrics": {**_last_loss(folder), **mean}, "split": "val"}
