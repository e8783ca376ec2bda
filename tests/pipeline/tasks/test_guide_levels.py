"""``interval: auto``: the levels at which a guide is above chance, and the jobs that use them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgdm_ray.config import StudyConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.tasks.base import ACCURACY_FILE, Context, JobError, run
from mgdm_ray.pipeline.tasks.guide_levels import informed_levels, with_levels
from mgdm_ray.pipeline.tasks.images import read_rows

T = [0, 50, 100, 200, 500, 900, 999]


def curve(*accuracy: float) -> dict[str, Any]:
    return {"t": T, "balanced_accuracy": list(accuracy), "chance_below": 0.6}


@pytest.mark.parametrize(
    ("accuracy", "levels"),
    [
        ([0.9] * 7, (0, 999)),
        ([0.9, 0.8, 0.7, 0.65, 0.6, 0.5, 0.5], (0, 200)),
        ([0.5, 0.7, 0.7, 0.7, 0.55, 0.7, 0.5], (50, 200)),
        # a stroke of luck at the noise: shorter in timesteps, though of as many levels
        ([0.7, 0.5, 0.7, 0.7, 0.5, 0.7, 0.7], (100, 200)),
        ([0.5, 0.5, 0.5, 0.5, 0.7, 0.5, 0.5], (500, 500)),
    ],
)
def test_the_longest_run_above_chance(accuracy: list[float], levels: tuple[int, int]) -> None:
    """Would catch a level at chance inside of the levels, and one that is missing at their ends."""
    assert informed_levels(curve(*accuracy)) == levels


def test_a_guide_at_chance_is_no_interval() -> None:
    """Would catch a study that is guided nowhere, and looks as if guidance had no effect."""
    with pytest.raises(JobError, match=r"guide\.steps"):
        informed_levels(curve(*[0.6] * 7))


def made(tiny: dict[str, Any], root: Path, interval: Any) -> tuple[Job, Any, np.ndarray]:
    """The job of ``disturb`` with ``interval``, its record and images; the guide's curve is not
    its own."""
    tiny = {**tiny, "arms": ["disturb"], "search": None}
    tiny["setting"] = {"uncertainty_scale": 0.5, "interval": interval}
    config = StudyConfig.model_validate(tiny)
    datasets = {d.name: d for d in config.datasets}
    context, jobs = Context(str(root), "", datasets), {}
    for job in make_plan(config, dict.fromkeys(datasets, "x")).jobs.values():
        jobs[job.kind] = job
        if job.kind == "fit_guide":
            whole = Context(str(root / "whole"), "", datasets)
            assert run(job, whole).status == "done"
            with context.store.writing(job.kind, job.key) as folder:
                shutil.copytree(whole.store.folder(job.kind, job.key), folder, dirs_exist_ok=True)
                for name in ("manifest.json", "done"):
                    (folder / name).unlink(missing_ok=True)
                text = json.dumps(curve(0.5, 0.9, 0.9, 0.9, 0.9, 0.5, 0.5))
                (folder / ACCURACY_FILE).write_text(text)
                context.store.commit(job.kind, job.key, folder, {"key": job.key}, {})
        elif job.kind != "fit_downstream":
            record = run(job, context)
            assert record.status == "done", record.reason
    images, _ = read_rows(context.store.folder("decode", jobs["decode"].key))
    return jobs["decode"], record, images.numpy()


def test_decode_guides_at_the_levels_of_its_guide(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Would catch 'auto' that is another interval, a record without the levels, and a
    key that names levels of another guide."""
    tiny["sampling"]["num_inference_steps"] = 5
    auto, record, images = made(tiny, tmp_path / "auto", "auto")
    same, told, expected = made(tiny, tmp_path / "same", [50, 500])
    assert record.setting["interval"] == told.setting["interval"] == [50, 500]
    assert auto.inputs["setting"]["interval"] == "auto"
    assert auto.key != same.key
    assert np.array_equal(images, expected)


def test_a_search_space_gets_the_levels_too(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Would catch trials that are guided elsewhere than the arm that their setting is used in."""
    job, *_ = made(tiny, tmp_path, "auto")
    context = Context(str(tmp_path), "", {})
    searched = Job("search", "k", {"space": {"interval": "auto", "gradient": "raw"}}, job.needs, "")
    assert with_levels(searched, context).inputs["space"] == {
        "interval": [50, 500],
        "gradient": "raw",
    }
    given = Job("search", "k", {"space": {"interval": [0, 10]}}, job.needs, "")
    assert with_levels(given, context) is given
