"""The page of a whole study against what a browser would refuse, and its numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mgdm_ray.config import DatasetConfig, DownstreamConfig
from mgdm_ray.data.published import published
from mgdm_ray.results import HEADLINE_FILE
from mgdm_ray.results.report import words, write_report
from mgdm_ray.results.report.cells import result_rows
from tests.results.report.page import cell, read_page, rows_of
from tests.study_example import ARMS, DATASETS, Example


def test_page_is_self_contained(written: Path) -> None:
    """Catches links to other hosts, scripts, broken anchors, unbalanced tags, temporary files."""
    checker, _ = read_page(written)
    assert "script" not in checker.tags
    anchors = {f"#{name}" for name in checker.ids if name}
    for load in checker.loads:
        assert load.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) or (
            load in anchors
        )
    assert not re.search(r"url\(|@import", written.read_text())
    assert not list(written.parent.rglob("*.tmp"))


def test_every_section_and_file_is_there(written: Path) -> None:
    """Catches a section or figure that silently fell out of the report."""
    checker, words = read_page(written)
    sections = "question results contrasts statistics search images synthetic copies models"
    assert {*sections.split(), "failures", "costs", "provenance"} <= checker.ids
    figures = {path.stem for path in (written.parent / "figures").glob("*.png")}
    assert {"contrasts", "gains", "search", "guide", "training", "downstream"} <= figures
    assert {"confirm", "importance", "heat-map", "networks", "ratios"} <= figures
    assert {"fd-against-gain", "entropy"} <= figures
    assert {f"{what}-phantom-fundus-disturb" for what in ("entropy", "closest")} <= figures
    assert {f"grid-phantom-fundus-{arm}" for arm in ARMS if arm != "duplicate"} <= figures
    csvs = {path.stem for path in (written.parent / "tables").glob("*.csv")}
    assert {"cells", "trials", "importance", "selection", "confirm"} <= csvs
    for expected in (
        "58 / 60",
        "7 min 11 s",
        "python -m mgdm_ray.study",
        "torch 2.14.1",
        "0123abc",
    ):
        assert expected in words


def test_every_table_of_the_page_lies_beside_it_as_csv_and_latex(written: Path) -> None:
    """Catches a table that was put on the page past Draft.table, and two under one name."""
    page_text = written.read_text()
    names = re.findall(r'<table id="table-([^"]+)"', page_text)
    assert len(names) == page_text.count("<table") == len(set(names)) > 15
    for name in names:
        assert (written.parent / "tables" / f"{name}.csv").is_file()
        tex = (written.parent / "tables" / f"{name}.tex").read_text()
        assert f"\\label{{tab:{name}}}" in tex
    assert len(list((written.parent / "tables").glob("*.tex"))) == len(names)


def test_a_guide_at_chance_is_named_with_its_noise_levels(written: Path) -> None:
    """Catches guidance by a guide that knows nothing, unsaid."""
    page, _ = read_page(written)
    assert "phantom-fundus at t = 700, 800, 900, 999" in page.sections["models"]


def test_texts_from_outside_are_escaped(written: Path) -> None:
    """Catches markup in a failure's reason or the configuration that gets into the page."""
    text = written.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "# a &lt; b &amp; c" in text


def test_an_incomplete_grid_has_no_answer_but_the_missing_cells(written: Path) -> None:
    """Catches a headline from the cells that came back, and one that hides which did not."""
    page, _ = read_page(written)
    first = page.sections["head"]
    assert page.badges[:4] == ["incomplete"] * 4
    assert "2 of 60" in first
    assert f"phantom-fundus {words.TIMES} resnet18 {words.TIMES} disturb, seed 0" in first
    assert "Evidence" not in page.terms
    assert "NonFiniteLoss" in page.sections["contrasts"]
    numbers = json.loads((written.parent / HEADLINE_FILE).read_text())
    assert not numbers


def test_contrast_table_agrees_with_the_cells_file(written: Path) -> None:
    """Catches a contrast with the wrong sign, arms or cells: computed again from cells.csv."""
    cells = {
        (r["dataset"], r["network"], r["seed"], r["arm"]): float(r["balanced_accuracy"])
        for r in rows_of(written, "cells")
    }
    rows = rows_of(written, "contrasts")
    assert [(r["contrast a"], r["contrast b"]) for r in rows] == [
        ("disturb", "duplicate"),
        ("disturb", "generate"),
        ("disturb", "roundtrip"),
    ]
    rows += rows_of(written, "contrasts-secondary")
    for row in rows:
        differences = [
            value - cells[*key[:3], row["contrast b"]]
            for key, value in cells.items()
            if key[3] == row["contrast a"] and (*key[:3], row["contrast b"]) in cells
        ]
        assert int(row["verdict pairs"]) == len(differences)
        assert float(row["difference"]) == pytest.approx(sum(differences) / len(differences))
        low, high = (float(row[f"these datasets, 95 % interval {end}"]) for end in ("low", "high"))
        assert low <= float(row["difference"]) <= high


def test_only_test_scores_are_in_the_result_tables(example: Example) -> None:
    """Catches validation scores shown as results: raising them must change nothing."""
    raised = [
        replace(r, metrics={**r.metrics, "val_balanced_accuracy": 1.0}) if r.is_cell else r
        for r in example.records
    ]
    assert result_rows(raised) == result_rows(example.records)


def test_what_confirming_a_search_showed(written: Path) -> None:
    """By hand: the best score fell by 0.05, the five others by 0.02 each, (0.05 + 5 * 0.02) / 6 =
    0.025; four fresh scores 0.004 around it. Other networks agree but for the last of six."""
    page, _ = read_page(written)
    said = page.sections["search"]
    for number in ("0.050", "+0.025", "+0.14", "maximum of 7", "6 settings"):
        assert number in said
    assert "phantom-fundus: importance" in said
    rows = rows_of(written, "selection")
    assert [row["search"] for row in rows] == list(DATASETS)
    for row in rows:
        assert float(row["score"]) - float(row["fresh_score"]) == pytest.approx(0.05)
        assert float(row["low"]) < 0.05 < float(row["high"])
        assert float(row["spearman"]) == pytest.approx(1 - 6 * (5 + 25) / (6 * 35))


def test_published_accuracies_stand_beside_those_of_the_real_arm(
    tmp_path: Path, example: Example
) -> None:
    """Catches figures beside another arm, network or metric, and a protocol that is not told."""
    breast = DatasetConfig.model_validate({"name": "breastmnist", "size": 64})
    rows = published(breast, DownstreamConfig())
    records = [
        replace(cell(arm, 0.5, seed, "resnet18", "breastmnist"), metrics=metrics)
        for arm, accuracy in (("real", 0.8), ("duplicate", 0.9))
        for seed in (0, 1)
        for metrics in [{"balanced_accuracy": 0.5, "accuracy": accuracy + 0.1 * seed}]
    ]
    path = write_report(tmp_path, records, example.context(published=rows))
    found = rows_of(path, "published")
    assert {row["network"] for row in found} == {"resnet18"}
    assert [float(row["published"]) for row in found] == [0.863, 0.840]
    assert [float(row["yours"]) for row in found] == pytest.approx([0.85, 0.85])
    assert "64 px" in found[0]["caution"]
    assert "from scratch" in found[1]["caution"]
    page, _ = read_page(path)
    assert "ImageNet weights" in page.sections["results"]
    write_report(tmp_path, records, example.context())
    assert not (tmp_path / "tables" / "published.csv").exists()


def test_a_second_report_replaces_the_first(tmp_path: Path, example: Example) -> None:
    """Catches figures of an earlier state that stay beside a report without them."""
    write_report(tmp_path, [cell("real", 0.6), cell("augment", 0.7)], example.context())
    assert list((tmp_path / "figures").iterdir())
    write_report(tmp_path, [], example.context())
    assert not list((tmp_path / "figures").iterdir())


def test_the_same_records_give_the_same_bytes(tmp_path: Path, example: Example) -> None:
    """Catches dates or random numbers in the page: a report can be compared with diff."""
    records = [cell("real", 0.6, s) for s in (0, 1)] + [cell("disturb", 0.7, s) for s in (0, 1)]
    context = example.context()
    first = write_report(tmp_path / "a", records, context).read_bytes()
    assert write_report(tmp_path / "b", records[::-1], context).read_bytes() == first
