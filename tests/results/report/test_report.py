"""The report: numbers against hand-made records, the page against what a browser would refuse."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mgdm_ray.config import GuidanceSetting
from mgdm_ray.evaluation.selection_bias import Agreement, Confirmed, Optimism
from mgdm_ray.pipeline.trials import Trial
from mgdm_ray.results.report import page, result_rows, result_table, searches, tables, write_report
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
    sections = {"question", "results", "contrasts", "search", "images", "synthetic", "copies"}
    assert sections | {"models", "failures", "costs", "provenance"} <= checker.ids
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
    _, words = read_page(written)
    assert "No better than guessing: " in words
    assert "phantom-fundus at t = 700, 800, 900, 999" in words


def test_texts_from_outside_are_escaped(written: Path) -> None:
    """Catches markup in a failure's reason or the configuration that gets into the page."""
    text = written.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "# a &lt; b &amp; c" in text


def test_an_incomplete_grid_has_no_answer_but_the_missing_cells(written: Path) -> None:
    """Catches a headline from the cells that came back, and one that hides which did not."""
    _, words = read_page(written)
    assert "incomplete disturb against duplicate No answer yet, 2 of the cells that it" in words
    assert "better here" not in words[: words.index("What was asked")]
    assert "Incomplete. 2 of 60 planned cells are missing (phantom-fundus" in words
    assert "Disturb is better than duplicate" not in words
    assert "Disturb against duplicate is not answered: 2 of the 24 planned cells are" in words
    assert "disturb: phantom-fundus x resnet18 x seed 0" in words
    assert "for orientation only: +0." in words
    assert "missing because: failed: NonFiniteLoss: the loss is nan at step 41" in words


def test_a_complete_grid_is_answered(tmp_path: Path) -> None:
    """Catches a refusal of what is there."""
    whole = make_example(tmp_path / "artefacts", failed=False, trials=0)
    _, words = read_page(write_report(tmp_path, whole.records, whole.context()))
    assert "Disturb is better than duplicate on these 2 datasets" in words
    assert "incomplete" not in words


def test_contrast_table_agrees_with_the_cells_file(written: Path) -> None:
    """Catches a contrast with the wrong sign, arms or cells: computed again from cells.csv."""
    with (written.parent / "tables" / "cells.csv").open() as file:
        cells = {
            (r["dataset"], r["network"], r["seed"], r["arm"]): float(r["balanced_accuracy"])
            for r in csv.DictReader(file)
        }
    with (written.parent / "tables" / "contrasts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["contrast a"], r["contrast b"]) for r in rows] == [
        ("disturb", "duplicate"),
        ("disturb", "generate"),
        ("disturb", "roundtrip"),
    ]
    with (written.parent / "tables" / "contrasts-secondary.csv").open() as file:
        rows += list(csv.DictReader(file))
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

    def trial(number: int, score: float | None, status: Status) -> Trial:
        return Trial(number, SETTING, status, score=score, where="d")

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


def test_what_confirming_a_search_showed(written: Path) -> None:
    """By hand: the best score fell by 0.05, the five others by 0.02 each, (0.05 + 5 * 0.02) / 6 =
    0.025; four fresh scores 0.004 around it. Other networks agree but for the last of six."""
    _, words = read_page(written)
    assert "the search's score was 0.050 too high, as is to be expected of a maximum of 7" in words
    assert "off by +0.025 on average" in words
    assert "that leaves +0.025 for choosing" in words
    assert "not resolvable with 6 settings: Spearman +0.14" in words
    assert "agree with themselves by +" in words
    with (written.parent / "tables" / "selection.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["search"] for row in rows] == ["phantom-fundus", "phantom-ultrasound"]
    for row in rows:
        assert float(row["score"]) - float(row["fresh_score"]) == pytest.approx(0.05)
        assert float(row["low"]) < 0.05 < float(row["high"])
        assert float(row["spearman"]) == pytest.approx(1 - 6 * (5 + 25) / (6 * 35))
    assert "No importance of parameters: phantom-fundus: all trials have the same score" in words


def test_a_search_that_was_not_confirmed(tmp_path: Path) -> None:
    """Catches a crash, or figures made up, where a search has neither file: those of older
    versions, and studies without search.confirm."""
    example = make_example(tmp_path / "artefacts", again=0)
    path = write_report(tmp_path / "study", example.records, example.context())
    _, words = read_page(path)
    assert "The best score was not confirmed: search.confirm scores it again" in words
    assert "the search is older than this figure" in words
    assert "too high by" not in words
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
    with (path.parent / "tables" / "selection.csv").open() as file:
        assert [row["search"] for row in csv.DictReader(file)] == ["phantom-ultrasound"]
    assert "confirm phantom-fundus" in read_page(path)[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"transfer": None}, "no network that is not a proxy"),
        (
            {"transfer": Agreement(math.nan, math.nan, math.nan, math.nan, 1)},
            "one setting gives no",
        ),
        ({"transfer": Agreement(math.nan, math.nan, math.nan, math.nan, 6)}, "is the same for all"),
        ({"transfer": Agreement(1.0, math.nan, math.nan, 0.3, 3)}, "with fewer than 5 settings no"),
        ({"transfer": Agreement(0.9, 0.5, 1.0, 0.01, 6)}, "rank settings as the others do"),
        ({"transfer": Agreement(-0.9, -1.0, -0.5, 0.01, 6)}, "the other way round than the others"),
        ({"transfer": Agreement(0.9, 0.5, 1.0, 0.06, 6)}, "is not resolvable with 6 settings"),
        ({"chosen": Optimism(0.5, 0.6, -0.2, -0.1, 4)}, "was 0.100 too low (95 % interval -0.2"),
        ({"chosen": Optimism(0.6, 0.5, -0.1, 0.3, 4)}, "to +0.300, which holds 0)"),
        ({"chosen": Optimism(0.6, 0.5, math.nan, math.nan, 1)}, "no interval: one fresh seed"),
    ],
)
def test_what_is_said_of_a_search(changes: dict[str, object], expected: str) -> None:
    """Catches "proxies rank for the others" of three settings, and a luck that is called none."""
    plain = Confirmed(
        8,
        (1, 2),
        Optimism(0.6, 0.5, 0.05, 0.15, 4),
        0.0,
        None,
        Agreement(0.5, 0.1, 0.9, 0.2, 6),
        (),
    )
    found = replace(plain, **changes)  # type: ignore[arg-type]
    assert expected in f"{searches.optimism_words(found)} {searches.transfer_words(found)}"


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
    assert "±" not in words.replace("ean ± standard deviation", "")
    assert "search" not in checker.ids


def test_report_with_arms_missing(tmp_path: Path, example: Example) -> None:
    """Catches a crash where the study lacks the arms of the primary question."""
    context = example.context(expected_cells=())
    path = write_report(tmp_path, [cell("real", 0.6)], context)
    assert "no arm of synthetic images" in read_page(path)[1]
    path = write_report(tmp_path, [cell("real", 0.6), cell("generate", 0.7)], context)
    said = "generate against real, exploratory On this dataset, adding generated images to"
    assert said in read_page(path)[1]


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
