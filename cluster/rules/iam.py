"""Rules for IAM policies: what they allow is listed, for resources that are named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ANY_RESOURCE = {"ec2:DescribeInstances"}
"""Actions that AWS allows for all resources or none."""
_KEYS = {"Sid", "Effect", "Action", "Resource", "Condition"}
_ACTION = re.compile(r"[a-z0-9-]+:[A-Z][A-Za-z]+")
_ARN = re.compile(r"arn:aws:(ec2|iam|s3|ssm):[^:]*:[^:]*:[^*]+.*")


def check(path: Path) -> Iterator[str]:
    try:
        policy = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"not valid JSON: {error}"
        return
    if not isinstance(policy, dict) or policy.get("Version") != "2012-10-17":
        yield "Version: must be 2012-10-17"
        return
    for statement in policy.get("Statement", []):
        yield from _check_statement(statement)


def _check_statement(statement: dict[str, Any]) -> Iterator[str]:
    where = statement.get("Sid", "a statement without Sid")
    if unknown := set(statement) - _KEYS:
        yield f"{where}: {', '.join(sorted(unknown))}: only {', '.join(sorted(_KEYS))} allowed"
    if statement.get("Effect") != "Allow":
        yield f"{where}: Effect must be Allow"
    actions, resources = _listed(statement, "Action"), _listed(statement, "Resource")
    for action in actions:
        if not _ACTION.fullmatch(action):
            yield f"{where}: action {action!r}: name each action, without *"
    for resource in resources:
        if resource == "*" and set(actions) <= ANY_RESOURCE:
            continue
        if not _ARN.fullmatch(resource):
            yield f"{where}: resource {resource!r}: name a kind of resource"
    if "iam:PassRole" in actions and any(not r.endswith("role/mgdm-worker") for r in resources):
        yield f"{where}: iam:PassRole is for mgdm-worker only; other roles may be more powerful"


def _listed(statement: dict[str, Any], key: str) -> list[str]:
    found = statement.get(key, [])
    return [found] if isinstance(found, str) else list(found)
