"""A cluster on this machine with Ray's own autoscaler: a head without CPUs, nodes with fake GPUs.

Ray's test provider starts a raylet as a node. (``ray.cluster_utils.AutoscalingCluster`` would stop
every Ray of this machine, and needs a file that the wheel lacks.)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.storm import free_port

HEAD, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
"""The only ones that the provider takes."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
STARTED, PATIENCE_S = "Ray runtime started", 180.0
EMPTY_LISTS = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
    *("setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)
QUICK = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 500,
}


class AutoscaledCluster:
    """``most`` nodes of ``resources``, each started when jobs wait for it. ``version`` of
    the autoscaler: ``ray up`` uses 2, older KubeRay 1."""

    def __init__(
        self, resources: dict[str, float], most: int, version: int = 2, **env_vars: str
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mgdm"))  # a path of sockets must be short
        self.log = self.folder / "ray.log"
        ip, port = _own_ip(), free_port()
        self.address = f"{ip}:{port}"
        file = self.folder / "autoscaler.yaml"
        file.write_text(json.dumps(self._config(resources, most)))
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
        command += [f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        command += [f"--temp-dir={self.folder / 'ray'}", f"--autoscaling-config={file}"]
        command += [f"--system-config={json.dumps(QUICK)}", f"--node-ip-address={ip}"]
        env = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        env |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
        env |= {"RAY_enable_autoscaler_v2": str(version - 1), **env_vars}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_S
        while STARTED not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text()
                self.shutdown()
                raise AssertionError(said)
            time.sleep(0.2)

    def _config(self, resources: dict[str, float], most: int) -> dict[str, Any]:
        return {
            **{name: [] for name in EMPTY_LISTS},
            "cluster_name": "growing",
            "max_workers": most,
            "upscaling_speed": 10.0,
            "idle_timeout_minutes": 60,
            "provider": {
                "type": "external",
                "module": PROVIDER,
                "gcs_address": self.address,
                "head_node_id": HEAD,
                "launch_multiple": True,
                "disable_node_updaters": True,
            },
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "gpu": {"resources": resources, "node_config": {}, "max_workers": most},
            },
            "head_node_type": HEAD_TYPE,
            "docker": {},
            "auth": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
        }

    def raylets(self) -> list[psutil.Process]:
        """Of the nodes that the autoscaler started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == "raylet" and self._is_node(process):
                    found.append(process)
        return found

    def _is_node(self, process: psutil.Process) -> bool:
        mine = any(str(self.folder) in word for word in process.cmdline())
        return mine and process.environ().get("RAY_CLOUD_INSTANCE_ID") != HEAD

    def shutdown(self) -> None:
        """End the head, and the nodes, which the autoscaler starts as no children of it."""
        for process in [psutil.Process(self.process.pid), *psutil.process_iter()]:
            with contextlib.suppress(psutil.Error):
                if process.pid == self.process.pid or any(
                    str(self.folder) in word for word in process.cmdline()
                ):
                    process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _own_ip() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())
