"""Create the roles and instance profiles of gpu.yaml in an AWS account, for one bucket.

    python -m cluster.iam BUCKET      create them, or update their policies
    python -m cluster.iam --delete    remove them

Roles ``mgdm-head`` and ``mgdm-worker``, each with the policy of ``iam-head.json`` or
``iam-worker.json`` and an instance profile of the same name; the cluster's name is in both files
and in gpu.yaml. Credentials as for boto3 (``AWS_PROFILE``, ``AWS_ACCESS_KEY_ID``, ...).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
POLICIES = {"mgdm-head": "iam-head.json", "mgdm-worker": "iam-worker.json"}
"""Role and instance profile -> file of its policy."""
POLICY = "mgdm"
SPOT = "spot.amazonaws.com"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}
BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def policy(role: str, bucket: str) -> str:
    """The policy of ``role`` for ``bucket``, as JSON."""
    text = (FOLDER / POLICIES[role]).read_text(encoding="utf-8")
    return text.replace(":::BUCKET", f":::{bucket}")


def create(iam: Any, bucket: str) -> None:
    """Complete what an interrupted call left; what is there stays."""
    there = iam.exceptions.EntityAlreadyExistsException
    for role in POLICIES:
        with suppress(there):
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(TRUST))
        document = policy(role, bucket)
        iam.put_role_policy(RoleName=role, PolicyName=POLICY, PolicyDocument=document)
        with suppress(there):
            iam.create_instance_profile(InstanceProfileName=role)
        profile = iam.get_instance_profile(InstanceProfileName=role)["InstanceProfile"]
        if not profile["Roles"]:
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        print(f"iam: role and instance profile {role} may use bucket {bucket}")
    # Spot instances need the account's own role; `InvalidInput` says that it exists.
    with suppress(there, iam.exceptions.InvalidInputException):
        iam.create_service_linked_role(AWSServiceName=SPOT)


def delete(iam: Any) -> None:
    """Remove what there is, also after an interrupted call; the account's role for spot stays."""
    absent = iam.exceptions.NoSuchEntityException
    for role in POLICIES:
        with suppress(absent):
            iam.remove_role_from_instance_profile(InstanceProfileName=role, RoleName=role)
        with suppress(absent):
            iam.delete_instance_profile(InstanceProfileName=role)
        with suppress(absent):
            iam.delete_role_policy(RoleName=role, PolicyName=POLICY)
        with suppress(absent):
            iam.delete_role(RoleName=role)
        print(f"iam: no role and instance profile {role} any more")


def main(argv: list[str]) -> int:
    """0: done, 1: AWS refused, 2: wrong arguments."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    parser = argparse.ArgumentParser(
        prog="python -m cluster.iam", description=(__doc__ or "").partition("\n")[0]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("bucket", nargs="?", help="name of the bucket, without s3://")
    what.add_argument("--delete", action="store_true", help="remove roles and profiles")
    arguments = parser.parse_args(argv)
    if arguments.bucket and not BUCKET_NAME.fullmatch(arguments.bucket):
        parser.error(f"{arguments.bucket!r} is no bucket's name; give it without s3:// and folder")
    try:
        iam = boto3.client("iam")
        if arguments.delete:
            delete(iam)
        else:
            create(iam, arguments.bucket)
    except (BotoCoreError, ClientError) as error:
        print(f"iam: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
