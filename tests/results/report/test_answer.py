"""The first screen: one sentence, its evidence, its scope."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mgdm_ray.evaluation.selection_bias import FEWEST, FEWEST_SEEDS, Agreement, Confirmed, Optimism
from mgdm_ray.evaluation.stats.intervals import Claim, Interval
from mgdm_ray.evaluation.stats.paired import Contrast
from mgdm_ray.evaluation.stats.power import detectable_after
from mgdm_ray.results import ANSWER_FILE, HEADLINE_FILE
from mgdm_ray.results.report import write_report
from mgdm_ray.results.report.page import say
from mgdm_ray.results.report.results import contrast_text
from mgdm_ray.results.report.synthetic import distance_text
from mgdm_ray.results.report.words import MINUS, signed, span
from mgdm_ray.storage.records import Record
from tests import golden
from tests.evaluation.stats.test_paired import CLAIMS, YES, contrast
from tests.results.report.page import read_page, rows_of
from tests.study_example import make_example


def found(
    difference: float,
    here: tuple[float, float, float] | None = None,
    general: tuple[float, float, float] | None = None,
    margin: float | None = None,
) -> Contrast:
    """``here`` and ``general``: standard error, adjusted p, excluded from."""
    one, two = (
        values and Claim(Interval(difference, values[0], 9, 40, 100), *values[1:])
        for values in (here, general)
    )
    return Contrast(
        difference, 20, 3, 17, 0.1, 40, "rough", "disturb", "duplicate", 4,
        here=one, general=two, margin=margin,
    )  # fmt: skip


CASES = {
    "unresolved": found(0.012, (0.008, 0.2, 0.027), (0.012, 0.4, 0.036)),
    "better here": found(0.012, (0.004, 0.01, 0.02), (0.009, 0.4, 0.034)),
    "worse": found(-0.012, (0.003, 0.01, 0.02), (0.004, 0.04, 0.021)),
    "better": found(0.012, (0.004, 0.01, 0.02), (0.005, 0.04, 0.022)),
    "no larger here": found(0.002, (0.004, 0.9, 0.009), (0.009, 0.9, 0.02), 0.01),
    "no larger": found(0.002, (0.004, 0.9, 0.009), (0.009, 0.9, 0.02), 0.03),
    "better here and no larger": found(0.012, (0.004, 0.01, 0.02), (0.009, 0.4, 0.03), 0.025),
    "in general only": found(0.012, None, (0.005, 0.04, 0.022)),
    "no interval": found(0.012),
}
UNKNOWN = Agreement(math.nan, math.nan, math.nan, math.nan, 6)
SELF = Agreement(0.5, 0.1, 0.9, 0.2, 6)
SEARCHES = {
    "plain": {},
    "no other network": {"transfer": None},
    "one setting": {"transfer": Agreement(math.nan, math.nan, math.nan, math.nan, 1)},
    "equal scores": {"transfer": UNKNOWN},
    "few settings": {"transfer": Agreement(1.0, math.nan, math.nan, 0.3, 3)},
    "same order": {"transfer": Agreement(0.9, 0.5, 1.0, 0.01, 6)},
    "opposite order": {"transfer": Agreement(-0.9, -1.0, -0.5, 0.01, 6)},
    "not resolvable": {"transfer": Agreement(0.9, 0.5, 1.0, 0.06, 6)},
    "too low": {"chosen": Optimism(0.5, 0.6, -0.2, -0.1, 4)},
    "interval with 0": {"chosen": Optimism(0.6, 0.5, -0.1, 0.3, 4)},
    "two seeds": {"chosen": Optimism(0.6, 0.5, -0.7, 0.9, 4), "seeds": 2},
    "no interval": {"chosen": Optimism(0.6, 0.5, math.nan, math.nan, 3)},
}
NEARER = {"a": (1.0, 0.0, 0.3), "b": (2.0, 0.0, 0.2), "c": (3.0, 0.0, 0.1)}
FARTHER = {
    "duplicate": (0.0, 0.0, 0.0), "b": (2.0, 0.0, 0.2), "c": (3.0, 0.0, 0.3), "e": (4.0, 0.0, 0.4),
}  # fmt: skip


def search_result(**changes: object) -> Confirmed:
    values: dict[str, object] = {
        "trials": 8, "numbers": (1, 2), "chosen": Optimism(0.6, 0.5, 0.05, 0.15, 4),
        "shared": 0.0, "seeds": 3, "transfer": None, "repeat": SELF, "means": (),
    }  # fmt: skip
    return Confirmed(**{**values, **changes})  # type: ignore[arg-type]


def test_sentences() -> None:
    """Catches a changed claim: "raised" where nothing is resolved, a ranking of three settings."""
    lines = [f"{name}: {say('answer', case, 0)}" for name, case in CASES.items()]
    lines.append(f"incomplete: {say('answer', CASES['better'], 2)}")
    for name in ("unresolved", "better here and no larger"):
        case = CASES[name]
        smallest = [detectable_after(c and c.estimate, 3) for c in (case.here, case.general)]
        lines.append(f"evidence, {name}: {say('evidence', case, *smallest)}")
    scopes = ("better", "worse", "better here", "no interval")
    lines += [f"scope, {name}: {say('scope', CASES[name])}" for name in scopes]
    for sentence in ("against_real", "other"):
        lines += [f"{sentence}: {say(sentence, CASES['better here'], absent)}" for absent in (0, 1)]
    judges = {name: SimpleNamespace(at_chance=["test"]) for name in "de"}
    report = SimpleNamespace(
        at_chance=[1],
        trained=range(4),
        judges=judges,
        late={},
        context=SimpleNamespace(leaked={"d": [7]}, groups={}),
    )
    guide = Record("g", "fit_guide", "done", dataset="d", metrics={"share_of_t_at_chance": 0.75})
    lines.append(f"caveats: {say('caveats', 'rough', report, [guide])}")
    for name, changes in SEARCHES.items():
        result = search_result(**changes)
        text = ("optimism", result, FEWEST_SEEDS)
        text = text if "chosen" in changes else ("transfer", result, FEWEST)
        lines.append(f"search, {name}: {say(*text)}")
    lines.append(f"distance: {distance_text({'x': NEARER, 'y': FARTHER, 'z': {}})}")
    lines.append(f"distance, one arm: {distance_text({'z': {'a': (1.0, 0.0, 0.1)}})}")
    golden.check("report-sentences", "\n".join(lines))


@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_one_sentence_with_the_verdict_of_the_contrast(name: str) -> None:
    """Catches a verdict, sign or interval that the numbers do not support."""
    case = CASES[name]
    words = say("answer", case, 0)
    assert words.count(". ") == 0
    resolved = case.verdict.startswith(("better", "worse"))
    assert case.verdict in words
    assert case.equivalence in words
    assert resolved or signed(case.difference) in words
    for claim in filter(None, (case.here, case.general)):
        assert span(claim.estimate.low, claim.estimate.high) in words
        assert resolved or f"{claim.bound:.3f}" in words
    assert ("better" in words) == case.verdict.startswith("better")


def test_an_incomplete_grid_is_no_answer() -> None:
    """Catches a resolved contrast of the cells that are left, sold as the answer."""
    assert "better" in say("answer", CASES["better"], 0)
    assert "better" not in say("answer", CASES["better"], 2)


def test_the_words_of_every_verdict() -> None:
    """Would catch a sentence that claims more than the verdict, or hides what is missing."""
    some = contrast(YES, YES)
    lost = tuple(("q", "y", "duplicate", seed) for seed in range(9))
    cases = [contrast(here, general, margin) for here, general, margin, _ in CLAIMS]
    cases += [
        replace(some, general=None, datasets=1),
        replace(some, here=None, general=None, n=1),
        replace(some, missing=lost, planned=24),
        replace(some, missing=lost[:1], planned=24, n=0),
        replace(some, n=0),
    ]
    golden.check("verdicts", "\n".join(map(contrast_text, cases)))


def test_the_first_screen_of_a_complete_study(tmp_path: Path) -> None:
    """Catches a first screen without its parts; the summary's gain is the mean over cells."""
    whole = make_example(tmp_path / "artefacts", failed=False, trials=0)
    path = write_report(tmp_path / "study", whole.records, whole.context())
    page, _ = read_page(path)
    assert page.badges[0] == "better here"
    assert "incomplete" not in page.badges
    assert page.terms[:4] == ["Evidence", "Against real alone", "Other controls", "Scope"]
    first = page.sections["head"]
    assert "60 / 60" in first
    gains = rows_of(path, "summary")[-1]
    shown = [float(gains[f"{d} gain"]) for d in ("phantom-ultrasound", "phantom-fundus")]
    assert float(gains["gain over real"]) == pytest.approx(sum(shown) / 2)
    # The other half of the question: the difference to real alone.
    assert f"{signed(sum(shown) / 2)} (95 % interval" in first
    sentence = (path.parent / ANSWER_FILE).read_text()
    assert re.search(r"\b2 datasets\b.*\bdisturbed\b.*\bcopies\b", sentence)
    assert sentence in first.replace(MINUS, "-")
    numbers = json.loads((path.parent / HEADLINE_FILE).read_text())
    assert numbers["contrast/disturb-duplicate/difference"] > 0
    assert numbers["contrast/disturb-duplicate/cells"] == 12
