"""The end of a study on the console."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mgdm_ray.cli.run import with_labels
from mgdm_ray.cli.summary import MOST_SHOWN, failure_lines, refused_lines, warning_of
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.tasks.base import failed, held_up
from mgdm_ray.results.finalize import Finalizer
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.store import Store
from tests import golden

CELL = Record("a", "fit_downstream", "refused", "limits.flips is 0.1", "d", "n", "disturb", 0)
JUDGE = Record("j", "fit_judge", "done", dataset="d")


def job(kind: str, key: str) -> Job:
    return Job(kind, key, {}, {}, "d")


def lines_of(folder: Path, records: list[Record]) -> list[str]:
    plan = SimpleNamespace(jobs={r.key: job(r.kind, r.key) for r in records})
    given = SimpleNamespace(plan=plan, store=Store(folder), folder=folder)
    return failure_lines(cast("Finalizer", given), records)


def test_blocked_jobs_are_grouped_by_their_root_cause(tmp_path: Path) -> None:
    """Would catch a line for each of a hundred blocked jobs, or some that are not counted."""
    broken = failed(job("fit_denoiser", "0123456789"), "NonFiniteLoss: the loss is nan")
    sample = held_up(job("generate", "g" * 10), broken)
    cells = [held_up(job("fit_downstream", f"cell{n}"), sample) for n in range(3)]
    alone = failed(job("fit_downstream", "x" * 10), "out of memory")
    refused = replace(alone, key="r" * 10, status="refused", reason="limits.copies is 0.1")
    behind = held_up(job("fit_at_ratio", "behind"), refused)
    lines = lines_of(tmp_path, [broken, alone, sample, *cells, behind])
    golden.check("study-failures", "\n".join(lines), tmp_path)
    assert lines_of(tmp_path, []) == []


def test_a_blocked_job_names_the_jobs_that_it_needs() -> None:
    """Would catch a line with eight digits of a hash, which nobody can look up."""
    sample, cell = job("generate", "0123456789"), job("fit_downstream", "c" * 10)
    blocked = held_up(cell, held_up(sample, failed(job("decode", "d" * 10), "boom")))
    wanted = "needs generate d, which failed: needs decode dddddddd, which failed: boom"
    assert with_labels(blocked.reason, [sample, cell]) == wanted


def test_many_failures_are_cut(tmp_path: Path) -> None:
    """Would catch results that scroll away behind hundreds of failures."""
    many = [failed(job("decode", f"{n:010}"), "boom") for n in range(3 * MOST_SHOWN)]
    assert len(lines_of(tmp_path, many)) == 2 * MOST_SHOWN + 2


def test_refused_jobs_are_counted_by_arm_and_reason() -> None:
    """Would catch thirty lines for thirty cells of one set of images."""
    cells = [CELL, replace(CELL, key="b", seed=1), replace(CELL, key="c", dataset="e")]
    _, *lines = refused_lines(cells)
    assert [line.split(":")[0] for line in lines] == ["  d disturb (2)", "  e disturb (1)"]
    assert all(line.endswith(CELL.reason) for line in lines)
    assert refused_lines([replace(CELL, status="done")]) == []


@pytest.mark.parametrize(
    ("record", "metrics", "warned"),
    [
        (JUDGE, {"val_chance_below": 0.3, "val_balanced_accuracy": 0.29}, True),
        (JUDGE, {"val_chance_below": 0.3, "val_balanced_accuracy": 0.31}, False),
        (replace(CELL, status="done"), {"val_balanced_accuracy": 0.1}, False),
        (replace(JUDGE, kind="fit_guide"), {"share_of_t_at_chance": 0.92}, True),
        (replace(JUDGE, kind="fit_guide"), {"share_of_t_at_chance": 0.5}, False),
    ],
)
def test_models_at_chance_are_warned_of(
    record: Record, metrics: dict[str, float], warned: bool
) -> None:
    """Would catch label flips that are believed although the judge knows nothing."""
    assert bool(warning_of(replace(record, metrics=metrics), lambda _: None)) is warned
