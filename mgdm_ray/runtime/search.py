"""Ray Tune + OptunaSearch for one search job: which guidance setting helps a classifier most?

Optuna's study in the study folder is the only memory of a search. Whatever dies, the next start
runs what the study lacks: a Tune experiment lives as long as its process.
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
from typing import TYPE_CHECKING, Any, Protocol

import optuna
import ray
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from mgdm_ray.config import ResourcesConfig
from mgdm_ray.data.info import dataset_info
from mgdm_ray.pipeline.tasks.base import Context, JobError, Outcome, reason_of, silent
from mgdm_ray.pipeline.trials import Trial, best_trial, write_trials
from mgdm_ray.runtime.importance import importance, write_importance
from mgdm_ray.runtime.optuna_storage import ObjectJournal
from mgdm_ray.runtime.proposals import (
    fixed_points,
    propose,
    pruner_of,
    setting_of,
    should_prune,
    space,
)
from mgdm_ray.storage.records import WORKER_DIED, Status
from mgdm_ray.storage.remote.objects import Objects, is_url

if TYPE_CHECKING:
    from mgdm_ray.pipeline.plan import Job

METRIC, COST = "score", "cost"
OUTCOME = "outcome"
"""The user attribute of an Optuna trial that holds what its record needs."""
STATUSES: dict[TrialState, Status] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class Scorer(Protocol):
    """What one trial computes. Lives in the trial's actor and serves one setting after another."""

    def decode(self, setting: dict[str, Any]) -> Any:
        """The images of this setting, as ``score`` wants them."""

    def score(self, network: str, added: Any, repeat: int) -> float:
        """Validation score of ``network``, higher is better; ``repeat`` 0, 1, ... is its seed."""

    def cost(self, setting: dict[str, Any]) -> float:
        """What an image of this setting costs: the second objective, lower is better."""


MakeScorer = Callable[["Job", Context], Scorer]


def trial_scorer(job: Job, context: Context) -> Scorer:
    """The real one. Imported here: the process that steers the search computes nothing."""
    from mgdm_ray.pipeline.tasks.trial import TrialScorer

    return TrialScorer(job, context)


class _Trial(tune.Trainable):  # type: ignore[misc]
    """One setting after another in one actor: data and imports are paid for once.

    A step decodes (the first one) and trains one proxy network, and reports the mean so far. What
    goes wrong in a step is its result: Tune starts again only what it lost.
    """

    def setup(
        self, config: dict[str, Any], job: Job, context: Context, make_scorer: MakeScorer
    ) -> None:
        self.job, self.make_scorer = job, make_scorer
        # The process that steers the search has no GPU; this one has what the trial was given.
        self.context = replace(context, device="cuda" if ray.get_gpu_ids() else "cpu")
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
        except Exception as error:  # noqa: BLE001 - whatever a setting dies of is its result
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
            # Text: Tune flattens what is nested.
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
        """Called at reuse only; a trial is short and starts over after a crash."""
        (Path(checkpoint_dir) / "empty").touch()

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: see ``save_checkpoint``."""


def storage_path(job: Job, context: Context) -> Path:
    """A database per search, so that only one process ever writes it."""
    # '+' is in no name of a dataset or network.
    name = "+".join(part for part in (job.dataset, job.network) if part)
    return Path(context.study_folder) / "optuna" / f"{name}.db"


def optuna_storage(path: Path) -> RDBStorage:
    """Optuna's trials in ``path``, an SQLite file that optuna-dashboard reads."""
    if not path.exists():
        # Complete or not at all: Optuna makes its tables in several steps.
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        RDBStorage(f"sqlite:///{temporary}").engine.dispose()
        temporary.rename(path)
    # A dashboard may be reading.
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


def open_storage(job: Job, context: Context) -> BaseStorage:
    """Where Optuna keeps the trials of ``job``: where the store is, whichever node asks."""
    path = storage_path(job, context)
    if not is_url(context.storage):
        return optuna_storage(path)
    prefix = f"optuna/{Path(context.study_folder).name}/{path.stem}"
    return JournalStorage(ObjectJournal(Objects(context.storage), prefix))


def optuna_study_name(job: Job) -> str:
    return f"{job.label} {job.key[:12]}"


class Ledger(OptunaSearch):  # type: ignore[misc]
    """OptunaSearch over a study that outlives its process.

    Trials that a dead process left RUNNING are handed out first, with their number and parameters,
    then new ones. Nothing else remembers a trial.
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
            sampler=RandomSampler(),  # never asked: ``propose`` is
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
        """How many trials are still to be finished."""
        finished = sum(trial.state.is_finished() for trial in self.trials())
        return int(self.job.inputs["trials"]) - finished

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.lost:
            # What comes after a trial depends on how it ended: the next start tries it again.
            return str(OptunaSearch.FINISHED)
        if self.orphans:
            chosen = self.orphans.pop(0)
        else:
            self.study.add_trial(propose(self.job, self.within, self.points, self.study))
            chosen = self.trials()[-1]
        self.open[trial_id] = optuna.Trial(self.study, chosen._trial_id)
        return setting_of(self.job, chosen.params)

    def report(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Note the mean over the networks so far; True where the trial should be pruned."""
        trial, step = self.open[trial_id], len(json.loads(result[OUTCOME])["per_network"])
        return self._note(trial, step, result) and should_prune(self.study, trial.number, step)

    def _note(self, trial: optuna.Trial, step: int, result: dict[str, Any]) -> bool:
        """False where there is no single score that could be noted."""
        if len(self.study.directions) > 1:
            return False
        # Not Trial.report, which keeps the first value of a step: here, of a process that died.
        self._storage.set_trial_intermediate_value(trial._trial_id, step, result[METRIC])
        return True

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: Tune tells its scheduler first, and ``PruningScheduler`` reports."""

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: ARG002 - no result says the same
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
            self._note(trial, networks, result)  # Tune's scheduler never sees the last result
        trial.set_user_attr(OUTCOME, {**outcome, **dict(zip(self._names, values, strict=True))})
        self.study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk."""

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


class PruningScheduler(FIFOScheduler):  # type: ignore[misc]
    """First come, first served; asks Optuna's pruner after each network."""

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
    max_concurrent: int,
    make_scorer: MakeScorer = trial_scorer,
) -> Outcome:
    """Run what Optuna's study of ``job`` lacks; write ``trials.json`` and ``importance.json``.

    Raises JobError if no trial gave a score, and one that begins with WORKER_DIED if trials are
    missing because their actors died more often than ``resources.max_retries``.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ledger = open_ledger(job, context)
    if ledger.missing:
        _run_missing(ledger, job, context, resources, max_concurrent, make_scorer)
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
    """The search's ledger; a new one where all trials of the old one have failed.

    Only somebody who has mended the cause starts such a search again.
    """
    classes = dataset_info(context.datasets[job.dataset], context.data_dir).num_classes
    storage = open_storage(job, context)
    ledger = Ledger(job, classes, storage)
    trials = ledger.trials()
    if not ledger.missing and all(trial.state == TrialState.FAIL for trial in trials):
        optuna.delete_study(study_name=optuna_study_name(job), storage=storage)
        ledger = Ledger(job, classes, storage)
    return ledger


def _run_missing(
    ledger: Ledger,
    job: Job,
    context: Context,
    resources: ResourcesConfig,
    max_concurrent: int,
    make_scorer: MakeScorer,
) -> None:
    """One Tune experiment; what an earlier one left in the scratch folder is worth nothing."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    store = context.store
    store.clear(store.work(job.kind, job.key))
    path, file_system = store.ray_storage(job.kind, job.key)
    trainable = tune.with_parameters(
        _Trial, job=job, context=replace(context, progress=silent), make_scorer=make_scorer
    )
    tuner = tune.Tuner(
        tune.with_resources(
            trainable, {"CPU": resources.cpus_per_task, "GPU": resources.gpus_per_task}
        ),
        tune_config=tune.TuneConfig(
            num_samples=ledger.missing,
            search_alg=ConcurrencyLimiter(ledger, max_concurrent=max_concurrent),
            scheduler=PruningScheduler(ledger),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=file_system,
            verbose=0,
            # A step's own errors are results: what is left are deaths of actors.
            failure_config=tune.FailureConfig(max_failures=resources.max_retries),
        ),
    )
    results = tuner.fit()
    if not ledger.missing:
        return
    errors = [error for error in results.errors if isinstance(error, Exception)]
    reasons = "; ".join(dict.fromkeys(reason_of(error) for error in errors))
    own = any(isinstance(error, RayTaskError) for error in errors)
    raise JobError(
        f"{'the search broke' if own else WORKER_DIED}, {ledger.missing} trials are missing: "
        f"{reasons or 'no reason is known'}"
    )
