"""The search on real Tune and Optuna, and the jobs that use its choice, called directly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution

from mgdm_ray import engine, search
from mgdm_ray.config import ARMS, ResourcesConfig, StudyConfig
from mgdm_ray.jobs import base
from mgdm_ray.jobs.base import Context
from mgdm_ray.plan import Job, Plan, make_plan
from mgdm_ray.records import Record
from tests.conftest import TINY

STUDY = {
    **TINY,
    "arms": list(ARMS),
    "networks": ["squeezenet1_1"],
    "search": {
        "trials": 3,
        "networks": ["squeezenet1_1"],
        "images": 8,
        "space": {"guidance_scale": [1.0, 2.0], "measurement": ["margin", "entropy"]},
    },
}


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with engine.cluster(None):
        yield


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
def test_a_search_that_was_killed_before_its_first_snapshot_tries_all(bench: Bench) -> None:
    """Would catch a resumed search of one random trial that is stored as the whole: Tune writes
    its Tuner before it begins, and restores an experiment that never was with one sample."""
    job, work = bench.only("search"), bench.context.store.work("search", bench.only("search").key)
    search._fresh_tuner(job, bench.context, search._Trial, work, 1)  # and then the power failed
    assert (work / "tune" / "tuner.pkl").exists()
    [record] = bench.run("search")
    assert record.metrics["trials"] == 3


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


def test_measurements_that_repeat_each_other_are_tried_once(bench: Bench) -> None:
    """Would catch trials wasted on names for one direction (DESIGN section 2)."""
    job = bench.only("search")

    def tried(measurements: list[str], gradient: str, classes: int) -> list[str]:
        space = {**job.inputs["space"], "measurement": measurements, "gradient": gradient}
        changed = replace(job, inputs={**job.inputs, "space": space})
        choice = search.space(changed, classes)["measurement"]
        assert isinstance(choice, CategoricalDistribution)
        return [str(name) for name in choice.choices]

    every = ["margin", "entropy", "least_confidence"]
    assert tried(every, "normalised", 2) == ["margin"]
    assert tried(every, "raw", 2) == ["entropy", "least_confidence"]
    assert tried(["margin", "entropy"], "raw", 2) == ["margin", "entropy"]
    assert tried(every, "normalised", 3) == every
    assert tried([*every, "mutual_information"], "relative", 2) == ["margin", "mutual_information"]
