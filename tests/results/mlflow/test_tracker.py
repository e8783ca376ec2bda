"""MLflow holds what the records hold: against a real MLflow on sqlite."""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient

from mgdm_ray.results.mlflow import Tracker
from mgdm_ray.results.mlflow.rows import run_name
from mgdm_ray.results.mlflow.tracker import ui_address, ui_command
from mgdm_ray.storage.records import Record
from tests.study_example import ARMS, Example, make_example

FACTS = {"phantom-fundus": {"digest": "ab12", "source": "phantom:v1", "classes": 5}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose database exists: creating it takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    open_tracker(folder, "warm-up")
    return folder


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return make_example(tmp_path_factory.mktemp("artefacts"), trials=2)


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def open_tracker(folder: Path, key: str) -> Tracker:
    return Tracker(uri(folder), str(folder / "artifacts"), "tests", f"study {key}", key, FACTS)


def log_all(tracker: Tracker, records: list[Record], example: Example) -> None:
    for record in records:
        tracker.log(record, example.artefact(record))


def children(folder: Path, key: str) -> dict[str, Run]:
    """Nested runs of a study by record key; fails if a key occurs twice."""
    client = MlflowClient(uri(folder))
    experiment = client.get_experiment_by_name("tests").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`mgdm.key` = '{key}'")
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    keys = [run.data.tags["mgdm.key"] for run in runs]
    assert len(keys) == len(set(keys))
    return dict(zip(keys, runs, strict=True))


def parent_of(folder: Path, key: str) -> Run:
    client = MlflowClient(uri(folder))
    experiment = client.get_experiment_by_name("tests").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`mgdm.key` = '{key}'")
    return parent


def of_kind(example: Example, kind: str, **wanted: object) -> Record:
    return next(
        r for r in example.records
        if r.kind == kind and all(getattr(r, k) == v for k, v in wanted.items())
    )  # fmt: skip


def mean(example: Example, arm: str, dataset: str | None = None) -> float:
    """Balanced accuracy over the done cells of an arm, of one dataset or of all."""
    cells = [r for r in example.records if r.is_cell and r.status == "done" and r.arm == arm]
    scores = [r.metrics["balanced_accuracy"] for r in cells if dataset in (None, r.dataset)]
    return sum(scores) / len(scores)


def artifacts(folder: Path, run: Run, path: str | None = None) -> set[str]:
    return {f.path for f in MlflowClient(uri(folder)).list_artifacts(run.info.run_id, path)}


def test_cell_is_mirrored_whole(store: Path, example: Example) -> None:
    """Catches scores under other names, knobs that are no numbers, a lost curve or dataset."""
    record = of_kind(example, "fit_downstream", arm="disturb", dataset="phantom-ultrasound")
    tracker = open_tracker(store, "cell")
    tracker.log(record, example.artefact(record))
    run = children(store, "cell")[record.key]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"disturb phantom-ultrasound {record.network} s{record.seed}"
    for name, value in record.metrics.items():
        assert run.data.metrics[name] == value
    assert run.data.params == {
        "dataset": "phantom-ultrasound",
        "network": record.network,
        "arm": "disturb",
        "seed": str(record.seed),
        "guidance_scale": "1.5",
        "classifier_scale": "0.0",
        "uncertainty_scale": "0.12",
        "measurement": "entropy",
    }
    assert run.data.tags["kind"] == "fit_downstream"
    assert run.data.tags["status"] == "done"
    loss = MlflowClient(uri(store)).get_metric_history(run.info.run_id, "loss")
    history = json.loads((example.artefact(record) / "history.json").read_text())  # type: ignore[operator]
    assert {(m.step, m.value) for m in loss} == {(r["step"], r["loss"]) for r in history}
    assert run.info.end_time - run.info.start_time == pytest.approx(9000, abs=2)
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.name == "phantom-ultrasound"
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "test"}


def test_jobs_bring_images_curves_and_dataset(store: Path, example: Example) -> None:
    """Catches grids and curves that never reach the UI."""
    tracker = open_tracker(store, "jobs")
    for kind in ("fit_denoiser", "fit_guide", "generate", "search"):
        record = of_kind(example, kind, dataset="phantom-fundus")
        tracker.log(record, example.artefact(record))
    runs = {run.data.tags["kind"]: run for run in children(store, "jobs").values()}
    assert artifacts(store, runs["fit_denoiser"], "images") == {"images/real.png"}
    assert artifacts(store, runs["generate"], "images") == {"images/grid.png"}
    assert artifacts(store, runs["fit_guide"], "figures") == {
        "figures/loss.png",
        "figures/guide_balanced_accuracy.png",
        "figures/guide_ece.png",
    }
    assert "best_score" in runs["search"].data.metrics
    dataset = runs["fit_guide"].inputs.dataset_inputs[0].dataset
    assert (dataset.digest, json.loads(dataset.source)) == ("ab12", {"uri": "phantom:v1"})
    assert json.loads(dataset.profile) == {"classes": 5}


def test_writing_again_changes_nothing(store: Path, example: Example) -> None:
    """Catches duplicated runs and curves after a resumed study or --report-only."""
    records = [r for r in example.records if r.dataset == "phantom-fundus"][:8]
    log_all(open_tracker(store, "again"), records, example)
    before = children(store, "again")
    started = time.monotonic()
    log_all(open_tracker(store, "again"), records, example)
    assert time.monotonic() - started < 5
    after = children(store, "again")
    assert {k: r.info.run_id for k, r in before.items()} == {
        k: r.info.run_id for k, r in after.items()
    }
    assert set(after) == {record.key for record in records}


def test_a_retried_failure_becomes_one_finished_run(store: Path) -> None:
    """Catches a failed run that stays beside the one of its retry."""
    failed = Record(key="r", kind="fit_downstream", status="failed", reason="nan", arm="real")
    open_tracker(store, "retry").log(failed)
    run = children(store, "retry")["r"]
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "nan")
    done = replace(failed, status="done", reason="", metrics={"accuracy": 0.5})
    tracker = open_tracker(store, "retry")
    tracker.log(done)
    tracker.log(done)
    run = children(store, "retry")["r"]
    assert (run.info.status, run.data.metrics["accuracy"]) == ("FINISHED", 0.5)


def test_runs_left_by_a_killed_driver_are_closed_and_written_anew(store: Path) -> None:
    """Catches zombies that the UI shows as running for ever."""
    record = Record(key="z", kind="trial", status="done", metrics={"score": 0.5})
    tracker = open_tracker(store, "killed")
    parent = parent_of(store, "killed")
    client = MlflowClient(uri(store))
    tags = {"mlflow.parentRunId": parent.info.run_id, "mgdm.key": "z"}
    zombie = client.create_run(parent.info.experiment_id, tags=tags)
    tracker = open_tracker(store, "killed")
    assert client.get_run(zombie.info.run_id).info.status == "KILLED"
    tracker.log(record)
    run = children(store, "killed")["z"]
    assert (run.info.status, run.data.metrics["score"]) == ("FINISHED", 0.5)
    deleted = client.search_runs([parent.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert zombie.info.run_id in {run.info.run_id for run in deleted}


def test_finish_closes_the_parent(store: Path, example: Example, tmp_path: Path) -> None:
    """Catches a parent run without report, configuration and headline, or left running."""
    files = ("report.html", "records.jsonl", "study.resolved.yaml", "figures/gains.png",
             "tables/cells.csv", "tables/cells.tex")  # fmt: skip
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
    (tmp_path / "closed").write_text("state")
    tracker = open_tracker(store, "finish")
    assert parent_of(store, "finish").info.status == "RUNNING"
    tracker.finish(example.records, tmp_path, {"contrast/disturb-duplicate/low": -0.01})
    run = parent_of(store, "finish")
    assert run.info.status == "FAILED"  # the example has two failed cells
    assert run.data.metrics["records/failed"] == 2
    assert run.data.metrics["cells/done"] == 58
    assert run.data.metrics["balanced_accuracy/real"] == pytest.approx(mean(example, "real"))
    assert run.data.metrics["balanced_accuracy/real/phantom-fundus"] == pytest.approx(
        mean(example, "real", "phantom-fundus")
    )
    assert run.data.metrics["contrast/disturb-duplicate/low"] == -0.01
    found = artifacts(store, run)
    found |= artifacts(store, run, "figures") | artifacts(store, run, "tables")
    assert found == {*files, "figures", "tables"}
    done = [record for record in example.records if record.status == "done"]
    open_tracker(store, "finish").finish(done, tmp_path, {})
    assert parent_of(store, "finish").info.status == "FINISHED"


def test_everything_lies_under_the_given_folder(store: Path, example: Example) -> None:
    """Catches a relative artefact location, which other working folders cannot find."""
    record = of_kind(example, "generate", dataset="phantom-fundus")
    open_tracker(store, "place").log(record, example.artefact(record))
    place = children(store, "place")[record.key].info.artifact_uri
    assert place.startswith((store / "artifacts").as_uri())


def test_a_record_costs_little(store: Path, example: Example) -> None:
    """Catches one call per metric, which made ten times the time."""
    records = [r for r in example.records if r.is_cell][:10]
    tracker = open_tracker(store, "speed")
    started = time.process_time()
    log_all(tracker, records, example)
    assert (time.process_time() - started) / len(records) < 0.3


def test_a_broken_server_is_reported_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a study that dies, or that prints a page per record, because MLflow is away."""
    (tmp_path / "mlflow.db").write_text("this is no database")
    record = Record(key="a", kind="trial", status="done")
    with caplog.at_level(logging.WARNING, "mgdm_ray.results.mlflow"):
        tracker = open_tracker(tmp_path, "broken")
        tracker.log(record)
        assert tracker.finish([record], tmp_path, {}) is None
    assert not tracker.complete
    messages = [r.message for r in caplog.records if r.name == "mgdm_ray.results.mlflow.tracker"]
    assert len(messages) == 1
    assert "--report-only" in messages[0]


def test_failures_later_on_are_reported_once(
    store: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an MLflow that goes away in the middle and takes the study with it."""
    tracker = open_tracker(store, "later")

    monkeypatch.setattr(tracker.client, "create_run", _refuse)
    with caplog.at_level(logging.WARNING, "mgdm_ray.results.mlflow"):
        for number in range(5):
            tracker.log(Record(key=str(number), kind="trial", status="done"))
    assert len([r for r in caplog.records if "connection refused" in r.message]) == 1
    assert not tracker.active


def test_one_failure_is_enough_to_be_incomplete(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a record that MLflow missed once and, the study being closed, for ever."""
    tracker = open_tracker(store, "incomplete")
    assert tracker.complete
    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "create_run", _refuse)
        tracker.log(Record(key="0", kind="trial", status="done"))
    tracker.log(Record(key="1", kind="trial", status="done"))
    assert tracker.active
    assert not tracker.complete


def _refuse(*_: object, **__: object) -> None:
    raise ConnectionError("connection refused")


def test_arms_are_compared_by_their_means(store: Path, example: Example, tmp_path: Path) -> None:
    """Catches means over the wrong cells, arms in another order than the study's, and a link
    that leads to other runs."""
    page = open_tracker(store, "arms").finish(example.records, tmp_path, {})
    runs = {r.info.run_name: r for r in children(store, "arms").values()}
    assert set(runs) == set(ARMS)
    run = runs["disturb"]
    assert run.data.tags["kind"] == "arm"
    assert run.data.params == {
        "arm": "disturb",
        "cells": "10",  # two failed
        "networks": "mobilenet_v2, resnet18, squeezenet1_1",
        "datasets": "phantom-fundus, phantom-ultrasound",
    }
    for dataset in (None, "phantom-fundus", "phantom-ultrasound"):
        name = "balanced_accuracy" + (f"/{dataset}" if dataset else "")
        assert run.data.metrics[name] == pytest.approx(mean(example, "disturb", dataset))
    ids, experiments = re.fullmatch(
        r"#/compare-runs\?runs=(.*)&experiments=(.*)&workflowType=machine_learning",
        unquote(str(page)),
    ).groups()  # type: ignore[union-attr]
    assert json.loads(ids) == [runs[arm].info.run_id for arm in ARMS]
    assert json.loads(experiments) == [run.info.experiment_id]
    tags = parent_of(store, "arms").data.tags
    assert tags["mgdm.compare"] == page
    assert f"]({page})" in tags["mlflow.note.content"]


def test_arms_are_replaced_only_when_they_change(
    store: Path, example: Example, tmp_path: Path
) -> None:
    """Catches means of an earlier state beside or instead of the present ones, and a description
    of the user's that is overwritten."""

    def finish(records: list[Record]) -> dict[str, Run]:
        open_tracker(store, "changing").finish(records, tmp_path, {})
        return {r.info.run_name: r for r in children(store, "changing").values()}

    first = finish(example.records)
    client, parent = MlflowClient(uri(store)), parent_of(store, "changing").info.run_id
    client.set_tag(parent, "mlflow.note.content", "mine")
    worse = [
        replace(r, metrics={"balanced_accuracy": 0.1}) if r.arm == "real" and r.is_cell else r
        for r in example.records
        if not (r.is_cell and r.arm == "generate")
    ]
    second = finish(worse)
    assert set(second) == set(ARMS) - {"generate"}
    assert second["real"].data.metrics["balanced_accuracy"] == pytest.approx(0.1)
    changed = {arm for arm in second if second[arm].info.run_id != first[arm].info.run_id}
    assert changed == {"real"}
    tags = parent_of(store, "changing").data.tags
    assert tags["mlflow.note.content"] == "mine"
    assert second["real"].info.run_id in tags["mgdm.compare"]


def test_what_is_said_of_images_and_ratios_is_told_apart(store: Path, tmp_path: Path) -> None:
    """Catches a ratio that cannot be filtered by, and pictures of copies that nobody sees."""
    common = {"dataset": "d", "arm": "disturb", "status": "done"}
    tracker = open_tracker(store, "judged")
    for ratio in (0.5, 2.0):
        metrics = {"ratio": ratio, "balanced_accuracy": 0.6}
        key = f"ratio {ratio}"
        tracker.log(Record(key=key, kind="fit_at_ratio", network="n", seed=0, metrics=metrics,
                           **common))  # type: ignore[arg-type]  # fmt: skip
    for name in ("closest.png", "entropy.png", "other.png"):
        (tmp_path / name).write_bytes(b"png")
    (tmp_path / "history.json").write_text('[{"step": 1, "loss": 0.5}]')
    judged = Record(key="assess", kind="assess", metrics={"copy_rate": 0.1}, **common)  # type: ignore[arg-type]
    tracker.log(judged, tmp_path)
    tracker.log(Record(key="judge", kind="fit_judge", status="done", dataset="d"), tmp_path)
    runs = children(store, "judged")
    names = {key: run.info.run_name for key, run in runs.items()}
    assert names["ratio 0.5"] == "disturb d n s0 ratio 0.5"
    assert names["ratio 2.0"] == "disturb d n s0 ratio 2.0"
    assert runs["ratio 2.0"].data.params["ratio"] == "2.0"
    assert names["assess"] == "assess d disturb"
    assert runs["assess"].data.params == {"dataset": "d", "arm": "disturb"}
    assert artifacts(store, runs["assess"], "images") == {"images/closest.png",
                                                          "images/entropy.png"}  # fmt: skip
    assert artifacts(store, runs["judge"], "figures") == {"figures/loss.png"}


def test_more_points_than_one_call_takes(store: Path, tmp_path: Path) -> None:
    """Catches curves that MLflow refuses as too long, or of which a part is lost."""
    rows = [{"step": i, "loss": 1 / (i + 1)} for i in range(400)]
    table = {"t": list(range(400)), "balanced_accuracy": [0.5] * 400, "ece": [0.1] * 400}
    (tmp_path / "history.json").write_text(json.dumps(rows))
    (tmp_path / "accuracy_over_t.json").write_text(json.dumps(table))
    tracker = open_tracker(store, "long")
    tracker.log(Record(key="l", kind="fit_guide", status="done", dataset="d"), tmp_path)
    run = children(store, "long")["l"]
    for name in ("loss", "guide_balanced_accuracy", "guide_ece"):
        history = MlflowClient(uri(store)).get_metric_history(run.info.run_id, name)
        assert sorted(m.step for m in history) == list(range(400))
    assert run.data.params == {"dataset": "d"}


def test_names_of_runs() -> None:
    trial = Record(key="0123456789", kind="trial", status="done", dataset="d")
    assert run_name(trial) == "trial d 012345"
    decode = Record(key="0", kind="decode", status="done", dataset="d", arm="disturb")
    assert run_name(decode) == "decode d disturb"


def test_where_the_pages_are() -> None:
    """Catches an address that names the database, or two slashes where a server refuses them."""
    assert ui_command("sqlite:////r/mlflow.db").startswith("mlflow ui --backend-store-uri sqlite:")
    assert ui_address("sqlite:////r/mlflow.db", "#/x") == "http://127.0.0.1:5000/#/x"
    assert ui_command("https://host/ml/") == "https://host/ml/"
    assert ui_address("https://host/ml/", "#/x") == "https://host/ml/#/x"


def test_pictures_that_may_not_be_shown(store: Path, example: Example) -> None:
    """Catches images of patients on a server, also of a run that was logged before."""
    record = of_kind(example, "generate", dataset="phantom-fundus")
    for shown in (True, False):
        tracker = open_tracker(store, "hidden")
        tracker.datasets = {"phantom-fundus": {"pictures": shown}}
        tracker.log(record, example.artefact(record))
        run = children(store, "hidden")[record.key]
        assert artifacts(store, run, "images") == ({"images/grid.png"} if shown else set())
