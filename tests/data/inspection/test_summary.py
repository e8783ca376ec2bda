"""The facts of a survey in numbers."""

from __future__ import annotations

import re
from dataclasses import replace

from mgdm_ray.data.inspection.summary import class_rows, facts, lines, median_sides
from tests.data.inspection.surveys import fact, made, several


def test_rows_sum_up() -> None:
    """Catches counts of another split or class, and sums that are off."""
    assert class_rows(made(several())) == [
        ("a", "8", "2", "2", "12"),
        ("b", "8", "2", "2", "12"),
        ("all", "16", "4", "4", "24"),
    ]


def test_facts_by_hand() -> None:
    """Catches a median or an extreme of other images, and kinds that are lost."""
    made_facts = [fact(k, width=10 + k, height=30) for k in range(24)]
    made_facts[0] = fact(0, width=100, height=3, colour=True, kind="RGB 8 bit")
    survey = made(several(), made_facts)
    survey.damaged = {"x": "cut"}
    said = dict(facts(survey))
    assert median_sides(survey) == (22, 30)
    assert "24 images, 2 classes" in said["found"]
    assert "1 unreadable" in said["found"]
    assert [word.strip(",") for word in said["sizes"].split() if word.strip(",").isdigit()] == [
        "100", "3", "22", "30", "33", "30",
    ]  # fmt: skip
    assert said["formats"] == "L 8 bit 23, RGB 8 bit 1"
    assert said["colour"].split()[0] == "1"
    assert "seed 0" in said["splits"]


def test_patients_in_numbers() -> None:
    """Catches a patient in two splits that is not counted, and unknown ones taken for known."""
    groups = [f"P{k // 4}" if k < 20 else None for k in range(24)]
    items = [replace(item, group=group) for item, group in zip(several(), groups, strict=True)]
    said = dict(facts(made(items)))["patients"]
    assert re.findall(r"\d+", said) == ["5", "4", "4", "4", "1", "4"]
    assert not any(c.isdigit() for c in dict(facts(made(several())))["patients"])


def test_lines_are_aligned() -> None:
    """Catches columns that shift with the length of a class name."""
    survey = made(several())
    survey.listing = replace(survey.listing, classes=("a", "x" * 90))
    table = [line for line in lines(survey) if line.startswith("  ")]
    assert len({len(line) for line in table}) == 1
    assert len(table) == 4
