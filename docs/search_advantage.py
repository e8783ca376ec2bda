"""Draws docs/search_advantage.png and prints its table: python -m docs.search_advantage STORAGE.

Runs the search of studies/medmnist-cpu.yaml on one of its datasets with TPE and with random
settings, at equal budget and over several search seeds, and scores what each search chose with
fresh seeds. STORAGE is one in which that study has run: denoiser, guide and latents are reused.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from mgdm_ray import environment
from mgdm_ray.config import ResourcesConfig, StudyConfig
from mgdm_ray.data.load import data_source
from mgdm_ray.evaluation.selection_bias import Confirmed
from mgdm_ray.evaluation.stats.paired import Contrast, paired_contrast, summarise
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.tasks import base
from mgdm_ray.pipeline.tasks.base import Context, Outcome
from mgdm_ray.pipeline.tasks.confirm import CONFIRM_FILE

SAMPLERS = ("tpe", "random")
STUDY = Path("studies/medmnist-cpu.yaml")
NETWORK = "googlenet"
COLOURS = {"tpe": "#c8384f", "random": "#5b6470"}


def config_of(options: argparse.Namespace, sampler: str, seed: int) -> StudyConfig:
    study: dict[str, Any] = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    datasets = [d if isinstance(d, dict) else {"name": d} for d in study["datasets"]]
    study["datasets"] = [d for d in datasets if d["name"] == options.dataset]
    study |= {"networks": [NETWORK], "arms": ["disturb"], "deterministic": True, "judge": None}
    study["search"] = {
        "trials": options.trials,
        "sampler": sampler,
        "seed": seed,
        "networks": [NETWORK],
        "images": options.images,
        "steps": options.steps,
        "confirm": {"settings": 1, "seeds": options.fresh},
        "space": {
            "measurement": ["entropy", "energy"],
            "uncertainty_scale": {"low": 0.01, "high": 0.5},
        },
    }
    return StudyConfig.model_validate(study)


def run_search(job: Job, context: Context, folder: Path) -> Outcome:
    from mgdm_ray.runtime import search

    return search.search(job, context, folder, resources=ResourcesConfig(), max_concurrent=1)


def measured(options: argparse.Namespace, sampler: str, seed: int) -> tuple[list[float], float]:
    """(score of each trial in order, fresh score of the best setting)."""
    config = config_of(options, sampler, seed)
    plan = make_plan(config, {d.name: data_source(d).fingerprint() for d in config.datasets})
    context = Context(
        storage=str(Path(options.storage).absolute()),
        study_folder=str(Path(options.storage).absolute() / "studies" / f"{sampler}-{seed}"),
        datasets={d.name: d for d in config.datasets},
        compile="never",
        sampling_batch=64,
        deterministic=True,
    )
    for job in plan.jobs.values():
        if job.kind not in ("decode", "fit_downstream"):
            record = base.run(job, context, {"search": run_search})
            if record.status != "done":
                raise SystemExit(f"{job.label}: {record.reason}")
    [search] = [job for job in plan.jobs.values() if job.kind == "search"]
    [confirm] = [job for job in plan.jobs.values() if job.kind == "confirm"]
    trials = json.loads((context.store.folder("search", search.key) / "trials.json").read_text())
    found = json.loads((context.store.folder("confirm", confirm.key) / CONFIRM_FILE).read_text())
    return [row["score"] for row in trials], Confirmed.of(found).chosen.fresh


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    environment.prepare(local=True)
    from mgdm_ray.runtime import engine

    started = time.monotonic()
    scores: dict[str, list[list[float]]] = {name: [] for name in SAMPLERS}
    fresh: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    with engine.cluster(None):
        for seed in range(options.seeds):
            for sampler in SAMPLERS:
                trials, again = measured(options, sampler, seed)
                scores[sampler].append(trials)
                fresh[sampler].append(again)
                print(
                    f"{time.monotonic() - started:6.0f} s  {sampler} seed {seed}: best "
                    f"{max(trials):.3f}, fresh {again:.3f}",
                    file=sys.stderr,
                    flush=True,
                )
    best = {name: np.maximum.accumulate(np.array(rows), axis=1) for name, rows in scores.items()}
    final = {name: rows[:, -1].tolist() for name, rows in best.items()}
    print(table(final, fresh))
    draw(best, fresh, options)


def table(final: dict[str, list[float]], fresh: dict[str, list[float]]) -> str:
    lines = [
        "| | best score of the search | the same setting, fresh seeds |",
        "| --- | --- | --- |",
    ]
    for name in SAMPLERS:
        cells = [summarise(values[name]).text() for values in (final, fresh)]
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} |")
    cells = [_shown(difference(values)) for values in (final, fresh)]
    lines.append(f"| difference | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def difference(values: dict[str, list[float]]) -> Contrast:
    """TPE minus random, paired by search seed."""
    return paired_contrast(values["tpe"], values["random"], ["one"] * len(values["tpe"]))


def _shown(contrast: Contrast) -> str:
    assert contrast.here is not None  # several searches of one dataset
    one = contrast.here.estimate
    return f"{one.difference:+.3f} ({one.low:+.3f} to {one.high:+.3f}, p = {one.p:.2f})"


def draw(
    best: dict[str, np.ndarray], fresh: dict[str, list[float]], options: argparse.Namespace
) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    number = np.arange(1, options.trials + 1)
    for place, name in enumerate(SAMPLERS):
        for row in best[name]:
            left.step(number, row, where="post", color=COLOURS[name], lw=0.7, alpha=0.4)
        mean = best[name].mean(axis=0)
        left.step(number, mean, where="post", color=COLOURS[name], lw=2.4, label=name)
        places = np.full(len(fresh[name]), float(place))
        right.plot(places, fresh[name], "o", color=COLOURS[name], alpha=0.5, mew=0)
        middle = float(np.mean(fresh[name]))
        right.plot([place - 0.25, place + 0.25], [middle] * 2, color=COLOURS[name], lw=3)
    left.set(
        xlabel="trials",
        ylabel="validation balanced accuracy",
        title=f"{options.dataset}: best score so far, {options.seeds} search seeds",
    )
    right.set(title="chosen, fresh seeds", xlim=(-0.6, 1.6))
    right.set_xticks(range(len(SAMPLERS)), SAMPLERS)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(loc="lower right")
    figure.savefig(Path(__file__).with_name("search_advantage.png"), dpi=120)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m docs.search_advantage")
    add = parser.add_argument
    add("storage", help="of a finished studies/medmnist-cpu.yaml")
    add("--dataset", default="breastmnist")
    add("--seeds", type=int, default=6, help="searches per sampler")
    add("--trials", type=int, default=12, help="per search")
    add("--images", type=int, default=32, help="per trial")
    add("--steps", type=int, default=24, help="of the proxy network")
    add("--fresh", type=int, default=3, help="seeds with which the chosen settings are scored")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
