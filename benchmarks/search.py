"""What a search costs beside its trials: python -m benchmarks.search [--trials 100].

Trials that compute nothing, through Tune, the ledger and SQLite, against Optuna's plain ask and
tell in memory with the same sampler. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from mgdm_ray import environment
from mgdm_ray.config import ResourcesConfig, StudyConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.tasks.base import Context
from mgdm_ray.runtime.proposals import draw, sampler_of, setting_of, space

TARGET = 0.3
"""Seconds a trial at most."""
CLASSES = 5
SPACE = {
    "guidance_scale": [1.0, 1.5, 3.0],
    "measurement": ["entropy", "margin", "least_confidence"],
}


class Nothing:
    """A scorer whose trials cost nothing."""

    def decode(self, setting: dict[str, Any]) -> float:
        return float(setting["uncertainty_scale"])

    def score(self, network: str, added: float, repeat: int) -> float:  # noqa: ARG002
        return 1 - (added - 0.1) ** 2

    def cost(self, setting: dict[str, Any]) -> float:  # noqa: ARG002
        return 1.0


def nothing(job: Job, context: Context) -> Nothing:  # noqa: ARG001
    return Nothing()


def job_of(trials: int, sampler: str) -> tuple[Job, StudyConfig]:
    config = StudyConfig.model_validate(
        {
            "name": "benchmark",
            "datasets": ["phantom-fundus"],
            "networks": ["resnet18"],
            "arms": ["disturb"],
            "judge": None,
            "search": {"trials": trials, "sampler": sampler, "space": SPACE},
        }
    )
    plan = make_plan(config, {"phantom-fundus": "x"})
    [job] = [job for job in plan.jobs.values() if job.kind == "search"]
    return job, config


def plain(job: Job, storage: optuna.storages.BaseStorage | None) -> Callable[[], None]:
    """Optuna alone, with our sampler, which remembers, and our space."""
    within = space(job, CLASSES)

    def run() -> None:
        sampler = sampler_of(job, 0)
        study = optuna.create_study(direction="maximize", sampler=sampler, storage=storage)
        scorer = Nothing()
        for _ in range(job.inputs["trials"]):
            trial = study.ask()
            draw(job, within, trial)
            added = scorer.decode(setting_of(job, trial.params))
            study.tell(trial, scorer.score("resnet18", added, 0))

    return run


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--sampler", default="tpe", help="tpe, gp, nsga2, random or grid")
    options = parser.parse_args()
    environment.prepare(local=True)
    # As in Ray's workers; GPSampler imports torch, which reads it then.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from mgdm_ray.runtime import engine, optuna_storage, search

    job, config = job_of(options.trials, options.sampler)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        in_memory = seconds(plain(job, None))
        database = optuna_storage.sqlite_storage(Path(folder) / "plain.db")
        on_disk = seconds(plain(job, database))
        context = Context(folder, f"{folder}/study", {d.name: d for d in config.datasets})
        Path(folder, "out").mkdir()
        with engine.cluster(None):
            whole = seconds(
                lambda: search.search(
                    job,
                    context,
                    Path(folder, "out"),
                    resources=ResourcesConfig(),
                    max_concurrent=1,
                    make_scorer=nothing,
                )
            )
    each = {
        "ask_tell": in_memory / options.trials,
        "ask_tell_sqlite": on_disk / options.trials,
        "search": whole / options.trials,
        "overhead": (whole - in_memory) / options.trials,
    }
    print(f"{options.trials} trials that compute nothing, {options.sampler}, one at a time")
    print(f"plain ask and tell in memory: {each['ask_tell']:.3f} s a trial")
    print(f"plain ask and tell on SQLite: {each['ask_tell_sqlite']:.3f} s a trial")
    print(f"search on Tune, from its start to trials.json: {each['search']:.3f} s a trial")
    reached = "reached" if each["overhead"] <= TARGET else "missed"
    print(f"overhead {each['overhead']:.3f} s a trial; the target of {TARGET} is {reached}")
    print(json.dumps({name: round(value, 4) for name, value in each.items()}))


if __name__ == "__main__":
    main()
