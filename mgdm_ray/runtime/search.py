"""One search job on Ray Tune and Optuna: which guidance setting helps a classifier most?

Optuna's study is the only state that outlives a process: after any death the next start runs the
trials that it lacks, in a new Tune experiment.
"""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from mgdm_ray.config import ResourcesConfig
from mgdm_ray.data.info import dataset_info
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.tasks.base import (
    Context,
    JobError,
    MakeScorer,
    Outcome,
    Scorer,
    reason_of,
    silent,
    trial_scorer,
)
from mgdm_ray.pipeline.tasks.guide_levels import with_levels
from mgdm_ray.pipeline.trials import Trial, best_trial, write_trials
from mgdm_ray.runtime.importance import importance, write_importance
from mgdm_ray.runtime.job_task import device_here
from mgdm_ray.runtime.optuna_storage import open_optuna_storage, optuna_study_name
from mgdm_ray.runtime.proposals import (
    fixed_points,
    propose,
    pruner_of,
    setting_of,
    should_prune,
    space,
)
from mgdm_ray.storage.records import WORKER_DIED, Status
from mgdm_ray.storage.store import Store

METRIC, COST = "score", "cost"
OUTCOME = "outcome"
"""User attribute of an Optuna trial: setting, scores and seconds for its record."""
STATUSES: dict[TrialState, Status] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class _Trial(tune.Trainable):  # type: ignore[misc]
    """Evaluates one setting after another: data and imports are loaded once per actor.

    A step trains one proxy network (the first also decodes) and reports the mean so far. An
    exception in a step is its result, so that Tune retries only lost actors.
    """

    def setup(
        self, config: dict[str, Any], job: Job, context: Context, make_scorer: MakeScorer
    ) -> None:
        self.job, self.make_scorer = job, make_scorer
        # The job's own process has no GPU; this one has what Tune gave the trial.
        self.context = replace(context, device=device_here())
        self.context.set_up_device(job.kind)
        self.scorer: Scorer | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setting = new_config
        self.scores: dict[str, float] = {}
        self.cost: float | None = None
        self.added: Any = None
        self.seconds = 0.0
        return True

    def step(self) -> dict[str, Any]:
        started = time.monotonic()
        failed: dict[str, str] = {}
        try:
            self._train_one()
        except Exception as error:  # noqa: BLE001 - any error of a setting is its result
            failed = {"reason": reason_of(error), "traceback": traceback.format_exc()[-4000:]}
        self.seconds += time.monotonic() - started
        outcome = {
            "setting": self.setting,
            "per_network": self.scores,
            "seconds": round(self.seconds, 3),
            **failed,
        }
        return {
            METRIC: sum(self.scores.values()) / len(self.scores) if self.scores else None,
            COST: self.cost,
            # As text, because Tune flattens nested results.
            OUTCOME: json.dumps(outcome, allow_nan=False),
            "done": bool(failed) or len(self.scores) == len(self.job.inputs["networks"]),
        }

    def _train_one(self) -> None:
        if self.scorer is None:
            self.scorer = self.make_scorer(self.job, self.context)
        if self.added is None:
            self.added = self.scorer.decode(self.setting)
            if self.job.inputs["objective"] == "accuracy_and_cost":
                self.cost = self.scorer.cost(self.setting)
        network, repeats = self.job.inputs["networks"][len(self.scores)], self.job.inputs["repeats"]
        values = [self.scorer.score(network, self.added, repeat) for repeat in range(repeats)]
        value = sum(values) / repeats
        if not math.isfinite(value):
            raise JobError(f"the score of {network} is not finite")
        self.scores[network] = value

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Called when an actor is reused; trials are short and start over after a crash."""
        (Path(checkpoint_dir) / "empty").touch()

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See ``save_checkpoint``."""


class Ledger(OptunaSearch):  # type: ignore[misc]
    """OptunaSearch over a stored study.

    Suggests trials that a dead process left RUNNING first, with their number and parameters, then
    new ones.
    """

    def __init__(self, job: Job, num_classes: int, storage: BaseStorage) -> None:
        self.job, self.within = job, space(job, num_classes)
        self.points = fixed_points(job, self.within)
        self.lost = False
        several = job.inputs["objective"] == "accuracy_and_cost"
        self._names = [METRIC, COST] if several else [METRIC]
        super().__init__(
            space=dict(self.within),
            metric=self._names if several else METRIC,
            mode=["max", "min"] if several else "max",
            sampler=RandomSampler(),  # not used: ``propose`` draws
            study_name=optuna_study_name(job),
            storage=storage,
        )
        self.study: optuna.Study = self._ot_study
        self.study.pruner = pruner_of(job)
        self.open: dict[str, optuna.Trial] = {}
        self.orphans = [t for t in self.trials() if t.state == TrialState.RUNNING]

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def missing(self) -> int:
        """How many trials are not finished yet."""
        finished = sum(trial.state.is_finished() for trial in self.trials())
        return int(self.job.inputs["trials"]) - finished

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.lost:
            # The next suggestion depends on the lost trial, which the next start runs again.
            return str(OptunaSearch.FINISHED)
        if self.orphans:
            chosen = self.orphans.pop(0)
        else:
            self.study.add_trial(propose(self.job, self.within, self.points, self.study))
            chosen = self.trials()[-1]
        self.open[trial_id] = optuna.Trial(self.study, chosen._trial_id)
        return setting_of(self.job, chosen.params)

    def report(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Store the mean over the networks so far; True if the trial should be pruned."""
        trial, step = self.open[trial_id], len(json.loads(result[OUTCOME])["per_network"])
        return self._note(trial, step, result) and should_prune(self.study, trial.number, step)

    def _note(self, trial: optuna.Trial, step: int, result: dict[str, Any]) -> bool:
        """False if there are two objectives, of which Optuna stores no intermediate values."""
        if len(self.study.directions) > 1:
            return False
        # Trial.report would keep the value of a process that died.
        self._storage.set_trial_intermediate_value(trial._trial_id, step, result[METRIC])
        return True

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """``PruningScheduler``, which Tune calls first, reports."""

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: ARG002 - then there is no result
    ) -> None:
        trial = self.open.pop(trial_id, None)
        if trial is None:
            return
        if not result:
            self.lost = True
            return
        outcome = json.loads(result[OUTCOME])
        networks = len(outcome["per_network"])
        values = [result[name] for name in self._names]
        state = TrialState.PRUNED
        if "reason" in outcome:
            state = TrialState.FAIL
        elif networks == len(self.job.inputs["networks"]):
            state = TrialState.COMPLETE
            self._note(trial, networks, result)  # Tune's scheduler does not get the last result
        trial.set_user_attr(OUTCOME, {**outcome, **dict(zip(self._names, values, strict=True))})
        self.study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)

    def save(self, checkpoint_path: str) -> None:
        """The study is stored already."""

    def results(self) -> list[Trial]:
        """The finished trials, by number."""
        several = len(self._names) > 1
        front = {t.number for t in self.study.best_trials} if several else set()
        found = []
        for trial in self.trials():
            if not trial.state.is_finished():
                continue
            outcome, failed = trial.user_attrs[OUTCOME], trial.state == TrialState.FAIL
            reason = outcome.get("reason", "")
            if trial.state == TrialState.PRUNED:
                reason = f"stopped after {len(outcome['per_network'])} networks"
            found.append(
                Trial(
                    number=trial.number,
                    setting=outcome["setting"],
                    status=STATUSES[trial.state],
                    reason=reason,
                    score=None if failed else outcome[METRIC],
                    per_network={} if failed else outcome["per_network"],
                    seconds=outcome["seconds"],
                    cost=outcome[COST] if several and not failed else None,
                    front=trial.number in front,
                )
            )
        return found


class Limiter(ConcurrencyLimiter):  # type: ignore[misc]
    """ConcurrencyLimiter whose limit follows the cluster; at the start Tune lets as many wait."""

    searcher: Ledger

    def __init__(self, ledger: Ledger, limit: Callable[[], int]) -> None:
        super().__init__(ledger, max_concurrent=limit())
        self.limit = limit

    def suggest(self, trial_id: str) -> Any:
        self.max_concurrent = self.limit()
        return super().suggest(trial_id)


class PruningScheduler(FIFOScheduler):  # type: ignore[misc]
    """FIFO that asks Optuna's pruner after each network."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        stop = self.ledger.report(trial.trial_id, result)
        return str(self.STOP if stop else self.CONTINUE)


def search(
    job: Job,
    context: Context,
    folder: Path,
    *,
    resources: ResourcesConfig,
    max_concurrent: int | Callable[[], int],
    make_scorer: MakeScorer = trial_scorer,
) -> Outcome:
    """Run the trials that Optuna's study of ``job`` lacks; write ``trials.json`` and
    ``importance.json``. ``max_concurrent`` is asked before each trial.

    Raises JobError if no trial gave a score, and one that begins with WORKER_DIED if trials are
    missing because their actors died more often than ``resources.max_retries``.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    job = with_levels(job, context)
    ledger = open_ledger(job, context)
    if ledger.missing:
        context = replace(context, progress=silent)
        trainable = tune.with_parameters(_Trial, job=job, context=context, make_scorer=make_scorer)
        limit = max_concurrent if callable(max_concurrent) else lambda: max_concurrent
        _run_missing(Limiter(ledger, limit), trainable, context.store, resources)
    trials = ledger.results()
    best = best_trial(trials)
    if best is None or best.score is None:
        reasons = sorted({trial.reason for trial in trials})
        raise JobError(f"none of {len(trials)} trials gave a score: {'; '.join(reasons)[:300]}")
    # The most accurate trial is on the Pareto front: of equals the cheapest is taken.
    write_trials(folder, trials)
    write_importance(folder, importance(job, ledger.within, ledger.trials()))
    scored = sum(trial.status == "done" for trial in trials)
    metrics = {"best_score": best.score, "trials": float(scored)}
    if best.cost is not None:
        metrics["best_cost"] = best.cost
    return {"setting": dict(best.setting), "split": "val", "metrics": metrics}


def open_ledger(job: Job, context: Context) -> Ledger:
    """The search's ledger; a new one if all trials of the old one have failed.

    Such a search starts again only with --retry-failed, after its cause was fixed.
    """
    classes = dataset_info(context.datasets[job.dataset], context.data_dir).num_classes
    storage = open_optuna_storage(job, context)
    ledger = Ledger(job, classes, storage)
    trials = ledger.trials()
    if not ledger.missing and all(trial.state == TrialState.FAIL for trial in trials):
        optuna.delete_study(study_name=optuna_study_name(job), storage=storage)
        ledger = Ledger(job, classes, storage)
    return ledger


def _run_missing(
    limiter: Limiter, trainable: Any, store: Store, resources: ResourcesConfig
) -> None:
    """Run a new Tune experiment; files of earlier ones in the scratch folder are removed."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ledger = limiter.searcher
    kind, key = ledger.job.kind, ledger.job.key
    store.clear(store.work(kind, key))
    path, file_system = store.ray_storage(kind, key)
    requested = {"CPU": resources.cpus_per_task, "GPU": resources.gpus_per_task}
    tuner = tune.Tuner(
        tune.with_resources(trainable, requested),
        tune_config=tune.TuneConfig(
            num_samples=ledger.missing,
            search_alg=limiter,
            scheduler=PruningScheduler(ledger),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=file_system,
            verbose=0,
            # Only lost actors fail: an error in a step is a result.
            failure_config=tune.FailureConfig(max_failures=resources.max_retries),
        ),
    )
    errors = [error for error in tuner.fit().errors if isinstance(error, Exception)]
    if ledger.missing:
        reasons = "; ".join(dict.fromkeys(reason_of(error) for error in errors))
        own = any(isinstance(error, RayTaskError) for error in errors)
        raise JobError(
            f"{'the search failed' if own else WORKER_DIED}, {ledger.missing} trials are missing: "
            f"{reasons or 'no reason is known'}"
        )
