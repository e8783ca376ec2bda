"""Export a study's models: weights, ``config.json`` and a model card (README.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from mgdm_ray.config import SAMPLED_ARMS, DatasetConfig, InputError
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import data_source
from mgdm_ray.pipeline.tasks.base import WEIGHTS
from mgdm_ray.provenance import git_commit, versions
from mgdm_ray.results.export.finished import FinishedStudy, setting_values
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
from mgdm_ray.templates import templates


def export(
    study: FinishedStudy, dataset: DatasetConfig, folder: Path, network: str | None = None
) -> None:
    """Write the models of ``dataset`` into ``folder``, which exists and is empty.

    Raises InputError if a job that is needed is not finished.
    """
    config = study.config
    denoiser = _weights(study, "fit_denoiser", dataset.name, folder / DENOISER_FILE)
    guide = _weights(study, "fit_guide", dataset.name, folder / GUIDE_FILE)
    if denoiser is None:
        raise InputError(
            f"study {config.name} trains no diffusion model for {dataset.name}: its arms are "
            f"{', '.join(config.arms)}; add generate or disturb and run it"
        )
    info = dataset_info(dataset, config.data_dir)
    labels = data_source(dataset, config.data_dir).load("train").labels
    chosen = study.choose(dataset.name, "disturb" if guide else "generate", network)
    models = ModelsFile(
        written_by={**versions(), "git_commit": git_commit()},
        study=config.name,
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
        denoiser=DenoiserFile(**denoiser, config=config.denoiser),
        guide=GuideFile(**guide, config=config.guide) if guide else None,
        sampling=chosen.sampling,
        setting=chosen.setting,
        seed=config.seed_of(config.first_draw),
        reference=config.reference,
    )
    (folder / CONFIG_FILE).write_text(models.model_dump_json(indent=1) + "\n", encoding="utf-8")
    card = model_card(models, Measured.of(study, models))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


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


@dataclass(frozen=True)
class Measured:
    """The study's measurements of its models; empty if there are none."""

    curve: Mapping[str, Any] | None = None
    """``accuracy_over_t.json`` of the guide."""
    scores: Sequence[float] = ()
    """Validation scores of the searches that chose the setting."""
    judged: Sequence[tuple[str, Mapping[str, float]]] = ()
    """Arm (and network), metrics of its ``assess`` record."""

    @staticmethod
    def of(study: FinishedStudy, models: ModelsFile) -> Measured:
        curve = None
        if models.guide:
            path = study.store.folder("fit_guide", models.guide.key) / "accuracy_over_t.json"
            curve = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        setting = setting_values(models)
        scores = [
            record.metrics["best_score"]
            for record in study.records("search", models.data.name)
            if all(record.setting.get(name) == value for name, value in setting.items())
        ]
        judged = [
            (", ".join(filter(None, (record.arm, record.network))), record.metrics)
            for record in study.records("assess", models.data.name)
            if record.arm in SAMPLED_ARMS
        ]
        return Measured(curve, scores, judged)


def model_card(models: ModelsFile, measured: Measured) -> str:
    """The card as Markdown. All values are escaped unless marked ``raw``: names and citations
    come from files."""
    environment = templates(__file__, finalize=_escaped, keep_trailing_newline=True)
    environment.filters["raw"] = _Raw
    return environment.get_template("model_card.md.j2").render(
        models=models,
        measured=measured,
        setting=setting_values(models) if models.setting else None,
        files={"config": CONFIG_FILE, "denoiser": DENOISER_FILE, "guide": GUIDE_FILE},
    )


class _Raw(str):
    """Text that is Markdown already."""


def _escaped(value: Any) -> Any:
    """Text as one line of Markdown that contains no markup or HTML."""
    if isinstance(value, _Raw) or not isinstance(value, str):
        return value
    return "".join(f"\\{c}" if c in "\\`*_|[]<>#" else c for c in " ".join(value.split()))
