"""The search on real Tune and Optuna, and the jobs that use its choice, called directly."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from mgdm_ray.config import ARMS, GuidanceSetting, ResourcesConfig, StudyConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.tasks import base
from mgdm_ray.pipeline.tasks.base import Context
from mgdm_ray.runtime import proposals, search
from mgdm_ray.runtime.optuna_storage import optuna_study_name, sqlite_path, sqlite_storage
from mgdm_ray.storage.records import WORKER_DIED, Record
from tests import search_example as example
from tests.conftest import ROOT, TINY
from tests.search_example import context_of, search_job

pytestmark = pytest.mark.usefixtures("local_ray")
STUDY = {
    **TINY,
    "arms": list(ARMS),
    "downstream": {**TINY["downstream"], "augment": "none"},
    "networks": ["squeezenet1_1"],
    "search": {
        "trials": 3,
        "networks": ["squeezenet1_1"],
        "images": 8,
        "space": {"guidance_scale": [1.0, 2.0], "measurement": ["margin", "entropy"]},
    },
}


class Bench:
    """A plan and a store in which jobs are run one by one, without the engine."""

    def __init__(self, folder: Path) -> None:
        config = StudyConfig.model_validate(STUDY)
        self.plan: Plan = make_plan(config, {"phantom-ultrasound": "x"})
        self.context = Context(
            storage=str(folder),
            study_folder=str(folder / "study"),
            datasets={d.name: d for d in config.datasets},
        )
        self.records: dict[str, Record] = {}

    def only(self, kind: str) -> Job:
        [job] = [job for job in self.plan.jobs.values() if job.kind == kind]
        return job

    def run(self, *kinds: str) -> list[Record]:
        functions = {"search": run_search}
        jobs = [job for job in self.plan.jobs.values() if job.kind in kinds]
        for job in jobs:
            record = base.run(job, self.context, functions)
            assert record.status == "done", record.reason
            self.records[job.key] = record
        return [self.records[job.key] for job in jobs]


def run_search(job: Job, context: Context, folder: Path) -> base.Outcome:
    return search.search(job, context, folder, resources=ResourcesConfig(), max_concurrent=1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Everything up to the search is done."""
    made = Bench(tmp_path_factory.mktemp("search"))
    made.run("fit_denoiser", "fit_guide", "generate", "encode")
    return made


@pytest.mark.slow
def test_every_arm_uses_what_the_search_chose(bench: Bench) -> None:
    """Would catch an arm on another stage-1 candidate, a control without the guidance's strength,
    and arms that crash: all seven are trained here."""
    [found] = bench.run("search")
    chosen = {k: found.setting[k] for k in ("guidance_scale", "classifier_scale")}
    assert chosen["guidance_scale"] in (1.0, 2.0)
    assert found.setting["measurement"] == "margin"  # two classes: entropy would be the same
    decodes = {record.arm: record for record in bench.run("decode")}
    assert decodes["disturb"].setting == decodes["perturb"].setting == found.setting
    assert decodes["roundtrip"].setting == chosen
    moved = {arm: record.metrics["rms_change"] for arm, record in decodes.items()}
    assert moved["perturb"] != moved["disturb"]
    cells = {record.arm: record for record in bench.run("fit_downstream")}
    assert list(cells) == list(ARMS)
    assert cells["generate"].setting == chosen
    assert {c.metrics["train_images"] for a, c in cells.items() if a in ("real", "augment")} == {40}
    assert len({c.metrics["train_images"] for c in cells.values()}) == 2


def test_measurements_that_repeat_each_other_are_tried_once(tmp_path: Path) -> None:
    """Would catch trials wasted on names for one direction (DESIGN section 2)."""
    job = Bench(tmp_path).only("search")

    def tried(measurements: list[str], gradient: str, classes: int) -> list[str]:
        space = {**job.inputs["space"], "measurement": measurements, "gradient": gradient}
        changed = replace(job, inputs={**job.inputs, "space": space})
        choice = proposals.space(changed, classes)["measurement"]
        assert isinstance(choice, CategoricalDistribution)
        return [str(name) for name in choice.choices]

    every = ["margin", "entropy", "least_confidence"]
    assert tried(every, "normalised", 2) == ["margin"]
    assert tried(every, "raw", 2) == ["entropy", "least_confidence"]
    assert tried(["margin", "entropy"], "raw", 2) == ["margin", "entropy"]
    assert tried(every, "normalised", 3) == every
    assert tried([*every, "mutual_information"], "relative", 2) == ["margin", "mutual_information"]


# --- the search itself: trials that are a formula, on the real Tune ----------------------------


def summary(folder: Path, job: Job) -> list[tuple[int, TrialState]]:
    storage = sqlite_storage(sqlite_path(job, context_of(folder)))
    study = optuna.load_study(study_name=optuna_study_name(job), storage=storage)
    return [(trial.number, trial.state) for trial in study.trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """trials.json of the example's search."""
    return example.run(search_job(pruner="asha"), tmp_path_factory.mktemp("undisturbed"))[1]


@pytest.mark.slow
def test_a_search_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    """Would catch a trial that is lost, repeated, renumbered or left RUNNING by SIGKILL."""
    job = search_job(pruner="asha")
    options = json.dumps({"pruner": "asha"})
    command = [sys.executable, "-m", "tests.search_example", str(tmp_path), options]
    database = sqlite_path(job, context_of(tmp_path))

    def trials() -> int:
        """Trials begun, read as an outsider would."""
        if not database.exists():
            return 0
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
            return int(reader.execute("select count(*) from trials").fetchone()[0])

    for reached, moment in ((1, 0.03), (3, 0.13), (6, 0.2)):
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        while process.poll() is None and trials() < reached:
            time.sleep(0.01)
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert trials() < 8
    subprocess.run(command, cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert example.without_seconds(rows) == undisturbed
    assert [number for number, _ in summary(tmp_path, job)] == list(range(8))
    assert all(state.is_finished() for _, state in summary(tmp_path, job))


def test_a_trial_whose_worker_is_killed_starts_over(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    """Would catch a dead actor that costs a trial, or half of one that counts twice."""
    (tmp_path / "deaths").write_text("1")
    _, rows = example.run(search_job(pruner="asha"), tmp_path, example.Dying)
    assert (tmp_path / "deaths").read_text() == "0"
    assert rows == undisturbed


@pytest.mark.slow
def test_a_trial_whose_worker_dies_too_often_is_tried_at_the_next_start(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    """Would catch a machine's fault that is recorded as a setting's, and trials that are suggested
    without knowing how the lost one ends."""
    job = search_job(pruner="asha")
    (tmp_path / "deaths").write_text("2")
    with pytest.raises(base.JobError, match=rf"^{WORKER_DIED}.*\d.*\w+Error"):
        example.run(job, tmp_path, example.Dying)
    states = [state for _, state in summary(tmp_path, job)]
    assert states.count(TrialState.RUNNING) == 1
    assert states[-1] == TrialState.RUNNING
    assert example.run(job, tmp_path, example.Dying)[1] == undisturbed


def test_a_trial_that_fails_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    """Would catch a NaN that leaves its trial RUNNING for ever, and a search that ends with it."""
    job = search_job(sampler="random", trials=10)
    outcome, rows = example.run(job, tmp_path, example.Failing, max_concurrent=2, max_retries=0)
    reasons = {row["reason"] for row in rows}
    [none, not_finite, raised] = sorted(reasons)
    assert (none, raised) == ("", "ValueError: energy is out")
    assert re.search(r"^JobError: .*\bresnet18\b", not_finite)
    told = {TrialState.COMPLETE: "done", TrialState.FAIL: "failed"}
    assert [told[state] for _, state in summary(tmp_path, job)] == [row["status"] for row in rows]
    assert outcome["metrics"]["trials"] == sum(row["status"] == "done" for row in rows)
    assert all(set(row) >= {"setting", "number", "seconds", "status"} - {"seconds"} for row in rows)


@pytest.mark.slow
def test_a_search_in_which_all_has_failed_starts_anew(tmp_path: Path) -> None:
    """Would catch --retry-failed that reads the old failures and tries nothing."""
    job = search_job(trials=2, start=[], space={"measurement": ["energy"]})
    with pytest.raises(base.JobError, match="ValueError: energy is out"):
        example.run(job, tmp_path, example.Failing)
    assert [row["status"] for row in example.run(job, tmp_path)[1]] == ["done", "done"]


def test_a_poor_trial_is_pruned_and_says_so(undisturbed: list[dict[str, Any]]) -> None:
    """Would catch stopped trials that count as finished: their score is of fewer networks."""
    pruned = [row for row in undisturbed if row["status"] == "pruned"]
    assert pruned
    for row in pruned:
        assert row["reason"] == f"stopped after {len(row['per_network'])} networks"
        assert len(row["per_network"]) < 4
    done = [row for row in undisturbed if row["status"] == "done"]
    assert done
    assert all(len(row["per_network"]) == 4 for row in done)


@pytest.mark.slow
def test_two_objectives_choose_the_most_accurate_setting_of_the_front(tmp_path: Path) -> None:
    """Would catch a second objective that Tune drops, and a choice that is not on the front."""
    job = search_job(sampler="nsga2", objective="accuracy_and_cost", trials=10)
    outcome, rows = example.run(job, tmp_path)
    best = max(rows, key=lambda row: row["score"])
    assert best["front"]
    assert outcome["setting"] == best["setting"]
    assert outcome["metrics"]["best_cost"] == best["cost"] == 10 * best["setting"]["guidance_scale"]
    for row in rows:
        if row["front"]:
            assert not any(o["score"] > row["score"] and o["cost"] < row["cost"] for o in rows)


@pytest.mark.slow
def test_repeats_are_averaged(tmp_path: Path) -> None:
    """Would catch repeats of one seed, and means over networks that weigh seeds."""
    one = example.run(search_job(trials=2), tmp_path / "one")[1]
    three = example.run(search_job(trials=2, repeats=3), tmp_path / "three")[1]
    for row, mean in zip(one[:1], three[:1], strict=True):
        assert mean["setting"] == row["setting"]
        assert mean["score"] == pytest.approx(row["score"] + 0.001)  # seeds 0, 1, 2
        assert list(mean["per_network"]) == list(row["per_network"])
        assert mean["score"] == pytest.approx(sum(mean["per_network"].values()) / 4)


@pytest.mark.slow
def test_a_real_trial_gives_the_same_scores_again_and_others_for_other_seeds(bench: Bench) -> None:
    """Would catch a trial that depends on the one before it in its actor, and repeats that
    are one and the same."""
    from mgdm_ray.pipeline.tasks.trial import TrialScorer

    job = bench.only("search")
    enough = {"steps": 12, "learning_rate": 1e-3}  # for the network below
    longer = {**job.inputs, "downstream": {**job.inputs["downstream"], **enough}}
    scorer = TrialScorer(replace(job, inputs=longer), bench.context)
    chosen = {"guidance_scale": 2.0, "classifier_scale": 0.0, "measurement": "margin"}
    setting = {**GuidanceSetting().model_dump(), **chosen}
    scores = []
    for _ in range(2):
        added = scorer.decode(setting)
        scores.append([scorer.score("resnet18", added, repeat) for repeat in range(3)])
    assert scores[0] == scores[1]
    assert len(set(scores[0])) > 1
