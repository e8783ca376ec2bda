"""gpu.yaml, started by Ray's own provider in an EC2 of moto; its roles, and what they are for."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.core import enable_iam_authentication
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS
from s3fs import S3FileSystem

from cluster import iam
from mgdm_ray.storage.remote.objects import Objects, ObjectsError
from tests.cluster.aws import WORKER_TAGS, Account, account, allowed, needed, provider_of
from tests.storage.remote.server import BUCKET, s3_server

__all__ = ["account"]


def test_head_and_worker_are_started_as_the_file_says(account: Account) -> None:
    """Would catch a key that EC2 does not know, a worker at full price, an open disk, a metadata
    service without tokens, a wrong role, and a port that is open to all."""
    config = account.bootstrapped()
    provider = provider_of(config)
    head = account.start(provider, config, "head")
    worker = account.start(provider, config, "gpu")
    assert (head["InstanceType"], worker["InstanceType"]) == ("m7i.xlarge", "g6.2xlarge")
    assert "InstanceLifecycle" not in head
    assert worker["InstanceLifecycle"] == "spot"
    for role, instance in (("mgdm-head", head), ("mgdm-worker", worker)):
        assert instance["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{role}")
        assert instance["KeyName"] == "ray-autoscaler_us-west-2"
        assert {"Key": "ray-cluster-name", "Value": "mgdm-gpu"} in instance["Tags"]
        disk = instance["BlockDeviceMappings"][0]
        assert disk["DeviceName"] == "/dev/sda1"
        assert disk["Ebs"]["DeleteOnTermination"] is True
        volume = boto3.resource("ec2").Volume(disk["Ebs"]["VolumeId"])
        assert (volume.size, volume.volume_type, volume.encrypted) == (200, "gp3", True)
    for sent in account.sent("RunInstances"):
        assert sent["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert re.fullmatch(r"resolve:ssm:/aws/service/deeplearning/ami/x86_64/.*/ami-id",
                            sent["ImageId"])  # fmt: skip
    (group,) = head["SecurityGroups"]
    assert [group] == worker["SecurityGroups"]
    assert group["GroupName"] == "mgdm-ray"
    open_ports = boto3.resource("ec2").SecurityGroup(group["GroupId"]).ip_permissions
    outside = [rule for rule in open_ports if rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in outside] == [(22, 22)]
    inside = [rule for rule in open_ports if rule["UserIdGroupPairs"]]
    assert [p["GroupId"] for r in inside for p in r["UserIdGroupPairs"]] == [group["GroupId"]]


def test_ray_down_leaves_nothing(account: Account) -> None:
    """Would catch stopped nodes and disks that go on costing."""
    config = account.bootstrapped()
    provider = provider_of(config)
    account.start(provider, config, "head")
    account.start(provider, config, "gpu")
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    states = [i["State"]["Name"] for r in reservations for i in r["Instances"]]
    assert states == ["terminated", "terminated"]
    assert provider.non_terminated_nodes({}) == []
    assert boto3.client("ec2").describe_volumes()["Volumes"] == []


def test_the_heads_role_is_what_the_autoscaler_needs(account: Account) -> None:
    """Would catch a request of Ray's provider that AWS would refuse, and a right without a use."""
    config = account.bootstrapped()
    provider = provider_of(config)
    account.calls.clear()
    # What the autoscaler on the head does: list, start, tag, ask for addresses, stop.
    node = copy.deepcopy(config["available_node_types"]["gpu"]["node_config"])
    provider.non_terminated_nodes({})
    (name,) = provider.create_node(node, dict(WORKER_TAGS), 1)
    provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_WORKER})
    provider.set_node_tags(name, {TAG_RAY_NODE_STATUS: "up-to-date"})
    assert provider.node_tags(name)[TAG_RAY_NODE_STATUS] == "up-to-date"
    assert provider.is_running(name)
    assert provider.internal_ip(name)
    assert provider.external_ip(name)
    provider.terminate_node(name)
    provider.terminate_nodes([name])
    requests = {right for call in account.calls for right in needed(call)}
    rights = allowed("mgdm-head")
    assert requests == {right for right in rights if not right.startswith("s3:")}
    # The conditions of the policy hold for what is sent.
    (run,) = account.sent("RunInstances")
    tags = {tag["Key"]: tag["Value"] for tag in run["TagSpecifications"][0]["Tags"]}
    conditions = [
        s["Condition"]["StringEquals"] for s in rights["ec2:RunInstances"] if "Condition" in s
    ]
    assert conditions == [{"aws:RequestTag/ray-cluster-name": tags["ray-cluster-name"]}]
    for statement in rights["ec2:TerminateInstances"]:
        (value,) = statement["Condition"]["StringEquals"].values()
        assert value == config["cluster_name"]
    (passed,) = rights["iam:PassRole"]
    assert passed["Resource"].endswith(f":role/{run['IamInstanceProfile']['Name']}")
    (parameter,) = rights["ssm:GetParameters"]
    path = run["ImageId"].removeprefix("resolve:ssm:")
    assert path.startswith(parameter["Resource"].partition(":parameter")[2].rstrip("*"))


def test_a_worker_may_start_nothing() -> None:
    """Would catch a worker that could rent machines."""
    assert {right.partition(":")[0] for right in allowed("mgdm-worker")} == {"s3"}
    heads = {right for right in allowed("mgdm-head") if right.startswith("s3:")}
    assert heads == set(allowed("mgdm-worker"))


@pytest.mark.usefixtures("account")
def test_roles_are_made_updated_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a second call that fails, and roles that cannot be removed."""
    assert iam.main(["another-bucket"]) == 0
    client = boto3.client("iam")
    for role in iam.POLICIES:
        document = client.get_role_policy(RoleName=role, PolicyName="mgdm")["PolicyDocument"]
        text = json.dumps(document)
        assert "BUCKET" not in text
        assert "arn:aws:s3:::another-bucket/*" in text
        trust = client.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]
        assert trust["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}
        profile = client.get_instance_profile(InstanceProfileName=role)["InstanceProfile"]
        assert [there["RoleName"] for there in profile["Roles"]] == [role]
    assert iam.main(["--delete"]) == 0
    assert iam.main(["--delete"]) == 0, "nothing is left to remove"
    with pytest.raises(ClientError, match="NoSuchEntity"):
        client.get_role(RoleName="mgdm-head")
    assert client.list_instance_profiles()["InstanceProfiles"] == []
    capsys.readouterr()
    with pytest.raises(SystemExit) as wrong:
        iam.main(["s3://the-bucket/mgdm"])
    assert wrong.value.code == 2
    assert "without s3://" in capsys.readouterr().err


def test_a_workers_role_is_what_the_storage_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a request of the storage that AWS would refuse, a right to other buckets, and a
    storage that does not notice that it may not delete."""
    with s3_server() as url:
        client = boto3.client("iam")
        client.create_user(UserName="worker")
        key = client.create_access_key(UserName="worker")["AccessKey"]
        rights = json.loads(iam.policy("mgdm-worker", BUCKET))

        def grant() -> None:
            document = json.dumps(rights)
            client.put_user_policy(UserName="worker", PolicyName="x", PolicyDocument=document)

        grant()
        boto3.client("s3").create_bucket(Bucket="another")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        S3FileSystem.clear_instance_cache()
        objects = Objects(f"{url}/mgdm")
        with enable_iam_authentication(), pytest.raises(ObjectsError, match="cannot be deleted"):
            objects.require()
        # moto asks for the right to delete several objects at the bucket, AWS at each object.
        rights["Statement"] += [
            {"Effect": "Allow", "Action": ["s3:DeleteObject"], "Resource": f"arn:aws:s3:::{BUCKET}"}
        ]
        grant()
        with enable_iam_authentication():
            objects.require()
            objects.write("a/b", b"1")
            assert objects.read_all(["a/b", "a/absent"]) == {"a/b": b"1"}
            assert not objects.exists("a/absent")
            large = tmp_path / "large"
            large.write_bytes(bytes(60 << 20))  # in several parts
            objects.upload(large, "large")
            found = objects.sizes("")
            assert (found["a/b"], found["large"]) == (1, 60 << 20)
            objects.remove(found)
            assert objects.sizes("") == {}
            with pytest.raises(OSError, match=r"[Aa]ccess"):
                Objects("s3://another/mgdm").write("a", b"1")
    S3FileSystem.clear_instance_cache()
