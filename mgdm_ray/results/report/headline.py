"""The contrasts that the report's first sentences speak of, as numbers for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mgdm_ray.results.report.tables import Tested

HEADLINE_FILE = "headline.json"


def headline(family: Sequence[Tested]) -> dict[str, float]:
    """``contrast/disturb-duplicate/difference``, ``/low``, ``/high``, ``/p_holm``, ``/cells``.

    What is not known (the interval of one pair of cells) is left out, and all of a contrast that
    lacks planned cells: it is not answered.
    """
    numbers = {
        f"contrast/{t.contrast.arm_a}-{t.contrast.arm_b}/{name}": float(value)
        for t in family
        if not t.contrast.missing
        for name, value in (
            ("difference", t.contrast.difference),
            ("low", t.contrast.low),
            ("high", t.contrast.high),
            ("p_holm", t.p_adjusted),
            ("cells", t.contrast.n),
        )
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
