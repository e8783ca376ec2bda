"""``python -m mgdm_ray.doctor``, which is also ``python -m mgdm_ray.study doctor``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mgdm_ray import doctor, study
from tests.conftest import ROOT

COMMANDS = [doctor.main, lambda words: study.main(["doctor", *words])]
QUICKSTART = str(ROOT / "studies" / "quickstart.yaml")


@pytest.mark.parametrize("main", COMMANDS)
def test_a_wrong_study_ends_with_2(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a missing study that is treated as if none were named."""
    assert main([str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--nonsense"])


def test_one_problem_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an exit code that only the last check decides."""
    storage, disk = doctor.CHECKS[-2], doctor.CHECKS[4]
    monkeypatch.setattr(doctor, "CHECKS", (storage, disk))
    (tmp_path / "file").touch()
    assert doctor.main([QUICKSTART, "--storage", str(tmp_path / "file")]) == 1
    first, _disk, closing = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["no", "storage"]
    assert closing == "1 problem found."


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a check that does not work with the real Ray, torch and MLflow."""
    assert doctor.main([QUICKSTART, "--storage", str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out
    for check in ("ok   torch", "ok   Ray", "ok   dataset phantom-dermatoscopy", "ok   MLflow"):
        assert check in lines
