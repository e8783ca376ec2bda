"""A few hundred cases of ``python -m tests.fuzz``, so that what it found stays fixed.

`make test-long` runs 10,000, also of storages.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mgdm_ray.config import InputError
from tests.fuzz import harness
from tests.fuzz.__main__ import TARGETS, run


@pytest.mark.slow
@pytest.mark.parametrize("target", [name for name in TARGETS if name != "storage"])
def test_no_input_is_a_crash(target: str) -> None:
    """Would catch a traceback, code that runs, files outside, memory or time without bounds."""
    tally = run(target, 60, seed=1)
    assert tally.failures == []
    assert tally.cases >= 60
    assert tally.refused


def crash(rng: random.Random, *_: Path) -> bool:
    if rng.random() < 0.5:
        raise KeyError("a bug")
    return True


def trespass(_rng: random.Random, _folder: Path, canary: Path) -> bool:
    canary.touch()
    return True


def endless(*_: object) -> bool:
    while True:
        pass


def babble(*_: object) -> bool:
    raise InputError("x" * (harness.LONGEST_MESSAGE + 1))


@pytest.mark.parametrize("case", [crash, trespass, endless, babble])
def test_the_harness_sees_each_fault(
    case: harness.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a guard that no longer looks."""
    monkeypatch.setattr(harness, "CASE_SECONDS", 1)
    assert harness.run_cases(case.__name__, case, 10, 0, tmp_path).failures
