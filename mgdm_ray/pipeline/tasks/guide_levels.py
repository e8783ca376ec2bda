"""The noise levels of ``interval: auto``: where the guide knows more of the classes than chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdm_ray.pipeline.tasks.base import ACCURACY_FILE, Context, JobError, artefact

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job


def informed_levels(curve: Mapping[str, Any]) -> tuple[int, int]:
    """First and last timestep of the longest run of measured ones above chance.

    ``curve`` is a guide's ``accuracy_over_t.json``. JobError if there is none.
    """
    limit = curve["chance_below"]
    rows = list(zip(curve["t"], curve["balanced_accuracy"], strict=True))
    runs: list[Sequence[tuple[int, float]]] = [
        list(run) for above, run in groupby(rows, key=lambda row: row[1] > limit) if above
    ]
    if not runs:
        raise JobError(
            "interval 'auto': the guide is at chance at every noise level, so that no guidance is "
            "left; raise guide.steps, or give an interval"
        )
    longest = max(runs, key=lambda run: run[-1][0] - run[0][0])
    return longest[0][0], longest[-1][0]


def levels_of(guide: Path) -> tuple[int, int]:
    """As ``informed_levels``, of a guide's artefact."""
    return informed_levels(json.loads((guide / ACCURACY_FILE).read_text(encoding="utf-8")))


def with_levels(job: Job, context: Context) -> Job:
    """``job`` with levels in its setting or search space, if these are ``auto``."""
    for name in ("setting", "space"):
        given = job.inputs.get(name)
        if given and given.get("interval") == "auto":
            levels = levels_of(artefact(context, "fit_guide", job.needs["guide"]))
            found = {**given, "interval": list(levels)}
            job = replace(job, inputs={**job.inputs, name: found})
    return job
