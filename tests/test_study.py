"""The whole product on a tiny finished study. Runs from nothing, kills: test_study_runs.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from mgdm_ray.config import StudyConfig
from mgdm_ray.environment import cores
from mgdm_ray.pipeline.tasks.base import Context, base_record
from mgdm_ray.pipeline.tasks.base import run as run_job
from mgdm_ray.runtime import engine
from mgdm_ray.storage.locks import Locks
from mgdm_ray.storage.store import Store
from tests import golden
from tests.conftest import ROOT, TINY, Said
from tests.finished import DATASET, IMAGES, JOBS, STUDY, TRIALS, Finished, plan_of

Command = Callable[..., Said]


def markers(storage: Path) -> dict[Path, int]:
    """When each artefact was finished."""
    return {p: p.stat().st_mtime_ns for p in storage.glob("artifacts/*/*/done")}


def tensors(folder: Path, pattern: str) -> dict[str, Any]:
    """The tensors of one file, or of all shards that match, joined."""
    loaded = [load_file(path) for path in sorted(folder.glob(pattern))]
    return {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]}


def logged_runs(storage: Path) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("mgdm-ray")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def test_the_run_ends_well(finished_study: Finished) -> None:
    """Would catch any part that does not work with the others."""
    assert "Traceback" not in finished_study.first["stderr"]
    for word in ("disturb", "report.html", "mlflow ui", f"[{JOBS}/{JOBS}]"):
        assert word in finished_study.first["stdout"]
    for name in ("study.resolved.yaml", "plan.json", "report.html", f"optuna/{DATASET}.db"):
        assert (finished_study.study_folder / name).stat().st_size > 0


def test_every_job_cell_and_trial_has_one_record(finished_study: Finished) -> None:
    lines = (finished_study.study_folder / "records.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    records = finished_study.records
    assert len(keys) == len(set(keys)) == JOBS + TRIALS
    assert {r.status for r in records} == {"done"}
    assert {r.key for r in records if r.kind != "trial"} == set(finished_study.plan.jobs)
    cells = [r for r in records if r.is_cell]
    wanted = {(network, arm) for network in STUDY["networks"] for arm in STUDY["arms"]}
    assert {(r.network, r.arm) for r in cells} == wanted
    assert {r.split for r in cells} == {"test"}
    assert all(0 <= r.metrics["balanced_accuracy"] <= 1 for r in cells)
    assert {r.split for r in records if r.kind in ("search", "trial", "fit_guide")} == {"val"}


def test_arms_add_what_they_say(finished_study: Finished) -> None:
    """Would catch an arm that trains on another number of images than its controls."""
    images = {r.arm: r.metrics["train_images"] for r in finished_study.records if r.is_cell}
    assert images == {"real": 40, **dict.fromkeys(STUDY["arms"][1:], 40 + IMAGES)}


def test_the_disturb_arm_uses_the_best_trial(finished_study: Finished) -> None:
    """Would catch a search whose result goes nowhere."""
    trials = [r for r in finished_study.records if r.kind == "trial"]
    best = max(trials, key=lambda r: r.metrics["score"])
    search = finished_study.record("search")
    assert search.metrics["best_score"] == best.metrics["score"]
    settings = [r.setting for r in finished_study.records if r.arm == "disturb" and r.setting]
    assert settings
    assert all(setting == search.setting for setting in settings)
    assert search.setting in [t.setting for t in trials]


def test_a_second_run_computes_nothing(
    finished_copy: Finished, mgdm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a key that changes between runs, and a start of Ray for nothing."""
    before = markers(finished_copy.storage)
    records = (finished_copy.study_folder / "records.jsonl").read_text()
    monkeypatch.setattr(engine, "cluster", None)  # not to be called
    second = mgdm(finished_copy.file, "--storage", finished_copy.storage)
    assert second.code == 0, second.err
    assert markers(finished_copy.storage) == before
    assert len(before) == JOBS
    assert (finished_copy.study_folder / "records.jsonl").read_text() == records


def test_a_plan_of_a_finished_study_moves_nothing(finished_study: Finished, mgdm: Command) -> None:
    before = markers(finished_study.storage)
    shown = mgdm(finished_study.file, "--storage", finished_study.storage, "--plan")
    assert shown.code == 0
    assert markers(finished_study.storage) == before


def test_the_seconds_of_another_study_are_no_estimate(
    finished_study: Finished, mgdm: Command
) -> None:
    """Would catch days of work that are announced as minutes, because a toy ran here before."""
    plan = (finished_study.file, "--storage", finished_study.storage, "--plan", "--set")
    unknown = [line for line in mgdm(*plan, "seed=7", "--set", "image_size=32").out.splitlines()
               if "unknown" in line and "fit_denoiser" in line]  # fmt: skip
    assert unknown
    assert "unknown" not in mgdm(*plan, "seeds=2").out


def test_only_gamma_computes_only_stage_two(finished_study: Finished) -> None:
    """The plan on a real store: what a new weight costs is a decode, its cells and its judgement,
    of the arm and of its control."""
    plan = plan_of({**STUDY, "search": None, "setting": {"uncertainty_scale": 0.3}})
    jobs = plan.jobs.values()
    left = Counter(j.kind for j in jobs if not finished_study.store.is_done(j.kind, j.key))
    assert left == {"decode": 2, "fit_downstream": 4, "assess": 2}


def test_mlflow_holds_what_the_records_hold(finished_study: Finished) -> None:
    """Would catch a missing, doubled or differing run, and one left RUNNING."""
    runs = logged_runs(finished_study.storage)
    by_key = {r.data.tags["mgdm.key"]: r for r in runs}
    assert len(by_key) == len(runs) == JOBS + TRIALS + 1 + len(STUDY["arms"])
    assert {r.info.status for r in runs} == {"FINISHED"}
    for record in finished_study.records:
        logged = by_key[record.key].data
        for name, value in record.metrics.items():
            assert logged.metrics[name] == pytest.approx(value, abs=1e-12), (record.kind, name)
        for name in {"guidance_scale", "uncertainty_scale"} & record.setting.keys():
            assert float(logged.params[name]) == pytest.approx(record.setting[name])


def test_report_only_rebuilds_what_was_lost(finished_copy: Finished, mgdm: Command) -> None:
    """Would catch records, report or MLflow holding something that the store does not."""
    folder, storage = finished_copy.study_folder, finished_copy.storage
    records = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").unlink()
    (folder / "report.html").unlink()
    (storage / "mlflow.db").unlink()
    shutil.rmtree(storage / "mlflow-artifacts")
    again = mgdm(finished_copy.file, "--storage", storage, "--report-only")
    assert again.code == 0, again.err
    assert (folder / "records.jsonl").read_text() == records
    assert (folder / "report.html").stat().st_size > 10_000
    assert len(logged_runs(storage)) == JOBS + TRIALS + 1 + len(STUDY["arms"])


def test_a_job_called_directly_gives_what_it_gave_through_ray(
    finished_study: Finished, finished_copy: Finished
) -> None:
    """Would catch a result that depends on Ray; test_study_runs.py compares all other kinds."""
    config = StudyConfig.model_validate(STUDY)
    datasets = {d.name: d for d in config.datasets}
    context = Context(str(finished_copy.storage), "", datasets, sampling_batch=5)
    for kind, file in (
        ("decode", "images-*.safetensors"),
        ("fit_downstream", "test_predictions.safetensors"),
    ):
        job = next(
            j for j in finished_copy.plan.jobs.values() if (j.kind, j.arm) == (kind, "disturb")
        )
        shutil.rmtree(finished_copy.store.folder(kind, job.key))
        record = run_job(job, context)
        assert record.status == "done", record.reason
        here = tensors(finished_copy.store.folder(kind, job.key), file)
        for name, value in tensors(finished_study.store.folder(kind, job.key), file).items():
            np.testing.assert_allclose(here[name], value, atol=1e-4, err_msg=job.label)


ABSENT = "datasets=[{name: breastmnist, size: 28}]"
BAD_INPUT: dict[str, tuple[str, ...]] = {
    "unknown network": ("--set", "networks=[resnet19]"),
    "no such file": ("--set", "datasets=[{name: mine, path: nowhere.npz}]"),
    "no such file in a plan": ("--plan", "--set", "datasets=[{name: mine, path: nowhere.npz}]"),
    "damaged file": ("--set", "datasets=[{name: mine, path: damaged.npz, task: binary}]"),
    "too many CPUs": ("--set", "resources.cpus_per_task=1000"),
    "unknown protocol": ("--storage", "nope://bucket/x"),
    "credentials in an address": ("--storage", "s3://user:secret@bucket/x"),
    "storage is a file": ("--storage", "taken"),
    "nothing to report": ("--report-only",),
    "data is absent": ("--report-only", "--set", ABSENT, "--set", "data_dir=/nowhere"),
    "size and levels": ("--set", "image_size=18", "--set", "denoiser.unet.channels=[16,16,16]"),
    "probe without plan": ("--probe",),
}


def test_bad_input_is_refused(
    tmp_path: Path, mgdm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a mistake that is noticed only after hours, or as a traceback."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump({**TINY, "data_dir": "."}))
    Path("damaged.npz").write_bytes(b"PK\x03\x04 not really")
    Path("taken").write_text("")
    messages = []
    for name, options in BAD_INPUT.items():
        done = mgdm(
            "tiny.yaml", *(() if "--storage" in options else ("--storage", "runs")), *options
        )
        assert done.code == 2, (name, done)
        assert not list(tmp_path.glob("*/artifacts/*/*")), name
        assert "Traceback" not in done.err
        messages.append(f"## {name}\n{done.err.replace(f'has {cores()};', 'has N;')}")
    golden.check("study-errors", "\n".join(messages), tmp_path)


def test_a_study_that_is_being_written_is_left_alone(tmp_path: Path, mgdm: Command) -> None:
    """Would catch two processes that write one study's records, report and MLflow at once."""
    study, storage = tmp_path / "tiny.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump(TINY))
    done = Store(storage)
    cell = plan_of(TINY).cells()[0]
    with done.writing(cell.kind, cell.key) as folder:
        provenance = {"inputs": cell.inputs, "needs": cell.needs}
        done.commit(cell.kind, cell.key, folder, asdict(base_record(cell)), provenance)
    locks = Locks(storage)
    assert locks.take("study", "tiny")
    refused = mgdm(study, "--storage", storage, "--report-only")
    assert refused.code == 1
    assert f"process {os.getpid()}" in refused.err
    assert mgdm(study, "--storage", storage, "--plan").code == 0


def test_a_plan_may_be_cut_short_by_its_reader(tmp_path: Path) -> None:
    """Would catch a traceback, or another exit code, after ``--plan | head``."""
    plan = [sys.executable, "-m", "mgdm_ray", "study", "quickstart", "--plan", "--storage", "runs"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody_reads:
        ended = subprocess.run(
            plan, cwd=tmp_path, stdout=nobody_reads, stderr=subprocess.PIPE, check=False
        )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_ray_that_does_not_start_is_told(
    tmp_path: Path, mgdm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a traceback: Ray raises many kinds of errors from its start."""
    import ray

    def broken(**_: Any) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr(ray, "init", broken)
    done = mgdm(ROOT / "studies" / "quickstart.yaml", "--storage", tmp_path / "runs")
    assert done.code == 1, done.err
    assert "AF_UNIX" in done.err
