"""The whole product on a tiny study, with the real Ray, Tune, Optuna and MLflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mgdm_ray.config import StudyConfig
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.tasks.base import base_record
from mgdm_ray.storage.locks import Locks
from mgdm_ray.storage.records import Record, read_records
from mgdm_ray.storage.store import Store
from tests.conftest import ROOT, TINY


def command(study: Path, storage: Path, *options: str) -> list[str]:
    base = [sys.executable, "-m", "mgdm_ray.study", str(study), "--storage", str(storage)]
    return [*base, *options]


def run(
    study: Path, storage: Path, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(study, storage, *options),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **(env or {})},
    )


def plan_of(study: dict[str, Any]) -> Plan:
    from mgdm_ray.data.load import fingerprint

    config = StudyConfig.model_validate(study)
    return make_plan(config, {d.name: fingerprint(d) for d in config.datasets})


@dataclass(frozen=True)
class Finished:
    """A tiny study that ran once from beginning to end."""

    study: Path
    storage: Path
    first: subprocess.CompletedProcess[str]

    @property
    def folder(self) -> Path:
        return self.storage / "studies" / "tiny"

    @property
    def records(self) -> list[Record]:
        return read_records(self.folder / "records.jsonl")

    @property
    def plan(self) -> Plan:
        return plan_of(TINY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("study")
    study, storage = folder / "tiny.yaml", folder / "runs"
    shared = {**TINY, "resources": {"sampling_workers": 2}}  # changes no key
    study.write_text(yaml.safe_dump(shared, sort_keys=False))
    return Finished(study, storage, run(study, storage))


def test_the_first_run_ends_well(finished: Finished) -> None:
    """Would catch any part that does not work with the others."""
    assert finished.first.returncode == 0, finished.first.stdout + finished.first.stderr
    assert "Traceback" not in finished.first.stderr
    for word in ("disturb", "report:", "mlflow ui", "[17/17]"):
        assert word in finished.first.stdout
    for name in ("study.resolved.yaml", "plan.json", "report.html", "optuna/phantom-ultrasound.db"):
        assert (finished.folder / name).stat().st_size > 0


def test_every_job_cell_and_trial_has_one_record(finished: Finished) -> None:
    lines = (finished.folder / "records.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert len(keys) == len(set(keys)) == 17 + 3
    assert {r.status for r in finished.records} == {"done"}
    assert {r.key for r in finished.records if r.kind != "trial"} == set(finished.plan.jobs)
    cells = [r for r in finished.records if r.is_cell]
    assert {(r.network, r.arm) for r in cells} == {
        (n, a) for n in TINY["networks"] for a in TINY["arms"]
    }
    for record in cells:
        assert record.split == "test"
        assert 0 <= record.metrics["balanced_accuracy"] <= 1
    for record in finished.records:
        if record.kind in ("search", "trial", "fit_guide"):
            assert record.split == "val"


def test_arms_add_what_they_say(finished: Finished) -> None:
    """Would catch an arm that trains on another number of images than its controls."""
    images = {r.arm: r.metrics["train_images"] for r in finished.records if r.is_cell}
    assert images == {"real": 40, "duplicate": 60, "generate": 60, "roundtrip": 60, "disturb": 60}


def test_the_disturb_arm_uses_the_best_trial(finished: Finished) -> None:
    """Would catch a search whose result goes nowhere."""
    trials = [r for r in finished.records if r.kind == "trial"]
    best = max(trials, key=lambda r: r.metrics["score"])
    [search] = [r for r in finished.records if r.kind == "search"]
    assert search.metrics["best_score"] == best.metrics["score"]
    for record in finished.records:
        if record.arm == "disturb":
            assert record.setting == search.setting
    assert search.setting in [t.setting for t in trials]


@pytest.mark.slow
def test_a_search_is_confirmed_later(finished: Finished, tmp_path: Path) -> None:
    """Would catch a confirmation that computes anything again, that no record, report or MLflow
    knows of, or that a study without it would have to pay for."""
    again = {**TINY, "name": "confirmed"}
    again["search"] = {**TINY["search"], "confirm": {"settings": 2, "seeds": 2}}
    study, storage = tmp_path / "confirmed.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump(again, sort_keys=False))
    shutil.copytree(finished.storage / "artifacts", storage / "artifacts")
    done = run(study, storage)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "17 known, 1 to do" in done.stdout
    assert "done confirm phantom-ultrasound" in done.stdout
    folder = storage / "studies" / "confirmed"
    [record] = [r for r in read_records(folder / "records.jsonl") if r.kind == "confirm"]
    [search] = [r for r in finished.records if r.kind == "search"]
    assert (record.split, record.setting) == ("val", search.setting)
    fresh, optimism = record.metrics["fresh_score"], record.metrics["selection_optimism"]
    assert fresh + optimism == pytest.approx(search.metrics["best_score"])
    page = (folder / "report.html").read_text()
    assert "Do the proxy networks rank settings for the others?" in page
    assert "3 finished trials are too few, 4 are needed" in page
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("mgdm-ray")
    assert experiment is not None
    [logged] = client.search_runs([experiment.experiment_id], "tags.kind = 'confirm'")
    assert logged.data.metrics["fresh_score"] == fresh


def test_a_second_run_computes_nothing(finished: Finished, tmp_path: Path) -> None:
    """Would catch a key that changes between runs, and a start of Ray for nothing."""
    store = Store(finished.storage)
    before = {p: p.stat().st_mtime_ns for p in finished.storage.glob("artifacts/*/*/done")}
    records = (finished.folder / "records.jsonl").read_text()
    started = time.monotonic()
    second = run(finished.study, finished.storage, env={"RAY_TMPDIR": str(tmp_path)})
    seconds = time.monotonic() - started
    assert second.returncode == 0, second.stderr
    assert "17 known, 0 to do" in second.stdout
    assert not list(tmp_path.iterdir()), "Ray was started"
    after = {p: p.stat().st_mtime_ns for p in finished.storage.glob("artifacts/*/*/done")}
    assert before == after
    assert len(list(store.done())) == 17
    assert (finished.folder / "records.jsonl").read_text() == records
    assert seconds < 60


def test_plan_shows_all_done(finished: Finished) -> None:
    shown = run(finished.study, finished.storage, "--plan")
    assert shown.returncode == 0
    assert "nothing left to do" in shown.stdout


def test_the_seconds_of_another_study_are_no_estimate(finished: Finished) -> None:
    """Would catch days of work that are announced as minutes, because a toy ran here before."""
    options = ("--set", "seed=7", "--set", "image_size=32", "--plan")
    shown = run(finished.study, finished.storage, *options)
    assert re.search(r"estimated time: unknown .*fit_downstream, fit_denoiser", shown.stdout)
    more = run(finished.study, finished.storage, "--set", "seeds=2", "--plan")
    assert "estimated time: about" in more.stdout


@pytest.mark.slow
def test_the_estimate_comes_true(finished: Finished, tmp_path: Path) -> None:
    """Would catch a price that counts what is shared twice, or forgets what is waited for."""
    storage = tmp_path / "runs"
    shutil.copytree(finished.storage, storage, ignore=shutil.ignore_patterns("mlflow*", "lock"))
    options = ("--set", "seed=7", "--set", "seeds=[7]")
    plan = run(finished.study, storage, *options, "--plan").stdout
    [estimate] = re.findall(r"estimated time: about ([0-9.]+) min", plan)
    assert re.findall(r"^all +17 +0 +0 +17 ", plan, re.MULTILINE)
    started = time.monotonic()
    assert run(finished.study, storage, *options).returncode == 0
    minutes = (time.monotonic() - started) / 60
    assert 1 / 2.5 < float(estimate) / minutes < 2.5


def test_only_gamma_computes_only_stage_two(finished: Finished) -> None:
    """The plan on a real store: what a new weight costs is a decode and its cells."""
    options = ("--set", "search=null", "--set", "setting.uncertainty_scale=0.3", "--plan")
    shown = run(finished.study, finished.storage, *options)
    left = {
        line.split()[0]: int(line.split()[4])
        for line in shown.stdout.splitlines()
        if line.startswith(("fit_", "generate", "encode", "decode"))
    }
    assert left == {
        "fit_denoiser": 0,
        "fit_guide": 0,
        "generate": 0,
        "encode": 0,
        "decode": 1,
        "fit_downstream": 2,
    }


def test_mlflow_holds_what_the_records_hold(finished: Finished) -> None:
    """Would catch a missing, doubled or differing run, and one left RUNNING."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.storage}/mlflow.db")
    experiment = client.get_experiment_by_name("mgdm-ray")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_key = {r.data.tags["mgdm.key"]: r for r in runs}
    assert len(by_key) == len(runs) == 20 + 1 + len(TINY["arms"])
    assert {r.info.status for r in runs} == {"FINISHED"}
    for record in finished.records:
        metrics = by_key[record.key].data.metrics
        for name, value in record.metrics.items():
            assert metrics[name] == pytest.approx(value, abs=1e-12), (record.kind, name)
        for name in ("guidance_scale", "uncertainty_scale"):
            if name in record.setting:
                logged = float(by_key[record.key].data.params[name])
                assert logged == pytest.approx(record.setting[name])


def test_report_only_rebuilds_what_was_lost(finished: Finished) -> None:
    """Would catch records, report or MLflow holding something that the store does not."""
    records = (finished.folder / "records.jsonl").read_text()
    for lost in (finished.folder / "records.jsonl", finished.folder / "report.html"):
        lost.unlink()
    again = run(finished.study, finished.storage, "--report-only")
    assert again.returncode == 0, again.stderr
    assert (finished.folder / "records.jsonl").read_text() == records
    assert (finished.folder / "report.html").stat().st_size > 10_000


def test_a_job_called_directly_gives_what_it_gave_through_ray(
    finished: Finished, tmp_path: Path
) -> None:
    """Would catch a result that depends on Ray, or on how many workers share the images: training,
    sampling (two workers there, one here) and a network of each kind."""
    import numpy as np

    from mgdm_ray.pipeline.tasks.base import Context, run

    config = StudyConfig.model_validate(TINY)
    context = Context(
        storage=str(tmp_path),
        study_folder=str(tmp_path),
        datasets={d.name: d for d in config.datasets},
        sampling_batch=5,
    )
    store, plan = Store(finished.storage), finished.plan
    compared = {
        "fit_denoiser": "weights.safetensors",
        "fit_guide": "weights.safetensors",
        "generate": "images-*.safetensors",
        "encode": "images-*.safetensors",
        "fit_downstream": "test_predictions.safetensors",
    }
    for job in plan.jobs.values():
        if job.kind == "fit_downstream" and job.arm not in ("real", "generate"):
            continue
        if job.kind in ("search", "decode"):
            continue
        record = run(job, context)
        assert record.status == "done", record.reason
        here = _tensors(tmp_path / "artifacts" / job.kind / job.key, compared[job.kind])
        there = _tensors(store.folder(job.kind, job.key), compared[job.kind])
        for tensor, value in there.items():
            np.testing.assert_allclose(here[tensor], value, atol=1e-4, err_msg=job.label)


def _tensors(folder: Path, pattern: str) -> dict[str, Any]:
    """The tensors of one file, or of all shards that match, joined."""
    import numpy as np
    from safetensors.numpy import load_file

    loaded = [load_file(path) for path in sorted(folder.glob(pattern))]
    if len(loaded) == 1:
        return dict(loaded[0])
    return {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]}


@pytest.mark.slow
def test_what_is_damaged_is_named_kept_and_computed_anew_alone(finished: Finished) -> None:
    """Would catch damage that goes into results, stops the study or is deleted, and work done
    again that was whole: here a changed byte in latents, and a cell whose manifest was torn."""
    store = Store(finished.storage)
    [encode] = [job for job in finished.plan.jobs.values() if job.kind == "encode"]
    cell = finished.plan.cells()[-1]
    latents = _tensors(store.folder("encode", encode.key), "images-*.safetensors")
    shard = next(store.folder("encode", encode.key).glob("images-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    manifest = store.folder(cell.kind, cell.key) / "manifest.json"
    torn = manifest.read_bytes()[:200]
    manifest.write_bytes(torn)
    records = {record.key: record.metrics for record in finished.records}
    before = {p: p.stat().st_mtime_ns for p in finished.storage.glob("artifacts/*/*/done")}

    shown = run(finished.study, finished.storage, "--plan")
    assert shown.returncode == 0, shown.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before, "a plan moved something"
    again = run(finished.study, finished.storage)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "17 jobs, 15 known, 2 to do" in again.stdout
    for job, wrong in ((encode, "checksum"), (cell, "manifest.json is not what was written")):
        [line] = [x for x in again.stdout.splitlines() if f"computed again: {job.label}:" in x]
        assert wrong in line
        assert f"moved to {finished.storage}/damaged/{job.kind}-{job.key}-1" in line
    kept = finished.storage / "damaged"
    assert (kept / f"encode-{encode.key}-1" / shard.name).read_bytes() == content
    assert (kept / f"{cell.kind}-{cell.key}-1" / "manifest.json").read_bytes() == torn
    remade = {store.folder(job.kind, job.key) / "done" for job in (encode, cell)}
    after = {p: p.stat().st_mtime_ns for p in finished.storage.glob("artifacts/*/*/done")}
    assert {p for p in before if before[p] != after[p]} == remade
    for name, value in _tensors(store.folder("encode", encode.key), "images-*").items():
        assert (value == latents[name]).all()
    assert {record.key: record.metrics for record in finished.records} == records


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--set", "networks=[resnet19]"), "unknown network 'resnet19'"),
        (("--set", "datasets=[{name: mine, path: nowhere.npz}]"), "nowhere.npz"),
        (("--set", "resources.cpus_per_task=1000"), "needs 1000 CPU"),
        (("--storage", "nope://bucket/x"), "Protocol not known: nope"),
        (("--storage", "s3://user:secret@bucket/x"), "holds credentials"),
        (("--storage", __file__), f"storage {__file__}"),
        (("--report-only",), "holds nothing of this study"),
        (
            (
                "--report-only",
                "--set",
                "datasets=[{name: breastmnist, size: 28}]",
                "--set",
                "data_dir=/nowhere",
            ),
            "the data of breastmnist is not here",
        ),
        (("--set", "image_size=18", "--set", "denoiser.unet.channels=[16,16,16]"), "levels"),
    ],
)
def test_bad_input_is_refused_with_exit_2(
    tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    """Would catch a mistake that is noticed only after hours, or as a traceback."""
    study = tmp_path / "tiny.yaml"
    study.write_text(yaml.safe_dump(TINY))
    done = run(study, tmp_path / "runs", *options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/artifacts/*"))


def test_a_study_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
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
    refused = run(study, storage, "--report-only")
    assert refused.returncode == 1
    assert f"is in use by process {os.getpid()}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run(study, storage, "--plan").returncode == 0


@pytest.mark.slow
def test_two_drivers_of_one_study_give_one_result(tmp_path: Path, finished: Finished) -> None:
    """Would catch jobs that both compute, records that one of them overwrites, runs that stand in
    MLflow twice, and a driver that ends before all is there."""
    from mlflow.tracking import MlflowClient

    storage = tmp_path / "runs"
    drivers = [
        subprocess.Popen(
            command(finished.study, storage), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    pids = [process.pid for process in drivers]
    said = [process.communicate(timeout=600)[0] for process in drivers]
    assert [process.returncode for process in drivers] == [0, 0], said
    naming = [f"process {pid}" in text for text, pid in zip(said, pids[::-1], strict=True)]
    assert sorted(naming) == [False, True], "one of them leads, and the other says so"
    records = read_records(storage / "studies" / "tiny" / "records.jsonl")
    assert {r.key for r in records} == {r.key for r in finished.records}
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("mgdm-ray")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = [r.data.tags["mgdm.key"] for r in runs]
    assert len(keys) == len(set(keys)) == 21 + len(TINY["arms"])
    assert {r.info.status for r in runs} == {"FINISHED"}


def test_a_damaged_data_file_is_refused_with_exit_2(tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(b"PK\x03\x04 not really")
    study = tmp_path / "tiny.yaml"
    changed: dict[str, Any] = {**TINY, "data_dir": str(tmp_path)}
    changed["datasets"] = [{"name": "mine", "path": "mine.npz", "task": "binary"}]
    study.write_text(yaml.safe_dump(changed))
    done = run(study, tmp_path / "runs")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "mine.npz" in done.stderr
    assert "Traceback" not in done.stderr


PLUGIN = """
from mgdm_ray.diffusion.guidance import register_measurement


@register_measurement("second_choice")
def second_choice(logits, x_t, t, labels):
    return logits.softmax(dim=1).topk(2, dim=1).values[:, 1]
"""


@pytest.mark.slow
def test_a_measurement_of_the_user_guides_a_study(tmp_path: Path) -> None:
    """Would catch a registered measurement that the command line or Ray's workers do not know."""
    (tmp_path / "my_measurements.py").write_text(PLUGIN)
    env = {"PYTHONPATH": str(tmp_path), "MGDM_PLUGINS": "my_measurements"}
    study, storage = tmp_path / "tiny.yaml", tmp_path / "runs"
    small = {**TINY, "search": None, "networks": ["squeezenet1_1"], "arms": ["disturb"]}
    small["setting"] = {"measurement": "second_choice", "label_scale": 0.5, "interval": [0, 800]}
    study.write_text(yaml.safe_dump(small))
    unknown = run(study, storage, "--plan")
    assert unknown.returncode == 2
    assert "unknown measurement 'second_choice'" in unknown.stderr
    broken = run(study, storage, "--plan", env={**env, "MGDM_PLUGINS": "nowhere_to_be_found"})
    assert broken.returncode == 2
    assert "MGDM_PLUGINS=nowhere_to_be_found: ModuleNotFoundError" in broken.stderr
    done = run(study, storage, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    [cell] = [r for r in read_records(storage / "studies" / "tiny" / "records.jsonl") if r.is_cell]
    assert cell.setting["measurement"] == "second_choice"


@pytest.mark.slow
def test_a_failure_costs_only_what_needs_it(tmp_path: Path) -> None:
    """Latents that lost their file: the decode and its cells fail with the reason, the rest goes
    on, exit 1; what failed waits for --retry-failed."""
    study, storage = tmp_path / "tiny.yaml", tmp_path / "runs"
    small = {**TINY, "search": None, "networks": ["squeezenet1_1"]}
    small["arms"] = ["duplicate", "roundtrip"]
    study.write_text(yaml.safe_dump(small))
    store, plan = Store(storage), plan_of(small)
    [encode] = [job for job in plan.jobs.values() if job.kind == "encode"]
    with store.writing("encode", encode.key) as folder:
        record = asdict(base_record(encode))
        store.commit("encode", encode.key, folder, record, {"inputs": {}, "needs": encode.needs})

    done = run(study, storage)
    assert done.returncode == 1, done.stdout + done.stderr
    records = read_records(storage / "studies" / "tiny" / "records.jsonl")
    status = {(r.kind, r.arm): r.status for r in records}
    assert status[("fit_downstream", "duplicate")] == "done"
    assert status[("decode", "roundtrip")] == status[("fit_downstream", "roundtrip")] == "failed"
    reasons = {r.kind: r.reason for r in records if r.status == "failed"}
    assert "has no images" in reasons["decode"]
    assert reasons["fit_downstream"].startswith("needs decode")
    assert "--retry-failed" in done.stdout
    log = next(Path(w) for w in done.stdout.split() if w.endswith(".log"))
    assert "Traceback" in log.read_text()

    again = run(study, storage)
    assert again.returncode == 1
    assert "0 to do" in again.stdout
    retried = run(study, storage, "--retry-failed")
    assert "2 to do" in retried.stdout
    assert retried.returncode == 1


@pytest.mark.slow
def test_a_full_disk_says_so_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Would catch a traceback, a study of failed jobs, and a result cut short by a full disk: here
    Ray Train's own checkpoints meet it."""
    study, storage = tmp_path / "tiny.yaml", tmp_path / "disk"
    fit = {**TINY, "arms": ["generate"], "networks": ["squeezenet1_1"], "search": None}
    study.write_text(yaml.safe_dump(fit))
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(storage), "-o"]
    if subprocess.run([*mount, "size=700k"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        full = run(study, storage / "runs")
        assert full.returncode == 1, full.stdout
        assert "error: no space left on the disk" in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run([*mount, "remount,size=300m"], check=True)
        again = run(study, storage / "runs")
        assert again.returncode == 0, again.stdout + again.stderr
    finally:
        subprocess.run(["umount", str(storage)], check=True)


@pytest.mark.slow
def test_a_worker_that_dies_is_one_failed_cell(tmp_path: Path) -> None:
    """Would catch one dead process taking the study with it, going unnoticed, or being held
    against the cell for good."""
    study, storage = tmp_path / "tiny.yaml", tmp_path / "runs"
    cells = {**TINY, "arms": ["real", "duplicate"], "networks": ["squeezenet1_1"]}
    cells["downstream"] = {"steps": 60, "batch_size": 8}
    study.write_text(yaml.safe_dump({**cells, "resources": {"max_retries": 0}}))
    process = subprocess.Popen(command(study, storage), stdout=subprocess.PIPE, text=True)
    victim = None
    deadline = time.monotonic() + 300
    while victim is None and time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        titles = [(c, " ".join(c.cmdline())) for c in children if c.is_running()]
        victim = next((c for c, title in titles if title.startswith("ray::fit_downstream")), None)
        time.sleep(0.05)
    assert victim is not None
    victim.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    records = read_records(storage / "studies" / "tiny" / "records.jsonl")
    assert sorted(r.status for r in records) == ["done", "failed"]
    [failed] = [r for r in records if r.status == "failed"]
    assert failed.reason.startswith("its worker died: WorkerCrashedError")
    assert "the same command tries again" in output
    again = run(study, storage)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_search_killed_midway_tries_the_rest_and_nothing_twice(tmp_path: Path) -> None:
    """Would catch a search that starts over, loses its trials or repeats them after a power cut."""
    import optuna
    from optuna.trial import TrialState

    from mgdm_ray.runtime.optuna_storage import sqlite_storage

    study, storage = tmp_path / "tiny.yaml", tmp_path / "runs"
    small = {**TINY, "arms": ["disturb"], "networks": ["squeezenet1_1"]}
    small["search"] = {**TINY["search"], "trials": 5, "max_concurrent": 1, "steps": 60}
    study.write_text(yaml.safe_dump(small))
    folder = storage / "studies" / "tiny"

    def numbers(state: TrialState) -> list[int]:
        database = folder / "optuna" / "phantom-ultrasound.db"
        if not database.exists():
            return []
        stored = sqlite_storage(database)
        names = optuna.get_all_study_names(stored)
        trials = [t for n in names for t in optuna.load_study(study_name=n, storage=stored).trials]
        return [t.number for t in trials if t.state == state]

    process = subprocess.Popen(command(study, storage), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not numbers(TrialState.COMPLETE):
        time.sleep(0.3)
    process.kill()
    process.wait()
    assert 1 <= len(numbers(TrialState.COMPLETE)) < 5
    time.sleep(5)  # Ray's processes see that their driver is gone
    again = run(study, storage)
    assert again.returncode == 0, again.stdout + again.stderr
    records = read_records(folder / "records.jsonl")
    assert len([r for r in records if r.kind == "trial" and r.status == "done"]) == 5
    scales = [r.setting["uncertainty_scale"] for r in records if r.kind == "trial"]
    assert len(set(scales)) == 5
    assert numbers(TrialState.COMPLETE) == [0, 1, 2, 3, 4]
    assert numbers(TrialState.RUNNING) == []


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_a_rerun_finishes(tmp_path: Path) -> None:
    """Would catch an interrupted study that loses work, hangs or leaves Ray running; and one that
    MLflow, which cannot be reached all the while, holds up, or never hears of."""
    from mlflow.tracking import MlflowClient

    study, storage = tmp_path / "tiny.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump({**TINY, "arms": ["real", "duplicate"]}))
    nowhere = ("--set", "tracking.uri=http://127.0.0.1:9")
    process = subprocess.Popen(
        command(study, storage, *nowhere),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(storage.glob("artifacts/*/*/done")):
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    kept = len(list(storage.glob("artifacts/*/*/done")))
    assert kept >= 1
    again = run(study, storage, *nowhere)
    assert again.returncode == 0, again.stderr
    assert f"{kept} known" in again.stdout
    assert again.stderr.count("--report-only writes MLflow anew") <= 2, "once a connection"
    assert run(study, storage, "--report-only").returncode == 0
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("mgdm-ray")
    runs = client.search_runs([experiment.experiment_id])
    records = read_records(storage / "studies" / "tiny" / "records.jsonl")
    assert len(runs) == 1 + len(records) + 2  # the study, and a mean per arm


def test_a_ray_that_does_not_start_is_told(tmp_path: Path) -> None:
    """Would catch a traceback: Ray raises many kinds of errors from its start, here an OSError,
    for its sockets' names get too long."""
    deep = tmp_path / ("x" * 110)
    deep.mkdir()
    done = run(
        ROOT / "studies" / "quickstart.yaml", tmp_path / "runs", env={"RAY_TMPDIR": str(deep)}
    )
    assert done.returncode == 1, done.stderr
    assert "error: Ray did not start on this machine (" in done.stderr
    assert "Traceback" not in done.stderr
