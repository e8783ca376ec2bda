"""The end of a study: bring its records, MLflow and report up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mgdm_ray.config import DatasetConfig, StudyConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan
from mgdm_ray.pipeline.trials import read_trials
from mgdm_ray.provenance import git_commit, versions
from mgdm_ray.results import ANSWER_FILE, HEADLINE_FILE, openings
from mgdm_ray.results.mlflow import Tracker, ui_address
from mgdm_ray.results.openings import Opening
from mgdm_ray.seeding import content_key
from mgdm_ray.storage.records import Record, write_records
from mgdm_ray.storage.store import Store

RECORDS_FILE, REPORT_FILE = "records.jsonl", "report.html"
CLOSED_FILE = "closed"
"""Holds the state of the study at its last complete end."""
COMPARE_FILE = "compare.txt"
"""Holds the page of MLflow that compares the arms."""
MANY = 500
"""Records from which writing them takes long enough to print a line."""


@dataclass(frozen=True)
class Finalizer:
    """A study and its results; ``close`` writes them."""

    config: StudyConfig
    read: tuple[DatasetConfig, ...]
    """The datasets with the files that jobs read."""
    plan: Plan
    store: Store
    fingerprints: dict[str, str]
    """Content of the datasets, by name."""
    command: str
    started: str
    """When this invocation began, for people."""

    @property
    def folder(self) -> Path:
        return self.store.root / "studies" / self.config.name

    @property
    def mlflow_uri(self) -> str:
        return self.config.tracking.uri or f"sqlite:///{self.store.root}/mlflow.db"

    def connect_mlflow(self) -> Tracker:
        """A new connection to MLflow; takes seconds."""
        return Tracker(
            self.mlflow_uri,
            str(self.store.root / "mlflow-artifacts"),
            self.config.tracking.experiment,
            self.config.name,
            # A changed study gets its own parent run, so that old and new cells do not mix.
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
        """The folder of a record's artefact; None for trials, and for refused jobs, whose
        artefacts must not be shown."""
        if record.kind == "trial" or record.status == "refused":
            return None
        try:
            return self.store.here(record.kind, record.key)
        except FileNotFoundError:
            return None

    def with_trials(self, record: Record) -> list[Record]:
        """A search's record followed by one record per trial; any other record alone."""
        if record.kind != "search" or record.status != "done":
            return [record]
        trials = read_trials(self.store.here("search", record.key))
        return [record, *(trial.record(record) for trial in trials)]

    def opens_test(self, jobs: Iterable[Job] = ()) -> None:
        """Record that the test split is opened: by ``jobs`` that begin, else by a report."""
        opening = Opening.of(self.config, self.plan, self.fingerprints, jobs)
        openings.record(self.store, opening)

    def close(self, known: dict[str, Record], seconds: float, *, anew: bool = False) -> None:
        """Bring records.jsonl, MLflow and report up to date with ``known``.

        ``seconds``: duration of this invocation so far. MLflow and report are written only if the
        records have changed, or if ``anew``.
        """
        from mgdm_ray.results.report import write_report
        from mgdm_ray.results.report_context import report_context

        self.folder.mkdir(parents=True, exist_ok=True)
        # In the order of the plan: MLflow compares the arms in the order of their records.
        ordered = [known[key] for key in self.plan.jobs if key in known]
        records = [row for record in ordered for row in self.with_trials(record)]
        write_records(self.folder / RECORDS_FILE, records)
        if self.is_closed() and not anew:
            return
        if len(records) > MANY:
            print(f"writing {len(records)} records to MLflow, and the report", flush=True)
        if any(record.is_cell and record.status == "done" for record in records):
            self.opens_test()
        tracker = self.connect_mlflow()
        for record in records:
            tracker.log(record, self.artefact(record))
        write_report(self.folder, records, report_context(self, seconds))
        page = tracker.finish(records, self.folder, self.headline())
        (self.folder / COMPARE_FILE).write_text(page or "", encoding="utf-8")
        if tracker.complete:  # otherwise the next run tries again
            (self.folder / CLOSED_FILE).write_text(self.state(), encoding="utf-8")

    def _text(self, name: str) -> str:
        """A file of the study's folder; empty if there is none, as from an older version."""
        path = self.folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def headline(self) -> dict[str, float]:
        """The report's answer in numbers."""
        numbers: dict[str, float] = json.loads(self._text(HEADLINE_FILE) or "{}")
        return numbers

    def answer(self) -> str:
        """The report's first sentence."""
        return self._text(ANSWER_FILE)

    def state(self) -> str:
        """A hash of everything that report and MLflow are made from."""
        records = (self.folder / RECORDS_FILE).read_bytes()
        digest = hashlib.sha256(records).hexdigest()
        config = self.config.model_dump(mode="json")
        return content_key([digest, config, self.fingerprints, versions(), git_commit() or ""])

    def is_closed(self) -> bool:
        """Whether report and MLflow are up to date with the records."""
        return (self.folder / REPORT_FILE).is_file() and self._text(CLOSED_FILE) == self.state()

    def compare_address(self) -> str:
        """The address of MLflow's page that compares the arms; empty if there is none."""
        page = self._text(COMPARE_FILE)
        return ui_address(self.mlflow_uri, page) if page else ""
