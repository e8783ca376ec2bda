"""Rules for files of ``ray up`` and for commands that start a node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TOKEN_PATH = "~/.ray/auth_token"
TOKEN_FILE = "cluster/secrets/ray_token"
INSTANCE_KEYS = {"aws": "InstanceType", "gcp": "machineType"}
_INSTANCES = Path(__file__).resolve().parent.parent / "instances.yaml"


def instances() -> dict[str, dict[str, dict[str, Any]]]:
    """Provider -> machine type -> its GPUs, cores and memory."""
    loaded: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(
        _INSTANCES.read_text(encoding="utf-8")
    )
    return loaded


def check(path: Path) -> Iterator[str]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        yield f"not valid YAML: {error}"
        return
    wrong = list(_ray_says(config))
    if wrong:
        yield from wrong
        return
    yield from _check_types(config)
    yield from _check_start(config)
    yield from _check_network(config)
    if config.get("idle_timeout_minutes") is None:
        yield "idle_timeout_minutes: missing; idle nodes would keep costing"
    if config.get("file_mounts", {}).get(TOKEN_PATH) != TOKEN_FILE:
        yield f"file_mounts: {TOKEN_PATH} must come from {TOKEN_FILE}, for every node"
    if "secrets" not in config.get("rsync_exclude", []):
        yield "rsync_exclude: must contain `secrets`, else cluster/secrets is copied to all nodes"


def check_script(path: Path) -> Iterator[str]:
    """A shell script that starts Ray: its token, and where the dashboard listens."""
    text = path.read_text(encoding="utf-8")
    commands = re.sub(r"\\\n", " ", text)
    starts = list(re.finditer(r"^(?!#).*\bray start\b.*$", commands, re.MULTILINE))
    if not starts:
        yield "does not start Ray"
    for start in starts:
        before = commands[: start.start()]
        yield from _check_command("ray start", start[0], exported=before)


def _ray_says(config: Any) -> Iterator[str]:
    """The errors of Ray's own validator."""
    from click import ClickException
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    if not isinstance(config, dict):
        yield f"contains {type(config).__name__}, not a mapping"
        return
    try:
        validate_config(prepare_config(config))
    except ClickException as error:
        yield f"Ray: {error.message}"
    except (ValidationError, ValueError, LookupError, TypeError, AttributeError) as error:
        message = str(error).splitlines()[0] if str(error) else ""
        yield f"Ray's validator: {type(error).__name__}: {message}"


def _check_types(config: dict[str, Any]) -> Iterator[str]:
    provider = config["provider"]["type"]
    if provider not in INSTANCE_KEYS:
        return
    known, key = instances()[provider], INSTANCE_KEYS[provider]
    head = config["head_node_type"]
    for name, node in config["available_node_types"].items():
        where = f"available_node_types.{name}"
        machine = node["node_config"].get(key)
        if machine not in known:
            yield f"{where}.node_config.{key}: unknown {machine!r}; known: {', '.join(known)}"
            continue
        facts, offered = known[machine], node.get("resources", {})
        if offered.get("CPU", 0) > facts["cpus"]:
            yield f"{where}.resources.CPU: {offered['CPU']}, but {machine} has {facts['cpus']}"
        if name == head and facts["gpus"]:
            yield f"{where}: the head runs all the time and would not use the GPU of {machine}"
        if name != head and facts["gpus"] != offered.get("GPU", 0):
            offers = offered.get("GPU", 0)
            yield f"{where}.resources.GPU: {offers}, but {machine} has {facts['gpus']}"


def _check_start(config: dict[str, Any]) -> Iterator[str]:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [c for c in config.get(key, []) if "ray start" in c]
        if not starts:
            yield f"{key}: does not start Ray; Ray's default starts it without a token"
        for command in starts:
            yield from _check_command(key, command, exported=command)


def _check_command(where: str, command: str, *, exported: str) -> Iterator[str]:
    if not re.search(r"export [^;\n]*RAY_AUTH_MODE=token\b", exported):
        yield f"{where}: no `export RAY_AUTH_MODE=token` before `ray start`"
    if not re.search(r"export [^;\n]*RAY_AUTH_TOKEN_PATH=", exported):
        yield f"{where}: no `export RAY_AUTH_TOKEN_PATH=...` before `ray start`"
    if not re.search(r"export [^;\n]*RAY_USAGE_STATS_ENABLED=0", exported):
        # `ray up` itself sets it to 1 in front of the command.
        yield f"{where}: no `export RAY_USAGE_STATS_ENABLED=0` before `ray start`"
    if "--head" in command and "--dashboard-host=127.0.0.1" not in command:
        yield f"{where}: the dashboard must listen on 127.0.0.1 (--dashboard-host=127.0.0.1)"


def _check_network(config: dict[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    if provider["type"] == "aws":
        rules = provider.get("security_group", {}).get("IpPermissions", [])
        # Ray itself always adds: port 22, and all traffic between its own nodes.
        ports = {22} | {p for r in rules for p in (r.get("FromPort"), r.get("ToPort"))}
        if ports != {22}:
            extra = ", ".join(str(p) for p in ports - {22})
            yield f"provider.security_group: opens {extra}; only 22 (ssh) may be open"
    if provider["type"] == "local":
        import ipaddress

        for address in [provider["head_ip"], *provider["worker_ips"]]:
            try:
                public = ipaddress.ip_address(address).is_global
            except ValueError:
                continue  # a name
            if public:
                yield f"provider: {address} is a public address; Ray must listen on private ones"
