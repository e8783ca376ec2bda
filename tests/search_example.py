"""A search whose trials are a formula, for tests that are about the search itself.

Run as a program it is a process that can be killed: ``python -m tests.search_example FOLDER JSON``
runs the search with those options and leaves ``FOLDER/trials.json``.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mgdm_ray.config import ResourcesConfig, StudyConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.tasks.base import Context, Outcome
from mgdm_ray.runtime import search
from tests.conftest import TINY

OPTIONS: dict[str, Any] = {
    "trials": 8,
    "networks": ["squeezenet1_1", "alexnet", "resnet18", "googlenet"],
    "space": {
        "guidance_scale": [1.0, 2.0],
        "measurement": ["entropy", "energy"],
        "per_measurement": {"energy": {"uncertainty_scale": {"low": 0.001, "high": 0.01}}},
    },
}


def search_job(**options: Any) -> Job:
    study = {**TINY, "search": {**OPTIONS, **options}}
    config = StudyConfig.model_validate(study)
    plan = make_plan(config, {"phantom-ultrasound": "x"})
    return next(job for job in plan.jobs.values() if job.kind == "search")


def context_of(folder: Path) -> Context:
    datasets = StudyConfig.model_validate(TINY).datasets
    return Context(str(folder), str(folder / "study"), {d.name: d for d in datasets})


class Formula:
    """Deterministic scores; every network and repeat its own."""

    def __init__(self, job: Job, context: Context) -> None:
        self.job, self.folder = job, Path(context.storage)

    def decode(self, setting: dict[str, Any]) -> dict[str, Any]:
        return setting

    def score(self, network: str, added: dict[str, Any], repeat: int) -> float:
        scale, best = added["uncertainty_scale"], 0.004 if added["measurement"] == "energy" else 0.1
        value = math.exp(-(math.log(scale / best) ** 2)) - 0.1 * added["guidance_scale"]
        return value + 0.01 * len(network) * math.sin(100 * scale) + 0.001 * repeat

    def cost(self, setting: dict[str, Any]) -> float:
        return 10 * float(setting["guidance_scale"])


class Slow(Formula):
    """Gives a killer time to come at any moment."""

    def score(self, network: str, added: dict[str, Any], repeat: int) -> float:
        time.sleep(0.05)
        return super().score(network, added, repeat)


class Dying(Formula):
    """Its process is killed as often as the file ``deaths`` says, in one trial after two networks.

    The trial that dies is the first one whose classifier-free scale is 2.
    """

    def score(self, network: str, added: dict[str, Any], repeat: int) -> float:
        left = self.folder / "deaths"
        count = int(left.read_text()) if left.exists() else 0
        if count and network == "resnet18" and added["guidance_scale"] == 2:
            left.write_text(str(count - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(network, added, repeat)


class Failing(Formula):
    """Raises for one measurement, and gives no number for the first strong push of the other."""

    def decode(self, setting: dict[str, Any]) -> dict[str, Any]:
        if setting["measurement"] == "energy":
            raise ValueError("energy is out")
        return setting

    def score(self, network: str, added: dict[str, Any], repeat: int) -> float:
        if network == "resnet18" and added["guidance_scale"] == 2:
            return math.nan
        return super().score(network, added, repeat)


def run(
    job: Job,
    folder: Path,
    make_scorer: search.MakeScorer = Formula,
    max_concurrent: int = 1,
    max_retries: int = 1,
) -> tuple[Outcome, list[dict[str, Any]]]:
    """The search's outcome and its trials.json without the seconds."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    outcome = search.search(
        job,
        context_of(folder),
        out,
        resources=ResourcesConfig(cpus_per_task=0.5, max_retries=max_retries),
        max_concurrent=max_concurrent,
        make_scorer=make_scorer,
    )
    return outcome, without_seconds(json.loads((out / "trials.json").read_text()))


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


if __name__ == "__main__":
    from mgdm_ray.runtime import engine

    with engine.cluster(None):
        run(search_job(**json.loads(sys.argv[2])), Path(sys.argv[1]), Slow)
