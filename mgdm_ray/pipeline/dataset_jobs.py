"""All jobs of one dataset: searches, stage 2, cells. ``stage_one_jobs`` adds what these need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mgdm_ray.config import (
    Arm,
    ConfirmConfig,
    DatasetConfig,
    LimitsConfig,
    SearchConfig,
    StartPoint,
    StudyConfig,
)
from mgdm_ray.pipeline.job import VERSIONS, Job
from mgdm_ray.pipeline.stage_one_jobs import StageOneJobs


class DatasetJobs(StageOneJobs):
    """Datasets share no job, so that a change of one leaves the others."""

    def __init__(
        self,
        config: StudyConfig,
        dataset: DatasetConfig,
        fingerprints: Mapping[str, str],
        warm: Sequence[StartPoint],
        jobs: dict[str, Job],
    ) -> None:
        super().__init__(config, dataset, fingerprints, jobs)
        self.warm, self.first = warm, config.first_draw
        self.made: dict[tuple[Arm, str | None, int], tuple[dict[str, str], str | None]] = {}
        """The needs of cells, and the job that assesses their images."""

    def build(self) -> None:
        curve = self.config.synthetic.curve
        for ratio in (None, *(curve.ratios if curve else ())):
            for arm in self.config.arms:
                for network in self.config.networks:
                    if ratio is None or self.is_on_curve(arm, network):
                        self.cells(arm, network, ratio)

    def is_on_curve(self, arm: Arm, network: str) -> bool:
        curve = self.config.synthetic.curve
        assert curve is not None
        return (
            arm not in ("real", "augment")
            and arm in (curve.arms or (arm,))
            and network in (curve.networks or (network,))
        )

    # --- search -------------------------------------------------------------------------------

    def owner(self, network: str) -> str | None:
        """``network`` if each network has a search of its own."""
        search = self.config.search
        return network if search and search.per == "network" else None

    def search(self, network: str) -> str | None:
        search = self.config.search
        if search is None:
            return None
        proxies = self.proxies(search, network)
        inputs = {
            "trials": search.trials,
            "sampler": search.sampler,
            "pruner": search.pruner,
            "objective": search.objective,
            "repeats": search.repeats,
            "start": self.start_points(search),
            "networks": proxies,
            "space": search.space.model_dump(
                mode="json", exclude={"guidance_scale", "classifier_scale"}
            ),
            **self.scoring(search, *proxies),
            **self.weights(*proxies),
        }
        if search.objective == "accuracy_and_cost":  # only there all of the pipeline counts
            inputs["inversion_iterations"] = self.config.sampling.inversion_iterations
            inputs |= self.guided_levels()
        if search.seed is not None:
            inputs["search_seed"] = search.seed
        key = self.add("search", inputs, self.scoring_needs(), network=self.owner(network))
        if search.confirm:
            self.confirm(search, search.confirm, network, key)
        return key

    def confirm(
        self, search: SearchConfig, confirm: ConfirmConfig, network: str, found: str
    ) -> None:
        """No cell depends on it: only the report shows it."""
        proxies = self.proxies(search, network)
        others = [other for other in self.config.networks if other not in proxies]
        inputs = {
            "settings": min(confirm.settings, search.trials),
            "seeds": confirm.seeds,
            "proxies": proxies,
            "others": others,
            **self.scoring(search, *proxies, *others),
            **self.weights(*proxies, *others),
        }
        needs = {"search": found, **self.scoring_needs()}
        self.add("confirm", inputs, needs, network=self.owner(network))

    @staticmethod
    def proxies(search: SearchConfig, network: str) -> list[str]:
        return [network] if search.per == "network" else list(search.networks)

    def scoring(self, search: SearchConfig, *networks: str) -> dict[str, Any]:
        """What the score of a setting depends on, beside the setting and the networks.

        A score is of validation images, which must not choose the weights as well.
        """
        trained = self.training(*networks)
        unlike = {"checkpoint", *(("steps", "epochs") if search.steps else ())}
        downstream = {k: v for k, v in trained["downstream"].items() if k not in unlike}
        if search.steps:
            downstream["steps"] = search.steps
        return {
            "images": search.images,
            "stage_one": [list(c) for c in self.config.stage_one()],
            **trained,
            "downstream": downstream,
            **self.grid(),
            "seed": self.config.seed_of(self.first),
            **self.faults("clip", "label_dropout", "measurement"),
            # A score does what these jobs do.
            "versions": [VERSIONS["decode"], VERSIONS["fit_downstream"]],
        }

    def scoring_needs(self) -> dict[str, str]:
        """A search looks at the images of the first draw only."""
        latents = self.candidates("latents", self.first)
        models = {"denoiser": self.denoiser(self.first), "guide": self.guide(self.first)}
        return {**models, **latents}

    def start_points(self, search: SearchConfig) -> list[dict[str, Any]]:
        """The study's own start points, then those of the earlier study, at most ``trials``."""
        own = [self.config.placed(point) for point in search.start]
        points = [*own, *(point for point in self.warm if point not in own)]
        return [point.model_dump(mode="json") for point in points[: search.trials]]

    # --- stage 2 and cells --------------------------------------------------------------------

    def candidates(self, role: str, draw: int) -> dict[str, str]:
        """The needs ``role/0``, ``role/1``, ...: images or latents of the stage-1 candidates."""
        make = self.generate if role == "images" else self.encode
        return {f"{role}/{i}": make(*c, draw) for i, c in enumerate(self.config.stage_one())}

    def choice(self, role: str, network: str, draw: int, *, needs_setting: bool) -> dict[str, str]:
        """The candidates, and the search where one must be chosen."""
        needs = self.candidates(role, draw)
        if len(needs) > 1 or needs_setting:
            found = self.search(network)
            if found:
                needs["search"] = found
        return needs

    def decode(self, arm: Arm, network: str, draw: int) -> str:
        guided = arm != "roundtrip"
        latents = self.choice("latents", network, draw, needs_setting=guided)
        needs = {"denoiser": self.denoiser(draw), **latents}
        inputs: dict[str, Any] = {
            "arm": arm,
            **self.grid(),
            "seed": self.config.seed_of(draw),
            **self.faults("clip", "label_dropout", *(("measurement",) if guided else ())),
        }
        if guided:
            needs["guide"] = self.guide(draw)
            if "search" not in needs:
                inputs["setting"] = self.config.setting.model_dump(mode="json")
        shown = self.owner(network) if "search" in needs else None
        return self.add("decode", inputs, needs, network=shown, arm=arm, seed=draw or None)

    def added_images(self, arm: Arm, network: str, draw: int) -> dict[str, str]:
        if arm == "generate":
            return self.choice("images", network, draw, needs_setting=False)
        if arm in ("roundtrip", "perturb", "disturb"):
            return {"images": self.decode(arm, network, draw)}
        return {}

    def used(self, ratio: float | None) -> dict[str, Any]:
        """Which share of the drawn images a cell uses, unless it uses all."""
        synthetic = self.config.synthetic
        ratio = synthetic.ratio if ratio is None else ratio
        return {} if ratio == synthetic.largest else {"ratio": ratio}

    def assess(self, arm: Arm, network: str, draw: int, images: Mapping[str, str]) -> str | None:
        """The judge on the images that an arm adds: of the first draw, for the report, and with
        ``limits`` of all."""
        judge = self.config.judge
        if judge is None or arm in ("real", "augment"):
            return None
        if draw != self.first and (arm == "duplicate" or self.config.limits == LimitsConfig()):
            return None
        seed = {"seed": self.config.seed}
        found = self.add("fit_judge", {"judge": judge.model_dump(mode="json"), **seed})
        inputs: dict[str, Any] = {"arm": arm, **seed, **self.used(None)}
        if arm == "duplicate":
            inputs |= {"synthetic": self.synthetic(), "copies_seed": self.config.seeds[0]}
        shown = self.owner(network) if "search" in images else None
        if "images" in images:
            shown = self.jobs[images["images"]].network
        needs = {"judge": found, **images}
        seed_shown = None if arm == "duplicate" else draw or None
        return self.add("assess", inputs, needs, network=shown, arm=arm, seed=seed_shown)

    def material(self, arm: Arm, network: str, draw: int) -> tuple[dict[str, str], str | None]:
        """What cells of one draw need, and the job that assesses it."""
        same = arm, self.owner(network), draw
        if same not in self.made:
            needs = self.added_images(arm, network, draw)
            self.made[same] = needs, self.assess(arm, network, draw, needs)
        return self.made[same]

    def cells(self, arm: Arm, network: str, ratio: float | None) -> None:
        """A cell per seed; at another ``ratio`` than the study's they are ``fit_at_ratio``."""
        limited = self.config.limits != LimitsConfig() and arm != "duplicate"
        kind, detail, curve = "fit_downstream", "", dict[str, Any]()
        if ratio is not None:
            kind, detail = "fit_at_ratio", f"ratio {ratio:g}"
            # It does what a cell does.
            curve = {"curve_ratio": ratio, "version": VERSIONS["fit_downstream"]}
        for seed in self.config.seeds:
            needs, assessed = self.material(arm, network, self.config.draw_of(seed))
            inputs: dict[str, Any] = {
                "arm": arm,
                "network": network,
                "seed": seed,
                **self.training(network),
                **self.weights(network),
                # The counts of the other arms come with their images.
                **({"synthetic": self.synthetic()} if arm == "duplicate" else {}),
                **({} if arm in ("real", "augment") else self.used(ratio)),
                **curve,
            }
            gate = assessed if limited else None
            shown = {"network": network, "arm": arm, "seed": seed, "detail": detail, "gate": gate}
            self.add(kind, inputs, needs, **shown)
