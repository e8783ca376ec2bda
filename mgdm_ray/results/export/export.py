"""A study's models as a folder to take away: weights, ``config.json`` and a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from mgdm_ray.config import DatasetConfig, InputError
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import load_split
from mgdm_ray.pipeline.plan import Job
from mgdm_ray.pipeline.tasks.base import WEIGHTS
from mgdm_ray.provenance import git_commit, versions
from mgdm_ray.results.export.finished import FinishedStudy
from mgdm_ray.results.export.model_card import model_card
from mgdm_ray.results.export.models_file import (
    CARD_FILE,
    CONFIG_FILE,
    DENOISER_FILE,
    GUIDE_FILE,
    DenoiserFile,
    GuideFile,
    ModelsFile,
    TrainingData,
    sha256_of,
)


def export(
    study: FinishedStudy, dataset: DatasetConfig, folder: Path, network: str | None = None
) -> ModelsFile:
    """Write the models of ``dataset`` into ``folder``, which is there and empty.

    Raises InputError where a job that is needed is not finished.
    """
    denoiser, guide = (study.model(kind, dataset.name) for kind in ("fit_denoiser", "fit_guide"))
    if denoiser is None:
        raise InputError(
            f"study {study.config.name} trains no diffusion model for {dataset.name}: its arms are "
            f"{', '.join(study.config.arms)}; add generate or disturb and run it"
        )
    info = dataset_info(dataset, study.config.data_dir)
    chosen = study.choose(dataset.name, "disturb" if guide else "generate", network)
    for job, name in ((denoiser, DENOISER_FILE), (guide, GUIDE_FILE)):
        if job:
            shutil.copyfile(study.store.folder(job.kind, job.key) / WEIGHTS, folder / name)
    labels = load_split(dataset, "train", study.config.data_dir).labels
    models = ModelsFile(
        written_by={**versions(), "git_commit": git_commit()},
        study=study.config.name,
        data=TrainingData(
            name=dataset.name,
            source=dataset.origin,
            task=info.task,
            licence=info.licence,
            citation=info.citation,
            images_per_class=tuple(np.bincount(labels, minlength=info.num_classes).tolist()),
            pictures=dataset.pictures,
        ),
        classes=info.classes,
        image_size=dataset.size,
        channels=info.channels,
        denoiser=DenoiserFile(
            **_weights(denoiser, folder / DENOISER_FILE), config=study.config.denoiser
        ),
        guide=GuideFile(**_weights(guide, folder / GUIDE_FILE), config=study.config.guide)
        if guide
        else None,
        sampling=chosen.sampling,
        setting=chosen.setting,
        seed=study.config.seed,
        reference=study.config.reference,
    )
    (folder / CONFIG_FILE).write_text(models.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(model_card(study, models), encoding="utf-8")
    return models


def _weights(job: Job, path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "key": job.key, "parameters": _parameters(path)}


def _parameters(path: Path) -> int:
    with safe_open(path, framework="np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no mapping
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)
