"""What is measured and set outside of Ray."""

from __future__ import annotations

import re
import time

from mgdm_ray.environment import Busy, cores


def test_how_busy_the_cores_were() -> None:
    """Would catch idle and busy time taken for each other."""
    busy = Busy()
    until = time.monotonic() + 1
    while time.monotonic() < until:  # one core of this machine at least
        pass
    found = re.fullmatch(r"0\.0 min, cores busy (\d+) %", str(busy))
    assert found is not None, str(busy)
    assert 60 / cores() < int(found[1]) <= 100
