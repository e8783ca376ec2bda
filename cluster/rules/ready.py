"""What a launch file still lacks before it is used: placeholders, the token, the ssh key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.rules import common, ray_up

_PLACEHOLDER = re.compile(r"\b(EDIT|BUCKET|REGISTRY)\b")


def check(path: Path) -> Iterator[str]:
    """Placeholders outside of comments; for `ray up` also files on this machine."""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        value = re.sub(r"(^|\s)#.*", "", line)
        if found := _PLACEHOLDER.search(value):
            yield f"line {number}: {found[1]} is to be replaced: {value.strip()}"
    if "\nprovider:\n" in text:  # of `ray up`
        yield from _check_files(yaml.safe_load(text))


def _check_files(config: dict[str, Any]) -> Iterator[str]:
    token = common.ROOT / ray_up.TOKEN_FILE
    if not token.is_file() or not token.read_text(encoding="utf-8").strip():
        yield f"{ray_up.TOKEN_FILE}: missing; run cluster/secrets.sh"
    key = config.get("auth", {}).get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        yield f"auth.ssh_private_key: {key} is missing; make one with ssh-keygen -f {key}"
