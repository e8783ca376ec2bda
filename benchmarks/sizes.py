"""What a study costs on GPUs, from counted operations and published peaks: nothing is trained.

    python -m benchmarks.sizes studies/grid.yaml --gpu L4 --gpus 1 8 32 --workers 2 4 8

Counts the floating-point operations of one image through every network of the study (forward;
with its gradients three times that), multiplies by what the plan's jobs take, and puts the jobs
on the GPUs as a scheduler would. What share of a GPU's peak is reached is assumed and shown. For
the denoiser's training it predicts how well several GPUs work together (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import ResourcesConfig, StudyConfig, Training, UNetConfig, load_study
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import data_source
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.pipeline.cost_model import Node, effort, images_of
from mgdm_ray.pipeline.job import CELLS, FITS, Job, fits_per_setting
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.requests import request_of
from mgdm_ray.pipeline.timeline import Task, makespan

PEAKS = {"L4": 121e12, "A100": 312e12, "H100": 989e12}
"""Operations a second in bfloat16 without sparsity, as NVIDIA's data sheets have them."""
TRAINING_IMAGES = {
    "breastmnist": 546,
    "retinamnist": 1080,
    "pneumoniamnist": 4708,
    "dermamnist": 7007,
}
"""Of the official splits (medmnist 3.0.2), for files that are not on this machine."""
LINKS = {"NVLink, 300 GB/s": 300e9, "100 Gb/s": 12.5e9, "25 Gb/s": 3.125e9, "10 Gb/s": 1.25e9}
"""Bytes a second in one direction; NVLink as in an A100."""
START_S = {"fit": 30.0, "search": 30.0, "task": 3.0}
"""Around each job: processes, imports, files."""


@dataclass(frozen=True)
class Assumed:
    """Shares of the peak that are reached."""

    unet: float
    networks: float


def forward_flops(network: nn.Module, *arguments: torch.Tensor, **more: torch.Tensor) -> float:
    """Of one image; a multiplication and an addition are two operations."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*arguments, **more)
    return float(counter.get_total_flops())


@cache
def unet_flops(kind: str, unet: str, channels: int, classes: int, size: int) -> float:
    config, x = UNetConfig.model_validate_json(unet), torch.zeros(1, channels, size, size)
    t = torch.zeros(1, dtype=torch.long)
    if kind == "guide":
        return forward_flops(build_guide(config, channels, classes, "sizes"), x, t)
    return forward_flops(build_denoiser(config, channels, classes, "sizes"), x, t, class_labels=t)


@cache
def unet_bytes(unet: str, channels: int, classes: int) -> int:
    """Of a denoiser's weights in float32, which are its gradients' too."""
    config = UNetConfig.model_validate_json(unet)
    return sum(
        4 * p.numel() for p in build_denoiser(config, channels, classes, "sizes").parameters()
    )


def together(compute: float, weights: float, workers: int, link: float) -> tuple[float, float]:
    """(worst, best) efficiency of ``workers`` that share what one computes in ``compute`` seconds.

    A ring all-reduce sends 2 (n - 1) / n of the weights; at worst all of it after the backward, at
    best all of it behind the backward.
    """
    share, sent = compute / workers, 2 * (workers - 1) / workers * weights / link
    return share / (share + sent), share / max(share, sent)


@cache
def network_flops(name: str, channels: int, classes: int, size: int) -> float:
    network = build_network(name, classes, channels, size, "sizes")
    return forward_flops(network, torch.zeros(1, channels, size, size))


class Counter:
    """Operations of the plan's jobs: (in UNets, in evaluated networks)."""

    def __init__(self, config: StudyConfig, plan: Plan) -> None:
        self.config, self.plan = config, plan
        self.nodes = {key: Node.of(job) for key, job in plan.jobs.items()}
        counts = {d.name: data_source(d, config.data_dir).train_images() for d in config.datasets}
        self.train = {d.name: counts[d.name] or TRAINING_IMAGES[d.origin] for d in config.datasets}
        self.facts = {d.name: (dataset_info(d, config.data_dir), d.size) for d in config.datasets}

    def of(self, job: Job) -> tuple[float, float]:
        its = effort(self.nodes[job.key], self.nodes, self.train)
        if its is None:
            raise SystemExit(f"nothing is known of {job.label}")
        info, size = self.facts[str(job.dataset)]
        shape = info.channels, info.num_classes, size
        if job.kind in FITS:
            unet = json.dumps(job.inputs["train"]["unet"])
            kind = job.kind.removeprefix("fit_")
            return 3 * its.work * unet_flops(kind, unet, *shape), 0.0
        if job.kind in CELLS:
            return 0.0, 3 * its.work * network_flops(job.inputs["network"], *shape)
        if job.kind == "fit_judge":
            return 0.0, 3 * its.work * network_flops(job.inputs["judge"]["network"], *shape)
        if job.kind == "assess":
            judge = self.nodes[job.needs["judge"]].inputs["judge"]["network"]
            return 0.0, its.work * network_flops(judge, *shape)
        denoiser = self._unet("denoiser", job, shape)
        if job.kind == "generate":
            forwards = 2 if job.inputs["guidance_scale"] != 1 else 1
            guide = 3 * self._unet("guide", job, shape) if "guide" in job.needs else 0.0
            return its.work * (forwards * denoiser + guide), 0.0
        if job.kind == "encode":
            return its.work * denoiser, 0.0
        # A forward of the denoiser, a forward and a backward of the guide.
        step = denoiser + 3 * self._unet("guide", job, shape)
        if job.kind == "decode":
            return its.work * step, 0.0
        images = images_of(self.nodes[job.key], self.nodes, self.train)
        steps = images * job.inputs["num_inference_steps"] * job.inputs.get("strength", 1.0)
        return its.work * steps * step, its.work * self._scoring(job, shape)

    def _unet(self, role: str, job: Job, shape: tuple[int, int, int]) -> float:
        if role not in job.needs:
            return 0.0
        unet = json.dumps(self.nodes[job.needs[role]].inputs["train"]["unet"])
        return unet_flops(role, unet, *shape)

    def _scoring(self, job: Job, shape: tuple[int, int, int]) -> float:
        """Of the networks that one setting of a search or a confirmation trains."""
        networks, repeats = fits_per_setting(job.inputs)
        real = self.train[job.dataset]
        trained = {name: Training.of(job.inputs, name, real) for name in networks}
        return (
            3.0
            * repeats
            * sum(
                down.steps * down.batch_size * network_flops(name, *shape)
                for name, down in trained.items()
            )
        )


def seconds(flops: tuple[float, float], gpu: str, assumed: Assumed) -> float:
    """On one GPU that has nothing else to do."""
    return (flops[0] / assumed.unet + flops[1] / assumed.networks) / PEAKS[gpu]


def wall(config: StudyConfig, plan: Plan, spent: Mapping[str, float], gpus: int) -> float:
    """Hours until all is done on so many GPUs."""
    given = config.resources
    resources = given.model_copy(
        update={
            "train_workers": min(given.most_train_workers, gpus),
            "sampling_workers": min(given.sampling_workers, 4 * gpus),
        }
    )
    at_once = max(1, int(gpus / (resources.gpus_per_task or 1)))
    tasks = [_task(job, resources, spent[job.key], at_once) for job in plan.jobs.values()]
    tasks.sort(key=lambda task: not task.urgent)
    return makespan(tasks, math.inf, gpus) / 3600


def _task(job: Job, resources: ResourcesConfig, alone: float, trials_at_once: int) -> Task:
    ask = request_of(job, resources, trials_at_once)
    group = "fit" if job.kind in FITS else "search" if job.kind == "search" else "task"
    # A quarter of a GPU is a quarter as fast; the lanes share the work.
    each = alone / (ask.lanes * ask.gpus) if ask.gpus else alone
    return Task(
        job.key,
        each + START_S[group],
        0.0,
        ask.gpus,
        ask.lanes,
        job.waits_for,
        urgent=job.kind in FITS,
        patient=not job.needs and job.kind not in FITS,
    )


def show_workers(
    config: StudyConfig, counter: Counter, rate: float, workers: list[int]
) -> list[dict[str, Any]]:
    """Print how well workers share the denoiser's training, link by link; the rows of it."""
    dataset = config.datasets[0]
    info, size = counter.facts[dataset.name]
    unet, shape = config.denoiser.unet.model_dump_json(), (info.channels, info.num_classes)
    weights, batch = unet_bytes(unet, *shape), config.denoiser.batch_size
    flops = 3 * batch * unet_flops("denoiser", unet, *shape, size)
    print(
        f"denoiser of {dataset.name}: {weights / 1e6:.1f} MB of weights, {flops / 1e12:.2f} TFLOP "
        f"a step of {batch} images, {1000 * flops / rate:.0f} ms on one GPU"
    )
    rows = []
    for name, link in LINKS.items():
        found = {n: together(flops / rate, weights, n, link) for n in workers}
        shown = "  ".join(f"{n}: {100 * a:.0f} to {100 * b:.0f} %" for n, (a, b) in found.items())
        print(f"  {name:18} {shown}")
        rows.append({"link": name, **{str(n): [round(x, 3) for x in v] for n, v in found.items()}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--gpu", choices=sorted(PEAKS), default="L4")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--unet", type=float, default=0.4, help="share of the peak reached")
    parser.add_argument("--networks", type=float, default=0.1, help="the same of the classifiers")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    config = load_study(options.study, [])
    plan = make_plan(config, {d.name: "unread" for d in config.datasets}, {})
    counter, assumed = Counter(config, plan), Assumed(options.unet, options.networks)
    flops = {key: counter.of(job) for key, job in plan.jobs.items()}
    spent = {key: seconds(both, options.gpu, assumed) for key, both in flops.items()}
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for key, job in plan.jobs.items():
        row = rows[job.kind]
        row[0], row[1] = row[0] + 1, row[1] + sum(flops[key])
        row[2] += spent[key] / 3600
    print(f"{'kind':16} {'jobs':>5} {'PFLOP':>10} {options.gpu + ' hours':>11}")
    for kind, (count, total, hours) in rows.items():
        print(f"{kind:16} {count:5.0f} {total / 1e15:10.1f} {hours:11.2f}")
    result: dict[str, Any] = {
        "study": config.name,
        "gpu": options.gpu,
        "share_of_peak": {"unet": options.unet, "networks": options.networks},
        "exaflop": round(sum(map(sum, flops.values())) / 1e18, 3),
        "gpu_hours": round(sum(spent.values()) / 3600, 2),
        "wall_hours": {},
    }
    for gpus in options.gpus:
        result["wall_hours"][gpus] = round(wall(config, plan, spent, gpus), 2)
    rate = PEAKS[options.gpu] * options.unet
    result["together"] = show_workers(config, counter, rate, options.workers)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
