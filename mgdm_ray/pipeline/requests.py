"""The CPUs and GPUs that jobs request, and whether a cluster has them. No Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mgdm_ray.config import ResourcesConfig, StudyConfig
from mgdm_ray.pipeline.job import FITS, SAMPLINGS, Job


@dataclass(frozen=True)
class Request:
    """``lanes`` parts that may run one after another, each with ``cpus`` and ``gpus``."""

    lanes: int
    cpus: float
    gpus: float


def request_of(job: Job, resources: ResourcesConfig, trials_at_once: int) -> Request:
    """What ``job`` holds while it runs; a search has a lane per trial at the same time."""
    if job.kind in FITS:
        workers = resources.least_train_workers
        return Request(1, workers * resources.cpus_per_worker, workers * resources.gpus_per_worker)
    lanes = 1
    if job.kind == "search":
        lanes = min(trials_at_once, job.inputs["trials"])
    elif job.kind in SAMPLINGS:
        lanes = resources.sampling_workers
    return Request(lanes, resources.cpus_per_task, resources.gpus_per_task)


def how_many_fit(have: tuple[float, float], request: tuple[float, float]) -> int:
    """How often ``request`` (CPUs, GPUs) fits into ``have``."""
    return int(min(h / r for h, r in zip(have, request, strict=True) if r))


def fixed_trials(config: StudyConfig) -> int | None:
    """How many trials of one search the study runs at a time; None: as many as fit."""
    if config.deterministic:
        return 1  # a suggestion depends on which trials have ended
    return config.search.max_concurrent if config.search else None


def trials_at_once(config: StudyConfig, have: Mapping[str, float]) -> int:
    """How many trials of one search run at the same time on ``{"CPU": ..., "GPU": ...}``."""
    fixed = fixed_trials(config)
    if fixed is not None:
        return fixed
    request = config.resources.cpus_per_task, config.resources.gpus_per_task
    return max(1, how_many_fit((have.get("CPU", 1.0), have.get("GPU", 0.0)), request))


class Shortage(NamedTuple):
    """A request that no node, or not the whole cluster, can hold."""

    key: str
    """The key to change."""
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}; lower {self.key} or use a larger cluster"


def shortages(
    jobs: Iterable[Job],
    resources: ResourcesConfig,
    nodes: Sequence[Mapping[str, float]],
    have: str = "has",
) -> list[Shortage]:
    """Why ``jobs`` can never run on ``nodes`` (``{"CPU": ..., "GPU": ...}`` each); empty if they
    can.

    A task or worker must fit on one node, all workers of a training on the whole cluster. Each
    names the key to change, the first job, the number of others, and the resource; ``have`` is the
    verb of the nodes.
    """
    fits: list[Job] = []
    tasks: list[Job] = []
    for job in jobs:
        (fits if job.kind in FITS else tasks).append(job)
    found = []
    for name in ("CPU", "GPU"):
        field = name.lower() + "s_per"
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        together = sum(node.get(name, 0.0) for node in nodes)
        worker = getattr(resources, f"{field}_worker")
        group = resources.least_train_workers * worker
        for concerned, key, amount, there, where in (
            (fits, f"{field}_worker", worker, most, "largest node"),
            # If one worker does not fit, the group is no news.
            (fits if worker <= most else [], "train_workers", group, together, "cluster"),
            (tasks, f"{field}_task", getattr(resources, f"{field}_task"), most, "largest node"),
        ):
            if concerned and amount > there:
                more = f" (and {len(concerned) - 1} more)" if len(concerned) > 1 else ""
                text = (
                    f"{concerned[0].label}{more} needs {amount:g} {name}, "
                    f"but the {where} {have} {there:g}"
                )
                found.append(Shortage(f"resources.{key}", text))
    return found
