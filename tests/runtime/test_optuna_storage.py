"""Optuna's trials in a bucket: the same as in a database, for whoever opens it next."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.storages import JournalStorage

from mgdm_ray.runtime.optuna_storage import ObjectJournal
from mgdm_ray.storage.remote.objects import Objects


@pytest.fixture
def objects(bucket: str) -> Objects:
    return Objects(f"{bucket}/{uuid.uuid4().hex}")


def storage(objects: Objects) -> JournalStorage:
    return JournalStorage(ObjectJournal(objects, "optuna/study/breast"))


def objective(trial: optuna.Trial) -> float:
    trial.report(0.5, 1)
    return trial.suggest_float("x", 0, 1) + trial.suggest_int("n", 1, 3)


def test_a_study_is_the_same_on_the_next_machine(objects: Objects) -> None:
    """Would catch entries that are lost, doubled or out of order, and other trials than in RAM."""
    sampler = optuna.samplers.TPESampler(seed=3)
    study = optuna.create_study(study_name="s", storage=storage(objects), sampler=sampler)
    study.optimize(objective, n_trials=12)
    plain = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3))
    plain.optimize(objective, n_trials=12)
    found = optuna.load_study(study_name="s", storage=storage(objects))
    assert [t.params for t in found.trials] == [t.params for t in plain.trials]
    assert [t.value for t in found.trials] == [t.value for t in plain.trials]
    assert [t.intermediate_values for t in found.trials] == [{1: 0.5}] * 12
    found.optimize(objective, n_trials=2)
    assert len(study.trials) == 14, "the first one sees what the second one added"


def test_writers_at_once_lose_nothing(objects: Objects) -> None:
    """Would catch two entries at one place."""
    optuna.create_study(study_name="s", storage=storage(objects))

    def add(number: int) -> None:
        study = optuna.load_study(study_name="s", storage=storage(objects))
        for value in range(5):
            study.tell(study.ask(), float(10 * number + value))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    trials = optuna.load_study(study_name="s", storage=storage(objects)).trials
    assert sorted(t.number for t in trials) == list(range(20))
    assert sorted(t.value or 0.0 for t in trials) == [
        10.0 * n + v for n in range(4) for v in range(5)
    ]
    names = sorted(objects.sizes("optuna"))
    assert names == [f"optuna/study/breast/{i:08d}" for i in range(len(names))]
