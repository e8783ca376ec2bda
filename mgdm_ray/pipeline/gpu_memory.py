"""The GPU memory that each job needs, and the GPUs that are to be rented, without torch.

``tests/pipeline/test_gpu_memory.py`` compares it with what jobs on a fake GPU hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mgdm_ray.config import ResourcesConfig, UNetConfig
from mgdm_ray.pipeline.job import CELLS, FITS, KINDS, SAMPLINGS, SCORINGS, Job, fits_per_setting

CLUSTER = Path(__file__).parents[2] / "cluster"
"""The launch files of a checkout; a wheel has none."""
GPUS = {"T4": 16.0, "A10G": 24.0, "L4": 24.0, "A100": 40.0, "L40S": 48.0, "H100": 80.0}
"""GB of the GPUs of cluster/instances.yaml, from small to large."""
WITHOUT_BFLOAT16 = {"T4"}
USABLE = 0.9
"""Share of the memory for tensors; workspaces of kernels and gaps take the rest."""
CUDA_CONTEXT = 0.42e9
"""Bytes that CUDA takes in each process."""
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
SAMPLED = {"bfloat16": 21.0, "float32": 29.0}
"""Bytes alive while an image is sampled with and without its class at once, for each channel and
position of the largest residual block."""
NETWORKS = {
    "alexnet": (28.7, 148, 148), "vgg16_bn": (65.1, 1810, 3080), "googlenet": (5.6, 704, 1112),
    "resnet18": (11.2, 358, 594), "resnet34": (21.3, 478, 794), "resnet50": (23.5, 1049, 1929),
    "resnext50_32x4d": (23.0, 1310, 2453), "densenet121": (7.0, 1452, 2798),
    "squeezenet1_1": (0.7, 317, 532), "mobilenet_v2": (2.2, 916, 1775),
    "efficientnet_b0": (4.0, 1020, 1978),
}  # fmt: skip
"""Millions of weights, and bytes that a training step keeps for each pixel of its batch in bfloat16
and in float32, counted at 128 px. Others are not estimated."""
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


def sampling_bytes(job: Job, jobs: Mapping[str, Job], precision: str) -> float:
    """Bytes of a sampling job that makes one image at a time: it finds the batch that fits."""
    size, length = job.inputs["dataset"]["size"], 4 if precision == "float32" else 2
    weights = most = 0.0
    for role in {"denoiser", "guide"} & job.needs.keys():
        unet = UNetConfig.model_validate(jobs[job.needs[role]].inputs["train"]["unet"])
        blocks = blocks_of(unet, size, decoder=role == "denoiser")
        weights += length * blocks.weights
        kept = RESIDUAL[precision, False] * blocks.residual
        kept += ATTENTION[precision, False] * blocks.attention  # for the gradient of the guide
        most = max(most, kept if role == "guide" else SAMPLED[precision] * blocks.largest)
    return weights + most


def network_bytes(name: str, size: int, how: Mapping[str, Any], precision: str) -> float:
    """Bytes of a training step of a network, trained as ``how``; 0 where nothing is known of it."""
    weights, short, long = NETWORKS.get(name, (0.0, 0.0, 0.0))
    state = 20e6 if how.get("checkpoint") == "best_validation" else 16e6
    kept = long if precision == "float32" else short
    images: int = how["batch_size"]
    return state * weights + kept * images * size**2


def needed(job: Job, jobs: Mapping[str, Job], resources: ResourcesConfig, gpu: str) -> float:
    """Bytes of a process of ``job`` on ``gpu``; 0: unknown, or ``assess``, below its judge."""
    inputs, size = job.inputs, job.inputs["dataset"]["size"]

    def length(asked: str) -> str:
        # Half as long numbers take the same bytes.
        exact = asked == "float32" or (asked == "auto" and gpu in WITHOUT_BFLOAT16)
        return "float32" if exact else "bfloat16"

    if job.kind in FITS:
        return training_bytes(job, resources, length(inputs["train"]["precision"]))
    if job.kind == "fit_judge":
        judge = inputs["judge"]
        return network_bytes(judge["network"], size, judge, length("auto"))
    found = [0.0]
    if job.kind in SAMPLINGS + SCORINGS:
        found.append(sampling_bytes(job, jobs, length(inputs["precision"])))
    if job.kind in CELLS + SCORINGS:
        names = fits_per_setting(inputs)[0] if job.kind in SCORINGS else [inputs["network"]]
        usual, own = inputs["downstream"], inputs.get("recipes", {})
        precision = length(usual.get("precision", "auto"))
        found += [network_bytes(n, size, usual | own.get(n, {}), precision) for n in names]
    return max(found)


def rented_gpus(folder: Path | None = None) -> dict[str, float]:
    """GB of the GPUs of the machine types in launch files (of CLUSTER); GPUS if they name none."""
    folder = folder or CLUSTER
    table = folder / "instances.yaml"
    if not table.is_file():
        return GPUS
    types = yaml.safe_load(table.read_text(encoding="utf-8")).values()
    machines = {name: facts for of_provider in types for name, facts in of_provider.items()}
    text = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.yaml"))
    named = re.findall(r"^ *(?:InstanceType|machineType): *(\S+)", text, re.MULTILINE)
    found = [machines[name] for name in named if machines.get(name, {}).get("gpus")]
    return {facts["gpu"]: float(facts["gpu_memory"]) for facts in found} or GPUS


@dataclass(frozen=True)
class Need:
    """What the jobs of one kind need."""

    job: Job
    """The one that needs most."""
    bytes: float
    """On the largest GPU to be rented."""
    gpus: tuple[str, ...]
    """Known GPUs whose share holds it, from small to large."""
    refusal: tuple[str, str] | None
    """The key to change, and the message, if no GPU to be rented is among these."""


def needs(
    jobs: Mapping[str, Job], resources: ResourcesConfig, rented: Mapping[str, float] = GPUS
) -> list[Need]:
    """By kind, of the ``jobs`` of a plan that use a GPU."""
    known = dict(sorted({**GPUS, **rented}.items(), key=lambda gpu: gpu[1]))
    best = max(rented, key=known.__getitem__)
    most: dict[str, tuple[float, Job]] = {}
    for job in jobs.values():
        size = needed(job, jobs, resources, best) if _share(job, resources) else 0.0
        if size > most.get(job.kind, (0.0, job))[0]:
            most[job.kind] = size, job
    found = []
    for size, job in sorted(most.values(), key=lambda need: KINDS.index(need[1].kind)):
        gpus = [gpu for gpu, gb in known.items() if _holds(gpu, gb, job, jobs, resources)]
        refusal = None
        if not rented.keys() & set(gpus):
            key, value = _proposal(best, known[best], job, jobs, resources)
            text = f"{job.label} needs {size / GIB:.1f} GiB of GPU memory, but "
            text += f"{_share(job, resources):g} of the largest GPU to be rented ({best}, "
            refusal = key, f"{text}{known[best]:g} GB) is not enough; set {value}"
        found.append(Need(job, size, tuple(gpus), refusal))
    return found


def _share(job: Job, resources: ResourcesConfig) -> float:
    gpus = resources.gpus_per_worker if job.kind in FITS else resources.gpus_per_task
    return min(1.0, gpus)


def _holds(
    gpu: str, gb: float, job: Job, jobs: Mapping[str, Job], resources: ResourcesConfig
) -> bool:
    there = _share(job, resources) * gb * 1e9 - CUDA_CONTEXT
    return needed(job, jobs, resources, gpu) <= USABLE * there


def _proposal(
    gpu: str, gb: float, job: Job, jobs: Mapping[str, Job], resources: ResourcesConfig
) -> tuple[str, str]:
    """The key, and a value of it with which ``gpu`` holds ``job``, or else what to do."""
    key, other = "gpus_per_task", "a smaller batch_size or image size"
    values: Iterable[float] = (n for n in (0.25, 0.5, 1) if n > resources.gpus_per_task)
    if job.kind in FITS:
        images = images_at_a_time(job.inputs["train"], resources)
        key, values = "micro_batch", (1 << i for i in reversed(range((images - 1).bit_length())))
        other = "resources.micro_batch: 1 and resources.activation_checkpointing: true, or a "
        other += "smaller unet"
    for value in values:
        if _holds(gpu, gb, job, jobs, resources.model_copy(update={key: value})):
            return f"resources.{key}", f"resources.{key}: {value:g}"
    return f"resources.{key}", f"{other}, or name a larger machine type in the launch file"


def described(need: Need) -> str:
    """A line of ``--plan``."""
    return f"{need.job.kind} {need.bytes / GIB:.1f} GiB: {', '.join(need.gpus) or 'no known GPU'}"
