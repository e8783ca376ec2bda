"""Labelled images from the models of a finished study, under any setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import GUIDED_ARMS, DatasetConfig, InputError, SampledArm
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import data_source
from mgdm_ray.data.mix import synthetic_labels
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.limits import refusal
from mgdm_ray.provenance import git_commit, versions
from mgdm_ray.results.export.finished import FinishedStudy, label_of, setting_values
from mgdm_ray.results.export.labelled_folder import SYNTHETIC, LabelledFolder, new_folder

Mix = Literal["study", "training", "balanced"]
OnProgress = Callable[[int, str, int, int], None]
"""Called after each batch with (images written, stage, images done in it, images of this part)."""
IMAGES_AT_A_TIME = 512
"""Held in memory between two writes; as in the study's jobs, so that batches are cut alike."""
ABOUT = "These images are synthetic and show no patients. They were made by a model trained on {}"
ABOUT_REAL = ABOUT.format("images of patients, and may resemble some of these.")
ABOUT_PHANTOMS = ABOUT.format("images drawn by code.")
RESEARCH_ONLY = " For research, not for diagnosis."


@dataclass(frozen=True)
class Request:
    """Which images to make, and how."""

    number: int
    arm: SampledArm = "disturb"
    first: int = 0
    """Index of the first image."""
    seed: int | None = None
    """None: the study's, which gives the study's own images of its first draw."""
    label: str | None = None
    """Name or number of the only class; None: ``mix``."""
    mix: Mix = "study"
    network: str | None = None
    """Whose setting, if each network had its own search."""
    changes: Sequence[str] = ()
    """``key=value``, applied to the study's setting."""
    device: str | None = None
    """None: a GPU if there is one."""
    batch: int | None = None
    """None: the study's."""


class MadeImages:
    """The images of a request. Raises InputError if the study lacks what they need."""

    def __init__(self, study: FinishedStudy, dataset: DatasetConfig, request: Request) -> None:
        self.study, self.dataset, self.request = study, dataset, request
        self.info = dataset_info(dataset, study.config.data_dir)
        self.chosen = study.choose(dataset.name, request.arm, request.network, request.changes)
        own = study.config.seed_of(study.config.first_draw)
        self.seed = own if request.seed is None else request.seed
        guided = request.arm in GUIDED_ARMS or self.chosen.sampling.classifier_scale != 0
        self.denoiser = self._model("denoiser")
        self.guide = self._model("guide") if guided else None
        self.labels = self._labels()
        """By index, from 0; the images begin at ``request.first``."""

    def _model(self, name: str) -> Job:
        job = self.study.model(f"fit_{name}", self.dataset.name)
        if job is None:
            arm, config = self.request.arm, self.study.config
            raise InputError(
                f"study {config.name} trains no {name} for {self.dataset.name}, which arm {arm} "
                f"needs with this setting: its arms are {', '.join(config.arms)}; add {arm} and "
                "run it"
            )
        return job

    def _labels(self) -> NDArray[np.int64]:
        stop = self.request.first + self.request.number
        if self.request.label is not None:
            label = label_of(self.request.label, self.info.classes)
            return np.full(stop, label, dtype=np.int64)
        return mixed_labels(self.study, self.dataset, self.request.mix, stop)

    def facts(self) -> dict[str, str]:
        """The metadata that all images share."""
        return {
            **SYNTHETIC,
            "generator": f"mgdm-ray {versions()['mgdm-ray']}",
            "study": self.study.config.name,
            "dataset": self.dataset.name,
            "arm": self.request.arm,
            "setting": json.dumps(setting_values(self.chosen), sort_keys=True),
            "denoiser": self.denoiser.key,
            "guide": self.guide.key if self.guide else "",
            "licence": self.info.licence,
            "citation": self.info.citation,
        }

    def manifest(self) -> dict[str, Any]:
        judged, refused = self.judged()
        about = ABOUT_PHANTOMS if self.dataset.phantom else ABOUT_REAL
        return {
            **self.facts(),
            "synthetic": True,
            "Comment": about + RESEARCH_ONLY,
            "versions": versions(),
            "git_commit": git_commit(),
            "size": self.dataset.size,
            "channels": self.info.channels,
            "setting": setting_values(self.chosen),
            "setting_is": self.chosen.origin,
            "sampling": self.chosen.sampling.model_dump(mode="json"),
            "reference": list(self.study.config.reference),
            "seed": self.seed,
            "first_index": self.request.first,
            "judged_images_of_the_study": judged,
            "refused_by_the_limits_of_the_study": refused,
        }

    def judged(self) -> tuple[dict[str, float] | None, str]:
        """The judge's metrics of the study's own images of this arm, and why its limits refuse
        them. None and "" if it has none, or one set of images per network."""
        jobs = self.study.jobs("assess", self.dataset.name, self.request.arm)
        if len(jobs) != 1 or not self.study.store.is_done("assess", jobs[0].key):
            return None, ""
        record = self.study.record(jobs[0])
        return record.metrics, refusal(record, self.study.config.limits)

    def write(self, target: Path, on_progress: OnProgress | None = None) -> None:
        """Make the images and write them to ``target``, a new or empty folder.

        Raises InputError if the guidance is too strong for the model.
        """
        import torch

        from mgdm_ray.data.load import to_uint8
        from mgdm_ray.diffusion.pipeline import NonFiniteSample, seed_parts
        from mgdm_ray.diffusion.published_faults import rank_duplicates

        arm, labels = self.request.arm, torch.from_numpy(self.labels)
        noise: Sequence[int] = range(len(labels))
        if "rank_seeds" in self.study.config.reference:
            noise = rank_duplicates(labels)
        with new_folder(target, "--out") as temporary:
            folder = LabelledFolder(temporary, self.info.classes, self.facts())

            def on_batch(stage: str, done: int, total: int) -> None:
                if on_progress:
                    on_progress(sum(folder.counts), stage, done, total)

            sampler = self._sampler(on_batch)
            size = sampler.batch_size * max(1, IMAGES_AT_A_TIME // sampler.batch_size)
            for start in range(self.request.first, len(labels), size):
                rows = range(start, min(start + size, len(labels)))
                part = slice(rows.start, rows.stop)
                try:
                    images = sampler.make(
                        arm, labels[part], rows, self.chosen.setting, noise_indices=noise[part]
                    )
                except NonFiniteSample as error:
                    raise InputError(
                        f"{error}: the guidance is too strong for this model; give smaller "
                        "scales, e.g. --set uncertainty_scale=0.1"
                    ) from None
                seeds = [seed_parts(arm, self.seed, index) for index in rows]
                folder.add(to_uint8(images), labels[part].tolist(), rows, seeds)
            folder.close(self.manifest())

    def _sampler(self, on_batch: Callable[[str, int, int], None]) -> Any:
        from mgdm_ray.diffusion.inference import Execution
        from mgdm_ray.diffusion.pipeline import Sampler
        from mgdm_ray.pipeline.tasks.base import Context
        from mgdm_ray.pipeline.tasks.models import load_denoiser, load_guide

        device = usable_device(self.request.device)
        context = Context(self.study.store.location, "", {}, device=device)
        config = self.chosen.sampling
        if self.request.batch is not None:
            config = config.model_copy(update={"batch_size": self.request.batch})
        return Sampler(
            load_denoiser(context, self.denoiser.key),
            load_guide(context, self.guide.key) if self.guide else None,
            config,
            Execution(device, compile="never"),
            seed=self.seed,
            faults=self.study.config.reference,
            on_batch=on_batch,
        )


def mixed_labels(
    study: FinishedStudy, dataset: DatasetConfig, mix: Mix, count: int
) -> NDArray[np.int64]:
    """Labels `[count]` by index, which do not depend on ``count``.

    ``study``: of the study's own images; ``training``: in the proportions of the training set;
    both repeat one evenly mixed sequence. ``balanced``: the classes in turn.
    """
    classes = dataset_info(dataset, study.config.data_dir).num_classes
    if mix == "balanced":
        return np.arange(count, dtype=np.int64) % classes
    real = data_source(dataset, study.config.data_dir).load("train").labels
    wanted = study.config.synthetic
    if mix == "training":
        own = synthetic_labels(real, classes, 1.0, "proportional")
    else:
        own = synthetic_labels(
            real, classes, wanted.largest, wanted.balance, per_class=wanted.per_class
        )
    return np.resize(own, count)


def usable_device(given: str | None) -> str:
    """``given`` if torch can use it, else InputError; None: a GPU if there is one."""
    import torch

    if given is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.device(given))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {given}: not available ({reason}); use cpu") from None
    return given
