"""Rules for every launch file: header, versions of constraints.txt, no secret, no open port."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER_LINES = 8
HEADER_WORDS = ("Cost:", "Edit:", "Start", "Submit", "Dashboard", "MLflow", "Stop")
"""What the comment at the top of a launch file must contain, in any case."""

_PIN = re.compile(r"(?<![\w.-])([A-Za-z][\w.-]*)==([\w.]+)")
_NAMED = (
    (re.compile(r"rayVersion: *['\"]?([\w.]+)"), "ray"),
    (re.compile(r"rayproject/ray[\w-]*:([\d.]+\d)"), "ray"),
    (re.compile(r"^ARG PYTHON=(\S+)", re.MULTILINE), "python"),
    (re.compile(r"(?<![\w/-])python(3\.\d+)"), "python"),
    (re.compile(r"(?<![\w-])mgdm-ray:([\w.]+)"), "mgdm-ray"),
)
_SECRET = re.compile(
    r"(password|passwd|secret_access_key|secret_key|auth_token|api_key)[\w-]*[\"']?"
    r"\s*[:=]\s*[\"']?(?P<value>[^\s\"'#]+)",
    re.IGNORECASE,
)
_LONG = re.compile(r"\b(AKIA[0-9A-Z]{16}|[0-9a-f]{32,})\b|-----BEGIN [A-Z ]*PRIVATE KEY")
_REFERENCE = re.compile(r"^(\$|%s|/run/secrets|/tmp|~|\.\.\.|cluster/secrets|\{file)")
_FLOATING = re.compile(r"(?:^FROM +|image: *)(\S+?)(?::latest)? *$", re.MULTILINE)


def versions() -> dict[str, str]:
    """Normalised name to version, of constraints.txt and this project."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = {_normal(name): version for name, version in _PIN.findall(text)}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert version is not None
    return {**found, "mgdm-ray": version[1]}


def check(path: Path) -> Iterator[str]:
    """Header and contents."""
    yield from check_header(path)
    yield from check_contents(path)


def check_header(path: Path) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and lines[0].startswith("#!"):
        lines = lines[1:]
    header: list[str] = []
    for line in lines:
        if not line.startswith("# "):
            break
        header.append(line)
    if len(header) < HEADER_LINES:
        yield f"line 1: {len(header)} lines of comment at the top; at least {HEADER_LINES} needed"
    text = "\n".join(header).lower()
    for word in HEADER_WORDS:
        if word.lower() not in text:
            yield f"line 1: the comment at the top does not contain {word.rstrip(':')!r}"
    if "mgdm_ray.study" not in text and path.name != "Dockerfile":
        yield "line 1: the comment at the top does not show the study's command"


def check_contents(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    yield from _check_versions(text)
    for number, line in enumerate(text.splitlines(), 1):
        if "0.0.0.0" in line or "[::]" in line:
            yield f"line {number}: listens on all addresses; use 127.0.0.1 or a private address"
        for match in _SECRET.finditer(line):
            if not _REFERENCE.match(match["value"]):
                yield f"line {number}: {match[1]} looks like a secret; name a file instead"
        if _LONG.search(line):
            yield f"line {number}: looks like a key or token; put secrets into cluster/secrets/"


def _check_versions(text: str) -> Iterator[str]:
    pinned = versions()
    for number, line in enumerate(text.splitlines(), 1):
        named = [(name, version) for name, version in _PIN.findall(line)]
        for pattern, name in _NAMED:
            named += [(name, version) for version in pattern.findall(line)]
        for name, version in named:
            expected = pinned.get(_normal(name))
            if expected is None:
                yield f"line {number}: {name}=={version} is not in constraints.txt"
            elif version != expected:
                yield f"line {number}: {name} {version}, but constraints.txt has {expected}"
    for match in _FLOATING.finditer(text):
        image = match[1]
        if ":" not in image.rsplit("/", 1)[-1] and "${" not in image:
            number = text[: match.start()].count("\n") + 1
            yield f"line {number}: image {image} has no fixed version"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
