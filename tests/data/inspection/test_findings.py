"""What a survey is judged to be: each fault gives its level and names its images."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mgdm_ray.data.inspection import findings
from mgdm_ray.data.inspection.findings import LEVELS, TEXTS, Finding, Pair, caption, judge
from mgdm_ray.data.inspection.survey import Survey
from tests.data.inspection.surveys import fact, made, several

KNOWN = [replace(item, group=f"P{k}") for k, item in enumerate(several())]


def found(survey: Survey, *judged: Any) -> dict[str, list[Finding]]:
    """Findings by level."""
    levels: dict[str, list[Finding]] = {"error": [], "warning": [], "ok": []}
    for finding in judge(survey, *(judged or ([], []))):
        levels[finding.level].append(finding)
    return levels


def test_nothing_wrong() -> None:
    """Catches false alarms: patients known, classes even, images alike."""
    levels = found(made(KNOWN))
    assert [len(levels[name]) for name in ("error", "warning", "ok")] == [0, 0, 1]


def test_every_text_is_used_and_has_a_level() -> None:
    """Catches a text that no finding has any more, and a level that sorts nowhere."""
    code = Path(findings.__file__).read_text(encoding="utf-8")
    for name, (level, text, _) in TEXTS.items():
        assert level in LEVELS, name
        assert text, name
        assert f'"{name}"' in code or f'"{name.removeprefix("identical_")}"' in code, name


def test_errors_come_first() -> None:
    """Catches an error at the end of a long list, and an all-clear in spite of one."""
    survey = made(several())
    survey.errors, survey.warnings = ["bad"], ["odd"]
    findings = judge(survey, [], [])
    assert [f.level for f in findings] == ["error", "warning", "warning"]
    assert findings[0] == Finding("error", "bad")
    assert str(Finding("error", "bad", "Fix it")) == "error: bad. Fix it"


@pytest.mark.parametrize(("damaged", "level"), [("refuse", "error"), ("leave_out", "warning")])
def test_unreadable_files(damaged: str, level: str) -> None:
    """Catches a study that will be refused and is told to be fine, and the other way round."""
    survey = made(KNOWN, reading={"damaged": damaged})
    survey.damaged = {f"a/{k}.png": "cut" for k in range(5)}
    (finding,) = found(survey)[level]
    assert "5" in finding.text
    assert "'a/2.png' (cut); and 2 more" in finding.text


def test_other_files_are_named() -> None:
    """Catches a note that is taken for an image, or not mentioned at all."""
    survey = made(KNOWN)
    survey.listing = replace(survey.listing, ignored=("a/notes.txt",))
    assert any("'a/notes.txt'" in finding.text for finding in found(survey)["ok"])


def test_missing_and_uneven_classes() -> None:
    """Catches a class that no training image has, one that the test lacks, and imbalance."""
    no_train = [replace(i, label=2) if i.path == "a/10.png" else i for i in KNOWN]
    levels = found(made(no_train))
    (error,) = levels["error"]
    assert "'c'" in error.text
    assert any("'c'" in w.text and "train" in w.text for w in levels["warning"]), "and it is tiny"
    uneven = [replace(i, label=0) if k % 6 != 1 else i for k, i in enumerate(KNOWN * 4)]
    texts = [w.text + w.advice for w in found(made(uneven))["warning"]]
    assert any("class_weighted" in text for text in texts)


@pytest.mark.parametrize(
    ("rows", "levels"),
    [
        ([0, 2], {"warning": 1}),
        ([0, 1], {"error": 1}),
        ([0, 10], {"error": 1}),
        ([0, 11], {"error": 2}),
    ],
    ids=["same split and class", "classes", "splits", "both"],
)
def test_identical_images(rows: list[int], levels: dict[str, int]) -> None:
    """Catches a leak or a contradiction that is told as a mere copy."""
    survey = made(KNOWN)
    levels_found = found(survey, [rows], [])
    assert {k: len(v) for k, v in levels_found.items() if v and k != "ok"} == levels
    finding = (levels_found["error"] + levels_found["warning"])[0]
    assert " = ".join(caption(survey, row) for row in rows) in finding.text


def test_near_duplicates_are_warnings() -> None:
    """Catches a pair that is told twice, or of which the correlation is lost."""
    pairs = [Pair(0, 10, 0.995), Pair(0, 11, 0.992)]
    across, conflict = found(made(KNOWN), [], pairs)["warning"]
    assert "0.9950" in across.text
    assert "0.9920" in conflict.text


def test_pixels() -> None:
    """Catches constant, long and partly coloured images that nobody hears of."""
    facts = [fact(k) for k in range(24)]
    facts[3] = fact(3, constant=True)
    facts[4] = fact(4, width=40)
    facts[5] = fact(5, colour=True)
    facts[6] = fact(6, text=True)
    texts = [w.text + w.advice for w in found(made(KNOWN, facts))["warning"]]
    assert [
        any(word in t for t in texts) for word in ("b/3.png", "reading.fit", "channels: 1")
    ] == [True, True, True]
    assert sum("'a/6.png'" in text for text in texts) == 1, "which may hold text"
    assert found(made(KNOWN, [fact(k, width=26) for k in range(24)]))["warning"] == []


def test_patients() -> None:
    """Catches silence where no patient is known, or some are not, and a hint that is lost."""
    (warning,) = found(made(several()))["warning"]
    assert "--group" not in warning.advice
    some = [replace(item, group="P1") if k < 4 else item for k, item in enumerate(several())]
    (warning,) = found(made(some))["warning"]
    assert "20 of 24" in warning.text
    named = [replace(item, path=f"a/P{k // 2}_{k}.png") for k, item in enumerate(several())]
    (warning,) = found(made(named))["warning"]
    assert "--group" in warning.advice
    assert "12 patients" in warning.advice
    (warning,) = found(made(several(), kind="npz"))["warning"]
    assert "--group" not in warning.advice
    twice = [replace(item, group=f"P{k // 2}") for k, item in enumerate(several())]
    told = found(made(twice))
    assert not told["warning"]
    assert [one.text for one in told["ok"] if "4 test images" in one.text]


def test_tags_are_counted_not_shown() -> None:
    """Catches tags that identify a patient and are not reported."""
    survey = made(KNOWN)
    survey.identity, survey.dicom_files = Counter(PatientName=7, PatientID=8), 8
    (warning,) = found(survey)["warning"]
    assert "PatientID 8, PatientName 7" in warning.text
