"""From a study to its jobs: what each computes, what it needs, and the key of its result.

Pure: reads no file, imports neither torch nor ray. A key is the hash of everything that can
change the result: the job's inputs, the keys of its needs, and the version of its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgdm_ray.config import (
    Arm,
    ConfirmConfig,
    DatasetConfig,
    GuideConfig,
    LimitsConfig,
    ReferenceFault,
    SearchConfig,
    StartPoint,
    StudyConfig,
    TrainConfig,
)
from mgdm_ray.seeding import content_key

# Raise a kind's version when its code changes results: its artefacts are then computed anew.
VERSIONS = {
    "fit_denoiser": 1,
    "fit_guide": 2,
    "generate": 1,
    "encode": 2,
    "search": 3,
    "confirm": 1,
    "decode": 2,
    "fit_judge": 1,
    "assess": 1,
    "fit_downstream": 2,
    "fit_at_ratio": 1,
}
KINDS = tuple(VERSIONS)
FITS = ("fit_denoiser", "fit_guide")
SAMPLINGS = ("generate", "encode", "decode")
CELLS = ("fit_downstream", "fit_at_ratio")
"""Kinds that open the test split: the study's cells, and those of its ratio curve."""
SCORINGS = ("search", "confirm")
"""Kinds that score settings: decode under each, train networks, look at validation data."""
FEATURES = "features.safetensors"
"""What the judge sees in images, in the artefacts of ``fit_judge`` and ``assess``."""


@dataclass(frozen=True)
class Job:
    """A node of the plan.

    ``inputs`` are hashed into ``key``; ``needs`` maps a role (``denoiser``, ``latents/0``, ...) to
    the key of the job that fills it.
    """

    kind: str
    key: str
    inputs: dict[str, Any]
    needs: dict[str, str]
    dataset: str
    network: str | None = None
    arm: str | None = None
    seed: int | None = None
    detail: str = ""
    gate: str | None = None
    """Key of the ``assess`` job whose record must be within the study's ``limits`` before this
    one may run; no part of the key, because it does not change the result."""

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Keys of all that must have ended before it runs: its needs and its gate."""
        keys = dict.fromkeys([*self.needs.values(), *([self.gate] if self.gate else [])])
        return tuple(keys)

    @property
    def label(self) -> str:
        """For people: ``fit_downstream breastmnist resnet18 disturb seed 0``."""
        parts = [self.kind, self.dataset, self.network, self.arm]
        parts.append(None if self.seed is None else f"seed {self.seed}")
        return " ".join(p for p in [*parts, self.detail] if p)


@dataclass(frozen=True)
class Plan:
    """Jobs by key, needs before those who need them."""

    jobs: dict[str, Job]

    def counts(self) -> dict[str, int]:
        found = Counter(job.kind for job in self.jobs.values())
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def key(self) -> str:
        return content_key(sorted(self.jobs))

    def cells(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.kind == "fit_downstream"]


def search_seed(job: Job) -> int:
    """Seed of what a search draws itself, as opposed to the images it starts from."""
    seed: int = job.inputs.get("search_seed", job.inputs["seed"])
    return seed


def fits_per_setting(inputs: Mapping[str, Any]) -> tuple[list[str], int]:
    """(networks, seeds of each) that a search or a ``confirm`` trains for one setting."""
    if "proxies" in inputs:
        return [*inputs["proxies"], *inputs["others"]], inputs["seeds"]
    return inputs["networks"], inputs.get("repeats", 1)


def make_plan(
    config: StudyConfig,
    fingerprints: Mapping[str, str],
    warm: Mapping[str, Sequence[StartPoint]] | None = None,
) -> Plan:
    """All jobs of a study; ``fingerprints`` identify the content of each dataset by name, and of
    each file of pretrained weights as ``weights/NETWORK``.

    ``warm`` are the settings that ``search.warm_start`` stands for, by dataset.
    """
    jobs: dict[str, Job] = {}
    for dataset in config.datasets:
        start = (warm or {}).get(dataset.name, ())
        _DatasetPlan(config, dataset, fingerprints, start, jobs).build()
    return Plan(jobs)


READ_BY_CONTENT = ("classes", "reading", "columns", "split", "licence", "citation")
"""Keys of a dataset that its fingerprint covers, or that change no number."""


class _DatasetPlan:
    """Adds the jobs of one dataset; datasets share nothing, so changing one leaves the others."""

    def __init__(
        self,
        config: StudyConfig,
        dataset: DatasetConfig,
        fingerprints: Mapping[str, str],
        warm: Sequence[StartPoint],
        jobs: dict[str, Job],
    ) -> None:
        self.config = config
        self.warm = warm
        self.dataset = dataset.name
        self.fingerprints = fingerprints
        # Where the file lies and how it is read does not matter, what comes of it does.
        unused = {"path", "pictures", *READ_BY_CONTENT} | (set() if dataset.source else {"source"})
        self.data = {
            **dataset.model_dump(mode="json", exclude=unused),
            "content": fingerprints[dataset.name],
        }
        self.jobs = jobs

    def build(self) -> None:
        curve = self.config.synthetic.curve
        ratios = (None, *(curve.ratios if curve else ()))
        for ratio in ratios:
            for arm in self.config.arms:
                for network in self.config.networks:
                    if ratio is None or self.on_curve(arm, network):
                        self.cells(arm, network, ratio)

    def on_curve(self, arm: Arm, network: str) -> bool:
        curve = self.config.synthetic.curve
        assert curve is not None
        if arm in ("real", "augment"):
            return False
        return (not curve.arms or arm in curve.arms) and (
            not curve.networks or network in curve.networks
        )

    def add(
        self,
        kind: str,
        inputs: dict[str, Any],
        needs: Mapping[str, str] | None = None,
        *,
        network: str | None = None,
        arm: str | None = None,
        seed: int | None = None,
        detail: str = "",
        gate: str | None = None,
    ) -> str:
        needs = dict(needs or {})
        inputs = {"dataset": self.data, **inputs}
        key = content_key({"kind": kind, "v": VERSIONS[kind], "in": inputs, "needs": needs})
        if key not in self.jobs:
            self.jobs[key] = Job(
                kind, key, inputs, needs, self.dataset, network, arm, seed, detail, gate
            )
        return key

    def denoiser(self) -> str:
        inputs = self.training_inputs(self.config.denoiser)
        return self.add("fit_denoiser", {**inputs, **self.reference("label_dropout")})

    def guide(self) -> str:
        inputs = {**self.training_inputs(self.config.guide), **self.reference("guide_timesteps")}
        if "reference" in inputs:
            inputs["num_inference_steps"] = self.config.sampling.num_inference_steps
        return self.add("fit_guide", inputs)

    def reference(self, *concern: ReferenceFault) -> dict[str, Any]:
        """Those faults of the study that ``concern`` a job: no key where there are none, so that
        studies without faults keep their keys."""
        faults = sorted(set(concern) & set(self.config.reference))
        return {"reference": faults} if faults else {}

    def training_inputs(self, train: TrainConfig) -> dict[str, Any]:
        # Neither of the excluded changes the result: checkpoints resume exactly, and the recipe is
        # resolved into the other fields.
        excluded = {"checkpoint_every", "recipe"}
        if isinstance(train, GuideConfig) and not train.dropout:
            excluded.add("dropout")  # guides keep the keys they had before there was any
        return {
            "train": train.model_dump(mode="json", exclude=excluded),
            "schedule": self.config.denoiser.schedule,
            "seed": self.config.seed,
        }

    def generate(self, guidance_scale: float, classifier_scale: float) -> str:
        needs = {"denoiser": self.denoiser()}
        if classifier_scale:
            needs["guide"] = self.guide()
        sampling = self.config.sampling
        inputs = {
            "guidance_scale": guidance_scale,
            "classifier_scale": classifier_scale,
            "num_inference_steps": sampling.num_inference_steps,
            "solver": sampling.solver,
            "clip": sampling.clip,
            "precision": sampling.precision,
            "synthetic": self.synthetic(),
            "seed": self.config.seed,
            **self.reference("label_dropout", "rank_seeds"),
        }
        detail = f"guidance {guidance_scale:g}"
        detail += f" classifier {classifier_scale:g}" if classifier_scale else ""
        return self.add("generate", inputs, needs, detail=detail)

    def encode(self, guidance_scale: float, classifier_scale: float) -> str:
        needs = {
            "denoiser": self.denoiser(),
            "images": self.generate(guidance_scale, classifier_scale),
        }
        iterations = self.config.sampling.inversion_iterations
        inputs = {
            **self.grid(),
            "inversion_iterations": iterations,
            **self.reference("alignment", "label_dropout", "uint8"),
        }
        if "label_dropout" in inputs.get("reference", ()):
            inputs["seed"] = self.config.seed  # otherwise encode draws nothing
        detail = self.jobs[needs["images"]].detail
        return self.add("encode", inputs, needs, detail=detail)

    def grid(self) -> dict[str, Any]:
        """What encode and decode must share: noise levels, arithmetic, and clipping if it is on."""
        sampling = self.config.sampling
        shared = sampling.model_dump(include={"num_inference_steps", "strength", "precision"})
        return {**shared, "clip_stage_two": True} if sampling.clip_stage_two else shared

    def search(self, network: str) -> str | None:
        search = self.config.search
        if search is None:
            return None
        inputs = {
            "trials": search.trials,
            "sampler": search.sampler,
            "pruner": search.pruner,
            "objective": search.objective,
            "repeats": search.repeats,
            "start": self.start_points(search),
            "networks": self.proxies(search, network),
            "space": search.space.model_dump(
                mode="json", exclude={"guidance_scale", "classifier_scale"}
            ),
            **self.scoring(search),
            **self.weights(*self.proxies(search, network)),
        }
        if search.objective == "accuracy_and_cost":  # only there all of the pipeline counts
            inputs["inversion_iterations"] = self.config.sampling.inversion_iterations
        if search.seed is not None:  # without, a search keeps the key it had before there was one
            inputs["search_seed"] = search.seed
        shown = network if search.per == "network" else None
        key = self.add("search", inputs, self.scoring_needs(), network=shown)
        if search.confirm:
            self.confirm(search, search.confirm, network, key)
        return key

    def confirm(
        self, search: SearchConfig, confirm: ConfirmConfig, network: str, found: str
    ) -> None:
        """Serves no cell: the report only."""
        proxies = self.proxies(search, network)
        others = [other for other in self.config.networks if other not in proxies]
        inputs = {
            "settings": min(confirm.settings, search.trials),
            "seeds": confirm.seeds,
            "proxies": proxies,
            "others": others,
            **self.scoring(search),
            **self.weights(*proxies, *others),
        }
        shown = network if search.per == "network" else None
        self.add("confirm", inputs, {"search": found, **self.scoring_needs()}, network=shown)

    @staticmethod
    def proxies(search: SearchConfig, network: str) -> list[str]:
        return [network] if search.per == "network" else list(search.networks)

    def scoring(self, search: SearchConfig) -> dict[str, Any]:
        """What the score of one setting depends on, beside the setting and the networks."""
        return {
            "images": search.images,
            "stage_one": [list(c) for c in self.config.stage_one()],
            "downstream": {
                **self.downstream(),
                "steps": search.steps or self.config.downstream.steps,
            },
            **self.grid(),
            "seed": self.config.seed,
            **self.reference("clip", "label_dropout", "measurement"),
            # A score does what these jobs do.
            "versions": [VERSIONS["decode"], VERSIONS["fit_downstream"]],
        }

    def downstream(self) -> dict[str, Any]:
        """How networks are trained; of a folder of weights its content counts, not its place."""
        values = self.config.downstream.model_dump(mode="json")
        if values["pretrained"] not in (None, "hub"):
            values["pretrained"] = "folder"
        return values

    def weights(self, *networks: str) -> dict[str, Any]:
        """The files these networks start from; no key where weights are fresh or the hub's."""
        if self.downstream()["pretrained"] != "folder":
            return {}
        return {"weights": {name: self.fingerprints[f"weights/{name}"] for name in networks}}

    def scoring_needs(self) -> dict[str, str]:
        latents = {
            f"latents/{index}": self.encode(*candidate)
            for index, candidate in enumerate(self.config.stage_one())
        }
        return {"denoiser": self.denoiser(), "guide": self.guide(), **latents}

    def start_points(self, search: SearchConfig) -> list[dict[str, Any]]:
        """What is tried first: the study's own points, then those of earlier searches."""
        own = [self.config.placed(point) for point in search.start]
        points = [*own, *(point for point in self.warm if point not in own)]
        return [point.model_dump(mode="json") for point in points[: search.trials]]

    def choice(self, what: str, network: str, *, needs_setting: bool) -> dict[str, str]:
        """The candidates of stage 1 (images or latents), and the search where one must choose."""
        candidates = self.config.stage_one()
        make = self.generate if what == "images" else self.encode
        needs = {f"{what}/{i}": make(*c) for i, c in enumerate(candidates)}
        if len(candidates) > 1 or needs_setting:
            found = self.search(network)
            if found:
                needs["search"] = found
        return needs

    def decode(self, arm: Arm, network: str) -> str:
        guided = arm != "roundtrip"
        needs = {
            "denoiser": self.denoiser(),
            **self.choice("latents", network, needs_setting=guided),
        }
        inputs: dict[str, Any] = {
            "arm": arm,
            **self.grid(),
            "seed": self.config.seed,
            **self.reference("clip", "label_dropout", *(("measurement",) if guided else ())),
        }
        if guided:
            needs["guide"] = self.guide()
            if "search" not in needs:
                inputs["setting"] = self.config.setting.model_dump(mode="json")
        searched = "search" in needs and self.config.search
        shown = network if searched and searched.per == "network" else None
        return self.add("decode", inputs, needs, network=shown, arm=arm)

    def synthetic(self) -> dict[str, Any]:
        """How many images are drawn: enough for the largest ratio."""
        synthetic = self.config.synthetic
        drawn = {"ratio": synthetic.largest, "balance": synthetic.balance}
        if synthetic.per_class is not None:
            drawn["per_class"] = synthetic.per_class
        return drawn

    def used(self, ratio: float | None) -> dict[str, Any]:
        """Which share of the drawn images a cell uses; no key where it is all of them."""
        synthetic = self.config.synthetic
        ratio = synthetic.ratio if ratio is None else ratio
        return {} if ratio == synthetic.largest else {"ratio": ratio}

    def added_images(self, arm: Arm, network: str) -> dict[str, str]:
        if arm == "generate":
            return self.choice("images", network, needs_setting=False)
        if arm in ("roundtrip", "perturb", "disturb"):
            return {"images": self.decode(arm, network)}
        return {}

    def assess(self, arm: Arm, network: str, images: Mapping[str, str]) -> str | None:
        """What the judge says of the images that an arm adds; the report and ``limits`` use it."""
        judge = self.config.judge
        if judge is None or arm in ("real", "augment"):
            return None
        found = self.add(
            "fit_judge", {"judge": judge.model_dump(mode="json"), "seed": self.config.seed}
        )
        inputs: dict[str, Any] = {"arm": arm, "seed": self.config.seed, **self.used(None)}
        if arm == "duplicate":
            inputs |= {"synthetic": self.synthetic(), "copies_seed": self.config.seeds[0]}
        search = self.config.search
        shown = network if "search" in images and search and search.per == "network" else None
        if "images" in images:
            shown = self.jobs[images["images"]].network
        return self.add("assess", inputs, {"judge": found, **images}, network=shown, arm=arm)

    def cells(self, arm: Arm, network: str, ratio: float | None) -> None:
        """A cell per seed; those at another ``ratio`` than the study's are of another kind."""
        needs = self.added_images(arm, network)
        gate = self.assess(arm, network, needs)
        guarded = self.config.limits != LimitsConfig() and arm != "duplicate"
        for seed in self.config.seeds:
            inputs: dict[str, Any] = {
                "arm": arm,
                "network": network,
                "seed": seed,
                "downstream": self.downstream(),
                **self.weights(network),
            }
            if arm == "duplicate":
                # The other arms' counts come with their images.
                inputs["synthetic"] = self.synthetic()
            if arm not in ("real", "augment"):
                inputs |= self.used(ratio)
            kind, detail = "fit_downstream", ""
            if ratio is not None:
                kind, detail = "fit_at_ratio", f"ratio {ratio:g}"
                inputs["curve_ratio"] = ratio
                inputs["version"] = VERSIONS["fit_downstream"]  # it does what a cell does
            self.add(
                kind,
                inputs,
                needs,
                network=network,
                arm=arm,
                seed=seed,
                detail=detail,
                gate=gate if guarded else None,
            )
