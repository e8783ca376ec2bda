"""What tables and sentences of the report are made of: rows, problems, durations, settings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mgdm_ray.config import GuidanceSetting
from mgdm_ray.pipeline.trials import Trial
from mgdm_ray.results.report import artefacts, cells, words, write_report
from mgdm_ray.results.report.cells import result_rows, result_table
from mgdm_ray.results.report.table import Table
from mgdm_ray.storage.records import Record, Status
from tests.results.report.page import cell
from tests.study_example import SETTING, Example


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
    found = cells.problems(records, [("d", "n", "real", 0)])
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
    assert artefacts.best_trials(rows)["d"].number == 3


def test_trials_without_a_search_artefact_come_from_records() -> None:
    record = Record(
        key="t", kind="trial", status="done", dataset="d", setting=SETTING, metrics={"score": 0.4}
    )
    (trial,) = artefacts.read_trials([record], lambda _: None)
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
