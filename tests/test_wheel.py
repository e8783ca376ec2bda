"""The installed wheel alone: its command, the shipped studies and their schema."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from mgdm_ray.__main__ import COMMANDS, main
from tests.conftest import ROOT

PROJECT = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def run(command: list[str], folder: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_plans_a_shipped_study_from_an_empty_folder(tmp_path: Path) -> None:
    """Would catch files that only a checkout has. Libraries are those of the running environment;
    as a path of a .pth file it does not bring its editable install of this package along."""
    source, env, empty = tmp_path / "source", tmp_path / "env", tmp_path / "empty"
    empty.mkdir()
    for name in ("mgdm_ray", "studies"):
        shutil.copytree(ROOT / name, source / name)
    for name in PROJECT:
        shutil.copy2(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)], source)
    [wheel] = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "mgdm_ray").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert path.relative_to(ROOT).as_posix() in packed

    venv.create(env, symlinks=True)
    python = env / "bin" / "python"
    run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], empty)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(env)}))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    code = (
        "import mgdm_ray, mgdm_ray.config.file as f; print(mgdm_ray.__file__, f.shipped_studies())"
    )
    where = run([str(python), "-c", code], empty).split()
    assert where == [str(site / "mgdm_ray/__init__.py"), str(site / "mgdm_ray/studies")]
    assert (site / "mgdm_ray/studies/study.schema.json").is_file()
    plan = run([str(env / "bin" / "mgdm-ray"), "study", "quickstart", "--plan"], empty)
    assert "study quickstart: 2 datasets" in plan
    assert not list(empty.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "code"), [([], 2), (["studdy"], 2), (["--help"], 0)])
def test_what_is_no_command_lists_them(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    said = "".join(capsys.readouterr())
    assert all(name in said for name in COMMANDS)
