"""An AWS account of moto in which Ray's own provider starts gpu.yaml."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import yaml
from botocore.client import BaseClient
from moto import mock_aws
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster import iam
from cluster.check import FOLDER

HEAD_TAGS = {
    TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
    TAG_RAY_USER_NODE_TYPE: "head",
    TAG_RAY_NODE_NAME: "ray-mgdm-gpu-head",
    TAG_RAY_LAUNCH_CONFIG: "hash",
}
WORKER_TAGS = {
    TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
    TAG_RAY_USER_NODE_TYPE: "gpu",
    TAG_RAY_NODE_NAME: "ray-mgdm-gpu-worker",
    TAG_RAY_LAUNCH_CONFIG: "hash",
}


def forget_connections() -> None:
    """Those that Ray keeps to an account of another test."""
    from ray.autoscaler._private.aws import config, utils

    for cache in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
        cache.cache_clear()


def bootstrapped(**changes: Any) -> dict[str, Any]:
    """What `ray up` makes of gpu.yaml, validated; ``changes`` of all its node_configs."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    shipped = yaml.safe_load((FOLDER / "gpu.yaml").read_text(encoding="utf-8"))
    for node in shipped["available_node_types"].values():
        node["node_config"].update(changes)
    config: dict[str, Any] = prepare_config(shipped)
    validate_config(config)
    done: dict[str, Any] = AWSNodeProvider.bootstrap_config(config)
    return done


class Call(NamedTuple):
    service: str
    name: str
    sent: dict[str, Any]


class Account:
    """An AWS account of moto with the roles of cluster/iam.py, and the cluster's provider in it."""

    def __init__(self, patch: pytest.MonkeyPatch, home: Path) -> None:
        patch.setenv("HOME", str(home))  # for the ssh key that Ray creates
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-west-2")
        forget_connections()
        self.calls: list[Call] = []
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # thousands, in seconds
        image = boto3.client("ec2").register_image(Name="the newest", RootDeviceName="/dev/sda1")
        plain = BaseClient._make_api_call

        def record(client: Any, name: str, sent: dict[str, Any]) -> Any:
            service = client.meta.service_model.service_name
            self.calls.append(Call(service, name, copy.deepcopy(sent)))
            if name == "RunInstances":
                # EC2 looks up `resolve:ssm:NAME`; moto's does not.
                sent = {**sent, "ImageId": image["ImageId"]}
            return plain(client, name, sent)

        patch.setattr(BaseClient, "_make_api_call", record)

    def bootstrapped(self) -> dict[str, Any]:
        done = bootstrapped()
        self.calls.clear()
        return done

    def start(self, provider: Any, config: dict[str, Any], kind: str) -> dict[str, Any]:
        """A node, as EC2 describes it."""
        node = copy.deepcopy(config["available_node_types"][kind]["node_config"])
        made = provider.create_node(node, dict(HEAD_TAGS if kind == "head" else WORKER_TAGS), 1)
        (name,) = made
        found = boto3.client("ec2").describe_instances(InstanceIds=[name])
        instance: dict[str, Any] = found["Reservations"][0]["Instances"][0]
        return instance

    def sent(self, name: str) -> list[dict[str, Any]]:
        return [call.sent for call in self.calls if call.name == name]


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    pytest.importorskip("ray.autoscaler._private.aws.node_provider")
    logging.getLogger("ray").setLevel(logging.ERROR)
    with mock_aws():
        found = Account(monkeypatch, tmp_path)
        assert iam.main(["the-bucket"]) == 0
        yield found


def provider_of(config: dict[str, Any]) -> Any:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    return AWSNodeProvider(config["provider"], config["cluster_name"])


def allowed(role: str) -> dict[str, list[dict[str, Any]]]:
    """Action to the statements that allow it, for the bucket ``the-bucket``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for statement in json.loads(iam.policy(role, "the-bucket"))["Statement"]:
        for action in statement["Action"]:
            found.setdefault(action, []).append(statement)
    return found


def needed(call: Call) -> set[str]:
    """The rights that AWS requires for a request of Ray's provider."""
    rights = {f"{call.service}:{call.name}"}
    if call.name == "RunInstances":
        rights |= {"ec2:CreateTags"} if call.sent.get("TagSpecifications") else set()
        rights |= {"iam:PassRole"} if call.sent.get("IamInstanceProfile") else set()
        rights |= {"ssm:GetParameters"} if call.sent["ImageId"].startswith("resolve:") else set()
    return rights
