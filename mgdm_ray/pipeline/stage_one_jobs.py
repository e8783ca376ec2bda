"""The jobs of a dataset that come before stage 2: its models, images and latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgdm_ray.config import DatasetConfig, ReferenceFault, StudyConfig, TrainConfig
from mgdm_ray.pipeline.job import VERSIONS, Job
from mgdm_ray.seeding import content_key

READ_BY_CONTENT = ("classes", "reading", "columns", "split", "licence", "citation")
"""Keys of a dataset that its fingerprint covers, or that change no number."""


class StageOneJobs:
    """Adds jobs to ``jobs`` and returns their keys; asking again for a job adds none.

    Options that a study does not use add nothing to the inputs, so that keys of earlier studies
    stay as they are.
    """

    def __init__(
        self,
        config: StudyConfig,
        dataset: DatasetConfig,
        fingerprints: Mapping[str, str],
        jobs: dict[str, Job],
    ) -> None:
        self.config, self.dataset, self.jobs = config, dataset.name, jobs
        self.fingerprints = fingerprints
        # The content counts, not where the file is or how it is read.
        unused = {"path", "pictures", *READ_BY_CONTENT} | (set() if dataset.source else {"source"})
        self.data = {
            **dataset.model_dump(mode="json", exclude=unused),
            "content": fingerprints[dataset.name],
        }

    def add(
        self,
        kind: str,
        inputs: dict[str, Any],
        needs: Mapping[str, str] | None = None,
        **shown: Any,
    ) -> str:
        """The key of a job; ``shown`` are fields of ``Job`` that are not part of it."""
        needs = dict(needs or {})
        inputs = {"dataset": self.data, **inputs}
        key = content_key({"kind": kind, "v": VERSIONS[kind], "in": inputs, "needs": needs})
        if key not in self.jobs:
            self.jobs[key] = Job(kind, key, inputs, needs, self.dataset, **shown)
        return key

    def faults(self, *concern: ReferenceFault) -> dict[str, Any]:
        """Those published faults of the study that ``concern`` a job."""
        found = sorted(set(concern) & set(self.config.reference))
        return {"reference": found} if found else {}

    def of_models(self, draw: int) -> int:
        """The draw of the models that make the images of ``draw``."""
        return draw if self.config.draws == "models" else 0

    def denoiser(self, draw: int) -> str:
        draw = self.of_models(draw)
        inputs = self.training_inputs(self.config.denoiser, draw)
        inputs |= self.faults("label_dropout")
        return self.add("fit_denoiser", inputs, seed=draw or None)

    def guide(self, draw: int) -> str:
        draw = self.of_models(draw)
        inputs = self.training_inputs(self.config.guide, draw) | self.faults("guide_timesteps")
        if "reference" in inputs:
            inputs["num_inference_steps"] = self.config.sampling.num_inference_steps
        return self.add("fit_guide", inputs, seed=draw or None)

    def training_inputs(self, train: TrainConfig, draw: int) -> dict[str, Any]:
        # Checkpoints resume exactly, and the recipe is resolved into the other fields.
        excluded = {"checkpoint_every", "recipe"}
        added = ("dropout", "ema_width", "augment", "mirror")
        excluded |= {name for name in added if not getattr(train, name, None)}
        return {
            "train": train.model_dump(mode="json", exclude=excluded),
            "schedule": self.config.denoiser.schedule,
            "seed": self.config.seed_of(draw),
        }

    def generate(self, guidance_scale: float, classifier_scale: float, draw: int) -> str:
        needs = {"denoiser": self.denoiser(draw)}
        if classifier_scale:
            needs["guide"] = self.guide(draw)
        sampling = self.config.sampling
        inputs = {
            "guidance_scale": guidance_scale,
            "classifier_scale": classifier_scale,
            "num_inference_steps": sampling.num_inference_steps,
            "solver": sampling.solver,
            "clip": sampling.clip,
            "precision": sampling.precision,
            **self.guided_levels(),
            "synthetic": self.synthetic(),
            "seed": self.config.seed_of(draw),
            **self.faults("label_dropout", "rank_seeds"),
        }
        detail = f"guidance {guidance_scale:g}"
        detail += f" classifier {classifier_scale:g}" if classifier_scale else ""
        return self.add("generate", inputs, needs, detail=detail, seed=draw or None)

    def encode(self, guidance_scale: float, classifier_scale: float, draw: int) -> str:
        needs = {
            "denoiser": self.denoiser(draw),
            "images": self.generate(guidance_scale, classifier_scale, draw),
        }
        inputs = {
            **self.grid(),
            "inversion_iterations": self.config.sampling.inversion_iterations,
            **self.faults("alignment", "label_dropout", "uint8"),
        }
        if "label_dropout" in inputs.get("reference", ()) or "encode" in inputs:
            inputs["seed"] = self.config.seed_of(draw)  # otherwise encode draws nothing
        detail = self.jobs[needs["images"]].detail
        return self.add("encode", inputs, needs, detail=detail, seed=draw or None)

    def grid(self) -> dict[str, Any]:
        """What encode and decode must share: noise levels, arithmetic, and clipping if it is on."""
        sampling = self.config.sampling
        shared = sampling.model_dump(include={"num_inference_steps", "strength", "precision"})
        if sampling.encode == "stored":
            stored = sampling.model_dump(include={"encode", "solver", "clip"})
            return {**shared, **stored, **self.guided_levels()}
        return {**shared, "clip_stage_two": True} if sampling.clip_stage_two else shared

    def guided_levels(self) -> dict[str, Any]:
        """Where classifier-free guidance acts, unless everywhere."""
        interval = list(self.config.sampling.guidance_interval)
        return {} if interval == [0, 999] else {"guidance_interval": interval}

    def synthetic(self) -> dict[str, Any]:
        """How many images are drawn: enough for the largest ratio."""
        synthetic = self.config.synthetic
        drawn = {"ratio": synthetic.largest, "balance": synthetic.balance}
        return drawn if synthetic.per_class is None else {**drawn, "per_class": synthetic.per_class}

    def training(self, *networks: str) -> dict[str, Any]:
        """How networks are trained; ``recipes`` where they are not trained alike."""
        found = {name: self.config.downstream.inputs(name) for name in networks}
        first = found[networks[0]]
        if all(one == first for one in found.values()):
            return {"downstream": first}
        own = {name: self.config.downstream.recipe(name) for name in networks}
        return {"downstream": first, "recipes": own}

    def weights(self, *networks: str) -> dict[str, Any]:
        """Fingerprints of the files these networks start from, if the study names a folder."""
        if self.config.downstream.pretrained in (None, "hub"):
            return {}
        return {"weights": {name: self.fingerprints[f"weights/{name}"] for name in networks}}
