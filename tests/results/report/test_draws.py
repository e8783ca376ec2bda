"""A report of several draws of synthetic images: what its intervals claim, and which it shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mgdm_ray.evaluation.stats.images import image_contrast
from mgdm_ray.results import HEADLINE_FILE
from mgdm_ray.results.report import write_report
from mgdm_ray.results.report.builder import Builder
from tests.results.report.page import read_page, rows_of
from tests.results.report.test_statistics import EFFECT, Study

NOT_COVERED = "another draw of synthetic images"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("cells"), ["p", "q"], EFFECT)


@pytest.mark.parametrize("draws", ["one", "images", "models"])
def test_the_report_says_which_interval_it_holds(draws: str, study: Study, tmp_path: Path) -> None:
    """Would catch another draw that is claimed without evidence, or not claimed with it."""
    path = write_report(tmp_path, study.records, study.context(draws=draws))
    page, text = read_page(path)
    head = json.loads((tmp_path / HEADLINE_FILE).read_text())
    expected = 0 if draws == "one" else 4
    assert head["contrast/disturb-duplicate/here/draws"] == expected
    row = rows_of(path, "contrasts")[0]
    assert float(row["verdict draws"]) == expected
    scope = " ".join(page.sections["head"].split())
    scope = scope[scope.index("Scope") :]
    covered, _, left = scope.partition("Not covered")
    assert (NOT_COVERED in left) == (draws == "one")
    assert ("4 draws per dataset" in covered) == (draws != "one")
    assert ("other diffusion models" in left) == (draws == "images")
    assert ("with the images drawn here" in text) == (draws == "one")


def test_intervals_are_over_draws_everywhere(study: Study, tmp_path: Path) -> None:
    """Would catch a section that still takes the draws as they are."""
    report = Builder(tmp_path, study.records, study.context(draws="images"))
    plain = Builder(tmp_path, study.records, study.context())
    (first,), (fixed,) = report.primary, plain.primary
    assert first.here is not None
    assert fixed.here is not None
    assert first.difference == pytest.approx(fixed.difference)
    assert first.here.estimate.df < fixed.here.estimate.df
    for one in (report.paired(first.pair, report.cells) or {}).values():
        alone = image_contrast([one])
        assert alone is not None
        assert alone.draws == 4
    other = next(c for c in report.secondary if c.pair == ("duplicate", "real"))
    assert other.here is not None
    assert other.here.estimate.draws == 4, "copies are drawn for each seed"
    write_report(tmp_path, study.records, study.context(draws="images"))
    rows = rows_of(tmp_path / "report.html", "contrasts_by_dataset")
    assert {row["pairs of cells"] for row in rows if row["dataset"] in ("p", "q")} == {"12"}


def test_one_seed_has_one_draw(study: Study, tmp_path: Path) -> None:
    records = [record for record in study.records if record.seed == 0]
    cells = [cell for cell in study.context().expected_cells if cell[3] == 0]
    report = Builder(tmp_path, records, study.context(draws="images", expected_cells=cells))
    assert not report.has_draws
    assert report.primary[0].here is not None
    assert report.primary[0].here.estimate.draws == 0


def test_without_predictions_draws_count_as_well(study: Study, tmp_path: Path) -> None:
    context = study.context(draws="images", artefact=lambda _: None)
    first = Builder(tmp_path, study.records, context).primary[0]
    assert first.here is not None
    assert (first.here.estimate.draws, first.here.estimate.images) == (4, 0)


def test_pages_on_images_are_of_the_first_draw(study: Study, tmp_path: Path) -> None:
    """Would catch a table with an arm three times."""
    like = replace(study.records[0], kind="assess", network=None, split=None, metrics={"fd": 1.0})
    assessed = [
        replace(like, key=f"{arm}-{seed}", arm=arm, seed=seed, metrics={"fd": float(seed or 0)})
        for arm, seed in (("duplicate", None), ("disturb", 2), ("disturb", 1), ("disturb", None))
    ]
    for first, shown in ((0, 0.0), (2, 2.0)):
        context = study.context(draws="images", first_draw=first)
        report = Builder(tmp_path, [*study.records, *assessed], context)
        found = {one.arm: one.metrics["fd"] for one in report.assessed["p"]}
        assert found == {"duplicate": 0.0, "disturb": shown}
        assert len(report.assessed["p"]) == 2
