"""The driver's check, with an nvidia-smi of the tests on the PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mgdm_ray.cli import doctor_checks as doctor
from mgdm_ray.cli import gpu_driver
from mgdm_ray.cli.gpu_driver import DriverError, Gpu, faults, listed, main, on_bus
from mgdm_ray.precision import built_for
from tests.cli.test_doctor_checks import last, setup
from tests.conftest import ROOT

L4 = "NVIDIA L4, 580.105.08, 8.9"
T4 = "Tesla T4, 580.65.06, 7.5"
OLD = "NVIDIA A10G, 550.163.01, 8.6"
V100 = "Tesla V100-SXM2-16GB, 580.105.08, 7.0"
Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Put an nvidia-smi on the PATH: it prints ``lines``, or exits with ``code``."""

    def place(*lines: str, code: int = 0, knows_capability: bool = True) -> None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        refuse = "" if knows_capability else 'case "$*" in *compute_cap*) exit 2;; esac\n'
        rows = "\n".join(lines)
        tool.write_text(f"#!/bin/sh\n{refuse}cat <<'END'\n{rows}\nEND\nexit {code}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")

    return place


def bus(folder: Path, *devices: tuple[str, str]) -> Path:
    for number, (vendor, kind) in enumerate(devices):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "vendor").write_text(f"{vendor}\n")
        (folder / str(number) / "class").write_text(f"{kind}\n")
    return folder


def test_gpus_are_read(smi: Smi) -> None:
    """Would catch a name with a comma, and a driver of 2021 that does not know the capability."""
    smi(L4, "NVIDIA H100, 80GB, 580.65.06, 9.0")
    assert listed() == [
        Gpu("NVIDIA L4", "580.105.08", (8, 9)),
        Gpu("NVIDIA H100, 80GB", "580.65.06", (9, 0)),
    ]
    smi("Tesla T4, 460.32.03", knows_capability=False)
    assert listed() == [Gpu("Tesla T4", "460.32.03", None)]
    smi("Tesla T4, 580.65.06, [N/A]")
    assert listed() == [Gpu("Tesla T4", "580.65.06", None)]


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        (L4, 0, []),
        (T4, 0, []),
        ("NVIDIA H200, 1000.1.2, 9.0", 0, []),
        (OLD, 1, ["550.163.01", "580.65.06", "NVIDIA A10G"]),
        ("NVIDIA L4, 580.65.05, 8.9", 1, ["580.65.05"]),
        (V100, 1, ["V100", "7.0", "7.5"]),
    ],
)
def test_what_torch_cannot_use_is_refused(
    smi: Smi, capsys: pytest.CaptureFixture[str], line: str, code: int, named: list[str]
) -> None:
    """Would catch a comparison of texts, and a node that is rented for nothing."""
    smi(line)
    assert main(["13.0"]) == code
    shown = capsys.readouterr()
    assert bool(shown.err) == bool(code)
    assert all(word in shown.err for word in named)


def test_another_torch_needs_another_driver() -> None:
    """Would catch an older torch, installed for older GPUs, that is refused all the same."""
    gpus = [Gpu("Tesla V100", "550.54.15", (7, 0))]
    assert faults(gpus, "12.6") == []
    assert faults(gpus, "14.0") == [], "nothing is known of it"
    assert len(faults(gpus, "13.0")) == 2
    assert len(faults(gpus, "13.0", driver=False)) == 1
    assert len(faults(gpus, "12.8", least=(7, 5))) == 1
    assert len(faults(gpus * 8, "13.0")) == 2, "once, not once per GPU"


def test_a_gpu_without_a_driver_is_noticed(
    tmp_path: Path, smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a GPU node that joins without a GPU, and a node without one that is refused."""
    gpu = bus(tmp_path / "gpu", ("0x10de", "0x030200"), ("0x10de", "0x040300"))
    none = bus(tmp_path / "none", ("0x1d0f", "0x020000"), ("0x10de", "0x020000"))
    assert (on_bus(gpu), on_bus(none), on_bus(tmp_path / "absent")) == (1, 0, 0)
    smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", code=9)
    assert listed(none) == []
    with pytest.raises(DriverError, match=r"\b1\b.*\bPCI\b"):
        listed(gpu)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert listed(none) == []
    with pytest.raises(DriverError, match="install NVIDIA's driver"):
        listed(gpu)


def test_a_driver_that_hangs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu_driver, "ANSWERS_IN_S", 0.5)
    with pytest.raises(DriverError, match="does not answer"):
        listed()


@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
def test_the_limits_are_those_of_the_pinned_torch() -> None:
    """Would catch a new torch whose CUDA or GPUs nobody looked up."""
    cuda = str(torch.version.cuda)
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(rf"^# cuda=={re.escape(cuda)}\b", text, re.MULTILINE)
    major = cuda.partition(".")[0]
    assert built_for() == (cuda, gpu_driver.CAPABILITIES[major])
    needed = gpu_driver.DRIVERS[major]
    launched = ("gpu.yaml", "gcp.yaml", "onprem.yaml", "kuberay.yaml", "slurm.sh", "Dockerfile",
                "docker-compose.yaml")  # fmt: skip
    for name in launched:
        text = (ROOT / "cluster" / name).read_text(encoding="utf-8")
        assert needed in text, name
        assert "V100" in text, name


@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU that works")
def test_the_doctor_says_what_is_wrong_with_a_gpu(smi: Smi) -> None:
    """Would catch a doctor that says "no GPU" where the driver is too old."""
    smi(OLD)
    line = last(doctor.computing, setup())
    assert line.word == "no"
    assert "550.163.01" in line.text
    smi(V100)
    line = last(doctor.computing, setup())
    assert line.word == "no"
    assert "compute capability 7.0" in line.text
    smi(code=9)
    assert last(doctor.computing, setup()).word == "note"


@pytest.mark.parametrize(("line", "code"), [(L4, 0), (OLD, 1), (V100, 1)])
def test_a_node_refuses_what_torch_cannot_use(
    tmp_path: Path, smi: Smi, line: str, code: int
) -> None:
    """Would catch a node.sh that lets a node with such a GPU join."""
    smi(line)
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("t")
    (home / "mgdm-env").symlink_to(sys.prefix)
    project = tmp_path / "project"
    (project / "cluster").mkdir(parents=True)
    shutil.copy(ROOT / "cluster" / "node.sh", project / "cluster")
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    (project / "mgdm_ray").symlink_to(ROOT / "mgdm_ray")
    script = f"cat {project}/constraints.txt {project}/pyproject.toml <(echo s3) | sha256sum"
    installed = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True)
    (home / ".mgdm-node").write_text(installed.stdout)
    run = subprocess.run(
        ["bash", str(project / "cluster" / "node.sh"), "s3"],
        env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    assert ("packages are up to date" in run.stdout) == (code == 0)
    assert bool(run.stderr) == bool(code)
