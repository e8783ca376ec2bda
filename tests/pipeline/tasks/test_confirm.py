"""The job ``confirm``: which settings, which seeds, and what a kill costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mgdm_ray.config import StudyConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.tasks import base
from mgdm_ray.pipeline.tasks.base import Context, JobError, base_record
from mgdm_ray.pipeline.tasks.confirm import CONFIRM_FILE, confirm, ranked, spread
from mgdm_ray.pipeline.tasks.trial import TrialScorer
from tests.conftest import TINY

SCALES = {"guidance_scale": 1.5, "classifier_scale": 0.0}
SETTINGS = [
    {**SCALES, "measurement": "entropy", "uncertainty_scale": gamma, "gradient": "normalised",
     "over_t": "constant", "decode_guidance_scale": 1.0, "label_scale": 0.0, "interval": [0, 999]}
    for gamma in (0.1, 0.2, 0.3, 0.4)
]  # fmt: skip
TRIALS = [
    {"number": 0, "setting": SETTINGS[0], "status": "done", "score": 0.6},
    {"number": 1, "setting": SETTINGS[1], "status": "done", "score": 0.8},
    {"number": 2, "setting": SETTINGS[2], "status": "pruned", "score": 0.9},
    {"number": 3, "setting": SETTINGS[3], "status": "done", "score": 0.5},
    {"number": 4, "setting": SETTINGS[1], "status": "done", "score": 0.8},
    {"number": 5, "setting": SETTINGS[2], "status": "failed", "reason": "nan"},
]


def plan_of(**search: Any) -> Plan:
    study = {**TINY, "search": {**TINY["search"], "trials": 6, **search}}
    return make_plan(StudyConfig.model_validate(study), {"phantom-ultrasound": "x"})


def of_kind(plan: Plan, kind: str) -> Job:
    [job] = [job for job in plan.jobs.values() if job.kind == kind]
    return job


def prepared(folder: Path, settings: int = 3, seeds: int = 2) -> tuple[Job, Context]:
    """The job, and a store in which its search is done."""
    plan = plan_of(confirm={"settings": settings, "seeds": seeds})
    job = of_kind(plan, "confirm")
    datasets = StudyConfig.model_validate(TINY).datasets
    context = Context(str(folder), str(folder / "study"), {d.name: d for d in datasets})
    search = of_kind(plan, "search")
    with context.store.writing("search", search.key) as made:
        (made / "trials.json").write_text(json.dumps(TRIALS))
        record = {**asdict(base_record(search)), "setting": SETTINGS[1]}
        provenance = {"inputs": search.inputs, "needs": search.needs}
        context.store.commit("search", search.key, made, record, provenance)
    return job, context


class Scorer:
    """Scores by a formula; counts what it is asked, and breaks at call number ``breaks``."""

    def __init__(self, breaks: int | None = None, value: float | None = None) -> None:
        self.breaks, self.value = breaks, value
        self.decoded: list[float] = []
        self.scored: list[tuple[str, float, int]] = []

    def make(self, job: Job, context: Context) -> Scorer:  # noqa: ARG002
        return self

    def decode(self, setting: Mapping[str, Any]) -> float:
        self.decoded.append(setting["uncertainty_scale"])
        return float(setting["uncertainty_scale"])

    def score(self, network: str, added: float, repeat: int) -> float:
        if len(self.scored) == self.breaks:
            raise KeyboardInterrupt
        self.scored.append((network, added, repeat))
        return added / 10 + repeat / 100 if self.value is None else self.value


def run(job: Job, context: Context, folder: Path, scorer: Scorer) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    confirm(job, context, folder, make_scorer=scorer.make)
    found: dict[str, Any] = json.loads((folder / CONFIRM_FILE).read_text())
    return found


def test_what_is_scored_again(tmp_path: Path) -> None:
    """Would catch a pruned trial, one of a setting that is there already, a network left out, or
    the chosen setting anywhere but first."""
    job, context = prepared(tmp_path)
    scorer = Scorer()
    found = run(job, context, tmp_path / "out", scorer)
    assert [row["number"] for row in found["settings"]] == [1, 0, 3]
    assert found["trials"] == 3
    assert scorer.decoded == [0.2, 0.1, 0.4]  # each once
    places = {(r["number"], r["network"], r["seed"], r["is_proxy"]) for r in found["rows"]}
    assert len(found["rows"]) == len(places) == len(scorer.scored) == 3 * 2 * 2
    assert {(network, proxy) for _, network, _, proxy in places} == {
        ("squeezenet1_1", True), ("alexnet", False),
    }  # fmt: skip
    assert {seed for _, _, seed, _ in places} == {0, 1}


def test_its_record(tmp_path: Path) -> None:
    """By hand: 0.8 was claimed, and 0.2 / 10 + (0 + 0.01) / 2 = 0.025 comes out; of the three
    settings (0.6 + 0.8 + 0.5) / 3 were claimed and (0.01 + 0.02 + 0.04) / 3 + 0.005 come out.
    Claimed ranks are 3, 2, 1 (settings 0.2, 0.1, 0.4), fresh ranks 2, 1, 3: rho = -0.5."""
    job, context = prepared(tmp_path)
    outcome = confirm(job, context, tmp_path, make_scorer=Scorer().make)
    assert outcome["setting"] == SETTINGS[1]
    assert outcome["split"] == "val"
    assert outcome["metrics"] == pytest.approx(
        {
            "fresh_score": 0.025,
            "selection_optimism": 0.775,
            "shared_optimism": 1.9 / 3 - 0.07 / 3 - 0.005,
            "repeat_spearman": -0.5,
            "proxy_spearman": -0.5,
        }
    )


def test_a_kill_costs_the_score_that_was_being_computed(tmp_path: Path) -> None:
    """Would catch a job that begins again, and one that takes another seed's score for its own."""
    job, context = prepared(tmp_path)
    whole = run(job, context, tmp_path / "whole", Scorer())
    for path in context.store.work(job.kind, job.key).iterdir():
        path.unlink()
    first, second = Scorer(breaks=7), Scorer()
    with pytest.raises(KeyboardInterrupt):
        run(job, context, tmp_path / "broken", first)
    assert run(job, context, tmp_path / "out", second) == whole
    assert len(first.scored) == 7
    assert len(second.scored) == 12 - 7
    assert second.decoded == [0.1, 0.4]  # nothing of the first setting was missing


def test_a_search_made_anew_leaves_no_score_of_the_old_one(tmp_path: Path) -> None:
    """Would catch scores kept under the number of a trial that now has another setting."""
    job, context = prepared(tmp_path)
    run(job, context, tmp_path / "out", Scorer())
    path = context.store.folder("search", job.needs["search"]) / "trials.json"
    swapped = [{**row, "number": 5 - row["number"]} for row in TRIALS[::-1]]
    path.write_text(json.dumps(swapped))
    again = Scorer()
    found = run(job, context, tmp_path / "out", again)
    assert again.scored == []  # settings are the same, whatever their numbers
    assert [row["number"] for row in found["settings"]] == [1, 5, 2]


def test_a_score_that_is_no_number_is_named(tmp_path: Path) -> None:
    """Would catch nan in a mean that nobody sees."""
    job, context = prepared(tmp_path)
    with pytest.raises(JobError, match=r"squeezenet1_1.*\b0\b.*0\.2"):
        run(job, context, tmp_path / "out", Scorer(value=float("nan")))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [0, 6]), (3, [0, 3, 6]), (4, [0, 2, 4, 6]), (7, [*range(7)]), (9, [*range(7)])],
)
def test_settings_are_spread_over_the_ranks(count: int, expected: list[int]) -> None:
    """Would catch only good settings, among which no ranking can be seen."""
    assert spread([{"rank": i} for i in range(7)], count) == [{"rank": i} for i in expected]


def test_ranks_without_trials() -> None:
    assert spread(ranked([], {}), 3) == []


def test_fresh_seeds_are_not_those_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a confirmation that repeats the search's own training runs, and one that another
    ``search.seed`` gives other seeds."""
    seeds: dict[str, tuple[Any, ...]] = {}

    def build(*arguments: Any) -> None:
        seeds["now"] = arguments[5:]
        raise InterruptedError

    monkeypatch.setattr("mgdm_ray.pipeline.tasks.trial.network_for", build)
    context = prepared(tmp_path)[1]

    def seed_of(job: Job) -> tuple[Any, ...]:
        scorer = TrialScorer(job, context)
        with pytest.raises(InterruptedError):
            scorer.score("alexnet", None, 0)  # type: ignore[arg-type]
        return seeds["now"]

    plain, other = plan_of(confirm={}), plan_of(confirm={}, seed=7)
    assert seed_of(of_kind(plain, "search")) == ("search", 0, "alexnet", 0)
    assert seed_of(of_kind(other, "search")) == ("search", 7, "alexnet", 0)
    assert seed_of(of_kind(plain, "confirm")) == ("confirm", 0, "alexnet", 0)
    assert seed_of(of_kind(other, "confirm")) == ("confirm", 0, "alexnet", 0)


def test_it_runs_with_the_real_networks(tmp_path: Path) -> None:
    """Would catch inputs or needs that the real scorer lacks: all jobs before it are run."""
    job, context = prepared(tmp_path, settings=2, seeds=1)
    for need in plan_of(confirm={"settings": 2, "seeds": 1}).jobs.values():
        if need.kind in ("fit_denoiser", "fit_guide", "generate", "encode"):
            assert base.run(need, context).status == "done"
    shown: list[tuple[int, int]] = []

    def progress(done: int, total: int, note: str) -> None:  # noqa: ARG001
        shown.append((done, total))

    record = base.run(job, replace(context, progress=progress))
    assert record.status == "done", record.reason
    assert 0 <= record.metrics["fresh_score"] <= 1
    assert (0, 4) in shown
    assert not context.store.work(job.kind, job.key).exists()
