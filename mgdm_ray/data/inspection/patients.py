"""Whose images they are: what is known, and what the names of files suggest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mgdm_ray.data.sources.listing import Listing

PATTERNS = (
    r"((?:patient|pat|sub|subject|case)[_-]?[A-Za-z]*[0-9]+)",
    r"([A-Za-z]*[0-9]+)[_-][^/]*$",
    r"/([^/]*[0-9][^/]*)/[^/]*$",
)
"""patient12 anywhere; P012_03.png; CLASS/P012/3.png."""


@dataclass(frozen=True)
class Guess:
    """An expression under which several images belong to one patient."""

    pattern: str
    patients: int
    example: str


def images_per_patient(listing: Listing) -> list[int]:
    """Sorted; images without a known patient are left out."""
    return sorted(Counter(item.group for item in listing.items if item.group).values())


def guess_group(paths: Sequence[str]) -> Guess | None:
    """A pattern that matches every path, with fewer patients than files; None where none does.

    A guess by names alone: 1_2.png may be a date as well as a patient.
    """
    files = sorted(set(paths))
    for pattern in PATTERNS:
        found = [re.search(pattern, path) for path in files]
        names = [match.group(1) for match in found if match]
        if len(names) == len(files) and 2 <= len(set(names)) < len(files):
            return Guess(pattern, len(set(names)), PurePosixPath(files[0]).name)
    return None
