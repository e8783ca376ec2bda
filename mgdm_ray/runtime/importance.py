"""Importance of a search's parameters, by Optuna's fANOVA."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from mgdm_ray.pipeline.job import Job
from mgdm_ray.runtime.proposals import strength_name

IMPORTANCE_FILE = "importance.json"
FEWEST = 4
"""Finished trials that fANOVA needs."""
STRENGTH = "uncertainty_scale"


def importance(
    job: Job, within: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial]
) -> dict[str, Any]:
    """``{"trials": number, "importance": {name: share of the explained variance}, "reason": ""}``.

    Of the finished trials' first objective; empty, with the reason, if it is not defined. The
    strength is its place in the range of the trial's measurement: one parameter for all ranges.
    The trees have a fixed seed.
    """
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    found: dict[str, Any] = {"trials": len(done), "importance": {}, "reason": ""}
    if len(done) < FEWEST:
        return {**found, "reason": f"{len(done)} finished trials are too few, {FEWEST} are needed"}
    if len({trial.values[0] for trial in done}) == 1:
        return {**found, "reason": "all trials have the same score"}
    flat = [_flat(job, within, trial) for trial in done]
    varied = [name for name in flat[0].params if len({trial.params[name] for trial in flat}) > 1]
    if len(varied) < 2:  # a single one has all of the importance by definition
        only = f"only {varied[0]} differs" if varied else "nothing differs"
        return {**found, "reason": f"{only} between the trials"}
    study = optuna.create_study(direction="maximize")
    study.add_trials(flat)
    shares = get_param_importances(
        study, evaluator=FanovaImportanceEvaluator(seed=0), params=varied
    )
    if not all(map(math.isfinite, shares.values())) or not sum(shares.values()):
        return {**found, "reason": "no parameter explains any of the scores' variance"}
    return {**found, "importance": {name: float(shares[name]) for name in sorted(shares)}}


def _flat(job: Job, within: Mapping[str, BaseDistribution], trial: FrozenTrial) -> FrozenTrial:
    """The trial with its strength as one parameter in [0, 1]."""
    name = strength_name(job, trial.params["measurement"])
    shared = ("stage_one", "measurement")
    return create_trial(
        params={
            **{key: trial.params[key] for key in shared},
            STRENGTH: _place(within[name], trial.params[name]),
        },
        distributions={
            **{key: within[key] for key in shared},
            STRENGTH: FloatDistribution(0.0, 1.0),
        },
        value=trial.values[0],
    )


def _place(distribution: BaseDistribution, value: float) -> float:
    """The place of ``value`` in its range, 0 to 1."""
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def write_importance(folder: Path, found: Mapping[str, Any]) -> None:
    (folder / IMPORTANCE_FILE).write_text(json.dumps(found, allow_nan=False), encoding="utf-8")
