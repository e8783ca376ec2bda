"""The report: numbers against hand-made records, the page against what a browser would refuse."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mgdm_ray.config import GuidanceSetting
from mgdm_ray.records import Record
from mgdm_ray.report import page, result_rows, result_table, tables, write_report
from tests.study_example import ARMS, SETTING, Example, make_example

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

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.loads += [given[name] or "" for name in ("src", "href") if name in given]
        self.ids.add(given.get("id") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def read_page(path: Path) -> tuple[_Checker, str]:
    checker = _Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker, " ".join(" ".join(checker.words).split())


def cell(arm: str, value: float, seed: int = 0, network: str = "n", dataset: str = "d") -> Record:
    return Record(
        key=f"{dataset}-{network}-{arm}-{seed}", kind="fit_downstream", status="done", split="test",
        dataset=dataset, network=network, arm=arm, seed=seed,
        metrics={"balanced_accuracy": value},
    )  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return make_example(tmp_path_factory.mktemp("artefacts"))


@pytest.fixture(scope="module")
def written(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("study"), example.records, example.context())


def test_page_is_self_contained(written: Path) -> None:
    """Catches links to other hosts, scripts, broken anchors, unbalanced tags, temporary files."""
    checker, _ = read_page(written)
    assert "script" not in checker.tags
    anchors = {f"#{name}" for name in checker.ids if name}
    for load in checker.loads:
        assert load.startswith("data:image/png;base64,") or load in anchors
    assert not re.search(r"url\(|@import", written.read_text())
    assert not list(written.parent.rglob("*.tmp"))


def test_every_section_and_file_is_there(written: Path) -> None:
    """Catches a section or figure that silently fell out of the report."""
    checker, words = read_page(written)
    sections = {"question", "results", "contrasts", "search", "images", "models", "failures"}
    assert sections | {"costs", "provenance"} <= checker.ids
    figures = {path.stem for path in (written.parent / "figures").glob("*.png")}
    assert {"contrasts", "gains", "search", "guide", "training", "downstream"} <= figures
    assert {f"grid-phantom-fundus-{arm}" for arm in ARMS if arm != "duplicate"} <= figures
    csvs = {path.stem for path in (written.parent / "tables").glob("*.csv")}
    assert csvs == {"cells", "summary", "contrasts", "trials"}
    for expected in (
        "58 / 60",
        "7 min 11 s",
        "python -m mgdm_ray.study",
        "torch 2.14.1",
        "0123abc",
    ):
        assert expected in words


def test_a_guide_at_chance_is_named_with_its_noise_levels(written: Path) -> None:
    """Catches guidance by a guide that knows nothing, unsaid."""
    _, words = read_page(written)
    assert "No better than guessing: " in words
    assert "phantom-fundus at t = 700, 800, 900, 999" in words


def test_texts_from_outside_are_escaped(written: Path) -> None:
    """Catches markup in a failure's reason or the configuration that gets into the page."""
    text = written.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "# a &lt; b &amp; c" in text


def test_answer_names_the_primary_contrast_and_what_was_dropped(written: Path) -> None:
    """Catches a headline that hides that failed cells were left out."""
    _, words = read_page(written)
    assert "Disturb is better than duplicate" in words
    assert "2 of 12 cells dropped as incomplete" in words
    assert "2 planned cells are missing" in words


def test_contrast_table_agrees_with_the_cells_file(written: Path) -> None:
    """Catches a contrast with the wrong sign, arms or cells: computed again from cells.csv."""
    with (written.parent / "tables" / "cells.csv").open() as file:
        cells = {
            (r["dataset"], r["network"], r["seed"], r["arm"]): float(r["balanced_accuracy"])
            for r in csv.DictReader(file)
        }
    with (written.parent / "tables" / "contrasts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["arm_a"], r["arm_b"]) for r in rows if r["family"] == "primary"] == [
        ("disturb", "duplicate"),
        ("disturb", "generate"),
        ("disturb", "roundtrip"),
    ]
    for row in rows:
        differences = [
            value - cells[*key[:3], row["arm_b"]]
            for key, value in cells.items()
            if key[3] == row["arm_a"] and (*key[:3], row["arm_b"]) in cells
        ]
        assert int(row["n"]) == len(differences)
        assert float(row["difference"]) == pytest.approx(sum(differences) / len(differences))
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])


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
    assert "* some cells are missing" in text
    assert len({len(line) for line in text.splitlines()[:2]}) == 1


def test_result_table_without_cells() -> None:
    assert result_table([]) == "no cell has been evaluated yet"


def test_arms_keep_the_order_of_the_design() -> None:
    assert tables.in_order(["zzz", "disturb", "real", "generate"]) == [
        "real", "generate", "disturb", "zzz",
    ]  # fmt: skip


def test_jobs_that_were_held_up_stand_under_the_root() -> None:
    """Catches a table of failures in which one broken denoiser fills a hundred rows."""
    reason = "needs decode 12ab34cd, which failed: needs fit_denoiser 99ff00aa, which failed: nan"
    records = [
        Record(key="1", kind="fit_denoiser", status="failed", reason="nan", dataset="d"),
        *(replace(cell("disturb", 0.5, s), status="failed", reason=reason) for s in range(3)),
        Record(key="t", kind="trial", status="pruned", reason="stopped early"),
    ]
    found = tables.problems(records, [("d", "n", "real", 0)])
    assert [(status, why, len(names)) for status, why, names in found[:2]] == [
        ("failed", "nan", 1),
        ("held up", "nan", 3),
    ]
    assert found[2][0] == "not run"
    assert found[2][2] == ["cell d \N{MULTIPLICATION SIGN} n \N{MULTIPLICATION SIGN} real, seed 0"]


def test_best_trial_is_finished_and_highest() -> None:
    """Catches a pruned or failed trial that is called best."""

    def trial(number: int, score: float | None, status: str) -> tables.Trial:
        return tables.Trial("d", number, SETTING, score, {}, status, 1.0)

    rows = [trial(0, 0.6, "done"), trial(1, 0.9, "pruned"), trial(2, None, "failed"),
            trial(3, 0.7, "done"), trial(4, 0.7, "done")]  # fmt: skip
    assert tables.best_trials(rows)["d"].number == 3


def test_trials_without_a_search_artefact_come_from_records() -> None:
    record = Record(
        key="t", kind="trial", status="done", dataset="d", setting=SETTING, metrics={"score": 0.4}
    )
    (trial,) = tables.trials([record], lambda _: None)
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
    assert tables.duration(seconds) == shown


def test_report_of_a_study_that_has_not_begun(tmp_path: Path, example: Example) -> None:
    """Catches a crash where there is nothing to show yet."""
    path = write_report(tmp_path, [], example.context())
    _, words = read_page(path)
    assert "No answer: no cell has been evaluated yet." in words
    assert "60" in words


def test_report_with_one_seed_one_network_and_no_search(tmp_path: Path, example: Example) -> None:
    """Catches spreads and intervals made up from a single value."""
    records = [cell("real", 0.6), cell("duplicate", 0.61), cell("disturb", 0.65)]
    context = example.context(expected_cells=(), datasets=(), plan_counts={})
    checker, words = read_page(write_report(tmp_path, records, context))
    assert "not resolvable" in words
    assert "±" not in words.replace("Mean ± standard deviation", "")
    assert "search" not in checker.ids


def test_report_with_arms_missing(tmp_path: Path, example: Example) -> None:
    """Catches a crash where the study lacks the arms of the primary question."""
    context = example.context(expected_cells=())
    path = write_report(tmp_path, [cell("real", 0.6)], context)
    assert "no arm of synthetic images" in read_page(path)[1]
    path = write_report(tmp_path, [cell("real", 0.6), cell("generate", 0.7)], context)
    assert "not resolvable exploratory Generate against real" in read_page(path)[1]


def test_the_headline_is_about_synthetic_images(tmp_path: Path, example: Example) -> None:
    """Catches "duplicate is better than real" as the answer to what synthetic images are worth."""
    arms = {"real": 0.5, "augment": 0.6, "duplicate": 0.7}
    records = [cell(arm, value + s / 99, s) for arm, value in arms.items() for s in range(9)]
    path = write_report(tmp_path, records, example.context(expected_cells=()))
    assert "No answer: the study has no arm of synthetic images" in read_page(path)[1]


def test_provenance_is_that_of_the_records(tmp_path: Path, example: Example) -> None:
    """Catches a page that names the commit that wrote it as the one that computed the numbers."""
    records = [
        replace(cell("real", 0.6, s), git_commit=commit, versions={"torch": "9.9"})
        for s, commit in enumerate(("aaa111", "bbb222", "bbb222"))
    ]
    context = example.context(expected_cells=(), findings={"d": ["1 image leaks"]})
    words = read_page(write_report(tmp_path, records, context))[1]
    assert "computed by commit bbb222 (2 jobs); aaa111 (1 jobs)" in words
    assert "computed with torch 9.9" in words
    assert "report by commit 0123abc" in words
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
    assert "<td>&lt;td onclick=x" in page.table(["a", "b"], [["r", "<td onclick=x"]])


def test_a_setting_names_what_is_not_the_default() -> None:
    """Would catch two settings that differ and read the same."""
    plain = GuidanceSetting(uncertainty_scale=0.12).model_dump(mode="json")
    assert tables.setting_text(plain) == f"entropy, {tables.GAMMA} 0.12"
    rich = {**plain, "gradient": "relative", "over_t": "noise", "decode_guidance_scale": 2.0}
    assert tables.setting_text(rich) == (
        f"entropy, {tables.GAMMA} 0.12, relative gradient, times noise, guidance while decoding 2"
    )
