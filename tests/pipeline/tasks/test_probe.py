"""Seconds and bytes of jobs that have never run: measured on a few steps of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mgdm_ray.config import StudyConfig
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.pipeline.plan import Job, Plan, make_plan
from mgdm_ray.pipeline.tasks import probe as module
from mgdm_ray.pipeline.tasks.base import Context
from mgdm_ray.pipeline.tasks.probe import PIXELS, STEPS, probe
from tests.conftest import TINY

STUDY: dict[str, Any] = {
    **TINY,
    "guide": {**TINY["guide"], "dropout": 0.2},
    "judge": {"network": "densenet121", "steps": 2, "batch_size": 4},
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A probe sets them for its own process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plan() -> Plan:
    config = StudyConfig.model_validate(STUDY)
    return make_plan(config, {d.name: "x" for d in config.datasets})


@pytest.fixture
def context(tmp_path: Path) -> Context:
    config = StudyConfig.model_validate(STUDY)
    return Context(str(tmp_path), str(tmp_path), {d.name: d for d in config.datasets})


def job_of(plan: Plan, kind: str, arm: str | None = None) -> Job:
    return next(j for j in plan.jobs.values() if j.kind == kind and arm in (None, j.arm))


def test_every_job_of_a_plan_can_be_probed(plan: Plan, context: Context) -> None:
    """Catches a kind or an arm without a price, one that writes to the store, and bytes that are
    not those of weights and float32 images."""
    seen: set[tuple[str, str | None]] = set()
    for job in plan.jobs.values():
        arm = job.arm if job.kind == "decode" else None
        if (job.kind, arm) not in seen and job.network in (None, "squeezenet1_1"):
            seen.add((job.kind, arm))
            seconds, size = probe(job, plan.jobs, 8, context, threads=1)
            assert 0 < seconds < 60, job.label
            if job.kind in ("generate", "encode", "decode"):
                assert size == 4 * 1 * 16 * 16
            elif job.kind in ("fit_denoiser", "fit_guide"):
                unet = StudyConfig.model_validate(STUDY).denoiser.unet
                build = build_denoiser if job.kind == "fit_denoiser" else build_guide
                parameters = sum(p.numel() for p in build(unet, 1, 2, 0).parameters())
                assert size == 4 * parameters
            else:
                assert size is None
    assert torch.get_num_threads() == 1
    assert {kind for kind, _ in seen} == {job.kind for job in plan.jobs.values()}
    assert not (Path(context.storage) / "artifacts").exists()


def test_a_search_costs_its_decoding_and_all_its_trainings(
    plan: Plan, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a search priced without its proxy networks, or without its repeats."""
    monkeypatch.setattr(module, "_sampling", lambda *_: 0.25)
    monkeypatch.setattr(module, "_network", lambda *_, **__: 0.5)
    job = job_of(plan, "search")
    job.inputs["repeats"] = 3
    steps = job.inputs["num_inference_steps"] * job.inputs["strength"]
    images_trained_on = job.inputs["downstream"]["steps"] * job.inputs["downstream"]["batch_size"]
    expected = 0.25 * 8 * steps + 0.5 * 3 * images_trained_on
    assert probe(job, plan.jobs, 8, context, threads=1) == (pytest.approx(expected), None)


def test_the_first_step_does_not_count(
    plan: Plan, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a price that holds what is prepared once, or is of the whole batch."""
    ends = [100.0 + 2 * step for step in range(STEPS)]
    clock = iter([*ends, *ends])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(
        module, "fit", lambda *_, on_step: [on_step(step, 0.0) for step in range(STEPS)]
    )
    seconds, _ = probe(job_of(plan, "fit_judge"), plan.jobs, 8, context, threads=1)
    assert seconds == 2 / 4  # per image of a batch of 4


def test_large_images_are_probed_in_small_batches(plan: Plan, context: Context) -> None:
    """Catches a probe that takes minutes at 224 px."""
    job = job_of(plan, "generate")
    for size, most in ((16, 64), (64, 16), (1024, 2)):
        job.inputs["dataset"]["size"] = size
        images, labels = module._noise(job, context, 64)
        assert images.shape == (most, 1, size, size)
        assert len(labels) == most
        assert most == 2 or most * size**2 <= PIXELS
    job.inputs["dataset"]["size"] = 16
