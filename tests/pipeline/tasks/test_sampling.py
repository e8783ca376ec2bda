"""Images in shards: cut, read, streamed, and gone on with after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgdm_ray.config import StudyConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.tasks import images, sampling
from mgdm_ray.pipeline.tasks.base import Context, JobError, run
from mgdm_ray.pipeline.tasks.images import read_rows, save_shard, shard_path, shard_ranges
from mgdm_ray.storage.records import Record


@given(st.integers(1, 5000), st.integers(1, 9))
def test_shards_hold_every_row_once(total: int, workers: int) -> None:
    """Would catch rows lost or doubled, a worker left without work, and a shard without bound."""
    shards = shard_ranges(total, workers)
    assert [row for rows in shards for row in rows] == list(range(total))
    assert max(map(len, shards)) <= images.SHARD_IMAGES
    # With fewer than workers^2 images the last one may go empty-handed: ceil leaves no more.
    assert len(shards) >= min(workers, total) or total < workers**2


def test_rows_are_read_across_shards(tmp_path: Path) -> None:
    """Would catch rows shifted at the border of two files, and a lost file taken for the end."""
    data = torch.arange(20.0).reshape(20, 1, 1, 1)
    for rows in (range(8, 16), range(16, 20), range(8)):
        save_shard(tmp_path, rows, data[rows.start : rows.stop], np.array(rows))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".safetensors"] * 3
    for rows in (range(20), range(7, 9), range(3, 17), range(16, 20), range(5, 6)):
        values, labels = read_rows(tmp_path, rows)
        assert values.flatten().tolist() == labels.tolist() == list(rows)
    assert len(read_rows(tmp_path)[0]) == 20
    with pytest.raises(JobError, match=r"\b20\b"):
        read_rows(tmp_path, range(15, 21))
    shard_path(tmp_path, range(8, 16)).unlink()
    with pytest.raises(JobError, match=r"\b8\b"):
        read_rows(tmp_path)


def planned(study: dict[str, Any], folder: Path) -> tuple[Plan, Context]:
    config = StudyConfig.model_validate(
        {**{k: v for k, v in study.items() if k != "search"}, "arms": ["roundtrip", "disturb"]}
    )
    plan = make_plan(config, {d.name: "x" for d in config.datasets})
    return plan, Context(str(folder), str(folder), {d.name: d for d in config.datasets})


def finish(plan: Plan, context: Context, *kinds: str) -> dict[str, Record]:
    """Runs the jobs of ``kinds`` in the plan's order; their records by key."""
    records: dict[str, Record] = {}
    for job in plan.jobs.values():
        if job.kind in kinds:
            records[job.key] = run(job, context)
            assert records[job.key].status == "done", records[job.key].reason
    return records


def job_of(plan: Plan, kind: str, arm: str | None = None) -> Job:
    [job] = [j for j in plan.jobs.values() if j.kind == kind and j.arm in (None, arm)]
    return job


def test_a_killed_job_goes_on_after_its_shards(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a sampling job that starts over, holds all its images at once, or gives other
    images after a kill."""
    whole, context = planned(tiny, tmp_path / "whole")
    finish(whole, context, "fit_denoiser", "generate")
    expected, _ = read_rows(context.store.folder("generate", job_of(whole, "generate").key))

    monkeypatch.setattr(images, "SHARD_IMAGES", 8)
    plan, context = planned(tiny, tmp_path / "killed")
    finish(plan, context, "fit_denoiser")
    job, saved = job_of(plan, "generate"), []

    def dies(folder: Path, rows: range, made: torch.Tensor, labels: np.ndarray) -> None:
        if len(saved) == 1:
            raise MemoryError("killed")
        saved.append(rows)
        save_shard(folder, rows, made, labels)

    monkeypatch.setattr(sampling, "save_shard", dies)
    assert run(job, context).status == "failed"
    monkeypatch.setattr(
        sampling, "save_shard", lambda *given: (saved.append(given[1]), save_shard(*given))
    )
    assert run(job, context).status == "done"
    assert saved == [range(8), range(8, 16), range(16, 20)]
    found, _ = read_rows(context.store.folder("generate", job.key))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert not context.store.work("generate", job.key).exists()


def test_several_workers_make_the_same_images(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Would catch noise, labels or latents that follow the worker instead of the image."""
    found = []
    for workers in (1, 3):
        plan, context = planned(tiny, tmp_path / str(workers))
        spread = None
        if workers > 1:

            def spread(job: Job, context: Context, parts: Any) -> None:
                assert len(parts) == 3
                for part in reversed(parts):
                    sampling.sample_shards(job, replace(context, spread=None), part)

        context = replace(context, sampling_workers=workers, spread=spread)
        finish(plan, context, "fit_denoiser", "fit_guide", "generate", "encode", "decode")
        found.append(
            [
                read_rows(context.store.folder(kind, job_of(plan, kind, "disturb").key))
                for kind in ("generate", "encode", "decode")
            ]
        )
    for (one, labels), (three, same) in zip(*found, strict=True):
        torch.testing.assert_close(three, one, rtol=0, atol=1e-3)
        assert labels.tolist() == same.tolist()


def test_stage_two_from_stored_noise(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a decode job that does not know the scale or the solver of its stage 1."""
    tiny["sampling"] |= {"encode": "stored", "solver": "second_order", "guidance_scale": 4.0}
    tiny["setting"] = {"uncertainty_scale": 0.5}
    plan, context = planned(tiny, tmp_path)
    records = finish(plan, context, "fit_denoiser", "fit_guide", "generate", "encode", "decode")
    source, labels = read_rows(context.store.folder("generate", job_of(plan, "generate").key))
    for arm, change in (("roundtrip", 0.0), ("disturb", 0.05)):
        job = job_of(plan, "decode", arm)
        found, same = read_rows(context.store.folder("decode", job.key))
        assert labels.tolist() == same.tolist()
        assert torch.equal(found, source) == (arm == "roundtrip")
        assert records[job.key].metrics["rms_change"] >= change
    assert records[job_of(plan, "decode", "roundtrip").key].metrics["rms_change"] == 0


def test_strengths_are_drawn_for_the_guided_arm_only(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a picture of strengths that all look alike, or of an arm that has none."""
    tiny["setting"] = {"uncertainty_scale": 0.5}
    plan, context = planned(tiny, tmp_path)
    finish(plan, context, "fit_denoiser", "fit_guide", "generate", "encode", "decode")
    folder = context.store.folder("decode", job_of(plan, "decode", "disturb").key)
    assert not (
        context.store.folder("decode", job_of(plan, "decode", "roundtrip").key) / "strengths.png"
    ).exists()
    sheet = np.asarray(Image.open(folder / "strengths.png"), dtype=float)
    tile = sheet.shape[0] // 2  # two classes
    columns = [sheet[:tile, i * tile : (i + 1) * tile] for i in range(7)]
    change = [np.abs(column - columns[1]).mean() for column in columns[1:]]
    assert change == sorted(change)
    assert change[-1] > 5
