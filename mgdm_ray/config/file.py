"""Read a study file: safe YAML, overrides, and errors with their place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mgdm_ray.config.base import InputError, require_known
from mgdm_ray.config.study import StudyConfig, expanded

Place = tuple[str | int, ...]
"""Keys and indices that lead to a value of the study."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys."""

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


MOST_TOLD = 20
"""Errors shown one by one."""
MAX_STUDY_BYTES = 1_000_000
MAX_VALUES, MAX_DEPTH, MAX_SCALAR = 100_000, 30, 4096
"""Limits of a study file: values after expanding aliases, nesting, characters per value."""
# Constructors raise more than YAMLError: for impossible dates, for mappings as keys.
_YAML_MISTAKES = (yaml.YAMLError, ValueError, RecursionError, TypeError)


@dataclass(frozen=True)
class Source:
    """The content of a study file, and the line of each value."""

    path: Path
    data: Mapping[str, Any]
    """Content after overrides."""
    lines: Mapping[Place, int]
    overrides: Sequence[str]

    def written(self, place: Place) -> Place:
        """Place in the file of ``place`` in the study: one entry of ``datasets`` may be several."""
        entries = self.data.get("datasets")
        if place[:1] != ("datasets",) or len(place) < 2 or not isinstance(entries, list):
            return place
        indices = [index for index, _ in expanded(entries)]
        at = place[1]
        return ("datasets", indices[at], *place[2:]) if isinstance(at, int) else place

    def override(self, place: Place) -> str:
        """The last ``--set`` that applies to ``place``, or an empty string."""
        flat = [str(part) for part in self.written(place)]
        found = ""
        for override in self.overrides:
            keys = override.partition("=")[0].strip().split(".")
            if flat[: len(keys)] == keys:
                found = override
        return found

    def line(self, place: Place) -> int:
        """The line of ``place``, or of the nearest key above it."""
        known = self.written(place)
        while known and known not in self.lines:
            known = known[:-1]
        return self.lines.get(known, 1)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read, override (``a.b=c``) and validate a study file.

    Raise InputError with one line per mistake: place, what came, what is allowed.
    """
    return read_study(path, overrides)[0]


def read_study(path: str | Path, overrides: Sequence[str] = ()) -> tuple[StudyConfig, Source]:
    """As ``load_study``, with the file's content and lines."""
    path = find_study(path)
    try:
        if path.stat().st_size > MAX_STUDY_BYTES:
            raise InputError(f"{path}: larger than {MAX_STUDY_BYTES} bytes; not a study file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(_missing(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    data, lines = _parse(path, text)
    for override in overrides:
        apply_override(data, override)
    source = Source(path, data, lines, overrides)
    try:
        return StudyConfig.model_validate(data), source
    except ValidationError as error:
        errors = error.errors()
        places = {e["loc"][:end] for e in errors for end in range(1, len(e["loc"]))}
        # pydantic adds "too short" to a list whose entries are wrong: noise
        errors = [e for e in errors if not (e["type"] == "too_short" and e["loc"] in places)]
        errors = [e for e in errors if not _of_image_size(source, e["loc"])]
        told = [_explain(source, e) for e in errors[:MOST_TOLD]]
        told = [t if len(t) <= 2000 else f"{t[:1500]} ... {t[-300:]}" for t in told]
        more = [f"and {len(errors) - MOST_TOLD} more mistakes"] if len(errors) > MOST_TOLD else []
        raise InputError("\n".join([*dict.fromkeys(told), *more])) from None


def shipped_studies() -> Path:
    """The folder of the studies that come with the package: in the wheel, or in the checkout."""
    package = Path(__file__).parents[1]
    inside = package / "studies"
    return inside if inside.is_dir() else package.parent / "studies"


def find_study(given: str | Path) -> Path:
    """``given``, or the shipped study of that name where it is a bare name and no file."""
    path = Path(given)
    if path.exists() or path.name != str(given) or path.suffix in (".yaml", ".yml"):
        return path
    shipped = shipped_studies() / f"{path.name}.yaml"
    return shipped if shipped.is_file() else path


def _missing(path: Path) -> str:
    here = sorted(map(str, path.parent.glob("*.yaml")))
    shipped = sorted(p.stem for p in shipped_studies().glob("*.yaml"))
    lists = {"study files here": here, "shipped studies": shipped}
    known = "; ".join(f"{what}: {', '.join(names)}" for what, names in lists.items() if names)
    return f"{path}: no such file; {known}"


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[Place, int]]:
    try:
        node, data = _load(text)
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


def _load(text: str) -> tuple[yaml.Node | None, Any]:
    """The document of ``text`` as nodes and as values; ValueError if it is too large.

    Measured before it is built: a few lines of aliases can expand to billions of values.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        if _size(node, {}) > MAX_VALUES:
            raise ValueError(f"it expands to more than {MAX_VALUES} values (aliases of aliases?)")
        return node, loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], depth: int = 0) -> int:
    """Number of values after expanding aliases; ValueError if nested too deep or recursive."""
    if depth > MAX_DEPTH:
        raise ValueError(f"values are nested more than {MAX_DEPTH} deep, or contain themselves")
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > MAX_SCALAR:
            raise ValueError(
                f"line {node.start_mark.line + 1}: a value of {len(node.value)} "
                f"characters; at most {MAX_SCALAR} are allowed"
            )
        return 1
    if id(node) not in known:
        below = node.value
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(one, known, depth + 1) for one in below)
    return known[id(node)]


def _lines(node: yaml.Node, place: Place, line: int = 0) -> Iterator[tuple[Place, int]]:
    """An entry of a mapping is at the line of its key, not of its value."""
    yield place, line or node.start_mark.line + 1
    if len(place) > 20:  # anchors can make a cycle
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines(value, (*place, str(key.value)), key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*place, index), value.start_mark.line + 1)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set ``a.b.0=value`` in ``data``, with the value as YAML; InputError if that fails."""
    where, separator, raw = override.partition("=")
    if not separator or not where.strip():
        raise InputError(f"--set {_short(override)}: write it as key.key=value")
    try:
        _, value = _load(raw)
    except _YAML_MISTAKES as error:
        raise InputError(
            f"--set {_short(override)}: the value is not valid YAML: {_short(str(error))}"
        ) from None
    *parents, last = where.strip().split(".")
    target: Any = data
    for part in parents:
        if isinstance(target, dict) and target.get(part) is None:
            target[part] = {}
        target = target[_key(override, part, target)]
        if not isinstance(target, dict | list):
            what = f"{_short(part)!r} is a single value without keys"
            raise InputError(f"--set {_short(override)}: {what}")
    target[_key(override, last, target)] = value


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _key(override: str, part: str, values: dict[str, Any] | list[Any]) -> Any:
    """``part`` as a key of ``values``, or as an index."""
    if isinstance(values, dict):
        return part
    # int() takes digits of other scripts, and refuses thousands of digits.
    if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(values):
        raise InputError(
            f"--set {_short(override)}: {_short(part)!r} is not an index below {len(values)}"
        )
    return int(part)


def _of_image_size(source: Source, place: Place) -> bool:
    """Whether a dataset's size is wrong only because ``image_size`` is."""
    if len(place) != 3 or place[0] != "datasets" or place[2] != "size":
        return False
    _, index, _ = source.written(place)
    entry = source.data["datasets"][index]
    return "image_size" in source.data and not (isinstance(entry, Mapping) and "size" in entry)


def _explain(source: Source, error: Mapping[str, Any]) -> str:
    """Where the mistake is, and what came, is allowed or is close."""
    location, kind = tuple(error["loc"]), error["type"]
    if location[-1:] == ("[key]",):  # a name in a mapping
        location = location[:-1]
    dotted = dotted_place(source.written(location))
    override = source.override(location)
    origin = f"--set {_short(override)}" if override else f"{source.path}:{source.line(location)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    came = _short(repr(error.get("input")), 80)
    try:
        if kind == "extra_forbidden":
            dotted = dotted if len(location) > 1 else ""
            require_known(str(location[-1]), "key", _keys_at(location[:-1]))
        elif kind == "literal_error":
            options = re.findall(r"'([^']*)'", error["ctx"]["expected"])
            require_known(str(error["input"]), "value", options)
    except ValueError as reason:
        kind, message = "value_error", str(reason)
    if kind == "value_error":
        return f"{origin}: {_placed(message, dotted)}"
    if kind == "missing":
        return f"{origin}: {dotted}: this key is required and missing"
    if kind == "tuple_type":
        forms = "a number of seeds (5) or a list ([0, 1, 2])"
        forms = forms if dotted == "seeds" else "a list ([...])"
        return f"{origin}: {dotted} must be {forms}; got {came}"
    return f"{origin}: {dotted}: {message[0].lower()}{message[1:]}; got {came}"


def dotted_place(place: Place) -> str:
    """``networks[1]``, ``denoiser.unet``."""
    dotted = ""
    for part in place:
        dotted += f"[{part}]" if isinstance(part, int) else f".{part}" if dotted else str(part)
    return dotted


def _placed(message: str, dotted: str) -> str:
    """``unknown network 'resnet19' in networks[2]; did you mean ...``."""
    if not dotted:
        return message
    match = re.match(r"unknown \w+ '[^']*'", message)
    if match:
        return f"{match[0]} in {dotted}{message[match.end() :]}"
    return f"{message} (in {dotted})"


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """Keys allowed at a place of the study file."""
    model: Any = StudyConfig
    for part in location:
        if part in model.model_fields:  # else an index, or a name in a mapping
            model = next(_models(model.model_fields[part].annotation))
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)
