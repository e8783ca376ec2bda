"""Reading a study file: safe YAML, overrides, and mistakes told with their place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mgdm_ray.config.base import InputError, require_known
from mgdm_ray.config.study import StudyConfig


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error instead of silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


MAX_STUDY_BYTES = 1_000_000
# The loader passes on what its constructors raise: a date that does not exist, a key that is a
# mapping.
_YAML_MISTAKES = (yaml.YAMLError, ValueError, RecursionError, TypeError)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read, override (``a.b=c``) and validate a study file.

    Raises InputError with one line per mistake: place, what came, what is allowed.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_STUDY_BYTES:
            raise InputError(f"{path}: larger than {MAX_STUDY_BYTES} bytes; this is no study file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(_missing(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    data, lines = _parse(path, text)
    for override in overrides:
        apply_override(data, override)
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        places = {e["loc"][:-1] for e in errors}
        # pydantic adds "too short" to a list whose entries are wrong: noise
        errors = [e for e in errors if not (e["type"] == "too_short" and e["loc"] in places)]
        messages = [_explain(path, lines, e, overrides) for e in errors]
        raise InputError("\n".join(dict.fromkeys(messages))) from None


def _missing(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("studies")
    found = sorted(str(p) for p in folder.glob("*.yaml"))
    return f"{path}: no such file." + (f" Study files here: {', '.join(found)}" if found else "")


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int]]:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{path}{place}: not valid YAML: {error.problem or error}") from None
    except _YAML_MISTAKES as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict) or node is None:
        kind = "nothing" if data is None else type(data).__name__
        raise InputError(
            f"{path}: a study file is a mapping of keys, e.g. 'name: my-study'; got {kind}"
        )
    return data, dict(_lines(node, ()))


def _lines(
    node: yaml.Node, place: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], int]]:
    yield place, node.start_mark.line + 1
    if len(place) > 20:  # anchors can make a cycle
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, str(key.value)), key.start_mark.line + 1
            yield from _lines_below(value, (*place, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*place, index))


def _lines_below(
    node: yaml.Node, place: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], int]]:
    # The key's own line is the place of a mapping entry, not the line where its value begins.
    return (item for item in _lines(node, place) if item[0] != place)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set ``a.b.0=value`` in ``data``; the value is read as YAML.

    Raises InputError where it is not of that form, or there is no such place.
    """
    where, separator, raw = override.partition("=")
    if not separator or not where.strip():
        raise InputError(f"--set {override}: give it as key.key=value")
    try:
        value = yaml.load(raw, _Loader)  # noqa: S506 - a subclass of SafeLoader
    except _YAML_MISTAKES as error:
        raise InputError(f"--set {override}: the value is not valid YAML: {error}") from None
    *parents, last = where.strip().split(".")
    target: Any = data
    for part in parents:
        if isinstance(target, list):
            target = target[_index(override, part, target)]
        elif isinstance(target, dict):
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
        if not isinstance(target, dict | list):
            raise InputError(f"--set {override}: {part!r} is a single value and has no keys below")
    if isinstance(target, list):
        target[_index(override, last, target)] = value
    else:
        target[last] = value


def _index(override: str, part: str, values: list[Any]) -> int:
    if not part.isdigit() or int(part) >= len(values):
        raise InputError(f"--set {override}: {part!r} is not an index below {len(values)}")
    return int(part)


def _explain(
    path: Path,
    lines: Mapping[tuple[str | int, ...], int],
    error: Mapping[str, Any],
    overrides: Sequence[str],
) -> str:
    location = tuple(error["loc"])
    dotted = ""
    for part in location:
        dotted += f"[{part}]" if isinstance(part, int) else f".{part}" if dotted else str(part)
    flat = [str(part) for part in location]
    source = ""
    for override in overrides:
        set_here = override.partition("=")[0].strip().split(".")
        if flat[: len(set_here)] == set_here:
            source = f"--set {override}"
    if not source:
        known = location
        while known and known not in lines:
            known = known[:-1]
        source = f"{path}:{lines.get(known, 1)}"
    return f"{source}: {_what(error, location, dotted)}"


def _what(error: Mapping[str, Any], location: tuple[str | int, ...], dotted: str) -> str:
    came = repr(error.get("input"))
    came = came if len(came) <= 80 else came[:77] + "..."
    if error["type"] == "extra_forbidden":
        try:
            require_known(str(location[-1]), "key", _keys_at(location[:-1]))
        except ValueError as reason:
            return _placed(str(reason), dotted if len(location) > 1 else "")
    if error["type"] == "missing":
        return f"{dotted}: this key is required and missing"
    if error["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        try:
            require_known(str(error["input"]), "value", options)
        except ValueError as reason:
            return _placed(str(reason), dotted)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return _placed(message, dotted)
    return f"{dotted}: {message[0].lower()}{message[1:]}; got {came}"


def _placed(message: str, dotted: str) -> str:
    """``unknown network 'resnet19' in networks[2]; did you mean ...``."""
    if not dotted:
        return message
    match = re.match(r"unknown \w+ '[^']*'", message)
    if match:
        return f"{match[0]} in {dotted}{message[match.end() :]}"
    return f"{message} (in {dotted})"


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys allowed at a place of the study file."""
    model: Any = StudyConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = next(m for m in _models(annotation))
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)
