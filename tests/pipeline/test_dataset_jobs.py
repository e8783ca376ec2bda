"""Draws of synthetic images in a plan: which jobs each has of its own, and what they share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from mgdm_ray.config import StudyConfig
from mgdm_ray.pipeline.job import DRAWN, Job, of_draw
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.storage.records import Record
from tests.conftest import TINY

STUDY = {**TINY, "seeds": 3, "judge": {"network": "resnet34"}}
"""Its arms: real, duplicate, generate, roundtrip and disturb; two networks."""


def plan_of(**changes: Any) -> Plan:
    config = StudyConfig.model_validate({**STUDY, **changes})
    return make_plan(config, {d.name: "x" for d in config.datasets})


def above(plan: Plan, job: Job, kind: str) -> set[str]:
    """Keys of the jobs of a kind that ``job`` needs, directly or not."""
    found = set()
    for key in job.needs.values():
        need = plan.jobs[key]
        found |= ({key} if need.kind == kind else set()) | above(plan, need, kind)
    return found


def made_of(plan: Plan, arm: str, seed: int) -> set[tuple[str, ...]]:
    """The images and latents of stage 1 that cells of a seed rest on, once for both networks."""
    cells = [job for job in plan.cells() if (job.arm, job.seed) == (arm, seed)]
    return {tuple(sorted(above(plan, job, "generate"))) for job in cells}


@pytest.mark.parametrize("arm", ["generate", "roundtrip"])
def test_every_seed_has_images_of_its_own(arm: str) -> None:
    """Would catch an interval that speaks of draws where all cells share one; networks of a seed
    that see different draws, which a comparison of networks could not tell from the networks."""
    plan = plan_of()
    [first], [second], [third] = (made_of(plan, arm, seed) for seed in range(3))
    assert len({first, second, third}) == 3
    one = plan_of(draws="one")
    assert made_of(one, arm, 0) == made_of(one, arm, 2) == {first}


def test_a_storage_of_one_draw_serves_the_first_of_several() -> None:
    """Would catch days of work done again: all but the cells of later seeds are the same jobs."""
    one, images = plan_of(draws="one"), plan_of()
    lost = [job for key, job in one.jobs.items() if key not in images.jobs]
    assert {job.kind for job in lost} == {"fit_downstream"}
    assert {(job.arm, job.seed) for job in lost} == {
        (arm, seed) for arm in ("generate", "roundtrip", "disturb") for seed in (1, 2)
    }
    more = Counter(job.kind for key, job in images.jobs.items() if key not in one.jobs)
    assert more == {"generate": 2, "encode": 2, "decode": 4, "fit_downstream": len(lost)}


def test_draws_of_images_have_one_model_and_draws_of_models_several() -> None:
    one, images, models = (plan_of(draws=draws) for draws in ("one", "images", "models"))
    for kind in ("fit_denoiser", "fit_guide"):
        [shared] = [job for job in one.jobs.values() if job.kind == kind]
        assert [job.key for job in images.jobs.values() if job.kind == kind] == [shared.key]
        each = [job for job in models.jobs.values() if job.kind == kind]
        assert [job.seed for job in each] == [None, 1, 2]
        assert each[0].key == shared.key
        assert len({job.inputs["seed"] for job in each}) == 3
    for job in models.cells():
        if job.arm == "disturb":
            [decode] = [models.jobs[key] for key in job.needs.values()]
            trained = [models.jobs[decode.needs[role]] for role in ("denoiser", "guide")]
            assert {one.seed for one in (decode, *trained)} == {job.seed or None}


def test_draws_differ_in_their_seed_only() -> None:
    """Would catch a draw that is of another method or number of images."""
    jobs = [job for job in plan_of().jobs.values() if job.kind in ("generate", "decode")]
    for kind, arm in (("generate", None), ("decode", "roundtrip"), ("decode", "disturb")):
        each = [job for job in jobs if (job.kind, job.arm) == (kind, arm)]
        assert [job.seed for job in each] == [None, 1, 2]
        assert len({job.inputs["seed"] for job in each}) == 3
        rest = [{**job.inputs, "seed": 0} for job in each]
        assert rest[0] == rest[1] == rest[2]


@pytest.mark.parametrize("draws", ["one", "images", "models"])
def test_there_is_one_search_on_the_first_draw(draws: str) -> None:
    """Would catch a search per draw, which nobody asked for, or one that changes with ``draws``."""
    plan, one = plan_of(draws=draws), plan_of(draws="one")
    [search] = [job for job in plan.jobs.values() if job.kind == "search"]
    assert search.key in one.jobs
    assert plan.jobs[search.needs["latents/0"]].seed is None


def test_the_draw_of_a_seed_is_its_number() -> None:
    """Would catch seeds of another study that get its draws by their place in the list."""
    plan, usual = plan_of(seeds=[4, 2]), plan_of()
    assert made_of(plan, "generate", 2) == made_of(usual, "generate", 2)
    [search] = [job for job in plan.jobs.values() if job.kind == "search"]
    assert plan.jobs[search.needs["latents/0"]].seed == 4
    assert {job.seed for job in plan.jobs.values() if job.kind == "generate"} == {4, 2}


def test_the_judge_sees_the_first_draw_and_with_limits_every_one() -> None:
    """Would catch cells that a limit lets pass because it was measured on other images."""
    assessed = [job for job in plan_of().jobs.values() if job.kind == "assess"]
    assert {(job.arm, job.seed) for job in assessed} == {
        (arm, None) for arm in ("duplicate", "generate", "roundtrip", "disturb")
    }
    limited = plan_of(limits={"copies": 0.2})
    for job in limited.cells():
        if job.arm in ("generate", "roundtrip", "disturb"):
            assert job.gate
            gate = limited.jobs[job.gate]
            assert (gate.arm, gate.seed) == (job.arm, job.seed or None)
            assert set(job.needs.values()) <= set(gate.needs.values())
        else:
            assert job.gate is None
    kinds = Counter(job.arm for job in limited.jobs.values() if job.kind == "assess")
    assert kinds == {"duplicate": 1, "generate": 3, "roundtrip": 3, "disturb": 3}


def test_cells_at_other_ratios_use_the_draw_of_their_seed() -> None:
    curve = {"ratio": 0.5, "curve": {"ratios": [0.25], "arms": ["generate"]}}
    plan = plan_of(synthetic=curve)
    for job in plan.jobs.values():
        if job.kind == "fit_at_ratio":
            assert {tuple(sorted(above(plan, job, "generate")))} == made_of(
                plan, "generate", int(job.seed or 0)
            )


def test_what_is_of_the_first_draw_is_found_among_all() -> None:
    """Would catch pages on three draws at once, and the loss of what all draws share."""
    plan = plan_of(seeds=[4, 2], limits={"copies": 0.2})
    kept = of_draw(plan.jobs.values(), 4)
    assert {job.seed for job in kept if job.kind in DRAWN} == {None, 4}
    assert {job.kind for job in kept if job.seed is None} == {
        "fit_denoiser", "fit_guide", "search", "fit_judge", "assess",
    }  # fmt: skip
    assert {job.arm for job in kept if job.kind == "assess"} == {
        "duplicate", "generate", "roundtrip", "disturb",
    }  # fmt: skip
    assert sum(job.kind == "fit_downstream" for job in kept) == 20
    rows = [Record(str(seed), "decode", "done", arm="disturb", seed=seed) for seed in (None, 1)]
    assert of_draw(rows, 0) == rows[:1]
