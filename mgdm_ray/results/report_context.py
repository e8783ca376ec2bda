"""What the report needs besides the records: configuration, datasets and findings about them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import yaml

from mgdm_ray.data.checks import Finding, check_splits, leaked
from mgdm_ray.data.groups import groups_of_test
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import data_source
from mgdm_ray.data.npz import SPLITS
from mgdm_ray.data.published import published
from mgdm_ray.data.sources.prepare import patients_tested, tiny_classes
from mgdm_ray.data.sources.source import own_listing
from mgdm_ray.provenance import git_commit, versions
from mgdm_ray.results.mlflow import ui_command
from mgdm_ray.results.openings import of_datasets, read_openings
from mgdm_ray.results.report.builder import ReportContext

if TYPE_CHECKING:
    from mgdm_ray.config import DatasetConfig
    from mgdm_ray.results.finalize import Finalizer


def report_context(study: Finalizer, seconds: float) -> ReportContext:
    """``seconds``: duration of this invocation so far. Opens test data."""
    config, data_dir = study.config, study.config.data_dir
    findings = {dataset.name: _findings(dataset, data_dir) for dataset in study.read}
    groups = {dataset.name: groups_of_test(dataset, data_dir) for dataset in study.read}
    return ReportContext(
        study_name=config.name,
        config_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        command=study.command,
        started=study.started,
        seconds=seconds,
        versions=versions(),
        git_commit=git_commit(),
        storage=study.store.location,
        mlflow_command=ui_command(study.mlflow_uri),
        artefact=study.artefact,
        without_pictures=frozenset(d.name for d in config.datasets if not d.pictures),
        datasets=[asdict(dataset_info(d, data_dir)) for d in study.read],
        findings={
            d.name: [
                *(f.message for f in findings[d.name] if f.serious),
                *groups[d.name].problems(),
                *_own_data(d, data_dir),
            ]
            for d in config.datasets
        },
        origins={d.name: d.origin for d in config.datasets},
        leaked={name: leaked(found) for name, found in findings.items()},
        groups=groups,
        openings=of_datasets(read_openings(study.store), study.fingerprints.values()),
        expected_cells=[
            (job.dataset, str(job.network), str(job.arm), int(job.seed or 0))
            for job in study.plan.cells()
        ],
        plan_counts=study.plan.counts(),
        published=[row for d in config.datasets for row in published(d, config.downstream)],
        ratio=None if config.synthetic.per_class else config.synthetic.ratio,
        margin=config.margin,
        draws=config.draws,
        first_draw=config.first_draw,
    )


def _findings(dataset: DatasetConfig, data_dir: str | None) -> list[Finding]:
    """Problems of the splits, such as near-duplicates across them."""
    source = data_source(dataset, data_dir)
    splits = {str(split): source.load(split) for split in SPLITS}
    small = {split: source.thumbnails(split) for split in SPLITS}
    return check_splits(splits, {name: s for name, s in small.items() if s is not None})


def _own_data(dataset: DatasetConfig, data_dir: str | None) -> list[str]:
    """Problems of own images: tiny classes, several test images of one patient."""
    listing = own_listing(dataset, data_dir)
    return [*tiny_classes(listing), *patients_tested(listing)] if listing else []
