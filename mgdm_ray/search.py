"""Ray Tune + OptunaSearch for one search job: which guidance setting helps a classifier most?"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import ray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from mgdm_ray.config import GuidanceControls, ResourcesConfig
from mgdm_ray.data.info import dataset_info
from mgdm_ray.jobs.base import Context, JobError, Outcome, silent
from mgdm_ray.seeding import derive_seed

if TYPE_CHECKING:
    from mgdm_ray.plan import Job

METRIC = "score"


def space(job: Job, num_classes: int) -> dict[str, BaseDistribution]:
    """What this search may choose.

    For two classes entropy, margin and least confidence are functions of |p1 - p2| that fall with
    it, so their gradients have one direction, and ``normalised`` and ``relative`` keep nothing
    but the direction: only the first one is tried. Energy and mutual information are no such
    functions and stay. ``raw`` keeps lengths, and so does the sum with ``label_scale``; there
    only ``margin`` and ``least_confidence`` are one, at half the scale (p1 - p2 = 2 max p - 1).
    """
    inputs = job.inputs
    measurements = list(inputs["space"]["measurement"])
    if num_classes == 2:
        alike = [m for m in measurements if m in ("entropy", "margin", "least_confidence")]
        raw = inputs["space"]["gradient"] == "raw" or "measurement" in inputs.get("reference", ())
        if raw or inputs["space"]["label_scale"]:
            alike = [m for m in alike if m != "entropy"]
            alike.sort(key="least_confidence".__ne__)
        measurements = [m for m in measurements if m not in alike[1:]]
    scale = inputs["space"]["uncertainty_scale"]
    return {
        "stage_one": CategoricalDistribution(list(range(len(inputs["stage_one"])))),
        "measurement": CategoricalDistribution(measurements),
        "uncertainty_scale": FloatDistribution(scale["low"], scale["high"], log=scale["log"]),
    }


def setting_of(job: Job, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The guidance setting behind a point of the space."""
    guidance_scale, classifier_scale = job.inputs["stage_one"][chosen["stage_one"]]
    return {
        "guidance_scale": guidance_scale,
        "classifier_scale": classifier_scale,
        "measurement": chosen["measurement"],
        "uncertainty_scale": chosen["uncertainty_scale"],
        **{name: job.inputs["space"][name] for name in GuidanceControls.model_fields},
    }


class _Trial(tune.Trainable):  # type: ignore[misc]
    """One setting after another in one actor: data and imports are paid for once.

    A step decodes (the first one) and trains one proxy network, and reports the mean so far.
    """

    def setup(self, config: dict[str, Any], job: Job, context: Context) -> None:
        # Only here: the process that steers the search computes nothing.
        from mgdm_ray.jobs.trial import TrialScorer

        self.job = job
        # The process that steers the search has no GPU; this one has what the trial was given.
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.scorer = TrialScorer(job, replace(context, device=device))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setting = setting_of(self.job, new_config)
        self.scores: dict[str, float] = {}
        self.added: Any = None
        return True

    def step(self) -> dict[str, Any]:
        if self.added is None:
            self.added = self.scorer.decode(self.setting)
        networks = self.job.inputs["networks"]
        network = networks[len(self.scores)]
        value = self.scorer.score(network, self.added)
        if not math.isfinite(value):
            # A NaN would leave Optuna's trial running for ever.
            raise JobError(f"the score of {network} is not finite")
        self.scores[network] = value
        return {
            METRIC: sum(self.scores.values()) / len(self.scores),
            "per_network": dict(self.scores),
            "done": len(self.scores) == len(networks),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Called at reuse only; a trial is short and starts over after a crash."""
        (Path(checkpoint_dir) / "empty").touch()

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: see ``save_checkpoint``."""


def optuna_storage(folder: Path) -> JournalStorage:
    """A journal: several processes of one machine may write it, and optuna-dashboard reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))


def optuna_study_name(job: Job) -> str:
    return f"{job.label} {job.key[:12]}"


def search(
    job: Job, context: Context, folder: Path, *, resources: ResourcesConfig, max_concurrent: int
) -> Outcome:
    """Run (or go on with) the Tune experiment of ``job``; write ``trials.json``.

    Raises JobError if no trial gave a score.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work = context.store.work(job.kind, job.key)
    total = job.inputs["trials"]
    trainable = tune.with_resources(
        tune.with_parameters(_Trial, job=job, context=replace(context, progress=silent)),
        {"CPU": resources.cpus_per_task, "GPU": resources.gpus_per_task},
    )
    experiment = work / "tune"
    # Tune's own can_restore is content with a Tuner that has not begun, and would then run a
    # single trial.
    if list(experiment.glob("experiment_state-*.json")):
        tuner = tune.Tuner.restore(str(experiment), trainable, resume_errored=True)
    else:
        tuner = _fresh_tuner(job, context, trainable, work, max_concurrent)
    results = tuner.fit()
    if len(results) != total:
        shutil.rmtree(work, ignore_errors=True)
        raise JobError(f"the search ended with {len(results)} of {total} trials; it starts anew")
    trials = [_row(job, result) for result in results]
    for number, row in enumerate(trials):
        row["number"] = number
    scored = [row for row in trials if row["status"] == "done"]
    if not scored:
        reasons = sorted({row["reason"] for row in trials})
        raise JobError(f"none of {total} trials gave a score: {'; '.join(reasons)[:300]}")
    best = max(scored, key=lambda row: row["score"])
    (folder / "trials.json").write_text(json.dumps(trials, allow_nan=False), encoding="utf-8")
    return {
        "setting": best["setting"],
        "split": "val",
        "metrics": {"best_score": best["score"], "trials": float(len(scored))},
    }


def _fresh_tuner(
    job: Job, context: Context, trainable: Any, work: Path, max_concurrent: int
) -> tune.Tuner:
    shutil.rmtree(work, ignore_errors=True)
    storage = optuna_storage(Path(context.study_folder))
    name = optuna_study_name(job)
    # A search that died before its first snapshot left trials that nobody will finish.
    if name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    seed = derive_seed("search", job.inputs["seed"]) % 2**32
    samplers = {
        "tpe": optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=5),
        "random": optuna.samplers.RandomSampler(seed=seed),
    }
    info = dataset_info(context.datasets[job.dataset], context.data_dir)
    algorithm = OptunaSearch(
        space=space(job, info.num_classes),
        metric=METRIC,
        mode="max",
        sampler=samplers[job.inputs["sampler"]],
        study_name=name,
        storage=storage,
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=job.inputs["trials"],
            search_alg=ConcurrencyLimiter(algorithm, max_concurrent=max_concurrent),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(work),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )


def _row(job: Job, result: Any) -> dict[str, Any]:
    metrics = result.metrics or {}
    config = metrics.get("config") or result.config or {}
    row: dict[str, Any] = {
        "setting": setting_of(job, config) if config else {},
        "seconds": round(float(metrics.get("time_total_s", 0.0)), 3),
    }
    if result.error is not None:
        lines = str(result.error).strip().splitlines()
        return {**row, "status": "failed", "reason": lines[-1] if lines else "unknown"}
    networks = len(metrics.get("per_network", {}))
    complete = networks == len(job.inputs["networks"])
    row |= {"score": metrics[METRIC], "per_network": metrics["per_network"]}
    if complete:
        return {**row, "status": "done", "reason": ""}
    return {**row, "status": "pruned", "reason": f"stopped after {networks} networks"}
