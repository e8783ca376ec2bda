"""Keys: stable, changed by every input that matters, unchanged by what does not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_ray.config import REFERENCE_FAULTS, StudyConfig
from mgdm_ray.config.file import read_study
from mgdm_ray.data.mix import synthetic_labels
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.seeding import content_key
from tests.conftest import ROOT, TINY


def plan_of(study: dict[str, Any], prints: dict[str, str] | None = None) -> Plan:
    config = StudyConfig.model_validate(study)
    return make_plan(config, {d.name: (prints or {}).get(d.name, "x") for d in config.datasets})


def changed(path: str, value: Any) -> dict[str, Any]:
    study = json.loads(json.dumps(TINY))
    *parents, last = path.split(".")
    target = study
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    target[last] = value
    return study


def keys(plan: Plan, *kinds: str) -> set[str]:
    return {j.key for j in plan.jobs.values() if not kinds or j.kind in kinds}


BASE = plan_of(TINY)
UPSTREAM = ("fit_denoiser", "fit_guide", "generate", "encode")


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(k, shuffled(v, rng)) for k, v in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(v, rng) for v in value] if isinstance(value, list) else value


@given(st.integers())
@settings(max_examples=30)
def test_keys_do_not_depend_on_the_order_of_yaml_keys(seed: int) -> None:
    assert keys(plan_of(shuffled(TINY, random.Random(seed)))) == keys(BASE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda v: "inf" not in repr(v))


@given(json_values, json_values)
def test_content_key_tells_values_apart_as_json_does(one: Any, other: Any) -> None:
    """Would catch a canonical form that loses information or adds order."""
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (content_key(one) == content_key(other)) == same


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("storage", "elsewhere"),
        ("data_dir", "/somewhere"),
        ("name", "other"),
        ("resources.train_workers", 2),
        ("resources.cpus_per_task", 2),
        ("tracking.experiment", "other"),
        ("denoiser.checkpoint_every", 5),
        ("sampling.batch_size", 7),
        ("search.max_concurrent", 1),
        ("search.seed", None),
        ("search.confirm", None),
    ],
)
def test_what_cannot_change_results_does_not_change_keys(path: str, value: Any) -> None:
    """Would catch recomputing a study because a folder or a cluster changed."""
    assert keys(plan_of(changed(path, value))) == keys(BASE)


@pytest.mark.parametrize(
    ("path", "value", "first"),
    [
        ("denoiser.steps", 7, "fit_denoiser"),
        ("denoiser.learning_rate", 0.01, "fit_denoiser"),
        ("denoiser.unet.num_res_blocks", 2, "fit_denoiser"),
        ("denoiser.schedule", "linear", "fit_guide"),
        ("guide.steps", 7, "fit_guide"),
        ("guide.label_smoothing", 0.1, "fit_guide"),
        ("guide.dropout", 0.1, "fit_guide"),
        ("seed", 1, "fit_denoiser"),
        ("image_size", 32, "fit_denoiser"),
        ("datasets.0.phantom.difficulty", 0.1, "fit_denoiser"),
        ("datasets.0.train_size", 30, "fit_denoiser"),
        ("sampling.guidance_scale", 3, "generate"),
        ("sampling.clip", False, "generate"),
        ("sampling.clip_stage_two", True, "encode"),
        ("synthetic.ratio", 2, "generate"),
        ("synthetic.balance", "balanced", "generate"),
        ("search.trials", 5, "search"),
        ("search.space.uncertainty_scale", {"low": 0.1, "high": 1}, "search"),
        ("search.images", 4, "search"),
        ("search.sampler", "gp", "search"),
        ("search.objective", "accuracy_and_cost", "search"),
        ("search.repeats", 2, "search"),
        ("search.seed", 0, "search"),
        ("search.start", [{"measurement": "entropy", "uncertainty_scale": 0.1}], "search"),
        (
            "search.space.per_measurement",
            {"entropy": {"uncertainty_scale": {"low": 0.1, "high": 1}}},
            "search",
        ),
        ("search.space.gradient", "relative", "search"),
        ("search.space.over_t", "signal", "search"),
        ("search.space.decode_guidance_scale", 2, "search"),
    ],
)
def test_what_changes_results_changes_keys_from_there_on(path: str, value: Any, first: str) -> None:
    """Would catch a stale result served for a changed study."""
    other = plan_of(changed(path, value))
    assert not keys(other, first) & keys(BASE, first)
    assert not _disturbed(other) & _disturbed(BASE)


def _disturbed(plan: Plan) -> set[str]:
    return {j.key for j in plan.jobs.values() if j.arm == "disturb"}


CONCERNED: dict[str, set[str]] = {
    "guide_timesteps": {"fit_guide"},
    "alignment": {"encode"},
    "label_dropout": {"fit_denoiser", "generate", "encode", "search", "decode"},
    "clip": {"search", "decode"},
    "uint8": {"encode"},
    "measurement": {"search", "decode"},
    "rank_seeds": {"generate"},
}


def told_of(plan: Plan, fault: str) -> set[str]:
    return {j.kind for j in plan.jobs.values() if fault in j.inputs.get("reference", ())}


@pytest.mark.parametrize("fault", REFERENCE_FAULTS)
def test_a_fault_changes_the_keys_of_what_it_concerns_and_of_what_needs_that(fault: str) -> None:
    """Would catch a stale result served for a fault, and work done again for nothing."""
    other = plan_of({**TINY, "reference": [fault]})
    assert told_of(other, fault) == CONCERNED[fault]
    changed: set[str] = set()
    for job in other.jobs.values():  # needs come first
        if fault in job.inputs.get("reference", ()) or changed & set(job.needs.values()):
            changed.add(job.key)
    assert keys(other) - keys(BASE) == changed
    assert len(keys(other)) == len(keys(BASE))


def test_a_study_without_faults_says_nothing_of_them() -> None:
    """Would catch a new option that makes every stored artefact worthless."""
    for job in plan_of({**TINY, "reference": []}).jobs.values():
        assert not {"reference", "clip_stage_two"} & set(job.inputs)
        assert ("num_inference_steps" in job.inputs) == (
            job.kind in ("generate", "encode", "decode", "search")
        )
        assert ("seed" in job.inputs) == (job.kind != "encode")
    assert keys(plan_of({**TINY, "reference": []})) == keys(BASE)


def test_the_order_of_faults_does_not_matter() -> None:
    """Would catch two artefacts of one and the same thing."""
    one, other = ["clip", "uint8", "label_dropout"], ["label_dropout", "uint8", "clip"]
    assert keys(plan_of({**TINY, "reference": one})) == keys(plan_of({**TINY, "reference": other}))


def test_a_round_trip_has_no_measurement() -> None:
    """Would catch an unguided decode that is computed again for a fault of guidance."""
    other = plan_of({**TINY, "reference": ["measurement"]})
    assert {j.key for j in other.jobs.values() if j.arm == "roundtrip"} <= keys(BASE)


def test_the_content_of_the_data_is_part_of_every_key() -> None:
    """Would catch results of an older file of the same name."""
    assert not keys(plan_of(TINY, {"phantom-ultrasound": "y"})) & keys(BASE)


def test_only_gamma_reuses_everything_before_stage_two() -> None:
    fixed = {k: v for k, v in TINY.items() if k != "search"}
    one = plan_of({**fixed, "setting": {"uncertainty_scale": 0.1}})
    other = plan_of({**fixed, "setting": {"uncertainty_scale": 0.2}})
    assert keys(one, *UPSTREAM) == keys(other, *UPSTREAM)
    assert not _disturbed(one) & _disturbed(other)
    rest = [j for j in one.jobs.values() if j.arm != "disturb"]
    assert {j.key for j in rest} <= keys(other)


def test_another_search_leaves_the_arms_without_it_alone() -> None:
    """Would catch generate and roundtrip being computed again for a longer search."""
    other = plan_of(changed("search.trials", 9))
    kept = {j.key for j in BASE.jobs.values() if j.arm not in (None, "disturb")}
    assert kept <= keys(other)


def test_another_search_seed_leaves_all_models_and_latents_alone() -> None:
    """Would catch a denoiser trained again to see how much a search depends on its seed."""
    other = plan_of(changed("search.seed", 1))
    assert keys(other, *UPSTREAM) == keys(BASE, *UPSTREAM)
    assert not keys(other, "search") & keys(BASE, "search")


def test_confirming_a_search_adds_a_job_and_changes_none() -> None:
    """Would catch cells that are computed again, or wait, for what only the report shows."""
    other = plan_of(changed("search.confirm", {"settings": 2, "seeds": 1}))
    [job] = [job for job in other.jobs.values() if job.kind == "confirm"]
    assert keys(other) == keys(BASE) | {job.key}
    assert all(job.key not in user.needs.values() for user in other.jobs.values())
    assert (job.inputs["proxies"], job.inputs["others"]) == (["squeezenet1_1"], ["alexnet"])
    kinds = list(other.counts())
    assert kinds.index("search") < kinds.index("confirm") < kinds.index("decode")
    more = plan_of(changed("search.confirm", {"settings": 2, "seeds": 2}))
    assert job.key not in keys(more)
    assert keys(BASE) <= keys(more)


def test_every_search_is_confirmed_by_networks_that_were_none_of_its_proxies() -> None:
    """Would catch a proxy network that ranks for itself."""
    study = changed("search.confirm", {"settings": 99})
    study["search"]["per"] = "network"
    jobs = [j for j in plan_of(study).jobs.values() if j.kind == "confirm"]
    assert [(j.network, j.inputs["proxies"], j.inputs["others"]) for j in jobs] == [
        ("squeezenet1_1", ["squeezenet1_1"], ["alexnet"]),
        ("alexnet", ["alexnet"], ["squeezenet1_1"]),
    ]
    assert {j.inputs["settings"] for j in jobs} == {3}  # there are only so many trials


def test_one_dataset_does_not_touch_another() -> None:
    two = [*TINY["datasets"], {"name": "phantom-xray", "size": 16}]
    changed_two = [*TINY["datasets"], {"name": "phantom-xray", "size": 16, "train_size": 50}]
    one, other = plan_of({**TINY, "datasets": two}), plan_of({**TINY, "datasets": changed_two})
    assert keys(BASE) <= keys(one)
    assert keys(BASE) <= keys(other)
    assert len(keys(one) & keys(other)) == len(keys(BASE))


def test_needs_come_first_and_exist() -> None:
    """Would catch a plan that Ray cannot be given in one pass."""
    for study in (TINY, changed("search.space.guidance_scale", [1.0, 2.0])):
        seen: set[str] = set()
        for key, job in plan_of(study).jobs.items():
            assert set(job.needs.values()) <= seen
            seen.add(key)


def test_a_guide_without_dropout_keeps_its_key() -> None:
    """Would catch guides of older studies being trained again for an option they do not use."""
    plan = plan_of(changed("guide.dropout", 0.0))
    assert keys(plan) == keys(BASE)
    [guide] = [job for job in plan.jobs.values() if job.kind == "fit_guide"]
    assert "dropout" not in guide.inputs["train"]


def test_counts_of_the_tiny_study() -> None:
    assert BASE.counts() == {
        "fit_denoiser": 1,
        "fit_guide": 1,
        "generate": 1,
        "encode": 1,
        "search": 1,
        "decode": 2,
        "fit_downstream": 10,
    }


def test_arms_that_add_nothing_need_no_diffusion_model() -> None:
    plain = {"downstream": {"steps": 2, "augment": "none"}}
    plan = plan_of({**TINY, **plain, "arms": ["real", "augment", "duplicate"]})
    assert set(plan.counts()) == {"fit_downstream"}


def test_a_search_per_network_gives_every_network_its_own_setting() -> None:
    plan = plan_of(changed("search.per", "network"))
    searches = [j for j in plan.jobs.values() if j.kind == "search"]
    assert [s.inputs["networks"] for s in searches] == [["squeezenet1_1"], ["alexnet"]]
    for job in plan.jobs.values():
        if job.kind == "fit_downstream" and job.arm == "disturb":
            decode = plan.jobs[job.needs["images"]]
            assert plan.jobs[decode.needs["search"]].network == job.network


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_file_plans_without_torch_or_ray(path: Any) -> None:
    """Would catch a broken study file, and a plan that has become slow by an import."""
    code = (
        "import sys; from mgdm_ray.study import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'ray', 'mlflow', 'monai', 'scipy'} & set(sys.modules); "
        "print('imported', sorted(heavy)); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, str(path), "--plan", "--storage", "/nonexistent"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "imported []" in done.stdout
    assert "fit_downstream" in done.stdout


def test_a_judge_and_limits_change_no_key_of_what_was_planned_before() -> None:
    """Would catch cells that are trained anew because somebody looks at their images, and limits
    that make a result another one; and a judge that sees, or a gate that shuts, the wrong arms."""
    judge = {"network": "resnet34"}
    judged = plan_of({**TINY, "judge": judge})
    assert set(BASE.jobs) <= set(judged.jobs)
    added = [judged.jobs[key] for key in set(judged.jobs) - set(BASE.jobs)]
    assert sorted((j.kind, j.arm or "") for j in added) == [
        ("assess", "disturb"),
        ("assess", "duplicate"),
        ("assess", "generate"),
        ("assess", "roundtrip"),
        ("fit_judge", ""),
    ]
    assert not any(job.gate for job in judged.jobs.values())
    limited = plan_of({**TINY, "judge": judge, "limits": {"copies": 0.1}})
    assert list(limited.jobs) == list(judged.jobs)
    gates = {job.arm: limited.jobs[job.gate].arm for job in limited.cells() if job.gate}
    assert gates == {arm: arm for arm in ("generate", "roundtrip", "disturb")}
    for job in limited.cells():
        assert set(job.waits_for) == {*job.needs.values(), *([job.gate] if job.gate else [])}


def test_hidden_pictures_change_no_key() -> None:
    """Catches a study that is computed anew because its images may not be shown."""
    entries = [d if isinstance(d, dict) else {"name": d} for d in TINY["datasets"]]
    hidden = [{**entry, "pictures": False} for entry in entries]
    assert keys(plan_of({**TINY, "datasets": hidden})) == keys(BASE)


def test_the_shipped_top_up_fills_rare_classes_of_imbalanced_data() -> None:
    """Would catch a study that tops up nothing, or leaves a rare class as it is: counts are those
    of the datasets' training splits."""
    config, _ = read_study(ROOT / "studies" / "top-up.yaml", [])
    per_class = config.synthetic.per_class
    assert per_class is not None
    counts = {
        "retinamnist": [486, 128, 206, 194, 66], "ham10000": [46, 72, 154, 16, 155, 937, 20]
    }  # fmt: skip
    assert set(counts) == {d.name for d in config.datasets}
    for real in counts.values():
        labels = np.repeat(np.arange(len(real)), real)
        added = synthetic_labels(labels, len(real), 1.0, "top_up", per_class=per_class)
        every = np.bincount(np.concatenate([labels, added]))
        assert every.tolist() == [max(n, per_class) for n in real]
        assert len(added) > len(labels) / 6
    plan = make_plan(config, {d.name: "x" for d in config.datasets})
    drawn = [job.inputs["synthetic"] for job in plan.jobs.values() if job.kind == "generate"]
    assert len(drawn) == 2 * len(config.seeds)
    assert all(one["balance"] == "top_up" and one["per_class"] == per_class for one in drawn)
    assert {job.arm for job in plan.cells()} == set(config.arms)
