"""What can run next, on plans small enough to check by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdm_ray.config import LimitsConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.limits import refusal
from mgdm_ray.pipeline.scheduler import Scheduler
from mgdm_ray.pipeline.tasks import base
from mgdm_ray.storage.records import Record


def job(key: str, *needs: str, kind: str = "fit_downstream") -> Job:
    return Job(kind, key, {}, {str(i): need for i, need in enumerate(needs)}, "d")


def by_key(*jobs: Job) -> dict[str, Job]:
    return {j.key: j for j in jobs}


def ready(scheduler: Scheduler, group: str = "task") -> list[str]:
    return [scheduler.pop(group).key for _ in range(scheduler.waiting(group))]


def test_a_job_is_ready_once_all_its_needs_are() -> None:
    """Would catch a job that starts without a need, twice, or never; and a need given twice, in
    two roles, that is counted twice."""
    todo = by_key(job("a"), job("b", "a", "known"), job("c", "a", "b", "b"))
    scheduler = Scheduler(todo, {"known": base.base_record(job("known"))})
    assert scheduler.start() == []
    assert ready(scheduler) == ["a"]
    for key, then in (("a", ["b"]), ("b", ["c"]), ("c", [])):
        ended = scheduler.end(todo[key], base.base_record(todo[key]))
        assert [j.key for j, _ in ended] == [key]
        assert ready(scheduler) == then


def test_groups_keep_the_plans_order() -> None:
    """Would catch cells before the trainings that most of the study waits for."""
    scheduler = Scheduler(
        by_key(job("x"), job("s", kind="search"), job("f", kind="fit_guide"), job("b")), {}
    )
    scheduler.start()
    assert ready(scheduler, "fit") == ["f"]
    assert ready(scheduler, "search") == ["s"]
    assert ready(scheduler) == ["x", "b"]


def test_what_needs_a_failure_ends_with_it_and_names_the_root() -> None:
    """Would catch a cell that is said to have crashed because its images' worker did, and jobs
    behind it that are waited for without end."""
    todo = by_key(job("a", kind="decode"), job("b", "a"), job("c", "b"), job("d"))
    scheduler = Scheduler(todo, {})
    scheduler.start()
    assert ready(scheduler) == ["a", "d"]
    ended = scheduler.end(todo["a"], base.failed(todo["a"], "its worker died: boom"))
    assert [j.key for j, _ in ended] == ["a", "b", "c"]
    reasons = [record.reason for _, record in ended]
    assert re.search(r"\bdecode a\b.*: its worker died: boom$", reasons[1])
    assert re.search(r"\bfit_downstream b\b.*\bdecode a\b.*: boom$", reasons[2])
    assert all(record.is_transient for _, record in ended)
    assert ready(scheduler) == []


def test_what_needs_an_earlier_failure_never_starts() -> None:
    """Would catch a job that runs without its need because that one failed in an earlier run."""
    scheduler = Scheduler(by_key(job("b", "a")), {"a": base.failed(job("a"), "the loss is nan")})
    [(ended, record)] = scheduler.start()
    assert ended.key == "b"
    assert not record.is_transient
    assert scheduler.waiting("task") == 0


@given(st.data())
def test_every_job_of_any_plan_comes_up_once(data: st.DataObject) -> None:
    """Would catch a plan on which the study hangs or ends early."""
    size = data.draw(st.integers(1, 12))
    needs = st.integers(0, size - 1)
    jobs = [
        job(f"j{i}", *(f"j{n}" for n in data.draw(st.lists(needs, max_size=4)) if n < i))
        for i in range(size)
    ]
    bad = data.draw(st.sets(needs))
    scheduler = Scheduler(by_key(*jobs), {})
    seen = [j.key for j, _ in scheduler.start()]
    while scheduler.waiting("task"):
        popped = scheduler.pop("task")
        index = jobs.index(popped)
        record = base.failed(popped, "x") if index in bad else base.base_record(popped)
        assert all(scheduler.records[n].status == "done" for n in popped.needs.values())
        seen += [j.key for j, _ in scheduler.end(popped, record)]
    assert sorted(seen) == sorted(j.key for j in jobs)


def gated(key: str, gate: str, *needs: str) -> Job:
    return replace(job(key, *needs), gate=gate, arm="generate")


def assessed(copies: float, real: float = 0.0, flips: float = 0.0) -> Record:
    rates = {"copy_rate": copies, "copy_rate_real": real, "flip_rate": flips, "images": 150.0}
    return replace(base.base_record(job("g", kind="assess")), metrics=rates)


def test_a_gate_is_waited_for_like_a_need() -> None:
    """Would catch a cell that runs before its images were judged, because its needs are there."""
    todo = by_key(job("g", kind="assess"), gated("c", "g"))
    scheduler = Scheduler(todo, {}, LimitsConfig(copies=0.05))
    assert scheduler.start() == []
    assert ready(scheduler) == ["g"]
    assert len(scheduler.end(todo["g"], assessed(copies=0.05))) == 1
    assert ready(scheduler) == ["c"], "what is at the limit passes"


def test_over_the_limit_a_job_is_refused_and_takes_what_needs_it() -> None:
    """Would catch a cell that is shown although its images are copies, a refusal that counts as a
    failure, and a reason without its numbers."""
    todo = by_key(job("g", kind="assess"), gated("c", "g"), job("after", "c"), job("free"))
    scheduler = Scheduler(todo, {}, LimitsConfig(copies=0.05))
    scheduler.start()
    assert ready(scheduler) == ["g", "free"]
    [(_, done), (cell, refused), (_, after)] = scheduler.end(todo["g"], assessed(0.12, real=0.02))
    assert done.status == "done"
    assert (cell.key, refused.status, refused.is_transient) == ("c", "refused", False)
    for part in ("limits.copies", "0.05", "12 %", "150 images", "2 %"):
        assert part in refused.reason
    assert re.search(r"\bfit_downstream c\b.*: limits\.copies", after.reason)


def test_a_failed_gate_holds_up() -> None:
    """Would catch cells that pass unjudged because the judge crashed."""
    todo = by_key(gated("c", "g"))
    bad = base.failed(job("g", kind="assess"), "the loss is nan")
    [(_, record)] = Scheduler(todo, {"g": bad}, LimitsConfig(flips=0.1)).start()
    assert record.status == "failed"
    assert re.search(r"\bassess g\b.*: the loss is nan$", record.reason)


@pytest.mark.parametrize(
    ("limits", "record", "words"),
    [
        ({"copies": 0.1}, assessed(0.3, real=0.25), ""),
        ({"copies": 0.1}, assessed(0.3, real=0.19), "limits.copies is 0.1, but 30 % of"),
        ({"flips": 0.0}, assessed(0.9, flips=0.5), "50 % of its 150 images are label flips"),
        ({"flips": 0.6}, assessed(0.9, flips=0.5), ""),
        ({}, assessed(1.0, flips=1.0), ""),
    ],
)
def test_what_counts_is_the_rate_beyond_that_of_real_images(
    limits: dict[str, float], record: Record, words: str
) -> None:
    """Would catch one limit applied to the other's rate, and a data set whose real images are all
    alike that no generator could serve."""
    reason = refusal(record, LimitsConfig(**limits))
    assert words in reason
    assert bool(reason) == bool(words)


def test_both_limits_are_named() -> None:
    reason = refusal(assessed(0.5, flips=0.5), LimitsConfig(copies=0.1, flips=0.1))
    assert "limits.copies" in reason
    assert "; limits.flips" in reason
