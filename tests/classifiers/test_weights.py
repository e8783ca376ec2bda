"""What a study asks of its networks is found out before it starts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import squeezenet1_1

from mgdm_ray import study
from mgdm_ray.classifiers.weights import require_timm, weights_fingerprints
from mgdm_ray.config import InputError, load_study
from mgdm_ray.pipeline.plan import Plan, make_plan


def plan_of(path: Path, *overrides: str) -> Plan:
    config = load_study(path, overrides)
    contents = {d.name: "content" for d in config.datasets}
    return make_plan(config, {**contents, **weights_fingerprints(config)})


def weights_in(folder: Path, networks: list[str], content: bytes) -> Path:
    folder.mkdir()
    for name in networks:
        (folder / f"{name}.safetensors").write_bytes(content)
    return folder


def test_keys_follow_the_weights_and_not_their_folder(
    tiny: dict[str, Any], write_study: Any, tmp_path: Path
) -> None:
    """Catches cells that are taken for done after their weights have changed, or computed anew
    because a folder was moved."""
    path = write_study(tiny)
    names = [*tiny["networks"], *tiny.get("search", {}).get("networks", [])]
    same, moved, other = (
        weights_in(tmp_path / folder, names, content)
        for folder, content in (("same", b"1"), ("moved", b"1"), ("other", b"2"))
    )
    keys = [
        {job.key for job in plan_of(path, f"downstream.pretrained={folder}").cells()}
        for folder in (same, moved, other)
    ]
    assert keys[0] == keys[1]
    assert not keys[0] & keys[2]
    assert not keys[0] & {job.key for job in plan_of(path).cells()}


def test_missing_weights_end_the_study_before_it_starts(
    tiny: dict[str, Any], write_study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a study that trains for hours and then fails in its first cell."""
    path = write_study(tiny | {"downstream": {"pretrained": str(tmp_path)}})
    assert study.main([str(path), "--storage", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    first = tiny["networks"][0]
    for part in ("downstream.pretrained", f"{first}.safetensors", str(tmp_path)):
        assert part in said
    assert not (tmp_path / "runs" / "artifacts").exists()


def test_the_line_that_converts_a_pth_is_right(
    tiny: dict[str, Any], write_study: Any, tmp_path: Path
) -> None:
    """Catches advice that does not work: the message's own command is run, then the file is read.

    squeezenet's state has no tensors that share memory; keys are compared with torchvision's.
    """
    weights = squeezenet1_1(weights=None).state_dict()
    torch.save(weights, tmp_path / "squeezenet1_1.pth")
    names = ["squeezenet1_1"]
    study = tiny | {"networks": names, "downstream": {"pretrained": str(tmp_path)}}
    config = load_study(write_study(study))
    with pytest.raises(InputError, match="save_file") as caught:
        weights_fingerprints(config)
    command = re.search(r"python -c '(.*)'; or", str(caught.value))
    assert command is not None
    subprocess.run([sys.executable, "-c", command[1]], cwd=tmp_path, check=True)
    assert set(weights_fingerprints(config)) == {"weights/squeezenet1_1"}
    assert set(load_file(tmp_path / "squeezenet1_1.safetensors")) == set(weights)


def test_a_name_that_timm_does_not_have(tiny: dict[str, Any], write_study: Any) -> None:
    """Catches a typing error that only a worker would find."""
    pytest.importorskip("timm", reason="timm is optional")
    for wrong in ("timm/resnet10x", "timm/resnet10t.nonsense"):
        config = load_study(write_study(tiny | {"networks": [wrong]}))
        with pytest.raises(InputError, match=wrong):
            require_timm(config)
    right = ["timm/resnet10t", "timm/resnet10t.c3_in1k"]
    require_timm(load_study(write_study(tiny | {"networks": right})))
