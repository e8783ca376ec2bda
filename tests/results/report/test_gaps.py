"""Reports of studies that lack something: not begun, one seed, arms or searches missing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from mgdm_ray.results import HEADLINE_FILE
from mgdm_ray.results.report import write_report
from tests.results.report.page import cell, read_page, rows_of
from tests.study_example import Example, make_example


def test_a_search_that_was_not_confirmed(tmp_path: Path) -> None:
    """Catches a crash, or figures made up, where a search has neither file: those of older
    versions, and studies without search.confirm."""
    example = make_example(tmp_path / "artefacts", again=0)
    path = write_report(tmp_path / "study", example.records, example.context())
    assert "search.confirm" in read_page(path)[0].sections["search"]
    assert "too high by" not in rows_of(path, "searches")[0]
    files = {p.stem for p in (tmp_path / "study").rglob("*") if p.is_file()}
    assert not {"confirm", "selection", "importance"} & files


def test_one_search_of_two_was_confirmed(tmp_path: Path) -> None:
    """Catches a confirmation put beside the other search, and a failed one that takes the section
    with it."""
    example = make_example(tmp_path / "artefacts")
    records = [
        replace(r, status="failed", reason="nan") if r.key == "confirm-phantom-fundus" else r
        for r in example.records
    ]
    path = write_report(tmp_path / "study", records, example.context())
    assert [row["search"] for row in rows_of(path, "selection")] == ["phantom-ultrasound"]
    assert "confirm phantom-fundus" in read_page(path)[1]


def test_report_of_a_study_that_has_not_begun(tmp_path: Path, example: Example) -> None:
    """Catches a crash where there is nothing to show yet."""
    path = write_report(tmp_path, [], example.context())
    page, _ = read_page(path)
    assert "0 / 60" in page.sections["head"]
    assert set(page.badges) == {"no data"}


def test_report_with_one_seed_one_network_and_no_search(tmp_path: Path, example: Example) -> None:
    """Catches spreads and intervals made up from a single value."""
    records = [cell("real", 0.6), cell("duplicate", 0.61), cell("disturb", 0.65)]
    context = example.context(expected_cells=(), datasets=(), plan_counts={})
    path = write_report(tmp_path, records, context)
    page, _ = read_page(path)
    assert page.badges[0] == "not resolvable"
    assert [row["d sd"] for row in rows_of(path, "summary")] == ["", "", ""]
    assert "search" not in page.ids


def test_report_with_arms_missing(tmp_path: Path, example: Example) -> None:
    """Catches a crash where the study lacks the arms of the primary question."""
    context = example.context(expected_cells=())
    path = write_report(tmp_path, [cell("real", 0.6)], context)
    assert read_page(path)[0].badges == []
    path = write_report(tmp_path, [cell("real", 0.6), cell("generate", 0.7)], context)
    page, _ = read_page(path)
    assert page.badges == ["not resolvable"] * 2
    assert "generate against real, exploratory" in page.sections["head"]


def test_the_headline_is_about_synthetic_images(tmp_path: Path, example: Example) -> None:
    """Catches "duplicate is better than real" as the answer to what synthetic images are worth."""
    arms = {"real": 0.5, "augment": 0.6, "duplicate": 0.7}
    records = [cell(arm, value + s / 99, s) for arm, value in arms.items() for s in range(9)]
    path = write_report(tmp_path, records, example.context(expected_cells=()))
    page, _ = read_page(path)
    assert "Evidence" not in page.terms
    assert "contrast/duplicate-real/difference" in json.loads(
        (tmp_path / HEADLINE_FILE).read_text()
    )


def test_provenance_is_that_of_the_records(tmp_path: Path, example: Example) -> None:
    """Catches a page that names the commit that wrote it as the one that computed the numbers."""
    records = [
        replace(cell("real", 0.6, s), git_commit=commit, versions={"torch": "9.9"})
        for s, commit in enumerate(("aaa111", "bbb222", "bbb222"))
    ]
    context = example.context(expected_cells=(), findings={"d": ["1 image leaks"]})
    words = read_page(write_report(tmp_path, records, context))[1]
    assert "bbb222 (2 jobs); aaa111 (1 job)" in words
    assert re.search(r"\btorch 9\.9\b", words)
    assert re.search(r"\breport\b[^.]*\b0123abc\b", words)
    assert "d: 1 image leaks." in words


def test_an_arm_whose_every_cell_failed(tmp_path: Path, example: Example) -> None:
    """Catches a contrast without data that crashes the report or is given numbers."""
    broken = replace(cell("disturb", 0.5), status="failed", reason="nan", metrics={})
    records = [cell("real", 0.6), cell("duplicate", 0.6), broken]
    context = example.context(expected_cells=())
    _, words = read_page(write_report(tmp_path, records, context))
    assert "no data" in words
