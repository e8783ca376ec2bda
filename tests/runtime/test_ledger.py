"""What a search suggests and remembers, over a database whose writer dies again and again."""

from __future__ import annotations

import inspect
import json
import random
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from mgdm_ray.config import InputError
from mgdm_ray.config.optuna_classes import PRUNERS, SAMPLERS, Classes
from mgdm_ray.pipeline.job import Job
from mgdm_ray.runtime.optuna_storage import sqlite_storage
from mgdm_ray.runtime.proposals import Asha, fixed_points, require_optuna_takes, space
from mgdm_ray.runtime.search import COST, METRIC, OUTCOME, Ledger
from tests.search_example import Formula, context_of, search_job, without_seconds

optuna.logging.set_verbosity(optuna.logging.WARNING)

WRITES = (
    "create_new_study",
    "_create_new_trial",  # what Optuna calls behind its cache
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_state_values",
)


class Killed(BaseException):
    """No Exception: nothing may catch it, as nothing catches SIGKILL."""


class MortalStorage(RDBStorage):
    """Lives for so many writes; each is one transaction."""

    def __init__(self, path: Path, writes: int) -> None:
        super().__init__(f"sqlite:///{path}")
        self.left = writes


def _mortal(name: str) -> Any:
    def write(self: MortalStorage, *args: Any, **options: Any) -> Any:
        if self.left == 0:
            raise Killed(name)
        self.left -= 1
        return getattr(RDBStorage, name)(self, *args, **options)

    return write


for _name in WRITES:
    setattr(MortalStorage, _name, _mortal(_name))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "empty.db"
    sqlite_storage(path)
    return path


def play(ledger: Ledger, job: Job) -> None:
    """What Tune does with a ledger, one trial at a time."""
    scorer = Formula(job, context_of(Path()))
    networks = job.inputs["networks"]
    for index in range(ledger.missing):
        tune_id = f"{id(ledger)}-{index}"
        setting = ledger.suggest(tune_id)
        assert isinstance(setting, dict)
        scores: dict[str, float] = {}
        for network in networks:
            scores[network] = scorer.score(network, setting, 0)
            outcome = {"setting": setting, "per_network": scores, "seconds": 0.0}
            result = {
                METRIC: sum(scores.values()) / len(scores),
                COST: scorer.cost(setting),
                OUTCOME: json.dumps(outcome),
            }
            if len(scores) == len(networks) or ledger.report(tune_id, result):
                break
        ledger.on_trial_complete(tune_id, result)


def undisturbed(job: Job, path: Path) -> list[dict[str, Any]]:
    ledger = Ledger(job, 2, RDBStorage(f"sqlite:///{path}"))
    play(ledger, job)
    return without_seconds([t.row() for t in ledger.results()])


SEARCHES: list[dict[str, Any]] = [
    {"sampler": "tpe"},
    {"sampler": "gp"},
    {"sampler": "random", "pruner": "median"},
    {"sampler": "tpe", "pruner": "asha"},
    {"sampler": "grid"},
    {"sampler": "nsga2", "objective": "accuracy_and_cost", "trials": 14},
    {"sampler": "tpe", "objective": "accuracy_and_cost"},
    {"sampler": {"name": "TPESampler", "multivariate": True, "constant_liar": True}},
    {
        "sampler": {"name": "NSGAIIISampler", "population_size": 4},
        "objective": "accuracy_and_cost",
        "trials": 14,
    },
    {"sampler": "random", "pruner": {"name": "WilcoxonPruner", "p_threshold": 0.3}},
]


@pytest.mark.parametrize(
    "options",
    [
        # A sampler drawn by its seed, a pruner, a grid and two objectives at once; then the rest.
        pytest.param(options, marks=() if number in (0, 3, 4, 5) else pytest.mark.slow)
        for number, options in enumerate(SEARCHES)
    ],
    ids=lambda o: json.dumps(list(o.values())),
)
def test_deaths_at_any_write_change_nothing(
    options: dict[str, Any], empty: Path, tmp_path: Path
) -> None:
    """Would catch a sampler's or pruner's memory, a trial that is lost, repeated or left RUNNING,
    and parameters that depend on what a dead process has written."""
    job = search_job(**{"trials": 11, **options})
    whole, broken = tmp_path / "whole.db", tmp_path / "broken.db"
    for path in (whole, broken):
        shutil.copy(empty, path)
    expected = undisturbed(job, whole)
    assert [row["number"] for row in expected] == list(range(job.inputs["trials"]))
    lives = random.Random(0)
    deaths = 0
    while True:
        try:
            ledger = Ledger(job, 2, MortalStorage(broken, lives.randint(6, 9)))
            play(ledger, job)
            break
        except Killed:
            deaths += 1
    assert deaths >= 4
    assert without_seconds([t.row() for t in ledger.results()]) == expected
    assert [t.number for t in ledger.trials()] == list(range(job.inputs["trials"]))
    assert all(trial.state.is_finished() for trial in ledger.trials())
    if job.inputs["pruner"] != "none":
        assert {row["status"] for row in expected} == {"done", "pruned"}


@pytest.mark.parametrize(
    ("room", "table"),
    [(optuna.samplers, SAMPLERS), (optuna.pruners, PRUNERS)],
    ids=["samplers", "pruners"],
)
def test_classes_and_arguments_are_optunas(room: Any, table: Classes) -> None:
    """Would catch an argument that Optuna has renamed: searches would stop at their start."""
    for name, arguments in table.items():
        assert set(arguments) <= set(inspect.signature(getattr(room, name)).parameters)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"sampler": {"name": "TPESampler", "group": True, "multivariate": False}}, "sampler"),
        ({"sampler": {"name": "NSGAIISampler", "population_size": 1}}, "sampler"),
        ({"pruner": {"name": "PercentilePruner"}}, "pruner"),
        ({"pruner": {"name": "MedianPruner", "n_startup_trials": -1}}, "pruner"),
    ],
)
def test_what_optuna_refuses_is_told_with_its_place(options: dict[str, Any], place: str) -> None:
    """Would catch a search that fails after hours of training."""
    with pytest.raises(InputError, match=rf"^search\.{place}:"):
        require_optuna_takes([search_job(**options)])
    require_optuna_takes([search_job()])


def test_a_short_name_means_what_its_class_says(empty: Path, tmp_path: Path) -> None:
    """Would catch an alias that is another search than its name promises."""
    same: dict[str, Any] = {"name": "TPESampler", "multivariate": True, "group": True}
    jobs = [search_job(), search_job(sampler={**same, "n_startup_trials": 5})]
    assert jobs[0].key != jobs[1].key
    rows = []
    for number, job in enumerate(jobs):
        path = tmp_path / f"{number}.db"
        shutil.copy(empty, path)
        rows.append(undisturbed(job, path))
    assert rows[0] == rows[1]


def test_how_trials_are_chosen_and_stopped_is_part_of_the_key() -> None:
    """Would catch the trials of one rule served for another."""
    options = ({}, {"pruner": "asha"}, {"pruner": "median"}, {"sampler": "gp"}, {"repeats": 2})
    assert len({search_job(**changed).key for changed in options}) == len(options)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random", "grid"])
def test_another_seed_is_another_search(sampler: str, empty: Path, tmp_path: Path) -> None:
    """Would catch a seed that does not reach a sampler: all searches would try the same."""
    job = search_job(sampler=sampler)
    tried = []
    for seed in (0, 0, 1):
        path = tmp_path / f"{len(tried)}.db"
        shutil.copy(empty, path)
        other = Job(job.kind, job.key, {**job.inputs, "seed": seed}, job.needs, job.dataset)
        tried.append([row["setting"] for row in undisturbed(other, path)])
    assert tried[0] == tried[1] != tried[2]
    assert len({str(setting) for setting in tried[0]}) >= 5  # NSGA-II may repeat a parent


def test_a_measurement_may_have_a_range_of_its_own(empty: Path, tmp_path: Path) -> None:
    """Would catch strengths of one measurement that are tried with, or learnt from, another."""
    job = search_job(trials=12)
    shutil.copy(empty, tmp_path / "own.db")
    ledger = Ledger(job, 2, RDBStorage(f"sqlite:///{tmp_path / 'own.db'}"))
    play(ledger, job)
    seen = set()
    for trial, row in zip(ledger.trials(), ledger.results(), strict=True):
        own = row.setting["measurement"] == "energy"
        low, high = (0.001, 0.01) if own else (0.02, 0.5)
        assert low <= row.setting["uncertainty_scale"] <= high
        name = "uncertainty_scale/energy" if own else "uncertainty_scale"
        assert set(trial.params) == {"stage_one", "measurement", name}
        seen.add(name)
    assert len(seen) == 2


def test_start_points_come_first_and_where_two_are_one_it_is_passed_over(
    empty: Path, tmp_path: Path
) -> None:
    """Would catch start points that are forgotten, and ones outside what two classes try."""
    points = [
        {"measurement": "energy", "uncertainty_scale": 0.002, "guidance_scale": 2},
        {"measurement": "margin", "uncertainty_scale": 0.2, "guidance_scale": 1},
        {"measurement": "entropy", "uncertainty_scale": 0.3, "guidance_scale": 1},
    ]
    measurements = ["entropy", "margin", "energy"]
    job = search_job(start=points, space={"guidance_scale": [1, 2], "measurement": measurements,
                     "uncertainty_scale": {"low": 0.001, "high": 0.5}})  # fmt: skip
    assert len(fixed_points(job, space(job, 3))) == 3
    shutil.copy(empty, tmp_path / "start.db")
    rows = undisturbed(job, tmp_path / "start.db")
    tried = [(r["setting"]["measurement"], r["setting"]["uncertainty_scale"]) for r in rows]
    assert tried[:2] == [("energy", 0.002), ("entropy", 0.3)]
    assert rows[0]["setting"]["guidance_scale"] == 2
    assert len(rows) == 8


def test_a_warm_start_is_not_drawn_a_second_time(empty: Path, tmp_path: Path) -> None:
    """Would catch trials spent on settings whose scores an earlier search of this seed knows."""
    for name in ("cold", "warm"):
        shutil.copy(empty, tmp_path / f"{name}.db")
    cold = undisturbed(search_job(sampler="random"), tmp_path / "cold.db")
    names = ("measurement", "uncertainty_scale", "guidance_scale")
    start = [{name: row["setting"][name] for name in names} for row in cold[2:5]]
    warm = undisturbed(search_job(sampler="random", start=start), tmp_path / "warm.db")
    assert [row["setting"] for row in warm[:3]] == [row["setting"] for row in cold[2:5]]
    drawn = [row["setting"]["uncertainty_scale"] for row in warm[3:]]
    assert not {row["setting"]["uncertainty_scale"] for row in cold} & set(drawn)


def test_the_grid_covers_the_space_evenly() -> None:
    """Would catch a baseline that tries some combinations twice and others never."""
    job = search_job(sampler="grid", trials=12)
    within = space(job, 2)
    points = fixed_points(job, within)
    pairs = [(point["stage_one"], point["measurement"]) for point in points]
    assert {pairs.count(pair) for pair in pairs} == {3}
    assert len({str(point) for point in points}) == 12
    middle = sorted(p["uncertainty_scale"] for p in points if p["measurement"] == "entropy")[2]
    strength = within["uncertainty_scale"]
    assert isinstance(strength, FloatDistribution)
    assert middle == pytest.approx((strength.low * strength.high) ** 0.5)  # on a log axis


def test_asha_stops_what_optunas_own_rule_stops() -> None:
    """Would catch a rule of our own that is another one: it only forgets better."""
    numbers = random.Random(1)
    curves = [[numbers.random() for _ in range(4)] for _ in range(40)]
    own_rule = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    stopped = []
    for pruner in (own_rule, Asha()):
        study = optuna.create_study(direction="maximize", pruner=pruner)
        for curve in curves:
            trial = study.ask()
            pruned_at = 0
            for step, value in enumerate(curve, start=1):
                trial.report(value, step)
                if trial.should_prune():
                    pruned_at = step
                    break
            state = TrialState.PRUNED if pruned_at else TrialState.COMPLETE
            study.tell(trial, None if pruned_at else curve[-1], state=state)
            stopped.append(pruned_at)
    assert stopped[:40] == stopped[40:]
    assert set(stopped) >= {0, 1, 2}


def test_the_front_is_marked_and_the_most_accurate_setting_of_it_is_there(
    empty: Path, tmp_path: Path
) -> None:
    """Would catch a front of the wrong direction: cheap is good, accurate is good."""
    job = search_job(trials=12, objective="accuracy_and_cost", sampler="nsga2")
    shutil.copy(empty, tmp_path / "front.db")
    rows = undisturbed(job, tmp_path / "front.db")
    for row in rows:
        beaten = any(
            o[METRIC] >= row[METRIC] and o[COST] <= row[COST]
            and (o[METRIC], o[COST]) != (row[METRIC], row[COST])
            for o in rows
        )  # fmt: skip
        assert row["front"] is not beaten
    assert {row[COST] for row in rows} == {10.0, 20.0}


def test_what_a_dead_trial_was_given_is_kept(empty: Path, tmp_path: Path) -> None:
    """Would catch a trial that goes on with its number and other parameters."""
    job = search_job()
    shutil.copy(empty, tmp_path / "one.db")
    first = Ledger(job, 2, RDBStorage(f"sqlite:///{tmp_path / 'one.db'}"))
    setting = first.suggest("one")
    again = Ledger(job, 2, RDBStorage(f"sqlite:///{tmp_path / 'one.db'}"))
    assert again.suggest("other") == setting
    assert len(again.trials()) == 1


def test_several_trials_that_died_at_once_are_all_taken_on(empty: Path, tmp_path: Path) -> None:
    """Would catch trials side by side of which a resumed search finishes one, and asks for more
    than there should be."""
    job = search_job(trials=5)
    shutil.copy(empty, tmp_path / "three.db")
    first = Ledger(job, 2, RDBStorage(f"sqlite:///{tmp_path / 'three.db'}"))
    settings = [first.suggest(name) for name in ("a", "b", "c")]
    again = Ledger(job, 2, RDBStorage(f"sqlite:///{tmp_path / 'three.db'}"))
    assert again.missing == 5
    play(again, job)
    rows = [t.row() for t in again.results()]
    assert [row["setting"] for row in rows[:3]] == settings
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(trial.state == TrialState.COMPLETE for trial in again.trials())
