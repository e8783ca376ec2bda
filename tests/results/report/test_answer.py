"""The first screen: one sentence, how sure, what it does not speak of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mgdm_ray.evaluation.stats import Contrast
from mgdm_ray.results.report import tables, write_report
from mgdm_ray.results.report.answer import answer, signed, unsaid
from tests.results.report.test_report import read_page
from tests.study_example import make_example


def found(
    difference: float, low: float, high: float, p: float = 0.01, p_datasets: float = 0.5
) -> tables.Tested:
    contrast = Contrast(
        difference, low, high, p, 20, 3, 17, 0.1, 40, "rough", "disturb", "duplicate", 4,
        p_datasets,
    )  # fmt: skip
    return tables.Tested(contrast, p)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            found(0.012, -0.003, 0.027),
            "On these 4 datasets, adding disturbed images instead of copies of real images changed "
            "balanced accuracy by +0.012 (95 % interval \N{MINUS SIGN}0.003 to +0.027): not "
            "resolved, it may be no change at all.",
        ),
        (
            found(0.012, 0.003, 0.027),
            "raised balanced accuracy by 0.012 (95 % interval +0.003 to +0.027): better here, on "
            "these 4 datasets, with the images drawn",
        ),
        (found(-0.012, -0.02, -0.01, p_datasets=0.01), "lowered balanced accuracy by 0.012"),
        (found(0.012, 0.003, 0.027, p_datasets=0.01), "to +0.027): better."),
        (found(0.012, 0.003, 0.027, p=0.2), "not resolved, for not every test agrees with this"),
        (found(0.012, math.nan, math.nan), "(no interval): not resolved, a single pair tells"),
    ],
)
def test_the_answer_is_one_sentence(case: tables.Tested, said: str) -> None:
    """Catches "raised" where nothing is resolved, a wrong sign, a scope left out."""
    words = answer(case)
    assert said in words
    assert words.count(". ") == 0


def test_an_incomplete_grid_is_no_answer() -> None:
    """Catches a resolved contrast of what is left that is sold as the answer."""
    words = answer(found(0.012, 0.003, 0.027), absent=2)
    assert words.startswith("No answer yet, 2 of the cells that it needs are missing;")
    assert "better" not in words


def test_what_the_answer_does_not_speak_of() -> None:
    """Catches a claim about other datasets where four were looked at, and its absence where
    datasets agree."""
    assert "other datasets (fewer than six cannot tell)" in unsaid(found(0.1, 0.0, 0.2).contrast)
    assert "other datasets" not in unsaid(found(0.1, 0.0, 0.2, p_datasets=0.01).contrast)


def test_the_first_screen_of_a_complete_study(tmp_path: Path) -> None:
    """Catches a first screen without its parts; the summary's gain is the mean over cells."""
    whole = make_example(tmp_path / "artefacts", failed=False, trials=0)
    path = write_report(tmp_path / "study", whole.records, whole.context())
    _, words = read_page(path)
    first = words[: words.index("What was asked")]
    assert "better here disturb against duplicate On these 2 datasets, adding disturbed" in first
    for part in (
        "How sure",
        "Against real alone",
        "Other controls",
        "Says nothing of",
        "60 / 60 cells evaluated",
    ):
        assert part in first
    assert "Incomplete" not in first
    table = (path.parent / "tables" / "summary.csv").read_text().splitlines()
    assert table[0].startswith("arm,phantom-ultrasound,phantom-ultrasound sd")
    gains = [float(part) for part in table[-1].split(",")[4:9:4]]
    assert float(table[-1].split(",")[-1]) == pytest.approx(sum(gains) / 2)
    # The other half of the question, in the words of the first screen.
    assert f"Against real alone {signed(sum(gains) / 2)} (95 % interval" in first
