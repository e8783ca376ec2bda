"""Which parameter a search's scores depended on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from mgdm_ray.runtime.importance import importance
from mgdm_ray.runtime.proposals import space
from tests.search_example import search_job

JOB = search_job()
WITHIN = space(JOB, 5)


def trial(number: int, score: float | None, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    """Draws its setting by its number; entropy has the shared range, energy one of its own."""
    rng = np.random.default_rng(number)
    measurement = ("entropy", "energy")[int(rng.integers(2))]
    name = "uncertainty_scale/energy" if measurement == "energy" else "uncertainty_scale"
    low, high = WITHIN[name].low, WITHIN[name].high  # type: ignore[attr-defined]
    params = {
        "stage_one": int(rng.integers(2)),
        "measurement": measurement,
        name: float(low ** (1 - (u := rng.uniform())) * high**u),
    }
    distributions = {key: WITHIN[key] for key in params}
    return create_trial(params=params, distributions=distributions, value=score, state=state)


def of(scores: dict[int, float]) -> dict[str, Any]:
    return importance(JOB, WITHIN, [trial(number, score) for number, score in scores.items()])


def by_measurement(number: int) -> float:
    return float(trial(number, 0.0).params["measurement"] == "energy")


def by_strength(number: int) -> float:
    """Of entropy and of energy alike where the strength lies in its own range."""
    params = trial(number, 0.0).params
    [name] = [name for name in params if name.startswith("uncertainty_scale")]
    low, high = WITHIN[name].low, WITHIN[name].high  # type: ignore[attr-defined]
    return float(np.log(params[name] / low) / np.log(high / low))


@pytest.mark.parametrize(
    ("score", "expected"), [(by_measurement, "measurement"), (by_strength, "uncertainty_scale")]
)
def test_what_scores_depend_on_is_found(score: Any, expected: str) -> None:
    """Catches parameters that exist in some trials only, and are then left out by Optuna."""
    found = of({number: score(number) for number in range(40)})
    shares = found["importance"]
    assert set(shares) == {"measurement", "stage_one", "uncertainty_scale"}
    assert shares[expected] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert found["trials"] == 40


def test_the_same_trials_give_the_same_shares() -> None:
    """Catches trees that are drawn anew for each report."""
    scores = {number: by_strength(number) + number / 99 for number in range(9)}
    assert of(scores) == of(scores)
    json.dumps(of(scores), allow_nan=False)


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([trial(n, n / 9) for n in range(3)], "3 finished trials are too few, 4 are needed"),
        ([trial(n, 0.5) for n in range(9)], "all trials have the same score"),
        (
            [trial(n, n / 9) for n in range(3)]
            + [trial(n, None, TrialState.FAIL) for n in range(3, 9)],
            "3 finished trials are too few, 4 are needed",
        ),
        ([trial(1, n / 9) for n in range(9)], "nothing differs between the trials"),
    ],
)
def test_why_there_is_none(trials: list[FrozenTrial], reason: str) -> None:
    """Catches shares of nothing, and a crash where a search was too short."""
    found = importance(JOB, WITHIN, trials)
    assert (found["importance"], found["reason"]) == ({}, reason)


def test_one_parameter_alone_has_no_share() -> None:
    """Catches "100 %" for the only parameter that there is."""
    same = [n for n in range(200) if trial(n, 0.0).params["measurement"] == "entropy"]
    stage = [n for n in same if trial(n, 0.0).params["stage_one"] == 1][:9]
    found = of({number: by_strength(number) for number in stage})
    assert (found["importance"], found["trials"]) == ({}, 9)
    assert "uncertainty_scale" in found["reason"]
