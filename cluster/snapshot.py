"""Make an image of the head of cluster ``mgdm-image``, so that nodes need not install packages.

``python -m cluster.snapshot`` prints the ``ImageId`` for gpu.yaml. clean.sh must have run on the
head; EC2 restarts it for a consistent image, which takes minutes. Its name is made from
constraints.txt and pyproject.toml: where they have changed since, node.sh installs as without an
image. An image costs as long as it exists (its snapshot).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = "mgdm-image"
WAIT = {"Delay": 15, "MaxAttempts": 240}


class SnapshotError(Exception):
    """There is nothing to make an image of."""


def image_name() -> str:
    files = [ROOT / name for name in ("constraints.txt", "pyproject.toml")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    version = re.search(r'^version = "(.+)"', files[1].read_text(encoding="utf-8"), re.MULTILINE)
    return f"mgdm-ray-{version[1] if version else 'unknown'}-{digest[:12]}"


def existing(ec2: Any, name: str) -> str | None:
    found = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": [name]}])
    images: list[dict[str, str]] = found["Images"]
    return images[0]["ImageId"] if images else None


def head(ec2: Any) -> str:
    """Raises SnapshotError."""
    filters = {"tag:ray-cluster-name": CLUSTER, "tag:ray-node-type": "head",
               "instance-state-name": "running"}  # fmt: skip
    found = ec2.describe_instances(
        Filters=[{"Name": name, "Values": [value]} for name, value in filters.items()]
    )
    heads = [one["InstanceId"] for group in found["Reservations"] for one in group["Instances"]]
    if len(heads) != 1:
        raise SnapshotError(
            f"{len(heads)} heads of a cluster {CLUSTER} are running: "
            f"ray up -y cluster/gpu.yaml -n {CLUSTER}"
        )
    instance: str = heads[0]
    return instance


def make(ec2: Any) -> str:
    """The image's id, once it can be used; an image of the same packages is not made twice."""
    name = image_name()
    image = existing(ec2, name)
    if image is None:
        made = ec2.create_image(InstanceId=head(ec2), Name=name, Description="gpu.yaml's packages")
        image = str(made["ImageId"])
        print(f"snapshot: {image} ({name}) is being made; minutes", file=sys.stderr)
    ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig=WAIT)
    return image


def main(argv: list[str]) -> int:
    """0: done, 1: no head, or AWS refused, 2: wrong arguments."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    argparse.ArgumentParser(
        prog="python -m cluster.snapshot", description=(__doc__ or "").partition("\n")[0]
    ).parse_args(argv)
    config = yaml.safe_load((ROOT / "cluster" / "gpu.yaml").read_text(encoding="utf-8"))
    try:
        image = make(boto3.client("ec2", region_name=config["provider"]["region"]))
    except (BotoCoreError, ClientError, SnapshotError) as error:
        print(f"snapshot: {error}", file=sys.stderr)
        return 1
    print(f"ImageId: {image}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
