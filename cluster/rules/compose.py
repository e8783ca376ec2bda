"""Rules for Compose files: valid, not reachable by others, secrets in files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:?[-?])([^}]*))?\}")


def check(path: Path) -> Iterator[str]:
    from compose_spec import PyCompose  # of the development packages

    text = path.read_text(encoding="utf-8")
    for match in _VARIABLE.finditer(text):
        if match[2] is None:
            number = text[: match.start()].count("\n") + 1
            yield f"line {number}: {match[0]} may be empty; use ${{{match[1]}:?what to do}}"
    try:
        # As compose itself does, before it reads the file.
        parsed = yaml.safe_load(_VARIABLE.sub("1000", text))
        PyCompose.from_yaml(yaml.safe_dump(_merged(parsed))).validate()
    except (yaml.YAMLError, ValueError) as error:
        yield str(error)
        return
    for name, service in parsed["services"].items():
        yield from (f"services.{name}: {p}" for p in _check_names(service, parsed))
        yield from (f"services.{name}: {p}" for p in _check_service(service))
    for name, secret in parsed.get("secrets", {}).items():
        if not str(secret.get("file", "")).startswith("secrets/"):
            yield f"secrets.{name}: must be a file in cluster/secrets/, which is never committed"


def _merged(value: Any) -> Any:
    """A copy without YAML's shared parts, and without the x- keys they came from."""
    if isinstance(value, dict):
        return {k: _merged(v) for k, v in value.items() if not str(k).startswith("x-")}
    return [_merged(v) for v in value] if isinstance(value, list) else value


def _check_names(service: dict[str, Any], parsed: dict[str, Any]) -> Iterator[str]:
    """Undefined references of a service; the parser checks only some of them."""
    volumes = [str(volume).partition(":")[0] for volume in service.get("volumes", [])]
    named = {
        "services": list(service.get("depends_on", [])),
        "volumes": [source for source in volumes if source[:1] not in "./~"],
        "secrets": service.get("secrets", []),
        "networks": list(service.get("networks", [])),
    }
    for key, names in named.items():
        known = parsed.get(key, {})
        for name in names:
            if name not in known:
                yield f"unknown {name!r} in {key}; known: {', '.join(known)}"


def _check_service(service: dict[str, Any]) -> Iterator[str]:
    for port in service.get("ports", []):
        address = port.get("host_ip") if isinstance(port, dict) else str(port).rpartition(":")[0]
        if not (address or "").startswith("127.0.0.1"):
            yield f"ports: {port} is published to others; use 127.0.0.1:PORT:PORT"
    if service.get("network_mode") == "host":
        yield "network_mode: host listens on this machine's addresses"
    if service.get("privileged"):
        yield "privileged: has full control of this machine"
    if "docker.sock" in str(service.get("volumes", "")):
        yield "volumes: docker's socket gives full control of this machine"
    if "ray start" in _words(service.get("command")):
        environment = service.get("environment", {})
        if environment.get("RAY_AUTH_MODE") != "token":
            yield "environment.RAY_AUTH_MODE: must be token"
        secret = str(environment.get("RAY_AUTH_TOKEN_PATH", "")).removeprefix("/run/secrets/")
        if secret not in service.get("secrets", []):
            yield "environment.RAY_AUTH_TOKEN_PATH: must be one of its secrets, /run/secrets/NAME"


def _words(command: Any) -> str:
    return " ".join(command) if isinstance(command, list) else str(command or "")
