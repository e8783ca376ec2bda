"""Trials as rows of ``trials.json`` and as records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mgdm_ray.pipeline.trials import Trial, best_trial, read_trials, write_trials
from mgdm_ray.storage.records import Record

SETTING = {"guidance_scale": 1.0, "uncertainty_scale": 0.1}
DONE = Trial(3, SETTING, "done", "", 0.5, {"a": 0.4, "b": 0.6}, 2.0)
TRIALS = [
    DONE,
    replace(DONE, cost=7.0, front=True),
    replace(DONE, status="pruned", reason="stopped"),
    Trial(4, SETTING, "failed", "ValueError: no", seconds=1.0),
]
SEARCH = Record("s", "search", "done", dataset="d", network="n", metrics={"best_score": 1.0})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_trials(tmp_path, TRIALS)
    assert read_trials(tmp_path, "d") == [replace(trial, where="d") for trial in TRIALS]
    rows = json.loads((tmp_path / "trials.json").read_text())
    common = ["number", "setting", "seconds", "status", "reason"]
    assert list(rows[0]) == [*common, "score", "per_network"]
    assert list(rows[1]) == [*list(rows[0]), "cost", "front"]
    assert list(rows[3]) == common


@pytest.mark.parametrize("trial", TRIALS)
def test_a_trial_and_its_record_say_the_same(trial: Trial) -> None:
    """Would catch a score, cost or reason that the record loses."""
    record = trial.record(SEARCH)
    assert (record.kind, record.dataset, record.network) == ("trial", "d", "n")
    assert Trial.of_record(record, trial.number) == replace(trial, per_network={})
    assert record.key != replace(trial, number=9).record(SEARCH).key
    assert "best_score" not in record.metrics


@pytest.mark.parametrize("row", [{}, {"number": "x", "setting": {}, "status": "done"}, [], "row"])
def test_a_row_of_another_form_is_refused(row: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        Trial.of(row)  # type: ignore[arg-type]


def test_of_equal_scores_the_cheapest_is_best() -> None:
    """Would catch a pruned or failed trial that is called best, and ties by order alone."""
    cheap, dear = replace(TRIALS[1], cost=1.0), TRIALS[1]
    better = replace(DONE, status="pruned", score=0.9)
    assert best_trial([dear, cheap, better, TRIALS[3]]) is cheap
    assert best_trial([DONE, replace(DONE, number=8)]) is DONE
    assert best_trial([better, TRIALS[3]]) is None
