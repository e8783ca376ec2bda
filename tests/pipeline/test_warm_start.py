"""Start points of a search: the study's own, and the best of an earlier study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgdm_ray.cli.opened_study import OpenedStudy
from mgdm_ray.config import GuidanceSetting, InputError
from mgdm_ray.pipeline.job import Job
from mgdm_ray.storage.records import Record, write_records

SPACE = {
    "guidance_scale": [1.0, 2.0],
    "measurement": ["entropy", "energy"],
    "uncertainty_scale": {"low": 0.1, "high": 1.0},
    "per_measurement": {"energy": {"uncertainty_scale": {"low": 0.001, "high": 0.01}}},
}


def trial(score: float, status: str = "done", dataset: str = "phantom-ultrasound", **setting: Any):
    controls = GuidanceSetting().model_dump(mode="json")
    fields = {"guidance_scale": 1.0, "classifier_scale": 0.0, **controls, **setting}
    return Record(
        key=f"t{score}", kind="trial", status=status, reason="" if status == "done" else "why",
        dataset=dataset, setting=fields, metrics={"score": score},
    )  # type: ignore[arg-type]  # fmt: skip


EARLIER = [
    trial(0.99, uncertainty_scale=0.05),  # below the range
    trial(0.98, measurement="energy", uncertainty_scale=0.5),  # outside the range of its own
    trial(0.97, uncertainty_scale=0.5, gradient="raw"),  # another scale of gamma
    trial(0.96, uncertainty_scale=0.5, guidance_scale=7.0),  # no candidate
    trial(0.95, measurement="margin", uncertainty_scale=0.5),
    trial(0.94, status="pruned", uncertainty_scale=0.5),
    trial(0.93, dataset="phantom-fundus", uncertainty_scale=0.5),
    trial(0.9, uncertainty_scale=0.3, guidance_scale=2.0),
    trial(0.8, measurement="energy", uncertainty_scale=0.004),
    trial(0.7, uncertainty_scale=0.2),
    trial(0.6, uncertainty_scale=0.6),
]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "studies" / "earlier"
    folder.mkdir(parents=True)
    write_records(folder / "records.jsonl", EARLIER)
    return tmp_path / "runs"


def search_of(study: dict[str, Any], write_study: Any, storage: Path, **search: Any) -> Job:
    changed = {**study, "search": {**study["search"], "space": SPACE, "trials": 6, **search}}
    given = OpenedStudy(write_study(changed), storage=str(storage))
    [job] = [job for job in given.plan.jobs.values() if job.kind == "search"]
    return job


def test_the_best_settings_in_the_space_are_tried_first(
    tiny: dict[str, Any], write_study: Any, storage: Path
) -> None:
    """Would catch settings of another space, dataset or scale, and too many or poor ones."""
    own = {"measurement": "energy", "uncertainty_scale": 0.002, "guidance_scale": 1}
    job = search_of(tiny, write_study, storage, warm_start="earlier", start=[own])
    start = [(p["measurement"], p["uncertainty_scale"], p["guidance_scale"])
             for p in job.inputs["start"]]  # fmt: skip
    assert start == [
        ("energy", 0.002, 1.0),
        ("entropy", 0.3, 2.0),
        ("energy", 0.004, 1.0),
        ("entropy", 0.2, 1.0),
    ]
    cold = search_of(tiny, write_study, storage)
    assert cold.inputs["start"] == []
    assert cold.key != job.key
    few = search_of(tiny, write_study, storage, warm_start="earlier", trials=2)
    assert len(few.inputs["start"]) == 2


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("later", ["no study 'later'", "earlier"]),
        ("../earlier", ["search.warm_start", "got '../earlier'"]),
        ("tiny", ["'tiny' is this study itself"]),
        (".", ["search.warm_start"]),
    ],
)
def test_a_warm_start_that_cannot_be_says_why(
    tiny: dict[str, Any], write_study: Any, storage: Path, name: str, parts: list[str]
) -> None:
    """Would catch a search that starts cold without a word, and a name that leaves the storage."""
    with pytest.raises(InputError) as error:
        search_of(tiny, write_study, storage, warm_start=name)
    for part in parts:
        assert part in str(error.value)


def test_an_earlier_study_of_another_space_is_refused(
    tiny: dict[str, Any], write_study: Any, storage: Path
) -> None:
    """Would catch a warm start of nothing."""
    space = {"measurement": ["least_confidence"]}
    with pytest.raises(InputError, match=r"10 .*'earlier'.*phantom-ultrasound"):
        search_of(tiny, write_study, storage, warm_start="earlier", space=space)
