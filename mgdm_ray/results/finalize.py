"""The end of a study: its records, MLflow and report brought up to date."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import DatasetConfig, StudyConfig
from mgdm_ray.pipeline.plan import Plan
from mgdm_ray.pipeline.trials import read_trials
from mgdm_ray.seeding import content_key
from mgdm_ray.storage.records import Record, write_records
from mgdm_ray.storage.store import Store

if TYPE_CHECKING:
    from mgdm_ray.data.checks import Finding
    from mgdm_ray.results.mlflow import Tracker

RECORDS_FILE, REPORT_FILE = "records.jsonl", "report.html"
CLOSED_FILE = "closed"
"""Holds the state of the study at its last complete end."""
COMPARE_FILE = "compare.txt"
"""Holds the page of MLflow that compares the arms."""
MANY = 500
"""Records from which writing them takes so long that it is said."""


@dataclass(frozen=True)
class Finalizer:
    """What the end of a study is made from."""

    config: StudyConfig
    read: tuple[DatasetConfig, ...]
    """The study's datasets with the files that jobs read."""
    plan: Plan
    store: Store
    fingerprints: dict[str, str]
    """Of the datasets' content, by name."""
    command: str
    started: str
    """When this invocation began, for people."""

    @property
    def folder(self) -> Path:
        return self.store.root / "studies" / self.config.name

    def connect_mlflow(self) -> Tracker:
        """A new connection to MLflow; takes seconds."""
        from mgdm_ray.results.mlflow import Tracker

        return Tracker(
            self.tracking_uri(),
            str(self.store.root / "mlflow-artifacts"),
            self.config.tracking.experiment,
            self.config.name,
            # A changed study gets a parent run of its own, so that old cells do not mix with new.
            content_key(["study", self.config.name, self.plan.key]),
            datasets={
                d.name: {
                    "digest": self.fingerprints[d.name][:36],
                    "source": d.path or d.name,
                    **d.model_dump(mode="json", exclude={"name", "path"}),
                }
                for d in self.config.datasets
            },
        )

    def artefact(self, record: Record) -> Path | None:
        # Of what is refused nothing is shown, although the store may hold it.
        if record.kind == "trial" or record.status == "refused":
            return None
        try:
            return self.store.here(record.kind, record.key)
        except FileNotFoundError:
            return None

    def with_trials(self, record: Record) -> list[Record]:
        """A search's record together with one record per trial."""
        if record.kind != "search" or record.status != "done":
            return [record]
        trials = read_trials(self.store.here("search", record.key))
        return [record, *(trial.record(record) for trial in trials)]

    def close(self, known: dict[str, Record], seconds: float, *, anew: bool = False) -> None:
        """Bring records.jsonl, MLflow and report up to date with ``known``.

        ``seconds`` is how long this invocation took so far. Nothing is written again where the
        records are what they were, unless ``anew``.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # In the plan's order: it is that of the arms in MLflow's comparison.
        ordered = [known[key] for key in self.plan.jobs if key in known]
        records = [row for record in ordered for row in self.with_trials(record)]
        write_records(self.folder / RECORDS_FILE, records)
        if self.is_closed() and not anew:
            return
        if len(records) > MANY:
            print(f"writing {len(records)} records to MLflow, and the report", flush=True)
        tracker = self.connect_mlflow()
        for record in records:
            tracker.log(record, self.artefact(record))
        self.report(records, seconds)
        page = tracker.finish(records, self.folder, self.headline())
        (self.folder / COMPARE_FILE).write_text(page or "", encoding="utf-8")
        if tracker.complete:  # else the next run tries again
            (self.folder / CLOSED_FILE).write_text(self.state(), encoding="utf-8")

    def headline(self) -> dict[str, float]:
        """The report's answer in numbers; none of a report of an older version."""
        from mgdm_ray.results.report import HEADLINE_FILE

        path = self.folder / HEADLINE_FILE
        numbers: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
        return numbers

    def state(self) -> str:
        """A hash of all that the report and MLflow are made from."""
        from mgdm_ray.provenance import git_commit, versions

        records = (self.folder / RECORDS_FILE).read_bytes()
        digest = hashlib.sha256(records).hexdigest()
        config = self.config.model_dump(mode="json")
        return content_key([digest, config, self.fingerprints, versions(), git_commit() or ""])

    def is_closed(self) -> bool:
        """Whether report and MLflow already say what the records say."""
        path = self.folder / CLOSED_FILE
        page = self.folder / REPORT_FILE
        return page.is_file() and path.is_file() and path.read_text() == self.state()

    def report(self, records: list[Record], seconds: float) -> Path:
        import yaml

        from mgdm_ray.data.checks import leaked
        from mgdm_ray.data.info import dataset_info
        from mgdm_ray.provenance import git_commit, versions
        from mgdm_ray.results.report import ReportContext, write_report

        findings, own = self.findings(), self.own_data()
        contrast = "does adding them beat adding copies of real images"
        context = ReportContext(
            study_name=self.config.name,
            question=f"Do synthetic images make these classifiers better, and {contrast}?",
            config_yaml=yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False),
            command=self.command,
            started=self.started,
            seconds=seconds,
            versions=versions(),
            git_commit=git_commit(),
            storage=self.store.location,
            mlflow_command=self.mlflow_command(),
            artefact=self.artefact,
            without_pictures=frozenset(d.name for d in self.config.datasets if not d.pictures),
            datasets=[dataset_info(d, self.config.data_dir) for d in self.read],
            findings={
                name: [finding.message for finding in found if finding.serious] + own[name]
                for name, found in findings.items()
            },
            origins={d.name: d.origin for d in self.config.datasets},
            leaked={name: leaked(found) for name, found in findings.items()},
            expected_cells=[
                (job.dataset, str(job.network), str(job.arm), int(job.seed or 0))
                for job in self.plan.cells()
            ],
            plan_counts=self.plan.counts(),
            ratio=None if self.config.synthetic.per_class else self.config.synthetic.ratio,
        )
        return write_report(self.folder, records, context)

    def findings(self) -> dict[str, list[Finding]]:
        """What there is to say of each dataset's splits. Opens test data: for the report only."""
        from mgdm_ray.data.checks import check_splits
        from mgdm_ray.data.load import SPLITS, Split, data_source

        found = {}
        for dataset in self.read:
            source = data_source(dataset, self.config.data_dir)
            splits, thumbnails = dict[str, Split](), dict[str, NDArray[np.uint8]]()
            for split in SPLITS:
                splits[split] = source.load(split)
                small = source.thumbnails(split)
                if small is not None:
                    thumbnails[split] = small
            found[dataset.name] = check_splits(splits, thumbnails)
        return found

    def own_data(self) -> dict[str, list[str]]:
        """What there is to say of own images by dataset: tiny classes, patients of the test."""
        from mgdm_ray.data.sources.prepare import patients_tested, tiny_classes
        from mgdm_ray.data.sources.source import own_listing

        listings = {d.name: own_listing(d, self.config.data_dir) for d in self.config.datasets}
        return {
            name: [*tiny_classes(found), *patients_tested(found)] if found else []
            for name, found in listings.items()
        }

    def mlflow_command(self) -> str:
        from mgdm_ray.results.mlflow import ui_command

        return ui_command(self.tracking_uri())

    def compare_address(self) -> str:
        """Of MLflow's page that compares the arms; empty where there is none."""
        from mgdm_ray.results.mlflow import ui_address

        path = self.folder / COMPARE_FILE
        page = path.read_text(encoding="utf-8") if path.is_file() else ""
        return ui_address(self.tracking_uri(), page) if page else ""

    def tracking_uri(self) -> str:
        return self.config.tracking.uri or f"sqlite:///{self.store.root}/mlflow.db"
