"""The head's autoscaler, as `ray up` starts it, with gpu.yaml's node types and an EC2 of moto."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest
import ray
from moto.moto_api import recorder
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND

from cluster import iam
from tests.chaos.storm import free_port
from tests.cluster.aws import HEAD_TAGS, allowed, bootstrapped, forget_connections
from tests.storage.remote.server import s3_server

pytestmark = [pytest.mark.long, pytest.mark.cluster]


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What `ray up` leaves on the head, which runs already; every request is recorded."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    monkeypatch.setattr(recorder, "_location", str(tmp_path / "requests.jsonl"))
    with s3_server():
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
        forget_connections()
        assert iam.main(["the-bucket"]) == 0
        ec2 = boto3.client("ec2")
        image = ec2.register_image(Name="the newest", RootDeviceName="/dev/sda1")["ImageId"]
        # moto does not look up `resolve:ssm:NAME`.
        yield bootstrapped(ImageId=image)
    forget_connections()


@contextmanager
def head(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """Ray's head with its autoscaler; the address."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    node = dict(config["available_node_types"]["head"]["node_config"])
    (instance,) = provider.create_node(node, dict(HEAD_TAGS), 1)
    path = folder / "ray_bootstrap_config.yaml"
    # The launcher replaces the mounts by folders of the head.
    path.write_text(json.dumps({**config, "file_mounts": {}}), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    # Short, for the names of sockets, and not where others look for a running Ray.
    temporary = tempfile.mkdtemp(prefix="mgdm-", dir="/tmp")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
               f"--port={address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1",
               "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false",
               f"--autoscaling-config={path}", f"--temp-dir={temporary}"]  # fmt: skip
    chosen = {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": instance,
              "RAY_NODE_TYPE_NAME": "head"}  # fmt: skip
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **chosen}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def workers() -> list[dict[str, Any]]:
    kind = [{"Name": f"tag:{TAG_RAY_NODE_KIND}", "Values": [NODE_KIND_WORKER]}]
    found = boto3.client("ec2").describe_instances(Filters=kind)["Reservations"]
    return [instance for group in found for instance in group["Instances"]]


def wait(what: str, test: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s: not {what}"
        time.sleep(1)


def requests(path: Path) -> set[str]:
    """The actions that were asked for."""
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        body = base64.b64decode(entry["body"]).decode() if entry["body_encoded"] else entry["body"]
        found |= set(parse_qs(body).get("Action", []))
    return found


def test_a_task_that_needs_a_gpu_rents_one_spot_node(
    account: dict[str, Any], tmp_path: Path
) -> None:
    """Would catch node types that the autoscaler cannot start, more nodes than are needed, and a
    request of it that the head's role does not allow."""
    with head(account, tmp_path) as address:
        wait(
            "a head", lambda: (tmp_path / "head.log").read_text().count("Ray runtime started"), 120
        )
        recorder.start_recording()
        ray.init(address=address, log_to_driver=False)
        try:
            assert workers() == []
            task = ray.remote(num_cpus=2, num_gpus=1)(lambda: 1).remote()
            wait("a worker rented", workers, 120)
            time.sleep(10)  # time for more
            (worker,) = workers()
            ray.cancel(task)
        finally:
            recorder.stop_recording()
            ray.shutdown()
    assert worker["InstanceType"] == "g6.2xlarge"
    assert worker["InstanceLifecycle"] == "spot"
    assert worker["IamInstanceProfile"]["Arn"].endswith(":instance-profile/mgdm-worker")
    tags = {tag["Key"]: tag["Value"] for tag in worker["Tags"]}
    assert (tags["ray-cluster-name"], tags["ray-user-node-type"]) == ("mgdm-gpu", "gpu")
    asked = requests(tmp_path / "requests.jsonl")
    assert "RunInstances" in asked
    rights = {right.partition(":")[2] for right in allowed("mgdm-head") if "ec2:" in right}
    assert asked <= rights
