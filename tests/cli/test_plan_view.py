"""What ``--plan`` says, of a storage that a test has filled by hand."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mgdm_ray import environment
from mgdm_ray.cli import plan_view
from mgdm_ray.cli.plan_estimate import BETWEEN_S, START_UP_S, PlanEstimate
from mgdm_ray.config import ARMS, NETWORKS, StudyConfig
from mgdm_ray.pipeline.cost_model import manifests_in
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.store import Store
from tests import golden
from tests.conftest import TINY
from tests.pipeline.test_cost_model import put

PLAIN = {**TINY["downstream"], "augment": "none"}
"""With which an arm `augment` is something of its own."""

SECONDS = {
    "fit_denoiser": 30.0,
    "fit_guide": 20.0,
    "generate": 5.0,
    "encode": 4.0,
    "search": 9.0,
    "confirm": 6.0,
    "decode": 3.0,
    "fit_downstream": 2.0,
}


def plan_of(study: dict[str, Any]) -> tuple[StudyConfig, Plan]:
    config = StudyConfig.model_validate(study)
    return config, make_plan(config, {d.name: "x" for d in config.datasets})


def fill(store: Store, jobs: list[Job]) -> None:
    for job in jobs:
        images = {"images": 20.0} if job.kind in ("generate", "encode", "decode") else {}
        put(store, job, SECONDS[job.kind], {"file": "x" * 1000}, **images)


def plan_estimate(
    tmp_path: Path, study: dict[str, Any], failures: tuple[Record, ...] = (), **options: Any
) -> PlanEstimate:
    config, plan = plan_of(study)
    store = Store(tmp_path)
    return PlanEstimate(
        config,
        plan,
        store,
        manifests_in(store),
        {r.key: r for r in failures},
        [],
        {d.name: 40 for d in config.datasets},
        options.pop("node", {"CPU": 2.0, "GPU": 0.0}),
        **options,
    )


def test_the_time_of_a_chain_with_cells_beside_it(tmp_path: Path) -> None:
    """Would catch a sum of seconds divided by cores: the chain of models is what takes long.

    One round-trip cell of a new seed: denoiser 30, generate 5, encode 4, decode 3, cell 2, one
    after the other; the two real cells run beside the denoiser.
    """
    study = {**TINY, "arms": ["real", "roundtrip"], "networks": ["alexnet"], "seeds": [0, 1]}
    fill(Store(tmp_path), list(plan_of(study)[1].jobs.values()))
    new = plan_estimate(tmp_path, {**study, "seed": 7, "seeds": [5]})
    assert len(new.todo) == 6
    assert not new.unknown
    assert new.seconds() == pytest.approx(START_UP_S + 30 + 5 + 4 + 3 + 2 + 5 * BETWEEN_S)
    assert new.bytes(list(new.todo.values())) == 6 * 1000
    cpu, gpu = new.hours(list(new.todo.values()))
    assert cpu == pytest.approx((44 + 2) / 3600)
    assert gpu == 0


def test_half_of_the_cells_cost_half(tmp_path: Path) -> None:
    """Would catch an estimate that counts what is done: 10 of 20 cells, two at a time."""
    study = {**TINY, "seeds": 2, "draws": "one"}
    jobs = list(plan_of(study)[1].jobs.values())
    fill(Store(tmp_path), [j for j in jobs if j.seed in (None, 0)])
    half = plan_estimate(tmp_path, study)
    assert {j.seed for j in half.todo.values()} == {1}
    assert half.seconds() == pytest.approx(START_UP_S + 5 * (2 + BETWEEN_S))


def test_the_price_of_draws_is_shown_and_counted(tmp_path: Path) -> None:
    """Would catch draws that nobody is told of, or that the estimate forgets. By hand: a second
    draw takes 5 + 4 + 2 x 3 = 15 s beside 30 + 20 + 5 + 4 + 9 + 2 x 3 + 20 x 2 = 114 s."""
    fill(Store(tmp_path), list(plan_of(TINY)[1].jobs.values()))
    new = {**TINY, "seed": 3, "seeds": 2}
    several, one = plan_estimate(tmp_path, new), plan_estimate(tmp_path, {**new, "draws": "one"})
    seconds = [3600 * sum(e.hours(list(e.todo.values()))) for e in (several, one)]
    assert seconds[0] - seconds[1] == pytest.approx(15)
    assert len(several.plan.jobs) - len(one.plan.jobs) == 4
    text = plan_view.draws(several)
    assert re.search(r"\b2 \(images\), 4 jobs\b.*1 generate, 1 encode, 2 decode", text)
    assert f"{100 * 15 / seconds[1]:.0f} %" in text
    assert re.search(r"\bone\b.*\bno interval\b", plan_view.draws(one))
    models = plan_view.draws(plan_estimate(tmp_path, {**new, "draws": "models"}))
    assert re.search(r"\b6 jobs\b.*1 fit_denoiser, 1 generate", models)
    assert not plan_view.draws(plan_estimate(tmp_path, {**new, "seeds": 1}))
    assert not plan_view.draws(plan_estimate(tmp_path, {**new, "arms": ["real", "duplicate"]}))


def test_what_is_shared() -> None:
    """TINY by hand: 10 cells; generate, roundtrip and disturb (2 networks each) need the denoiser.

    Alone: denoiser 6, guide 2, generate 6, encode 4, search 2, decode 4, and 10 cells.
    """
    text = plan_view.sharing(plan_of(TINY)[1])
    for part in (
        "1 fit_denoiser by 6,",
        "1 fit_guide by 2,",
        "1 generate by 6,",
        "1 encode by 4 (and by 3 trials),",
        "2 decode by 4",
    ):
        assert part in text
    assert re.search(r"\b17 jobs\b.*\b34$", text)
    again = {**TINY, "search": {**TINY["search"], "confirm": {}}}
    confirmed = plan_view.sharing(plan_of(again)[1])
    assert re.search(r"\b18 jobs\b.*\b35$", confirmed)  # one more that serves no cell
    assert not re.search(r"\d", plan_view.sharing(plan_of({**TINY, "arms": ["real"]})[1]))


def test_what_failed_is_said_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a plan that counts what will not be tried, or hides why."""
    job = plan_of(TINY)[1].cells()[0]
    lost = Record(job.key, job.kind, "failed", reason="RuntimeError: the disk was full")
    shown = plan_estimate(tmp_path, TINY, (lost,))
    assert job.key not in shown.todo
    plan_view.show(shown)
    out = capsys.readouterr().out
    assert f"{job.label}: RuntimeError: the disk was full" in out
    assert "--retry-failed" in out
    assert job.key in plan_estimate(tmp_path, TINY, (lost,), retry_failed=True).todo


def test_what_cannot_run_here_is_said_with_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a crash of the simulation, and hours promised for what never starts."""
    fill(Store(tmp_path), list(plan_of(TINY)[1].jobs.values()))
    plan_view.show(plan_estimate(tmp_path, {**TINY, "seed": 3, "resources": {"gpus_per_task": 1}}))
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith("  ") and "1 GPU" in line]
    assert "generate phantom-ultrasound" in line
    assert re.search(r"^estimated time: unknown", out, re.MULTILINE)


def test_a_whole_plan_reads_like_its_golden_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a changed sentence or column: tests/golden/plan.txt is what a user sees."""
    monkeypatch.setattr(plan_view, "free_bytes", lambda _folder: 5 * 10**9)
    fill(Store(tmp_path), list(plan_of(TINY)[1].jobs.values()))
    longer = {**TINY["denoiser"], "steps": 12}
    networks = [*TINY["networks"], "resnet18"]
    shown = plan_estimate(tmp_path, {**TINY, "denoiser": longer, "networks": networks})
    plan_view.show(shown)
    golden.check("plan", capsys.readouterr().out, tmp_path)


def test_too_little_space_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a disk that is full after a day."""
    fill(Store(tmp_path), list(plan_of(TINY)[1].jobs.values()))
    new = plan_estimate(tmp_path, {**TINY, "seed": 3})
    plan_view.show(new)
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setattr(plan_view, "free_bytes", lambda _folder: 100)
    plan_view.show(new)
    assert re.search(rf"^warning: .*{tmp_path}", capsys.readouterr().out, re.MULTILINE)


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert plan_view.free_bytes(tmp_path / "a" / "b") > 0


def test_estimates_say_what_they_rest_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a scaled or missing figure that looks like a measured one."""
    fill(Store(tmp_path), list(plan_of(TINY)[1].jobs.values()))
    longer = {**TINY["denoiser"], "steps": 12}
    networks = [*TINY["networks"], "resnet18"]
    plan_view.show(plan_estimate(tmp_path, {**TINY, "denoiser": longer, "networks": networks}))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert re.search(r"\b60\.0\b.*\bscaled\b.* 1 ", lines["fit_denoiser"])
    assert re.search(r" 1 \D*$", lines["generate"])
    assert "scaled" not in lines["generate"]
    assert re.search(r" 5 .*\(6\).*\bunknown\b.*\(5\)$", lines["fit_downstream"])
    assert re.search(r"\bunknown\b.*\bfit_downstream\b", lines["estimated"])


def test_ten_thousand_cells_are_planned_in_seconds(tmp_path: Path) -> None:
    """Would catch work that grows with the square of the jobs."""
    study = {
        **TINY,
        "datasets": [{"name": f"own{i}", "path": f"{i}.npz", "size": 16} for i in range(4)],
        "networks": list(NETWORKS),
        "arms": list(ARMS),
        "downstream": PLAIN,
        "seeds": 36,
    }
    fill(Store(tmp_path), list(plan_of({**study, "seeds": 1})[1].jobs.values())[:60])
    started = time.process_time()  # other work on this machine does not count
    many = plan_estimate(tmp_path, {**study, "seed": 1})
    plan_view.show(many)
    assert len(many.plan.cells()) == 10_080
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("visible", "there", "expected"),
    [(None, 2, 2), ("", 2, 0), ("0", 2, 1), ("0,1,2", 2, 2), ("1,-1,0", 2, 1), ("-1", 2, 0)],
)
def test_gpus_are_counted_as_cuda_shows_them(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, there: int, expected: int
) -> None:
    """Would catch a plan that promises GPUs that the run does not see."""
    files = [Path(f"/dev/nvidia{i}") for i in range(there)] + [Path("/dev/nvidia0x")]
    monkeypatch.setattr(Path, "glob", lambda _self, _pattern: iter(files))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment.gpus() == expected


def command(study: Path, storage: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "mgdm_ray.study", str(study), "--storage", str(storage), *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)


def test_probe_without_plan_is_refused(tmp_path: Path, write_study: Any) -> None:
    """Would catch a probe that is forgotten in silence while days of work begin."""
    done = command(write_study(TINY), tmp_path / "runs", "--probe")
    assert done.returncode == 2
    assert "--plan" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_probe_prices_what_has_never_run(tmp_path: Path, write_study: Any) -> None:
    """Would catch a kind of job that cannot be probed, and probes that are not kept."""
    search = {**TINY["search"], "confirm": {}}
    judge = {"network": "resnet18"}
    all_arms = {"arms": list(ARMS), "downstream": PLAIN}
    study = write_study({**TINY, **all_arms, "search": search, "judge": judge})
    first = command(study, tmp_path / "runs", "--plan", "--probe")
    assert first.returncode == 0, first.stderr
    assert "estimated time: about" in first.stdout
    second = command(study, tmp_path / "runs", "--plan")
    assert "estimated time: about" in second.stdout
    assert "a probe" in second.stdout
    again = command(study, tmp_path / "runs", "--plan", "--probe")
    assert "probe 1 of" not in again.stdout
