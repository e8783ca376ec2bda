"""Write rows to MLflow runs, and find them and their pages again.

The tag ``mgdm.key`` (a record's content key) identifies a run. If its tag ``mgdm.digest`` (a hash
of its content) has changed, the run is replaced. MLflow's failures are reported once and never
stop a study.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mgdm_ray.results.mlflow.rows import (
    ARM,
    Row,
    arm_rows,
    curve_figure,
    headline,
    metric_name,
    record_digest,
    record_row,
)
from mgdm_ray.storage.records import Record

if TYPE_CHECKING:
    # mlflow takes two seconds to import: planning a study must not pay for it.
    from mlflow.entities import Metric, Param, Run, RunTag
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

KEY, DIGEST, KIND = "mgdm.key", "mgdm.digest", "mgdm.kind"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
COMPARE = "mgdm.compare"
"""Tag of the parent run: the page that compares the arms."""
NOTE_BEGINS = "[Compare the arms]("
"""Any other description is the user's."""
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # else the UI opens its GenAI view
    NOTE: (
        "A study is a run whose description links to the comparison of its arms. Filters of the "
        "nested runs: means per arm `tags.kind = 'arm'`; cells `tags.kind = 'fit_downstream' and "
        "tags.status = 'done'`, group by `arm` (and `dataset`); cells at other ratios "
        "`tags.kind = 'fit_at_ratio'`; search trials `tags.kind = 'trial'`; assessments of "
        "synthetic images `tags.kind = 'assess'`."
    ),
}
UI_DEFAULT = "http://127.0.0.1:5000"
"""Default address of ``mlflow ui``."""
TRAINING = "workflowType=machine_learning"
"""Without it MLflow 3 shows its pages for language models."""
MAX_FAILURES = 3
BATCH = 800
"""Metrics in one call; MLflow allows 1000 metrics, params and tags together."""


class Tracker:
    """Writes records to one MLflow experiment.

    ``uri``: absolute (``sqlite:////abs/mlflow.db``) or a server. ``artifact_location``: folder or
    URL for the files of a *new* experiment; None leaves it to a server. ``datasets``: facts per
    dataset name, logged as inputs of its runs (``digest``, ``source``; the rest is the profile).

    Not thread-safe, and for the driver only: processes that open a new database together fail.
    """

    def __init__(
        self,
        uri: str,
        artifact_location: str | None,
        experiment: str,
        study_name: str,
        study_key: str,
        datasets: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # An unreachable server should cost seconds, not seven retries with back-off.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        for noisy in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.uri = uri
        self.experiment = experiment
        self.datasets = dict(datasets or {})
        self.active = True
        self.failures = 0
        self.client: MlflowClient
        self._warned = False
        self._experiment_id = ""
        self._parent_id = ""
        self._study_key = study_key
        self._children: dict[str, Run] = {}
        with self._guard():
            self._start(artifact_location, study_name, study_key)
        if not self._parent_id:
            self.active = False  # records need a parent run

    @property
    def complete(self) -> bool:
        """Whether MLflow accepted everything."""
        return self.active and not self._warned

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Report MLflow's own failures once and suppress them; all others are bugs.

        MAX_FAILURES in a row, each perhaps a time-out, switch logging off.
        """
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        # OSError includes failures of requests; ImportError: a database driver is missing
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            self.failures += 1
            if not self._warned:
                self._warned = True
                logger.warning(
                    "MLflow at %s failed: %s. The study continues; --report-only updates MLflow.",
                    self.uri,
                    (str(error).strip() or type(error).__name__).splitlines()[0],
                )
            if self.failures >= MAX_FAILURES:
                self.active = False
        else:
            self.failures = 0

    def _start(self, artifact_location: str | None, study_name: str, study_key: str) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(self.uri)
        path = Path(self.uri.removeprefix("sqlite:///"))
        new = self.uri.startswith("sqlite:///") and not path.exists()
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
        found = self.client.get_experiment_by_name(self.experiment)
        if new:
            _write_ahead(path)
        if found:
            self._experiment_id = found.experiment_id
        else:
            location = _as_url(artifact_location)
            self._experiment_id = self.client.create_experiment(
                self.experiment, location, EXPERIMENT_TAGS
            )
        parents = self._search({KEY: study_key, KIND: "study"})
        if parents:
            parent = parents[0]
            self.client.update_run(parent.info.run_id, status="RUNNING")
        else:
            tags = {KEY: study_key, KIND: "study", "study": study_name}
            parent = self.client.create_run(self._experiment_id, tags=tags, run_name=study_name)
        for child in self._search({PARENT: parent.info.run_id}):
            self._children[child.data.tags.get(KEY, "")] = child
            if child.info.status == "RUNNING":  # its driver was killed while logging it
                self.client.set_tag(child.info.run_id, DIGEST, "")
                self.client.set_terminated(child.info.run_id, "KILLED")
                child.data.tags[DIGEST] = ""
        self._parent_id = parent.info.run_id

    def _search(self, tags: Mapping[str, str]) -> list[Run]:
        """All runs of the experiment with these tags, newest first."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs: list[Run] = []
        page, token = None, None
        while page is None or token:
            page = self.client.search_runs([self._experiment_id], query, page_token=token)
            runs, token = [*runs, *page], page.token
        return runs

    def log(self, record: Record, artefact_folder: Path | None = None) -> None:
        """Log one record, unless its run is up to date.

        ``artefact_folder`` may contain ``history.json``, ``accuracy_over_t.json`` (curves) and the
        images named in ``rows.IMAGES``.
        """
        if self.active:
            with self._guard():
                if not self._has(record.key, record_digest(record, self.datasets)):
                    self._write(record_row(record, artefact_folder, self.datasets))

    def _has(self, key: str, content: str) -> bool:
        run = self._children.get(key)
        return run is not None and run.data.tags.get(DIGEST) == content

    def _write(self, row: Row) -> None:
        existing = self._children.get(row.key)
        if existing is not None:
            # Params cannot change, and curves would get each point twice.
            self.client.delete_run(existing.info.run_id)
        end = int(time.time() * 1000)
        run = self.client.create_run(
            self._experiment_id,
            start_time=end - int(row.seconds * 1000),
            tags={
                PARENT: self._parent_id,
                KEY: row.key,
                KIND: row.kind,
                "mlflow.source.name": "mgdm_ray.study",
            },
            run_name=row.name,
        )
        self._children[row.key] = run
        run_id = run.info.run_id
        self._log_files(run_id, row)
        self._log_input(run_id, row)
        self._log_values(run_id, row, end)
        # Until then the run counts as unfinished and would be written again.
        self.client.set_terminated(run_id, row.status, end_time=end)
        run.data.tags[DIGEST] = row.digest

    def _log_files(self, run_id: str, row: Row) -> None:
        for path in row.images:
            self.client.log_artifact(run_id, str(path), "images")
        for name, points in row.curves.items() if row.pictured else ():
            figure = curve_figure(row.name, name, points)
            self.client.log_figure(run_id, figure, f"figures/{name}.png")
        if row.setting:
            self.client.log_dict(run_id, dict(row.setting), "setting.json")

    def _log_input(self, run_id: str, row: Row) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if row.input:
            tags = [InputTag("mlflow.data.context", row.input[1])]
            given = DatasetInput(Dataset(**row.input[0]), tags)
            self.client.log_inputs(run_id, datasets=[given])

    def _log_values(self, run_id: str, row: Row, now: int) -> None:
        """Log everything in as few calls as possible: each waits for the disk."""
        from mlflow.entities import Metric, Param, RunTag

        points = _metrics(row.metrics, now)
        for name, curve in row.curves.items():
            points += [Metric(name, value, now, step) for step, value in curve]
        params = [Param(name, value) for name, value in row.params.items()]
        tags = [RunTag(name, value) for name, value in {**row.tags, DIGEST: row.digest}.items()]
        self._log_batches(run_id, points, params, tags)

    def _log_batches(
        self,
        run_id: str,
        points: Sequence[Metric],
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
    ) -> None:
        while len(points) > BATCH:
            self.client.log_batch(run_id, metrics=points[:BATCH])
            points = points[BATCH:]
        self.client.log_batch(run_id, points, params, tags)

    def interrupt(self) -> None:
        """Mark the study's run as stopped; a later invocation resumes it."""
        if self.active:
            with self._guard():
                self.client.set_terminated(self._parent_id, "KILLED")

    def finish(
        self, records: Sequence[Record], folder: Path, results: Mapping[str, float]
    ) -> str | None:
        """Close the parent run; return the page that compares the arms, or None.

        ``folder``: the study's; its records, resolved configuration, report, figures and tables
        become artifacts. ``results``: metrics of the parent, beside the means of its cells.
        """
        if self.active:
            with self._guard():
                for name in ("report.html", "records.jsonl", "study.resolved.yaml"):
                    if (folder / name).is_file():
                        self.client.log_artifact(self._parent_id, str(folder / name))
                for name in ("figures", "tables"):
                    if (folder / name).is_dir():
                        self.client.log_artifacts(self._parent_id, str(folder / name), name)
                arms = arm_rows(self._study_key, records)
                values = {**headline(arms, records), **results}
                self._log_batches(self._parent_id, _metrics(values, int(time.time() * 1000)))
                page = self._compare(arms)
                bad = any(r.status == "failed" and r.kind != "trial" for r in records)
                self.client.set_terminated(self._parent_id, "FAILED" if bad else "FINISHED")
                return page
        return None  # also after a suppressed failure

    def _compare(self, rows: Sequence[Row]) -> str | None:
        """A run per arm, and the link to their comparison in the parent's description."""
        for row in rows:
            if not self._has(row.key, row.digest):
                self._write(row)
        kept = {row.key for row in rows}
        for key, run in list(self._children.items()):
            if run.data.tags.get(KIND) == ARM and key not in kept:
                self.client.delete_run(run.info.run_id)
                del self._children[key]
        if not rows:
            return None
        ids = [self._children[row.key].info.run_id for row in rows]
        page = compare_page(self._experiment_id, ids)
        self.client.set_tag(self._parent_id, COMPARE, page)
        note = self.client.get_run(self._parent_id).data.tags.get(NOTE, "")
        if not note or note.startswith(NOTE_BEGINS):
            text = f"{NOTE_BEGINS}{page}): means over the cells of each arm. "
            text += "Contrasts with intervals: the metrics `contrast/...`, and report.html."
            self.client.set_tag(self._parent_id, NOTE, text)
        return page


def _write_ahead(path: Path) -> None:
    """Switch the database to write-ahead logging, for good: writes wait for the disk once instead
    of three times, and an open ``mlflow ui`` does not block the study."""
    with (
        contextlib.suppress(sqlite3.Error),  # without it, writing is only slower
        contextlib.closing(sqlite3.connect(path)) as connection,
    ):
        connection.execute("PRAGMA journal_mode=WAL")


def _as_url(location: str | None) -> str | None:
    if location is None or "://" in location:
        return location
    return Path(location).absolute().as_uri()


def _metrics(values: Mapping[str, float], now: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(metric_name(name), value, now, 0) for name, value in values.items()]


def ui_command(uri: str) -> str:
    """The command, or the address of a server, that shows the runs."""
    if _is_server(uri):
        return uri
    return f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1"


def ui_address(uri: str, page: str) -> str:
    """The full address of a page from ``compare_page``."""
    return f"{uri.rstrip('/') if _is_server(uri) else UI_DEFAULT}/{page}"


def compare_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that compares runs in this order, relative to the address of any server."""
    runs, experiments = (
        quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(run_ids), [experiment_id])
    )
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING}"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))
