"""On an AWS spot node: wait for the two-minute interruption notice and tell Ray.

Ray then starts nothing more here, and trainings write a checkpoint. gpu.yaml starts this on every
GPU node; on-demand nodes never get a notice. ``MGDM_IMDS``: another metadata address, for tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

IMDS = os.environ.get("MGDM_IMDS", "http://169.254.169.254")
EVERY_S = 5.0
LEAST_S = 10


def ask(path: str, method: str = "GET", **headers: str) -> str | None:
    """The metadata service's answer; None if there is none, or no service."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{IMDS}/latest/{path}", method=method, headers=given)
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


def notice() -> float | None:
    """Seconds until this node is reclaimed; None without a notice."""
    token = ask("api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    text = ask("meta-data/spot/instance-action", X_aws_ec2_metadata_token=token or "")
    if text is None:
        return None
    when = datetime.fromisoformat(json.loads(text)["time"].replace("Z", "+00:00"))
    return (when - datetime.now(UTC)).total_seconds()


def drain(seconds: float) -> None:
    """Tell the cluster that this node ends in ``seconds``."""
    import ray

    ray.init(address="auto", log_to_driver=False)
    context = ray.get_runtime_context()
    command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
    command += ["--address", context.gcs_address, "--node-id", context.get_node_id()]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    command += ["--deadline-remaining-seconds", str(max(LEAST_S, int(seconds)))]
    subprocess.run(command, check=True)


def main() -> None:
    while (seconds := notice()) is None:
        time.sleep(EVERY_S)
    print(f"spot: this node ends in {seconds:.0f} s", flush=True)
    drain(seconds)


if __name__ == "__main__":
    main()
