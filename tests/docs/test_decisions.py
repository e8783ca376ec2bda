"""docs/adr: numbered without gaps, all in the index, each with its three parts."""

from __future__ import annotations

import re

from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "adr"
RECORDS = sorted(FOLDER.glob("0*.md"))
PARTS = ("Context", "Decision", "Consequences")


def test_records_are_numbered_and_in_the_index() -> None:
    """Would catch a record that nobody finds, and two records with one number."""
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((0\S+)\)", index) == [path.name for path in RECORDS]
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))


def test_records_are_short_and_complete() -> None:
    """Would catch a record without a decision, and one that is superseded by nothing."""
    for path in RECORDS:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(path.name[:4])}. ")
        assert text.count("\n") <= 15, path.name
        assert all(f"**{part}.** " in text for part in PARTS), path.name
        assert re.search(r"^Status: (accepted|superseded by \[.+\]\(0.+\))\.$", text, re.M), path
