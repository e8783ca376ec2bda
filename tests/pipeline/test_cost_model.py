"""What jobs ask for, which earlier jobs are like them, and what follows: small tables by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgdm_ray.config import InputError, StudyConfig
from mgdm_ray.pipeline.cost_model import (
    Effort,
    Figure,
    Figures,
    Node,
    add_probe,
    effort,
    figures_in,
    manifests_in,
    probe_figures,
    read_probes,
)
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.storage.store import Store
from tests.conftest import TINY

IMAGES = {"phantom-ultrasound": 40}


def plan_of(**changes: Any) -> Plan:
    config = StudyConfig.model_validate({**TINY, **changes})
    return make_plan(config, {d.name: "x" for d in config.datasets})


def of_kind(plan: Plan, kind: str, arm: str | None = None) -> Job:
    return next(j for j in plan.jobs.values() if j.kind == kind and arm in (None, j.arm))


def effort_of(plan: Plan, kind: str, arm: str | None = None) -> Effort:
    nodes = {key: Node.of(job) for key, job in plan.jobs.items()}
    found = effort(nodes[of_kind(plan, kind, arm).key], nodes, IMAGES)
    assert found is not None
    return found


def fit_of(work: float, kind: str = "fit_denoiser", dataset: str = "d") -> Effort:
    return Effort(kind, "one family", dataset, work, 1.0)


# --- matching ----------------------------------------------------------------------------------


def test_work_by_hand() -> None:
    """TINY: 6 x 8 and 4 x 8 training images, 20 synthetic images x 3 steps, 3 trials, 2 x 8."""
    plan = plan_of()
    assert effort_of(plan, "fit_denoiser").work == 48
    assert effort_of(plan, "fit_guide").work == 32
    assert effort_of(plan, "generate").work == effort_of(plan, "decode").work == 60
    assert effort_of(plan, "encode").work == 60
    assert effort_of(plan, "search").work == effort_of(plan, "search").items == 3
    assert effort_of(plan, "fit_downstream").work == 16
    again = plan_of(search={**TINY["search"], "confirm": {"settings": 2}})
    assert effort_of(again, "confirm").work == effort_of(again, "confirm").items == 2
    more = plan_of(sampling={**TINY["sampling"], "inversion_iterations": 2})
    assert effort_of(more, "encode").work == 180


def test_the_work_of_a_judge_by_hand() -> None:
    """5 x 8 training images; 20 images of each arm, 10 of them where the curve goes to twice the
    ratio: would catch an assessment estimated from all images drawn, or not at all."""
    judge = {"network": "resnet34", "steps": 5, "batch_size": 8}
    plan = plan_of(judge=judge)
    assert effort_of(plan, "fit_judge").work == 40
    for arm in ("duplicate", "generate", "roundtrip", "disturb"):
        its = effort_of(plan, "assess", arm)
        assert its.work == its.items == 20
    curve = {"ratio": 0.25, "curve": {"ratios": [0.5]}}
    plan = plan_of(judge=judge, synthetic=curve)
    assert effort_of(plan, "generate").items == 20
    assert effort_of(plan, "assess", "generate").work == 10
    assert effort_of(plan, "assess", "duplicate").work == 10
    other = plan_of(judge={**judge, "network": "resnet50"})
    for kind, arm in (("fit_judge", None), ("assess", "generate")):
        assert effort_of(other, kind, arm).family != effort_of(plan, kind, arm).family


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("fit_denoiser", {"image_size": 32}),
        ("fit_denoiser", {"denoiser": {**TINY["denoiser"], "unet": {"channels": [16, 32, 64]}}}),
        ("generate", {"denoiser": {**TINY["denoiser"], "unet": {"channels": [16, 32, 64]}}}),
        ("generate", {"sampling": {**TINY["sampling"], "guidance_scale": 1.0}}),
        ("decode", {"image_size": 32}),
        ("search", {"search": {**TINY["search"], "networks": ["resnet50"]}}),
        ("search", {"search": {**TINY["search"], "images": 16}}),
        ("search", {"search": {**TINY["search"], "repeats": 2}}),
        ("fit_downstream", {"networks": ["resnet50"]}),
    ],
)
def test_unlike_jobs_are_another_family(kind: str, changes: dict[str, Any]) -> None:
    """Would catch days of work that are announced as minutes, because a toy ran here before."""
    assert effort_of(plan_of(**changes), kind).family != effort_of(plan_of(), kind).family


def test_what_one_setting_costs_is_the_family_of_a_confirmation() -> None:
    """Would catch three seeds that are estimated as one, and other networks as none."""

    def family(networks: list[str], **confirm: int) -> str:
        search = {**TINY["search"], "confirm": confirm}
        return effort_of(plan_of(search=search, networks=networks), "confirm").family

    both = ["squeezenet1_1", "alexnet"]
    assert family(both, seeds=2) == family(both, seeds=2, settings=3)
    assert len({family(both, seeds=2), family(both, seeds=1), family(both[:1], seeds=2)}) == 3


@pytest.mark.parametrize("kind", ["fit_denoiser", "generate", "decode", "search", "fit_downstream"])
def test_seeds_and_content_change_no_price(kind: str) -> None:
    """Would catch a study whose new seed has no estimate, though its like has run."""
    arm = "real" if kind == "fit_downstream" else None
    assert effort_of(plan_of(seed=7, seeds=[5]), kind, arm) == effort_of(plan_of(), kind, arm)


def test_arms_differ_where_their_work_does() -> None:
    plain = {"steps": 2, "batch_size": 8, "augment": "none"}
    plan = plan_of(arms=["real", "augment", "duplicate", "roundtrip", "disturb"], downstream=plain)
    cell = "fit_downstream"
    assert effort_of(plan, cell, "real") == effort_of(plan, cell, "duplicate")
    assert effort_of(plan, cell, "augment").family != effort_of(plan, cell, "real").family
    assert (
        effort_of(plan, "decode", "disturb").family != effort_of(plan, "decode", "roundtrip").family
    )


def test_images_of_data_that_is_not_here_are_unknown() -> None:
    """Would catch a KeyError instead of "unknown" for a dataset that is still to be fetched."""
    plan = plan_of()
    nodes = {key: Node.of(job) for key, job in plan.jobs.items()}
    assert effort(nodes[of_kind(plan, "encode").key], nodes, {}) is None
    assert effort(nodes[of_kind(plan, "fit_guide").key], nodes, {}) is not None


# --- estimating --------------------------------------------------------------------------------


def test_equal_jobs_give_their_median() -> None:
    rows = [Figure(fit_of(100), seconds, bytes=7) for seconds in (10, 11, 90)]
    [*_, unlike] = [*rows, Figure(Effort("fit_denoiser", "other", "d", 100, 1), 5000)]
    found = Figures([*rows, unlike]).estimate(fit_of(100), 1)
    assert found is not None
    assert (found.seconds, found.bytes, found.basis, found.jobs) == (11, 7, "equal jobs", 3)


def test_equal_jobs_of_the_same_dataset_come_first() -> None:
    """Would catch test sets of other sizes mixed in while the very dataset is known."""
    rows = [Figure(fit_of(100, dataset="d"), 10), Figure(fit_of(100, dataset="e"), 30)]
    mine = Figures(rows).estimate(fit_of(100, dataset="d"), 1)
    third = Figures(rows).estimate(fit_of(100, dataset="f"), 1)
    assert mine is not None
    assert third is not None
    assert (mine.seconds, mine.jobs) == (10, 1)
    assert (third.seconds, third.jobs) == (20, 2)


def test_the_nearest_is_scaled_by_its_work() -> None:
    """400 steps from 200 steps in 20 s and not from 1000 in 500: 2 x 20; bytes do not grow."""
    rows = [Figure(fit_of(200), 20, bytes=7), Figure(fit_of(1000), 500, bytes=7)]
    found = Figures(rows).estimate(fit_of(400), 1)
    assert found is not None
    assert (found.seconds, found.bytes, found.basis) == (40, 7, "scaled")


def test_what_is_around_the_work_is_not_scaled_and_waiting_is_left_out() -> None:
    """Two fits of 10 s of steps; the second waited 40 s for a worker: 12 s around, 2 x 10 s."""
    rows = [Figure(fit_of(100), 10, fixed=12), Figure(fit_of(100), 10, fixed=52)]
    found = Figures(rows).estimate(fit_of(200), 1)
    assert found is not None
    assert found.seconds == 12 + 20
    shared = Figures(rows).estimate(fit_of(200), 4)
    assert shared is not None
    assert shared.seconds == 12 + 20 / 4


def test_older_fits_that_tell_less_count_only_where_there_are_no_others() -> None:
    """Would catch the wait for workers slipping in through an old artefact."""
    old, new = Figure(fit_of(100), 90), Figure(fit_of(100), 10, fixed=12)
    both, alone = Figures([old, new]).estimate(fit_of(100), 1), Figures([old])
    assert both is not None
    assert (both.seconds, both.jobs) == (22, 1)
    found = alone.estimate(fit_of(100), 4)
    assert found is not None
    assert found.seconds == 90


def test_the_trials_of_a_search_are_shared_out_whole() -> None:
    """8 trials of 5 s; 5 trials on two lanes are three rounds: 6 + 3 x 5."""
    rows = [Figure(fit_of(8, "search"), 40, fixed=6)]
    alone = Figures(rows).estimate(fit_of(5, "search"), 1)
    two = Figures(rows).estimate(fit_of(5, "search"), 2)
    assert alone is not None
    assert two is not None
    assert (alone.seconds, two.seconds) == (6 + 25, 6 + 15)


def test_a_probe_serves_only_where_no_job_has_run(tmp_path: Path) -> None:
    """Would catch guesses from noise that outweigh what was seen."""
    family = fit_of(1).family
    assert read_probes(tmp_path) == []
    for seconds in (0.9, 0.1):
        row = {"kind": "fit_guide", "family": family, "seconds_per_work": seconds}
        add_probe(tmp_path, {**row, "bytes_per_item": 8})
    probes = probe_figures(read_probes(tmp_path))
    asked = fit_of(300, "fit_guide")
    found = Figures([], probes).estimate(asked, 1)
    assert found is not None
    assert (found.seconds, found.bytes, found.basis) == (pytest.approx(30 + 30), 8, "probe")
    seen = Figures([Figure(asked, 55)], probes).estimate(asked, 1)
    assert seen is not None
    assert (seen.seconds, seen.basis) == (55, "equal jobs")


@pytest.mark.parametrize("text", ["", "7", "[7]", '[{"kind": "search"}]'])
def test_a_damaged_file_of_probes_is_named(tmp_path: Path, text: str) -> None:
    """Would catch a traceback that does not say which file to remove."""
    (tmp_path / "probes.json").write_text(text)
    with pytest.raises(InputError, match=r"probes\.json"):
        read_probes(tmp_path)


def test_nothing_known_is_no_estimate() -> None:
    assert Figures([Figure(fit_of(9), 1)]).estimate(fit_of(9, "fit_guide"), 1) is None


# --- reading -----------------------------------------------------------------------------------


def put(store: Store, job: Job, seconds: float, files: dict[str, str], **metrics: float) -> None:
    record = {"key": job.key, "kind": job.kind, "seconds": seconds, "metrics": metrics}
    with store.writing(job.kind, job.key) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        store.commit(job.kind, job.key, folder, record, {"inputs": job.inputs, "needs": job.needs})


def trials_of(*seconds: float) -> str:
    return json.dumps(
        [{"number": 0, "setting": {}, "status": "done", "seconds": one} for one in seconds]
    )


def test_figures_of_a_store(tmp_path: Path) -> None:
    """A fit of 6 steps that waited, and was resumed: 3 steps in 6 s of 40 s, so 12 s for all,
    on two workers each; a search of 30 s with trials of 8, 8 and 9 s: 5 s around them."""
    store, plan = Store(tmp_path), plan_of()
    speed = json.dumps({"steps": 3, "seconds": 6, "workers": 2})
    put(store, of_kind(plan, "fit_denoiser"), 40, {"speed.json": speed})
    put(store, of_kind(plan, "fit_guide"), 33, {"weights": "x" * 10})
    put(store, of_kind(plan, "generate"), 4, {"images": "x" * 100}, images=20)
    put(store, of_kind(plan, "encode"), 4, {}, images=20)
    trials = trials_of(8, 8, 9)
    put(store, of_kind(plan, "search"), 30, {"trials.json": trials})
    figures = {f.effort.kind: f for f in figures_in(store, manifests_in(store), {})}
    fit, guide = figures["fit_denoiser"], figures["fit_guide"]
    assert (fit.seconds, fit.fixed, fit.effort.work) == (24, 34, 48)
    assert (guide.seconds, guide.fixed, guide.bytes) == (33, None, 10)
    assert (figures["generate"].seconds, figures["generate"].bytes) == (4, 100)
    assert (figures["search"].seconds, figures["search"].fixed) == (25, 5)
    assert figures["generate"].effort == effort_of(plan, "generate")
    assert figures["search"].effort == effort_of(plan, "search")


def test_an_artefact_whose_needs_are_gone_is_passed_over(tmp_path: Path) -> None:
    """Would catch a plan that breaks because a folder was removed by hand."""
    store, plan = Store(tmp_path), plan_of()
    put(store, of_kind(plan, "generate"), 4, {}, images=20)
    assert figures_in(store, manifests_in(store), IMAGES) == []


def test_two_trials_at_once_are_recognised(tmp_path: Path) -> None:
    """Would catch negative seconds around: 3 trials of 10 s in 20 s ran two at a time, 5 s off."""
    store, plan = Store(tmp_path), plan_of()
    for kind in ("fit_denoiser", "fit_guide"):
        put(store, of_kind(plan, kind), 9, {})
    put(store, of_kind(plan, "generate"), 4, {}, images=20)
    put(store, of_kind(plan, "encode"), 4, {}, images=20)
    trials = trials_of(10, 10, 10)
    put(store, of_kind(plan, "search"), 20, {"trials.json": trials})
    [search] = [f for f in figures_in(store, manifests_in(store), {}) if f.effort.kind == "search"]
    assert (search.seconds, search.fixed) == (30, 5)
