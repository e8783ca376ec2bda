"""Export a study's models: weights, ``config.json`` and a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from mgdm_ray.config import DatasetConfig, InputError
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import load_split
from mgdm_ray.pipeline.tasks.base import WEIGHTS
from mgdm_ray.provenance import git_commit, versions
from mgdm_ray.results.export.finished import FinishedStudy
from mgdm_ray.results.export.model_card import Measured, model_card
from mgdm_ray.results.export.models_file import (
    CARD_FILE,
    CONFIG_FILE,
    DENOISER_FILE,
    GUIDE_FILE,
    DenoiserFile,
    GuideFile,
    ModelsFile,
    TrainingData,
)
from mgdm_ray.storage.store import sha256_of


def export(
    study: FinishedStudy, dataset: DatasetConfig, folder: Path, network: str | None = None
) -> None:
    """Write the models of ``dataset`` into ``folder``, which exists and is empty.

    Raises InputError if a job that is needed is not finished.
    """
    weights = {
        kind: _weights(study, kind, dataset.name, folder / name)
        for kind, name in (("fit_denoiser", DENOISER_FILE), ("fit_guide", GUIDE_FILE))
    }
    denoiser, guide = weights["fit_denoiser"], weights["fit_guide"]
    config = study.config
    if denoiser is None:
        raise InputError(
            f"study {config.name} trains no diffusion model for {dataset.name}: its arms are "
            f"{', '.join(config.arms)}; add generate or disturb and run it"
        )
    info = dataset_info(dataset, config.data_dir)
    chosen = study.choose(dataset.name, "disturb" if guide else "generate", network)
    models = ModelsFile(
        written_by={**versions(), "git_commit": git_commit()},
        study=config.name,
        data=_training_data(study, dataset),
        classes=info.classes,
        image_size=dataset.size,
        channels=info.channels,
        denoiser=DenoiserFile(**denoiser, config=config.denoiser),
        guide=GuideFile(**guide, config=config.guide) if guide else None,
        sampling=chosen.sampling,
        setting=chosen.setting,
        seed=config.seed,
        reference=config.reference,
    )
    (folder / CONFIG_FILE).write_text(models.model_dump_json(indent=1) + "\n", encoding="utf-8")
    card = model_card(models, Measured.of(study, models))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _training_data(study: FinishedStudy, dataset: DatasetConfig) -> TrainingData:
    info = dataset_info(dataset, study.config.data_dir)
    labels = load_split(dataset, "train", study.config.data_dir).labels
    return TrainingData(
        name=dataset.name,
        source=dataset.origin,
        task=info.task,
        licence=info.licence,
        citation=info.citation,
        images_per_class=tuple(np.bincount(labels, minlength=info.num_classes).tolist()),
        pictures=dataset.pictures,
    )


def _weights(study: FinishedStudy, kind: str, dataset: str, path: Path) -> dict[str, Any] | None:
    """Copy the weights to ``path`` and describe them; None if the study trains no such model."""
    job = study.model(kind, dataset)
    if job is None:
        return None
    shutil.copyfile(study.store.folder(job.kind, job.key) / WEIGHTS, path)
    with safe_open(path, framework="np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no mapping
    parameters = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)
    return {"sha256": sha256_of(path), "key": job.key, "parameters": parameters}
