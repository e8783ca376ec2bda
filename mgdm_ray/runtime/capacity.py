"""What the cluster has now, and what its autoscaler could add."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray._private.state
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mgdm_ray.pipeline import requests

log = logging.getLogger(__name__)
Resources = Mapping[str, float]

NAMES = ("CPU", "GPU")
HEAD = "node:__internal_head__"
TRAININGS_AHEAD, TASKS_AHEAD = 4, 8
"""How many more than fit are submitted, so that an autoscaler sees them. A waiting training keeps
two processes, together 1.3 GB."""
ASK_S = 60.0
"""Longest time for which the head may take to say whether it has an autoscaler."""
SECRETS = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Growth:
    """What an autoscaler may add to the cluster."""

    scales: bool = False
    """Whether there is an autoscaler, which starts machines for waiting jobs."""
    machines: tuple[Resources, ...] | None = ()
    """Each machine that it could start at most; None if that is unknown."""

    def could_be(
        self, now: Resources, request: tuple[float, float], ahead: int = TASKS_AHEAD
    ) -> int:
        """How often ``request`` (CPUs, GPUs) is worth submitting on a cluster that has ``now``."""
        fits = requests.how_many_fit(cpus_and_gpus([now]), request)
        if not self.scales:
            return fits
        if self.machines is None:
            return fits + ahead
        most = requests.how_many_fit(cpus_and_gpus(self.machines), request)
        return max(fits, min(fits + ahead, most))


FIXED = Growth()


def cpus_and_gpus(machines: Iterable[Resources]) -> tuple[float, float]:
    have = list(machines)
    cpus, gpus = (sum(machine.get(name, 0.0) for machine in have) for name in NAMES)
    return cpus, gpus


def nodes() -> list[Resources]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def growth() -> Growth:
    """What the autoscaler of this cluster may add.

    Known are the node types of ``ray up``, of KubeRay where the head's service account may read
    its RayCluster, and of platforms that report them to Ray. An autoscaler of another kind is
    recognised by its reports.
    """
    reported = ray._private.state.state.get_cluster_config()
    if reported is not None and reported.node_group_configs:
        kinds = [(dict(g.resources), g.max_count) for g in reported.node_group_configs]
        # -1: without limit.
        return Growth(True, None if any(n < 0 for _, n in kinds) else _machines(kinds))
    found = _ask_head()
    return FIXED if found is None else from_config(found)


def from_config(found: Mapping[str, Any]) -> Growth:
    """The growth that an autoscaler's configuration allows; unknown if it is empty.

    Own machines (provider ``local``) have no node types: ``ray up`` starts all of them.
    """
    if not found:
        return Growth(True, None)
    most = int(found.get("max_workers", 2))  # as Ray
    kinds = [
        (kind.get("resources", {}), min(most, int(kind.get("max_workers", most))))
        for name, kind in found.get("available_node_types", {}).items()
        if name != found.get("head_node_type")
    ]
    possible = [(resources, count) for resources, count in kinds if count]
    # Ray counts the cores of a type without ``resources`` when its first machine has started.
    unknown = any(not resources for resources, _ in possible)
    return Growth(bool(possible), None if unknown else _machines(possible))


def _machines(kinds: Iterable[tuple[Resources, int]]) -> tuple[Resources, ...]:
    return tuple(resources for resources, count in kinds for _ in range(count))


def _ask_head() -> dict[str, Any] | None:
    """The configuration of the cluster's autoscaler; empty if unknown, None without autoscaler."""
    head = next((n for n in ray.nodes() if n["Alive"] and HEAD in n["Resources"]), None)
    if head is None:
        return None
    there = NodeAffinitySchedulingStrategy(head["NodeID"], soft=False)
    ask = ray.remote(num_cpus=0, scheduling_strategy=there)(_autoscaler_here)
    try:
        gcs = ray.get_runtime_context().gcs_address
        found: dict[str, Any] | None = ray.get(ask.remote(gcs), timeout=ASK_S)
    except RayError as error:
        log.warning("the head of the cluster does not say whether it has an autoscaler: %s", error)
        return None
    return found


def _autoscaler_here(gcs: str) -> dict[str, Any] | None:
    """As ``_ask_head``, on the head itself."""
    import psutil
    import yaml

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if f"--gcs-address={gcs}" in words and any(w.endswith("/monitor.py") for w in words):
            prefix = "--autoscaling-config="
            path = next((w.removeprefix(prefix) for w in words if w.startswith(prefix)), None)
            if path is None:
                return None  # it only shows what is there
            return dict(yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8")))
    reply = GetClusterStatusReply()
    reply.ParseFromString(ray._raylet.GcsClient(gcs).get_cluster_status(timeout_s=10))
    if not reply.autoscaling_state.autoscaler_state_version and not _kuberay():
        return None
    return _ray_cluster()


def _kuberay() -> bool:
    """Whether KubeRay's operator made this pod for a cluster with an autoscaler, which runs in a
    container of its own."""
    return "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")


def _ray_cluster() -> dict[str, Any]:
    """KubeRay's configuration, read as its autoscaler does; empty where that is not allowed."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not (SECRETS / "namespace").is_file():
        return {}
    from ray.autoscaler._private.kuberay import autoscaling_config

    try:
        client = autoscaling_config.node_provider.KubernetesHttpApiClient(
            (SECRETS / "namespace").read_text(encoding="utf-8").strip()
        )
        resource = client.get(f"rayclusters/{name}")
        return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(resource))
    except Exception:  # noqa: BLE001 - a service account without rights: the types stay unknown
        return {}
