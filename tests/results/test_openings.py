"""Openings of the test split: each recorded before it happens, by all studies, shown in reports."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mgdm_ray.pipeline.job import OPENS_TEST
from mgdm_ray.results.openings import (
    FOLDER,
    Opening,
    added_after_a_look,
    of_datasets,
    read_openings,
    record,
    table_rows,
)
from mgdm_ray.storage.store import Store
from tests.conftest import Said
from tests.finished import NAME, Finished

FIRST = Opening(
    "a", "2026-01-01T10:00:00.000000+00:00", "jobs", "p" * 32, {"d": "print"}, ["net"], [0, 1],
    {"fit_downstream": ["k1", "k2"], "fit_judge": ["k3"]},
)  # fmt: skip
LOOK = replace(FIRST, when="2026-01-01T11:00:00.000000+00:00", event="report", jobs={})
MORE = replace(
    FIRST, when="2026-01-02T10:00:00.000000+00:00", plan="q" * 32, seeds=[0, 1, 2],
    networks=["net", "other"], jobs={"fit_downstream": ["k4"]},
)  # fmt: skip


def test_many_writers_lose_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches openings that replace each other, order by chance, and a damaged file that hides the
    others."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: record(Store(tmp_path), one), [MORE, LOOK] * 8 + [FIRST]))
    (tmp_path / FOLDER / "x.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        found = read_openings(Store(tmp_path))
    assert "x.json" in caplog.text
    assert found == [FIRST, *[LOOK] * 8, *[MORE] * 8]
    assert read_openings(Store(tmp_path / "none")) == []


def test_what_was_added_after_a_look() -> None:
    """Catches seeds that count as planned although a report was seen before, a resumed study that
    is accused, and a study that inherits another one's look."""
    assert added_after_a_look([FIRST], "a") == ("", {})
    assert added_after_a_look([FIRST, replace(MORE)], "a") == ("", {})
    assert added_after_a_look([FIRST, LOOK, FIRST], "a") == (LOOK.when, {})
    late = {"seed": ["2"], "network": ["other"]}
    assert added_after_a_look([FIRST, LOOK, MORE], "a") == (LOOK.when, late)
    assert added_after_a_look([FIRST, LOOK, replace(MORE, study="b")], "b") == ("", {})
    other = replace(LOOK, datasets={"e": "another"})
    assert of_datasets([FIRST, other], ["print"]) == [FIRST]


def test_a_row_per_study_and_plan() -> None:
    """Catches jobs of a resumed study that count twice, and a changed study in the same row."""
    rows = table_rows([FIRST, FIRST, LOOK, MORE])
    assert rows == [
        ["a", "p" * 8, "2026-01-01T10:00:00", "2026-01-01T11:00:00",
         "2 fit_downstream, 1 fit_judge", "1"],
        ["a", "q" * 8, "2026-01-02T10:00:00", "2026-01-02T10:00:00", "1 fit_downstream", "0"],
    ]  # fmt: skip


def test_a_study_records_its_openings(
    finished_copy: Finished, mgdm: Callable[..., Said], tmp_path: Path
) -> None:
    """Catches a run or a report that opens the test split unseen, and seeds added after it that
    are not marked."""
    found = read_openings(finished_copy.store)
    jobs, report = (next(o for o in found if o.event == event) for event in ("jobs", "report"))
    assert jobs.when < report.when
    assert (jobs.study, jobs.plan) == (NAME, finished_copy.plan.key)
    assert set(jobs.jobs) <= set(OPENS_TEST)
    started = {key for keys in jobs.jobs.values() for key in keys}
    assert started
    assert all(finished_copy.plan.jobs[key].kind in OPENS_TEST for key in started)
    page = finished_copy.study_folder / "report.html"
    assert "Openings of the test split" in page.read_text()
    assert "Added after" not in page.read_text()
    more = finished_copy.write(tmp_path / "more.yaml", seeds=[0, 1])
    said = mgdm(more, "--storage", finished_copy.storage, "--report-only")
    assert said.code == 0, said.err
    assert len(read_openings(finished_copy.store)) == len(found) + 1
    assert re.search(r"Added after a look at the test results.*seed 1", page.read_text())
    rows = (page.parent / "tables" / "openings.csv").read_text().splitlines()
    assert len(rows) == 3
