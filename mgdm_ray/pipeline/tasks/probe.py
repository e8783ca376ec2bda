"""Times a few steps of a job that has never run here, for the plan's estimate.

Networks are untrained and images are noise: neither changes how long a step takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mgdm_ray.classifiers.features import look
from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import (
    DenoiserConfig,
    GuidanceControls,
    GuidanceSetting,
    GuideConfig,
    JudgeConfig,
    Training,
)
from mgdm_ray.data.load import data_source
from mgdm_ray.diffusion.batches import TrainingData
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.parallel import Workers
from mgdm_ray.diffusion.pipeline import Sampler, TrainedDenoiser
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import Hooks, train
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.evaluation.fidelity.memorisation import nearest
from mgdm_ray.pipeline.job import CELLS, SCORINGS, fits_per_setting
from mgdm_ray.pipeline.tasks.base import Context, info_of, sampling_config

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job

STEPS = 5
"""Optimiser or sampling steps, and repetitions of the latter; the first does not count."""
PIXELS = 64 * 32 * 32
"""Pixels of a batch at most: 64 images of 32 pixels."""


def probe(
    job: Job, jobs: Mapping[str, Job], images: float, context: Context, *, threads: int
) -> tuple[float, float | None]:
    """Seconds per unit of ``work`` and bytes per item, as ``cost_model.effort`` counts them.

    Work is an image of a training step, an image of a sampling step (and forward of encode), or a
    setting, for which ``images`` are decoded and networks trained. Bytes are those of weights and
    images; None for kinds that write little. ``threads``: of a task of the run.
    """
    torch.set_num_threads(threads)
    if job.kind in ("fit_denoiser", "fit_guide"):
        return _training(job, context)
    if job.kind in CELLS:
        return _network(str(job.network), job, context, job.inputs), None
    if job.kind == "fit_judge":
        judge = JudgeConfig.model_validate(job.inputs["judge"])
        wanted = {"batch_size": judge.batch_size, "augment": "judge"}
        return _network(judge.network, job, context, {"downstream": wanted}), None
    if job.kind == "assess":
        return _looking(jobs[job.needs["judge"]], context), None
    if job.kind in SCORINGS:
        steps = job.inputs["num_inference_steps"] * job.inputs["strength"]
        decoding = _sampling(job, jobs, context) * images * steps
        return decoding + _fits(job, context), None
    info, size = info_of(job, context), job.inputs["dataset"]["size"]
    return _sampling(job, jobs, context), 4.0 * info.channels * size**2


def _noise(job: Job, context: Context, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(images `[M, C, H, W]`, labels `[M]`) with M at most ``batch``."""
    info, size = info_of(job, context), job.inputs["dataset"]["size"]
    number = max(2, min(batch, PIXELS // size**2))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(number, info.channels, size, size, generator=generator).clamp(-1, 1)
    return images, torch.arange(number) % info.num_classes


def _training(job: Job, context: Context) -> tuple[float, float]:
    kind = DenoiserConfig if job.kind == "fit_denoiser" else GuideConfig
    wanted = kind.model_validate(job.inputs["train"])
    images, labels = _noise(job, context, wanted.batch_size)
    ends: list[float] = []
    state = train(
        wanted.model_copy(update={"steps": STEPS, "warmup": 0, "batch_size": len(labels)}),
        TrainingData(images, labels, info_of(job, context).num_classes),
        0,
        make_schedule(job.inputs["schedule"]),
        workers=Workers(device=context.device),
        hooks=Hooks(on_step=lambda *_: ends.append(time.perf_counter())),
    )
    weights = sum(4.0 * p.numel() for p in state.trained.parameters())
    return _typical(ends) / len(labels), weights


def _network(name: str, job: Job, context: Context, inputs: Mapping[str, Any]) -> float:
    """Seconds per image of a step of ``name``, trained as ``inputs`` say."""
    steps = {"downstream": {**inputs["downstream"], "steps": STEPS}}
    wanted = Training.of({**inputs, **steps}, name, 0)
    if job.arm == "augment":
        wanted = wanted.model_copy(update={"augment": "standard"})
    images, labels = _noise(job, context, wanted.batch_size)
    classes, ends = info_of(job, context).num_classes, list[float]()
    changes = {"batch_size": len(labels), "checkpoint": "last"}
    config = wanted.model_copy(update=changes)
    recipe = Recipe(config, classes, ("probe",), device=context.device)
    network = build_network(name, classes, images.shape[1], images.shape[-1], "probe")
    fit(network, images, labels, recipe, on_step=lambda *_: ends.append(time.perf_counter()))
    return _typical(ends) / len(labels)


def _looking(judge: Job, context: Context) -> float:
    """Seconds per image of the judge's forward and of the nearest-neighbour search."""
    images, labels = _noise(judge, context, 64)
    classes = info_of(judge, context).num_classes
    name = judge.inputs["judge"]["network"]
    network = build_network(name, classes, images.shape[1], images.shape[-1], "probe")

    def once() -> object:
        nearest(images.numpy(), images.numpy())
        return look(network, images, classes, context.device)

    return _seconds(once) / len(labels)


def _fits(job: Job, context: Context) -> float:
    """Seconds of all trainings that one setting is scored with."""
    names, seeds = fits_per_setting(job.inputs)
    real = data_source(context.datasets[job.dataset], context.data_dir).train_images() or 0
    trained = [Training.of(job.inputs, name, real) for name in names]
    return seeds * sum(
        _network(name, job, context, job.inputs) * one.steps * one.batch_size
        for name, one in zip(names, trained, strict=True)
    )


def _typical(ends: list[float]) -> float:
    """Median seconds from one end to the next."""
    return median(after - before for before, after in pairwise(ends))


def _sampling(job: Job, jobs: Mapping[str, Job], context: Context) -> float:
    """Seconds per image, step and (encode) forward; of a search, of decoding."""
    images, labels = _noise(job, context, 64)
    config = sampling_config(job, num_inference_steps=STEPS, strength=1.0, batch_size=len(labels))
    facts = DenoiserConfig.model_validate(jobs[job.needs["denoiser"]].inputs["train"])
    classes, shape = info_of(job, context).num_classes, images.shape[1:]
    sampler = Sampler(
        TrainedDenoiser(
            build_denoiser(facts.unet, shape[0], classes, 0),
            facts,
            make_schedule(facts.schedule),
            classes,
            (shape[0], shape[1], shape[2]),
        ),
        _guide(job, jobs, shape[0], classes),
        config,
        Execution(context.device, compile="never"),
    )
    rows = range(len(labels))
    stages: dict[str, Callable[[], object]] = {
        "generate": lambda: sampler.generate(labels, rows),
        "encode": lambda: sampler.encode(images, labels, rows),
    }
    setting = _setting(job, jobs)
    once = stages.get(job.kind, lambda: sampler.decode(images, labels, rows, setting))
    forwards = 1 + config.inversion_iterations if job.kind == "encode" else 1
    return _seconds(once) / (len(labels) * STEPS * forwards)


def _guide(job: Job, jobs: Mapping[str, Job], channels: int, classes: int) -> nn.Module | None:
    if "guide" not in job.needs:
        return None
    config = GuideConfig.model_validate(jobs[job.needs["guide"]].inputs["train"])
    return build_guide(config.unet, channels, classes, 0, dropout=config.dropout)


def _setting(job: Job, jobs: Mapping[str, Job]) -> GuidanceSetting | None:
    """The job's setting, or one that its search may find; guided at all levels where ``auto``."""
    if "guide" not in job.needs:
        return None
    everywhere = {"interval": (0, 999)}
    if "setting" in job.inputs:
        given = job.inputs["setting"]
        given = {**given, **everywhere} if given["interval"] == "auto" else given
        return GuidanceSetting.model_validate(given)
    space = (job if job.kind == "search" else jobs[job.needs["search"]]).inputs["space"]
    controls = {name: space[name] for name in GuidanceControls.model_fields}
    controls |= everywhere if controls["interval"] == "auto" else {}
    return GuidanceSetting(
        measurement=space["measurement"][0],
        uncertainty_scale=space["uncertainty_scale"]["low"],
        **controls,
    )


def _seconds(once: Callable[[], object]) -> float:
    ends: list[float] = []
    for _ in range(STEPS):
        once()
        ends.append(time.perf_counter())
    return _typical(ends)
