"""The report: numbers against hand-made records, the page against what a browser would refuse."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mgdm_ray.config import GuidanceSetting
from mgdm_ray.pipeline.trials import Trial
from mgdm_ray.results.report import (
    HEADLINE_FILE,
    cells,
    jobs,
    result_rows,
    result_table,
    words,
    write_report,
)
from mgdm_ray.results.report.table import Table
from mgdm_ray.storage.records import Record, Status
from tests.judged_example import add_judged, add_ratios
from tests.study_example import ARMS, DATASETS, SETTING, Example, make_example

VOID = {"meta", "img", "br"}


class _Checker(HTMLParser):
    """Collects what the page loads and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.badges: list[str] = []
        self.terms: list[str] = []
        """Of definition lists."""
        self.sections: dict[str, str] = {"head": ""}
        """Words by section; before the first one ``head``."""
        self._classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.loads += [given[name] or "" for name in ("src", "href") if name in given]
        self.ids.add(given.get("id") or "")
        if tag not in VOID:
            self.open.append(tag)
            self._classes.append(given.get("class") or "")
        if tag == "section":
            self.sections[given["id"] or ""] = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._classes.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        section = list(self.sections)[-1]
        self.sections[section] = " ".join(f"{self.sections[section]} {data}".split())
        if self._classes and self._classes[-1].startswith("badge"):
            self.badges.append(data)
        if self.open[-1:] == ["dt"]:
            self.terms.append(data)


def read_page(path: Path) -> tuple[_Checker, str]:
    checker = _Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker, " ".join(" ".join(checker.words).split())


def rows_of(path: Path, name: str) -> list[dict[str, str]]:
    """Of a table beside the page."""
    with (path.parent / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def cell(arm: str, value: float, seed: int = 0, network: str = "n", dataset: str = "d") -> Record:
    return Record(
        key=f"{dataset}-{network}-{arm}-{seed}", kind="fit_downstream", status="done", split="test",
        dataset=dataset, network=network, arm=arm, seed=seed,
        metrics={"balanced_accuracy": value},
    )  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """A study with some of everything: failed cells, searches, a judge, a ratio curve."""
    example = make_example(tmp_path_factory.mktemp("artefacts"))
    for dataset, facts in DATASETS.items():
        add_judged(example, dataset, len(facts["classes"]), ARMS)  # type: ignore[arg-type]
        points = {("disturb", 0.5, s): 0.6 for s in (0, 1)} | {("generate", 2.0, 0): 0.7}
        add_ratios(example, dataset, "squeezenet1_1", points)
    return example


@pytest.fixture(scope="module")
def written(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("study"), example.records, example.context())


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
        low, high = (float(row[f"95 % interval {end}"]) for end in ("low", "high"))
        assert low <= float(row["difference"]) <= high


def test_only_test_scores_are_in_the_result_tables(example: Example) -> None:
    """Catches validation scores shown as results: raising them must change nothing."""
    raised = [
        replace(r, metrics={**r.metrics, "val_balanced_accuracy": 1.0}) if r.is_cell else r
        for r in example.records
    ]
    assert result_rows(raised) == result_rows(example.records)


def test_result_rows_by_hand() -> None:
    """Catches wrong pooling, a gain that is not paired, a lost mark on incomplete arms."""
    records = [cell("real", 0.5, 0), cell("real", 0.7, 1), cell("disturb", 0.8, 1)]
    assert result_rows(records) == [
        ["arm", "d", "vs real"],
        ["real", "0.600 ± 0.141", ""],
        ["disturb", "0.800*", "+0.100"],
    ]
    text = result_table(records)
    assert text.splitlines()[-1].startswith("* "), "the mark is explained"
    assert len({len(line) for line in text.splitlines()[:2]}) == 1


def test_means_that_differ_by_rounding_are_all_bold(tmp_path: Path, example: Example) -> None:
    """Catches a winner among equals, by the order of a sum; and another order of datasets than
    the study's."""
    values = {"real": 0.9, "duplicate": 0.9, "disturb": 0.9031250000000001}
    records = [cell(a, v, dataset=d) for d in ("e", "d") for a, v in values.items()]
    records.append(cell("generate", 0.903125, dataset="e"))
    infos = [{"name": name} for name in ("e", "d")]
    path = write_report(tmp_path, records, example.context(expected_cells=(), datasets=infos))
    bold = re.findall(r'<td class="best"[^>]*>([\d.]+)', path.read_text())
    assert bold == ["0.903"] * 6
    assert result_rows(records)[0] == ["arm", "e", "vs real", "d", "vs real"]
    assert path.read_text().index("Balanced accuracy: e") < path.read_text().index("accuracy: d")


def test_result_table_without_cells() -> None:
    [line] = result_table([]).splitlines()
    assert line


def test_arms_keep_the_order_of_the_design() -> None:
    assert cells.in_order(["zzz", "disturb", "real", "generate"]) == [
        "real", "generate", "disturb", "zzz",
    ]  # fmt: skip


def test_blocked_jobs_are_grouped_by_their_root_cause() -> None:
    """Catches a table of failures in which one broken denoiser fills a hundred rows."""
    reason = "needs decode 12ab34cd, which failed: needs fit_denoiser 99ff00aa, which failed: nan"
    records = [
        Record(key="1", kind="fit_denoiser", status="failed", reason="nan", dataset="d"),
        *(replace(cell("disturb", 0.5, s), status="failed", reason=reason) for s in range(3)),
        Record(key="t", kind="trial", status="pruned", reason="stopped early"),
    ]
    found = jobs.problems(records, [("d", "n", "real", 0)])
    assert [(status, why, len(names)) for status, why, names in found[:2]] == [
        ("failed", "nan", 1),
        ("blocked", "nan", 3),
    ]
    assert found[2][0] == "not run"
    assert found[2][2] == ["cell d \N{MULTIPLICATION SIGN} n \N{MULTIPLICATION SIGN} real, seed 0"]


def test_best_trial_is_finished_and_highest() -> None:
    """Catches a pruned or failed trial that is called best."""

    def trial(number: int, score: float | None, status: Status) -> Trial:
        return Trial(number, SETTING, status, score=score, where="d")

    rows = [trial(0, 0.6, "done"), trial(1, 0.9, "pruned"), trial(2, None, "failed"),
            trial(3, 0.7, "done"), trial(4, 0.7, "done")]  # fmt: skip
    assert jobs.best_trials(rows)["d"].number == 3


def test_trials_without_a_search_artefact_come_from_records() -> None:
    record = Record(
        key="t", kind="trial", status="done", dataset="d", setting=SETTING, metrics={"score": 0.4}
    )
    (trial,) = jobs.trials([record], lambda _: None)
    assert (trial.where, trial.score) == ("d", 0.4)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.44, "0.4 s"),
        (12.3, "12 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
        (3599.7, "1 h 00 min"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert words.duration(seconds) == shown


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


def test_plain_strings_never_become_markup() -> None:
    """Catches a table cell that is taken for markup because of how it begins."""
    table = Table("t", ["a", "<b>"], [["<i>r", "<td onclick=x"]], caption="<u>")
    html = str(table.html())
    assert "<td>&lt;td onclick=x" in html
    assert not re.search("<[biu]>", html)


def test_a_setting_names_what_is_not_the_default() -> None:
    """Would catch two settings that differ and read the same."""
    plain = GuidanceSetting(uncertainty_scale=0.12).model_dump(mode="json")
    assert words.setting_text(plain) == f"entropy, {words.GAMMA} 0.12"
    rich = {**plain, "gradient": "relative", "over_t": "noise", "decode_guidance_scale": 2.0}
    assert words.setting_text(rich) == (
        f"entropy, {words.GAMMA} 0.12, relative gradient, times noise, guidance while decoding 2"
    )
