"""Compare whole outputs with files in tests/golden/, so that a better sentence costs one line."""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "golden"
UPDATE = "MGDM_UPDATE_GOLDEN"
ROOT = Path(__file__).parent.parent

_NUMBER = r"\d[\d,]*(?:\.\d+)?"
# What differs between two runs of one command, with the word that replaces it.
RULES = (
    (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?", "DATE"),
    (r"\b\d{4}-\d\d-\d\d\b", "DATE"),
    (r"\b\d\d:\d\d(?::\d\d)?\b", "TIME"),
    (rf"(?<![\w.]){_NUMBER} ?(?:ms|s|sec|seconds?|min|minutes?|h|hours?|d|days?)\b", "DURATION"),
    (rf"(?<![\w.]){_NUMBER} ?(?:[kKMGT]i?B|bytes)\b", "SIZE"),
    (r"\b(?:pid|PID)[ =:]?\d+", "PID"),
    (r"\b0x[0-9a-f]{6,}\b", "ADDRESS"),
    (r"\b127\.0\.0\.1:\d+\b", "127.0.0.1:PORT"),
    (r"\b[0-9a-f]{64}\b", "SHA256"),
)


def normalise(text: str, tmp: Path | str | None = None) -> str:
    """Text with dates, durations, sizes, hashes and temporary paths replaced by fixed words.

    `tmp` becomes TMP, the repository ROOT, any other path below the temporary folder TEMP.
    """
    if tmp is not None:
        text = text.replace(str(tmp), "TMP")
    text = text.replace(str(ROOT), "ROOT")
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/[^\s'\"),;:]*", "TEMP", text)
    for pattern, word in RULES:
        text = re.sub(pattern, word, text)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + "\n"


def check(name: str, text: str, tmp: Path | str | None = None) -> None:
    """Fail with a diff where the normalised text is not tests/golden/NAME.txt.

    MGDM_UPDATE_GOLDEN=1 writes the file instead.
    """
    path, found = FOLDER / f"{name}.txt", normalise(text, tmp)
    if os.environ.get(UPDATE) == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found, encoding="utf-8")
        return
    wanted = path.read_text(encoding="utf-8") if path.is_file() else ""
    if found != wanted:
        diff = difflib.unified_diff(
            wanted.splitlines(), found.splitlines(), f"golden/{name}.txt", "this run", lineterm=""
        )
        pytest.fail(
            "\n".join(diff) + f"\n\nIf this is wanted: {UPDATE}=1 python -m pytest ...",
            pytrace=False,
        )
