"""``search.warm_start``: the best settings of an earlier study become start points of a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgdm_ray.config import GuidanceControls, InputError, StartPoint, StudyConfig
from mgdm_ray.storage.records import read_records

WARM_POINTS = 3
"""Per dataset."""


def warm_points(config: StudyConfig, root: Path) -> dict[str, list[StartPoint]]:
    """What ``search.warm_start`` stands for: per dataset, the best settings in the space.

    Raises InputError where there is no such study, or nothing in it that could be tried.
    """
    if config.search is None or config.search.warm_start is None:
        return {}
    name = config.search.warm_start
    path = root / "studies" / name / "records.jsonl"
    if not path.is_file():
        found = sorted(p.parent.name for p in root.glob("studies/*/records.jsonl"))
        raise InputError(
            f"search.warm_start: there is no study {name!r} in {root}; "
            + (f"there are: {', '.join(found)}" if found else "there is none at all yet")
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
            f"search.warm_start: none of the {len(trials)} finished trials of {name!r} is of "
            f"{', '.join(names)} and in this study's search.space; widen the space, or leave "
            "warm_start out"
        )
    return {dataset: points.get(dataset, []) for dataset in names}


def start_point(config: StudyConfig, setting: Mapping[str, Any]) -> StartPoint | None:
    """The setting as a start point of this study's search; None where it is not in its space."""
    assert config.search is not None
    space = config.search.space
    controls = space.model_dump(mode="json", include=set(GuidanceControls.model_fields))
    if any(setting.get(name) != value for name, value in controls.items()):
        return None
    names = StartPoint.model_fields
    try:
        point = config.placed(StartPoint.model_validate({n: setting.get(n) for n in names}))
    except ValueError:  # pydantic's too: a measurement that is not known here
        return None
    inside = space.strength_of(point.measurement).holds(point.uncertainty_scale)
    return point if inside and point.measurement in space.measurement else None
