"""Golden files: what differs between runs is replaced, what differs otherwise fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import golden


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("took 3.2 s, left 1 h 4 min", "took DURATION, left DURATION DURATION"),
        ("at 2026-11-30T09:12:01Z", "at DATE"),
        ("free: 12.5 GB of 1,024 MiB", "free: SIZE of SIZE"),
        ("3 jobs, seed 4, sd 0.5", "3 jobs, seed 4, sd 0.5"),
        ("\x1b[1mbold\x1b[0m  ", "bold"),
    ],
)
def test_normalise_replaces_what_differs(text: str, wanted: str) -> None:
    assert golden.normalise(text) == wanted + "\n"


def test_normalise_names_the_given_folder(tmp_path: Path) -> None:
    assert golden.normalise(f"see {tmp_path}/x.yaml", tmp_path) == "see TMP/x.yaml\n"
    assert golden.normalise(f"see {tmp_path}/x.yaml: 1") == "see TEMP: 1\n"


def test_check_compares_and_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    monkeypatch.setenv(golden.UPDATE, "1")
    golden.check("name", "two jobs")
    monkeypatch.delenv(golden.UPDATE)
    golden.check("name", "two jobs\n")
    with pytest.raises(pytest.fail.Exception, match="three"):
        golden.check("name", "three jobs")
