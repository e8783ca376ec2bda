"""The resolved study: all defaults written out, each value with its origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mgdm_ray.config.diffusion import RECIPES
from mgdm_ray.config.file import Place, Source
from mgdm_ray.config.study import StudyConfig

DEFAULT = "default"
RESOLVED_FILE = "study.resolved.yaml"
BESIDE = ("storage", "data_dir", "resources", "tracking")
"""Keys that do not affect results."""


def resolved_text(config: StudyConfig, source: Source) -> str:
    """A study file equal to ``config``, with the origin of each value as a comment.

    An origin is ``line N`` of the study file, ``--set a.b``, or ``default``.
    """
    head = f"# {source.path}, with its defaults; behind each value: its line there, --set, or "
    lines = [_comment(f"{head}{DEFAULT}")]
    lines += _mapping(config.model_dump(mode="json"), (), source)
    return "\n".join(lines) + "\n"


def changes(before: str, config: StudyConfig) -> list[str]:
    """Keys, as ``a.b``, whose values differ from the resolved text ``before``.

    Ignores keys that do not affect results; empty if ``before`` is no resolved study.
    """
    try:
        old = yaml.safe_load(before)
    except yaml.YAMLError:
        return []
    if not isinstance(old, dict):
        return []
    new = config.model_dump(mode="json")
    old, new = ({k: v for k, v in d.items() if k not in BESIDE} for d in (old, new))
    return list(_differing(old, new, ""))


def drawn_once(before: str) -> bool:
    """Whether the resolved text ``before`` is of a study with one draw for all seeds: it says so,
    or was written before the key existed."""
    try:
        old = yaml.safe_load(before)
    except yaml.YAMLError:
        return False
    return isinstance(old, dict) and old.get("draws", "one") == "one"


def _differing(old: Any, new: Any, place: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (key for key in new if key in old):  # a newer version may have more keys
            below = f"{place}.{key}" if place else str(key)
            yield from _differing(old[key], new[key], below)
    elif old != new:
        yield place


def _mapping(values: Mapping[str, Any], place: Place, source: Source) -> Iterator[str]:
    for key, value in values.items():
        name, here = _on_one_line(key), (*place, key)
        if isinstance(value, Mapping) and value:
            yield f"{name}:"
            yield from (f"  {line}" for line in _mapping(value, here, source))
        elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            yield f"{name}:"
            for index, entry in enumerate(value):
                below = _mapping(entry, (*here, index), source)
                yield from (f"{'  ' if n else '- '}{line}" for n, line in enumerate(below))
        else:
            yield f"{name}: {_on_one_line(value)}  {_comment(f'# {_origin(here, source)}')}"


def _on_one_line(value: Any) -> str:
    """A value, or a list of values, as YAML on one line."""
    parts = value if isinstance(value, list) else [value]
    # Only double quotes can hold a line break on one line.
    broken = any(isinstance(part, str) and not part.isprintable() for part in parts)
    style = '"' if broken else None
    text: str = yaml.safe_dump(
        [value], default_flow_style=True, default_style=style, width=float("inf")
    )
    return text.strip()[1:-1]


def _origin(place: Place, source: Source) -> str:
    """Where the value at ``place`` of the study came from."""
    origins = [_written(at, source) for at in _candidates(place, source)]
    return next((origin for origin in origins if origin), DEFAULT)


def _candidates(place: Place, source: Source) -> Iterator[Place]:
    """Places in the file that may set ``place``: itself, or a short form."""
    yield place
    if place[0] == "denoiser" and place[1:] in [(key,) for key in RECIPES["paper"]]:
        yield ("denoiser", "recipe")
    if place[0] != "datasets":
        return
    entry: Any = _value(source.written(place[:2]), source.data)
    if isinstance(entry, str) and place[2:] == ("name",):
        yield place[:2]
    sizes = entry.get("train_size") if isinstance(entry, Mapping) else None
    if isinstance(sizes, list) and place[2:] == ("source",):
        yield (*place[:2], "train_size")
    if place[2:] == ("size",):
        yield ("image_size",)


def _written(place: Place, source: Source) -> str:
    """``--set a.b`` or ``line N``; empty if the study does not set ``place``."""
    try:
        _value(source.written(place), source.data)
    except (LookupError, TypeError):
        return ""
    if override := source.override(place):
        return f"--set {override.partition('=')[0].strip()}"
    below = "".join(f"{part}." for part in source.written(place))
    names = [override.partition("=")[0].strip() for override in source.overrides]
    entries = [f"--set {name}" for name in names if name.startswith(below)]
    # --set may replace single entries of a list.
    return ", ".join([f"line {source.line(place)}", *dict.fromkeys(entries)])


def _value(place: Place, data: Mapping[str, Any]) -> Any:
    """The value at ``place``; LookupError or TypeError if there is none."""
    value: Any = data
    for part in place:
        value = value[part]
    return value


def _comment(text: str) -> str:
    """``text`` without characters that a comment cannot hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
