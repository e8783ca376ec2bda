"""MLflow as a mirror of the records: one parent run per study, one nested run per record.

The store is the truth; whatever is written here can be written again from it, at any time and
any number of times. So a run is identified by the tag ``mgdm.key`` (the record's content key)
and the tag ``mgdm.digest`` (a hash of the whole record): same digest, nothing to do; another
digest, the run is replaced. MLflow's failures are reported once and never stop a study.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from mgdm_ray.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    # mlflow takes two seconds to import: planning a study must not pay for it.
    from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

KEY, DIGEST, KIND = "mgdm.key", "mgdm.digest", "mgdm.kind"
PARENT = "mlflow.parentRunId"
SWEPT = ("guidance_scale", "classifier_scale", "uncertainty_scale", "measurement")
RUN_STATUS = {"done": "FINISHED", "failed": "FAILED", "pruned": "KILLED", "refused": "KILLED"}
IMAGES = ("grid.png", "real.png", "strengths.png", "closest.png", "entropy.png")
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # else the UI opens its GenAI view
    "mlflow.note.content": (
        "Cells: filter `tags.kind = 'fit_downstream' and tags.status = 'done'`, group by `arm` "
        "(and `dataset`). Search trials: `tags.kind = 'trial'`."
    ),
}
MAX_CURVE_POINTS = 500
MAX_FAILURES = 3


class Tracker:
    """Writes records to one MLflow experiment.

    ``uri`` is absolute (``sqlite:////abs/mlflow.db`` or a server); ``artifact_location`` is where
    a *new* experiment keeps its files (a folder or URL; None leaves it to a server).
    ``datasets`` gives facts per dataset name, logged as the inputs of its runs: ``digest``
    identifies the content, ``source`` says where it is, everything else becomes its profile.

    Not thread-safe, and only for the driver: many processes opening a fresh database fail.
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
        # An unreachable server must cost seconds, not the default seven retries with back-off.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        for noisy in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.uri = uri
        self.experiment = experiment
        self.datasets = dict(datasets or {})
        self.active = True
        self.failures = 0
        self._warned = False
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._parent_id = ""
        self._children: dict[str, Run] = {}
        with self._guard():
            self._start(artifact_location, study_name, study_key)
        if not self._parent_id:
            self.active = False  # without a parent run there is nothing to attach records to

    @property
    def client(self) -> MlflowClient:
        if self._client is None:
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(self.uri)
        return self._client

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """MLflow's own failures are reported once and end here; all others are bugs.

        After MAX_FAILURES in a row MLflow is left alone: each may have cost a time-out.
        """
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        # OSError: requests' failures too; ImportError: a database's driver that is not installed
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            self.failures += 1
            if not self._warned:
                self._warned = True
                logger.warning(
                    "MLflow at %s failed: %s. The study goes on; --report-only writes MLflow anew.",
                    self.uri,
                    (str(error).strip() or type(error).__name__).splitlines()[0],
                )
            if self.failures >= MAX_FAILURES:
                self.active = False
        else:
            self.failures = 0

    def _start(self, artifact_location: str | None, study_name: str, study_key: str) -> None:
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        found = self.client.get_experiment_by_name(self.experiment)
        self._experiment_id = (
            found.experiment_id
            if found
            else self.client.create_experiment(
                self.experiment, _as_url(artifact_location), EXPERIMENT_TAGS
            )
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
                self.client.set_terminated(child.info.run_id, "KILLED")
                child.data.tags[DIGEST] = ""
        self._parent_id = parent.info.run_id

    def _search(self, tags: Mapping[str, str]) -> list[Run]:
        """All runs of the experiment with these tags, newest first."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self._experiment_id], query, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def log(self, record: Record, artefact_folder: Path | None = None) -> None:
        """Mirror one record; costs nothing if it is there already.

        ``artefact_folder`` may hold ``history.json``, ``accuracy_over_t.json`` (curves) and
        the files of ``IMAGES``.
        """
        if self.active:
            with self._guard():
                self._log(record, artefact_folder)

    def _log(self, record: Record, artefact_folder: Path | None) -> None:
        digest = hashlib.sha256(record.to_json().encode()).hexdigest()[:16]
        existing = self._children.get(record.key)
        if existing is not None:
            if existing.data.tags.get(DIGEST) == digest:
                return
            # Params cannot change and curves would get each point twice: replace the run.
            self.client.delete_run(existing.info.run_id)
        end = int(time.time() * 1000)
        start = end - int(record.seconds * 1000)
        run = self.client.create_run(
            self._experiment_id,
            start_time=start,
            tags={
                PARENT: self._parent_id,
                KEY: record.key,
                KIND: record.kind,
                "mlflow.source.name": "mgdm_ray.study",
            },
            run_name=run_name(record),
        )
        self._children[record.key] = run
        run_id = run.info.run_id
        curves = _curves(artefact_folder) if artefact_folder else {}
        points = _metrics(record, curves, end)
        for first in range(0, len(points), 1000):  # the most MLflow takes in one call
            self.client.log_batch(run_id, metrics=points[first : first + 1000])
        self._log_files(run_id, record, artefact_folder, curves)
        inputs = _inputs(record, self.datasets)
        if inputs:
            self.client.log_inputs(run_id, datasets=inputs)
        # The digest comes last: a run without it was not finished and is written again.
        self.client.log_batch(run_id, params=_params(record), tags=_tags(record, digest))
        self.client.set_terminated(run_id, RUN_STATUS[record.status], end_time=end)
        run.data.tags[DIGEST] = digest

    def _log_files(
        self,
        run_id: str,
        record: Record,
        folder: Path | None,
        curves: Mapping[str, Sequence[tuple[int, float]]],
    ) -> None:
        paths = [folder / name for name in IMAGES] if folder else []
        for path in paths:
            if path.is_file():
                self.client.log_artifact(run_id, str(path), "images")
        # A cell's curve is in its metrics; a figure for each of hundreds of cells is too slow.
        for name, points in curves.items() if not record.is_cell else ():
            self.client.log_figure(
                run_id, _curve_figure(run_name(record), name, points), f"figures/{name}.png"
            )
        if record.setting:
            self.client.log_dict(run_id, record.setting, "setting.json")

    def interrupt(self) -> None:
        """Say that nobody works on the study any more; a later run takes it up again."""
        if self.active:
            with self._guard():
                self.client.set_terminated(self._parent_id, "KILLED")

    def finish(self, records: Sequence[Record], report: Path, config_text: str) -> None:
        """Close the parent run: report, its figures, resolved configuration, headline metrics."""
        if self.active:
            with self._guard():
                self._finish(records, report, config_text)

    def _finish(self, records: Sequence[Record], report: Path, config_text: str) -> None:
        self.client.log_text(self._parent_id, config_text, "study.resolved.yaml")
        if report.is_file():
            self.client.log_artifact(self._parent_id, str(report))
            for figure in sorted((report.parent / "figures").glob("*.png")):
                self.client.log_artifact(self._parent_id, str(figure), "figures")
        self.client.log_batch(self._parent_id, metrics=_headline(records, int(time.time() * 1000)))
        bad = any(r.status == "failed" and r.kind != "trial" for r in records)
        self.client.set_terminated(self._parent_id, "FAILED" if bad else "FINISHED")


class Mirror:
    """Logs records in a thread of its own, so that a slow MLflow never holds up the study.

    A context manager: leaving it waits until all is logged; leaving it with an exception drops
    what is waiting and says in MLflow that nobody works on the study any more, a later run takes
    it up again. ``connect`` makes the tracker; None logs nothing.
    """

    def __init__(self, connect: Callable[[], Tracker] | None) -> None:
        self._queue: queue.SimpleQueue[tuple[Record, Path | None] | None] = queue.SimpleQueue()
        self._connect = connect
        self._dropped = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def __enter__(self) -> Self:
        if self._connect:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._connect:
            return
        if kind is not None:
            self._dropped.set()
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def log(self, record: Record, artefact_folder: Path | None = None) -> None:
        """As ``Tracker.log``, later."""
        self._queue.put((record, artefact_folder))

    def _work(self) -> None:
        assert self._connect is not None
        try:
            first = self._queue.get()  # jobs run while the database is created
            if first is None:
                return
            tracker = self._connect()
            item: tuple[Record, Path | None] | None = first
            while item is not None and not self._dropped.is_set():
                tracker.log(*item)
                item = self._queue.get()
            if self._dropped.is_set():
                tracker.interrupt()
        except Exception as error:  # noqa: BLE001 - raised again where the study can see it
            self._error = error


def ui_command(uri: str) -> str:
    """What to type, or the address to open, to see the runs."""
    if uri.startswith(("http://", "https://")):
        return uri
    return f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1"


def run_name(record: Record) -> str:
    """``disturb breastmnist resnet18 s0`` for a cell, ``decode retinamnist disturb`` for a job."""
    seed = None if record.seed is None else f"s{record.seed}"
    if record.is_cell:
        parts = [record.arm, record.dataset, record.network, seed]
    else:
        parts = [record.kind, record.dataset, record.network, record.arm, seed]
        parts.append(record.key[:6] if record.kind == "trial" else None)
    return " ".join(part for part in parts if part)


def _as_url(location: str | None) -> str | None:
    if location is None or "://" in location:
        return location
    return Path(location).absolute().as_uri()


def _metrics(
    record: Record, curves: Mapping[str, Sequence[tuple[int, float]]], now: int
) -> list[Metric]:
    """Final scores at step 0, under the same names in every run, and curves step by step."""
    from mlflow.entities import Metric

    values = {**record.metrics, "seconds": record.seconds}
    metrics = [Metric(_metric_name(name), value, now, 0) for name, value in values.items()]
    for name, points in curves.items():
        metrics += [Metric(name, value, now, step) for step, value in points]
    return metrics


def _metric_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_. :/-]", "_", name)


def _params(record: Record) -> list[Param]:
    """What varies between runs, so that the UI's comparison starts with just these."""
    from mlflow.entities import Param

    values: dict[str, Any] = {
        "dataset": record.dataset,
        "network": record.network,
        "arm": record.arm,
        "seed": record.seed,
    }
    values |= {name: record.setting.get(name) for name in SWEPT}
    return [Param(name, str(value)) for name, value in values.items() if value is not None]


def _tags(record: Record, digest: str) -> list[RunTag]:
    from mlflow.entities import RunTag

    tags = {"status": record.status, "kind": record.kind, DIGEST: digest}
    if record.reason:
        tags["reason"] = record.reason[:4000]
    if record.split:
        tags["split"] = record.split
    if "gradient" in record.setting:
        tags["gradient"] = str(record.setting["gradient"])
    if record.git_commit:
        tags["mlflow.source.git.commit"] = record.git_commit
    if record.versions:
        tags["versions"] = json.dumps(record.versions, sort_keys=True)[:4000]
    return [RunTag(key, value) for key, value in tags.items()]


def _inputs(record: Record, datasets: Mapping[str, Mapping[str, object]]) -> list[DatasetInput]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if record.dataset is None:
        return []
    facts = dict(datasets.get(record.dataset, {}))
    digest = str(facts.pop("digest", "unknown"))[:36]
    source = str(facts.pop("source", record.dataset))
    dataset = Dataset(
        name=record.dataset,
        digest=digest,
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps(facts, default=str),
    )
    context = record.split or ("val" if record.kind in ("search", "trial") else "train")
    return [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """``loss`` over steps and ``guide_balanced_accuracy`` over t, thinned, finite points only."""
    curves = {}
    history = folder / "history.json"
    if history.is_file():
        rows = json.loads(history.read_text(encoding="utf-8"))
        curves["loss"] = [(int(row["step"]), float(row["loss"])) for row in rows]
    over_t = folder / "accuracy_over_t.json"
    if over_t.is_file():
        table = json.loads(over_t.read_text(encoding="utf-8"))
        pairs = zip(table["t"], table["balanced_accuracy"], strict=True)
        curves["guide_balanced_accuracy"] = [(int(t), float(value)) for t, value in pairs]
        if "ece" in table:
            pairs = zip(table["t"], table["ece"], strict=True)
            curves["guide_ece"] = [(int(t), float(value)) for t, value in pairs]
    out = {}
    for name, points in curves.items():
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        stride = math.ceil(len(finite) / MAX_CURVE_POINTS) or 1
        if finite:
            out[name] = sorted({*finite[::stride], finite[-1]})
    return out


def _curve_figure(title: str, name: str, points: Sequence[tuple[int, float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([x for x, _ in points], [y for _, y in points], color="#30638e", linewidth=1.2)
    axes.set(title=title, xlabel="step" if name == "loss" else "t", ylabel=name.replace("_", " "))
    axes.grid(alpha=0.3)
    return figure


def _headline(records: Sequence[Record], now: int) -> list[Metric]:
    """Means over all done cells per arm, and how many records came to which status."""
    from mlflow.entities import Metric

    scores: dict[str, list[float]] = {}
    counts = {"cells/done": 0, "records/failed": 0}
    for record in records:
        if record.status == "failed":
            counts["records/failed"] += 1
        if not record.is_cell or record.status != "done":
            continue
        counts["cells/done"] += 1
        for name in ("balanced_accuracy", "auroc"):
            if name in record.metrics:
                scores.setdefault(f"{name}/{record.arm}", []).append(record.metrics[name])
    values = {**{name: fmean(row) for name, row in scores.items()}, **counts}
    return [Metric(_metric_name(name), float(value), now, 0) for name, value in values.items()]
