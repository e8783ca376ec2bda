"""Keys of results are what they were when the layout changed: nobody has to compute anew.

``keys.json`` was written before that change and holds the ``VERSIONS`` of then, with which the
plans are made here: a kind whose version was raised since, for a deliberate change of a result, has
other keys, but all that enters them besides is still proved to be the same. They are of one draw of
synthetic images, as all studies of then; a case may say otherwise. New cases:
``python -m tests.pipeline.test_keys`` writes the file again, with the versions that it holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgdm_ray.config.file import read_study
from mgdm_ray.pipeline.job import KINDS, VERSIONS
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.seeding import content_key
from tests.conftest import ROOT

GOLDEN = Path(__file__).parent / "keys.json"
SHIPPED = ("quickstart", "grid", "grid-cpu", "medmnist-cpu", "top-up")
# Overrides of quickstart, each of which takes another way through the plan.
VARIANTS: dict[str, list[str]] = {
    "all arms": ["arms=[real, augment, duplicate, generate, roundtrip, perturb, disturb]",
                 "downstream.augment=none"],
    "no search": ["search=null", "setting={measurement: margin, uncertainty_scale: 0.2}"],
    "setting in full": [
        "search=null",
        "setting={measurement: energy, uncertainty_scale: 0.2, gradient: relative, "
        "over_t: signal, decode_guidance_scale: 1.5, label_scale: 0.5, interval: [10, 900]}",
    ],
    "no judge": ["judge=null"],
    "limits": ["limits={copies: 0.2, flips: 0.3}"],
    "curve": ["synthetic.curve={ratios: [0.25, 2.0], arms: [duplicate, disturb]}"],
    "top up": ["synthetic={balance: top_up, per_class: 60}"],
    "balanced": ["synthetic.balance=balanced"],
    "per network": ["search.per=network"],
    "candidates": [
        "search.space.guidance_scale=[1.0, 1.5, 3.0]",
        "search.space.classifier_scale=[0.0, 1.0]",
        "search.start=[{measurement: entropy, uncertainty_scale: 0.1, guidance_scale: 1.5, "
        "classifier_scale: 1.0}]",
    ],
    "per measurement": [
        "search.space.per_measurement={entropy: {uncertainty_scale: {low: 0.1, high: 0.2}}}"
    ],
    "members": [
        "guide.dropout=0.2",
        "search.space.measurement=[entropy, mutual_information, energy, margin]",
    ],
    "controls searched over": [
        "search.space.gradient=raw",
        "search.space.over_t=noise",
        "search.space.label_scale=0.5",
        "search.space.interval=[5, 500]",
    ],
    **{f"sampler {name}": [f"search.sampler={name}"] for name in ("gp", "nsga2", "random", "grid")},
    **{
        f"pruner {name}": [f"search.pruner={name}", "search.networks=[googlenet, resnet18]"]
        for name in ("median", "asha")
    },
    "two objectives": ["search.objective=accuracy_and_cost"],
    "search options": ["search.repeats=2", "search.seed=7", "search.steps=9", "search.images=11"],
    "no confirm": ["search.confirm=null"],
    "paper": [
        "denoiser.recipe=paper", "sampling.inversion_iterations=0", "sampling.solver=ddim",
    ],
    "faults": [
        "denoiser.recipe=paper", "sampling.inversion_iterations=0",
        "reference=[guide_timesteps, alignment, label_dropout, clip, uint8, measurement, "
        "rank_seeds]",
    ],
    "sampling": [
        "sampling.strength=0.6", "sampling.clip_stage_two=true", "sampling.precision=float32",
        "sampling.guidance_scale=2", "sampling.classifier_scale=3",
    ],
    "denoiser": ["denoiser.loss_weight=min_snr", "denoiser.label_dropout=0.2",
                 "denoiser.ema_decay=0.9", "denoiser.grad_clip=null"],
    "denoiser's options": ["denoiser.loss_weight=min_snr_soft", "denoiser.dropout=0.1",
                           "denoiser.augment=0.12", "denoiser.mirror=true",
                           "denoiser.ema_width=0.1"],
    "guided levels": ["sampling.guidance_interval=[100, 700]"],
    "levels of the guide": ["search.space.interval=auto"],
    "guide": ["guide.label_smoothing=0.1", "guide.dropout=0.1"],
    "downstream": [
        "downstream.class_weighted=true", "downstream.pretrained=hub",
        "downstream.precision=float32", "downstream.weight_decay=0.1",
    ],
    "epochs": ["downstream={epochs: 3, class_balanced: true, checkpoint: best_validation}"],
    "augmentation": ["downstream.augment=randaugment", "downstream.mixup=0.2"],
    "recipes": ["downstream.recipes={resnet18: {batch_size: 8, warmup: 0.1}}"],
    "plain": ["downstream={steps: 24, batch_size: 16, learning_rate: 0.002, warmup: 0.3, "
              "augment: none}"],
    "own weights": ["downstream.pretrained=weights"],
    "variants": ["datasets=[{name: phantom-xray, train_size: [50, 100]}, phantom-dermatoscopy]"],
    "own data": [
        "datasets=[{name: mine, path: mine.npz, task: ordinal, classes: [a, b], "
        "licence: CC0, pictures: false}]"
    ],
    "seeds": ["seeds=[3, 5]", "seed=9", "image_size=32"],
    "draws of images": ["draws=images"],
    "draws of models": ["draws=models"],
    "where it runs": [
        "resources={train_workers: [1, 2], gpus_per_task: 0.5, compile: never}",
        "deterministic=true", "sampling.batch_size=8", "denoiser.checkpoint_every=7",
    ],
}  # fmt: skip


def keys(study: str, overrides: list[str]) -> dict[str, Any]:
    config, _ = read_study(ROOT / "studies" / f"{study}.yaml", ["draws=one", *overrides])
    contents = {d.name: f"content of {d.name}" for d in config.datasets}
    searched = config.search.networks if config.search else ()
    contents |= {f"weights/{n}": f"weights of {n}" for n in (*config.networks, *searched)}
    plan = make_plan(config, contents)
    kinds = {
        kind: sorted(k for k, j in plan.jobs.items() if j.kind == kind) for kind in plan.counts()
    }
    return {kind: [len(found), content_key(found)] for kind, found in kinds.items()}


def cases() -> dict[str, tuple[str, list[str]]]:
    return {
        **{name: (name, []) for name in SHIPPED},
        **{f"quickstart, {what}": ("quickstart", change) for what, change in VARIANTS.items()},
    }


def golden() -> tuple[dict[str, int], dict[str, Any]]:
    """The versions that ``keys.json`` was written with, and the keys of each case."""
    found = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found.pop("versions"), found


@pytest.mark.parametrize("case", cases())
def test_keys_are_what_they_were(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a default, a field or a form in the inputs that makes all users compute anew."""
    versions, found = golden()
    for kind, version in versions.items():
        monkeypatch.setitem(VERSIONS, kind, version)
    assert keys(*cases()[case]) == found[case]


def test_versions_only_rise() -> None:
    """Would catch a version that falls back, and finds artefacts of other code; a kind that
    ``keys.json`` does not know."""
    versions, _ = golden()
    assert sorted(versions) == sorted(KINDS)
    assert all(VERSIONS[kind] >= version >= 1 for kind, version in versions.items())


def test_a_raised_version_changes_its_kind_and_what_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch a version that enters no key: the versions above would then prove nothing."""
    before = keys("quickstart", [])
    monkeypatch.setitem(VERSIONS, "fit_guide", VERSIONS["fit_guide"] + 1)
    after = keys("quickstart", [])
    same = {kind for kind in before if before[kind] == after[kind]}
    assert same == {"fit_denoiser", "generate", "encode", "fit_judge"}


def test_every_field_of_a_study_that_enters_keys_is_varied() -> None:
    """Would catch variants that all give the same keys, which would prove nothing."""
    _, cases = golden()
    same = {name for name, found in cases.items() if found == cases["quickstart"]}
    assert same == {"quickstart", "quickstart, limits", "quickstart, where it runs"}


if __name__ == "__main__":
    VERSIONS |= golden()[0]
    found = {"versions": dict(VERSIONS), **{name: keys(*case) for name, case in cases().items()}}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(kinds)}" for name, kinds in found.items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
