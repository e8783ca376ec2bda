"""How the engine grows: python -m benchmarks.scale [--cells 10000] [--close].

Simulated work (jobs that sleep) over four local raylets: planning, scheduling, the driver's memory,
and what it costs to find that a finished study is finished. Runs with a tenth of the cells first,
to show how each figure grows. ``--close`` also writes MLflow and the report and times the command
line on the finished study. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from mgdm_ray import environment

environment.prepare(local=True)

import ray  # noqa: E402 - reads its environment when it is imported
from ray import cloudpickle  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from mgdm_ray.config import StudyConfig  # noqa: E402
from mgdm_ray.data.load import data_source  # noqa: E402
from mgdm_ray.pipeline.job import KINDS, Job  # noqa: E402
from mgdm_ray.pipeline.plan import Plan, make_plan  # noqa: E402
from mgdm_ray.pipeline.tasks import base  # noqa: E402
from mgdm_ray.pipeline.tasks.base import Context, Outcome  # noqa: E402
from mgdm_ray.runtime import engine  # noqa: E402
from mgdm_ray.runtime.job_task import RunOptions  # noqa: E402
from mgdm_ray.storage.locks import Locks  # noqa: E402
from mgdm_ray.storage.records import Record  # noqa: E402

cloudpickle.register_pickle_by_value(sys.modules[__name__])

RAYLETS, SLOTS, SLEEP_S = 4, 4, 0.01
PHANTOMS = ("phantom-ultrasound", "phantom-fundus", "phantom-xray", "phantom-dermatoscopy")


def study(cells: int) -> dict[str, Any]:
    """4 datasets x 5 networks x 5 arms x seeds."""
    return {
        "name": f"scale-{cells}",
        "datasets": [
            {"name": name, "phantom": {"train": 40, "val": 20, "test": 20}} for name in PHANTOMS
        ],
        "image_size": 16,
        "networks": ["alexnet", "googlenet", "resnet18", "squeezenet1_1", "mobilenet_v2"],
        "arms": ["real", "duplicate", "generate", "roundtrip", "disturb"],
        "seeds": cells // 100,
        "judge": None,
        "search": {"trials": 1},
    }


def sleep(job: Job, context: Context, folder: Path) -> Outcome:  # noqa: ARG001
    """Stands for every kind of work; a cell's score is a function of its key."""
    time.sleep(SLEEP_S)
    score = 0.5 + int(job.key[:6], 16) / 2**26
    setting: dict[str, Any] = {}
    if job.kind in ("search", "generate", "encode"):
        scales = {"guidance_scale": 1.5, "classifier_scale": 0.0}
        setting = scales if job.kind != "search" else {**scales, "measurement": "entropy"}
    if job.kind == "search":
        (folder / "trials.json").write_text("[]")
    split = {"fit_downstream": "test", "search": "val"}.get(job.kind)
    metrics = {"balanced_accuracy": score, "best_score": score, "loss": score}
    return {"metrics": metrics, "setting": setting, "split": split}


def measure(cells: int, folder: Path, close: bool) -> dict[str, float]:
    file = folder / f"{cells}.yaml"
    file.write_text(yaml.safe_dump(study(cells)))
    storage = folder / f"runs-{cells}"
    config = StudyConfig.model_validate(study(cells))
    prints = {d.name: data_source(d).fingerprint() for d in config.datasets}
    started = time.perf_counter()
    plan = make_plan(config, prints)
    planning = time.perf_counter() - started
    seconds, memory = _run(plan, config, storage)
    found = {"planning_s": planning, "jobs_per_s": len(plan.jobs) / seconds, "driver_mib": memory}
    started = time.perf_counter()
    context = Context(storage=str(storage), study_folder=str(storage), datasets={})
    done = [base.stored_record(context.store, j.kind, k) for k, j in plan.jobs.items()]
    assert all(record.status == "done" for record in done)
    found["reading_s"] = time.perf_counter() - started
    if close:
        for name in ("close_s", "resume_s"):
            started = time.perf_counter()
            command = [sys.executable, "-m", "mgdm_ray.study", str(file)]
            subprocess.run(
                [*command, "--storage", str(storage)], check=True, stdout=subprocess.DEVNULL
            )
            found[name] = time.perf_counter() - started
    print(f"{cells} cells, {len(plan.jobs)} jobs: {_shown(found)}", flush=True)
    return found


class _Watch:
    """Keeps the records and the driver's memory at its largest in MiB."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.process, self.peak = psutil.Process(), 0.0

    def ended(self, job: Job, record: Record) -> None:  # noqa: ARG002
        self.records.append(record)

    def live(self, rows: object) -> None:  # noqa: ARG002
        self.peak = max(self.peak, self.process.memory_info().rss / 2**20)

    def say(self, text: str) -> None:
        print(text)


def _run(plan: Plan, config: StudyConfig, storage: Path) -> tuple[float, float]:
    """(seconds, the driver's memory at its largest in MiB)."""
    watch = _Watch()
    context = Context(
        storage=str(storage),
        study_folder=str(storage),
        datasets={d.name: d for d in config.datasets},
    )
    started = time.perf_counter()
    engine.run_plan(
        plan.jobs,
        {},
        context,
        RunOptions(config.resources, 1),
        Locks(storage),
        watch,
        functions=dict.fromkeys(KINDS, sleep),
    )
    seconds = time.perf_counter() - started
    assert len(watch.records) == len(plan.jobs)
    assert {record.status for record in watch.records} == {"done"}, watch.records[-1].reason
    return seconds, watch.peak


def _shown(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000, help="a multiple of 1000")
    parser.add_argument("--close", action="store_true", help="write MLflow and the report too")
    options = parser.parse_args()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": SLOTS})
    for _ in range(RAYLETS - 1):
        cluster.add_node(num_cpus=SLOTS)
    ray.init(address=cluster.address, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        print(f"{RAYLETS} raylets of {SLOTS} slots, jobs of {SLEEP_S * 1000:.0f} ms", flush=True)
        few = measure(options.cells // 10, Path(folder), options.close)
        many = measure(options.cells, Path(folder), options.close)
    for name, value in many.items():
        print(f"{name}: {few[name]:.2f} -> {value:.2f}, {value / few[name]:.1f} times")
    print(json.dumps({name: round(value, 2) for name, value in many.items()}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
