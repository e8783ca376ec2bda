"""Studies that run from nothing, are killed, fail or meet a full disk, with the real Ray."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from mgdm_ray.pipeline.tasks.base import base_record
from mgdm_ray.storage.records import read_records
from tests.conftest import TINY
from tests.finished import NAME, STUDY, TRIALS, Finished, plan_of, run_study
from tests.test_study import logged_runs, markers, tensors

pytestmark = pytest.mark.slow
ONE = {**STUDY, "networks": ["squeezenet1_1"], "judge": None}
"""The finished study's jobs with one network: what it trained serves here, too."""


def write(folder: Path, study: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def begin(study: Path, storage: Path, *options: str, **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mgdm_ray.study", str(study), "--storage", str(storage)]
    return subprocess.Popen([*command, *options], text=True, **streams)


def wait_until(happened: Callable[[], object], patience_s: float = 300) -> None:
    deadline = time.monotonic() + patience_s
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.long
def test_two_drivers_from_nothing_give_the_one_result(
    finished_study: Finished, tmp_path: Path
) -> None:
    """Would catch a result that depends on Ray, on Ray Train or on how many workers share the
    images; jobs that both compute; records that one of them overwrites; runs that stand in MLflow
    twice; a driver that ends before all is there."""
    arms = ["real", "generate", "roundtrip", "disturb"]
    small = {**ONE, "arms": arms, "resources": {"sampling_workers": 2}}
    file, storage = write(tmp_path, small), tmp_path / "runs"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    drivers = [begin(file, storage, **streams) for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in drivers]
    assert [process.returncode for process in drivers] == [0, 0], said
    jobs = plan_of(small).jobs
    records = read_records(storage / "studies" / NAME / "records.jsonl")
    assert {r.key for r in records if r.kind != "trial"} == set(jobs)
    runs = logged_runs(storage)
    keys = [r.data.tags["mgdm.key"] for r in runs]
    assert len(keys) == len(set(keys)) == len(jobs) + TRIALS + 1 + len(arms)
    assert {r.info.status for r in runs} == {"FINISHED"}
    compared = {
        "fit_denoiser": "weights.safetensors",
        "fit_guide": "weights.safetensors",
        "fit_downstream": "test_predictions.safetensors",
    }
    for job in jobs.values():
        if job.kind != "search":
            file_name = compared.get(job.kind, "images-*.safetensors")
            there = tensors(storage / "artifacts" / job.kind / job.key, file_name)
            here = tensors(finished_study.store.folder(job.kind, job.key), file_name)
            for name, value in here.items():
                np.testing.assert_allclose(there[name], value, atol=1e-4, err_msg=job.label)


def test_a_search_is_confirmed_later(finished_copy: Finished, tmp_path: Path) -> None:
    """Would catch a confirmation that computes anything again, that no record, report or MLflow
    knows of, or that a study without it would have to pay for."""
    search = {**STUDY["search"], "confirm": {"settings": 2, "seeds": 2}}
    study, storage = (
        write(tmp_path, {**STUDY, "name": "confirmed", "search": search}),
        finished_copy.storage,
    )
    before = markers(storage)
    done = run_study(study, storage)
    assert done.returncode == 0, done.stdout + done.stderr
    assert before.items() <= markers(storage).items()
    assert len(markers(storage)) == len(before) + 1
    rows = read_records(storage / "studies" / "confirmed" / "records.jsonl")
    [record] = [r for r in rows if r.kind == "confirm"]
    found = finished_copy.record("search")
    assert (record.split, record.setting) == ("val", found.setting)
    fresh, optimism = record.metrics["fresh_score"], record.metrics["selection_optimism"]
    assert fresh + optimism == pytest.approx(found.metrics["best_score"])
    assert "proxy networks" in (storage / "studies" / "confirmed" / "report.html").read_text()
    [logged] = [r for r in logged_runs(storage) if r.data.tags.get("kind") == "confirm"]
    assert logged.data.metrics["fresh_score"] == fresh


@pytest.mark.long
def test_the_estimate_comes_true(finished_copy: Finished) -> None:
    """Would catch a price that counts what is shared twice, or forgets what is waited for."""
    options = ("--set", "seed=7", "--set", "seeds=[7]")
    plan = run_study(finished_copy.file, finished_copy.storage, *options, "--plan").stdout
    [estimate] = re.findall(r"([0-9.]+) min", plan)
    started = time.monotonic()
    assert run_study(finished_copy.file, finished_copy.storage, *options).returncode == 0
    minutes = (time.monotonic() - started) / 60
    assert 1 / 2.5 < float(estimate) / minutes < 2.5


def test_what_is_damaged_is_named_kept_and_computed_anew_alone(
    finished_study: Finished, finished_copy: Finished
) -> None:
    """Would catch damage that goes into results, stops the study or is deleted, and work done
    again that was whole: here a changed byte in latents, and a cell whose manifest was torn."""
    store, storage = finished_copy.store, finished_copy.storage
    encode, cell = finished_copy.job("encode"), finished_copy.plan.cells()[-1]
    shard = next(store.folder("encode", encode.key).glob("images-*.safetensors"))
    manifest = store.folder(cell.kind, cell.key) / "manifest.json"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    torn = manifest.read_bytes()[:200]
    for path, damaged in ((shard, content), (manifest, torn)):
        path.unlink()  # a hard link
        path.write_bytes(damaged)
    records = {record.key: record.metrics for record in finished_copy.records}
    before = markers(storage)

    assert run_study(finished_copy.file, storage, "--plan").returncode == 0
    assert markers(storage) == before, "a plan moved something"
    again = run_study(finished_copy.file, storage)
    assert again.returncode == 0, again.stdout + again.stderr
    for job in (encode, cell):
        [line] = [x for x in again.stdout.splitlines() if f"{job.kind}-{job.key}-1" in x]
        assert line.startswith("warning:")
        assert job.label in line
    kept = storage / "damaged"
    assert (kept / f"encode-{encode.key}-1" / shard.name).read_bytes() == content
    assert (kept / f"{cell.kind}-{cell.key}-1" / "manifest.json").read_bytes() == torn
    remade = {store.folder(job.kind, job.key) / "done" for job in (encode, cell)}
    after = markers(storage)
    assert {p for p in before if before[p] != after[p]} == remade
    latents = tensors(finished_study.folder("encode"), "images-*")
    for name, value in tensors(store.folder("encode", encode.key), "images-*").items():
        assert (value == latents[name]).all()
    assert {record.key: record.metrics for record in finished_copy.records} == records


PLUGIN = """
from mgdm_ray.diffusion.guidance import register_measurement


@register_measurement("second_choice")
def second_choice(logits, x_t, t, labels):
    return logits.softmax(dim=1).topk(2, dim=1).values[:, 1]
"""


def test_a_measurement_of_the_user_guides_a_study(finished_copy: Finished, tmp_path: Path) -> None:
    """Would catch a registered measurement that the command line or Ray's workers do not know."""
    (tmp_path / "my_measurements.py").write_text(PLUGIN)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": path, "MGDM_PLUGINS": "my_measurements"}
    setting = {"measurement": "second_choice", "label_scale": 0.5, "interval": [0, 800]}
    study = write(tmp_path, {**ONE, "search": None, "arms": ["disturb"], "setting": setting})
    storage = finished_copy.storage
    unknown = run_study(study, storage, "--plan")
    assert unknown.returncode == 2
    assert "'second_choice'" in unknown.stderr
    broken = run_study(study, storage, "--plan", env={**env, "MGDM_PLUGINS": "nowhere_to_be_found"})
    assert broken.returncode == 2
    assert "MGDM_PLUGINS=nowhere_to_be_found" in broken.stderr
    done = run_study(study, storage, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    [cell] = [r for r in finished_copy.records if r.is_cell]
    assert cell.setting["measurement"] == "second_choice"


def test_a_failure_costs_only_what_needs_it(finished_copy: Finished, tmp_path: Path) -> None:
    """Latents that lost their file: the decode and its cell fail with the reason, the rest goes
    on, exit 1; what failed waits for --retry-failed."""
    small = {**ONE, "search": None, "arms": ["duplicate", "roundtrip"]}
    study, storage, store = write(tmp_path, small), finished_copy.storage, finished_copy.store
    jobs = {(job.kind, job.arm): job for job in plan_of(small).jobs.values()}
    lost = [jobs[k] for k in jobs if k[0] in ("encode", "decode", "fit_downstream")]
    for job in lost:
        shutil.rmtree(store.folder(job.kind, job.key))
    encode = jobs["encode", None]
    with store.writing("encode", encode.key) as folder:
        record = asdict(base_record(encode))
        store.commit("encode", encode.key, folder, record, {"inputs": {}, "needs": encode.needs})

    done = run_study(study, storage)
    assert done.returncode == 1, done.stdout + done.stderr
    status = {(r.kind, r.arm): r for r in finished_copy.records}
    assert status["fit_downstream", "duplicate"].status == "done"
    decode, cell = status["decode", "roundtrip"], status["fit_downstream", "roundtrip"]
    assert (decode.status, cell.status) == ("failed", "failed")
    assert decode.key[:8] in cell.reason
    assert "--retry-failed" in done.stdout
    log = next(Path(w) for w in done.stdout.split() if w.endswith(".log"))
    assert "Traceback" in log.read_text()

    again = run_study(study, storage)
    assert again.returncode == 1
    assert "0 to do" in again.stdout
    retried = run_study(study, storage, "--retry-failed")
    assert "2 to do" in retried.stdout
    assert retried.returncode == 1


@pytest.mark.long
def test_a_full_disk_says_so_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Would catch a traceback, a study of failed jobs, and a result cut short by a full disk: here
    Ray Train's own checkpoints meet it. (tests/storage/test_store_trouble.py: all other writes.)"""
    study = write(tmp_path, {**ONE, "arms": ["generate"], "search": None})
    storage = tmp_path / "disk"
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(storage), "-o"]
    if subprocess.run([*mount, "size=700k"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        full = run_study(study, storage / "runs")
        assert full.returncode == 1, full.stdout
        assert full.stderr.startswith("error: ")
        assert "Traceback" not in full.stderr
        subprocess.run([*mount, "remount,size=300m"], check=True)
        again = run_study(study, storage / "runs")
        assert again.returncode == 0, again.stdout + again.stderr
    finally:
        subprocess.run(["umount", str(storage)], check=True)


def test_a_worker_that_dies_is_one_failed_cell(tmp_path: Path) -> None:
    """Would catch one dead process taking the study with it, going unnoticed, or being held
    against the cell for good."""
    cells = {**TINY, "arms": ["real", "duplicate"], "networks": ["squeezenet1_1"]}
    cells["downstream"] = {"steps": 60, "batch_size": 8}
    study = write(tmp_path, {**cells, "resources": {"max_retries": 0}})
    storage = tmp_path / "runs"
    process = begin(study, storage, stdout=subprocess.PIPE)
    victims: list[psutil.Process] = []

    def cell_runs() -> bool:
        children = psutil.Process(process.pid).children(recursive=True)
        titles = [(child, " ".join(child.cmdline())) for child in children if child.is_running()]
        victims.extend(c for c, title in titles if title.startswith("ray::fit_downstream"))
        return bool(victims)

    wait_until(cell_runs)
    victims[0].kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    records = read_records(storage / "studies" / "tiny" / "records.jsonl")
    assert sorted(r.status for r in records) == ["done", "failed"]
    [failed] = [r for r in records if r.status == "failed"]
    assert "WorkerCrashedError" in failed.reason
    assert run_study(study, storage).returncode == 0


def test_a_search_killed_midway_tries_the_rest_and_nothing_twice(
    finished_copy: Finished, tmp_path: Path
) -> None:
    """Would catch a search that starts over, loses its trials or repeats them after a power cut."""
    import optuna
    from optuna.trial import TrialState

    from mgdm_ray.runtime.optuna_storage import sqlite_storage

    search = {**STUDY["search"], "trials": 5, "max_concurrent": 1, "steps": 60}
    study = write(tmp_path, {**ONE, "name": "killed", "arms": ["disturb"], "search": search})
    storage = finished_copy.storage
    folder = storage / "studies" / "killed"

    def numbers(state: TrialState) -> list[int]:
        database = folder / "optuna" / "phantom-ultrasound.db"
        if not database.exists():
            return []
        stored = sqlite_storage(database)
        names = optuna.get_all_study_names(stored)
        trials = [t for n in names for t in optuna.load_study(study_name=n, storage=stored).trials]
        return [t.number for t in trials if t.state == state]

    process = begin(study, storage, stdout=subprocess.DEVNULL)
    wait_until(lambda: numbers(TrialState.COMPLETE))
    process.kill()
    process.wait()
    assert 1 <= len(numbers(TrialState.COMPLETE)) < 5
    time.sleep(5)  # Ray's processes see that their driver is gone
    again = run_study(study, storage)
    assert again.returncode == 0, again.stdout + again.stderr
    records = read_records(folder / "records.jsonl")
    assert len([r for r in records if r.kind == "trial" and r.status == "done"]) == 5
    scales = [r.setting["uncertainty_scale"] for r in records if r.kind == "trial"]
    assert len(set(scales)) == 5
    assert numbers(TrialState.COMPLETE) == [0, 1, 2, 3, 4]
    assert numbers(TrialState.RUNNING) == []


def test_ctrl_c_says_how_to_go_on_and_a_rerun_finishes(tmp_path: Path) -> None:
    """Would catch an interrupted study that loses work, hangs or leaves Ray running; and one that
    MLflow, which cannot be reached all the while, holds up, or never hears of."""
    study = write(tmp_path, {**TINY, "arms": ["real", "duplicate"]})
    storage = tmp_path / "runs"
    nowhere = ("--set", "tracking.uri=http://127.0.0.1:9")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    process = begin(study, storage, *nowhere, **streams)
    wait_until(lambda: markers(storage))
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"--storage {storage}" in errors, "the command that resumes"
    assert "Traceback" not in errors
    kept = len(markers(storage))
    assert kept >= 1
    again = run_study(study, storage, *nowhere)
    assert again.returncode == 0, again.stderr
    assert f"{kept} finished" in again.stdout
    assert again.stderr.count("--report-only") <= 2, "once a connection"
    assert run_study(study, storage, "--report-only").returncode == 0
    records = read_records(storage / "studies" / "tiny" / "records.jsonl")
    assert len(logged_runs(storage)) == 1 + len(records) + 2  # the study, and a mean per arm
