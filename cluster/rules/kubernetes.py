"""Rules for files of ``kubectl``: Kubernetes' schemas, KubeRay's fields, nothing exposed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

KUBERNETES = "1.33"
"""The version whose fields may be used."""
_SCHEMA = Path(__file__).resolve().parent.parent / "kuberay.schema.yaml"


def check(path: Path) -> Iterator[str]:
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]
    except yaml.YAMLError as error:
        yield f"not valid YAML: {error}"
        return
    clusters = []
    for number, document in enumerate(documents):
        where = f"{document.get('kind', 'document')} {number + 1}"
        if str(document.get("apiVersion", "")).startswith("ray.io/"):
            wrong = list(_check_ray(document))
        else:
            wrong = list(_against_kubernetes(document))
        yield from (f"{where}: {problem}" for problem in wrong)
        if wrong:
            continue
        if document["kind"] == "RayCluster":
            clusters.append(document["metadata"]["name"])
        yield from (f"{where}: {problem}" for problem in _check_exposure(document))
    for document in documents:
        selected = (document.get("spec") or {}).get("clusterSelector", {}).get("ray.io/cluster")
        if selected and selected not in clusters:
            known = ", ".join(clusters)
            yield f"RayJob: unknown cluster {selected!r} in clusterSelector; known: {known}"
    policies = [d for d in documents if d.get("kind") == "NetworkPolicy"]
    guarded = [p["spec"]["podSelector"].get("matchLabels", {}) for p in policies]
    for name in clusters:
        if {"ray.io/cluster": name} not in guarded:
            yield f"RayCluster {name}: no NetworkPolicy restricts access to its pods"


def _check_ray(document: dict[str, Any]) -> Iterator[str]:
    schema = yaml.safe_load(_SCHEMA.read_text(encoding="utf-8"))
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(document))
    yield from (f"{error.json_path}: {error.message}" for error in errors)
    if errors:
        return
    spec = document["spec"]
    cluster = spec if document["kind"] == "RayCluster" else spec.get("rayClusterSpec")
    if cluster is None:
        return
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "$.spec.authOptions.mode: must be token"
    if "rayVersion" not in cluster:
        yield "$.spec.rayVersion: required for token authentication"
    if cluster.get("enableInTreeAutoscaling"):
        names = [group["groupName"] for group in cluster.get("workerGroupSpecs", [])]
        if len(set(names)) < len(names):
            yield "$.spec.workerGroupSpecs: two groups have the same name"
    for where, group in _groups(cluster):
        yield from (f"{where}: {problem}" for problem in _check_group(group))


def _groups(cluster: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "$.spec.headGroupSpec", cluster["headGroupSpec"]
    for number, group in enumerate(cluster.get("workerGroupSpecs", [])):
        yield f"$.spec.workerGroupSpecs[{number}]", group


def _check_group(group: dict[str, Any]) -> Iterator[str]:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod", **group["template"].get("metadata", {})},
        "spec": group["template"]["spec"],
    }
    wrong = list(_against_kubernetes(pod))
    yield from wrong
    if wrong:
        return
    low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31)
    if not low <= group.get("replicas", low) <= high:
        yield f"replicas: {group.get('replicas')} is not between {low} and {high}"
    if not pod["spec"].get("securityContext", {}).get("runAsNonRoot"):
        yield "template.spec.securityContext.runAsNonRoot: must be true"
    for container in pod["spec"]["containers"]:
        limits = container.get("resources", {}).get("limits", {})
        if "memory" not in limits:
            yield f"container {container['name']}: no memory limit; Ray needs it to know its memory"


def _against_kubernetes(document: dict[str, Any]) -> Iterator[str]:
    import kubernetes_validate  # of the development packages

    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        yield f"{where or '$'}: {error.message.splitlines()[0]}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message
    except KeyError as error:
        yield f"{error.args[0]} is missing"


def _check_exposure(document: dict[str, Any]) -> Iterator[str]:
    kind, spec = document["kind"], document.get("spec") or {}
    if kind in ("Ingress", "Gateway", "HTTPRoute"):
        yield "opens the cluster to others; use kubectl port-forward"
    if kind == "Secret":
        yield "a secret in a committed file; create it with kubectl"
    if kind == "Service" and spec.get("type", "ClusterIP") != "ClusterIP":
        yield f"type {spec['type']} opens the cluster to others; use kubectl port-forward"
    cluster = spec if kind == "RayCluster" else spec.get("rayClusterSpec", {})
    head = cluster.get("headGroupSpec", {})
    service = head.get("headService", {}).get("spec", {}).get("type", "ClusterIP")
    if {head.get("serviceType", "ClusterIP"), service} != {"ClusterIP"} or head.get(
        "enableIngress"
    ):
        yield "headGroupSpec opens the cluster to others; use serviceType ClusterIP without ingress"
    for _, group in _groups(cluster) if head else ():
        pod = group["template"]["spec"]
        ports = [p for c in pod["containers"] for p in c.get("ports", [])]
        if pod.get("hostNetwork") or any("hostPort" in port for port in ports):
            yield "a pod listens on its node's addresses (hostNetwork, hostPort)"
