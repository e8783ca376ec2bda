"""An image of a head: what is in it, and how it is made."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from pathlib import Path

import boto3
import pytest

from cluster import snapshot
from cluster.check import FOLDER
from tests.cluster.aws import Account, account, provider_of

__all__ = ["account"]
SECRET = (
    ".ray/auth_token", ".aws/credentials", ".mlflow/credentials", "mgdm-mlflow/password",
    "ray_bootstrap_key.pem", "ray_bootstrap_config.yaml", ".bash_history",
    "mgdm-ray/data/patient.npz", ".cache/uv/archive",
)  # fmt: skip
KEPT = ("mgdm-env/bin/ray", ".mgdm-node", ".bashrc", ".ssh/authorized_keys")


def node(home: Path, cluster: str) -> None:
    """A head's home folder, as `ray up` leaves it."""
    for name in (*SECRET, *KEPT):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    (home / "mgdm-env/bin/ray").write_text("#!/bin/sh\n")
    (home / "mgdm-env/bin/ray").chmod(0o755)
    (home / "mgdm-ray/cluster").mkdir()
    for name in ("clean.sh", "mlflow.sh"):
        (home / "mgdm-ray/cluster" / name).write_bytes((FOLDER / name).read_bytes())
        (home / "mgdm-ray/cluster" / name).chmod(0o755)
    (home / "ray_bootstrap_config.yaml").write_text(json.dumps({"cluster_name": cluster}))


def clean(home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(home / "mgdm-ray/cluster/clean.sh")],
        env={**os.environ, "HOME": str(home), "RAY_TMPDIR": str(home / "tmp")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_an_image_contains_packages_and_no_secret(tmp_path: Path) -> None:
    """Would catch a token, a key or images of patients in an image that others may start."""
    node(tmp_path, "mgdm-image")
    (tmp_path / "tmp/ray/session_latest").mkdir(parents=True)
    run = clean(tmp_path)
    assert run.returncode == 0, run.stderr
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == set(KEPT)
    assert not (tmp_path / "tmp/ray").exists()


@pytest.mark.parametrize("cluster", ["mgdm-gpu", "mgdm-image-2"])
def test_a_head_that_works_is_not_cleaned(tmp_path: Path, cluster: str) -> None:
    """Would catch the loss of MLflow's data by a command on the wrong cluster."""
    node(tmp_path, cluster)
    run = clean(tmp_path)
    assert run.returncode == 1
    assert "mgdm-image" in run.stderr, "the only cluster that is cleaned"
    assert all((tmp_path / name).exists() for name in (*SECRET, *KEPT))


def test_an_image_is_made_once(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch an image of another cluster's head, and one more image at every call."""
    config = account.bootstrapped()
    account.start(provider_of(config), config, "head")
    assert snapshot.main([]) == 1
    assert re.search(r"\b0\b.*\bmgdm-image\b", capsys.readouterr().err)
    builder = copy.deepcopy({**config, "cluster_name": "mgdm-image"})
    started = account.start(provider_of(builder), builder, "head")
    assert snapshot.main([]) == 0
    said = capsys.readouterr().out.splitlines()[-1]  # before it, Ray's
    images = boto3.client("ec2").describe_images(Owners=["self"])["Images"]
    (image,) = [image for image in images if image["Name"] == snapshot.image_name()]
    assert said == f"ImageId: {image['ImageId']}"
    (sent,) = account.sent("CreateImage")
    assert sent["InstanceId"] == started["InstanceId"]
    assert not sent.get("NoReboot")
    assert snapshot.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [said]
    assert len(account.sent("CreateImage")) == 1


def test_the_image_is_named_after_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an old image that is taken for one of other versions."""
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((snapshot.ROOT / name).read_bytes())
    before = snapshot.image_name()
    monkeypatch.setattr(snapshot, "ROOT", tmp_path)
    assert snapshot.image_name() == before
    with (tmp_path / "constraints.txt").open("a") as file:
        file.write("zipp==0\n")
    assert snapshot.image_name() != before
