"""A study file with a storage that was filled before, or by another plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgdm_ray.cli.opened_study import OpenedStudy
from mgdm_ray.runtime import engine
from mgdm_ray.storage.store import Store
from tests.conftest import TINY, Said
from tests.finished import plan_of
from tests.pipeline.test_cost_model import put

STUDY = {**TINY, "seeds": 2, "search": None}


def fill(storage: Path, draws: str, resolved: dict[str, Any]) -> None:
    """The storage as a finished study of ``draws`` leaves it, with ``resolved`` beside."""
    for job in plan_of({**STUDY, "draws": draws}).jobs.values():
        put(Store(storage), job, 1.0, {"file": "x"})
    folder = storage / "studies" / "tiny"
    folder.mkdir(parents=True)
    (folder / "study.resolved.yaml").write_text(yaml.safe_dump({**STUDY, **resolved}))


@pytest.mark.parametrize("resolved", [{}, {"draws": "one"}], ids=["before the key", "said"])
def test_what_was_made_with_one_draw_is_not_computed_again_by_a_default(
    resolved: dict[str, Any],
    tmp_path: Path,
    write_study: Callable[..., Path],
    mgdm: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch a report of half a grid, or days of work, because a default came with a version;
    and a refusal after the work has begun."""
    monkeypatch.setattr(engine, "cluster", None)  # not to be called
    file, storage = write_study(STUDY), tmp_path / "runs"
    fill(storage, "one", resolved)
    for option in ((), ("--report-only",)):
        refused = mgdm(file, "--storage", storage, *option)
        assert refused.code == 2
        assert f"{file}:1: draws: " in refused.err
        for word in (str(storage), "20 finished cells", "6 of them", "draws: one", "draws: images"):
            assert word in refused.err
    shown = mgdm(file, "--storage", storage, "--plan")
    assert shown.code == 0
    assert f"warning: {file}:1: draws: " in shown.out


def lost(file: Path, storage: Path, *overrides: str) -> str:
    return OpenedStudy(file, overrides, str(storage)).lost_by_draws()


def test_what_the_file_says_is_done(tmp_path: Path, write_study: Callable[..., Path]) -> None:
    """Would catch a user who cannot have draws in an old storage, or cannot go on without."""
    file, storage = write_study(STUDY), tmp_path / "runs"
    fill(storage, "one", {})
    assert lost(file, storage)
    assert not lost(file, storage, "draws=one")
    assert not lost(file, storage, "draws=images")
    assert not lost(file, storage, "name=other"), "its results are another study's"
    assert not lost(file, storage, "seeds=1"), "the first draw is the one that there is"
    assert not lost(file, storage, "arms=[real, duplicate]")


def test_draws_go_on_with_draws(tmp_path: Path, write_study: Callable[..., Path]) -> None:
    file, storage = write_study(STUDY), tmp_path / "runs"
    fill(storage, "images", {"draws": "images"})
    assert not lost(file, storage)
