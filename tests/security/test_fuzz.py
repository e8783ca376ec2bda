"""A few hundred cases of ``python -m tests.fuzz``, so that what it found stays mended."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import TARGETS, run


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "storage"])
def test_no_input_is_a_crash(target: str) -> None:
    """Would catch a traceback, code that runs, files outside, memory or time without bounds."""
    tally = run(target, 60, seed=1)
    assert tally.failures == []
    assert tally.cases == 60
    assert tally.refused
