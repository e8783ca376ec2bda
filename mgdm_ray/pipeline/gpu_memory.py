"""The GPU memory that a training needs, from the study file. No torch.

``tests/pipeline/test_gpu_memory.py`` compares it with what a training on a fake GPU holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mgdm_ray.config import ResourcesConfig, UNetConfig
from mgdm_ray.pipeline.job import FITS, Job

GPUS = {"T4": 16, "A10G": 24, "L4": 24, "A100": 40, "L40S": 48, "H100": 80}
"""GB of the GPUs of cluster/instances.yaml, from small to large."""
WITHOUT_BFLOAT16 = {"T4"}
USABLE = 0.9e9
"""Bytes for tensors of each GB: CUDA, workspaces of kernels and gaps take a part."""
USUAL = "L4"
"""The GPU of the launch files, for which a value is proposed."""
RESIDUAL = {
    ("bfloat16", False): 12.5, ("bfloat16", True): 1.5,
    ("float32", False): 15.5, ("float32", True): 3.2,
}  # fmt: skip
ATTENTION = {
    ("bfloat16", False): 20.0, ("bfloat16", True): 4.0,
    ("float32", False): 28.0, ("float32", True): 6.0,
}  # fmt: skip
"""Bytes kept for the backward pass, by (precision, activation checkpointing): for each position and
channel that goes into or out of a residual block, and for each of an attention block. Fitted to
counts of grid.yaml's networks."""
STATE = {"fit_denoiser": 20.0, "fit_guide": 16.0}
"""Bytes for each weight: itself, its gradient, AdamW's two moments, and the denoiser's average."""
GIB = 2**30


@dataclass(frozen=True)
class Blocks:
    """What a UNet's memory depends on."""

    residual: float
    """Channels in and out of all residual blocks, times the positions of each."""
    attention: float
    """Channels of all attention blocks, times the positions of each."""
    largest: float
    """Of one residual block."""
    weights: float


def blocks_of(unet: UNetConfig, size: int, *, decoder: bool) -> Blocks:
    """Of the denoiser (``decoder``) or the guide, for images of ``size`` pixels."""
    widths, levels = unet.channels, len(unet.channels)
    found: list[tuple[int, int, int]] = []  # channels in and out, level
    attending: list[tuple[int, int]] = []
    skips, width = [widths[0]], widths[0]
    for level, wide in enumerate(widths):
        for _ in range(unet.num_res_blocks):
            found.append((width, wide, level))
            width = wide
            attending += [(wide, level)] * unet.attention[level]
            skips.append(width)
        if level < levels - 1:
            skips.append(width)
    if decoder:
        found += [(width, width, levels - 1)] * 2
        attending.append((width, levels - 1))
        for level in reversed(range(levels)):
            for _ in range(unet.num_res_blocks + 1):
                found.append((width + skips.pop(), widths[level], level))
                width = widths[level]
                attending += [(width, level)] * unet.attention[level]
    places = [(size >> level) ** 2 for level in range(levels)]
    embedding = 4 * widths[0]
    weights = sum(
        9 * (a + b) * b + embedding * b + (a * b if a != b else 0) for a, b, _ in found
    ) + sum(4 * c * c for c, _ in attending)
    weights += (2 if decoder else 1) * sum(9 * c * c for c in widths) + embedding**2
    return Blocks(
        sum((a + b) * places[level] for a, b, level in found),
        sum(c * places[level] for c, level in attending),
        max((a + b) * places[level] for a, b, level in found),
        weights,
    )


def training_bytes(job: Job, resources: ResourcesConfig, precision: str) -> float:
    """Bytes of a ``fit_...`` job on each of its workers' GPUs, in ``bfloat16`` or ``float32``."""
    train, size = job.inputs["train"], job.inputs["dataset"]["size"]
    unet = UNetConfig.model_validate(train["unet"])
    blocks = blocks_of(unet, size, decoder=job.kind == "fit_denoiser")
    kept = precision, resources.activation_checkpointing
    one = RESIDUAL[kept] * blocks.residual + ATTENTION[kept] * blocks.attention
    if resources.activation_checkpointing:  # one block at a time is there in full
        one += RESIDUAL[precision, False] * blocks.largest
    state = STATE[job.kind] + (2 if precision == "bfloat16" else 0)
    return state * blocks.weights + one * images_at_a_time(train, resources)


def images_at_a_time(train: Mapping[str, Any], resources: ResourcesConfig) -> int:
    """Most images of a forward of a training worker."""
    share = -(-int(train["batch_size"]) // resources.least_train_workers)
    return min(share, resources.micro_batch or share)


@dataclass(frozen=True)
class Need:
    """What the trainings of one kind need."""

    job: Job
    """The one that needs most."""
    bytes: float
    """In the precision of GPUs with bfloat16."""
    gpus: tuple[str, ...]
    """Those that hold it, from small to large."""
    proposal: int | None
    """The ``micro_batch`` with which ``USUAL`` holds it, or None if it does anyway, or never."""


def needs(jobs: Iterable[Job], resources: ResourcesConfig) -> list[Need]:
    """By kind, of the trainings among ``jobs``; empty where they use no GPU."""
    most: dict[str, Job] = {}
    for job in jobs if resources.gpus_per_worker else ():
        if job.kind in FITS:
            known = most.get(job.kind)
            if known is None or _needed(job, resources) > _needed(known, resources):
                most[job.kind] = job
    return [_need(job, resources) for job in most.values()]


def _need(job: Job, resources: ResourcesConfig) -> Need:
    holding = tuple(gpu for gpu in GPUS if _holds(gpu, job, resources))
    proposal, images = None, images_at_a_time(job.inputs["train"], resources)
    if USUAL not in holding:
        sizes = [1 << i for i in reversed(range(images.bit_length())) if 1 << i < images]
        fitting = (n for n in sizes if _holds(USUAL, job, _with(resources, n)))
        proposal = next(fitting, None)
    return Need(job, _needed(job, resources), holding, proposal)


def _with(resources: ResourcesConfig, micro_batch: int) -> ResourcesConfig:
    return resources.model_copy(update={"micro_batch": micro_batch})


def _needed(job: Job, resources: ResourcesConfig, gpu: str = USUAL) -> float:
    precision: str = job.inputs["train"]["precision"]
    if precision == "auto":
        precision = "float32" if gpu in WITHOUT_BFLOAT16 else "bfloat16"
    # Half as long numbers take the same bytes.
    return training_bytes(job, resources, "float32" if precision == "float32" else "bfloat16")


def _holds(gpu: str, job: Job, resources: ResourcesConfig) -> bool:
    return _needed(job, resources, gpu) <= USABLE * GPUS[gpu]


def described(need: Need) -> str:
    """A line of ``--plan``."""
    text = f"{need.job.kind} {need.bytes / GIB:.1f} GiB: "
    if not need.gpus:
        return f"{text}no GPU holds it"
    text += ", ".join(need.gpus)
    if need.proposal:
        text += f"; {USUAL} with resources.micro_batch: {need.proposal}"
    return text


def refusals(found: Iterable[Need], resources: ResourcesConfig) -> list[str]:
    """Messages on trainings that no known GPU holds: the key, what is needed, what to set."""
    largest = list(GPUS)[-1]
    told = []
    for need in found:
        if need.gpus:
            continue
        value = f"resources.micro_batch: {need.proposal}"
        if need.proposal is None:
            value = "resources.micro_batch: 1 and resources.activation_checkpointing: true, or a "
            value += "smaller unet"
        told.append(
            f"resources.micro_batch: {need.job.label} needs {need.bytes / GIB:.0f} GiB of GPU "
            f"memory for {images_at_a_time(need.job.inputs['train'], resources)} images at a time, "
            f"but the largest GPU ({largest}) has {GPUS[largest]} GB; set {value}"
        )
    return told
