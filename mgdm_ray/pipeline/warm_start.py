"""``search.warm_start``: the best settings of an earlier study as start points of a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgdm_ray.config import GuidanceControls, InputError, StartPoint, StudyConfig
from mgdm_ray.storage.records import read_records

WARM_POINTS = 3
"""Per dataset."""


def warm_points(config: StudyConfig, root: Path) -> dict[str, list[StartPoint]]:
    """Per dataset the best settings of ``search.warm_start`` that lie in the search space.

    Raises InputError if there is no such study or none of its settings lies in the space.
    """
    if config.search is None or config.search.warm_start is None:
        return {}
    name = config.search.warm_start
    path = root / "studies" / name / "records.jsonl"
    if not path.is_file():
        found = sorted(p.parent.name for p in root.glob("studies/*/records.jsonl"))
        raise InputError(
            f"search.warm_start: no study {name!r} in {root}; "
            + (f"it has: {', '.join(found)}" if found else "it has no studies yet")
        )
    trials = [r for r in read_records(path) if r.kind == "trial" and "score" in r.metrics]
    trials = [r for r in trials if r.status == "done"]
    points: dict[str, list[StartPoint]] = {}
    for record in sorted(trials, key=lambda r: (-r.metrics["score"], r.key)):
        best = points.setdefault(str(record.dataset), [])
        point = start_point(config, record.setting)
        if point is not None and point not in best and len(best) < WARM_POINTS:
            best.append(point)
    names = [d.name for d in config.datasets]
    if not any(points.get(dataset) for dataset in names):
        raise InputError(
            f"search.warm_start: none of the {len(trials)} finished trials of {name!r} is on "
            f"{', '.join(names)} and inside search.space; widen the space or remove warm_start"
        )
    return {dataset: points.get(dataset, []) for dataset in names}


def start_point(config: StudyConfig, setting: Mapping[str, Any]) -> StartPoint | None:
    """The setting as a start point of this study's search; None outside its space."""
    assert config.search is not None
    space = config.search.space
    controls = space.model_dump(mode="json", include=set(GuidanceControls.model_fields))
    if any(setting.get(name) != value for name, value in controls.items()):
        return None
    names = StartPoint.model_fields
    try:
        point = config.placed(StartPoint.model_validate({n: setting.get(n) for n in names}))
    except ValueError:  # pydantic's too: an unknown measurement
        return None
    inside = space.strength_of(point.measurement).holds(point.uncertainty_scale)
    return point if inside and point.measurement in space.measurement else None
