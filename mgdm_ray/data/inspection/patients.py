"""Guess patients from file names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

PATTERNS = (
    r"((?:patient|pat|sub|subject|case)[_-]?[A-Za-z]*[0-9]+)",
    r"([A-Za-z]*[0-9]+)[_-][^/]*$",
    r"/([^/]*[0-9][^/]*)/[^/]*$",
)
"""patient12 anywhere; P012_03.png; CLASS/P012/3.png."""


class Guess(NamedTuple):
    """A regular expression by which several images belong to one patient."""

    pattern: str
    patients: int


def guess_group(paths: Sequence[str]) -> Guess | None:
    """A pattern that matches every path and gives fewer patients than files, or None.

    From names alone: the 1 of 1_2.png may be a date as well as a patient.
    """
    files = set(paths)
    for pattern in PATTERNS:
        found = [match for path in files if (match := re.search(pattern, path))]
        names = {match.group(1) for match in found}
        if len(found) == len(files) and 2 <= len(names) < len(files):
            return Guess(pattern, len(names))
    return None
